"""Continual evaluation that leaves the asking to a worker process, and goes on by itself where that fails.

What is evaluated then depends on how fast the worker is: one snapshot at a time, and no more of them than training can
afford (``Pace``); updates that fall due meanwhile are missed. ``continual.csv`` names those that were not; the learner
stays the same bit for bit. Records carry no figures in this mode, since nothing in them may depend on the clock.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from ..evaluation.continual import Continual, Evaluation
from .evaluation_worker import Gone, Recipe, Worker
from .learner import Learner

PRICE = 0.06
"""Share of the training time that a worker may cost."""
MEMORY = 0.1
"""Weight of the latest step in the mean of undisturbed ones."""


class Pace:
    """Says when the worker may have the next snapshot, so that training pays ``PRICE`` of its time and no more.

    A snapshot costs the time to hand it over and, on cores that share a cache or more, slower steps while the worker is
    busy. Both are measured: every step earns ``PRICE`` of the time it took, and pays what it took longer than the mean
    step with an idle worker; whoever is in debt waits.
    """

    def __init__(self) -> None:
        self.balance = 0.0
        self._idle: float | None = None
        self._left = 0.0
        self._busy: bool | None = None

    def stepped(self, now: float) -> None:
        """A step of training has just ended. now: seconds of any clock."""
        if self._busy is None:
            return
        took = now - self._left
        self.balance = min(0.0, self.balance + PRICE * took)
        if not self._busy:
            self._idle = took if self._idle is None else self._idle + MEMORY * (min(took, 3 * self._idle) - self._idle)
        elif self._idle is not None:
            self.balance -= min(max(took - self._idle, 0.0), 3 * self._idle)

    def goes_on(self, now: float, *, busy: bool, paid: float = 0.0) -> None:
        """Training goes on. busy: the worker has something to do. paid: seconds that handing it over took."""
        self.balance -= paid
        self._left, self._busy = now, busy

    @property
    def affordable(self) -> bool:
        """Whether another snapshot may be handed over now."""
        return self._idle is not None and self.balance >= 0.0


class Apart(Continual):
    """``Continual`` with a worker while inside ``working``.

    notes: lines for a person: no core to spare, or a worker that died, after which evaluation goes on here.
    """

    notes: list[str]
    _pace: Pace
    _worker: Worker | None = None
    _sent: tuple[int, int] | None = None
    _passed_over: int = 0
    """The last update that was counted as missed, or will be if nothing comes of it; the end may evaluate it yet."""

    @contextmanager
    def working(self, recipe: Recipe, learner: Learner) -> Iterator[None]:
        """Start the worker and wait until it is ready; end it on the way out, however that is."""
        self.notes = []
        self._pace = Pace()
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
        if self._worker is None:
            return super().updated(update, learner, step)
        self._pace.stepped(perf_counter())
        done, began = self._listen(wait=False), perf_counter()
        if self.due(update):
            if self._sent is not None or not self._pace.affordable:
                self.missed += 1
                self._passed_over = update
            elif not self._send(update, learner, step):
                done += super().updated(update, learner, step)
        now, busy = perf_counter(), self._sent is not None
        self._pace.goes_on(now, busy=busy, paid=now - began)
        return done

    def end(self, update: int, learner: Any, step: int = 0) -> list[Evaluation]:
        done = self._listen(wait=True)
        if not self.judged(update) and self._send(update, learner, step):
            done += self._listen(wait=True)
        done += super().end(update, learner, step)
        if self._passed_over == update:
            self.missed -= 1
            self._passed_over = 0
        return done

    def row(self) -> dict[str, Any]:
        return dict.fromkeys(self.columns) | {"experience": self.experience}

    def state(self) -> dict[str, Any]:
        last = 0 if self._sent is None else self._sent[0]
        missed = {"missed": self.missed + (last > 0), "passed_over": max(last, self._passed_over)}
        return super().state() | missed

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self._passed_over = int(state.get("passed_over", 0))  # none from a run without a worker

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
        if self._sent is not None:
            self.missed += 1
            self._passed_over = max(self._sent[0], self._passed_over)
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
