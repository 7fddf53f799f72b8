"""Metrics against hand-worked numbers, scikit-learn and river."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from driftway.evaluation import metrics
from river import metrics as river_metrics
from sklearn import metrics as sk_metrics

Y, OUTPUT = [0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0]


def random_answers(seed: int, classes: int = 4, rows: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, rows)
    scores = rng.dirichlet(np.ones(classes), rows)
    scores[np.arange(rows), y] += 0.3
    scores /= scores.sum(axis=1, keepdims=True)
    return y, scores.argmax(axis=1), scores


def test_the_examples() -> None:
    found = doctest.testmod(metrics)
    assert found.failed == 0
    assert found.attempted > 12


def test_the_worked_example_of_the_prequential_note() -> None:
    assert metrics.accuracy(Y, OUTPUT) == pytest.approx(4 / 6)
    assert metrics.kappa(Y, OUTPUT) == pytest.approx(1 / 3)
    assert metrics.kappa_t(Y, OUTPUT, no_change=[0, *Y[:-1]]) == pytest.approx(0.0)
    counted_first, asked_first = [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]
    assert metrics.kappa_m(Y, OUTPUT, majority=counted_first) == pytest.approx(0.0)
    assert metrics.kappa_m(Y, OUTPUT, majority=asked_first) == pytest.approx(0.5)
    assert metrics.majority_answers([1, 1, 0, 0, 0]).tolist() == [-1, 1, 1, 1, 0]


@pytest.mark.parametrize("seed", range(4))
def test_classification_against_scikit_learn_and_river(seed: int) -> None:
    y, output, scores = random_answers(seed)
    assert metrics.accuracy(y, output) == pytest.approx(sk_metrics.accuracy_score(y, output))
    assert metrics.balanced_accuracy(y, output) == pytest.approx(sk_metrics.balanced_accuracy_score(y, output))
    assert metrics.kappa(y, output) == pytest.approx(sk_metrics.cohen_kappa_score(y, output))
    assert metrics.logloss(y, scores) == pytest.approx(sk_metrics.log_loss(y, scores))
    theirs = river_metrics.CohenKappa(), river_metrics.CrossEntropy()
    for label, answer, p in zip(y.tolist(), output.tolist(), scores, strict=True):
        theirs[0].update(label, answer)
        theirs[1].update(label, dict(enumerate(p.tolist())))
    assert metrics.kappa(y, output) == pytest.approx(theirs[0].get())
    assert metrics.logloss(y, scores) == pytest.approx(theirs[1].get())


def test_regression_against_scikit_learn() -> None:
    rng = np.random.default_rng(5)
    y, output = rng.normal(size=100), rng.normal(size=100)
    assert metrics.mae(y, output) == pytest.approx(sk_metrics.mean_absolute_error(y, output))
    assert metrics.rmse(y, output) == pytest.approx(sk_metrics.root_mean_squared_error(y, output))


def test_what_is_not_defined_is_none() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    for metric in (metrics.accuracy, metrics.balanced_accuracy, metrics.kappa, metrics.mae, metrics.rmse):
        assert metric(nothing, nothing) is None
    assert metrics.kappa_m(nothing, nothing) is None
    assert metrics.logloss(nothing, np.zeros((0, 2))) is None
    assert metrics.kappa([1, 1], [1, 1]) is None
    assert metrics.kappa_t([1, 1], [1, 1], no_change=[1, 1]) is None


def test_scores_that_are_no_numbers_are_clipped() -> None:
    worst = -np.log(1e-15)
    for bad in (np.nan, np.inf, -np.inf, -2.0, 0.0):
        assert metrics.logloss([1], [[0.5, bad]]) == pytest.approx(worst)
    assert metrics.logloss([0], [[1e9, 0.5]]) == pytest.approx(0.0, abs=1e-14)


def test_an_answer_of_no_class_is_wrong() -> None:
    assert metrics.accuracy([0, 1], [-1, 1]) == 0.5
    assert metrics.balanced_accuracy([0, 1], [-1, 1]) == 0.5
    assert metrics.kappa([0, 1], [-1, 1]) == pytest.approx((0.5 - 0.25) / 0.75)


def test_base_and_new_accuracy_are_apart() -> None:
    y, output = [0, 0, 1, 2, 2, 3], [0, 2, -1, 2, 0, 3]
    b, n = metrics.base_accuracy(y, output, 2), metrics.new_accuracy(y, output, 2)
    assert b == pytest.approx(1 / 3)
    assert n == pytest.approx(2 / 3)
    assert metrics.harmonic_mean(b, n) == pytest.approx(4 / 9)
    assert metrics.new_accuracy(y, output, 4) is None
    assert metrics.base_accuracy([], [], 4) is None
    assert metrics.harmonic_mean(b, None) is None
    assert metrics.harmonic_mean(0.0, 1.0) == metrics.harmonic_mean(0.0, 0.0) == 0.0


def test_the_table_says_what_it_must() -> None:
    for name, metric in metrics.METRICS.items():
        assert name == metric.name
        assert metric.direction in {"higher", "lower", "none"}
        assert all((metric.meaning, metric.formula, metric.citation))
