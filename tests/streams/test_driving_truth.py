"""The generator is sound if the best plan of each scene is good and a random one is not."""

from __future__ import annotations

import numpy as np
import pytest
from driftway.streams.driving import scene, scenes
from driftway.streams.driving_truth import feasible, judge, mean_scores, score_plans
from driftway.streams.kinematics import drive, random_drives
from driftway.streams.vocabulary import vocabulary

PLANS = vocabulary(random_drives(3000), 64)


@pytest.mark.parametrize("severity", [0, 2])
def test_oracle_and_random_plans(severity: int) -> None:
    metrics, expert = judge(scenes(range(80), severity=severity), PLANS)
    best = mean_scores(metrics, expert)
    assert best["pdms"] > 95
    assert min(best["nc"], best["dac"], best["ttc"]) > 97
    chance = np.random.default_rng(0).integers(0, 64, 80)
    assert mean_scores(metrics, chance)["pdms"] < 20
    assert ((metrics >= 0) & (metrics <= 1)).all()


def test_plans_that_cannot_be_driven_get_nothing() -> None:
    some = scene(1)
    scores = score_plans(some, PLANS)
    assert (scores.pdms[~feasible(some, PLANS)] == 0).all()
    assert 0 < feasible(some, PLANS).mean() < 1


def test_keeping_the_lane_is_rewarded_and_leaving_it_is_not() -> None:
    some = next(s for s in scenes(range(50)) if not len(s.agents) and len(s.curvature) == 1 and s.ego[3] > 4)
    bend, speed = float(some.curvature[0]), float(some.ego[3])
    start = np.zeros((2, 4))
    start[:, 3] = speed
    kept_and_left = np.repeat([[bend], [bend + 0.06]], 40, 1)
    scores = score_plans(some, drive(start, np.zeros((2, 40)), kept_and_left))
    assert scores.dac.tolist() == [1.0, 0.0]
    assert scores.pdms.tolist() == [1.0, 0.0]
