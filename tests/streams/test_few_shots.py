"""The feature stream gives the table of our note on CSFA, with the calibration written out here."""

from __future__ import annotations

import numpy as np
import pytest
from driftway.streams import few_shot_features


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def measured(shots: int, lam: float, seeds: int = 10) -> np.ndarray:
    """Base accuracy, new accuracy, their harmonic mean (in %), cosine of calibrated rows and true means."""
    found = []
    for seed in range(seeds):
        made = few_shot_features(shots, seed)
        base = unit(made.prototypes)
        raw = unit(np.stack([made.support[made.support_y == c].mean(0) for c in range(20, 30)]))
        weights = np.exp(16 * raw @ base.T)
        mixture = unit(weights / weights.sum(1, keepdims=True) @ base)
        fused = (1 - lam) * raw + lam * mixture
        rows = np.concatenate([base, unit(fused)])
        right = (unit(made.queries) @ rows.T).argmax(1) == made.queries_y
        b, n = right[made.queries_y < 20].mean(), right[made.queries_y >= 20].mean()
        cosine = (unit(fused) * unit(made.truth)).sum(1).mean()
        found.append((100 * b, 100 * n, 200 * b * n / (b + n), 100 * cosine))
    return np.mean(found, axis=0)


TABLE = {
    (1, 0.0): (81.0, 2.1, 4.0, 56),
    (1, 0.5): (76.2, 17.5, 28.3, 84),
    (5, 0.0): (78.8, 21.6, 33.8, 83),
    (5, 0.1): (78.0, 25.7, 38.4, 86),
    (5, 0.5): (73.0, 43.0, 54.1, 93),
    (20, 0.0): (76.3, 52.6, 62.2, 95),
    (20, 0.5): (72.1, 62.4, 66.9, 96),
}


@pytest.mark.parametrize(("shots", "lam"), TABLE)
def test_table_of_the_note(shots: int, lam: float) -> None:
    np.testing.assert_allclose(measured(shots, lam), TABLE[shots, lam], atol=2.0)


def test_shapes_and_seed() -> None:
    made = few_shot_features(3, seed=4)
    assert made.support.shape == (30, 64)
    assert made.queries.shape == (1500, 64)
    assert np.bincount(made.support_y).tolist() == [0] * 20 + [3] * 10
    np.testing.assert_array_equal(few_shot_features(3, seed=4).queries, made.queries)
    assert not np.array_equal(few_shot_features(3, seed=5).queries, made.queries)
