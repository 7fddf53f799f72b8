"""No change: the label that came last, again.

A baseline on purpose: on streams whose labels come in runs it is hard to beat, and a learner below it is worth nothing
there, however high its accuracy looks.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from ...streams import Batch, StreamSpec
from ..learner import Learner, Prediction, State


class NoChange(Learner):
    """Predicts the last label learnt (class 0, or 0.0, before the first); its scores are 1 for that class.

    Under label delay it repeats the last label that has come, which is an older row's.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"classification", "regression"})

    def __init__(self, spec: StreamSpec, params: object = None, seed: int = 0) -> None:
        super().__init__(spec, params, seed)
        self._last: float | int = 0.0 if spec.target == "regression" else 0
        self._classes = max(1, spec.n_classes or 0)

    def predict(self, batch: Batch) -> Prediction:
        output = np.full(len(batch), self._last)
        if self.spec.target == "regression":
            return Prediction(output)
        scores = np.zeros((len(batch), self._classes))
        scores[:, int(self._last)] = 1.0
        return Prediction(output, scores)

    def learn(self, batch: Batch, prediction: Prediction) -> None:
        assert batch.y is not None
        self._last = batch.y[-1].item()
        if self.spec.target == "classification":
            self._classes = max(self._classes, int(batch.y.max()) + 1)

    def test_then_train(self, batch: Batch) -> Prediction:
        assert batch.y is not None
        output = np.append(np.array([self._last], batch.y.dtype), batch.y[:-1])
        scores = None
        if self.spec.target == "classification":
            scores = np.zeros((len(batch), max(self._classes, int(output.max()) + 1)))
            scores[np.arange(len(batch)), output] = 1.0
        prediction = Prediction(output, scores)
        self.learn(batch, prediction)
        return prediction

    def state(self) -> State:
        return {"last": self._last, "classes": self._classes}

    def load(self, state: State) -> None:
        self._last, self._classes = state["last"], int(state["classes"])
