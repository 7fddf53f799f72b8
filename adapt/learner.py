"""The one interface every method implements, and the words it speaks: prediction, trace, receipt, state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np

from ..streams import Array, Batch, Boundary, StreamSpec

State: TypeAlias = Any
"""A tree of dicts and lists over NumPy arrays, torch tensors, numbers, strings, booleans and None. Nothing else, and
every float in it finite: checkpoint, resume, rollback and export all rest on that."""


class CannotForget(Exception):
    """The learner has no way to unlearn; the message says why."""


class CannotCheckpoint(Exception):
    """The learner's state is not a ``State`` (a wrapped foreign object); the message says which."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a learner says of a batch, before any label.

    output: int64[B] class codes, or float64[B]. scores: float64[B, C] class probabilities, None for regression.
    trace: arrays with leading axis B, kept with the row until its label comes and then given back to ``learn``.
    """

    output: Array
    scores: Array | None = None
    trace: Mapping[str, Array] = field(default_factory=dict)

    def rows(self, index: slice | Array) -> Prediction:
        """The chosen rows as a prediction of their own."""
        scores = None if self.scores is None else self.scores[index]
        return Prediction(self.output[index], scores, {k: v[index] for k, v in self.trace.items()})


def stack(parts: list[Prediction]) -> Prediction:
    """Predictions of several batches as one, in order; scores and traces are padded with 0 where classes grew.

    Scores and entries of the trace survive only if every part has them.
    """
    if len(parts) == 1:
        return parts[0]
    output = np.concatenate([p.output for p in parts])
    scores = [p.scores for p in parts if p.scores is not None]
    trace = {k: _stack([p.trace[k] for p in parts]) for k in parts[0].trace if all(k in p.trace for p in parts)}
    return Prediction(output, _stack(scores) if len(scores) == len(parts) else None, trace)


def _stack(arrays: list[Array]) -> Array:
    """Concatenate along the first axis, padding every other axis with zeros up to the longest."""
    if len({a.shape[1:] for a in arrays}) == 1:
        return np.concatenate(arrays)
    shape = np.max([a.shape[1:] for a in arrays], axis=0)
    pads = [[(0, 0), *((0, int(n - m)) for n, m in zip(shape, a.shape[1:], strict=True))] for a in arrays]
    return np.concatenate([np.pad(a, pad) for a, pad in zip(arrays, pads, strict=True)])


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof of an unlearning request: which ids, digests of the state before and after, and what is guaranteed.

    certificate: further facts as plain values, such as the bound on the distance to training anew; ``digests`` there
    are those of the rows of each id, {id: [hex]}.
    """

    ids: tuple[int, ...]
    before: str
    after: str
    guarantee: str
    certificate: Mapping[str, Any] = field(default_factory=dict)


class Learner(ABC):
    """A model that can predict, adapt without labels, learn from labels, and perhaps forget.

    A learner is built as ``Learner(spec, params, seed)``: the stream's spec, a frozen dataclass of parameters (also
    the flags of the command line and the keys of a configuration file), and the seed of its private generator.
    """

    needs: frozenset[str] = frozenset()
    targets: ClassVar[frozenset[str]] = frozenset({"classification"})
    devices: ClassVar[frozenset[str]] = frozenset({"cpu"})

    @dataclass(frozen=True)
    class Params:
        """No parameters."""

    spec: StreamSpec
    params: Any

    def __init__(self, spec: StreamSpec, params: Any = None, seed: int = 0) -> None:
        self.spec = spec
        self.params = self.Params() if params is None else params
        self.seed = seed

    @abstractmethod
    def predict(self, batch: Batch) -> Prediction:
        """Outputs for every row. Never changes state (a test hashes it)."""

    def represent(self, batch: Batch) -> tuple[Prediction, Array | None]:
        """``predict``, and where the rows lie in a space of the learner's own (its last hidden layer), float[B, d];
        None where it has none."""
        return self.predict(batch), None

    def adapt(self, batch: Batch, prediction: Prediction) -> None:  # noqa: B027 - doing nothing is the default
        """Use the rows without their labels."""

    def learn(self, batch: Batch, prediction: Prediction) -> None:  # noqa: B027 - doing nothing is the default
        """Use the rows with their labels (``batch.y``, every one known); ``prediction`` is the one made for them."""

    def boundary(self, event: Boundary) -> None:  # noqa: B027 - doing nothing is the default
        """A known change; the loop tells only learners with "boundaries" in ``needs``."""

    def forget(self, ids: Array) -> Receipt:  # noqa: ARG002 - for those who can
        """Unlearn rows exactly, or raise ``CannotForget`` with the reason."""
        raise CannotForget(f"{type(self).__name__} keeps no statistics that a row could be taken out of")

    def forget_whole(self, kind: str, number: int) -> Receipt:  # noqa: ARG002 - for those who can
        """Unlearn a whole "class" (its code) or "group" (how many boundaries came before it); as ``forget``."""
        raise CannotForget(f"{type(self).__name__} cannot forget a whole {kind}")

    def bar(self, ids: Array) -> None:  # noqa: B027 - doing nothing is the default
        """Never learn these rows from now on, and forget the ones that are learnt: a later request named them."""

    def test_then_train(self, batch: Batch) -> Prediction:
        """Row after row: predict, adapt, learn. The predictions are those made before each row was learnt.

        Learners with a compiled path override this; the result must be bit-equal to this loop.
        """
        parts = []
        for i in range(len(batch)):
            row = batch.rows(slice(i, i + 1))
            prediction = self.predict(row)
            self.adapt(row, prediction)
            self.learn(row, prediction)
            parts.append(prediction)
        return stack(parts)

    def probe(self, x: Array) -> Callable[[], Array]:
        """A function that scores these rows with the learner as it is at each call: float[n, C], arg max is the answer.

        x: float[n, d] in the units of the batches, kept until the function is dropped. It changes nothing: not the
        state, not a random generator, not a module's mode. Learners override it where they can keep the rows in the
        form they need.
        """
        batch = Batch(np.arange(len(x)), np.asarray(x, np.float64), 0.0)

        def score() -> Array:
            scores = self.predict(batch).scores
            assert scores is not None, "only classification can be probed"
            return scores

        return score

    def version(self) -> int | None:
        """A number that moves whenever an answer may have changed; None where that is not known."""
        return None

    def predicting(self) -> list[Array] | None:
        """The arrays that answers depend on, by reference and always in the same order, for whoever copies them
        elsewhere to predict there; None where they are not arrays of fixed shape."""
        return None

    def source_scores(self, batch: Batch) -> Array | None:  # noqa: ARG002 - for those who have one
        """float64[B, C]: what the unadapted source model says of these rows, changing nothing; None: there is none."""
        return None

    def adapted(self) -> State | None:
        """What adaptation without labels has moved (not what labels taught), by reference; None: nothing moves."""
        return None

    def restore(self, adapted: State) -> None:
        """Take over what ``adapted`` returned at another time. Copies what it keeps."""
        raise NotImplementedError(f"{type(self).__name__} does not adapt without labels")

    def gentler(self) -> None:  # noqa: B027 - doing nothing is the default
        """Adapt in smaller steps from now on: the guard's answer to a second collapse."""

    def facts(self) -> dict[str, Any]:
        """Plain values worth a line in the summary of a run: what was chosen, what was found."""
        return {}

    @abstractmethod
    def state(self) -> State:
        """Everything that later behaviour depends on, by reference (whoever keeps it copies it)."""

    @abstractmethod
    def load(self, state: State) -> None:
        """Take over a state that ``state()`` of an equally built learner returned. Copies what it keeps."""

    def telemetry(self) -> dict[str, float]:
        """Figures worth a column in the records; the same keys at every call. ``resets`` counts parts thrown away."""
        return {}
