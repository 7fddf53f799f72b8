"""Image sets from their publishers by way of torchvision; imported only by ``--fetch``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .datasets import Dataset
from .events import Array
from .spec import InputError


def save_images(dataset: Dataset, work: Path, out: Path) -> None:
    """Download both parts of a set into ``work`` and write ``out``: x_train, y_train, x_test, y_test as uint8.

    Images are [N, H, W] or [N, H, W, 3], in the publisher's order; ``class_names`` are there where they are not the
    digits. torchvision checks the md5 of what it downloads. Raises InputError in one line where torchvision is
    missing or does not fit torch, and where the download fails.
    """
    try:
        from torchvision import datasets as published
    except ImportError:
        raise InputError(f'{dataset.name}: fetching it needs torchvision: pip install "driftway[vision]"') from None
    except RuntimeError as error:
        raise InputError(f"{dataset.name}: torchvision does not fit this torch: {_line(error)}") from None
    kind = getattr(published, dataset.convert)
    try:
        train, test = (kind(str(work), train=first, download=True) for first in (True, False))
    except (RuntimeError, OSError) as error:
        raise InputError(f"{dataset.name}: torchvision could not get it: {_line(error)}") from None
    arrays = {
        "x_train": train.data,
        "y_train": train.targets,
        "x_test": test.data,
        "y_test": test.targets,
    }
    if dataset.name != "mnist":
        arrays["class_names"] = train.classes
    with open(out, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **{k: _plain(v) for k, v in arrays.items()})


def _plain(values: Any) -> Array:
    """Tensors, arrays and lists alike: bytes, or the names of classes."""
    array = np.asarray(values)
    return array if array.dtype.kind == "U" else array.astype(np.uint8)


def _line(error: Exception) -> str:
    """An error in one line; of several, the last says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
