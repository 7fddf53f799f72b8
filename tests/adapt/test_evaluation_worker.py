"""Evaluation in a process of its own: the same counts, the same learner, and nothing left behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt.config import resolve
from driftway.adapt.evaluated_apart import PRICE, Apart, Pace
from driftway.adapt.evaluation_worker import Gone, Recipe, Worker, cannot
from driftway.adapt.learners import LEARNERS
from driftway.adapt.runs import Run
from driftway.evaluation.continual import Answers, Continual
from driftway.evaluation.curves import read_curve
from driftway.streams import InputError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="workers need POSIX pipes")
SETTINGS = ["model=mlp:16", "epochs=2"]


def a_run(out: Path | None = None, **given: Any) -> Run:
    facts = {"stream": "split-digits", "learner": "er", "batch": "10", "evaluate_every": "1", **given}
    return Run(resolve(facts, settings=facts.pop("settings", SETTINGS)), out, resume=out is not None)


def whole(run: Run) -> dict[str, Any]:
    for _ in run.steps():
        pass
    return run.summary()


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """After the test: the same open files, the same cores, no child, no named memory."""

    def things() -> Any:
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
        shared = sorted(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else None
        return cores, files, shared

    before = things()
    yield
    assert things() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.usefixtures("nothing_left")
def test_the_worker_counts_what_would_have_been_counted(tmp_path: Path) -> None:
    inline, apart = whole(a_run(tmp_path / "inline")), whole(a_run(tmp_path / "apart", evaluate_worker="true"))
    assert apart["state_sha256"] == inline["state_sha256"]
    full, some = (read_curve(tmp_path / name / "continual.csv") for name in ("inline", "apart"))
    at = np.searchsorted(full.update, some.update)
    for column in ("update", "step", "experience", "right"):
        np.testing.assert_array_equal(getattr(full, column)[at], getattr(some, column))
    ends = full.update[[*full.switches, -1]]
    assert set(ends) <= set(some.update)
    found = apart["continual"]
    assert found["evaluations"] == len(some.update)
    assert found["evaluations"] + found["missed"] == len(full.update)
    assert {k: found[k] for k in ("acc", "forgetting", "learning_accuracy")} == {
        k: inline["continual"][k] for k in ("acc", "forgetting", "learning_accuracy")
    }
    with (tmp_path / "apart" / "records.csv").open() as file:
        header, *_, last = (line.rstrip("\n").split(",") for line in file)
    assert dict(zip(header, last))["acc"] == ""


def build(name: str, seed: int = 3, **settings: Any) -> dw.Learner:
    return dw.learner(name, dw.stream("split-digits").spec, seed=seed, **settings)


@pytest.mark.parametrize("name", [n for n, e in LEARNERS.items() if e.home == "gradient:GradientLearner"])
@pytest.mark.parametrize("settings", [{"model": "mlp:16"}, {"model": "convnet:4-4"}], ids=str)
def test_the_arrays_are_all_that_answers_depend_on(name: str, settings: dict[str, Any]) -> None:
    """A learner that takes over another's arrays says the same, to the last bit."""
    try:
        learner, other = build(name, **settings), build(name, **settings)
    except InputError as refusal:
        pytest.skip(str(refusal))
    if any(part.reshapes for part in learner.techniques):
        assert learner.predicting() is None
        return
    x = learner.spec.experiences[0].x
    ask = other.probe(x)
    for number, batch in enumerate(dw.rebatch(dw.stream("split-digits"), 10)):
        if isinstance(batch, dw.Batch):
            learner.learn(batch, learner.predict(batch))
        if number == 12:
            break
    mine, given = other.predicting(), learner.predicting()
    assert mine is not None
    assert given is not None
    for place, array in zip(mine, given, strict=True):
        np.copyto(place, array)
    np.testing.assert_array_equal(ask(), learner.probe(x)())
    again = zip(given, learner.predicting() or [], strict=True)
    assert all(a.ctypes.data == b.ctypes.data for a, b in again if a.size)


@pytest.mark.usefixtures("nothing_left")
def test_a_worker_that_dies_is_done_without(tmp_path: Path) -> None:
    run = a_run(tmp_path, evaluate_worker="true")
    assert isinstance(run.continual, Apart)
    pid = None
    for number, _ in enumerate(run.steps()):
        if number == 3:
            pid = run.continual.worker
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
    assert [note for note in run.notes if "gone" in note] == [
        "the evaluation worker is gone: it ended with exit code -9; evaluation went on beside training"
    ]
    assert not is_there(pid or 0)
    found = run.summary()["continual"]
    assert found["experiences"] == 5
    assert found["evaluations"] + found["missed"] == run.loop.updates
    updates = read_curve(tmp_path / "continual.csv").update
    assert updates[-50:].tolist() == list(range(run.loop.updates - 49, run.loop.updates + 1))


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("missed", [0, 1])
def test_a_worker_that_dies_over_the_last_update_leaves_it_evaluated_and_not_missed(missed: int) -> None:
    learner = build("er", model="mlp:16")
    watch = Apart(learner.spec.experiences)
    with watch.working(Recipe("er", learner.spec, 3, {"model": "mlp:16"}), learner):
        os.kill(watch.worker or 0, signal.SIGSTOP)
        assert watch._send(1, learner, 0)
        if missed:
            assert watch.updated(2, learner) == []
        os.kill(watch.worker or 0, signal.SIGKILL)
        assert [e.update for e in watch.end(1 + missed, learner)] == [1 + missed]
        assert watch.missed == missed


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("missed", [0, 1])
def test_resumed_at_the_last_update_it_is_evaluated_and_not_missed(missed: int) -> None:
    learner, saved = build("er", model="mlp:16"), {}
    first, second = (Apart(learner.spec.experiences) for _ in range(2))
    recipe = Recipe("er", learner.spec, 3, {"model": "mlp:16"})
    with first.working(recipe, learner):
        os.kill(first.worker or 0, signal.SIGSTOP)
        assert first._send(1, learner, 0)
        if missed:
            assert first.updated(2, learner) == []
        saved = first.state()
        os.kill(first.worker or 0, signal.SIGCONT)
    second.load(saved)
    assert second.missed == 1 + missed
    assert [e.update for e in second.end(1 + missed, learner)] == [1 + missed]
    assert second.missed == missed


@pytest.mark.usefixtures("nothing_left")
def test_a_worker_that_cannot_start_is_done_without() -> None:
    learner = build("er", model="mlp:16")
    watch = Apart(learner.spec.experiences)
    with watch.working(Recipe("er", learner.spec, 3, {"model": "no-such"}), learner):
        assert watch.worker is None
        assert [e.update for e in watch.updated(1, learner)] == [1]
    assert any("gone: InputError" in note for note in watch.notes)


@pytest.mark.usefixtures("nothing_left")
def test_arrays_that_change_their_shape_are_not_handed_over() -> None:
    learner = build("er", model="mlp:16")
    worker = Worker(Recipe("er", learner.spec, 3, {"model": "mlp:16"}), learner, Answers(learner.spec.experiences))
    try:
        with pytest.raises(Gone, match="other shapes"):
            worker.publish([np.zeros(3)], 1)
    finally:
        worker.close()


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("way", ["stopped", "broken"])
def test_nothing_is_left_behind(way: str, tmp_path: Path) -> None:
    run = a_run(tmp_path, evaluate_worker="true")
    assert isinstance(run.continual, Apart)
    steps = run.steps()
    next(steps)
    pid = run.continual.worker or 0
    assert is_there(pid)
    if way == "stopped":
        run.stop()
        assert list(steps)
        assert run.status == "interrupted"
        assert whole(a_run(tmp_path, evaluate_worker="true"))["continual"]["experiences"] == 5
    else:

        def fail(*_: Any) -> None:
            raise RuntimeError("broken on purpose")

        run.learner.learn = fail  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="on purpose"):
            list(steps)
    assert not is_there(pid)


KILLED = """
import os, signal, sys
from driftway.adapt.config import resolve
from driftway.adapt.runs import Run

facts = {"stream": "split-digits", "learner": "er", "batch": "10", "evaluate_every": "1", "evaluate_worker": True}
run = Run(resolve(facts, settings=["model=mlp:16"]))
steps = run.steps()
next(steps)
print(run.continual.worker, flush=True)
os.kill(os.getpid(), getattr(signal, sys.argv[1]))
"""


def test_a_killed_run_takes_its_worker_along() -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, "SIGKILL"], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL
    pid, ends = int(done.stdout), time.monotonic() + 20
    while is_there(pid) and time.monotonic() < ends:
        time.sleep(0.02)
    assert not is_there(pid)


@pytest.mark.usefixtures("nothing_left")
def test_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A core for the worker where training leaves one; none, and a note, where it does not."""
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("cores cannot be chosen here")
    import torch

    learner = build("er", model="mlp:16")
    recipe = Recipe("er", learner.spec, 3, {"model": "mlp:16"})
    watch, cores = Apart(learner.spec.experiences), os.sched_getaffinity(0)
    for threads in (1, len(cores)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        with watch.working(recipe, learner):
            mine, its = os.sched_getaffinity(0), os.sched_getaffinity(watch.worker or 0)
        if threads < len(cores):
            assert its == {max(cores)}
            assert mine == cores - its
        else:
            assert mine == its == cores
            assert "no core of its own" in watch.notes[0]
        assert os.sched_getaffinity(0) == cores


def test_who_can_have_a_worker() -> None:
    assert cannot(build("logistic")) is not None
    assert cannot(build("er", model="mlp:16")) is None
    columns = dw.StreamSpec("columns", (dw.Column("a"),), classes=("n", "y"))
    assert cannot(dw.learner("er", columns)) is not None
    with pytest.raises(InputError, match="evaluate-worker: logistic on split-digits: what it answers from"):
        a_run(learner="logistic", evaluate_worker="true", settings=[])
    with pytest.raises(InputError, match="there is nothing to evaluate"):
        a_run(evaluate_every="0", evaluate_worker="true")
    assert type(a_run().continual) is Continual


@pytest.mark.parametrize(("busy_step", "handing_over"), [(1.0, 0.0), (1.4, 0.1), (1.0, 0.8)])
def test_training_pays_a_share_for_its_worker_and_no_more(busy_step: float, handing_over: float) -> None:
    """A clock by hand: an undisturbed step takes 1, the worker is busy for 3 steps with every snapshot."""
    pace, now, left, given = Pace(), 0.0, 0, 0
    for _ in range(4000):
        now += busy_step if left else 1.0
        pace.stepped(now)
        left = max(0, left - 1)
        paid = 0.0
        if not left and pace.affordable:
            given, left, paid = given + 1, 3, handing_over
            now += paid
        pace.goes_on(now, busy=left > 0, paid=paid)
    assert now <= 4000 * (1 + 1.3 * PRICE)
    assert given > 100
    if busy_step == 1.0 and not handing_over:
        assert given > 1000
