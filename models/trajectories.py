"""Vocabularies of trajectories: a fixed set of plans, chosen by k-means from many that can be driven.

Source: Chen et al., VADv2, arXiv 2402.13243, 2024, and Li et al., Hydra-MDP, arXiv 2406.06978, 2024: planning as
choice from a fixed set. Ours: a centre is replaced by its nearest member, so that every entry can be driven.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

POSES = np.arange(5, 41, 5)
"""Steps of 0.1 s at which trajectories are compared: eight poses, every 0.5 s."""
HEADING_SCALE = 5.0
"""Metres that a radian counts."""
TURNED, MOVED = 0.25, 2.0


def pose_features(trajectories: Array) -> Array:
    """float64[n, 24]: x, y and 5 times the heading at eight poses of float64[n, 41, >=3]."""
    poses = trajectories[:, POSES, :3] * (1.0, 1.0, HEADING_SCALE)
    return poses.reshape(len(trajectories), -1)


def vocabulary(trajectories: Array, size: int, *, rounds: int = 25, seed: int = 0) -> Array:
    """float64[size, 41, 4]: members of ``trajectories`` nearest to the centres of k-means over their poses.

    Members are distinct, sorted by their heading at the end. Raises ``ValueError`` for fewer trajectories than that.
    """
    if not 1 <= size <= len(trajectories):
        raise ValueError(f"a vocabulary of {size} needs as many trajectories, there are {len(trajectories)}")
    x = pose_features(trajectories)
    rng = np.random.default_rng(seed)
    centres = x[rng.choice(len(x), size, replace=False)]
    for _ in range(rounds):
        ids = _squared(x, centres).argmin(1)
        counts = np.bincount(ids, minlength=size)
        sums = np.stack([np.bincount(ids, column, size) for column in x.T], -1)
        centres = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)
    apart = _squared(x, centres)
    chosen: list[int] = []
    for column in apart.T:
        column[chosen] = np.inf
        chosen.append(int(column.argmin()))
    members = trajectories[chosen]
    return members[np.lexsort((members[:, -1, 0], members[:, -1, 2]))]


def _squared(x: Array, centres: Array) -> Array:
    apart = (x**2).sum(1)[:, None] - 2 * x @ centres.T + (centres**2).sum(1)
    return np.maximum(apart, 0.0)


def manoeuvres(trajectories: Array, *, stop: bool = False, far: float | None = None) -> Array:
    """int64[M], the manoeuvre of a trajectory by its heading after 4 s: 0 left (above 0.25 rad), 1 straight, 2 right.

    stop: those that move less than 2 m are 3. far: instead, left, straight and right are told apart by whether the end
    is farther away than this (m): 3, 4 and 5 are the farther ones.
    """
    heading = trajectories[:, -1, 2]
    distance = np.hypot(trajectories[:, -1, 0], trajectories[:, -1, 1])
    ids = np.where(heading > TURNED, 0, np.where(heading < -TURNED, 2, 1))
    if far is not None:
        return ids + 3 * (distance > far)
    return np.where(distance < MOVED, 3, ids) if stop else ids
