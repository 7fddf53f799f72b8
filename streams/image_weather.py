"""Weather of CIFAR-C: snow, frost, fog, bright light.

Images are float64[B, C, H, W] in [0, 1]; ``k`` is the severity counted from 0. Parameters are those of the CIFAR
variant (Hendrycks, Dietterich, ICLR 2019); the code is our own. Frost differs from the original: that lays
photographs of frosted panes over the image, which we do not have; ours are made up (``pane``), so figures for frost
are not those of CIFAR-10-C.
"""

from __future__ import annotations

import numpy as np

from .events import Array
from .feed import Chance
from .image_blur import enlarging, trail

SNOW = (
    (0.1, 0.2, 1.0, 0.6, 8.0, 3.0, 0.95),
    (0.1, 0.2, 1.0, 0.5, 10.0, 4.0, 0.9),
    (0.15, 0.3, 1.75, 0.55, 10.0, 4.0, 0.9),
    (0.25, 0.3, 2.25, 0.6, 12.0, 6.0, 0.85),
    (0.3, 0.3, 1.25, 0.65, 14.0, 12.0, 0.8),
)
"""Mean and spread of the flakes' layer, how much it is enlarged, the least that is a flake, radius and sigma of their
fall, and what is left of the image's own colours."""
FROST = ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
"""Shares of the image and of the pane."""
FOG = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))
"""Thickness, and how fast its detail fades with size."""
BRIGHTNESS = (0.05, 0.1, 0.15, 0.2, 0.3)
LUMA = np.array([0.299, 0.587, 0.114])
ICE = np.array([0.92, 0.97, 1.0])
"""A pane is a little blue where there is colour; our choice."""


def snow(x: Array, k: int, chance: Chance) -> Array:
    """Flakes that fall at 45 to 135 degrees, once as drawn and once upside down, over an image that turns white."""
    mean, spread, factor, least, radius, sigma, own = SNOW[k]
    b, _, h, w = x.shape
    layer = (mean + spread * chance.normal(h, w)).reshape(b, h * w)
    layer = (enlarging(h, w, factor) @ layer.T).T.reshape(b, 1, h, w)
    layer = np.clip(np.where(layer < least, 0.0, layer), 0.0, 1.0)
    layer = trail(layer, radius, sigma, np.deg2rad(-45.0 - 90.0 * chance.uniform(1, lane=1 << 24)[:, 0]))
    white = np.maximum(x, 1.5 * luma(x) + 0.5)
    return own * x + (1.0 - own) * white + layer + layer[:, :, ::-1, ::-1]


def luma(x: Array) -> Array:
    """float64[B, 1, H, W]: how light a pixel is."""
    return x if x.shape[1] == 1 else np.einsum("bchw,c->bhw", x, LUMA)[:, None]


def frost(x: Array, k: int, chance: Chance) -> Array:
    """a image + b pane."""
    image, ice = FROST[k]
    tint = np.ones(1) if x.shape[1] == 1 else ICE
    return image * x + ice * tint[:, None, None] * pane(chance, x.shape[2], x.shape[3])[:, None]


def pane(chance: Chance, height: int, width: int) -> Array:
    """float64[B, H, W] in 0.2..1: bright ridges like crystals, where rough clouds cross half their height."""
    ridge = 1.0 - np.abs(2.0 * plasma(chance, height, width, 1.75) - 1.0)
    return 0.2 + 0.8 * ridge**2


def fog(x: Array, k: int, chance: Chance) -> Array:
    """Clouds added, and all of it scaled so that the brightest stays: (x + c f) m / (m + c) with m = max x."""
    thick, decay = FOG[k]
    brightest = x.max(axis=(1, 2, 3), keepdims=True)
    clouds = plasma(chance, x.shape[2], x.shape[3], decay)[:, None]
    return (x + thick * clouds) * brightest / (brightest + thick)


def plasma(chance: Chance, height: int, width: int, decay: float) -> Array:
    """float64[B, H, W]: clouds by the diamond-square method on a torus, from 0 to 1 over the whole of it.

    Its side is the next power of two. Each halving of the grid divides the chance part by decay^2, as the published
    code does (it multiplies its amplitude by a number drawn up to that amplitude).
    """
    side = 1 << (max(height, width) - 1).bit_length()
    field = np.zeros((len(chance.rows), side, side))
    draws = 2.0 * chance.uniform(side, side) - 1.0  # each cell has a draw of its own
    step, size = side, 1e4
    while step >= 2:
        half = step // 2
        corner = field[:, ::step, ::step]
        right, down = np.roll(corner, -1, axis=2), np.roll(corner, -1, axis=1)
        middle = (corner + right + down + np.roll(right, -1, axis=1)) / 4 + size * draws[:, half::step, half::step]
        field[:, half::step, half::step] = middle
        top = (corner + right + middle + np.roll(middle, 1, axis=1)) / 4 + size * draws[:, ::step, half::step]
        left = (corner + down + middle + np.roll(middle, 1, axis=2)) / 4 + size * draws[:, half::step, ::step]
        field[:, ::step, half::step], field[:, half::step, ::step] = top, left
        step, size = half, size / decay**2
    low, high = (f(field, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    return ((field - low) / (high - low))[:, :height, :width]


def brightness(x: Array, k: int, chance: Chance) -> Array:  # noqa: ARG001
    """The value of hue, saturation, value (the greatest channel) is raised, at most to 1; hue and saturation stay."""
    value = x.max(axis=1, keepdims=True)
    raised = np.minimum(value + BRIGHTNESS[k], 1.0)
    return np.where(value > 0, x * (raised / np.where(value > 0, value, 1.0)), raised)
