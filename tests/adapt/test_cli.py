"""The command line: what others script against. Exit codes, streams, one line for every mistake."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from driftway.adapt.cli import main


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 2))
    rows = [f"{a:.5f},{b:.5f},{int(a > b)}" for a, b in x]
    path = tmp_path_factory.mktemp("data") / "table.csv"
    path.write_text("\n".join(["a,b,y", *rows]) + "\n", encoding="utf-8")
    return str(path)


def test_json_is_the_summary_and_nothing_else(table: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", table, "--learner", "logistic", "--json"]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert summary["status"] == "done"
    assert summary["accuracy"] > 0.8
    assert err == ""


def test_without_out_nothing_is_written(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", table, "--learner", "logistic", "--limit", "200"]) == 0
    out = capsys.readouterr().out
    assert "--out" in out.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_the_guard_is_set_by_flags(table: str, tmp_path: Path) -> None:
    config = tmp_path / "run" / "config.toml"
    flags = ["--no-guard", "--no-stand-in", "--out", str(config.parent)]
    assert main(["run", table, "--learner", "majority", *flags]) == 0
    written = config.read_text(encoding="utf-8")
    assert "guard = false" in written
    assert "stand_in = false" in written


def test_a_run_folder_can_be_repeated_reported_and_resumed(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["run", table, "--learner", "logistic", "--set", "rate=0.1", "--out", str(first)]) == 0
    assert "<svg" in (first / "report.html").read_text(encoding="utf-8")
    assert main(["run", str(first / "config.toml"), "--out", str(second)]) == 0
    assert (first / "records.csv").read_bytes() == (second / "records.csv").read_bytes()
    (first / "report.html").unlink()
    capsys.readouterr()
    assert main(["report", str(first)]) == 0
    assert capsys.readouterr().out.strip() == str(first / "report.html")
    assert main(["run", "--out", str(first), "--resume"]) == 0
    assert "finished" in capsys.readouterr().err
    assert main(["run", table, "--learner", "logistic", "--out", str(first)]) == 2
    assert "--resume" in capsys.readouterr().err


def test_compare_is_one_table_and_one_report(table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "both"
    line = [
        "compare",
        table,
        "--learners",
        "logistic,majority",
        "--seeds",
        "0,1",
        "--set",
        "rate=0.1",
        "--out",
        str(out),
    ]
    assert main(line) == 0
    shown = capsys.readouterr().out
    assert "logistic" in shown
    assert "±" in shown
    summaries = json.loads((out / "summaries.json").read_text())
    assert [(s["learner"], s["seed"]) for s in summaries] == [
        ("logistic", 0), ("logistic", 1), ("majority", 0), ("majority", 1)
    ]  # fmt: skip
    assert (out / "report.html").exists()
    assert (out / "logistic-seed1" / "records.csv").exists()
    assert main(line) == 2
    capsys.readouterr()
    assert main([*line, "--resume", "--json"]) == 0
    assert [s["learner"] for s in json.loads(capsys.readouterr().out)] == [
        "logistic",
        "logistic",
        "majority",
        "majority",
    ]


def _bad_inputs(folder: Path) -> dict[str, list[str]]:
    """Name -> command line that cannot work."""
    good = folder / "good.csv"
    good.write_text("a,b,y\n" + "1,2,x\n3,4,z\n" * 20)
    (folder / "empty.csv").touch()
    (folder / "noise.csv").write_bytes(np.random.default_rng(0).bytes(4096))
    (folder / "folder.csv").mkdir()
    whole = gzip.compress(good.read_bytes() * 200)
    (folder / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    np.savez(folder / "objects.npz", x=np.array([{}, []], dtype=object), y=np.array([0, 1]))
    (folder / "bad.npz").write_bytes(b"PK\x03\x04 no zip")
    (folder / "bad.toml").write_text("steam = 1")
    (folder / "list.toml").write_text("batch = [1]")
    run = ["run", "--learner", "majority"]
    return {
        "missing file": [*run, str(folder / "nothing.csv")],
        "unknown stream": [*run, "electrisity"],
        "unknown learner": ["run", str(good), "--learner", "drftmoe"],
        "unknown suffix": [*run, str(folder / "bad.xyz")],
        "empty file": [*run, str(folder / "empty.csv")],
        "wrong label column": [*run, str(good), "--label", "z"],
        "binary garbage": [*run, str(folder / "noise.csv")],
        "truncated gzip": [*run, str(folder / "cut.csv.gz")],
        "directory": [*run, str(folder / "folder.csv")],
        "object arrays": [*run, str(folder / "objects.npz")],
        "broken npz": [*run, str(folder / "bad.npz")],
        "unknown key": ["run", str(folder / "bad.toml")],
        "wrong type": ["run", str(folder / "list.toml")],
        "missing configuration": ["run", str(folder / "no.toml")],
        "unknown setting": [*run, str(good), "--set", "nonsense=1"],
        "setting without value": [*run, str(good), "--set", "nonsense"],
        "bad number": [*run, str(good), "--limit", "many"],
        "unknown flag": [*run, str(good), "--lmit", "3"],
        "unknown command": ["ruin"],
        "no command": [],
        "two streams": [*run, str(good), "sea-drift"],
        "resume without out": [*run, str(good), "--resume"],
        "wrong device": [*run, str(good), "--device", "cuda"],
        "out is a file": [*run, str(good), "--out", str(good)],
        "river nonsense": ["run", str(good), "--learner", "river:os.system"],
        "compare without learners": ["compare", str(good)],
        "compare twice the same": ["compare", str(good), "--learners", "majority,majority"],
        "bad seeds": ["compare", str(good), "--learners", "majority", "--seeds", "a"],
        "report of nothing": ["report", str(folder / "nowhere")],
        "unknown metric": ["metrics", "acuracy"],
        "unknown data set": ["data", "elektricity"],
        "unknown bench": ["bench", "lop"],
    }


@pytest.fixture(scope="module")
def bad_inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return _bad_inputs(tmp_path_factory.mktemp("bad"))


def test_a_mistake_is_one_line_and_exit_code_2(
    bad_inputs: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    for case, line in bad_inputs.items():
        code = main(line)
        out, err = capsys.readouterr()
        assert (code, out) == (2, ""), (case, err)
        assert len(err.splitlines()) == 1, (case, err)
        assert err.startswith("driftway: error: "), (case, err)


def test_listings_name_parameters_defaults_and_sources(capsys: pytest.CaptureFixture[str]) -> None:
    for line, words in [
        (["streams"], ["digits", "electricity", "sea-drift"]),
        (["streams", "sea-drift"], ["noise", "0.1"]),
        (["learners"], ["logistic", "river:module.Class"]),
        (["learners", "logistic"], ["rate", "0.05", "Bishop", "Step length"]),
        (["learners", "er+migu"], ["replay_batch", "mask_ratio", "not with  SparCL", "the step that all parts share"]),
        (["metrics"], ["kappa_t", "higher"]),
        (["metrics", "kappa"], ["Cohen", "p0"]),
        (["data"], ["electricity", "licence"]),
        (["data", "electricity"], ["sha256", "--fetch"]),
    ]:
        assert main(line) == 0
        out = capsys.readouterr().out
        assert all(word in out for word in words), (line, out)


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--help", "--version"):
        with pytest.raises(SystemExit) as left:
            main([flag])
        assert left.value.code == 0
    out = capsys.readouterr().out
    assert {"run", "compare", "export", "forget", "bench"} <= set(out.split())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_leaves_with_130(number: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = [
        sys.executable,
        "-m",
        "driftway",
        "run",
        "sea-drift",
        "--learner",
        "logistic",
        "--set",
        "n=3000000",
        "--out",
    ]
    process = subprocess.Popen([*line, str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not (out / "records.csv").exists():
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(number)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    summary = json.loads((out / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert list((out / "checkpoint").iterdir())


def test_a_closed_pipe_is_no_traceback() -> None:
    line = f"{sys.executable} -m driftway streams | true"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ)
    )
    assert done.stderr == ""
