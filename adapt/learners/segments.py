"""Rows on their way into compiled loops whose arrays have a fixed number of classes."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ...streams import Array, Batch
from ...streams.events import Features
from ..learner import Prediction, stack

LARGEST = 1e75


def bounded(x: Features) -> Array:
    """Table rows float64[B, d] as compiled code takes them: an array of its own in C order, numbers within +-1e75.

    Squares of larger numbers, and sums of these, would leave the range of float64. NaN stays NaN.
    """
    assert isinstance(x, np.ndarray)
    return np.minimum(np.maximum(x, -LARGEST, order="C"), LARGEST)


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
        """Test, then train, on rows [start, stop) of ``bounded`` rows, whose classes are all known."""
        ...


def test_then_train(learner: RowLoop, batch: Batch) -> Prediction:
    """Row after row in compiled code; the row that brings a new class goes through ``predict`` and ``learn``."""
    x, y = bounded(batch.x), batch.y
    assert y is not None
    y = np.array(y)
    parts, at = [], 0
    while at < len(batch):
        fresh = np.flatnonzero(y[at:] >= learner.known_classes())
        stop = at + int(fresh[0]) if len(fresh) else len(batch)
        if stop > at:
            parts.append(learner.run(x, y, at, stop))
        else:
            stop = at + 1
            row = batch.rows(slice(at, stop))
            parts.append(learner.predict(row))
            learner.learn(row, parts[-1])
        at = stop
    return stack(parts)
