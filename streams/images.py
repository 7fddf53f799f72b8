"""The image sets that tasks are made of, read from the files of ``datasets.py``: channels first, uint8 as they are."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .datasets import DATASETS, data_path, locate_file
from .events import Array
from .experiences import Rows, Task, View
from .npz import read_arrays
from .spec import InputError

DIGITS = tuple("0123456789")
CIFAR_PART = (1000, 200)
"""Images of each class in the smaller file: training, test."""


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Labelled images, channels first: x numbers[N, C, H, W], y int64[N]; source says what they are a part of."""

    x: Array
    y: Array
    x_test: Array
    y_test: Array
    classes: tuple[str, ...]
    source: str

    def task(self, name: str, view: View | None = None) -> Task:
        train = Rows(self.x, np.arange(len(self.x)), self.y, view)
        return Task(name, train, Rows(self.x_test, np.arange(len(self.x_test)), self.y_test, view))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])


DIGITS_TRAIN = 1257


def digits_images() -> Images:
    """Scikit-learn's digits, one channel of 8 x 8, pixels divided by 16; 540 are for tests, by one fixed shuffle."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16.0).astype(np.float32).reshape(-1, 1, 8, 8), y[order].astype(np.int64)
    cut = DIGITS_TRAIN
    return Images(x[:cut], y[:cut], x[cut:], y[cut:], DIGITS, "1,257 training and 540 test images, all there are")


def grey_images(name: str) -> Images:
    """Images of one channel from a data set of uint8[N, H, W]."""
    _, arrays = _arrays(name, (28, 28))
    x, x_test = arrays["x_train"][:, None], arrays["x_test"][:, None]
    names = _class_names(arrays)
    source = f"{len(x):,} of 60,000 training and {len(x_test):,} of 10,000 test images"
    return Images(x, arrays["y_train"].astype(np.int64), x_test, arrays["y_test"].astype(np.int64), names, source)


def resizing(old: int, new: int) -> Array:
    """float64[new, old]: one axis of an image brought to another size, linear between the middles of cells.

    Where it shrinks, the triangle is as wide as two new cells, so that every old cell counts.
    """
    scale = old / new
    away = (np.arange(old) + 0.5) - (np.arange(new)[:, None] + 0.5) * scale
    weight = np.maximum(0.0, 1.0 - np.abs(away) / max(1.0, scale))
    return weight / weight.sum(axis=1, keepdims=True)


def _arrays(name: str, shape: tuple[int, ...]) -> tuple[Path, Mapping[str, Array]]:
    """The file of an image set and its arrays, which are what they must be, but perhaps fewer rows."""
    path = data_path(name)
    arrays = read_arrays(path)
    for part in ("train", "test"):
        x, y = arrays.get(f"x_{part}", np.empty(0)), arrays.get(f"y_{part}", np.empty(0))
        if x.dtype == y.dtype == np.uint8 and x.shape == (len(y), *shape) and len(y) and y.max() < 10:
            continue
        raise InputError(f"{path}: not the arrays x_train, y_train, x_test, y_test that driftway data {name} describes")
    return path, arrays


def _class_names(arrays: Mapping[str, Array]) -> tuple[str, ...]:
    return tuple(arrays["class_names"].tolist()) if "class_names" in arrays else DIGITS


def cifar10_images(more: bool) -> Images:
    """The complete set where it is here, else the JPEG copies; without ``more`` the first images of each class."""
    path, arrays = _arrays("cifar10", (32, 32, 3))
    whole = path.name == DATASETS["cifar10"].file
    train, test = (
        _cifar10_part(arrays, part, count if whole and not more else 0, more and not whole)
        for part, count in zip(("train", "test"), CIFAR_PART, strict=True)
    )
    source = f"{len(train[0]):,} of 50,000 training and {len(test[0]):,} of 10,000 test images"
    source += "" if whole else ", from JPEG copies (quality 75)"
    return Images(*train, *test, _class_names(arrays), source)


def _cifar10_part(arrays: Mapping[str, Array], part: str, first: int, jpegs: bool) -> tuple[Array, Array]:
    """uint8[N, 3, 32, 32] and int64[N]: the ``first`` of each class (0: all), and the JPEG images behind them."""
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"].astype(np.int64)
    if first:
        kept = np.sort(np.concatenate([np.flatnonzero(y == c)[:first] for c in range(10)]))
        x, y = x[kept], y[kept]
    packed, cuts, more = _jpegs(part) if jpegs else (b"", np.zeros(1, np.int64), y[:0])
    images = np.empty((len(y) + len(more), 3, 32, 32), np.uint8)
    images[: len(y)] = x.transpose(0, 3, 1, 2)
    for i in range(len(more)):
        images[len(y) + i] = _decoded(packed[cuts[i] : cuts[i + 1]]).transpose(2, 0, 1)
    return images, np.concatenate([y, more])


def _jpegs(part: str) -> tuple[bytes, Array, Array]:
    """All JPEG files in one, where each begins and ends, and their labels."""
    path = locate_file("cifar10_more_jpeg.npz")
    if path is None:
        raise InputError("cifar10: more needs cifar10_more_jpeg.npz, or all of it: driftway data cifar10 --fetch")
    arrays = read_arrays(path, (f"jpeg_{part}", f"offset_{part}", f"y_{part}"))
    return arrays[f"jpeg_{part}"].tobytes(), arrays[f"offset_{part}"], arrays[f"y_{part}"].astype(np.int64)


def _decoded(jpeg: bytes) -> Array:
    try:
        from PIL import Image
    except ImportError:
        raise InputError('cifar10: more needs pillow: pip install "driftway[vision]"') from None
    with Image.open(io.BytesIO(jpeg)) as image:
        return np.asarray(image.convert("RGB"))
