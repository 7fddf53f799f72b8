"""Rows that wait for their label, and a bounded memory of the ids that were met.

A late label is learnt with the prediction that was made when its row came, so everything about a row is kept until
then. Both memories are bounded: the oldest waiting row is dropped (and counted) when there are too many, and an id is
remembered for ``capacity`` rows after its row came.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from ..streams import Array, Batch, concatenate
from .learner import Prediction, State, stack

UNANSWERED = np.nan
DROPPED = np.inf


@dataclass(frozen=True, slots=True)
class Waiting:
    """Rows, the prediction made for them, and what the baselines said at that moment (float64[B, 2])."""

    batch: Batch
    prediction: Prediction
    baseline: Array

    def row(self, i: int) -> Waiting:
        """A copy of one row (as a batch of one): whoever keeps it keeps no other row alive."""
        at, batch, answer = slice(i, i + 1), self.batch, self.prediction
        x = {k: v[at].copy() for k, v in batch.x.items()} if isinstance(batch.x, Mapping) else batch.x[at].copy()
        scores = None if answer.scores is None else answer.scores[at].copy()
        trace = {k: v[at].copy() for k, v in answer.trace.items()}
        return Waiting(
            Batch(batch.ids[at].copy(), x, batch.time),
            Prediction(answer.output[at].copy(), scores, trace),
            self.baseline[at].copy(),
        )


class Pending:
    """Waiting rows by id, plus a ring of the last ids with the label each got.

    ``highest`` is the largest id met: ids above it are new without a look into the ring.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("pending must be at least 1")
        self.capacity = capacity
        self.highest = -(2**62)
        self.dropped = 0
        self._rows: dict[int, Waiting] = {}
        self._ring_ids = np.full(capacity, np.iinfo(np.int64).min)
        self._ring_labels = np.full(capacity, UNANSWERED)
        self._met = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, row: int) -> bool:
        return row in self._rows

    def drop(self, ids: Array) -> None:
        """Throw waiting rows away, for good: a label that comes for one is too late."""
        for row in ids.tolist():
            del self._rows[row]
            self._answer(row, DROPPED)

    def erase(self, ids: Array) -> None:
        """Keep no label of these rows; a label that comes for one is too late."""
        self._ring_labels[np.isin(self._ring_ids, ids)] = DROPPED

    def met(self, ids: Array) -> Array:
        """bool[B]: whether an id waits or is among the last ``capacity`` ids."""
        fresh = ids > self.highest
        return np.array(
            [not new and (row in self._rows or row in self._ring_ids) for row, new in zip(ids.tolist(), fresh)], bool
        )

    def remember(self, ids: Array, labels: Array | None) -> None:
        """Note that these ids came, with their labels where known."""
        n, capacity = len(ids), self.capacity
        if n == 1:
            at = self._met % capacity
            row = int(ids[0])
            self._ring_ids[at] = row
            self._ring_labels[at] = UNANSWERED if labels is None else labels[0]
            self.highest = max(row, self.highest)
        else:
            at_all = (self._met + np.arange(max(0, n - capacity), n)) % capacity
            self._ring_ids[at_all] = ids[-capacity:]
            self._ring_labels[at_all] = UNANSWERED if labels is None else labels[-capacity:]
            self.highest = max(int(ids.max()), self.highest)
        self._met += n

    def wait(self, rows: Waiting) -> int:
        """Keep rows until their labels come; returns how many older ones had to be dropped."""
        ids = rows.batch.ids.tolist()
        for i, row in enumerate(ids):
            self._rows[row] = rows.row(i)
        excess = max(0, len(self._rows) - self.capacity)
        for row in list(islice(self._rows, excess)):
            del self._rows[row]
            self._answer(row, DROPPED)
        self.dropped += excess
        return excess

    def take(self, row: int, label: float) -> Waiting | str:
        """The waiting row with this id, which leaves the memory; or why there is none."""
        if row in self._rows:
            self._answer(row, label)
            return self._rows.pop(row)
        at = self._find(row)
        if at < 0:
            return "label for an unknown id"
        before = float(self._ring_labels[at])
        if before == DROPPED:
            return "label too late: its row was dropped from the pending rows"
        if before == label:
            return "duplicate label"
        return f"revised label: {label:g} after {before:g} was learnt"

    def _answer(self, row: int, label: float) -> None:
        at = self._find(row)
        if at >= 0:
            self._ring_labels[at] = label

    def _find(self, row: int) -> int:
        """Where in the ring an id stands (-1: nowhere). Ids that rise by one each row are found without a search."""
        at = (self._met - 1 - (self.highest - row)) % self.capacity
        if self._ring_ids[at] == row:
            return at
        found = np.flatnonzero(self._ring_ids == row)
        return int(found[-1]) if len(found) else -1

    def state(self) -> State:
        """Waiting rows gathered into arrays, in order of arrival, and the ring."""
        rows = list(self._rows.values())
        waiting: Any = None
        if rows:
            batch, prediction = concatenate([r.batch for r in rows]), stack([r.prediction for r in rows])
            waiting = {
                "ids": batch.ids,
                "x": batch.x,
                "times": np.array([r.batch.time for r in rows]),
                "output": prediction.output,
                "scores": prediction.scores,
                "trace": dict(prediction.trace),
                "baseline": np.concatenate([r.baseline for r in rows]),
            }
        answered = np.where(np.isfinite(self._ring_labels), self._ring_labels, 0.0)
        status = np.where(np.isnan(self._ring_labels), 0, np.where(np.isinf(self._ring_labels), 2, 1)).astype(np.int8)
        return {
            "waiting": waiting,
            "ring_ids": self._ring_ids,
            "ring_labels": answered,
            "ring_status": status,
            "met": self._met,
            "highest": self.highest,
            "dropped": self.dropped,
        }

    def load(self, state: State) -> None:
        """Take over what ``state()`` returned."""
        self._ring_ids = np.array(state["ring_ids"])
        status = np.asarray(state["ring_status"])
        self._ring_labels = np.where(status == 1, state["ring_labels"], np.where(status == 2, DROPPED, UNANSWERED))
        self.capacity = len(self._ring_ids)
        self._met, self.highest, self.dropped = int(state["met"]), int(state["highest"]), int(state["dropped"])
        self._rows = {}
        kept = state["waiting"]
        if kept is None:
            return
        for i, row in enumerate(kept["ids"].tolist()):
            at = slice(i, i + 1)
            x = {k: v[at] for k, v in kept["x"].items()} if isinstance(kept["x"], dict) else kept["x"][at]
            batch = Batch(kept["ids"][at], x, float(kept["times"][i]))
            scores = None if kept["scores"] is None else kept["scores"][at]
            prediction = Prediction(kept["output"][at], scores, {k: v[at] for k, v in kept["trace"].items()})
            self._rows[row] = Waiting(batch, prediction, kept["baseline"][at]).row(0)
