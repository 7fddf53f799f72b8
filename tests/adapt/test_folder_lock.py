"""One writer for a folder: a second one is refused in one line, and a killed one keeps nobody out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import driftway as dw
import pytest
from driftway.adapt import cli
from driftway.adapt.config import resolve
from driftway.adapt.folder_lock import LOCK, FolderLock
from driftway.adapt.runs import Run

HOLD = """
import sys, time
from pathlib import Path
from driftway.adapt.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]), "driftway run digits")
print("held", flush=True)
time.sleep(60)
"""
CONFIG = {"stream": "digits", "learner": "acu", "limit": 200, "batch": 10}


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_holder_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        words = rf"is in use by process {process.pid} \(driftway run digits, since \d\d:\d\d:\d\d\): try again"
        with pytest.raises(dw.InputError, match=words):
            FolderLock(tmp_path, "a test")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert (tmp_path / LOCK).read_text(), "the killed holder's words are still there"
    lock = FolderLock(tmp_path, "a test")
    with pytest.raises(dw.InputError, match=f"process {os.getpid()} "):
        FolderLock(tmp_path, "another test")
    lock.release()
    lock.release()
    FolderLock(tmp_path, "a test").release()
    assert (tmp_path / LOCK).read_text() == ""


def test_a_run_that_goes_on_refuses_requests_and_second_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    run = Run(resolve(CONFIG, settings=["learner.width=16"]), out, command="driftway run digits")
    steps = run.steps()
    next(steps)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for command in (
        ["forget", str(out), "--ids", "3"],
        ["run", "--resume", "--out", str(out)],
        ["run", "digits", "--learner", "acu", "--out", str(out)],
    ):
        capsys.readouterr()
        assert cli.main(command) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert f"{out} is in use by process {os.getpid()} (driftway run digits, since" in told
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    list(steps)
    assert cli.main(["forget", str(out), "--ids", "3"]) == 0


def test_a_request_or_a_resumed_run_holds_the_folder_too(tmp_path: Path) -> None:
    config = resolve(CONFIG, settings=["learner.width=16"])
    run = Run(config, tmp_path / "run")
    for _ in run.steps():
        run.stop()
    resumed = Run(config, tmp_path / "run", resume=True, command="driftway forget")
    with pytest.raises(dw.InputError, match=r"in use by process \d+ \(driftway forget"):
        Run(config, tmp_path / "run", resume=True)
    resumed.close()
    again = Run(config, tmp_path / "run", resume=True)
    list(again.steps())
    assert again.status == "done"


def test_what_ends_before_it_begins_holds_nothing(tmp_path: Path) -> None:
    wrong = resolve({**CONFIG, "evaluate_every": 5})
    faults = []
    for _ in range(2):
        with pytest.raises(dw.InputError, match="no held-out rows") as fault:
            Run(wrong, tmp_path / "run")
        faults.append(fault)  # its traceback keeps the run alive
    with pytest.raises(dw.InputError, match="no held-out rows"):
        Run(wrong, tmp_path / "run")
