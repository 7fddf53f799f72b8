"""A learner that stops learning: what a model is worth that was trained once and never updated.

The control beside every adaptive learner. The difference between the two is what adaptation earns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...streams import Batch, InputError, StreamSpec
from ..learner import Learner, Prediction, State, stack


class Frozen(Learner):
    """Hands the first ``after`` labelled rows to another learner and nothing from then on.

    Named ``frozen:LEARNER``; settings that are not its own go to that learner.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"classification", "regression"})

    @dataclass(frozen=True)
    class Params:
        """learner: the one that is frozen. after: labelled rows it may learn from. settings: its parameters."""

        learner: str = "logistic"
        after: int = 500
        settings: dict[str, Any] = field(default_factory=dict)

        def __post_init__(self) -> None:
            if self.after < 0:
                raise ValueError("after must be at least 0")

    def __init__(self, spec: StreamSpec, params: Params | None = None, seed: int = 0) -> None:
        from . import make_learner

        super().__init__(spec, params, seed)
        if self.params.learner.partition(":")[0] == "frozen":
            raise InputError("frozen: a frozen learner cannot be frozen again")
        self._inner = make_learner(self.params.learner, spec, seed=seed, **self.params.settings)
        self._seen = 0

    @classmethod
    def gather(cls, rest: str, settings: Mapping[str, Any]) -> Params:
        """Parameters out of ``frozen:REST`` and one flat mapping of its own and the inner learner's settings."""
        from . import read_params

        own = {k: v for k, v in settings.items() if k in ("learner", "after", "settings")}
        inner = {k: v for k, v in settings.items() if k not in own}
        if rest:
            own["learner"] = rest
        own["settings"] = {**own.get("settings", {}), **inner}
        params: Frozen.Params = read_params(cls.Params, own, "frozen")
        return params

    @property
    def frozen(self) -> bool:
        """Whether it has stopped learning."""
        return bool(self._seen >= self.params.after)

    def predict(self, batch: Batch) -> Prediction:
        return self._inner.predict(batch)

    def adapt(self, batch: Batch, prediction: Prediction) -> None:
        if not self.frozen:
            self._inner.adapt(batch, prediction)

    def learn(self, batch: Batch, prediction: Prediction) -> None:
        room = self.params.after - self._seen
        if room <= 0:
            return
        if len(batch) > room:
            first = slice(0, room)
            batch, prediction = batch.rows(first), prediction.rows(first)
        self._inner.learn(batch, prediction)
        self._seen += len(batch)

    def test_then_train(self, batch: Batch) -> Prediction:
        room = min(self.params.after - self._seen, len(batch))
        if room <= 0:
            return self._inner.predict(batch)
        self._seen += room
        if room == len(batch):
            return self._inner.test_then_train(batch)
        taught = self._inner.test_then_train(batch.rows(slice(0, room)))
        return stack([taught, self._inner.predict(batch.rows(slice(room, None)))])

    def state(self) -> State:
        return {"seen": self._seen, "inner": self._inner.state()}

    def load(self, state: State) -> None:
        self._seen = int(state["seen"])
        self._inner.load(state["inner"])

    def telemetry(self) -> dict[str, float]:
        return {"frozen": float(self.frozen), **self._inner.telemetry()}
