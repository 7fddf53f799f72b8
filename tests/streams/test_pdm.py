"""The PDM score: the note's hand examples, and small situations whose outcome is plain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from driftway.streams.pdm import (
    EGO,
    comfort,
    contacts,
    corners,
    drivable_compliance,
    ego_progress,
    no_collision,
    overlap,
    pdm_score,
    time_to_collision,
)

SIZE = np.array([[4.6, 1.9]])
STATIC, TRAFFIC = np.array([True]), np.array([False])


def moving(x: float, speed: float, y: float = 0.0, heading: float = 0.0, steps: int = 50) -> Any:
    """One log [1, steps, 4] of a steady straight drive."""
    t = 0.1 * np.arange(steps)
    direction = np.array([np.cos(heading), np.sin(heading)])
    place = np.array([x, y]) + speed * t[:, None] * direction
    return np.column_stack([place, np.full(steps, heading), np.full(steps, speed)])[None]


def plan(speed: float, **place: float) -> Any:
    return moving(place.pop("x", 0.0), speed, **place, steps=41)  # type: ignore[arg-type]


def nc(driven: Any, other: Any, static: Any = TRAFFIC, spread: bool = False) -> float:
    return float(no_collision(driven, other, SIZE, static, np.full(driven.shape[:2], spread))[0])


def ttc(driven: Any, other: Any, spread: bool = False) -> float:
    return float(time_to_collision(driven, other, SIZE, np.full(driven.shape[:2], spread))[0])


@pytest.mark.parametrize(
    ("terms", "score"),
    [
        ((1, 1, 1, 0.8, 1), 11 / 12),
        ((1, 1, 0, 0.8, 1), 0.5),
        ((0.5, 1, 1, 0.8, 1), 11 / 24),
        ((1, 0, 1, 0.8, 1), 0.0),
    ],
)
def test_score_of_hand_examples(terms: tuple[float, ...], score: float) -> None:
    assert float(pdm_score(*np.array(terms, np.float64))) == pytest.approx(score)


def test_progress_is_a_share_of_what_could_be_had() -> None:
    progress, gate = np.array([20.0, 40.0, 40.0, -3.0, 60.0]), np.array([1.0, 1.0, 0.5, 1.0, 1.0])
    assert ego_progress(progress, gate, 40.0).tolist() == [0.5, 1.0, 0.5, 0.0, 1.0]


def test_parked_car_has_all_progress_where_none_is_to_be_had() -> None:
    assert ego_progress(np.array([0.0, 4.0, 4.0]), np.array([1.0, 1.0, 0.0]), 5.0).tolist() == [1.0, 1.0, 0.0]
    assert ego_progress(np.array([0.0]), np.array([1.0]), 5.1).tolist() == [0.0]


def test_who_is_hit_from_behind_is_not_at_fault() -> None:
    assert contacts(plan(2.0), moving(-15, 10.0), SIZE).any()
    assert nc(plan(2.0), moving(-15, 10.0)) == 1.0
    assert ttc(plan(2.0), moving(-15, 10.0)) == 1.0


def test_who_drives_into_another_is_at_fault() -> None:
    assert nc(plan(10.0), moving(20, 2.0)) == 0.0
    assert nc(plan(10.0), moving(20, 0.0)) == 0.0
    assert nc(plan(10.0), moving(20, 0.0), STATIC) == 0.5
    assert nc(plan(10.0), moving(60, 2.0)) == 1.0


def test_who_stands_is_not_at_fault() -> None:
    assert nc(plan(0.0), moving(15, 8.0, heading=np.pi)) == 1.0
    assert ttc(plan(0.0), moving(15, 8.0, heading=np.pi)) == 1.0
    assert nc(plan(0.06), moving(15, 8.0, heading=np.pi)) == 0.0


def test_hit_at_the_side_counts_only_off_the_road_or_on_several_lanes() -> None:
    crossing = moving(8, 4.0, y=-9.0, heading=np.pi / 2)
    driven = plan(5.0)
    assert contacts(driven, crossing, SIZE).any()
    assert nc(driven, crossing) == 1.0
    assert nc(driven, crossing, spread=True) == 0.0


def test_overlap_from_the_start_is_ignored() -> None:
    assert nc(plan(5.0), moving(1.0, 0.0)) == 1.0
    assert ttc(plan(5.0), moving(1.0, 0.0)) == 1.0


def test_first_contact_of_each_object_decides() -> None:
    """Hit from behind at first; that both go on overlapping, nose to tail, changes nothing."""
    others = np.concatenate([moving(-10, 8.0), moving(70, 0.0)])
    scores = no_collision(plan(4.0), others, np.repeat(SIZE, 2, 0), np.zeros(2, bool), np.zeros((1, 41), bool))
    assert scores.tolist() == [1.0]


def test_time_to_collision_looks_ahead_only() -> None:
    assert ttc(plan(10.0), moving(4.6 + 40 + 8.5, 0.0)) == 0.0, "met within 0.9 s of the end"
    assert ttc(plan(10.0), moving(4.6 + 40 + 9.5, 0.0)) == 1.0
    beside = moving(0.5, 1.0, y=3.0, heading=-0.3)
    assert contacts(plan(1.0), beside, SIZE).any()
    assert ttc(plan(1.0), beside) == 1.0
    assert ttc(plan(1.0), beside, spread=True) == 0.0


def test_one_corner_off_the_road_is_off_the_road() -> None:
    tilted = plan(0.0, heading=0.3)
    assert float(drivable_compliance(np.abs(corners(plan(0.0), EGO)[..., 1]) <= 1.2)[0]) == 1.0
    assert float(drivable_compliance(np.abs(corners(tilted, EGO)[..., 1]) <= 1.2)[0]) == 0.0


def test_boxes_meet_as_polygons_do() -> None:
    """Against a grid of points: two boxes overlap if a point is in both (up to the grid's step)."""
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-3, 3, (200, 3)), rng.uniform(-3, 3, (200, 3))
    sizes = rng.uniform(0.5, 4, (2, 200, 2))
    grid = np.stack(np.meshgrid(np.linspace(-0.5, 0.5, 60), np.linspace(-0.5, 0.5, 60)), -1).reshape(-1, 2)
    for i, met in enumerate(overlap(a, sizes[0], b, sizes[1])):
        local = grid * sizes[0, i]
        cos, sin = np.cos(a[i, 2]), np.sin(a[i, 2])
        points = a[i, :2] + np.column_stack(
            [cos * local[:, 0] - sin * local[:, 1], sin * local[:, 0] + cos * local[:, 1]]
        )
        cos, sin = np.cos(b[i, 2]), np.sin(b[i, 2])
        apart = points - b[i, :2]
        inside = np.abs(np.column_stack([apart @ [cos, sin], apart @ [-sin, cos]])) / (sizes[1, i] / 2)
        nearest = inside.max(1).min()
        if abs(nearest - 1) > 0.1:
            assert met == (nearest < 1)


def test_agents_without_number() -> None:
    none = np.zeros((0, 50, 4))
    flags = np.zeros((1, 41), bool)
    assert no_collision(plan(5.0), none, np.zeros((0, 2)), np.zeros(0, bool), flags).tolist() == [1.0]
    assert time_to_collision(plan(5.0), none, np.zeros((0, 2)), flags).tolist() == [1.0]


def driven_by(acceleration: Any, turn: float = 0.0, speed: float = 8.0) -> Any:
    speeds = speed + 0.1 * np.concatenate([[0.0], np.cumsum(acceleration)])
    heading = turn * 0.1 * np.arange(41)
    place = 0.1 * np.cumsum(np.column_stack([speeds * np.cos(heading), speeds * np.sin(heading)]), 0)
    return np.column_stack([place, heading, speeds])[None]


@pytest.mark.parametrize(
    ("acceleration", "turn", "felt"),
    [
        (np.zeros(40), 0.0, 1.0),
        (np.full(40, 2.3), 0.0, 1.0),
        (np.full(40, 2.5), 0.0, 0.0),
        (np.full(40, -1.9), 0.0, 1.0),
        (np.full(40, -4.2), 0.0, 0.0),
        (np.zeros(40), 0.58, 1.0),
        (np.zeros(40), 0.64, 0.0),
        (np.repeat([2.0, -4.0], 20), 0.0, 0.0),
    ],
)
def test_comfort(acceleration: Any, turn: float, felt: float) -> None:
    """Limits: -4.05 and 2.40 m/s^2 along, 4.89 across (8 m/s times the yaw rate), 4.13 m/s^3 along."""
    assert comfort(driven_by(acceleration, turn, speed=20.0 if acceleration[0] < -3 else 8.0)).tolist() == [felt]


def test_yaw_rate_limit() -> None:
    assert comfort(driven_by(np.zeros(40), 0.9, speed=3.0)).tolist() == [1.0]
    assert comfort(driven_by(np.zeros(40), 1.0, speed=3.0)).tolist() == [0.0]


@pytest.mark.parametrize(("change", "felt"), [(0.44, 1.0), (0.46, 0.0)])
def test_yaw_acceleration_limit(change: float, felt: float) -> None:
    """Over five poses a sudden change of yaw rate by r looks like 3/7 r / 0.1 s; the limit is 1.93 rad/s^2."""
    driven = driven_by(np.zeros(40), speed=2.0)
    driven[0, 20:, 2] = 0.1 * change * np.arange(21)
    assert comfort(driven).tolist() == [felt]
