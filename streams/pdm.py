"""How good a driving plan was: the sub-metrics of the PDM score and the score itself, as pure functions.

Source: Dauner et al., NAVSIM, NeurIPS 2024, and the rules of its published code, version 1.1:

    PDMS = NC * DAC * (5 TTC + 5 EP + 2 C) / 12.

A plan is what was driven, every 0.1 s: float64[M, T, 4] of x, y (m), heading (rad), speed (m/s), the position that of
the middle of the car. Agents replay their log: float64[A, S, 4] alike, with S > T where the log goes on (time to
collision looks 0.9 s ahead; where the log has ended nothing is met any more); sizes are float64[A, 2], length, width.

Ours: plans come from the bicycle model itself, so no controller tracks them; where NAVSIM takes angles from the rear
axle we take them from the middle.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

STEP = 0.1
EGO = np.array([4.6, 1.9])
"""Length and width of the car, m."""
STOPPED, STANDING = 0.05, 0.005
"""m/s: a car or object that hardly moves is at no fault; time to collision is asked of a car faster than this."""
LOOK_AHEAD = (0, 3, 6, 9)
"""Steps by which time to collision moves the car on."""
AHEAD, BEHIND = np.deg2rad(30.0), np.deg2rad(150.0)
SHORT = 5.0
"""m: where nobody could get further, progress is not asked for."""
YAW_WINDOW, SMOOTH_WINDOW, JERK_WINDOW = 5, 8, 15
"""Steps of the windows of smoothing: of angles, of accelerations, and of the slopes of accelerations."""
COMFORT = {
    "lateral acceleration": 4.89,
    "jerk": 8.37,
    "longitudinal jerk": 4.13,
    "yaw rate": 0.95,
    "yaw acceleration": 1.93,
}
LONGITUDINAL = (-4.05, 2.40)


class Scores(NamedTuple):
    """Sub-metrics of M plans and their sum, float64[M] each, in 0..1."""

    nc: Array
    dac: Array
    ttc: Array
    ep: Array
    c: Array
    pdms: Array


def corners(states: Array, size: Array) -> Array:
    """float64[..., 4, 2]: front left, front right, rear right, rear left of boxes of size [..., 2] at [..., >=3]."""
    forward, left = _axes(states)
    length, width = size[..., 0, None] / 2 * forward, size[..., 1, None] / 2 * left
    middle = states[..., :2]
    return np.stack(
        [middle + length + width, middle + length - width, middle - length - width, middle - length + width], -2
    )


def _axes(states: Array) -> tuple[Array, Array]:
    cos, sin = np.cos(states[..., 2]), np.sin(states[..., 2])
    return np.stack([cos, sin], -1), np.stack([-sin, cos], -1)


def overlap(a: Array, a_size: Array, b: Array, b_size: Array) -> Array:
    """bool[...]: do boxes at a and b (states [..., >=3], sizes [..., 2]) meet, by the four separating axes."""
    apart = b[..., :2] - a[..., :2]
    axes = (*_axes(a), *_axes(b))
    met = np.ones(apart.shape[:-1], bool)
    for axis in axes:
        reach = np.zeros(apart.shape[:-1])
        for half, direction in zip((a_size / 2, b_size / 2), (axes[:2], axes[2:]), strict=True):
            reach += half[..., 0] * np.abs((direction[0] * axis).sum(-1))
            reach += half[..., 1] * np.abs((direction[1] * axis).sum(-1))
        met &= np.abs((apart * axis).sum(-1)) <= reach
    return met


def contacts(plans: Array, agents: Array, sizes: Array, ego: Array = EGO) -> Array:
    """bool[M, A, T]: which objects each plan's box meets at each time; only pairs near enough are looked at closely."""
    met = np.zeros((len(plans), len(agents), plans.shape[1]), bool)
    steps = min(plans.shape[1], agents.shape[1])
    gap = plans[:, None, :steps, :2] - agents[None, :, :steps, :2]
    reach = (np.hypot(*ego) + np.hypot(sizes[:, 0], sizes[:, 1])) / 2
    m, a, t = np.nonzero((gap**2).sum(-1) <= reach[None, :, None] ** 2)
    met[m, a, t] = overlap(plans[m, t], np.broadcast_to(ego, (len(m), 2)), agents[a, t], sizes[a])
    return met


def no_collision(plans: Array, agents: Array, sizes: Array, static: Array, spread: Array, ego: Array = EGO) -> Array:
    """NC, float64[M]: 1 without a collision at fault, 0.5 if such were with static objects only, else 0.

    static: bool[A], things that are no traffic. spread: bool[M, T], where the car is on several lanes or off the road.
    Of each object the first contact counts, if the car moves faster than 0.05 m/s and (the object stands, or the
    car's front edge meets it, or its side does while the car is ``spread``). Who overlaps from the start is ignored.
    """
    met = contacts(plans, agents, sizes, ego)
    m, a = np.nonzero(met.any(-1) & ~met[..., 0])
    t = met[m, a].argmax(-1)
    driver, other = plans[m, t], agents[a, t]
    front = _front_hit(driver, other, sizes[a], ego)
    side = ~front & (np.abs(_bearing(driver, other)) <= BEHIND)
    fault = (np.abs(other[:, 3]) <= STOPPED) | front | (side & spread[m, t])
    fault &= driver[:, 3] > STOPPED
    score = np.ones(len(plans))
    np.minimum.at(score, m[fault], np.where(static[a[fault]], 0.5, 0.0))
    return score


def _front_hit(driver: Array, other: Array, size: Array, ego: Array) -> Array:
    """bool[n]: does the front edge of the car, a box without length, meet the other box."""
    edge = driver.copy()
    edge[:, :2] += ego[0] / 2 * _axes(driver)[0]
    return overlap(edge, np.broadcast_to([0.0, ego[1]], size.shape), other, size)


def _bearing(driver: Array, other: Array) -> Array:
    """Angle in (-pi, pi] under which the driver sees the other's middle."""
    forward, left = _axes(driver)
    apart = other[..., :2] - driver[..., :2]
    return np.asarray(np.arctan2((apart * left).sum(-1), (apart * forward).sum(-1)))


def drivable_compliance(corner_on_road: Array) -> Array:
    """DAC, float64[M]: 0 if any corner (bool[M, T, 4]: on the drivable area) is ever outside, else 1."""
    return np.where(corner_on_road.all((1, 2)), 1.0, 0.0)


def time_to_collision(plans: Array, agents: Array, sizes: Array, spread: Array, ego: Array = EGO) -> Array:
    """TTC, float64[M]: 0 if the car, going straight on at its speed for up to 0.9 s from any pose, would meet an object
    ahead (within 30 degrees), else 1.

    spread: bool[M, T], where the car is in an intersection, on several lanes or off the road: there any object that is
    not behind (150 degrees) counts. A car slower than 0.005 m/s is not asked. Of each object the first meeting decides,
    as in the code: a log that comes from behind drives on through the car and would then be ahead.
    """
    forward = _axes(plans)[0]
    there = contacts(plans[:, :1], agents[:, :1], sizes, ego)[..., 0]
    first = np.full(there.shape, plans.shape[1] * len(LOOK_AHEAD))
    met = []
    for i, steps in enumerate(LOOK_AHEAD):
        later = plans.copy()
        later[..., :2] += (steps * STEP * plans[..., 3, None]) * forward
        m, a, t = np.nonzero(contacts(later, agents[:, steps:], sizes, ego))
        asked = (plans[m, t, 3] > STANDING) & ~there[m, a]
        m, a, t = m[asked], a[asked], t[asked]
        np.minimum.at(first, (m, a), t * len(LOOK_AHEAD) + i)
        met.append((m, a, t, steps, t * len(LOOK_AHEAD) + i))
    clear = np.ones(len(plans))
    for m, a, t, steps, order in met:
        bearing = np.abs(_bearing(plans[m, t], agents[a, t + steps]))
        hit = (bearing < AHEAD) | (spread[m, t] & (bearing <= BEHIND))
        clear[m[hit & (order == first[m, a])]] = 0.0
    return clear


def ego_progress(progress: Array, gate: Array, reference: float) -> Array:
    """EP, float64[M]: metres along the centre line times ``gate`` = NC DAC, as a share of what could be had.

    reference: the gated progress, m, of the planner that the plan is measured by; each plan's own where that is more.
    Where that is at most 5 m, EP is 1 for every plan whose gate is not 0.
    """
    gained = np.maximum(progress, 0.0) * gate
    most = np.maximum(gained, reference)
    share = gained / np.where(most > SHORT, most, 1.0)
    return np.where(most > SHORT, share, (gate > 0).astype(np.float64))


def comfort(plans: Array) -> Array:
    """C, float64[M]: 1 if smoothed accelerations, jerks and yaw rates always stay within NAVSIM's limits, else 0."""
    yaw, speed = np.unwrap(plans[..., 2], axis=-1), plans[..., 3]
    along, across = np.gradient(speed, STEP, axis=-1), speed * np.gradient(yaw, STEP, axis=-1)
    steps = speed.shape[1]
    smooth, slope = _smoothing(steps, SMOOTH_WINDOW, 2, 0), _smoothing(steps, JERK_WINDOW, 2, 1)
    felt = along @ smooth
    within = [
        (felt > LONGITUDINAL[0]) & (felt < LONGITUDINAL[1]),
        np.abs(across @ smooth) < COMFORT["lateral acceleration"],
        np.abs(np.hypot(along, across) @ smooth @ slope) < COMFORT["jerk"],
        np.abs(felt @ slope) < COMFORT["longitudinal jerk"],
        np.abs(yaw @ _smoothing(steps, YAW_WINDOW, 2, 1)) < COMFORT["yaw rate"],
        np.abs(yaw @ _smoothing(steps, YAW_WINDOW, 3, 2)) < COMFORT["yaw acceleration"],
    ]
    return np.where(np.logical_and.reduce(within).all(-1), 1.0, 0.0)


@lru_cache(maxsize=16)
def _smoothing(steps: int, window: int, degree: int, derivative: int) -> Array:
    """float64[steps, steps]: right-multiplied, it fits polynomials to windows and takes a derivative (Savitzky, Golay).

    Near the ends the polynomial of the outermost window is read off.
    """
    from scipy.signal import savgol_filter

    size = min(window, steps)
    return savgol_filter(np.eye(steps), size, min(degree, size - 1), deriv=derivative, delta=STEP, axis=-1)


def pdm_score(nc: Array, dac: Array, ttc: Array, ep: Array, c: Array) -> Array:
    """NC DAC (5 TTC + 5 EP + 2 C) / 12.

    >>> float(pdm_score(*np.array([1.0, 1.0, 0.0, 1.0, 1.0])).round(4))
    0.5833
    """
    return nc * dac * (5 * ttc + 5 * ep + 2 * c) / 12
