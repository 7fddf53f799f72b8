"""Clusters of a vocabulary: groups that are there are found, whatever the method."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from driftway.models.clustering import build_clusters

RNG = np.random.default_rng(0)
TRUE = RNG.integers(0, 4, 60)
POINTS = np.array([[0, 0], [9, 0], [0, 9], [9, 9.0]])[TRUE] + RNG.normal(size=(60, 2))
APART = np.linalg.norm(POINTS[:, None] - POINTS, axis=-1)


def same_groups(a: Any, b: Any) -> bool:
    return bool(np.array_equal(np.equal.outer(a, a), np.equal.outer(b, b)))


@pytest.mark.parametrize("method", ["kmedoids", "complete"])
def test_groups_are_found(method: Any) -> None:
    ids = build_clusters(POINTS, 4, method)
    assert ids.dtype == np.int64
    assert same_groups(ids, TRUE)
    assert ids[0] == 0
    assert np.array_equal(build_clusters(k=4, method=method, distance=APART), ids)


def test_as_many_clusters_as_entries_even_if_some_are_equal() -> None:
    same = np.zeros((5, 2))
    assert sorted(build_clusters(same, 5).tolist()) == list(range(5))


def test_rule_by_thresholds() -> None:
    heading_and_distance = np.array([[0.0, 3], [0.5, 30], [-0.5, 3], [0.1, 30], [0.4, 40]])
    edges = [(-0.25, 0.25), (16.0,)]
    assert build_clusters(heading_and_distance, method="rule", edges=edges).tolist() == [0, 1, 2, 3, 1]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"features": POINTS, "k": 1}, "2..60"),
        ({"features": POINTS, "k": None}, "2..60"),
        ({"k": 3}, "either"),
        ({"features": POINTS, "k": 3, "method": "best"}, "method"),
        ({"features": POINTS[:, 0], "k": 3}, "columns"),
        ({"distance": APART + np.triu(APART), "k": 3}, "symmetric"),
        ({"features": POINTS, "method": "rule", "edges": [(99.0,), (99.0,)]}, "one cluster"),
        ({"features": POINTS, "method": "rule", "edges": [(1.0,)]}, "each column"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build_clusters(**given)
