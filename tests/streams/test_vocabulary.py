"""Vocabularies: entries are members, and they cover what there is."""

from __future__ import annotations

import numpy as np
import pytest
from driftway.models.trajectories import pose_features
from driftway.streams.kinematics import random_drives
from driftway.streams.vocabulary import vocabulary

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
