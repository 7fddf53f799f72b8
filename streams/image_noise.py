"""Noise of CIFAR-C: Gaussian, of single photons, of broken cells.

Images are float64[B, C, H, W] in [0, 1]; ``k`` is the severity counted from 0. The levels are those of the CIFAR
variant of Hendrycks, Dietterich: Benchmarking neural network robustness to common corruptions and perturbations,
ICLR 2019; the code is our own.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .events import Array
from .feed import Chance

GAUSSIAN = (0.04, 0.06, 0.08, 0.09, 0.10)
PHOTONS = (500, 250, 100, 75, 50)
BROKEN = (0.01, 0.02, 0.03, 0.05, 0.07)


def gaussian_noise(x: Array, k: int, chance: Chance) -> Array:
    """x + sigma z."""
    return x + GAUSSIAN[k] * chance.normal(*x.shape[1:])


def shot_noise(x: Array, k: int, chance: Chance) -> Array:
    """Poisson(c x) / c: c photons make white. The mean stays, the variance is x / c.

    Counts are drawn by the inverse of the distribution, tabled for the 256 levels of an 8-bit image, to which x is
    rounded (what the original works on).
    """
    photons = PHOTONS[k]
    steps, start = _photon_table(photons)
    level = np.rint(np.clip(x, 0.0, 1.0) * 255.0).astype(np.int64)
    place = np.searchsorted(steps, level + chance.uniform(*x.shape[1:]), side="right")
    return np.minimum(place - start[level], photons) / photons


@lru_cache(maxsize=5)
def _photon_table(photons: int) -> tuple[Array, Array]:
    """P(count <= n) for each level, one after the other, the level added (so that all of it rises), and their starts.

    Counts above the one that makes white are left out, since they are clipped.
    """
    from scipy import special

    levels = np.arange(256)
    below = special.pdtr(np.arange(photons)[None, :], levels[:, None] * photons / 255.0)
    below[0] = 1.0  # no light, no photon
    return (levels[:, None] + below).ravel(), levels * photons


def impulse_noise(x: Array, k: int, chance: Chance) -> Array:
    """A share of the cells, drawn one by one, is black or white, with equal chance."""
    hit = chance.uniform(*x.shape[1:]) < BROKEN[k]
    white = chance.uniform(*x.shape[1:], lane=1 << 24) < 0.5
    return np.where(hit, white.astype(np.float64), x)
