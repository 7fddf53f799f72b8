"""Online softmax regression (linear regression for numeric targets), one pass, one compiled step a row.

A row becomes a sparse vector: each numeric column standardised by running mean and variance and clipped, each nominal
column one-hot. A missing number counts as its running mean (so its standardised value is 0), a missing category as
none. Categories of open columns share ``slots`` places by code modulo slots, since nobody knows how many will come.

    p = softmax(W'z),  W <- W - rate * (z (p - onehot(y))' + l2 * W)       (l2 on the row's non-zero inputs only)
    regression, in units of the target's running mean and deviation:  w <- w + s * (t - w'z) * z,
    s = rate / (1 + rate * |z|^2), the implicit step, which no length of z can make diverge

The statistics of x move at ``learn`` alone, before the row's own step. Sources: Bishop 2006, sections 4.3.2 and 3.1.3;
Welford 1962 for the statistics; Toulis and Airoldi 2017 for the implicit step. Clipping, the sharing of places and the
lazy l2 are our choices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...models.compiled import compiled
from ...streams import Array, Batch, StreamSpec
from ..learner import Learner, Prediction, State

_HUGE = 1e100
"""Larger magnitudes enter the statistics as this, so that their squares stay finite."""


@compiled
def _observe(value: float, stats: Array, j: int) -> None:
    """Welford's update of column j of stats: float64[3, d] holding count, mean and sum of squared deviations."""
    value = min(max(value, -_HUGE), _HUGE)
    stats[0, j] += 1.0
    delta = value - stats[1, j]
    stats[1, j] += delta / stats[0, j]
    stats[2, j] += delta * (value - stats[1, j])


@compiled
def _standard(value: float, stats: Array, j: int, clip: float) -> float:
    """The value in standard deviations from the mean, within ±clip; 0 for a missing one or a constant column."""
    if np.isnan(value) or stats[2, j] <= 0.0:
        return 0.0
    return min(max((value - stats[1, j]) / np.sqrt(stats[2, j] / stats[0, j]), -clip), clip)


@compiled
def _encode(x: Array, stats: Array, layout: Array, clip: float, place: Array, z: Array) -> None:
    """Write the row's inputs: z[j] at place[j]. layout: int64[2, d], first place and number of places (0: numeric)."""
    for j in range(x.shape[0]):
        place[j] = layout[0, j]
        if layout[1, j] == 0:
            z[j] = _standard(x[j], stats, j, clip)
        elif np.isnan(x[j]):
            z[j] = 0.0
        else:
            place[j] += np.int64(x[j]) % layout[1, j]
            z[j] = 1.0


@compiled
def _scores(weights: Array, classes: int, place: Array, z: Array, out: Array) -> None:
    """out[:classes] = softmax over the known classes; place 0 is the bias."""
    for k in range(classes):
        out[k] = weights[0, k]
    for j in range(z.shape[0]):
        if z[j] != 0.0:
            for k in range(classes):
                out[k] += weights[place[j], k] * z[j]
    top = out[:classes].max()
    total = 0.0
    for k in range(classes):
        out[k] = np.exp(out[k] - top)
        total += out[k]
    for k in range(classes):
        out[k] /= total


@compiled
def _value(weights: Array, place: Array, z: Array) -> float:
    value = weights[0, 0]
    for j in range(z.shape[0]):
        value += weights[place[j], 0] * z[j]
    return value


@compiled
def _learn_class(
    x: Array,
    y: int,
    weights: Array,
    classes: int,
    stats: Array,
    layout: Array,
    knobs: Array,
    place: Array,
    z: Array,
    p: Array,
) -> None:
    """One step on one row. knobs: rate, clip, l2."""
    rate, l2 = knobs[0], knobs[2]
    for j in range(x.shape[0]):
        if layout[1, j] == 0 and not np.isnan(x[j]):
            _observe(x[j], stats, j)
    _encode(x, stats, layout, knobs[1], place, z)
    _scores(weights, classes, place, z, p)
    p[y] -= 1.0
    for k in range(classes):
        weights[0, k] -= rate * p[k]
    for j in range(z.shape[0]):
        if z[j] != 0.0:
            for k in range(classes):
                weights[place[j], k] -= rate * (p[k] * z[j] + l2 * weights[place[j], k])


@compiled
def _learn_value(
    x: Array, y: float, weights: Array, stats: Array, layout: Array, knobs: Array, place: Array, z: Array
) -> None:
    """One implicit step on one row; the last column of stats belongs to the target."""
    d = x.shape[0]
    for j in range(d):
        if layout[1, j] == 0 and not np.isnan(x[j]):
            _observe(x[j], stats, j)
    _observe(y, stats, d)
    _encode(x, stats, layout, knobs[1], place, z)
    length = 1.0
    for j in range(d):
        length += z[j] * z[j]
    miss = _standard(y, stats, d, knobs[1]) - _value(weights, place, z)
    step = knobs[0] / (1.0 + knobs[0] * length)
    weights[0, 0] += step * miss
    for j in range(d):
        if z[j] != 0.0:
            weights[place[j], 0] += step * miss * z[j] - knobs[0] * knobs[2] * weights[place[j], 0]


@compiled
def _run_classes(
    x: Array,
    y: Array,
    test: bool,
    weights: Array,
    classes: int,
    stats: Array,
    layout: Array,
    knobs: Array,
    scores: Array,
) -> None:
    """Rows in order. y empty: test alone. Otherwise train, and where ``test`` holds test each row before that."""
    d = x.shape[1]
    place, z, p = np.empty(d, np.int64), np.empty(d), np.empty(weights.shape[1])
    for i in range(x.shape[0]):
        if test:
            _encode(x[i], stats, layout, knobs[1], place, z)
            _scores(weights, classes, place, z, scores[i])
        if y.shape[0] > 0:
            classes = max(classes, y[i] + 1)
            _learn_class(x[i], y[i], weights, classes, stats, layout, knobs, place, z, p)


@compiled
def _run_values(
    x: Array, y: Array, test: bool, weights: Array, stats: Array, layout: Array, knobs: Array, output: Array
) -> None:
    """As ``_run_classes``, for numeric targets."""
    d = x.shape[1]
    place, z = np.empty(d, np.int64), np.empty(d)
    for i in range(x.shape[0]):
        if test:
            _encode(x[i], stats, layout, knobs[1], place, z)
            deviation = np.sqrt(stats[2, d] / max(stats[0, d], 1.0))
            output[i] = stats[1, d] + deviation * _value(weights, place, z)
        if y.shape[0] > 0:
            _learn_value(x[i], y[i], weights, stats, layout, knobs, place, z)


_NO_CLASSES, _NO_VALUES = np.empty(0, np.int64), np.empty(0)


class Logistic(Learner):
    """A linear model that follows the stream by plain stochastic gradient descent; classes may grow on the way."""

    targets: ClassVar[frozenset[str]] = frozenset({"classification", "regression"})

    @dataclass(frozen=True)
    class Params:
        """Settings of the linear model."""

        rate: float = 0.05
        """Step length."""
        clip: float = 5.0
        """Largest standardised value."""
        l2: float = 0.0
        """Weight decay."""
        slots: int = 64
        """Places that the categories of an open column share."""

        def __post_init__(self) -> None:
            if not (self.rate > 0 and self.clip > 0 and self.slots > 0 and 0 <= self.l2 * self.rate < 1):
                raise ValueError("rate, clip and slots must be above 0, l2 at least 0 and rate * l2 below 1")

    def __init__(self, spec: StreamSpec, params: Params | None = None, seed: int = 0) -> None:
        super().__init__(spec, params, seed)
        sizes = [
            0 if c.categories is None else self.params.slots if c.open else len(c.categories) for c in spec.columns
        ]
        places = np.array([max(1, size) for size in sizes])
        self._layout = np.array([1 + places.cumsum() - places, sizes], np.int64)
        self._knobs = np.array([self.params.rate, self.params.clip, self.params.l2])
        self._regression = spec.target == "regression"
        classes = 1 if self._regression else max(1, spec.n_classes or 0)
        self._weights = np.zeros((1 + int(places.sum()), classes))
        self._stats = np.zeros((3, len(sizes) + int(self._regression)))

    def predict(self, batch: Batch) -> Prediction:
        return self._run(batch.x, None, len(batch), self._weights.shape[1])

    def learn(self, batch: Batch, prediction: Prediction) -> None:
        self._run(batch.x, batch.y, 0, 0)

    def test_then_train(self, batch: Batch) -> Prediction:
        assert batch.y is not None
        width = 0 if self._regression else max(self._weights.shape[1], int(batch.y[:-1].max(initial=-1)) + 1)
        return self._run(batch.x, batch.y, len(batch), width)

    def _run(self, x: Any, y: Array | None, n: int, width: int) -> Prediction:
        """Test the first n rows (none, or all), with scores of that width, and train on all if there are labels."""
        x = np.ascontiguousarray(x)
        if self._regression:
            output = np.empty(n)
            y = _NO_VALUES if y is None else y
            _run_values(x, y, n > 0, self._weights, self._stats, self._layout, self._knobs, output)
            return Prediction(output)
        classes, scores = self._weights.shape[1], np.zeros((n, width))
        if y is None:
            y = _NO_CLASSES
        else:
            self._grow(int(y.max()) + 1)
        _run_classes(x, y, n > 0, self._weights, classes, self._stats, self._layout, self._knobs, scores)
        return Prediction(scores.argmax(axis=1) if n else _NO_CLASSES, scores)

    def _grow(self, classes: int) -> None:
        """A row of zero weights for every class not met before."""
        have = self._weights.shape[1]
        if classes > have:
            self._weights = np.pad(self._weights, ((0, 0), (0, classes - have)))

    def state(self) -> State:
        return {"weights": self._weights, "stats": self._stats}

    def load(self, state: State) -> None:
        self._weights, self._stats = np.array(state["weights"]), np.array(state["stats"])
