"""Plans judged in the scenes of ``driving.py``: every rule by the truth, none by what a planner sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .driving import PAST, STATIC, Scene
from .kinematics import placed, to_lane
from .pdm import (
    EGO,
    Scores,
    comfort,
    corners,
    drivable_compliance,
    ego_progress,
    no_collision,
    pdm_score,
    time_to_collision,
)

Array = np.ndarray[Any, np.dtype[Any]]

SPEED_GAP = 4.0
"""m/s: a plan whose speed after 0.5 s differs by this or more from the car's cannot be driven from here."""


def feasible(scene: Scene, plans: Array) -> Array:
    """bool[M]: the plans (float64[M, 41, 4], in the car's frame) that the car can drive at the speed it has."""
    return np.abs(plans[:, 5, 3] - scene.ego[3]) < SPEED_GAP


def score_plans(scene: Scene, plans: Array) -> Scores:
    """Sub-metrics of plans float64[M, 41, 4] given in the car's frame; all 0 for a plan that cannot be driven.

    The drivable area is the union of the arms; progress is along the arm on which it is largest; the ego's progress is
    measured by the best of the plans. A car in two arms at once, ahead of the fork, is in an intersection.
    """
    usable = np.flatnonzero(feasible(scene, plans))
    scores = np.zeros((6, len(plans)))
    if len(usable):
        scores[:, usable] = _driven(scene, placed(plans[usable], scene.ego))
    return Scores(*scores)


def _driven(scene: Scene, driven: Array) -> Scores:
    on_arm = [np.abs(to_lane(corners(driven, EGO), k)[1]) <= w for k, w in _arms(scene)]
    on_road = np.logical_or.reduce(on_arm)
    off_road = ~on_road.all(-1)
    middles = np.array([np.abs(to_lane(driven[..., :2], k)[1]) <= w for k, w in _arms(scene)])
    crossing = middles.all(0) if len(middles) > 1 else np.zeros_like(off_road)
    nc = no_collision(driven, scene.agents[:, PAST:], scene.sizes, scene.kinds == STATIC, off_road)
    dac = drivable_compliance(on_road)
    ttc = time_to_collision(driven, scene.agents[:, PAST:], scene.sizes, off_road | crossing)
    progress = np.max([_along(driven, k) for k, _ in _arms(scene)], axis=0)
    gate = nc * dac
    ep = ego_progress(progress, gate, float((np.maximum(progress, 0.0) * gate).max()))
    c = comfort(driven)
    return Scores(nc, dac, ttc, ep, c, pdm_score(nc, dac, ttc, ep, c))


def _arms(scene: Scene) -> list[tuple[float, float]]:
    return list(zip(scene.curvature.tolist(), scene.half_width.tolist(), strict=True))


def _along(driven: Array, curvature: float) -> Array:
    along = to_lane(driven[:, [0, -1], :2], curvature)[0]
    return along[:, 1] - along[:, 0]


def oracle(scene: Scene, plans: Array, scores: Scores) -> int:
    """The plan of the highest PDM score; of equals the one that stays nearest to the middle of its lane."""
    best = np.flatnonzero(scores.pdms >= scores.pdms.max() - 1e-12)
    driven = placed(plans[best], scene.ego)[..., :2]
    strayed = np.min([np.abs(to_lane(driven, k)[1]).mean(-1) for k, _ in _arms(scene)], axis=0)
    return int(best[strayed.argmin()])


def judge(scenes: Sequence[Scene], plans: Array) -> tuple[Array, Array]:
    """(metrics, expert): float32[n, M, 6] in the order of ``Scores``, and the oracle's plan in each scene, int64[n]."""
    metrics = np.empty((len(scenes), len(plans), 6), np.float32)
    expert = np.empty(len(scenes), np.int64)
    for i, scene in enumerate(scenes):
        scores = score_plans(scene, plans)
        metrics[i] = np.stack(scores, -1)
        expert[i] = oracle(scene, plans, scores)
    return metrics, expert


def mean_scores(metrics: Array, chosen: Array) -> dict[str, float]:
    """Means over scenes, in percent, of what the chosen plans (int64[n]) got; metrics as from ``judge``."""
    got = metrics[np.arange(len(chosen)), chosen].mean(0)
    return {name: 100 * float(value) for name, value in zip(Scores._fields, got, strict=True)}
