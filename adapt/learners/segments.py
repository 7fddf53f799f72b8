"""Test-then-train for learners with a compiled row loop whose arrays have a fixed number of classes."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ...streams import Array, Batch
from ..learner import Prediction, stack


class RowLoop(Protocol):
    """What such a learner offers."""

    def known_classes(self) -> int:
        """Classes there is room for."""
        ...

    def predict(self, batch: Batch) -> Prediction: ...

    def learn(self, batch: Batch, prediction: Prediction) -> None:
        """Makes room for new classes first."""
        ...

    def run(self, x: Array, y: Array, start: int, stop: int) -> Prediction:
        """Test, then train, on rows [start, stop), whose classes are all known."""
        ...


def test_then_train(learner: RowLoop, batch: Batch) -> Prediction:
    """Row after row in compiled code; the row that brings a new class goes through ``predict`` and ``learn``."""
    y = batch.y
    assert y is not None
    parts, at = [], 0
    while at < len(batch):
        fresh = np.flatnonzero(y[at:] >= learner.known_classes())
        stop = at + int(fresh[0]) if len(fresh) else len(batch)
        if stop > at:
            parts.append(learner.run(batch.x, y, at, stop))
        else:
            stop = at + 1
            row = batch.rows(slice(at, stop))
            parts.append(learner.predict(row))
            learner.learn(row, parts[-1])
        at = stop
    return stack(parts)
