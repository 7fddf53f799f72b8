"""Checkpoints: whole or refused, never half."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driftway.adapt.checkpoint import Checkpointer
from driftway.adapt.state import digest
from driftway.streams import InputError

PARTS: dict[str, Any] = {
    "learner": {"w": np.arange(6.0).reshape(2, 3), "rng": {"state": 2**127 + 3, "name": "PCG64"}, "none": None},
    "evaluators": [{"n": np.int64(4), "empty": np.zeros((0, 2), np.int32), "zero": np.array(1.5)}],
    "guard": None,
}


def saved_twice(folder: Path) -> Checkpointer:
    keeper = Checkpointer(folder)
    for step in (100, 200):
        keeper.save(step, PARTS | {"loop": {"step": step}}, {"at": step}, {"config": {"seed": 1}})
    return keeper


def test_round_trip(tmp_path: Path) -> None:
    saved_twice(tmp_path / "deep" / "checkpoint")
    saved = Checkpointer(tmp_path / "deep" / "checkpoint").load_newest()
    assert saved is not None
    assert (saved.step, saved.cursor, saved.meta, saved.notes) == (200, {"at": 200}, {"config": {"seed": 1}}, ())
    assert digest(saved.parts) == digest(PARTS | {"loop": {"step": 200}})
    weights = saved.parts["learner"]["w"]
    assert weights.flags.writeable
    assert weights.flags.aligned
    manifest = json.loads((saved.path / "manifest.json").read_text())
    assert {"format", "driftway", "numpy", "python", "step", "cursor", "files", "sha256"} <= set(manifest)


def test_only_the_newest_stay_and_numbering_goes_on(tmp_path: Path) -> None:
    keeper = saved_twice(tmp_path)
    again = Checkpointer(tmp_path, keep=2)
    for step in (200, 300):  # the same step twice is no clash
        again.save(step, PARTS, {})
    assert sorted(os.listdir(tmp_path)) == ["00000003-000000000200", "00000004-000000000300"]
    assert keeper.load_newest() is not None
    assert Checkpointer(tmp_path / "nothing").load_newest() is None


def flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def edit_cursor(path: Path) -> None:
    path.write_text(path.read_text().replace('"at": 200', '"at": 201'))


@pytest.mark.parametrize(
    ("file", "harm", "reason"),
    [
        ("learner.safetensors", flip, "learner.safetensors was altered"),
        ("learner.safetensors", shorten, "bytes, not"),
        ("evaluators.safetensors", Path.unlink, "evaluators.safetensors is missing"),
        ("manifest.json", shorten, "manifest.json is torn"),
        ("manifest.json", edit_cursor, "manifest.json was altered"),
        ("manifest.json", Path.unlink, "manifest.json is missing"),
    ],
)
def test_a_harmed_checkpoint_is_refused_and_the_one_before_is_used(
    tmp_path: Path, file: str, harm: Callable[[Path], Any], reason: str
) -> None:
    saved_twice(tmp_path)
    harm(tmp_path / "00000002-000000000200" / file)
    keeper = Checkpointer(tmp_path)
    saved = keeper.load_newest()
    assert saved is not None
    assert saved.step == 100
    (note,) = saved.notes
    assert note.startswith("checkpoint 00000002-000000000200 refused: ")
    assert reason in note
    keeper.save(150, PARTS, {})  # the refused one does not push out the good one
    assert sorted(os.listdir(tmp_path)) == ["00000001-000000000100", "00000003-000000000150"]


def test_purging_spares_the_one_in_use_not_a_harmed_newer_one(tmp_path: Path) -> None:
    saved_twice(tmp_path)
    flip(tmp_path / "00000002-000000000200" / "learner.safetensors")
    keeper = Checkpointer(tmp_path)
    assert keeper.load_newest() is not None
    keeper.purge()
    assert os.listdir(tmp_path) == ["00000001-000000000100"]
    keeper.save(300, PARTS, {})
    keeper.purge()
    assert os.listdir(tmp_path) == ["00000002-000000000300"]


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("driftway.adapt.checkpoint.FORMAT", 99)
    Checkpointer(tmp_path).save(1, PARTS, {})
    monkeypatch.undo()
    keeper = Checkpointer(tmp_path)
    assert keeper.load_newest() is None
    assert "format 99" in keeper.notes[0]


def test_a_state_that_is_none_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state\.x is a set"):
        Checkpointer(tmp_path).save(1, {"learner": {"x": {1}}}, {})
    with pytest.raises(ValueError, match="no name for a part"):
        Checkpointer(tmp_path).save(1, {"../x": {}}, {})
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^cannot (read|write) the checkpoints? [^\n]*$"):
        Checkpointer(tmp_path / "file" / "checkpoint").save(1, PARTS, {})


FULL_DISK = """
import resource, sys, numpy as np
from driftway.adapt.checkpoint import Checkpointer
from driftway.streams import InputError
keeper = Checkpointer(sys.argv[1])
keeper.save(1, {"learner": {"w": np.zeros(10)}}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    keeper.save(2, {"learner": {"w": np.zeros(100_000)}}, {})
except InputError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("cannot write the checkpoint")
    assert os.listdir(tmp_path) == ["00000001-000000000001"]


ENDLESS = """
import itertools, sys, numpy as np
from driftway.adapt.checkpoint import Checkpointer
keeper = Checkpointer(sys.argv[1])
saved = keeper.load_newest()
assert not keeper.notes, keeper.notes
start = saved.step if saved else 0
assert saved is None or (saved.parts["learner"]["w"] == start).all()
for step in itertools.count(start + 1):
    keeper.save(step, {"learner": {"w": np.full(20_000, float(step))}}, {"at": step})
    print(step, flush=True)
"""


def test_killed_at_any_moment_there_is_a_whole_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    reached = 0
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", ENDLESS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        process.wait()
        process.stdout.close()
        assert int(first) >= reached + 1  # it went on from the newest one
        reached = int(rest[-1]) if rest else int(first)
        keeper = Checkpointer(tmp_path)
        saved = keeper.load_newest()
        assert saved is not None
        assert not keeper.notes
        assert saved.step in (reached, reached + 1)  # the last line may not have been printed yet
        reached = saved.step
    assert len([p for p in os.listdir(tmp_path) if not p.startswith(".")]) <= 3


def test_due_by_steps_and_by_the_clock(tmp_path: Path) -> None:
    by_steps = Checkpointer(tmp_path / "a", every=100)
    assert [by_steps.due(s) for s in (0, 99, 100, 130)] == [False, False, True, True]
    by_steps.save(130, PARTS, {})
    assert [by_steps.due(s) for s in (130, 199, 200)] == [False, False, True]
    always = Checkpointer(tmp_path / "b", seconds=0)
    assert always.due(1)
    assert not Checkpointer(tmp_path / "c", seconds=1e6).due(1)
