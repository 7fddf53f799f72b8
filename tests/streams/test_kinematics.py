"""The bicycle model and lanes: circles are driven as circles, lane coordinates there and back."""

from __future__ import annotations

import numpy as np
import pytest
from driftway.streams.kinematics import drive, from_lane, placed, random_drives, seen_from, to_lane


def test_steady_turn_is_a_circle() -> None:
    states = drive(np.array([[0.0, 0, 0, 5.0]]), np.zeros((1, 40)), np.full((1, 40), 0.05))
    assert states.shape == (1, 41, 4)
    assert states[0, -1, 2] == pytest.approx(20 * 0.05)
    along, across = to_lane(states[0, :, :2], 0.05)
    np.testing.assert_allclose(along, 0.5 * np.arange(41), rtol=0.01)
    assert np.abs(across).max() < 0.5, "a step is straight: 0.1 s of it leaves the circle by little"


def test_speed_is_held_between_0_and_14() -> None:
    states = drive(np.array([[0.0, 0, 0, 1.0], [0, 0, 0, 13.0]]), np.repeat([[-4.0], [2.0]], 40, 1), np.zeros((2, 40)))
    assert states[0, -1, 3] == 0.0
    assert states[1, -1, 3] == 14.0
    assert states[0, 1, 3] == pytest.approx(0.6)


@pytest.mark.parametrize("curvature", [0.0, 1e-12, 0.007, 0.07, -0.05])
def test_lane_coordinates_there_and_back(curvature: float) -> None:
    rng = np.random.default_rng(0)
    s, d = rng.uniform(-30, 35, 100), rng.uniform(-5, 5, 100)
    along, across = to_lane(from_lane(s, d, curvature)[:, :2], curvature)
    np.testing.assert_allclose(along, s, atol=1e-9)
    np.testing.assert_allclose(across, d, atol=1e-9)


def test_frames_there_and_back() -> None:
    states = random_drives(5)
    pose = np.array([3.0, -2.0, 0.7])
    np.testing.assert_allclose(seen_from(placed(states, pose), pose), states, atol=1e-12)
    assert placed(states, pose)[:, 0, :3].tolist() == [pose.tolist()] * 5


def test_random_drives_are_a_function_of_the_seed() -> None:
    a, b = random_drives(20, 1), random_drives(20, 1)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, random_drives(20, 2))
    assert a[:, :, 3].min() >= 0
    assert a[:, :, 3].max() <= 14
