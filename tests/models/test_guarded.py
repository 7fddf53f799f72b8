"""Poisson weights, and trees that are replaced by their background tree when their error rises."""

from __future__ import annotations

from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.models.compiled import compiled
from driftway.models.guarded import poisson
from driftway.models.hoeffding import Forest, new_forest, uniform
from numpy.testing import assert_allclose, assert_array_equal


@compiled
def draws(forest: Forest, mean: float, out: Any) -> None:
    for i in range(out.shape[0]):
        out[i] = poisson(forest, 0, mean)


@compiled
def uniforms(forest: Forest, out: Any) -> None:
    for i in range(out.shape[0]):
        out[i] = uniform(forest, 0)


def splitmix(state: int, n: int) -> list[float]:
    """SplitMix64 in plain integers."""
    out, whole = [], 2**64
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) % whole
        z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % whole
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % whole
        out.append(((z ^ (z >> 31)) >> 11) * 2.0**-53)
    return out


def test_the_generator_is_splitmix64() -> None:
    forest, out = new_forest([1], [0], 2, 5), np.empty(100)
    state = int(forest.generator[0])
    uniforms(forest, out)
    assert_array_equal(out, splitmix(state, 100))


@pytest.mark.parametrize("mean", [0.5, 1.0, 6.0])
def test_weights_are_poisson(mean: float) -> None:
    out = np.empty(40_000)
    draws(new_forest([1], [0], 2, 5), mean, out)
    assert_allclose([out.mean(), out.var()], [mean, mean], rtol=0.05)
    assert_allclose((out == 0).mean(), np.exp(-mean), atol=0.01)
    assert_array_equal(out, np.floor(out))


def test_mean_zero_stands_for_weight_one_and_draws_nothing() -> None:
    forest, out = new_forest([1], [0], 2, 5), np.empty(10)
    before = forest.generator.copy()
    draws(forest, 0.0, out)
    assert_array_equal(out, np.ones(10))
    assert_array_equal(forest.generator, before)


def told(errors: np.ndarray) -> tuple[Any, np.ndarray]:
    """A guarded tree that is told of these errors row by row, and its (tree, background tree) after every row."""
    rng, n = np.random.default_rng(0), len(errors)
    x = rng.normal(size=(n, 2))
    y = (x[:, 0] > 0).astype(np.int64)
    spec = dw.StreamSpec("told", (dw.Column("a"), dw.Column("b")), classes=("n", "y"))
    learner: Any = dw.learner("hoeffding-tree", spec, grace=20, delta=0.1, adaptive=True)
    roots = np.zeros((n, 2), np.int64)
    answers = np.where(errors == 1, 1 - y, y)
    for i in range(n):
        row = slice(i, i + 1)
        learner.learn(dw.Batch(np.array([i]), x[row], 0.0, y[row]), dw.Prediction(answers[row]))
        roots[i] = learner.rows.pool.forest.root
    return learner, roots


def coin(chance: Any, n: int = 3_000) -> np.ndarray:
    """Errors with a chance for every row."""
    return (np.random.default_rng(1).random(n) < chance).astype(np.float64)


def test_a_slow_rise_starts_a_background_tree_which_then_takes_over() -> None:
    learner, roots = told(coin(np.clip(0.1 + (np.arange(3_000) - 1_000) / 4_000, 0.1, 0.6)))
    swap = int(np.flatnonzero(np.diff(roots[:, 0]))[0]) + 1
    warned = int(np.flatnonzero(roots[:, 1] >= 0)[0])
    assert 1_000 < warned < swap
    assert roots[swap, 0] == roots[swap - 1, 1]
    assert roots[swap, 1] == -1
    assert learner.telemetry()["resets"] == len(set(roots[:, 0].tolist())) - 1


def test_a_jump_replaces_the_tree_at_once(check_slots: Any) -> None:
    learner, roots = told(coin(np.where(np.arange(3_000) < 1_000, 0.1, 0.7)))
    swap = int(np.flatnonzero(np.diff(roots[:, 0]))[0]) + 1
    assert 1_000 < swap < 1_100
    check_slots(learner.rows.pool.forest)


def test_a_fall_of_the_error_changes_nothing() -> None:
    learner, roots = told(coin(np.where(np.arange(3_000) < 1_000, 0.6, 0.1)))
    assert learner.telemetry()["resets"] == 0
    assert (roots[:, 1] == -1).all()
