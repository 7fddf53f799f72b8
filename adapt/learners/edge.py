"""An edge bundle inside the loop: every evaluation and report that there is for learners works on it.

Named ``edge:FOLDER``. The answer and the step come from one run of the bundle's graph: the step lies ready and counts
from ``adapt`` on. What is measured here is what the device does, its own guard included.
"""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from typing import Any, ClassVar

import numpy as np

from ...streams import NO_LABEL, Array, Batch, InputError, StreamSpec
from ..edge.runner import BundleError, Runner
from ..learner import CannotForget, Learner, Prediction, Receipt, State
from ..state import digest


class Edge(Learner):
    """Runs a bundle (``edge/runner.py``)."""

    @dataclass(frozen=True)
    class Params:
        """How it is run; the bundle brings everything else."""

        threads: int = 1
        """Of ONNX Runtime."""
        bundle: ClassVar[str] = ""

        def __post_init__(self) -> None:
            if self.threads < 1:
                raise ValueError("threads must be at least 1")

    def __init__(self, spec: StreamSpec, params: Params | None = None, seed: int = 0) -> None:
        super().__init__(spec, params, seed)
        if not self.params.bundle:
            raise InputError("edge needs the folder of a bundle: edge:FOLDER (driftway export makes one)")
        try:
            self.runner = Runner(self.params.bundle, threads=self.params.threads)
        except BundleError as fault:
            raise InputError(f"{fault}") from None
        self._timed = len(spec.columns) + 1 == self.runner.width and self.runner.columns[-1][0] == "time"
        """Whether a row has the time of its batch behind it."""
        self._time = 0.0
        _check(spec, self.runner, self.params.bundle, self._timed)
        if "learn" in self.runner.verbs:
            self.needs = frozenset({"labels"})
        self._said: Prediction | None = None
        self._changes = 0
        self._barred: set[int] = set()

    @classmethod
    def params_for(cls, bundle: str) -> type[Params]:
        """The parameters of ``edge:BUNDLE``."""
        return make_dataclass("Params", [], bases=(cls.Params,), namespace={"bundle": bundle}, frozen=True)

    def predict(self, batch: Batch) -> Prediction:
        self._time = batch.time
        scores = _scores(self.runner.predict(self._rows(batch.x), ahead=True))
        trace = {} if self.runner.trace is None else {"trace": self.runner.trace.copy()}
        self._said = Prediction(scores.argmax(1), scores, trace)
        return self._said

    def _rows(self, x: Any) -> Any:
        return np.c_[x, np.full(len(x), self._time)] if self._timed else x

    def adapt(self, batch: Batch, prediction: Prediction) -> None:
        if batch.y is not None and "learn" in self.runner.verbs:  # labelled rows teach by their labels alone
            batch, self._said = batch.rows(batch.y == NO_LABEL), None
        if not len(batch):
            return
        if prediction is not self._said:
            self._time = batch.time
            self.runner.predict(self._rows(batch.x), ahead=True)
        self._said = None
        self.runner.commit()
        self._changes += 1

    def learn(self, batch: Batch, prediction: Prediction) -> None:
        if "learn" not in self.runner.verbs:
            return
        free = ~np.isin(batch.ids, list(self._barred))
        batch, prediction = batch.rows(free), prediction.rows(free)
        if not len(batch) or batch.y is None:
            return
        self._said = None
        ids, rows = batch.ids.tolist(), prediction.trace.get("trace", self.runner.rows(batch.x))
        self.runner.waiting.update((i, row.copy()) for i, row in zip(ids, rows))
        self.runner.label(ids, batch.y.tolist())
        self._changes += 1

    def forget(self, ids: Array) -> Receipt:
        if "forget" not in self.runner.verbs:
            raise CannotForget("this bundle has no graph that forgets")
        before = digest(self.runner.now)
        try:
            self.runner.forget(np.asarray(ids).tolist())
        except BundleError as fault:
            raise CannotForget(f"{fault}") from None
        self._changes += 1
        said = "the head is the one trained on the remaining rows, to the rounding of float64 sums"
        return Receipt(tuple(np.asarray(ids).tolist()), before, digest(self.runner.now), said)

    def bar(self, ids: Array) -> None:
        there = [i for i in np.asarray(ids).tolist() if i in self.runner.learnt]
        if there:
            self.forget(np.array(there))
        self._barred |= set(np.asarray(ids).tolist())

    def probe(self, x: Array) -> Any:
        rows = np.array(self._rows(x))
        return lambda: _scores(self.runner.predict(rows))

    def version(self) -> int | None:
        return self._changes

    def telemetry(self) -> dict[str, float]:
        return {k: float(self.runner.counts[k]) for k in ("steps", "resets", "rollbacks")}

    def facts(self) -> dict[str, Any]:
        about = self.runner.about
        return {"bundle": about["sha256"], "exported": about["learner"], "made": about["made"]}

    def state(self) -> State:
        return {"runner": self.runner.kept(), "changes": self._changes, "barred": sorted(self._barred)}

    def load(self, state: State) -> None:
        try:
            self.runner.take(state["runner"])
        except BundleError as fault:
            raise InputError(f"{self.params.bundle}: {fault}") from None
        self._changes, self._said = int(state["changes"]), None
        self._barred = set(state["barred"])


def _scores(found: Array) -> Array:
    """float64; a row that the bundle refused is as likely of one class as of any other."""
    scores = found.astype(np.float64)
    scores[np.isnan(scores).any(1)] = 1 / max(1, scores.shape[1])
    return scores


def _check(spec: StreamSpec, runner: Runner, bundle: str, timed: bool) -> None:
    """The bundle's columns and classes must be the stream's, but for a column of time behind them."""
    if len(spec.columns) + timed != runner.width:
        raise InputError(f"{bundle}: made for {runner.width} columns, {spec.name} has {len(spec.columns)}")
    if list(spec.classes or ()) != list(runner.about["stream"]["classes"] or ()):
        raise InputError(f"{bundle}: made for other classes than those of {spec.name}")
