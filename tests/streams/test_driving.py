"""Driving scenes: pure functions of seed, split and number; shift concerns what is seen."""

from __future__ import annotations

import driftway as dw
import numpy as np
import pytest
from driftway.streams.driving import AGENTS, ARMS, FRAMES, PAST, WIDTH, Track, scene, scenes


def same(a: object, b: object) -> bool:
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("ego", "agents", "sizes", "observations"))


def test_scene_is_a_pure_function() -> None:
    forward, backward = scenes(range(6)), scenes(range(5, -1, -1))[::-1]
    assert all(map(same, forward, backward))
    assert not same(forward[0], forward[1])
    assert not same(scene(0), scene(0, split="test"))
    assert not same(scene(0), scene(0, seed=1))


def test_shapes() -> None:
    for some in scenes(range(40), severity=3):
        assert some.observations.shape == (len(FRAMES), WIDTH)
        assert some.observations.dtype == np.float32
        assert some.agents.shape[1:] == (70, 4)
        assert len(some.agents) == len(some.sizes) == len(some.kinds)
        assert np.isfinite(some.observations).all()


def test_a_third_has_two_arms_and_a_weak_command() -> None:
    many = scenes(range(200))
    forks = [s for s in many if len(s.curvature) == 2]
    assert 0.2 < len(forks) / 200 < 0.4
    assert all(np.sort(s.observations[-1, 1:4]).tolist() == pytest.approx([0, 0.45, 0.55]) for s in forks)
    sharp = [s for s in many if len(s.curvature) == 1]
    assert all(s.observations[-1, 1 + s.command] == 1.0 for s in sharp)


def test_the_car_comes_along_its_lane() -> None:
    """Seen 2 s earlier, what stands ahead was farther away by two seconds of driving."""
    some = next(s for s in scenes(range(50)) if len(s.agents) == 1 and s.agents[0, 0, 3] == 0 and s.ego[3] > 4)
    tokens = some.observations[:, 4 + ARMS * 5 :].reshape(5, AGENTS, 8)[:, 0]
    gap = np.hypot(20 * tokens[:, 1], 5 * tokens[:, 2])
    assert gap[0] - gap[-1] == pytest.approx(2 * some.ego[3], rel=0.15)


def test_shift_lies_in_what_is_seen() -> None:
    clean, shifted = scenes(range(60)), scenes(range(60), severity=2)
    assert all(np.array_equal(a.ego, b.ego) for a, b in zip(clean, shifted))
    straight = [(a, b) for a, b in zip(clean, shifted) if len(a.curvature) == 1]
    assert all(b.observations[-1, 1 + b.command] == pytest.approx(0.6) for _, b in straight)
    assert sum(len(s.agents) for s in shifted) > sum(len(s.agents) for s in clean)


def test_logs_are_replayed() -> None:
    states = np.zeros((70, 4))
    states[:, 0] = 0.13 * np.arange(70) - 0.13 * PAST
    states[:, 3] = 1.3
    track = Track(states, (0.6, 0.6), 1)
    many = scenes(range(60), logs=[track])
    walkers = [a for s in many for a, kind in zip(s.agents, s.kinds) if kind == 1]
    assert len(walkers) > 10
    assert all(np.hypot(*(a[-1] - a[0])[:2]) == pytest.approx(6.9 * 1.3) for a in walkers)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(dw.InputError, match="split"):
        scene(0, split="dev")  # type: ignore[arg-type]
    with pytest.raises(dw.InputError, match="severity"):
        scene(0, severity=4)
