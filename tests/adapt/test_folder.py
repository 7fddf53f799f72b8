"""The run folder: files that are whole after a kill, and cut to what a checkpoint knows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import driftway as dw
import numpy as np
import pytest
from driftway.adapt.folder import RecordWriter, plain, to_json, write_whole
from driftway.adapt.loop import Loop
from driftway.adapt.record import Record
from driftway.streams import InputError

SPEC = dw.StreamSpec("s", (dw.Column("a"),), classes=("n", "y"))


@pytest.fixture
def loop() -> Loop:
    return Loop(dw.learner("majority", SPEC))


def fill(folder: Path, loop: Loop, steps: range, kept: dict[str, int] | None = None) -> None:
    writer = RecordWriter(folder, ["accuracy"], kept)
    for step in steps:
        writer.write(Record(step, "progress", {"accuracy": step / 7}), loop)
        writer.write(Record(step, "quarantine", {"row": step, "reason": "no, ü"}), loop)
    writer.close()


def test_a_torn_tail_is_cut_and_rewritten_alike(tmp_path: Path, loop: Loop) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    for folder in (whole, torn):
        folder.mkdir()
    fill(whole, loop, range(10))
    fill(torn, loop, range(6))
    for name in ("records.csv", "quarantine.jsonl", "timings.csv"):
        with (torn / name).open("ab") as file:
            file.write(b'5,prog"')
    fill(torn, loop, range(4, 10), {"records": 4, "quarantine": 4})
    for name in ("records.csv", "quarantine.jsonl"):
        assert (torn / name).read_bytes() == (whole / name).read_bytes()
    assert all(line.count(",") == 10 for line in (torn / "timings.csv").read_text().splitlines())


def test_files_that_lost_lines_are_refused(tmp_path: Path, loop: Loop) -> None:
    fill(tmp_path, loop, range(3))
    with pytest.raises(InputError, match=r"records.csv has 4 whole lines, its checkpoint knows 10"):
        RecordWriter(tmp_path, ["accuracy"], {"records": 9, "quarantine": 3})
    (tmp_path / "records.csv").unlink()
    with pytest.raises(InputError, match=r"records.csv is gone"):
        RecordWriter(tmp_path, ["accuracy"], {"records": 3, "quarantine": 3})


def test_cells_are_exact_and_notes_stay_on_one_line(tmp_path: Path, loop: Loop) -> None:
    writer = RecordWriter(tmp_path, ["a", "b", "c"])
    writer.write(Record(1, "progress", {"a": np.float64(0.1) + 0.2, "b": math.nan, "c": None}), loop)
    writer.write(Record(2, "alarm", {"note": 'two\nlines, "quoted"'}), loop)
    writer.write(Record(2, "checkpoint"), loop)
    text = (tmp_path / "records.csv").read_text()
    writer.close()
    assert text == 'step,kind,a,b,c,note\n1,progress,0.30000000000000004,,,\n2,alarm,,,,"two lines, ""quoted"""\n'


def test_json_is_plain_and_finite() -> None:
    tree = {"a": np.int64(3), "b": [np.float32(0.5), math.inf, (1, None)], "c": np.arange(2), "d": np.True_}
    assert plain(tree) == {"a": 3, "b": [0.5, None, [1, None]], "c": [0, 1], "d": True}
    assert json.loads(to_json(tree))["b"][1] is None


def test_writing_replaces_the_file_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_whole(path, "one")
    write_whole(path, "two")
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]
