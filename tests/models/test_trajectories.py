"""Vocabularies: entries are members, they cover what there is, manoeuvres have names."""

from __future__ import annotations

import numpy as np
import pytest
from driftway.models.trajectories import manoeuvres, pose_features, vocabulary
from driftway.streams.kinematics import random_drives

DRIVES = random_drives(800)


def test_entries_are_distinct_members() -> None:
    entries = vocabulary(DRIVES, 16)
    assert entries.shape == (16, 41, 4)
    known = {row.tobytes() for row in DRIVES}
    assert len({row.tobytes() for row in entries} & known) == 16
    assert np.array_equal(entries, vocabulary(DRIVES, 16))


def test_all_may_be_entries() -> None:
    assert len(vocabulary(DRIVES[:8], 8)) == 8
    with pytest.raises(ValueError, match="there are 8"):
        vocabulary(DRIVES[:8], 9)


def test_entries_lie_nearer_than_random_ones() -> None:
    x = pose_features(DRIVES)

    def gap(entries: np.ndarray) -> float:
        apart = np.linalg.norm(x[:, None] - pose_features(entries), axis=-1)
        return float(apart.min(1).mean())

    assert gap(vocabulary(DRIVES, 32)) < 0.95 * gap(DRIVES[:32])


def test_manoeuvres() -> None:
    ends = np.array([[10, 3, 0.3], [10, -3, -0.3], [30, 0, 0.25], [1, 0, 0.0], [20, 5, 0.5]])
    states = np.zeros((5, 41, 4))
    states[:, -1, :3] = ends
    assert manoeuvres(states).tolist() == [0, 2, 1, 1, 0]
    assert manoeuvres(states, stop=True).tolist() == [0, 2, 1, 3, 0]
    assert manoeuvres(states, far=16.0).tolist() == [0, 2, 4, 1, 3]
