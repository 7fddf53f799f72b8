"""ReLoop2 on ctr-drift and movielens: every rule for lambda, every way to forget, and controls without a memory.

Base: deepfm, trained on the stream's source and frozen, or learning on in one pass (steps of 100 rows). Rows are
predicted slot by slot, and a slot's labels come when it is over. ctr-drift is scored over slots 1-20 (5-20 after the
drift), or 21-40 where there are two drifts. ``ours`` is the method's score, ``peer`` that of the frozen base alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...evaluation.clicks import click_scores
from ...streams import Array, Batch, Stream, open_stream, rebatch
from ..learner import Learner, State
from ..learners import make_learner
from . import Row

BENCH = "reloop2-table"
STEP = 100
SIZES = {"newton": {"strength": "newton"}, "hedge": {"strength": "hedge"}}
FIXED = (0.1, 0.2, 0.4, 0.6, 0.9, 1.0)


def _batches(stream: Stream, slot: int) -> list[Batch]:
    return [event for event in rebatch(stream, slot) if isinstance(event, Batch)]


def played(learner: Learner, batches: list[Batch], step: int = 0) -> Array:
    """float64[n]: the probabilities of a click, each slot predicted before any label of it is learnt."""
    found = []
    for batch in batches:
        prediction = learner.predict(batch)
        assert prediction.scores is not None
        found.append(prediction.scores[:, 1])
        for at in range(0, len(batch), step or len(batch)):
            part = slice(at, at + (step or len(batch)))
            learner.learn(batch.rows(part), prediction.rows(part))
    return np.concatenate(found)


class Played:
    """One stream with its trained base, on which methods are played."""

    def __init__(self, stream: Stream, slot: int, seed: int) -> None:
        self.spec, self.seed = stream.spec, seed
        self.batches = _batches(stream, slot)
        assert self.spec.source is not None
        self.base = make_learner("deepfm", self.spec, seed=seed)
        self.state: State = self.base.state()
        self.x = self.spec.source.train()[0]
        self.y = np.concatenate([b.y for b in self.batches if b.y is not None])

    def still(self) -> Array:
        """The frozen base."""
        fresh = self._fresh()
        return np.concatenate([fresh.predict(b).scores[:, 1] for b in self.batches])  # type: ignore[index]

    def incremental(self) -> Array:
        """The base, one pass of steps of 100 rows."""
        return played(self._fresh(), self.batches, STEP)

    def _fresh(self) -> Learner:
        fresh = make_learner("deepfm", self.spec, seed=self.seed, epochs=0)
        fresh.load(self.state)
        return fresh

    def memory(self, **settings: Any) -> Array:
        """With a memory of these settings; the base learns on where ``base=incremental``."""
        learner: Any = make_learner("deepfm+reloop2", self.spec, seed=self.seed, epochs=0, **settings)
        learner.adopt(self.state, self.x)
        return played(learner, self.batches, STEP if settings.get("base") == "incremental" else 0)

    def platt(self, forget: float = 0.999) -> Array:
        """With an online Platt fit instead of a memory."""
        learner: Any = make_learner("platt:deepfm", self.spec, seed=self.seed, epochs=0, warmup=0, forget=forget)
        learner._base.load(self.state)
        return played(learner, self.batches)


def _row(case: str, unit: str, ours: float, base: float) -> Row:
    better = base / ours if unit == "log loss" else ours / base
    return {
        "bench": BENCH, "case": case, "unit": unit, "ours": ours, "peer": base, "peer_name": "frozen base",
        "ratio": better, "floor": None,
    }  # fmt: skip


DRIFTS = ("none", "drift", "second", "return")


def drift_methods(world: Played) -> Iterator[tuple[str, Array]]:
    """Every method and its probabilities on one ctr-drift stream."""
    yield "base", world.still()
    yield "platt", world.platt()
    yield "incremental", world.incremental()
    for keep in ("cumulative", "ring", "decay"):
        for lam in FIXED if keep != "decay" else (0.4,):
            yield f"fixed {lam:g} {keep}", world.memory(strength="fixed", lam=lam, keep=keep)
        for name, settings in SIZES.items():
            yield f"{name} {keep}", world.memory(keep=keep, **settings)
    for keep in ("cumulative", "ring"):
        yield f"fixed 0.4 {keep}, thin 8", world.memory(strength="fixed", lam=0.4, keep=keep, thin=8.0)
    yield "fixed 0.4 exact", world.memory(strength="fixed", lam=0.4, memory="exact", neighbours=50)
    yield "newton exact", world.memory(memory="exact", neighbours=50)
    yield "incremental, newton ring", world.memory(base="incremental", keep="ring")


def drift_scores(seed: int, concepts: str) -> dict[str, dict[str, float | None]]:
    """Scores of every method on one stream, over the slots that count."""
    world = Played(open_stream("ctr-drift", seed=seed, concepts=concepts), 500, seed)
    start = {"none": 0, "drift": 0}.get(concepts, 20 * 500)
    found: dict[str, dict[str, float | None]] = {}
    for name, p in drift_methods(world):
        found[name] = click_scores(world.y[start:], p[start:])
        if concepts == "drift":
            after = click_scores(world.y[2000:], p[2000:])
            found[name] |= {f"{k} after": after[k] for k in ("auc", "logloss")}
    return found


def movielens_methods(world: Played) -> Iterator[tuple[str, Array]]:
    """Every method and its probabilities on movielens."""
    yield "base", world.still()
    yield "incremental", world.incremental()
    yield "platt", world.platt(0.9999)
    for base in ("frozen", "incremental"):
        for code, bits in (("", 8), ("user", 12)):
            common = {"base": base, "code": code, "bits": bits, "keep": "cumulative", "forget": 0.9999}
            address = "h, user" if code else "h"
            for gamma in (1.0, 0.0):
                for name, rule in (("fixed 0.4", {"strength": "fixed"}), ("newton", {"strength": "newton"})):
                    yield f"{base}, {address}, {name}, gamma {gamma:g}", world.memory(gamma=gamma, **rule, **common)
            yield f"{base}, {address}, hedge", world.memory(strength="hedge", **common)


def movielens_scores(seed: int, slots: int) -> dict[str, dict[str, float | None]]:
    """Scores of every method on the second half of movielens, the base trained on the first."""
    world = Played(open_stream("movielens", seed=seed, source=0.5), 50_000 // slots, seed)
    user = np.concatenate([np.asarray(b.x)[:, 0] for b in world.batches])
    return {name: click_scores(world.y, p, user) for name, p in movielens_methods(world)}


def measure() -> list[Row]:
    """Means over five seeds of ctr-drift (60-64) and three of movielens."""
    rows = []
    for concepts in DRIFTS:
        rows += _means(concepts, [drift_scores(seed, concepts) for seed in range(60, 65)])
    for slots in (10, 100):
        rows += _means(f"movielens, {slots} slots", [movielens_scores(seed, slots) for seed in (0, 1, 2)])
    return rows


def _means(world: str, found: list[dict[str, dict[str, float | None]]]) -> list[Row]:
    rows = []
    for name in found[0]:
        for score, unit in (("logloss", "log loss"), ("auc", "AUC"), ("gauc", "gAUC")):
            ours, base = ([f[n][score] for f in found] for n in (name, "base"))
            if None not in ours and None not in base:
                rows.append(_row(f"{world}: {name}", unit, float(np.mean(ours)), float(np.mean(base))))  # type: ignore[arg-type]
    return rows
