"""Evaluation in a process of its own, so that training hardly waits for it.

After an update that is due, the arrays that answers depend on are copied to memory that both processes see, if the
worker is done with the last ones; else that evaluation is missed, and counted so. The worker holds nothing from one
evaluation to the next: it builds an equal learner once, takes the arrays over, counts right answers, and forgets. The
ends of experiences are always evaluated; training waits for that.

Ours: the two talk through pipes, so that a worker that waits sleeps, a worker that dies is noticed, and a worker whose
run was killed finds the pipe closed and ends. The memory has no name, so nothing of it can be left behind. One worker,
one snapshot at a time: results come in order, and one slot is enough.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, BinaryIO

import msgspec
import numpy as np

from ..evaluation.continual import Answers
from ..streams import Array, Experience, StreamSpec
from .learner import Learner

ALIGNED = 64
"""Arrays start at multiples of so many bytes."""
PATIENCE = 5.0
"""Seconds that a process which was told to end may take."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to build a learner equal to the one in training, but for what it has learnt."""

    name: str
    spec: StreamSpec
    seed: int
    settings: Mapping[str, Any]


def cannot(learner: Learner) -> str | None:
    """Why this learner's evaluation cannot be left to a worker; None where it can."""
    if os.name != "posix":
        return "a worker for evaluation needs memory and pipes as POSIX systems have them"
    if learner.spec.text is not None:
        return "answers to text are judged in the run's own process"
    if learner.predicting() is None:
        return "what it answers from is not a list of arrays of fixed shape"
    return None


# --- memory that both see -------------------------------------------------------------------------------------------


def _places(arrays: Sequence[Array]) -> tuple[list[dict[str, Any]], int]:
    """Where each array lies in one stretch of memory, as JSON, and how long that is."""
    places, end = [], 0
    for array in arrays:
        places.append({"dtype": array.dtype.str, "shape": list(array.shape), "offset": end})
        end += -(-array.nbytes // ALIGNED) * ALIGNED
    return places, max(end, ALIGNED)


def _views(memory: mmap.mmap, places: Sequence[Mapping[str, Any]]) -> list[Array]:
    """The arrays that lie there."""
    return [np.ndarray(p["shape"], np.dtype(p["dtype"]), memory, p["offset"]) for p in places]


def _nameless(size: int) -> int:
    """A file of so many bytes that has no name, in memory where the system can."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("evaluation")
    else:
        with tempfile.TemporaryFile() as unlinked:
            file = os.dup(unlinked.fileno())
    os.truncate(file, size)
    return file


# --- the worker -----------------------------------------------------------------------------------------------------


def serve(memory: int, asked: BinaryIO, told: BinaryIO) -> None:
    """Judge snapshots until nobody asks any more. memory, asked, told: files that the trainer opened and passed on."""
    from .learners import make_learner

    task = json.loads(asked.readline())
    if task["core"] is not None:
        os.sched_setaffinity(0, {task["core"]})
    views = _views(mmap.mmap(memory, 0, access=mmap.ACCESS_READ), task["places"])
    experiences = _experiences(task, *views[-2:])
    spec = replace(msgspec.convert(task["spec"], StreamSpec), experiences=experiences)
    learner = make_learner(task["name"], spec, seed=task["seed"], **task["settings"])
    answers = Answers(experiences, task["scenario"])
    told.write(b"{}\n")  # ready
    seen, ask = 0, None
    while line := asked.readline():
        now = json.loads(line)
        for mine, published in zip(learner.predicting() or [], views[:-2], strict=True):
            np.copyto(mine, published)
        if ask is None or now["seen"] != seen:
            seen = now["seen"]
            ask = learner.probe(answers.rows(seen))
        told.write(json.dumps({"right": answers.count(ask(), seen)}).encode() + b"\n")


def _experiences(task: Mapping[str, Any], x: Array, y: Array) -> tuple[Experience, ...]:
    ends = np.cumsum([0, *task["sizes"]])
    return tuple(
        Experience("", x[start:end], y[start:end], 0, tuple(own))
        for (start, end), own in zip(pairwise(ends), task["classes"], strict=True)
    )


def main(memory: int, orders: int, results: int) -> None:
    """What the process runs. A fault is told in one line; an interrupt from the keyboard is the trainer's affair."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with os.fdopen(orders, "rb") as asked, os.fdopen(results, "wb", 0) as told:
        try:
            serve(memory, asked, told)
        except BrokenPipeError:
            return  # whoever asked is gone
        except Exception as fault:
            words = f"{type(fault).__name__}: {fault}".splitlines()[0]
            told.write(json.dumps({"fault": words}).encode() + b"\n")


# --- whoever trains -------------------------------------------------------------------------------------------------


class Gone(Exception):
    """The worker does not answer any more; the message says why, where that is known."""


class Worker:
    """The other end: starts the process, hands it snapshots, takes its counts, sees to it that it ends.

    core: where it is to run, None for anywhere. It computes with one thread. The process starts at once; ``begin``
    tells it what to do.
    """

    def __init__(self, recipe: Recipe, learner: Learner, answers: Answers, core: int | None = None) -> None:
        arrays = learner.predicting()
        assert arrays is not None, "asked of learners that have such arrays only"
        judged = answers.experiences
        x = answers.rows(len(judged))
        y = np.concatenate([np.asarray(e.y, np.int64) for e in judged])
        places, size = _places([*arrays, x, y])
        file = _nameless(size)
        *self._slot, rows, labels = _views(mmap.mmap(file, size), places)
        rows[...], labels[...] = x, y
        self.waiting = False
        self._text = b""
        self._task = {
            "name": recipe.name,
            "spec": msgspec.to_builtins(replace(recipe.spec, experiences=())),
            "seed": recipe.seed,
            "settings": dict(recipe.settings),
            "scenario": answers.scenario,
            "sizes": answers.sizes,
            "classes": [list(map(int, e.classes)) for e in judged],
            "places": places,
            "core": core,
        }
        self._start(file)

    def _start(self, memory: int) -> None:
        orders, self._orders = os.pipe()
        self._results, results = os.pipe()
        passed = (memory, orders, results)
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        alone = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, *map(str, passed)],
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | alone | {"PYTHONPATH": paths},
            )
        finally:
            for file in passed:
                os.close(file)
        os.set_blocking(self._results, False)
        self._poll = select.poll()
        self._poll.register(self._results, select.POLLIN)

    def begin(self) -> None:
        """Tell the worker what it is to judge, and on which rows; its answer to this says that it is ready."""
        self._order(json.dumps(self._task))

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def publish(self, arrays: Sequence[Array], seen: int) -> None:
        """Hand over a snapshot, to be judged on the rows of the first ``seen`` experiences; not while one is waited
        for. Raises ``Gone``, also where the arrays are not those that the worker knows."""
        if [a.shape for a in arrays] != [a.shape for a in self._slot]:
            raise Gone("the learner's arrays have other shapes now")
        for place, array in zip(self._slot, arrays, strict=True):
            np.copyto(place, array)
        self._order(json.dumps({"seen": seen}))

    def _order(self, line: str) -> None:
        self.waiting = True
        left = line.encode() + b"\n"
        try:
            while left:
                left = left[os.write(self._orders, left) :]
        except BrokenPipeError:
            self.answer(wait=True)  # says why, if the worker still could
            raise self._ended() from None

    def answer(self, *, wait: bool) -> dict[str, Any] | None:
        """What the worker says of the last order; None where it has not said anything yet. Raises ``Gone``."""
        while b"\n" not in self._text:
            if not self._poll.poll(None if wait else 0):
                return None
            found = os.read(self._results, 1 << 16)
            if not found:
                raise self._ended()
            self._text += found
        line, _, self._text = self._text.partition(b"\n")
        self.waiting = False
        said: dict[str, Any] = json.loads(line)
        if "fault" in said:
            raise Gone(said["fault"])
        return said

    def _ended(self) -> Gone:
        return Gone(f"it ended with exit code {self._process.wait(PATIENCE)}")

    def close(self) -> None:
        """End the process: it keeps nothing, so nothing is lost with it."""
        os.close(self._orders)
        os.close(self._results)
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
