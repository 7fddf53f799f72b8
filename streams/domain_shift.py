"""``domain-shift``: a source model meets the images of another file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .events import Array
from .experiences import ORDER, TEST, Rows
from .image_shifts import CLEAN, Stretch, shifting
from .image_weather import LUMA
from .images import Images, resizing
from .npz import read_arrays
from .spec import MAX_CLASSES, InputError, Stream

HELD_OUT = 0.2
"""Share of a source without a test part that is kept to judge by."""
FIXED = 5
"""Seed of that choice, the same for all streams."""


@dataclass(frozen=True)
class Domains:
    """source: npz file of the labelled images to train on. target: npz file of the images that come. rows: images that
    come at most, every class in its share; 0 for all.
    """

    source: str = ""
    target: str = ""
    rows: int = 0


def domain_shift(params: Domains, seed: int) -> Stream:
    """Images of one file come, in random order, to a model of another: as from MNIST to USPS.

    Both files are npz archives with x_train, y_train, x_test, y_test, or x and y: x numbers [N, H, W], [N, H, W, 3],
    or [N, C, H, W]; y class codes that mean the same in both; uint8 is shown divided by 255, other numbers must lie in
    0..1. Of a source without a test part a fifth is held out; of a target its test part comes, or all of it.

    Images of the target that have another size are brought to the source's, bilinear; colours become grey (0.299,
    0.587, 0.114) or grey is repeated. spec.source has the rows of the source.
    """
    if not params.source or not params.target:
        raise InputError("domain-shift: two files are needed: source=FILE.npz target=FILE.npz")
    if params.rows < 0:
        raise InputError("domain-shift: rows must be at least 0")
    source, target = _read(Path(params.source)), _read(Path(params.target))
    x, y, shown, labels = *source.train, *(target.test or target.train)
    if source.test is None:
        order = np.random.default_rng(FIXED).permutation(len(y))
        held, kept = np.split(order, [max(1, round(HELD_OUT * len(y)))])
        x, y, x_test, y_test = x[kept], y[kept], x[held], y[held]
    else:
        x_test, y_test = source.test
    count = 1 + max(int(part.max()) for part in (y, y_test, labels))
    names = source.names if len(source.names) >= count else tuple(map(str, range(count)))
    images = Images(x, y, x_test, y_test, names, f"{Path(params.source).name} to {Path(params.target).name}")
    come = Rows(fitted(shown, images.shape), np.arange(len(labels)), labels)
    come = come.subset(params.rows, np.random.default_rng([seed, TEST]))
    which = np.random.default_rng([seed, ORDER]).permutation(len(come))
    stretch = Stretch(Path(params.target).stem, which, (CLEAN,), np.zeros(len(come), np.int64))
    return shifting("domain-shift", images, come, [stretch], seed, {"setting": "domain-shift"})


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What a file has: images, channels first, with their labels, and names of classes (perhaps none)."""

    train: tuple[Array, Array]
    test: tuple[Array, Array] | None
    names: tuple[str, ...]


def _read(path: Path) -> Parts:
    if not path.is_file():
        raise InputError(f"domain-shift: {path}: no such file")
    arrays = read_arrays(path)
    names = tuple(map(str, arrays["class_names"].tolist())) if "class_names" in arrays else ()
    if "x_train" not in arrays:
        return Parts(_labelled(path, arrays, "x", "y"), None, names)
    test = _labelled(path, arrays, "x_test", "y_test") if "x_test" in arrays else None
    return Parts(_labelled(path, arrays, "x_train", "y_train"), test, names)


def _labelled(path: Path, arrays: Mapping[str, Array], images: str, labels: str) -> tuple[Array, Array]:
    """numbers[N, C, H, W] and int64[N], checked."""
    if images not in arrays or labels not in arrays:
        raise InputError(f"{path}: no arrays {images!r} and {labels!r}; there are {', '.join(arrays) or 'none'}")
    x, y = arrays[images], arrays[labels]
    if x.ndim == 4 and x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    x = x[:, None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[1] not in (1, 3) or min(x.shape) < 1 or x.dtype.kind not in "biuf":
        raise InputError(f"{path}: {images} must be images of one or three channels, not {x.dtype}{list(x.shape)}")
    if y.shape != (len(x),) or y.dtype.kind not in "iu" or int(y.min()) < 0 or int(y.max()) >= MAX_CLASSES:
        raise InputError(f"{path}: {labels} must be {len(x)} class codes from 0 to {MAX_CLASSES - 1}")
    if x.dtype != np.uint8 and not (x.min() >= 0 and x.max() <= 1):
        raise InputError(f"{path}: {images} must be uint8, or numbers in 0..1")
    return x, y.astype(np.int64)


def fitted(x: Array, shape: tuple[int, ...]) -> Array:
    """Images brought to another number of channels, height and width; float32 where they have to change."""
    if x.shape[1:] == shape:
        return x
    x = (x / 255.0 if x.dtype == np.uint8 else x).astype(np.float32)
    if x.shape[1] != shape[0]:
        x = np.einsum("bchw,c->bhw", x, LUMA)[:, None] if shape[0] == 1 else np.repeat(x, shape[0], axis=1)
    down, across = resizing(x.shape[2], shape[1]), resizing(x.shape[3], shape[2])
    return (down @ x @ across.T).astype(np.float32)
