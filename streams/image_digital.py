"""What processing does in CIFAR-C: low contrast, elastic distortion, coarse pixels, JPEG.

Images are float64[B, C, H, W] in [0, 1]; ``k`` is the severity counted from 0. Parameters are those of the CIFAR
variant (Hendrycks, Dietterich, ICLR 2019), where lengths are shares of the side; the code is our own.
"""

from __future__ import annotations

import io

import numpy as np

from .events import Array
from .feed import Chance
from .spec import InputError

CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)
ELASTIC = ((0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
"""Height and sigma of the displacement, and how far the corners of the affine part move, in sides of the image."""
PIXELATE = (0.95, 0.9, 0.85, 0.75, 0.65)
QUALITY = (80, 65, 58, 50, 40)


def contrast(x: Array, k: int, chance: Chance) -> Array:  # noqa: ARG001
    """Each channel is pulled to its mean over the image."""
    mean = x.mean(axis=(2, 3), keepdims=True)
    return mean + CONTRAST[k] * (x - mean)


def elastic_transform(x: Array, k: int, chance: Chance) -> Array:
    """An affine distortion (three points a third of a side from the centre are moved by lot) and a smooth random
    displacement; both in one bilinear look-up, where the original takes two. Beyond its edge an image is mirrored.

    With severity the displacement grows rougher but the affine part smaller, so the distance to the clean image does
    not rise at every step.
    """
    h, w = x.shape[2:]
    rows, columns = displaced(k, h, w, chance)
    return bilinear(x, rows, columns)


def displaced(k: int, height: int, width: int, chance: Chance) -> tuple[Array, Array]:
    """Two float64[B, H, W]: the row and the column that each pixel comes from."""
    alpha, sigma, corners = (min(height, width) * part for part in ELASTIC[k])
    b = len(chance.rows)
    shift = alpha * (2.0 * chance.uniform(2, height, width, lane=6) - 1.0)
    if alpha:
        from scipy import ndimage

        shift = ndimage.gaussian_filter(shift, (0.0, 0.0, sigma, sigma), mode="reflect", truncate=3.0)
    third = min(height, width) // 3
    points = np.array([[1, 1], [1, -1], [-1, -1]]) * third + np.array([height // 2, width // 2])
    moved = points + corners * (2.0 * chance.uniform(3, 2) - 1.0)
    ones = np.ones((b, 3, 1))
    affine = np.linalg.solve(np.concatenate([moved, ones], axis=2), np.broadcast_to(points.astype(float), (b, 3, 2)))
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij")) + shift
    from_rows, from_columns = (
        affine[:, 0, j, None, None] * grid[:, 0]
        + affine[:, 1, j, None, None] * grid[:, 1]
        + affine[:, 2, j, None, None]
        for j in (0, 1)
    )
    return from_rows, from_columns


def bilinear(x: Array, rows: Array, columns: Array) -> Array:
    """Images looked up at places (float64[B, H, W] each); mirrored about the middle of their outermost cells."""
    b, c, h, w = x.shape
    flat = x.reshape(-1)
    first = (np.arange(b * c) * (h * w)).reshape(b, c, 1, 1)
    low_row, low_column = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    seen = np.zeros_like(x)
    for i in (0, 1):
        down = np.abs(1 - i - (rows - low_row))
        row = _mirrored(low_row + i, h) * w
        for j in (0, 1):
            weight = down * np.abs(1 - j - (columns - low_column))
            place = row + _mirrored(low_column + j, w)
            seen += weight[:, None] * np.take(flat, first + place[:, None])
    return seen


def _mirrored(place: Array, n: int) -> Array:
    folded = np.abs(place) % (2 * n - 2)
    return np.where(folded < n, folded, 2 * n - 2 - folded)


def pixelate(x: Array, k: int, chance: Chance) -> Array:  # noqa: ARG001
    """Shrunk to the whole part of c times its side, and back: each cell is the mean of the pixels whose centres it
    holds, and each pixel shows the cell that holds its centre.
    """
    return coarse(x.shape[2], PIXELATE[k]) @ x @ coarse(x.shape[3], PIXELATE[k]).T


def coarse(side: int, factor: float) -> Array:
    """float64[n, n]: one axis shrunk and enlarged again."""
    cells = max(1, int(side * factor))
    cell = ((np.arange(side) + 0.5) * cells / side).astype(np.int64)
    same = cell[:, None] == cell
    return same / same.sum(axis=1, keepdims=True)


def jpeg_compression(x: Array, k: int, chance: Chance) -> Array:  # noqa: ARG001
    """Through JPEG, by pillow, at quality 80, 65, 58, 50, 40; three channels are its colours, others come grey."""
    try:
        from PIL import Image
    except ImportError:
        raise InputError('jpeg_compression needs pillow: pip install "driftway[vision]"') from None
    levels = np.rint(np.clip(x, 0.0, 1.0) * 255.0).astype(np.uint8)
    read = np.empty_like(levels)
    for image, out in zip(levels, read, strict=True):
        file = io.BytesIO()
        colours = image.transpose(1, 2, 0)
        Image.fromarray(colours if len(image) == 3 else colours[..., 0]).save(file, "JPEG", quality=QUALITY[k])
        with Image.open(file) as decoded:
            out[:] = np.asarray(decoded).reshape(*image.shape[1:], len(image)).transpose(2, 0, 1)
    return read / 255.0
