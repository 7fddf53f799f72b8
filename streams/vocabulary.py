"""Vocabularies of trajectories: a fixed set of plans, chosen by k-means from many that can be driven.

Source: Chen et al., VADv2, arXiv 2402.13243, 2024, and Li et al., Hydra-MDP, arXiv 2406.06978, 2024: planning as
choice from a fixed set. Ours: a centre is replaced by its nearest member, so that every entry can be driven; poses
are compared as x, y and 5 m per radian of heading, every 0.5 s.
"""

from __future__ import annotations

import numpy as np

from .events import Array

POSES = np.arange(5, 41, 5)
SCALE = (1.0, 1.0, 5.0)


def vocabulary(trajectories: Array, size: int, *, rounds: int = 25, seed: int = 0) -> Array:
    """float64[size, 41, 4]: members of ``trajectories`` nearest to the centres of k-means over their poses.

    Members are distinct, sorted by their heading at the end. Raises ``ValueError`` for fewer trajectories than that.
    """
    if not 1 <= size <= len(trajectories):
        raise ValueError(f"a vocabulary of {size} needs as many trajectories, there are {len(trajectories)}")
    x = _poses(trajectories)
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


def _poses(trajectories: Array) -> Array:
    return (trajectories[:, POSES, :3] * SCALE).reshape(len(trajectories), -1)
