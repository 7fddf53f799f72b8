"""Metrics of forgetting, on numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
from driftway.evaluation.unlearning import Standing, agreement, average_gap, membership_auc, relative_distance


def test_distance() -> None:
    assert relative_distance(np.array([[3.0, 4.0]]), np.zeros((1, 2))) == 5.0
    assert relative_distance(np.array([[0.0, 4.0]]), np.array([[3.0, 4.0]])) == 0.6


def test_agreement() -> None:
    one, other = np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([[0.8, 0.2], [0.7, 0.3]])
    share, largest = agreement(one, other)
    assert share == 0.5
    assert math.isclose(largest, 0.3)
    assert agreement(one[:0], other[:0]) == (1.0, 0.0)


def test_membership_auc_is_the_share_of_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 40) / 9, rng.integers(0, 9, 30) / 9
    pairs = (a[:, None] < b).mean() + 0.5 * (a[:, None] == b).mean()
    assert math.isclose(membership_auc(a, b), pairs)
    assert membership_auc(np.zeros(3), np.ones(4)) == 1.0
    assert math.isnan(membership_auc(a[:0], b))


def test_standing_and_gap() -> None:
    p = np.array([[0.8, 0.2], [0.3, 0.7]])
    y = np.array([0, 0])
    one = Standing.of(p, p, p, [y, y, 1 - y])
    assert (one.retained, one.forgotten, one.test) == (0.5, 0.5, 0.5)
    assert one.membership == 0.75
    nothing = Standing.of(p, p[:0], p, [y, y[:0], y])
    assert math.isnan(nothing.forgotten)
    assert math.isnan(nothing.membership)
    assert math.isclose(average_gap(one, Standing(0.7, 0.4, 0.5, 0.9)), (0.2 + 0.1 + 0.15) / 4)
    assert math.isclose(average_gap(nothing, Standing(0.7, 0.4, 0.5, 0.9)), 0.1)
