"""What a planner knows of a trajectory: its poses as numbers, and the manoeuvre that it is."""

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
