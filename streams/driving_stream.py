"""The stream ``driving``: every half second a planner sees a scene and answers with one plan of a fixed vocabulary.

Scenes come one after the other, each as four earlier frames and the one whose plan is judged (the setting of NAVSIM:
Dauner et al., NeurIPS 2024, with the simulator of ``driving.py``). ``spec.worth`` tells what each answer was worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np

from .driving import FRAMES, LAYOUT, WIDTH, Scene, Split, Track, scene, scenes, seen_at
from .driving_logs import FILES, tracks
from .driving_truth import judge
from .events import Array, Batch, Event, Labels
from .kinematics import STEP, random_drives
from .pdm import Scores
from .sources import Block, BlockStream, Position
from .spec import Column, InputError, Source, Stream, StreamSpec, Worth
from .vocabulary import vocabulary

NAMES = ("pdms", *Scores._fields[:-1])
PER_SCENE = len(FRAMES)
BETWEEN = 10.0
"""Seconds from the beginning of one scene to that of the next."""
TRAINING_SEED = 1000
"""Scenes to train on are the same, whatever the stream's seed."""
DRIVES = 6000


@dataclass(frozen=True)
class Driving:
    """severity: how far what is seen is off, 0 (clean) to 3. split: test, or validation to tune on. scenes: in the
    stream, each of five frames, of which the last is judged. plans: in the vocabulary. training: scenes of spec.source,
    all clean. logs: what other road users replay in half of the cases; none, eth-ucy, lyft or both.
    """

    severity: int = 2
    split: Literal["test", "validation"] = "test"
    scenes: int = 200
    plans: int = 64
    training: int = 2400
    logs: Literal["none", "eth-ucy", "lyft", "both"] = "none"


class Scenes:
    """The scenes of one split, and what each plan in them is worth."""

    def __init__(self, plans: Array, seed: int, split: Split, severity: int, logs: Sequence[Track]) -> None:
        self.plans, self.seed, self.split, self.severity, self.logs = plans, seed, split, severity, logs
        self.judged = lru_cache(maxsize=64)(self._judged)

    def at(self, number: int) -> Scene:
        """Scene ``number``."""
        return scene(number, seed=self.seed, split=self.split, severity=self.severity, logs=self.logs)

    def of_row(self, row: int) -> Scene:
        """The scene that a row of the stream belongs to."""
        return self.at(row // PER_SCENE)

    def _judged(self, number: int) -> tuple[Array, int]:
        metrics, expert = judge([self.at(number)], self.plans)
        return _whole_first(metrics[0]), int(expert[0])

    def worth(self, ids: Array, outputs: Array) -> Array:
        """float64[n, 6] of the chosen plans; NaN for earlier frames, whose plans are not judged."""
        found = np.full((len(ids), len(NAMES)), np.nan)
        for i, (row, plan) in enumerate(zip(ids.tolist(), outputs.tolist())):
            if row % PER_SCENE == PER_SCENE - 1:
                found[i] = self.judged(row // PER_SCENE)[0][plan]
        return found


class SceneBlocks:
    """Of each scene five batches of one row, half a second apart, and the oracle's plan for the last, for judging."""

    start: ClassVar[Position] = {"scene": 0}

    def __init__(self, scenes: Scenes, count: int) -> None:
        self.scenes, self.count = scenes, count

    def read(self, at: Position) -> Block:
        number = at["scene"]
        rows = self.scenes.at(number).observations.astype(np.float64)
        events: list[Event] = []
        for k, frame in enumerate(FRAMES):
            ids = np.array([PER_SCENE * number + k], np.int64)
            time = BETWEEN * number + STEP * (frame - FRAMES[0])
            events.append(Batch(ids, rows[k : k + 1], time))
        expert = np.array([self.scenes.judged(number)[1]])
        events.append(Labels(ids, expert, time, learn=False))
        return Block(events, {"scene": number + 1} if number + 1 < self.count else None)


class Training:
    """The clean scenes that a planner is trained on, and those to judge it by; each is judged once, when asked for."""

    def __init__(self, plans: Array, count: int, logs: Sequence[Track]) -> None:
        self.plans, self.count, self.logs = plans, count, logs
        self._made: dict[Split, tuple[Array, Array, Array]] = {}
        metrics = np.empty((0, len(plans), len(NAMES)), np.float32)
        self._none = (np.empty((0, WIDTH), np.float32), metrics, np.empty(0, np.int64))

    def judged(self, split: Split, n: int | None = None) -> tuple[Array, Array, Array]:
        """(x float32[n, d], metrics float32[n, M, 6], the oracle's plan int64[n]) of the first n judged frames."""
        n = self.count if n is None else min(n, self.count)
        x, metrics, expert = self._made.get(split, self._none)
        if len(x) < n:
            found = scenes(range(len(x), n), seed=TRAINING_SEED, split=split, logs=self.logs)
            more, best = judge(found, self.plans)
            x = np.concatenate([x, [s.observations[-1] for s in found]])
            metrics, expert = np.concatenate([metrics, _whole_first(more)]), np.concatenate([expert, best])
            self._made[split] = x, metrics, expert
        return x[:n], metrics[:n], expert[:n]

    def rows(self, split: Split, n: int | None = None) -> tuple[Array, Array]:
        """(x, y) of a source."""
        x, _, expert = self.judged(split, n)
        return x, expert


def _whole_first(metrics: Array) -> Array:
    return np.roll(metrics, 1, -1)


def driving(params: Driving, seed: int) -> Stream:
    """Small scenes with lanes, forks and other road users; a plan of 4 s is to be chosen every half second.

    A row is what the car sees: its speed and command, up to two lanes, up to six road users; classes are the plans of
    the vocabulary. Batches are of one row; their time is in seconds: frames of a scene are 0.5 s apart, scenes 8 s.
    Behind the last of five frames comes the oracle's plan, as Labels with ``learn=False``, for whoever judges; the
    earlier four have none. spec.worth tells the PDM score and its sub-metrics of any answer to the last frame;
    spec.source has clean scenes. The weak-command scenes (three in ten) have two admissible arms.
    """
    seen_at(params.severity)
    if params.scenes < 1 or params.training < 8 or not 8 <= params.plans <= DRIVES:
        raise InputError(f"driving: scenes must be at least 1, training at least 8, plans 8 to {DRIVES}")
    names = [] if params.logs == "none" else [*FILES] if params.logs == "both" else [params.logs]
    logs = [track for name in names for track in tracks(name)]
    plans = vocabulary(random_drives(DRIVES), params.plans)
    there = Scenes(plans, seed, params.split, params.severity, logs)
    clean = Training(plans, params.training, logs)
    spec = StreamSpec(
        "driving",
        tuple(Column(f"x{i}", missing=False) for i in range(WIDTH)),
        target_name="plan",
        classes=tuple(f"plan {i}" for i in range(params.plans)),
        length=PER_SCENE * params.scenes,
        notes={"severity": params.severity, "split": params.split, "per_scene": PER_SCENE},
        source=Source(
            "clean scenes",
            tuple(range(params.plans)),
            lambda: clean.rows("train"),
            lambda: clean.rows("validation", max(1, params.training // 8)),
        ),
        worth=Worth(
            NAMES,
            plans,
            LAYOUT,
            there.worth,
            lambda n: clean.judged("train", n),
            params.training,
            there.of_row,
        ),
    )
    return BlockStream(spec, SceneBlocks(there, params.scenes))
