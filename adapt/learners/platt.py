"""Platt scaling on line: a scale and a shift of the base model's answers, learnt from every label. No memory.

    clicks, classes   z_c = a log p_c + b_c,  q = softmax z       (for two classes: a logit(p) + b)
    values            q = a v + b, in units of the base's usual error
    H <- fade H + h,  theta <- theta - (H + 5 I)^-1 g        Newton's step on the label's log loss (squared error)

The control beside ``reloop2``: what of its gain any recalibration would have brought. Source: Platt, Probabilistic
outputs for support vector machines, 1999, there fitted once. Ours: on line, with a fading Hessian.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...streams import Array, Batch, Boundary, StreamSpec
from ..learner import Learner, Prediction, State
from .strength import CLIP
from .wrapped import given_back, kept, make_inner, wrapped_params

RIDGE = 5.0


class Platt(Learner):
    """A base learner whose answers are scaled and shifted. Named ``platt:LEARNER`` or ``LEARNER+platt``."""

    targets: ClassVar[frozenset[str]] = frozenset({"classification", "regression"})

    @dataclass(frozen=True)
    class Params:
        """Settings of the scaling; those of the base learner stand beside them."""

        base: str = "frozen"
        """frozen: the base learns from the first ``warmup`` labels alone; incremental: from all."""
        warmup: int = 1000
        """Labels that the base learns from before scaling begins, unless it was trained on the stream's source."""
        forget: float = 0.999
        """What the curvature keeps a label."""
        learner: ClassVar[str] = "logistic"

        def __post_init__(self) -> None:
            if self.base not in ("frozen", "incremental"):
                raise ValueError("base is frozen or incremental")
            if self.warmup < 0 or not 0 < self.forget <= 1:
                raise ValueError("warmup is at least 0, forget in (0, 1]")

    def __init__(self, spec: StreamSpec, params: Params | None = None, seed: int = 0) -> None:
        super().__init__(spec, params, seed)
        if type(self.params) is Platt.Params:
            self.params = self.params_for("")()
        self._base = make_inner(Platt.Params, self.params, spec, seed)
        self.needs = self._base.needs
        self._value = spec.target == "regression"
        ready = spec.source is not None and "source" in self._base.needs
        self._warm = 0 if ready else self.params.warmup
        width = 1 if self._value else max(2, spec.n_classes or 0)
        self._theta = np.zeros(1 + width)
        self._theta[0] = 1.0
        self._hess = np.zeros((1 + width, 1 + width))
        self._seen = self._rows = 0
        self._squares = 0.0

    @classmethod
    def params_for(cls, learner: str) -> type[Params]:
        """The parameters of ``platt:LEARNER``: its own, and the base learner's beside them."""
        made: type[Platt.Params] = wrapped_params(cls.Params, learner or cls.Params.learner)
        return made

    @property
    def _unit(self) -> float:
        return float(np.sqrt(self._squares / self._rows)) if self._squares > 0 else 1.0

    def predict(self, batch: Batch) -> Prediction:
        answer = self._base.predict(batch)
        trace = kept(answer)
        if not self._rows:
            return Prediction(answer.output, answer.scores, trace)
        if answer.scores is None:
            return Prediction(self._theta[0] * answer.output + self._theta[1] * self._unit, None, trace)
        scores = np.exp(self._lifted(answer.scores))
        scores /= scores.sum(1, keepdims=True)
        return Prediction(scores.argmax(1), scores, trace)

    def _lifted(self, p: Array) -> Array:
        """z, float64[B, C], its largest entry 0."""
        z = self._theta[0] * np.log(np.clip(p, CLIP, 1 - CLIP))
        known = min(z.shape[1], len(self._theta) - 1)
        z[:, :known] += self._theta[1 : 1 + known]
        return z - z.max(1, keepdims=True)

    def adapt(self, batch: Batch, prediction: Prediction) -> None:
        if self._learns:
            self._base.adapt(batch, given_back(prediction.trace))

    def boundary(self, event: Boundary) -> None:
        if self._learns:
            self._base.boundary(event)

    @property
    def _learns(self) -> bool:
        return self._seen < self._warm or self.params.base == "incremental"

    def learn(self, batch: Batch, prediction: Prediction) -> None:
        assert batch.y is not None
        answer = given_back(prediction.trace)
        if self._seen >= self._warm:
            for i in range(len(batch)):
                if answer.scores is None:
                    self._learn_value(float(answer.output[i]), float(batch.y[i]))
                elif np.isfinite(answer.scores[i]).all():
                    self._learn_class(answer.scores[i], int(batch.y[i]))
        if self._learns:
            self._base.learn(batch, answer)
        self._seen += len(batch)

    def _learn_class(self, p: Array, y: int) -> None:
        self._rows += 1
        width = max(len(p), y + 1, len(self._theta) - 1)
        self._grow(width)
        ell = np.log(np.clip(np.pad(p, (0, width - len(p))), CLIP, 1 - CLIP))
        z = self._theta[0] * ell + self._theta[1:]
        q = np.exp(z - z.max())
        q /= q.sum()
        slope = np.concatenate([[q @ ell - ell[y]], q])
        slope[1 + y] -= 1
        mixed = np.concatenate([[q @ ell], q])
        curve = -np.outer(mixed, mixed)
        curve[0, 0] += q @ ell**2
        curve[0, 1:] += q * ell
        curve[1:, 0] += q * ell
        curve[range(1, 1 + width), range(1, 1 + width)] += q
        self._step(slope, curve)

    def _learn_value(self, said: float, y: float) -> None:
        if not np.isfinite(said):
            return
        self._rows += 1
        self._squares += min(abs(y - said), 1e100) ** 2
        x = np.array([said / self._unit, 1.0])
        self._step((self._theta @ x - y / self._unit) * x, np.outer(x, x))

    def _step(self, slope: Array, curve: Array) -> None:
        self._hess = self.params.forget * self._hess + curve
        self._theta = self._theta - np.linalg.solve(self._hess + RIDGE * np.eye(len(slope)), slope)

    def _grow(self, width: int) -> None:
        more = 1 + width - len(self._theta)
        if more > 0:
            self._theta = np.pad(self._theta, (0, more))
            self._hess = np.pad(self._hess, ((0, more), (0, more)))

    def telemetry(self) -> dict[str, float]:
        return {"platt_scale": float(self._theta[0]), "platt_shift": float(self._theta[-1]), **self._base.telemetry()}

    def facts(self) -> dict[str, object]:
        return self._base.facts()

    def state(self) -> State:
        return {
            "base": self._base.state(),
            "theta": self._theta,
            "hess": self._hess,
            "seen": self._seen,
            "rows": self._rows,
            "squares": self._squares,
        }

    def load(self, state: State) -> None:
        self._base.load(state["base"])
        self._theta, self._hess = np.array(state["theta"]), np.array(state["hess"])
        self._seen, self._rows = int(state["seen"]), int(state["rows"])
        self._squares = float(state["squares"])
