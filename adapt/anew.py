"""A learner beside one that is trained anew on what remains, after every request to forget.

The learner trained anew is an equal one, taught the same batches in the same order without the forgotten rows. Both
are asked about the rows that remain, the rows that were forgotten so far, and held-out rows of classes that were met;
the gap is the mean absolute difference of the three accuracies and of the membership AUC (``evaluation/unlearning``).

For studies, not for a service: it keeps every row, the forgotten ones too, and trains anew at every request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..evaluation.unlearning import Standing, average_gap
from ..streams import Array, Batch, StreamSpec
from .learner import Learner, State

FIGURES = ("retained", "forgotten", "test", "membership")
PIECE = 1024
"""Rows that are asked about at once."""


class Anew:
    """make: an equal learner that was taught nothing. held_out: x float[n, d] and y int64[n] that never come.

    ``columns``: gap, then the signed differences (the learner's figure minus that of the one trained anew).
    """

    columns = ("gap", *(f"gap_{name}" for name in FIGURES))

    def __init__(self, make: Callable[[], Learner], held_out: tuple[Array, Array] | None = None) -> None:
        self.make = make
        self.held_out = held_out
        self.forgotten: set[int] = set()
        self._batches: list[Batch] = []
        self._row_by_row: list[bool] = []

    def learnt(self, batch: Batch, *, row_by_row: bool) -> None:
        """Note what the learner was just taught. row_by_row: tested and trained on one row after the other."""
        x = np.array(batch.x)
        self._batches.append(Batch(batch.ids.copy(), x, batch.time, None if batch.y is None else batch.y.copy()))
        self._row_by_row.append(row_by_row)

    def forgot(self, learner: Learner, ids: Sequence[int]) -> dict[str, float]:
        """The gap after the learner forgot these rows; figures that cannot be had are left out."""
        self.forgotten |= set(ids)
        anew = self.make()
        for batch, row_by_row in zip(self._batches, self._row_by_row):
            left = batch.rows(~self._gone(batch))
            if len(left) and row_by_row:
                anew.test_then_train(left)
            elif len(left):
                anew.learn(left, anew.predict(left))
        one, other = (self._standing(asked) for asked in (learner, anew))
        found = {f"gap_{name}": getattr(one, name) - getattr(other, name) for name in FIGURES}
        found = {"gap": average_gap(one, other)} | found
        return {name: float(value) for name, value in found.items() if np.isfinite(value)}

    def _gone(self, batch: Batch) -> Array:
        return np.isin(batch.ids, list(self.forgotten))

    def _standing(self, learner: Learner) -> Standing:
        """Accuracies and membership AUC of a learner as it is."""
        x, y, gone = (np.concatenate(part) for part in zip(*((b.x, b.y, self._gone(b)) for b in self._batches)))
        parts = [(x[~gone], y[~gone]), (x[gone], y[gone]), (x[:0], y[:0])]
        if self.held_out is not None:
            met = np.isin(self.held_out[1], y)
            parts[2] = (self.held_out[0][met], self.held_out[1][met])
        classes = 1 + max(int(labels.max(initial=0)) for _, labels in parts)
        answers = [_ask(learner, rows, classes) for rows, _ in parts]
        return Standing.of(answers[0], answers[1], answers[2], [labels for _, labels in parts])

    # --- state --------------------------------------------------------------------------------------------------

    def state(self) -> State:
        batches = [{"ids": b.ids, "x": b.x, "y": b.y, "time": b.time} for b in self._batches]
        return {"batches": batches, "row_by_row": list(self._row_by_row), "forgotten": sorted(self.forgotten)}

    def load(self, state: State) -> None:
        self._batches = [
            Batch(b["ids"].copy(), b["x"].copy(), float(b["time"]), b["y"].copy()) for b in state["batches"]
        ]
        self._row_by_row = [bool(flag) for flag in state["row_by_row"]]
        self.forgotten = {int(row) for row in state["forgotten"]}


def held_out_rows(spec: StreamSpec) -> tuple[Array, Array] | None:
    """The held-out rows of all experiences of a stream; None where there are none."""
    if not spec.experiences:
        return None
    x = np.concatenate([e.x for e in spec.experiences]).astype(np.float64)
    return x, np.concatenate([e.y for e in spec.experiences])


def _ask(learner: Learner, x: Array, classes: int) -> Array:
    """Class probabilities, float64[n, at least classes]."""
    found = [np.zeros((0, classes))]
    for at in range(0, len(x), PIECE):
        piece = x[at : at + PIECE]
        scores = learner.predict(Batch(np.arange(len(piece)), piece, 0.0)).scores
        assert scores is not None
        found.append(np.pad(scores, ((0, 0), (0, max(0, classes - scores.shape[1])))))
    width = max(part.shape[1] for part in found)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in found])
