"""Feature vectors of base classes and of new ones like them: what calibration of prototypes is checked on, without any
network. Stream (A) of our note on CSFA.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .events import Array

BASE, NEW, GROUPS, WIDTH = 20, 10, 5, 64


@dataclass(frozen=True, slots=True, eq=False)
class FewShotFeatures:
    """prototypes: float64[20, 64], true means of the base classes (codes 0 to 19). truth: float64[10, 64], those of the
    new ones (20 to 29). support, support_y: the shots of the new classes. queries, queries_y: rows of all classes.
    """

    prototypes: Array
    truth: Array
    support: Array
    support_y: Array
    queries: Array
    queries_y: Array


def few_shot_features(shots: int, seed: int = 0, queries: int = 50, noise: float = 0.3) -> FewShotFeatures:
    """20 base and 10 new classes in 64 dimensions, ``shots`` rows of each new class, ``queries`` rows of every class.

    A class mean is that of its group (one of 5 random directions of length 1.5) and a random vector of length 0.6;
    rows are the mean and isotropic Gaussian noise. New classes are dealt to the groups in turn, as the base ones are.
    """
    rng = np.random.default_rng(seed)
    groups = 1.5 * _directions(rng, GROUPS)
    base = groups[np.arange(BASE) % GROUPS] + 0.6 * _directions(rng, BASE)
    new = groups[np.arange(NEW) % GROUPS] + 0.6 * _directions(rng, NEW)
    support_y = np.repeat(np.arange(NEW), shots)
    queries_y = np.repeat(np.arange(BASE + NEW), queries)
    support = new[support_y] + noise * rng.normal(size=(len(support_y), WIDTH))
    asked = np.concatenate([base, new])[queries_y] + noise * rng.normal(size=(len(queries_y), WIDTH))
    return FewShotFeatures(base, new, support, support_y + BASE, asked, queries_y)


def _directions(rng: np.random.Generator, n: int) -> Array:
    """float64[n, 64]: random unit vectors."""
    z = rng.normal(size=(n, WIDTH))
    return z / np.linalg.norm(z, axis=1, keepdims=True)
