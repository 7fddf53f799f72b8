"""The fifteen corruptions of CIFAR-C, for images of any size: one table, one function.

Hendrycks, Dietterich: Benchmarking neural network robustness to common corruptions and perturbations, ICLR 2019. The
parameters are those of its CIFAR variant; the code is our own. What differs: frost is made up (``image_weather``),
elastic distortion is one look-up (``image_digital``), and nothing but JPEG and the input of shot noise is rounded to
8 bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .events import Array
from .feed import Chance
from .image_blur import defocus_blur, glass_blur, motion_blur, zoom_blur
from .image_digital import contrast, elastic_transform, jpeg_compression, pixelate
from .image_noise import gaussian_noise, impulse_noise, shot_noise
from .image_weather import brightness, fog, frost, snow
from .spec import InputError

CIFAR_C: dict[str, Callable[[Array, int, Chance], Array]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
}
"""In the order of the benchmark."""
NUMBER = {kind: k for k, kind in enumerate(CIFAR_C)}


def weathered(x: Array, kind: str, severity: int, ids: Array, seed: int = 0) -> Array:
    """Images as the corruption ``kind`` (a name in ``CIFAR_C``) leaves them, severity 1..5.

    x: float64[B, C, H, W] in [0, 1], C 1 or 3, 4 x 4 or larger; so is the result. ids: int64[B]; what happens to an
    image depends on the seed, the kind and its id only, never on the images it comes with.
    """
    chance = Chance(seed + ((NUMBER[kind] + 1) << 32), np.asarray(ids))  # each kind has draws of its own
    return np.clip(CIFAR_C[kind](x, severity - 1, chance), 0.0, 1.0)


def need_images(name: str, shape: tuple[int, ...] | None) -> None:
    """Raises InputError unless rows of this shape are images: [H, W] or [C, H, W], C 1 or 3, 4 x 4 or larger."""
    if shape is None or len(shape) not in (2, 3) or min(shape[-2:]) < 4 or (len(shape) == 3 and shape[0] not in (1, 3)):
        raise InputError(f"{name} needs images, one or three channels first, 4 x 4 or larger; rows have shape {shape}")
