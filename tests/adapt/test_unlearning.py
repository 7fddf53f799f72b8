"""Requests to forget, from end to end: everywhere a row may lie, on runs that stand still, under kill -9."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt import cli, runs
from driftway.adapt.checkpoint import Checkpointer
from driftway.adapt.config import resolve
from driftway.adapt.loop import Loop
from driftway.adapt.runs import Run
from driftway.adapt.state import copy_state, digest
from driftway.adapt.unlearning import read_ids

RNG = np.random.default_rng(5)
X = RNG.normal(size=(400, 4)).round(6)
Y = (X[:, 0] + X[:, 1] > 0).astype(np.int64) + (X[:, 2] > 1)
SPEC = dw.StreamSpec("s", tuple(dw.Column(c) for c in "abcd"), classes=("l", "m", "n"))
GONE = [7, 20, 21, 140]


def rows(first: int, last: int, *, labels: bool = True) -> dw.Batch:
    at = np.arange(first, last)
    return dw.Batch(at, X[at], float(first), Y[at] if labels else None)


def acu(**settings: Any) -> dw.Learner:
    return dw.learner("acu", SPEC, seed=0, width=16, exact="bitwise", **settings)


def taught(index: Any) -> dw.Learner:
    learner = acu()
    for i in index:
        batch = rows(i, i + 1)
        learner.learn(batch, learner.predict(batch))
    return learner


def head(learner: Any) -> str:
    found: str = learner.head.digest()
    return found


NEVER = head(taught(i for i in range(200) if i not in GONE))


# --- in a loop --------------------------------------------------------------------------------------------------


def test_a_rollback_cannot_bring_rows_back() -> None:
    loop = Loop(acu(), guard=dw.Guard(every=50), every=50)
    for i in range(0, 200, 10):
        loop.predict(rows(i, i + 10))
    loop.forget(dw.Forget(np.array(GONE), 200.0))
    assert head(loop.learner) == NEVER
    learner: Any = loop.learner
    learner.head.counts = learner.head.counts.astype(float)
    learner.head.counts[0] = np.nan
    assert loop.guard is not None
    rollback = loop.guard.check(250, learner, {})
    assert rollback is not None
    assert rollback.to_step == 0


def test_a_row_that_waits_for_its_label_is_dropped() -> None:
    loop = Loop(acu())
    loop.predict(rows(0, 10))
    loop.predict(rows(10, 20, labels=False))
    receipt = loop.forget(dw.Forget(np.array([3, 12]), 0.0))
    assert set(receipt.ids) == {3, 12}
    assert receipt.certificate["waiting_rows_dropped"] == [12]
    loop.label(dw.Labels(np.arange(10, 20), Y[10:20], 0.0))
    assert loop.quarantined == 1
    assert head(loop.learner) == head(taught([i for i in range(20) if i not in (3, 12)]))


def test_the_label_of_a_forgotten_row_is_kept_nowhere() -> None:
    loop, never = Loop(acu()), Loop(acu())
    for one, y in ((loop, Y[:20]), (never, 2 - Y[:20])):
        one.predict(rows(0, 10))
        one.predict(dw.Batch(np.arange(10, 20), X[10:20], 10.0, y[10:20]))
        one.forget(dw.Forget(np.arange(10, 20), 0.0))
    assert digest(loop.state()["pending"]) == digest(never.state()["pending"])
    loop.label(dw.Labels(np.array([12]), Y[12:13], 0.0))
    assert loop.quarantined == 1


def test_a_waiting_row_that_the_ledger_names_is_dropped_from_an_older_checkpoint(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    loop = Loop(acu(), ledger=dw.Ledger(ledger))
    loop.predict(rows(0, 10))
    loop.predict(rows(10, 20, labels=False))
    old = copy_state(loop.state())
    loop.forget(dw.Forget(np.array([3, 12]), 0.0))
    again = Loop(acu(), ledger=dw.Ledger(ledger))
    again.load(old)
    assert "2 rows" in again.recover()[0]
    assert digest(again.state()["pending"]) == digest(loop.state()["pending"])
    assert head(again.learner) == head(loop.learner)


def test_a_refused_request_drops_no_waiting_row() -> None:
    loop = Loop(acu())
    loop.predict(rows(10, 20, labels=False))
    with pytest.raises(dw.CannotForget, match="999 was never learnt"):
        loop.forget(dw.Forget(np.array([12, 999]), 0.0))
    loop.label(dw.Labels(np.arange(10, 20), Y[10:20], 0.0))
    assert loop.labelled == 10


def test_classes_may_be_asked_for() -> None:
    loop = Loop(acu())
    loop.predict(rows(0, 200))
    loop.forget(dw.Forget(np.array([2]), 0.0, kind="class"))
    assert head(loop.learner) == head(taught(np.flatnonzero(Y[:200] != 2)))
    with pytest.raises(dw.CannotForget, match="names one"):
        loop.forget(dw.Forget(np.array([0, 1]), 0.0, kind="class"))


def test_older_checkpoints_are_purged_and_named(tmp_path: Path) -> None:
    loop = Loop(acu(), checkpoint=Checkpointer(tmp_path / "c"), ledger=dw.Ledger(tmp_path / "ledger.jsonl"))
    loop.predict(rows(0, 100))
    loop.save({"at": 1})
    loop.predict(rows(100, 200))
    loop.save({"at": 2})
    before = [p.name for p in (tmp_path / "c").iterdir()]
    receipt = loop.forget(dw.Forget(np.array(GONE), 200.0, "asked by the owner"))
    assert not (tmp_path / "ledger.jsonl").exists()
    loop.save({"at": 2})
    assert sorted(receipt.certificate["purged"]) == sorted(before)
    assert len(list((tmp_path / "c").iterdir())) == 1
    (entry,) = dw.Ledger(tmp_path / "ledger.jsonl").entries()
    assert entry["reason"] == "asked by the owner"
    assert entry["certificate"]["purged"] == receipt.certificate["purged"]
    assert entry["after"] == head(loop.learner) == NEVER


def test_an_empty_request_is_a_line_and_changes_nothing(tmp_path: Path) -> None:
    loop = Loop(acu(), ledger=dw.Ledger(tmp_path / "ledger.jsonl"))
    loop.predict(rows(0, 50))
    before = head(loop.learner)
    loop.forget(dw.Forget(np.empty(0, np.int64), 0.0))
    (entry,) = dw.Ledger(tmp_path / "ledger.jsonl").entries()
    assert (entry["ids"], entry["before"], entry["after"]) == ([], before, before)


def test_a_request_in_a_stream_is_a_record() -> None:
    stream = dw.ask_to_forget(
        dw.rebatch(dw.streams.from_arrays(X[:200], Y[:200], spec=SPEC), 10), {150: np.array(GONE), 160: np.array([7])}
    )
    loop = Loop(acu())
    notes = [record.values["note"] for record in loop.steps(stream) if record.kind == "forget"]
    assert notes[0].startswith("4 rows: every bit")
    assert notes[1] == "refused: row 7 was forgotten already"
    assert head(loop.learner) == NEVER


# --- on a run that stands still ---------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path) -> Path:
    lines = ["a,b,c,d,y", *(",".join(map(str, [*x, "lmn"[y]])) for x, y in zip(X[:200], Y[:200]))]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


FLAGS = ["--learner", "acu", "--set", "width=16", "--set", "exact=bitwise", "--batch", "10", "--label", "y"]


def command(*arguments: object) -> int:
    return cli.main([str(a) for a in arguments])


def head_of(folder: Path) -> str:
    run = Run(resolve({}, config=folder / "config.toml"), folder, resume=True)
    run.close()
    return head(run.learner)


def test_a_finished_run_forgets(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert command("run", table, *FLAGS, "--out", out) == 0
    before = json.loads((out / "summary.json").read_text())
    capsys.readouterr()
    assert command("forget", out, "--ids", "3,17", "--json") == 0
    entry = json.loads(capsys.readouterr().out)
    assert entry["ids"] == [3, 17]
    after = json.loads((out / "summary.json").read_text())
    assert after["state_sha256"] != before["state_sha256"]
    assert after["accuracy"] == before["accuracy"]
    assert after["facts"]["head_sha256"] == entry["after"] != before["facts"]["head_sha256"]
    (tmp_path / "ids.txt").write_text("4\n5, 6\n")
    assert command("forget", out, "--ids-file", tmp_path / "ids.txt") == 0
    told = capsys.readouterr().out
    assert "forgotten: 3 rows (4, 5, 6)" in told
    assert "older checkpoints purged: 0" in told
    assert [r.split(",")[1] for r in (out / "records.csv").read_text().splitlines()[-2:]] == ["forget", "forget"]
    assert command("forget", out, "--class", "n") == 0
    assert head_of(out) == dw.Ledger(out / "ledger.jsonl").entries()[-1]["after"]
    assert command("run", table, *FLAGS, "--out", out, "--resume", "--json") == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ids", "3,900"], "refused, nothing was changed: row 900 was never learnt"),
        (["--ids", "3,x"], "'x' is not the number of a row"),
        (["--class", "z"], "no such class (l, m, n)"),
        (["--group", "0"], "no groups here; groups=true tells them apart"),
    ],
)
def test_what_cannot_be_forgotten_is_one_line(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    out = tmp_path / "run"
    assert command("run", table, *FLAGS, "--out", out) == 0
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file() and p.name != "timings.csv"}
    capsys.readouterr()
    assert command("forget", out, *arguments) == 2
    assert words in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file() and p.name != "timings.csv"} == before


@pytest.mark.parametrize("word", ["--5", "\u00b2", "9" * 19, "1_0", "+1", "1e3", "3.0"])
def test_what_is_no_number_is_refused(word: str) -> None:
    with pytest.raises(dw.InputError, match="is not the number of a row"):
        read_ids(f"3, {word}")


def test_a_file_of_rubbish_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ids").write_bytes(bytes(range(128, 256)) * 9)
    assert command("forget", tmp_path, "--ids-file", tmp_path / "ids") == 2
    assert "is not the number of a row" in capsys.readouterr().err


def test_folders_and_learners_that_cannot_forget_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("forget", tmp_path, "--ids", "1") == 2
    assert "holds no run" in capsys.readouterr().err
    out = tmp_path / "run"
    assert command("run", "digits", "--learner", "majority", "--limit", "100", "--out", out) == 0
    assert command("forget", out, "--ids", "1") == 2
    assert "keeps no statistics" in capsys.readouterr().err


def test_a_ledger_with_one_changed_byte_is_refused(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert command("run", table, *FLAGS, "--out", out) == 0
    assert command("forget", out, "--ids", "3,17") == 0
    ledger = out / "ledger.jsonl"
    body = ledger.read_bytes()
    ledger.write_bytes(body.replace(b'"ids": [3,', b'"ids": [4,'))
    capsys.readouterr()
    assert command("forget", out, "--ids", "5") == 2
    assert "ledger.jsonl: line 1 was altered; the ledger is not to be trusted" in capsys.readouterr().err
    (out / "summary.json").unlink()
    assert command("run", "--resume", "--out", out) == 2
    assert "was altered" in capsys.readouterr().err
    ledger.write_bytes(body)
    assert command("forget", out, "--ids", "5") == 0


def test_a_checkpoint_from_before_the_request_does_not_bring_the_data_back(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy of it was kept elsewhere; the ledger was not turned back. Rows learnt before it and after it."""
    out = tmp_path / "run"
    config = resolve(
        {"stream": str(table), "learner": "acu", "batch": 10, "label": "y"}, settings=["width=16", "exact=bitwise"]
    )
    run = Run(config, out)
    for _ in run.steps():
        if run.loop.step >= 100:
            run.stop()
    shutil.copytree(out / "checkpoint", tmp_path / "old")
    again = Run(config, out, resume=True)
    list(again.steps())
    (out / "summary.json").unlink()
    assert command("forget", out, "--ids", ",".join(map(str, GONE))) == 0
    shutil.rmtree(out / "checkpoint")
    shutil.copytree(tmp_path / "old", out / "checkpoint")
    capsys.readouterr()
    assert command("run", "--resume", "--out", out, "--json") == 0
    assert "stay forgotten" in capsys.readouterr().err
    assert head_of(out) == NEVER
    shutil.rmtree(out / "checkpoint")  # nor does a run that starts from nothing beside its ledger
    (out / "summary.json").unlink()
    assert command("run", "--resume", "--out", out, "--json") == 0
    assert head_of(out) == NEVER


def test_a_learner_that_cannot_follow_the_ledger_is_one_line(tmp_path: Path) -> None:
    """Rows are not kept: what a later request took out as a group cannot be taken out of an older state by id."""
    ledger = dw.Ledger(tmp_path / "ledger.jsonl")
    settings: dict[str, Any] = {"width": 8, "keep": "digests", "groups": True, "salt": "s"}
    loop = Loop(dw.learner("acu", SPEC, **settings), ledger=ledger)
    loop.predict(rows(0, 10))
    old = copy_state(loop.state())
    loop.forget(dw.Forget(np.array([0]), 0.0, kind="group"))
    again = Loop(dw.learner("acu", SPEC, **settings), ledger=dw.Ledger(ledger.path))
    again.load(old)
    with pytest.raises(dw.InputError, match=r"older than requests in the ledger.*delete it to begin anew"):
        again.recover()
    fresh = Loop(dw.learner("acu", SPEC, **settings), ledger=dw.Ledger(ledger.path))
    assert "10 rows" in fresh.recover()[0]


# --- kill -9 ----------------------------------------------------------------------------------------------------

KILL = """
import json, os, signal, sys
import numpy as np
from driftway.adapt import cli, ledger, runs, unlearning
from driftway.adapt.checkpoint import Checkpointer
from driftway.streams import ask_to_forget

table, out, gone, *flags = sys.argv[1:]
gone = json.loads(gone)
original = runs.make_stream
runs.make_stream = lambda config: ask_to_forget(original(config), {150: np.array(gone)})

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def killing(stage):
    save, purge, commit = Checkpointer.save, Checkpointer.purge, ledger.Ledger.commit
    if stage == "before saving":
        Checkpointer.save = lambda self, step, *a: die() if step == 150 else save(self, step, *a)
    elif stage == "before purging":
        Checkpointer.purge = die
    elif stage == "before the ledger":
        ledger.Ledger.commit = lambda self: die() if self.outbox else None
    elif stage == "within the ledger":
        def torn(self):
            if self.outbox:
                self.path.open("ab").write(self.outbox[0][:100].encode())
                die()
        ledger.Ledger.commit = torn
    elif stage == "after the ledger":
        def committed(self):
            commit(self)
            if self.count:
                die()
        ledger.Ledger.commit = committed

command = ["run", table, *flags, "--json"]
for stage in ["never", "before saving", "before purging", "before the ledger", "within the ledger", "after the ledger"]:
    folder = os.path.join(out, stage.replace(" ", "-"))
    child = os.fork()
    if not child:
        killing(stage)
        os._exit(cli.main([*command, "--out", folder]))
    status = os.waitpid(child, 0)[1]
    assert (status == signal.SIGKILL) == (stage != "never"), (stage, status)
    if stage != "never":
        child = os.fork()
        if not child:
            os._exit(cli.main([*command, "--out", folder, "--resume"]))
        assert os.waitpid(child, 0)[1] == 0, stage
"""


def test_killed_during_a_request_ledger_and_state_agree(table: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-c", KILL, str(table), str(tmp_path), json.dumps(GONE), *FLAGS]
    done = subprocess.run(
        line, capture_output=True, text=True, timeout=230, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    whole = tmp_path / "never"
    for folder in sorted(p for p in tmp_path.iterdir() if p.is_dir()):
        assert (folder / "records.csv").read_bytes() == (whole / "records.csv").read_bytes(), folder.name
        one, other = (json.loads((f / "summary.json").read_text()) for f in (whole, folder))
        assert {k: v for k, v in one.items() if k not in runs.CLOCKS} == {
            k: v for k, v in other.items() if k not in runs.CLOCKS
        }
        entries = dw.Ledger(folder / "ledger.jsonl").entries()
        assert [sorted(e["ids"]) for e in entries] == [GONE], folder.name
        assert head_of(folder) == NEVER
        kept = (folder / "checkpoint").iterdir()
        assert len(list(kept)) <= 2
