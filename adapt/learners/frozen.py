"""A learner that stops learning: what a model is worth that was trained once and never updated.

The control beside every adaptive learner. The difference between the two is what adaptation earns.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, make_dataclass
from typing import Any, ClassVar, get_type_hints

from ...streams import Batch, InputError, StreamSpec
from ..learner import Learner, Prediction, State, stack


class Frozen(Learner):
    """Hands the first ``after`` labelled rows to another learner and nothing from then on.

    Named ``frozen:LEARNER`` (``frozen`` alone: logistic); takes that learner's parameters beside its own.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"classification", "regression"})

    @dataclass(frozen=True)
    class Params:
        """Its own setting; those of the other learner stand beside it (see ``params_for``)."""

        after: int = 500
        """Labelled rows that are learnt."""
        learner: ClassVar[str] = "logistic"

        def __post_init__(self) -> None:
            if self.after < 0:
                raise ValueError("after must be at least 0")

    def __init__(self, spec: StreamSpec, params: Params | None = None, seed: int = 0) -> None:
        from . import make_learner

        super().__init__(spec, params, seed)
        inner = {k: v for k, v in asdict(self.params).items() if k != "after"}
        self._inner = make_learner(self.params.learner, spec, seed=seed, **inner)
        self._seen = 0

    @classmethod
    def params_for(cls, learner: str) -> type[Params]:
        """The parameters of ``frozen:LEARNER``: ``after`` and all of the other learner's."""
        from . import learner_params

        if learner.partition(":")[0] == "frozen":
            raise InputError("frozen: a frozen learner cannot be frozen again")
        own = {"learner": learner or cls.Params.learner}
        theirs = learner_params(own["learner"])
        types = get_type_hints(theirs)
        inner = [(f.name, types[f.name], _same_default(f)) for f in fields(theirs)]
        return make_dataclass("Params", inner, bases=(cls.Params,), namespace=own, frozen=True)

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


def _same_default(of: Any) -> Any:
    return field(default=of.default, default_factory=of.default_factory, metadata=of.metadata)
