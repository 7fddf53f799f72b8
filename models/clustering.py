"""Clusters of the entries of a fixed vocabulary, built once: by medoids, by complete linkage or by thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Method = Literal["kmedoids", "complete", "rule"]


def build_clusters(
    features: Array | None = None,
    k: int | None = None,
    method: Method = "kmedoids",
    *,
    distance: Array | None = None,
    edges: Sequence[Sequence[float]] = (),
) -> Array:
    """int64[M]: each entry's cluster, numbered from 0 in the order in which they first come.

    features: numbers[M, D], compared by Euclidean distance; or distance: numbers[M, M], symmetric. kmedoids: k
    clusters around entries, each entry with the nearest medoid; greedy start, then medoids and members in turn, so
    the same input gives the same clusters. complete: complete linkage, cut into (at most) k. rule: thresholds
    ``edges``, rising, for each column of the features; entries of the same cell are a cluster, and k is not asked.

    Raises ``ValueError`` for arrays that do not fit, for k outside 2..M, and where a rule leaves one cluster.

    >>> build_clusters(np.array([[0.0], [9.0], [0.5], [9.5]]), 2).tolist()
    [0, 1, 0, 1]
    """
    if method == "rule":
        ids = _cells(features, edges)
        if ids.max() == 0:
            raise ValueError("the thresholds leave one cluster, whose entropy would be zero whatever the scores")
        return ids
    apart = _distances(features, distance)
    if k is None or not 2 <= k <= len(apart):
        raise ValueError(f"k must lie in 2..{len(apart)}, the number of entries; it is {k}")
    if method == "kmedoids":
        return _in_order(_medoids(apart, k))
    if method == "complete":
        return _in_order(_linked(apart, k))
    raise ValueError(f"method must be kmedoids, complete or rule, not {method!r}")


def _distances(features: Array | None, distance: Array | None) -> Array:
    if (features is None) == (distance is None):
        raise ValueError("give either features or distance")
    if distance is not None:
        apart = np.asarray(distance, np.float64)
        if apart.ndim != 2 or apart.shape[0] != apart.shape[1] or not np.allclose(apart, apart.T):
            raise ValueError(f"distance must be a symmetric matrix, it is of shape {list(apart.shape)}")
        return apart
    x = np.asarray(features, np.float64)
    if x.ndim != 2:
        raise ValueError(f"features must be [entries, columns], they are of shape {list(x.shape)}")
    return np.stack([np.sqrt(((x - row) ** 2).sum(1)) for row in x])


def _medoids(apart: Array, k: int) -> Array:
    chosen = [int(apart.sum(1).argmin())]
    nearest = apart[chosen[0]].copy()
    while len(chosen) < k:
        gain = np.maximum(nearest - apart, 0.0).sum(1)
        gain[chosen] = -1.0
        chosen.append(int(gain.argmax()))
        nearest = np.minimum(nearest, apart[chosen[-1]])
    medoids = np.array(chosen)
    for _ in range(100):
        ids = apart[medoids].argmin(0)
        ids[medoids] = np.arange(k)
        moved = np.array([_centre(apart, np.flatnonzero(ids == j)) for j in range(k)])
        if np.array_equal(moved, medoids):
            break
        medoids = moved
    return ids


def _centre(apart: Array, members: Array) -> int:
    return int(members[apart[np.ix_(members, members)].sum(1).argmin()])


def _linked(apart: Array, k: int) -> Array:
    from scipy.cluster.hierarchy import fcluster, linkage

    pairs = apart[np.triu_indices(len(apart), 1)]
    return np.asarray(fcluster(linkage(pairs, "complete"), k, "maxclust"))


def _cells(features: Array | None, edges: Sequence[Sequence[float]]) -> Array:
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or len(edges) != x.shape[1]:
        raise ValueError("a rule needs features [entries, columns] and thresholds for each column")
    places = [np.searchsorted(np.asarray(cuts), column) for cuts, column in zip(edges, x.T, strict=True)]
    return _in_order(np.ravel_multi_index(places, [len(cuts) + 1 for cuts in edges]))


def _in_order(ids: Array) -> Array:
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)
