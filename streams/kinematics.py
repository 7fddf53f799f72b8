"""How cars move and where lanes lie: the kinematic bicycle, and lanes as arcs of constant curvature.

Units are metres, seconds and radians; curvature, 1/m, is positive to the left. A state is (x, y, heading, speed).
"""

from __future__ import annotations

import numpy as np

from .events import Array

STEP = 0.1
"""Seconds between states."""
HORIZON = 40
"""Steps of a plan: 4 s."""
TOP_SPEED = 14.0
ACCELERATION = (-4.0, 2.0)
CURVATURE = 0.09
SIDEWAYS = 4.0
"""m/s^2: random drives turn no sharper than this allows at the speed they begin with."""


def drive(start: Array, acceleration: Array, curvature: Array) -> Array:
    """float64[n, T + 1, 4]: states from ``start`` [n, 4] on under inputs [n, T], each held for 0.1 s.

    x += v cos(psi) dt, y += v sin(psi) dt, psi += v kappa dt, v = clip(v + a dt, 0, 14), all from the values before.
    """
    inputs = np.asarray(acceleration)
    states = np.empty((len(inputs), inputs.shape[1] + 1, 4))
    x, y, heading, speed = np.array(start, np.float64).T
    for t in range(inputs.shape[1] + 1):
        states[:, t] = np.stack([x, y, heading, speed], -1)
        if t < inputs.shape[1]:
            x, y = x + speed * np.cos(heading) * STEP, y + speed * np.sin(heading) * STEP
            heading = heading + speed * curvature[:, t] * STEP
            speed = np.clip(speed + inputs[:, t] * STEP, 0.0, TOP_SPEED)
    return states


def random_drives(n: int, seed: int = 0) -> Array:
    """float64[n, 41, 4]: drives of 4 s from the origin, heading along x: what a vocabulary of plans is chosen from.

    Speed, acceleration and two curvatures (first and last 2 s) are drawn evenly; the curvatures are cut off where the
    car would be pushed sideways by more than 4 m/s^2 at the speed it begins with (ours: such plans are no comfort).
    """
    rng = np.random.default_rng([seed, 0])
    speed = rng.uniform(0.0, TOP_SPEED, n)
    most = np.minimum(CURVATURE, SIDEWAYS / np.maximum(speed, 1.0) ** 2)[:, None]
    curvature = np.repeat(rng.uniform(-most, most, (n, 2)), HORIZON // 2, 1)
    acceleration = np.repeat(rng.uniform(*ACCELERATION, (n, 1)), HORIZON, 1)
    start = np.zeros((n, 4))
    start[:, 3] = speed
    return drive(start, acceleration, curvature)


def to_lane(points: Array, curvature: Array | float) -> tuple[Array, Array]:
    """(s, d), each [...]: metres along and to the left of the lane that leaves the origin along x, of points [..., 2].

    With w = 1 + k q, q = k (x^2 + y^2) - 2 y: s = atan2(k x, 1 - k y) / k, d = -q / (1 + sqrt(w)): exact for arcs,
    and for a straight lane (k = 0) in the limit.
    """
    x, y = points[..., 0], points[..., 1]
    k = np.asarray(curvature, np.float64)
    q = k * (x * x + y * y) - 2 * y
    across = -q / (1 + np.sqrt(np.maximum(1 + k * q, 0.0)))
    bent = np.abs(k) > 1e-9
    along = np.where(bent, np.arctan2(k * x, 1 - k * y) / np.where(bent, k, 1.0), x)
    return along, across


def from_lane(along: Array, across: Array, curvature: Array | float) -> Array:
    """[..., 3]: x, y and the lane's heading at s = along, d = across; the inverse of ``to_lane``."""
    s, d = np.asarray(along, np.float64), np.asarray(across, np.float64)
    turn = np.asarray(curvature, np.float64) * s
    half = np.sinc(turn / (2 * np.pi))
    x, y = s * half * np.cos(turn / 2), s * half * np.sin(turn / 2)
    return np.stack([x - d * np.sin(turn), y + d * np.cos(turn), turn + 0 * d], -1)


def placed(states: Array, pose: Array) -> Array:
    """States [..., >=3] given relative to ``pose`` (x, y, heading), in the frame in which the pose is given."""
    moved = np.array(states, np.float64)
    cos, sin = np.cos(pose[..., 2]), np.sin(pose[..., 2])
    moved[..., 0] = pose[..., 0] + cos * states[..., 0] - sin * states[..., 1]
    moved[..., 1] = pose[..., 1] + sin * states[..., 0] + cos * states[..., 1]
    moved[..., 2] = states[..., 2] + pose[..., 2]
    return moved


def seen_from(states: Array, pose: Array) -> Array:
    """The inverse of ``placed``: states [..., >=3] relative to ``pose`` (x, y, heading)."""
    moved = np.array(states, np.float64)
    cos, sin = np.cos(pose[..., 2]), np.sin(pose[..., 2])
    x, y = states[..., 0] - pose[..., 0], states[..., 1] - pose[..., 1]
    moved[..., 0], moved[..., 1] = cos * x + sin * y, cos * y - sin * x
    moved[..., 2] = states[..., 2] - pose[..., 2]
    return moved
