"""Drifting streams on river's generators: every concept a generator with its own seed, joined by ``concat``.

The DriftMoE paper's code starts every concept from one seed, so that after each drift the same rows replay;
``replay=true`` imitates that. Rows differ from MOA's, since the generators' random numbers do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .compose import take
from .drift import Ramp, concat
from .river_data import Pairs, generator
from .spec import Column, InputError, Stream, StreamSpec


@dataclass(frozen=True)
class Drifting:
    """n: rows in all. width: rows over which a change spreads (0: at once; the paper's gradual streams have n / 20).
    positions: centres of the changes (default: the quarters of n). ramp: sigmoid or linear. replay: one seed for every
    concept, so that rows repeat. noise: share of labels (LED: of segments; Agrawal: perturbation) that are wrong."""

    n: int = 100_000
    width: int = 50
    positions: tuple[int, ...] = ()
    ramp: Ramp = "sigmoid"
    replay: bool = False
    noise: float = 0.1


@dataclass(frozen=True)
class Moving:
    """n: rows in all. speed: how far the concept moves at every row. features: columns. noise: share of wrong labels
    (hyperplane only). classes, centroids: of the RBF model."""

    n: int = 100_000
    speed: float = 0.001
    features: int = 10
    noise: float = 0.05
    classes: int = 2
    centroids: int = 50


def _drifting(name: str, columns: Sequence[Column], classes: int, params: Drifting, seed: int, make: Any) -> Stream:
    """Four concepts, number k made by ``make(k, seed of it)``."""
    if params.n < 1 or params.width < 0 or not 0.0 <= params.noise <= 1.0:
        raise InputError(f"{name}: n must be above 0, width 0 or more and noise in 0..1")
    spec = StreamSpec(name, tuple(columns), classes=tuple(map(str, range(classes))))
    seeds = [seed * 1000 + (0 if params.replay else k) for k in range(4)]
    concepts = [generator(_maker(make, k, seeds[k]), spec) for k in range(4)]
    positions = params.positions or tuple(params.n * k // 4 for k in (1, 2, 3))
    names = [f"concept {k}" for k in range(4)]
    joined = concat(*concepts, width=params.width, ramp=params.ramp, position=list(positions), seed=seed, names=names)
    joined.spec = replace(joined.spec, name=name)
    return take(joined, params.n)


def _maker(make: Callable[[int, int], Pairs], concept: int, seed: int) -> Callable[[], Pairs]:
    return lambda: make(concept, seed)


def sea_drift(params: Drifting, seed: int) -> Stream:
    """SEA: three columns in 0..10, the third without meaning; y = 1 if x0 + x1 is above 8, 9, 9.5, 8 in turn."""
    from river.datasets import synth

    def make(k: int, s: int) -> Pairs:
        return synth.SEA(variant=(0, 1, 3, 0)[k], noise=params.noise, seed=s)

    return _drifting("sea-drift", [Column(str(j), missing=False) for j in range(3)], 2, params, seed, make)


def led_drift(params: Drifting, seed: int) -> Stream:
    """LED: the digit shown by seven faulty segments beside 17 random ones; 1, 3, 5, 7 segments trade places with
    these.
    """
    from river.datasets import synth

    def make(k: int, s: int) -> Pairs:
        swapped = (1, 3, 5, 7)[k]
        return synth.LEDDrift(seed=s, noise_percentage=params.noise, irrelevant_features=True, n_drift_features=swapped)

    return _drifting("led-drift", [Column(str(j), missing=False) for j in range(24)], 10, params, seed, make)


def agrawal_drift(params: Drifting, seed: int) -> Stream:
    """Agrawal: loan applications (six numbers, three nominal columns) judged by rules 1, 2, 3, 4 in turn."""
    from river.datasets import synth

    ranges = {"elevel": range(5), "car": range(1, 21), "zipcode": range(9)}
    names = ["salary", "commission", "age", "elevel", "car", "zipcode", "hvalue", "hyears", "loan"]
    columns = [Column(name, tuple(map(str, ranges[name])) if name in ranges else None, missing=False) for name in names]

    def make(k: int, s: int) -> Pairs:
        return synth.Agrawal(classification_function=k, seed=s, perturbation=params.noise)

    return _drifting("agrawal-drift", columns, 2, params, seed, make)


def rbf_drift(params: Moving, seed: int) -> Stream:
    """RBF: each class is a set of Gaussian blobs, and all their centres move at every row (the paper: 1e-4, 1e-3)."""
    from river.datasets import synth

    spec = _moving_spec("rbf-drift", params, params.classes)

    def make() -> Pairs:
        return synth.RandomRBFDrift(
            seed_model=seed,
            seed_sample=seed + 1,
            n_classes=params.classes,
            n_features=params.features,
            n_centroids=params.centroids,
            change_speed=params.speed,
            n_drift_centroids=params.centroids,
        )

    return generator(make, spec)


def hyperplane(params: Moving, seed: int) -> Stream:
    """A hyperplane through the unit cube that turns a little at every row; y says on which side a point lies."""
    from river.datasets import synth

    spec = _moving_spec("hyperplane", params, 2)

    def make() -> Pairs:
        return synth.Hyperplane(
            seed=seed,
            n_features=params.features,
            n_drift_features=params.features,
            mag_change=params.speed,
            noise_percentage=params.noise,
        )

    return generator(make, spec)


def _moving_spec(name: str, params: Moving, classes: int) -> StreamSpec:
    if params.n < 1 or params.features < 2 or params.classes < 2 or params.centroids < 1 or not 0 <= params.noise <= 1:
        raise InputError(f"{name}: n and centroids must be above 0, features and classes above 1, noise in 0..1")
    columns = tuple(Column(str(j), missing=False) for j in range(params.features))
    return StreamSpec(name, columns, classes=tuple(map(str, range(classes))), length=params.n)
