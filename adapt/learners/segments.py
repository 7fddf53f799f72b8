"""Rows on their way into compiled loops whose arrays have a fixed number of classes."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ...streams import Array, Batch
from ...streams.events import Features
from ..learner import Prediction, stack


def plain(array: Features) -> Array:
    """An array as compiled code takes it, in C order and writeable: itself where it is so, else a copy."""
    assert isinstance(array, np.ndarray)
    return array if array.flags.c_contiguous and array.flags.writeable else np.array(array, order="C")


def classes_in(y: Array) -> int:
    """How many classes there must be for these codes (one comparison saved for the single row, the common case)."""
    return int(y[0] if len(y) == 1 else y.max()) + 1


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
        """Test, then train, on rows [start, stop) of plain rows, whose classes are all known."""
        ...


def test_then_train(learner: RowLoop, batch: Batch) -> Prediction:
    """Row after row in compiled code; the row that brings a new class goes through ``predict`` and ``learn``."""
    assert batch.y is not None
    x, y = plain(batch.x), plain(batch.y)
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
