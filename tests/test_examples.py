"""Every example, and the README's, runs as a person would run it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def own_model(folder: Path) -> None:
    """What examples/own_model.py finds on a person's disk: a model with its tokenizer, two tasks."""
    from driftway.models.language_build import build_language
    from driftway.streams.tokens import trained_tokens

    lines = {
        task: [
            f'{{"prompt": "{task} {word} {i % 7}", "answer": "{answer}"}}' for i in range(60) for word, answer in pair
        ]
        for task, pair in {
            "colours": (("grass", "green"), ("sky", "blue")),
            "animals": (("cat", "meow"), ("dog", "woof")),
        }.items()
    }
    (folder / "tasks").mkdir()
    for task, rows in lines.items():
        (folder / "tasks" / f"{task}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    tokens = trained_tokens([row for rows in lines.values() for row in rows], 300)
    text = SimpleNamespace(
        length=64,
        vocabulary=tokens.size,
        pad=tokens.pad,
        eos=tokens.eos,
        answers=tokens.answers(["green"]),
        tokenizer="",
        image=None,
        patch=0,
    )
    net: Any = build_language("llama:32-1-2", text, 2)
    net.body.save_pretrained(folder / "model")
    tokens.tokenizer.save(str(folder / "model" / "tokenizer.json"))


PREPARED = {"own_model": own_model}


def run(script: Path, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_example_runs(script: Path, tmp_path: Path) -> None:
    PREPARED.get(script.stem, lambda _: None)(tmp_path)
    assert run(script, tmp_path).strip()


def test_readme_example_works_when_pasted(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        script = tmp_path / f"pasted{number}.py"
        script.write_text(block, encoding="utf-8")
        assert "acc" in run(script, tmp_path)
