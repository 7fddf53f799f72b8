"""Manoeuvres have names."""

from __future__ import annotations

import numpy as np
from driftway.models.trajectories import manoeuvres


def test_manoeuvres() -> None:
    ends = np.array([[10, 3, 0.3], [10, -3, -0.3], [30, 0, 0.25], [1, 0, 0.0], [20, 5, 0.5]])
    states = np.zeros((5, 41, 4))
    states[:, -1, :3] = ends
    assert manoeuvres(states).tolist() == [0, 2, 1, 1, 0]
    assert manoeuvres(states, stop=True).tolist() == [0, 2, 1, 3, 0]
    assert manoeuvres(states, far=16.0).tolist() == [0, 2, 4, 1, 3]
