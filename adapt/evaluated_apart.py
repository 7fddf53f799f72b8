"""Continual evaluation that leaves the asking to a worker process, and goes on by itself where that fails.

What is evaluated then depends on how fast the worker is: one snapshot at a time, and updates that fall due meanwhile
are missed. ``continual.csv`` names those that were not; the learner stays the same bit for bit. Records carry no
figures in this mode, since nothing in them may depend on the clock.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..evaluation.continual import Continual, Evaluation
from .evaluation_worker import Gone, Recipe, Worker
from .learner import Learner


class Apart(Continual):
    """``Continual`` with a worker while inside ``working``.

    notes: lines for a person: no core to spare, or a worker that died, after which evaluation goes on here.
    """

    notes: list[str]
    _worker: Worker | None = None
    _sent: tuple[int, int] | None = None
    _passed_over: int | None = None

    @contextmanager
    def working(self, recipe: Recipe, learner: Learner) -> Iterator[None]:
        """Start the worker and wait until it is ready; end it on the way out, however that is."""
        self.notes = []
        with _cores_apart(self.notes) as core:
            self._worker = Worker(recipe, learner, self.answers, core)
            try:
                self._greet()
                yield
            finally:
                self._drop()

    @property
    def worker(self) -> int | None:
        """The process id of the worker; None where there is none."""
        return None if self._worker is None else self._worker.pid

    def updated(self, update: int, learner: Any, step: int = 0) -> list[Evaluation]:
        done = self._listen(wait=False)
        if not self.due(update):
            return done
        if self._sent is not None:
            self.missed += 1
            self._passed_over = update
        elif not self._send(update, learner, step):
            done += super().updated(update, learner, step)
        return done

    def end(self, update: int, learner: Any, step: int = 0) -> list[Evaluation]:
        done = self._listen(wait=True)
        if not self.judged(update) and self._send(update, learner, step):
            done += self._listen(wait=True)
        done += super().end(update, learner, step)
        if self._passed_over == update:
            self.missed -= 1
            self._passed_over = None
        return done

    def row(self) -> dict[str, Any]:
        return dict.fromkeys(self.columns) | {"experience": self.experience}

    def state(self) -> dict[str, Any]:
        return super().state() | {"missed": self.missed + (self._sent is not None)}

    def _greet(self) -> None:
        assert self._worker is not None
        try:
            self._worker.begin()
        except Gone as reason:
            self._alone(reason)
        self._listen(wait=True)

    def _send(self, update: int, learner: Learner, step: int) -> bool:
        """Hand over the learner as it is; whether there was somebody to take it."""
        if self._worker is None:
            return False
        try:
            self._worker.publish(learner.predicting() or [], self.experience + 1)
        except Gone as reason:
            self._alone(reason)
            return False
        self._sent = update, step
        return True

    def _listen(self, *, wait: bool) -> list[Evaluation]:
        """Enter what the worker found, if it is done; or wait until it is."""
        if self._worker is None or not self._worker.waiting:
            return []
        try:
            said = self._worker.answer(wait=wait)
        except Gone as reason:
            self._alone(reason)
            return []
        if said is None or self._sent is None:
            return []
        (update, step), self._sent = self._sent, None
        return [self.take(update, tuple(said["right"]), step)]

    def _alone(self, reason: Gone) -> None:
        self._drop()
        self.notes.append(f"the evaluation worker is gone: {reason}; evaluation went on beside training")

    def _drop(self) -> None:
        if self._worker is not None:
            self._worker.close()
        self.missed += self._sent is not None
        self._worker = self._sent = None


@contextmanager
def _cores_apart(notes: list[str]) -> Iterator[int | None]:
    """A core for the worker and the others for this thread, where there are enough; as before on the way out."""
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    torch = sys.modules.get("torch")
    threads = 1 if torch is None else torch.get_num_threads()
    if threads >= len(before):
        words = f"{len(before)} cores for {threads} threads of training" if before else "cores cannot be chosen here"
        notes.append(f"the evaluation worker has no core of its own: {words} (OMP_NUM_THREADS sets the threads)")
        yield None
        return
    core = max(before)
    os.sched_setaffinity(0, before - {core})
    try:
        yield core
    finally:
        os.sched_setaffinity(0, before)
