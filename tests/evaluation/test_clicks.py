"""Click scores against pairs counted one by one, and scikit-learn's AUC."""

from __future__ import annotations

import numpy as np
import pytest
from driftway.evaluation.clicks import auc, by_slot, calibration, click_scores, gauc
from sklearn.metrics import roc_auc_score


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, n), rng.integers(0, 9, n) / 8, rng.integers(0, 6, n)


def test_auc_is_the_share_of_pairs() -> None:
    y, p, _ = drawn(60)
    pairs = [(p[i] > p[j]) + 0.5 * (p[i] == p[j]) for i in np.flatnonzero(y) for j in np.flatnonzero(y == 0)]
    assert auc(y, p) == pytest.approx(np.mean(pairs))
    assert auc(y, p) == pytest.approx(roc_auc_score(y, p))
    assert auc(y, 1 - p) == pytest.approx(1 - np.mean(pairs))


def test_gauc_drops_users_of_one_class_and_weighs_by_rows() -> None:
    y, p, user = drawn(200)
    y[user == 2] = 1
    parts = [(roc_auc_score(y[user == u], p[user == u]), (user == u).sum()) for u in (0, 1, 3, 4, 5)]
    assert gauc(y, p, user) == pytest.approx(sum(a * n for a, n in parts) / sum(n for _, n in parts))
    assert gauc(y, p, np.arange(200)) is None
    assert gauc(y, p, np.zeros(200)) == pytest.approx(auc(y, p))


def test_what_is_not_defined_is_none() -> None:
    none = dict.fromkeys(("auc", "gauc", "logloss", "calibration"))
    assert click_scores([], [], []) == none
    assert calibration([0, 0], [0.1, 0.2]) is None


def test_slots_are_scored_alone() -> None:
    y, p, user = drawn(300)
    slot = np.repeat([7, 3, 5], 100)
    found = by_slot(y, p, slot, user)
    assert list(found) == [3, 5, 7]
    assert found[3] == click_scores(y[100:200], p[100:200], user[100:200])
    assert by_slot(y, p, slot)[3]["gauc"] is None
    assert found[7]["logloss"] == pytest.approx(
        -np.mean(np.log(np.where(y == 1, p, 1 - p).clip(1e-15))[:100]), rel=1e-6
    )
