"""Online softmax regression against a plain reference, and its edges."""

from __future__ import annotations

from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt.state import all_finite, state_bytes
from numpy.testing import assert_allclose, assert_array_equal

MIXED = dw.StreamSpec(
    "mixed",
    (dw.Column("a"), dw.Column("colour", ("red", "green", "blue")), dw.Column("b"), dw.Column("town", (), open=True)),
    classes=("x", "y", "z"),
)
NAN = float("nan")


def mixed_rows(n: int, seed: int = 0, missing: float = 0.1) -> dw.Batch:
    rng = np.random.default_rng(seed)
    x = np.c_[rng.normal(3, 2, n), rng.integers(0, 3, n), rng.exponential(9, n), rng.integers(0, 500, n)]
    y = (x[:, 0] > 3).astype(np.int64) + (x[:, 1] == 2)
    x[rng.random(x.shape) < missing] = NAN
    return dw.Batch(np.arange(n), x, 0.0, y)


class Reference:
    """The same model over dense vectors, in plain NumPy."""

    def __init__(self, rate: float, l2: float, slots: int) -> None:
        self.rate, self.l2, self.slots = rate, l2, slots
        self.met: dict[int, list[float]] = {0: [], 2: []}
        self.weights = np.zeros((1 + 1 + 3 + 1 + slots, 3))

    def encode(self, x: Any) -> Any:
        z = np.zeros(len(self.weights))
        z[0] = 1
        for j, place in ((0, 1), (2, 5)):
            met = self.met[j]
            if not np.isnan(x[j]) and len(met) and np.std(met) > 0:
                z[place] = np.clip((x[j] - np.mean(met)) / np.std(met), -5, 5)
        if not np.isnan(x[1]):
            z[2 + int(x[1])] = 1
        if not np.isnan(x[3]):
            z[6 + int(x[3]) % self.slots] = 1
        return z

    def scores(self, x: Any) -> Any:
        e = np.exp(self.encode(x) @ self.weights)
        return e / e.sum()

    def learn(self, x: Any, y: int) -> None:
        for j in self.met:
            if not np.isnan(x[j]):
                self.met[j].append(x[j])
        z, p = self.encode(x), self.scores(x)
        p[y] -= 1
        decayed = (z != 0) * self.l2
        decayed[0] = 0  # never the bias
        self.weights -= self.rate * (np.outer(z, p) + decayed[:, None] * self.weights)


@pytest.mark.parametrize("l2", [0.0, 0.01])
def test_equals_the_dense_reference(l2: float) -> None:
    batch = mixed_rows(300)
    learner, plain = dw.learner("logistic", MIXED, rate=0.1, l2=l2, slots=7), Reference(0.1, l2, 7)
    scores = learner.test_then_train(batch).scores
    assert scores is not None
    assert batch.y is not None
    for i, x in enumerate(batch.x):
        assert_allclose(scores[i], plain.scores(x), rtol=1e-9)
        plain.learn(x, batch.y[i])
    assert_allclose(learner.state()["weights"], plain.weights, atol=1e-9)


def test_learns_a_linear_concept() -> None:
    batch = mixed_rows(4000, missing=0)
    assert (dw.learner("logistic", MIXED).test_then_train(batch).output == batch.y)[2000:].mean() > 0.9


def test_regression_follows_a_line_and_does_not_diverge_in_many_columns() -> None:
    rng = np.random.default_rng(1)
    n, d = 3000, 200
    spec = dw.StreamSpec("line", tuple(dw.Column(f"c{j}") for j in range(d)), target="regression")
    x = rng.normal(5, 3, (n, d))
    y = 1000 + x @ rng.normal(size=d)
    output = dw.learner("logistic", spec, rate=0.2).test_then_train(dw.Batch(np.arange(n), x, 0.0, y)).output
    assert np.abs(output - y)[-500:].mean() < 0.1 * np.abs(y - y.mean()).mean()


@pytest.mark.parametrize("spec", [MIXED, dw.StreamSpec("r", MIXED.columns, target="regression")])
def test_extreme_numbers_leave_the_state_finite(spec: dw.StreamSpec) -> None:
    learner = dw.learner("logistic", spec)
    batch = mixed_rows(60)
    x = np.array(batch.x)
    x[::3, 0], x[1::3, 0], x[::2, 2] = 1.7e308, -1.7e308, 5e-324
    y: Any = batch.y
    if spec.target == "regression":
        y = np.where(np.arange(60) % 2, 1.7e308, -1.7e308)
    prediction = learner.test_then_train(dw.Batch(batch.ids, x, 0.0, y))
    assert all_finite(learner.state()) is None
    assert np.isfinite(prediction.output).all()


def test_open_columns_take_bounded_memory() -> None:
    learner = dw.learner("logistic", MIXED)
    learner.test_then_train(mixed_rows(50))
    size = state_bytes(learner.state())
    batch = mixed_rows(500, seed=4)
    x = np.array(batch.x)
    x[:, 3] = np.arange(500) * 1e6
    learner.test_then_train(dw.Batch(batch.ids, x, 0.0, batch.y))
    assert state_bytes(learner.state()) == size


def test_a_new_class_starts_from_zero_weights() -> None:
    spec = dw.StreamSpec("open", (dw.Column("a"),))
    learner = dw.learner("logistic", spec)
    x = np.linspace(-1, 1, 20)[:, None]
    learner.learn(dw.Batch(np.arange(20), x, 0.0, np.arange(20) % 2), dw.Prediction(np.zeros(20)))
    before = learner.state()["weights"].copy()
    learner._grow(4)  # type: ignore[attr-defined]
    assert_array_equal(learner.state()["weights"], np.pad(before, ((0, 0), (0, 2))))
