"""Blur of CIFAR-C: out of focus, through frosted glass, by motion, by zooming.

Images are float64[B, C, H, W] in [0, 1]; ``k`` is the severity counted from 0. Parameters are those of the CIFAR
variant (Hendrycks, Dietterich, ICLR 2019), for 32 x 32; the code is our own. On other sizes the lengths of a motion
are multiplied by ``reach``: side / 32, but at least a half, so that an 8 x 8 image is neither spared nor wiped out.
Defocus and glass reach a pixel or two, and stay so on every size; zoom is relative.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from .events import Array
from .feed import Chance

if TYPE_CHECKING:
    from scipy import sparse

DEFOCUS = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))
"""Radius of the disk, and sigma of what smooths its edge."""
GLASS = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))
"""Sigma before and after, and rounds."""
MOTION = ((6.0, 1.0), (6.0, 1.5), (6.0, 2.0), (8.0, 2.0), (9.0, 2.5))
"""Radius that bounds the trail, and its sigma."""
ZOOM = (1.06, 1.11, 1.16, 1.21, 1.26)


def reach(shape: tuple[int, ...]) -> float:
    """What lengths in pixels of a 32 x 32 image are multiplied by."""
    return max(0.5, min(shape[-2:]) / 32.0)


def defocus_blur(x: Array, k: int, chance: Chance) -> Array:  # noqa: ARG001
    """A disk, its edge smoothed; images are mirrored beyond their edge."""
    from scipy import ndimage

    return ndimage.correlate(x, disk(*DEFOCUS[k])[None, None], mode="mirror")


def disk(radius: float, sigma: float) -> Array:
    """float64[5, 5] that sums to 1: a disk of up to 3 x 3 cells, smoothed by a Gaussian of three cells."""
    from scipy import ndimage

    across = np.arange(-2, 3)
    cells = (across[:, None] ** 2 + across**2 <= radius**2).astype(np.float64)
    edge = np.exp(-0.5 * (np.arange(-1, 2) / sigma) ** 2)
    edge /= edge.sum()
    return ndimage.correlate(cells / cells.sum(), np.outer(edge, edge), mode="constant")


def glass_blur(x: Array, k: int, chance: Chance) -> Array:
    """Smoothed; then every pixel (but in the first two rows and columns) shows itself or its neighbour above, to the
    left, or both, one of the four by lot; smoothed again.

    The published code reads as if pixels changed places, but with several channels it copies one over the other, so
    this is what is in CIFAR-10-C; here it is so for one channel, too.
    """
    sigma, rounds = GLASS[k]
    b, c, h, w = x.shape
    seen = _smoothed(x, sigma).reshape(b, c, h * w)
    place = np.arange(h * w).reshape(h, w)
    for turn in range(rounds):
        lot = np.floor(4.0 * chance.uniform(h, w, lane=turn * h * w)).astype(np.int64)
        lot[:, :2] = lot[:, :, :2] = 0
        source = place - lot // 2 * w - lot % 2
        seen = np.take_along_axis(seen, source.reshape(b, 1, h * w), axis=2)
    return _smoothed(seen.reshape(x.shape), sigma)


def _smoothed(x: Array, sigma: float) -> Array:
    from scipy import ndimage

    return ndimage.gaussian_filter(x, (0.0, 0.0, sigma, sigma), mode="nearest")


def motion_blur(x: Array, k: int, chance: Chance) -> Array:
    """Moved at an angle of -45 to 45 degrees, drawn for each image."""
    radius, sigma = MOTION[k]
    return trail(x, radius, sigma, np.deg2rad(90.0 * chance.uniform(1)[:, 0] - 45.0))


def trail(x: Array, radius: float, sigma: float, angle: Array) -> Array:
    """Each pixel drawn out in one direction (float64[B], radians), its weights half a Gaussian: exp(-i^2 / 2 sigma^2)
    for the i-th cell on the way, up to 2 ceil(radius); beyond the edge the image goes on as its edge. Cells that
    weigh less than a ten-thousandth of the first are left out.
    """
    b, c, h, w = x.shape
    factor = reach(x.shape)
    far = np.arange(2 * int(np.ceil(radius * factor)) + 1)
    weights = np.exp(-0.5 * (far / (sigma * factor)) ** 2)
    far, weights = far[weights > 1e-4], weights[weights > 1e-4]
    weights /= weights.sum()
    flat = x.reshape(-1)
    first = (np.arange(b * c) * (h * w)).reshape(b, c, 1, 1)
    drawn = np.zeros_like(x)
    for i, weight in zip(far, weights, strict=True):
        rows = np.clip(np.arange(h) + np.rint(i * np.sin(angle)).astype(np.int64)[:, None], 0, h - 1)
        columns = np.clip(np.arange(w) + np.rint(i * np.cos(angle)).astype(np.int64)[:, None], 0, w - 1)
        drawn += weight * np.take(flat, first + rows[:, None, :, None] * w + columns[:, None, None, :])
    return drawn


def zoom_blur(x: Array, k: int, chance: Chance) -> Array:  # noqa: ARG001
    """The mean of the image and of itself enlarged about its centre, 1, 1.01, ... times."""
    b, c, h, w = x.shape
    return (_zooms(h, w, k) @ x.reshape(b * c, h * w).T).T.reshape(x.shape)


@lru_cache(maxsize=16)
def _zooms(height: int, width: int, k: int) -> sparse.csr_array:
    """All of zoom blur as one matrix, since it treats all images alike."""
    from scipy import sparse

    factors = np.arange(1.0, ZOOM[k], 0.01)  # what rounding makes of it: up to 1.06, 1.11, 1.16, 1.20, 1.26
    total = sparse.eye_array(height * width, format="csr")
    for factor in factors:
        total = total + enlarging(height, width, float(factor))
    return (total / (len(factors) + 1)).tocsr()


@lru_cache(maxsize=16)
def enlarging(height: int, width: int, factor: float) -> sparse.csr_array:
    """[H W, H W]: an image (flattened) enlarged about its centre, bilinear, cut to its size."""
    from scipy import sparse

    def axis(n: int) -> Array:
        place = (np.arange(n) - (n - 1) / 2) / factor + (n - 1) / 2
        low = np.clip(np.floor(place).astype(np.int64), 0, max(0, n - 2))
        part = place - low
        matrix = np.zeros((n, n))
        matrix[np.arange(n), low] = 1.0 - part
        matrix[np.arange(n), np.minimum(low + 1, n - 1)] += part
        return matrix

    return sparse.kron(axis(height), axis(width), format="csr")
