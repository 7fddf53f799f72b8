"""The majority class, or the running mean: what anyone can do who looks at the labels alone.

A baseline on purpose: a learner that is not above it has learnt nothing from the features.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ...streams import Array, Batch, StreamSpec
from ..learner import Learner, Prediction, State


class Majority(Learner):
    """Predicts the class seen most often (the lowest code on ties), or the mean of all targets.

    Scores are the class frequencies n_c / n, uniform before the first label; a mean before the first target is 0.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"classification", "regression"})

    def __init__(self, spec: StreamSpec, params: object = None, seed: int = 0) -> None:
        super().__init__(spec, params, seed)
        self._counts = np.zeros(max(1, spec.n_classes or 0), np.int64)
        self._mean = 0.0
        self._seen = 0

    def predict(self, batch: Batch) -> Prediction:
        n = len(batch)
        if self.spec.target == "regression":
            return Prediction(np.full(n, self._mean))
        scores = self._counts / self._seen if self._seen else np.full(len(self._counts), 1 / len(self._counts))
        return Prediction(np.full(n, self._counts.argmax()), np.repeat(scores[None], n, axis=0))

    def learn(self, batch: Batch, prediction: Prediction) -> None:
        assert batch.y is not None
        if self.spec.target == "regression":
            for y in batch.y.tolist():
                self._observe(y)
            return
        self._grow(int(batch.y.max()) + 1)
        self._counts += np.bincount(batch.y, minlength=len(self._counts))
        self._seen += len(batch)

    def _observe(self, y: float) -> None:
        """mean += (y - mean) / n, written so that targets near the end of the float range cannot overflow."""
        self._seen += 1
        self._mean += y / self._seen - self._mean / self._seen

    def _grow(self, classes: int) -> None:
        if classes > len(self._counts):
            self._counts = np.append(self._counts, np.zeros(classes - len(self._counts), np.int64))

    def test_then_train(self, batch: Batch) -> Prediction:
        assert batch.y is not None
        y = batch.y
        if self.spec.target == "regression":
            output = np.empty(len(y))
            for i, value in enumerate(y.tolist()):
                output[i] = self._mean
                self._observe(value)
            return Prediction(output)
        first = self.predict(batch.rows(slice(0, 1)))
        assert first.scores is not None
        width = max(len(self._counts), int(y[:-1].max(initial=-1)) + 1)
        before = self._counts_before(y, width)
        scores = before / np.maximum(self._seen + np.arange(len(y)), 1)[:, None]
        scores[0, : first.scores.shape[1]] = first.scores[0]
        self.learn(batch, first)
        return Prediction(before.argmax(axis=1), scores)

    def _counts_before(self, y: Array, width: int) -> Array:
        """int64[B, width]: the class counts as they stood before each row."""
        before = np.zeros((len(y), width), np.int64)
        before[0, : len(self._counts)] = self._counts
        before[np.arange(1, len(y)), y[:-1]] += 1
        return before.cumsum(axis=0)

    def state(self) -> State:
        return {"counts": self._counts, "mean": self._mean, "seen": self._seen}

    def load(self, state: State) -> None:
        self._counts = np.array(state["counts"])
        self._mean, self._seen = float(state["mean"]), int(state["seen"])
