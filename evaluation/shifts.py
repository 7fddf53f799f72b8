"""Error under each shift of a stream, and sessions of few-shot class-incremental streams.

A Boundary begins a stretch of the stream: a corruption, or a session. A row counts for the stretch in which it was
predicted, whenever its label comes: what the first evaluator of a loop says of a row at its prediction has the number
of Boundaries before it, and is kept with the row. Where shifts come mixed, the loop adds which one the row is under.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ..streams import Array, StreamSpec
from .metrics import harmonic_mean
from .watch import Watch

MOST = 1000
"""Stretches that are told apart; rows of later ones count for the last of them."""
START, UNKNOWN = "before the first boundary", "under no known shift"
MIXED = 3
"""Column of what is kept from a prediction that has the row's own shift, where shifts come mixed; -1: not known."""


class Stretches:
    """Whole numbers per stretch, which grow as Boundaries come. counts: int64[stretches, width]."""

    def __init__(self, width: int, names: Sequence[str] = (START,)) -> None:
        self.names = list(names)
        self.counts = np.zeros((len(self.names), width), np.int64)

    def begin(self, name: str) -> None:
        if len(self.names) <= MOST:
            self.names.append(name)
            self.counts = np.concatenate([self.counts, np.zeros_like(self.counts[:1])])

    def add(self, baseline: Array, values: Array) -> None:
        """values: int64[B, width], added to the stretch of each row; baseline: what was kept from its prediction."""
        at = np.full(len(values), len(self.names) - 1)
        if baseline.shape[1] > MIXED:
            at = 1 + baseline[:, MIXED].astype(np.int64)
        elif baseline.shape[1] > 2:
            at = np.minimum(baseline[:, 2].astype(np.int64), at)
        np.add.at(self.counts, at, values)

    def met(self) -> list[tuple[str, list[int]]]:
        """Name and counts of every stretch that has any, in order; a name that comes again is ``NAME (2)``."""
        turns: dict[str, int] = {}
        found = []
        for name, counts in zip(self.names, self.counts.tolist(), strict=True):
            if any(counts):
                turns[name] = turns.get(name, 0) + 1
                found.append((name if turns[name] == 1 else f"{name} ({turns[name]})", counts))
        return found

    def state(self) -> dict[str, Any]:
        return {"names": list(self.names), "counts": self.counts}

    def load(self, state: dict[str, Any]) -> None:
        self.names, self.counts = list(state["names"]), np.array(state["counts"], np.int64)


class Shifts(Watch):
    """Error of each stretch and their mean, every stretch of the same weight; of each shift where they come mixed.

    >>> watch = Shifts(StreamSpec("example", (), classes=("no", "yes")))
    >>> watch.boundary("fog 5", 0)
    >>> fog = watch.baseline(2)
    >>> watch.boundary("snow 5", 2)
    >>> watch.update(np.array([0, 1]), np.array([0, 1]), None, watch.baseline(2))
    >>> watch.update(np.array([0, 1]), np.array([1, 1]), None, fog)  # their labels come late
    >>> watch.summary()
    {'shifts': {'fog 5': 0.5, 'snow 5': 0.0}, 'shift_error': 0.25}
    """

    def __init__(self, spec: StreamSpec) -> None:
        super().__init__()
        if spec.target != "classification":
            raise ValueError("an error per shift is the share of wrong classes")
        self._mixed = spec.mixed is not None
        self.stretches = Stretches(2) if spec.mixed is None else Stretches(2, (UNKNOWN, *spec.mixed.names))

    def boundary(self, name: str, step: int) -> None:
        super().boundary(name, step)
        if not self._mixed:
            self.stretches.begin(name)

    def update(self, y: Array, output: Array, scores: Array | None, baseline: Array) -> None:  # noqa: ARG002
        known = y >= 0
        self.stretches.add(baseline, np.column_stack([known, known & (y != output)]).astype(np.int64))

    def summary(self) -> dict[str, Any]:
        """shifts: the error of each stretch by its name, in order. shift_error: their mean."""
        errors = {name: wrong / rows for name, (rows, wrong) in self.stretches.met()}
        return {"shifts": errors or None, "shift_error": _mean(list(errors.values()))}

    def state(self) -> dict[str, Any]:
        return {"stretch": self.stretch, **self.stretches.state()}

    def load(self, state: dict[str, Any]) -> None:
        self.stretch = int(state["stretch"])
        self.stretches.load(state)


class Sessions(Watch):
    """Accuracy over all classes so far, over base classes and over new ones, and their harmonic mean, per session.

    Counted are queries: rows whose labels are for judging only. The labelled rows that bring a class are answered
    before they are learnt, so no learner can be right about them, and they stay out (our choice; the accuracy over the
    whole stream has them).

    >>> watch = Sessions(StreamSpec("example", (), classes=("a", "b", "c"), notes={"base": 2}))
    >>> watch.boundary("session 1: classes c", 0)
    >>> watch.update(np.array([0, 1, 2, 2]), np.array([0, 2, 2, 0]), None, watch.baseline(4))
    >>> {k: watch.summary()["few_shot"][k] for k in ("accuracy", "base_accuracy", "new_accuracy", "harmonic_mean")}
    {'accuracy': 0.5, 'base_accuracy': 0.5, 'new_accuracy': 0.5, 'harmonic_mean': 0.5}
    """

    queries_only: ClassVar[bool] = True

    def __init__(self, spec: StreamSpec) -> None:
        super().__init__()
        self.base = int(spec.notes["base"])
        self.stretches = Stretches(4)

    def boundary(self, name: str, step: int) -> None:
        super().boundary(name, step)
        self.stretches.begin(name)

    def update(self, y: Array, output: Array, scores: Array | None, baseline: Array) -> None:  # noqa: ARG002
        base, new, hit = (y >= 0) & (y < self.base), y >= self.base, y == output
        self.stretches.add(baseline, np.column_stack([base, base & hit, new, new & hit]).astype(np.int64))

    def summary(self) -> dict[str, Any]:
        """few_shot: means over the sessions that have the figure (no session before new classes has a new accuracy or a
        harmonic mean), ``drop``, the accuracy of the first session minus that of the last, and every session."""
        sessions = [_session(name, *counts) for name, counts in self.stretches.met()]
        if not sessions:
            return {"few_shot": None}
        means = {key: _mean([s[key] for s in sessions if s[key] is not None]) for key in FIGURES}
        drop = sessions[0]["accuracy"] - sessions[-1]["accuracy"] if len(sessions) > 1 else None
        return {"few_shot": {**means, "drop": drop, "sessions": sessions}}

    def state(self) -> dict[str, Any]:
        return {"stretch": self.stretch, **self.stretches.state()}

    def load(self, state: dict[str, Any]) -> None:
        self.stretch = int(state["stretch"])
        self.stretches.load(state)


FIGURES = ("accuracy", "base_accuracy", "new_accuracy", "harmonic_mean")


def _session(name: str, base: int, base_hits: int, new: int, new_hits: int) -> dict[str, Any]:
    both = base_hits / base if base else None, new_hits / new if new else None
    return {
        "name": name,
        "rows": base + new,
        "accuracy": (base_hits + new_hits) / (base + new),
        "base_accuracy": both[0],
        "new_accuracy": both[1],
        "harmonic_mean": harmonic_mean(*both),
    }


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
