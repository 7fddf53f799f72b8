"""Real logs as tracks of driving scenes: their length, place, speed, and what scenes make of them."""

from __future__ import annotations

import driftway as dw
import numpy as np
import pytest
from driftway.streams.driving import PAST, scenes
from driftway.streams.driving_logs import tracks


def staged(name: str) -> list:
    try:
        return tracks(name, 60)
    except dw.InputError as missing:
        if "not on" in str(missing) or "none of" in str(missing):
            pytest.skip(str(missing))
        raise


@pytest.mark.parametrize(("name", "fastest"), [("eth-ucy", 4.0), ("lyft", 35.0)])
def test_tracks(name: str, fastest: float) -> None:
    found = staged(name)
    assert len(found) > 15
    for track in found:
        assert track.states.shape == (70, 4)
        assert np.isfinite(track.states).all()
        np.testing.assert_allclose(track.states[PAST, :3], 0.0, atol=1e-12)
        assert 0 <= track.states[:, 3].min() <= track.states[:, 3].max() < fastest
        assert 0.2 < min(track.size) <= max(track.size) < 20
    assert max(track.states[:, 3].max() for track in found) > 1.0


def test_scenes_replay_them() -> None:
    logs = staged("eth-ucy")
    many = scenes(range(40), logs=logs)
    assert sum(int((s.kinds == 1).sum()) for s in many) > 10
    assert all(np.isfinite(s.observations).all() for s in many)


def test_unknown_log() -> None:
    with pytest.raises(dw.InputError, match="eth-ucy"):
        tracks("highway")
