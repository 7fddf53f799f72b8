"""Small driving scenes: a lane or two, other road users that replay logs, and what a planner gets to see of them.

A scene is a pure function of (seed, split, number): the same arguments give the same scene, in any order. Truth and
observation are apart: noise, lost agents and weak signals (``severity``) concern only what is seen, denser traffic
the truth too. Plans are judged by the truth (``driving_truth.py``).

Source of the design: the method note on Centaur (arXiv 2503.11650) and NAVSIM's setting of 4 s plans and four earlier
observations at 2 Hz; the simulator, its numbers and the degrees of shift are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from .events import Array
from .kinematics import HORIZON, STEP, from_lane, placed, seen_from, to_lane
from .spec import InputError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
COMMANDS = ("left", "straight", "right")
KINDS = ("vehicle", "pedestrian", "bicycle", "static")
STATIC = KINDS.index("static")

PAST, FUTURE = 20, HORIZON + 9
"""Steps of a log before and after now; time to collision looks 0.9 s beyond a plan."""
FRAMES = (-20, -15, -10, -5, 0)
"""Steps at which the scene is seen: four earlier ones, 0.5 s apart, and now."""
ARMS, AGENTS = 2, 6
"""Lanes and road users that an observation has room for."""
LAYOUT = ((1, 4), (ARMS, 5), (AGENTS, 8))
"""An observation is a flat row of tokens: (how many, numbers in each) of the car, the lanes and the road users."""
WIDTH = sum(count * width for count, width in LAYOUT)
FORKS = 0.3
"""Share of scenes in which two arms are admissible and the command says little."""


class Track(NamedTuple):
    """A road user's log of 7 s: states float64[70, 4], its place at step ``PAST`` being the origin, heading along x;
    size (length, width) in m; kind, a code of ``KINDS``."""

    states: Array
    size: tuple[float, float]
    kind: int


class Seen(NamedTuple):
    """How well the world is seen: standard deviations (m, m/s, 1/m), factor on curvature and command, share of road
    users that are lost, and how many more of them there may be."""

    position: float
    velocity: float
    curvature: float
    gain: float
    lost: float
    more: int


def seen_at(severity: int) -> Seen:
    """0 is clean; 2 is the shift of the note, 1 and 3 are half as much and half as much again."""
    if severity not in range(4):
        raise InputError(f"driving: severity must be 0 (clean), 1, 2 or 3, not {severity}")
    if not severity:
        return Seen(0.1, 0.05, 0.0005, 1.0, 0.0, 0)
    return Seen(0.6 * severity, 0.3 * severity, 0.0035 * severity, 1 - 0.2 * severity, 0.15 * severity, severity)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One situation, in the frame of its lanes, which all leave the origin along x.

    ego: x, y, heading, speed now. curvature, half_width: float64[L], the admissible arms, the commanded one first.
    agents: float64[A, 70, 4], from 2 s ago to 4.9 s ahead; sizes: [A, 2]; kinds: int64[A], codes of ``KINDS``.
    observations: float32[5, WIDTH], four earlier ones and the present one, last.
    """

    number: int
    command: int
    ego: Array
    curvature: Array
    half_width: Array
    agents: Array
    sizes: Array
    kinds: Array
    observations: Array


def scene(
    number: int, *, seed: int = 0, split: Split = "train", severity: int = 0, logs: Sequence[Track] = ()
) -> Scene:
    """Scene ``number`` of a split. logs: tracks (``driving_logs.py``), one of which each other road user replays in
    half of the cases; without them all drive along a lane at a steady speed or stand.

    Raises InputError for an unknown split or severity.

    >>> a, b = scene(3), scene(3)
    >>> a.observations.shape, bool((a.observations == b.observations).all())
    ((5, 62), True)
    """
    if split not in SPLITS:
        raise InputError(f"driving: split must be one of {', '.join(SPLITS)}, not {split!r}")
    seen = seen_at(severity)
    rng = np.random.default_rng([seed, SPLITS.index(split), number, 0])
    fork = rng.random() < FORKS
    commands = rng.permutation(3)[: 1 + fork]
    curvature = np.array([_curvature(int(c), rng) for c in commands])
    half_width = np.full(len(commands), rng.uniform(2.6, 3.8))
    fastest = min(12.0, float(np.sqrt(3.0 / np.abs(curvature).max())))
    ego = np.array([0.0, rng.uniform(-0.3, 0.3), rng.uniform(-0.03, 0.03), rng.uniform(0.0, fastest)])
    count = int(rng.integers(0, 4)) + int(rng.integers(0, seen.more + 1))
    tracks = [_agent(curvature, float(ego[3]), logs, rng) for _ in range(count)]
    agents = np.array([t.states for t in tracks]).reshape(-1, PAST + FUTURE + 1, 4)
    sizes = np.array([t.size for t in tracks]).reshape(-1, 2)
    kinds = np.array([t.kind for t in tracks], np.int64)
    bare = Scene(
        number, int(commands[0]), ego, curvature, half_width, agents, sizes, kinds, np.empty((0, WIDTH), np.float32)
    )
    noise = np.random.default_rng([seed, SPLITS.index(split), number, 1 + severity])
    rows = np.stack([_observation(bare, commands, frame, seen, noise) for frame in FRAMES])
    return Scene(number, int(commands[0]), ego, curvature, half_width, agents, sizes, kinds, rows)


def scenes(numbers: Iterable[int], **parameters: Any) -> list[Scene]:
    """Several scenes; parameters as in ``scene``."""
    return [scene(number, **parameters) for number in numbers]


def _curvature(command: int, rng: np.random.Generator) -> float:
    return float((rng.uniform(0.02, 0.07), rng.uniform(-0.01, 0.01), rng.uniform(-0.07, -0.02))[command])


def _agent(curvature: Array, speed: float, logs: Sequence[Track], rng: np.random.Generator) -> Track:
    """A road user somewhere ahead. One in the car's way is so far off that the car can still stop."""
    lane = float(rng.choice(curvature))
    across = float(rng.uniform(-3.5, 3.5))
    own = 0.0 if rng.random() < 0.4 else float(rng.uniform(0.0, 6.0))
    kind = STATIC if own == 0.0 and rng.random() < 0.5 else 0
    room = max(0.0, speed - own) ** 2 / 6.0
    along = float(rng.uniform(min(6.0 + room, 38.0), 40.0))
    if logs and rng.random() < 0.5:
        track = logs[int(rng.integers(len(logs)))]
        place = from_lane(np.array(max(along, 10.0 + speed**2 / 6.0)), np.array(across), lane)
        place[2] += rng.uniform(-np.pi, np.pi) if track.kind == KINDS.index("pedestrian") else 0.0
        return Track(placed(track.states, place), track.size, track.kind)
    s = along + own * STEP * np.arange(-PAST, FUTURE + 1)
    states = np.column_stack([from_lane(s, np.full_like(s, across), lane), np.full_like(s, own)])
    return Track(states, (1.0, 1.0) if kind == STATIC else (4.6, 1.9), kind)


def ego_at(scene: Scene, frame: int) -> Array:
    """The car's state ``frame`` steps from now (0 or before): it came along its lane at the speed it has."""
    back = from_lane(np.array(frame * STEP * scene.ego[3]), scene.ego[1], scene.curvature[0])
    return np.array([back[0], back[1], back[2] + scene.ego[2], scene.ego[3]])


def _observation(scene: Scene, commands: Array, frame: int, seen: Seen, rng: np.random.Generator) -> Array:
    """float32[WIDTH]: what is seen at one step; ``LAYOUT`` says what lies where."""
    ego = ego_at(scene, frame)
    row = [np.zeros((count, width)) for count, width in LAYOUT]
    strength = np.zeros(3)
    strength[commands] = [1.0] if len(commands) == 1 else [0.55, 0.45]
    row[0][0] = [ego[3] / 10, *(seen.gain * strength)]
    for i, arm in enumerate(scene.curvature):
        along, across = to_lane(ego[:2], arm)
        bend = seen.gain * arm + seen.curvature * rng.normal()
        row[1][i] = [1.0, 20 * bend, scene.half_width[i] / 3, across, 5 * (ego[2] - arm * along)]
    tokens = _agent_tokens(scene, ego, frame, seen, rng)
    row[2][: len(tokens)] = tokens
    return np.concatenate([part.ravel() for part in row]).astype(np.float32)


def _agent_tokens(scene: Scene, ego: Array, frame: int, seen: Seen, rng: np.random.Generator) -> Array:
    """[at most AGENTS, 8], the nearest first: there, x, y, velocity (x, y), length, width, static or not."""
    near = seen_from(scene.agents[:, PAST + frame], ego)
    place = near[:, :2] + seen.position * rng.normal(size=(len(near), 2))
    speed = near[:, 3, None] * np.stack([np.cos(near[:, 2]), np.sin(near[:, 2])], -1)
    speed = speed + seen.velocity * rng.normal(size=(len(near), 2))
    tokens = np.column_stack(
        [np.ones(len(near)), place / (20, 5), speed / 5, scene.sizes / (5, 2), scene.kinds == STATIC]
    )
    tokens = tokens[rng.random(len(near)) >= seen.lost]
    return tokens[np.hypot(20 * tokens[:, 1], 5 * tokens[:, 2]).argsort(kind="stable")][:AGENTS]
