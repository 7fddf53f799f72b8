"""A folder of jsonl files as tasks: which file is which task, what is held out, what becomes of bad lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import driftway as dw
import pytest
from driftway.adapt.cli import main
from driftway.streams import Batch, Boundary, InputError, Rejected
from driftway.streams.text_tasks import OTHER

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra lm")


def write(path: Path, *rows: Any) -> None:
    """Lines of a file; what is no text is written as JSON."""
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


def pairs(n: int, what: str = "prompt", answer: str = "answer") -> list[dict[str, str]]:
    return [{what: f"is {i} even?", answer: "no" if i % 2 else "yes"} for i in range(n)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three tasks: a file without a split, a pair of files, and one with a split in its lines. Five lines are bad."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    bad = ["{broken", {"prompt": "no answer"}, {"prompt": "?", "answer": " ?!"}, [1]]
    write(folder / "01-even.jsonl", *pairs(4), *bad, "", *pairs(11)[4:])
    write(folder / "02-colour.test.jsonl", {"instruction": "Say it.", "input": "blue sky", "output": "Blue."})
    write(folder / "02-colour.train.jsonl", *({"input": f"{c} hat", "output": c} for c in ("red", "blue")))
    rows = [{"question": f"{i} + 1", "target": i + 1, "split": "dev" if i % 3 else "train"} for i in range(9)]
    write(folder / "03-sum.jsonl.gz", *rows, {"question": "1 + 1", "target": 2, "split": "spare"})
    write(folder / "notes.txt", "not a task")
    return folder


def prompts(stream: Any, x: Any) -> list[str]:
    tokenizer = tokenizers.Tokenizer.from_str(stream.spec.text.tokenizer)
    return [text.strip() for text in tokenizer.decode_batch(x.astype(int).tolist())]


def test_files_are_tasks_in_the_order_of_their_names(folder: Path) -> None:
    stream = dw.stream(folder)
    spec = stream.spec
    assert (spec.name, spec.length, spec.notes["scenario"]) == ("tasks", 9 + 2 + 3, "domain")
    assert [(e.name, e.rows, len(e.y)) for e in spec.experiences] == [
        ("01-even", 9, 2),
        ("02-colour", 2, 1),
        ("03-sum", 3, 6),
    ]
    assert spec.classes[:4] == ("yes", "no", "red", "blue"), "Blue. is no class of its own"
    assert spec.classes[-1] == OTHER
    assert spec.source is None
    assert prompts(stream, spec.experiences[0].x) == ["is 9 even?", "is 10 even?"], "the last fifth"
    assert prompts(stream, spec.experiences[1].x) == ["Say it.\nblue sky"]
    assert spec.classes[spec.experiences[1].y[0]] == "blue"
    assert {spec.classes[c] for c in spec.experiences[2].y} == {"2", "3", "5", "6", "8", "9"}


def test_bad_lines_are_quarantined_as_their_task_begins(folder: Path, check_seek: Any) -> None:
    events = list(dw.stream(folder))
    assert [type(event) for event in events] == [
        *[Rejected] * 4, Batch, Boundary, Batch, Boundary, Rejected, Batch
    ]  # fmt: skip
    reasons = [(e.row, e.reason) for e in events if isinstance(e, Rejected)]
    assert reasons == [
        (4, "01-even.jsonl, line 5: not JSON"),
        (5, "01-even.jsonl, line 6: no key 'answer'"),
        (6, "01-even.jsonl, line 7: answer: no answer"),
        (7, "01-even.jsonl, line 8: not a JSON object"),
        (9, "03-sum.jsonl.gz, line 10: split: 'spare' is neither train nor test"),
    ]
    assert check_seek(lambda: dw.stream(folder, epochs=2))


def test_a_run_tells_of_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(folder), "--learner", "majority", "--set", "length=32"]) == 0
    assert "5 quarantined" in capsys.readouterr().out
    assert main(["run", str(folder), "--learner", "majority", "--evaluate-worker"]) == 2
    assert "answers to text are judged in the run's own process" in capsys.readouterr().err
    assert main(["streams", str(folder)]) == 0
    assert "prompt_key" in capsys.readouterr().out


def test_keys_and_instruction_can_be_given(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", *({"text": "not this", **row} for row in pairs(6, "said", "heard")))
    stream = dw.stream(tmp_path, prompt_key="said", answer_key="heard", instruction="Even?", length=12)
    found = prompts(stream, stream.spec.experiences[0].x)[0]
    assert found.startswith("Even?\n is 5")
    write(tmp_path / "a.jsonl", *({"n": i, "prompt": "p" * i, "label": i > 3} for i in range(1, 7)))
    assert dw.stream(tmp_path).spec.classes == ("False", "True", OTHER), "labels may be numbers and truth values"


def test_a_training_file_may_come_without_tests(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", pairs(1)[0])
    stream = dw.stream(tmp_path)
    assert stream.spec.experiences == ()
    assert sum(len(event) for event in stream) == 1
    write(tmp_path / "b.jsonl", *pairs(4))
    with pytest.raises(InputError, match=r"a: no row is held out to judge by, as other tasks have them: give it a\."):
        dw.stream(tmp_path)


@pytest.mark.parametrize(
    ("rows", "params", "message"),
    [
        ([], {}, "x.jsonl, line 1: the file is empty"),
        (["", "{"], {}, "x.jsonl, line 2: not JSON"),
        ([{"a": 1, "b": 2}], {}, "none of the keys prompt, input, .*; it has a, b .prompt_key=NAME"),
        ([{"prompt": "x", "b": 2}], {}, "none of the keys answer, .*; it has prompt, b .answer_key=NAME"),
        (pairs(3), {"prompt_key": "q"}, "line 1: no key 'q'; it has prompt, answer"),
        ([{"prompt": 1, "answer": 2}], {}, "line 1: prompt: no text"),
        ([{"prompt": "x", "answer": {}}], {}, "line 1: answer: not a text or a number"),
        ([{"prompt": "x", "answer": "a" * 201}], {}, "an answer of 201 characters, more than 200"),
        ([{"prompt": "x", "answer": "a", "split": "test"}], {}, "x: there are rows to test on, but none to train"),
        (pairs(3), {"length": 8, "instruction": "word " * 9}, "length=8: an instruction of .* leaves no room"),
        (pairs(3), {"epochs": 0}, "epochs must be at least 1"),
        (pairs(3), {"label": "answer"}, "label is for files; a folder has answer_key"),
        (pairs(3), {"header": "no"}, "unknown parameter 'header'; it has prompt_key, "),
    ],
)
def test_what_cannot_be_a_stream_is_one_line(
    tmp_path: Path, rows: list[Any], params: dict[str, Any], message: str
) -> None:
    write(tmp_path / "x.jsonl", *rows)
    with pytest.raises(InputError, match=message) as caught:
        dw.stream(tmp_path, **params)
    assert "\n" not in str(caught.value)


def test_a_folder_without_such_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"without \.jsonl files"):
        dw.stream(tmp_path)
    (tmp_path / "x.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match=r"x\.jsonl\.gz: cannot be read"):
        dw.stream(tmp_path)


def test_lines_that_are_not_utf8_or_too_deep_are_bad_lines(tmp_path: Path) -> None:
    good = "".join(json.dumps(row) + "\n" for row in pairs(4)).encode()
    (tmp_path / "x.jsonl").write_bytes(b'{"prompt": "\xff"}\n' + b"[" * 200_000 + b"\n" + good)
    reasons = [event.reason for event in dw.stream(tmp_path) if isinstance(event, Rejected)]
    assert reasons == ["x.jsonl, line 1: not UTF-8", "x.jsonl, line 2: not JSON"]


def test_half_characters_make_a_bad_line_and_whole_ones_do_not(tmp_path: Path) -> None:
    bad = [
        r'{"prompt": "x \ud800 y", "answer": "no"}',
        r'{"prompt": "x", "answer": "\uDFFF"}',
        r'{"prompt": "x", "answer": "no", "\ud800": 1}',
    ]
    write(tmp_path / "x.jsonl", *pairs(4), *bad, r'{"prompt": "\ud83d\ude00 \u00e9", "answer": "no"}')
    events = list(dw.stream(tmp_path))
    reasons = [event.reason for event in events if isinstance(event, Rejected)]
    assert [reason.partition(": ")[0] for reason in reasons] == [f"x.jsonl, line {n}" for n in (5, 6, 7)]
    assert all("half a character" in reason for reason in reasons)
    assert sum(len(event) for event in events if isinstance(event, dw.Batch)) == 4


def test_a_byte_order_mark_and_windows_line_ends_are_no_fault(tmp_path: Path) -> None:
    lines = [json.dumps(row).encode() for row in pairs(4)]
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    events = list(dw.stream(tmp_path))
    assert not [event for event in events if isinstance(event, Rejected)]
    assert sum(len(event) for event in events if isinstance(event, dw.Batch)) == 3
