"""Heads in closed form on numbers worked by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from driftway.models.analytic import NotContained, Statistics
from driftway.models.analytic_inverse import Inverse
from driftway.models.cholesky_update import CholeskyFactor
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

Array = NDArray[Any]
Maker = Callable[..., Any]


def woodbury(d: int, classes: int = 0, gamma: float = 0.1) -> Inverse:
    """Every request folded at once."""
    return Inverse(d, classes, gamma, fold=1)


def factor64(d: int, classes: int = 0, gamma: float = 0.1) -> CholeskyFactor:
    return CholeskyFactor(d, classes, gamma, dtype="float64")


ENGINES: dict[str, Maker] = {"statistics": Statistics, "inverse": Inverse, "woodbury": woodbury, "factor": factor64}
every = pytest.mark.parametrize("make", ENGINES.values(), ids=list(ENGINES))


def col(*values: float) -> Array:
    return np.array(values, np.float64)[:, None]


def onehot(y: Array, classes: int) -> Array:
    return np.eye(classes)[y]


@every
def test_scalar_example(make: Maker) -> None:
    head = make(1, 1, 1.0)
    head.learn(col(1, 2, 3), col(1, 2, 2))
    assert_allclose(head.weights(), 11 / 15, rtol=1e-14)
    head.forget(col(3), col(2))
    assert_allclose(head.weights(), 5 / 6, rtol=1e-13)
    before = head.weights().copy()
    with pytest.raises(NotContained):
        head.forget(col(3), col(2))
    assert_array_equal(head.weights(), before)
    head.forget(col(1, 2), col(1, 2))
    assert_array_equal(head.weights(), [[0.0]])
    assert head.n == 0


@every
def test_a_row_never_learnt_may_pass_the_algebra(make: Maker) -> None:
    """(1.5, 1) out of A = 6: M = 0.625 > 0 and 3.75 >= gamma. Only a list of what was learnt can refuse it."""
    head = make(1, 1, 1.0)
    head.learn(col(1, 2), col(1, 2))
    head.forget(col(1.5), col(1))
    assert_allclose(head.weights(), 3.5 / 3.75, rtol=1e-13)


@every
def test_learning_from_nothing(make: Maker) -> None:
    head = make(2, 1, 1.0)
    head.learn(np.ones((1, 2)), col(1))
    assert_allclose(head.weights(), [[1 / 3], [1 / 3]], rtol=1e-14)


@every
def test_forgetting_a_class(make: Maker) -> None:
    head = make(2, 2, 1.0)
    head.learn(np.array([[1.0, 0], [1, 1], [0, 1]]), onehot(np.array([0, 0, 1]), 2))
    assert_allclose(head.weights(), [[5 / 8, -1 / 8], [1 / 8, 3 / 8]], rtol=1e-14)
    head.forget(np.array([[0.0, 1]]), onehot(np.array([1]), 2))
    assert_allclose(head.weights()[:, 0], [0.6, 0.2], rtol=1e-13)
    assert_array_equal(head.weights()[:, 1], 0.0)
    assert head.counts.tolist() == [2, 0]
    head.learn(np.array([[0.0, 1]]), onehot(np.array([1]), 2))
    assert_allclose(head.weights(), [[5 / 8, -1 / 8], [1 / 8, 3 / 8]], rtol=1e-12)


def test_the_inverse_before_and_after_a_class_went() -> None:
    """R = [[3, -1], [-1, 3]] / 8, then [[2, -1], [-1, 3]] / 5; the leverage of (0, 1) is 3 / 8, so M = 5 / 8."""
    head = Inverse(2, 2, 1.0, fold=1)
    for x, y in (([1.0, 0], 0), ([1, 1], 0), ([0, 1], 1)):
        head.learn(np.array([x], float), onehot(np.array([y]), 2))
    assert_allclose(head.times_inverse(np.eye(2)), np.array([[3, -1], [-1, 3]]) / 8, rtol=1e-13)
    head.forget(np.array([[0.0, 1]]), onehot(np.array([1]), 2))
    assert_allclose(head.times_inverse(np.eye(2)), np.array([[2, -1], [-1, 3]]) / 5, rtol=1e-13)
    assert_allclose(head.pivot, 5 / 8, rtol=1e-13)


def test_the_leverages_of_the_scalar_example() -> None:
    """h = 9 / 15, so M = 0.4 and R = 1 / 6; of the row never learnt (1.5) h = 0.375, M = 0.625."""
    head = Inverse(1, 1, 1.0, fold=1)
    for x, y in ((1, 1), (2, 2), (3, 2)):
        head.learn(col(x), col(y))
    assert_allclose(head.times_inverse(np.eye(1)), 1 / 15, rtol=1e-13)
    head.forget(col(3), col(2))
    assert_allclose([head.pivot, head.times_inverse(np.eye(1))[0, 0]], [0.4, 1 / 6], rtol=1e-13)
    head.forget(col(1.5), col(1))
    assert_allclose(head.pivot, 0.625, rtol=1e-13)


def test_the_inverse_of_the_hand_example() -> None:
    head = Inverse(2, 1, 1.0)
    head.learn(np.ones((1, 2)), col(1))
    assert_allclose(head.times_inverse(np.eye(2)), np.array([[2, -1], [-1, 2]]) / 3, rtol=1e-14)


def test_the_factor_of_the_hand_example() -> None:
    head = factor64(2, 2, 1.0)
    head.learn(np.array([[1.0, 0], [1, 1], [0, 1]]), onehot(np.array([0, 0, 1]), 2))
    assert_allclose(np.triu(head.upper).T, [[1.73205, 0], [0.57735, 1.63299]], atol=5e-6)
    head.forget(np.array([[0.0, 1]]), onehot(np.array([1]), 2))
    assert_allclose(np.triu(head.upper).T, [[1.73205, 0], [0.57735, 1.29099]], atol=5e-6)
