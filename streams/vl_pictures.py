"""Small pictures drawn patch by patch: shapes, digits and handwritten characters on a dim ground.

A picture is 32 x 32 pixels in three colours, cut into 4 x 4 patches of 8 x 8. An object fills one patch, a character
2 x 2 of them, so what a patch shows is known to whoever had it drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from .datasets import locate_file
from .events import Array
from .gilcd import OMNIGLOT, omniglot_images
from .images import digits_images, resizing

PATCH, GRID = 8, 4
"""Pixels along a patch, and patches along a picture."""
CELLS = GRID * GRID
SHAPE = (3, GRID * PATCH, GRID * PATCH)
NOTHING = -1
COLOURS = {
    "red": (225, 45, 40), "green": (40, 190, 60), "blue": (60, 90, 245),
    "yellow": (240, 220, 50), "purple": (190, 60, 215), "white": (240, 240, 240),
}  # fmt: skip
CHARACTERS = 20
"""How many of the characters are used."""
GROUND, NOISE, TINT = (15, 55), 6, 15
"""The ground's grey, drawn for each picture; noise of each pixel and shift of each object's colour, at most."""
FAINT = 0.15
"""A quarter of a character with less ink than this in every pixel is ground."""
FINE = 8
"""Points along a pixel that its share of ink is counted over."""

_SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": lambda u, v: u**2 + v**2 < 1.0,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.88,
    "triangle": lambda u, v: (v < 0.85) & (abs(u) < (v + 1.0) / 1.8),
    "diamond": lambda u, v: abs(u) + abs(v) < 1.12,
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.32) & (np.maximum(abs(u), abs(v)) < 1.0),
    "ring": lambda u, v: (u**2 + v**2 < 1.05) & (u**2 + v**2 > 0.3),
    "hourglass": lambda u, v: (abs(u) < 0.12 + 0.88 * abs(v)) & (abs(v) < 0.95),
    "heart": lambda u, v: (u**2 + (0.1 - v) ** 2 - 0.55) ** 3 < u**2 * (0.1 - v) ** 3 * 1.6,
    "moon": lambda u, v: (u**2 + v**2 < 1.05) & ((u - 0.55) ** 2 + v**2 > 0.75),
    "arrow": lambda u, v: np.where(v < 0.0, abs(u) < v + 1.0, (abs(u) < 0.34) & (v < 1.0)).astype(bool),
    "stripes": lambda u, v: (abs(abs(v) - 0.62) < 0.3) & (abs(u) < 1.0),
    "frame": lambda u, v: (np.maximum(abs(u), abs(v)) < 1.0) & (np.maximum(abs(u), abs(v)) > 0.6),
    "bar": lambda u, v: (abs(u) < 0.38) & (abs(v) < 1.05),
}
"""Whether a point (to the right, downwards; the object reaches from -1 to 1) is ink."""
SHAPES = tuple(_SHAPES)
KINDS = (*SHAPES, "digit", "character")
"""What a patch may show, by code; ``NOTHING`` where it shows the ground."""


@dataclass(frozen=True, slots=True, eq=False)
class Ink:
    """All that can be drawn in a patch: float32[M, 8, 8], the share of ink in each pixel, and which is what.

    kind: int8[M], places in ``KINDS``; ``NOTHING`` for a quarter of a character without ink. shapes: int64[variants].
    digits, characters: for training and held out; of each digit int64[drawings], of all characters
    int64[characters, drawings, 4], their quarters row by row (no characters where Omniglot is not here).
    """

    share: Array
    kind: Array
    shapes: dict[str, Array]
    digits: tuple[list[Array], list[Array]]
    characters: tuple[Array, Array]


def omniglot_file() -> Path | None:
    """Where the characters are, None where they are not here."""
    return locate_file(OMNIGLOT)


@lru_cache(maxsize=2)
def ink(omniglot: Path | None) -> Ink:
    """Everything there is to draw with; without characters for None."""
    variants = [_variants(shape) for shape in _SHAPES.values()]
    ends = np.cumsum([0, *map(len, variants)])
    images = digits_images()
    first, held = int(ends[-1]), int(ends[-1]) + len(images.y)
    digits = (
        [first + np.flatnonzero(images.y == d) for d in range(10)],
        [held + np.flatnonzero(images.y_test == d) for d in range(10)],
    )
    drawn = _characters() if omniglot is not None else (np.empty((0, 0, 4, PATCH, PATCH)),) * 2
    share = np.concatenate(
        [*variants, images.x[:, 0], images.x_test[:, 0], *(part.reshape(-1, PATCH, PATCH) for part in drawn)],
        dtype=np.float32,
    )
    last = held + len(images.y_test)
    train, test = (np.arange(part[..., 0, 0].size).reshape(part.shape[:3]) for part in drawn)
    kind = np.full(len(share), KINDS.index("character"), np.int8)
    kind[:first] = np.repeat(np.arange(len(SHAPES)), np.diff(ends))
    kind[first:last] = KINDS.index("digit")
    kind[share.max((1, 2)) < FAINT] = NOTHING
    shapes = {name: np.arange(*ends[k : k + 2]) for k, name in enumerate(SHAPES)}
    return Ink(share, kind, shapes, digits, (last + train, last + train.size + test))


def _variants(inside: Callable[[Array, Array], Array]) -> Array:
    """float64[27, 8, 8]: a shape in three sizes at nine places around the middle of its patch."""
    points = (np.arange(PATCH * FINE) + 0.5) / FINE - PATCH / 2
    made = []
    for radius in (2.9, 3.2, 3.5):
        for down in (-0.4, 0.0, 0.4):
            for right in (-0.4, 0.0, 0.4):
                drawn = inside((points[None] - right) / radius, (points[:, None] - down) / radius)
                made.append(drawn.reshape(PATCH, FINE, PATCH, FINE).mean((1, 3)))
    return np.stack(made)


def _characters() -> tuple[Array, Array]:
    """Quarters of the drawings of evenly spaced characters, for training and held out."""
    images = omniglot_images()
    chosen = np.linspace(0, len(images.classes) - 1, CHARACTERS).astype(np.int64)
    train, test = np.isin(images.y, chosen), np.isin(images.y_test, chosen)
    return _quarters(images.x[train, 0]), _quarters(images.x_test[test, 0])


def _quarters(x: Array) -> Array:
    """float64[characters, drawings, 4, 8, 8] of drawings (n, side, side) that stand together by character."""
    smaller = resizing(x.shape[-1], 2 * PATCH)
    small = smaller @ x @ smaller.T
    small = np.minimum(1.0, 1.5 * small / np.maximum(small.max((1, 2), keepdims=True), 1e-9))
    cut = small.reshape(CHARACTERS, -1, 2, PATCH, 2, PATCH).swapaxes(3, 4)
    return cut.reshape(*cut.shape[:2], 4, PATCH, PATCH)


def paint(pen: Ink, marks: Array, colours: Array, generator: np.random.Generator) -> Array:
    """int32[n, 3 * 32 * 32] of 0..255, channels first: what stands in each patch on a ground of its own grey.

    marks: int64[n, 16], places in ``pen.share``, ``NOTHING`` for the ground. colours: int64[n, 16], of ``COLOURS``.
    """
    n = len(marks)
    palette = np.array(list(COLOURS.values()), np.float64)
    tint = palette[colours] + generator.integers(-TINT, TINT + 1, (n, CELLS, 3))
    ground = generator.integers(*GROUND, (n, 1, 1, 1, 1)).astype(np.float64)
    share = np.where((marks == NOTHING)[..., None, None], 0.0, pen.share[marks])
    patches = ground + share[:, :, None] * (tint[..., None, None] - ground)
    whole = patches.reshape(n, GRID, GRID, 3, PATCH, PATCH).transpose(0, 3, 1, 4, 2, 5).reshape(n, -1)
    whole += generator.integers(-NOISE, NOISE + 1, whole.shape)
    return np.clip(np.rint(whole), 0, 255).astype(np.int32)
