"""NumPy archives as streams: arrays ``x`` and ``y`` (and ``feature_names``, ``class_names`` where they are there)."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from .cells import category, is_missing, numeral
from .events import NO_LABEL, Array
from .sources import BLOCK, BlockStream, Position, from_arrays
from .spec import Column, InputError, StreamSpec
from .table import Raw, Rules, TableBlocks, classes_of, is_regression, settle


def read_arrays(path: Path, keys: tuple[str, ...] | None = None) -> dict[str, Array]:
    """The arrays of an archive. Object arrays are refused (they would run code). Raises InputError in one line."""
    try:
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                raise InputError(f"{path}: one bare array, not an npz archive")
            with zipfile.ZipFile(file):  # what is no zip file is found out here, not taken for a pickle
                file.seek(0)
                archive = np.load(file, allow_pickle=False)
                return {k: archive[k] for k in (archive.files if keys is None else keys) if k in archive.files}
    except ValueError as error:
        if "allow_pickle" in str(error) or "Object arrays" in str(error):
            raise InputError(f"{path}: object arrays are refused; save plain numbers or text") from None
        raise InputError(f"{path}: not a readable npz archive ({error})") from None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError) as error:
        raise InputError(f"{path}: not a readable npz archive ({error})") from None


class ArrayCells:
    """A table reader over arrays in memory, for text columns."""

    start: ClassVar[Position] = {"row": 0}

    def __init__(self, name: str, names: tuple[str, ...], x: Array, y: Array) -> None:
        self.name, self.names = name, names
        self.length: int | None = len(x)
        self._columns = [*x.T, y]

    def read(self, at: Position) -> Raw:
        row = at["row"]
        stop = min(row + BLOCK, len(self._columns[0]))
        following = {"row": stop} if stop < len(self._columns[0]) else None
        columns = [c[row:stop] if c.dtype.kind in "iuf" else c[row:stop].tolist() for c in self._columns]
        return Raw(np.arange(row, stop), columns, {}, following)


def open_npz(path: Path, label: str | int | None, rules: Rules) -> BlockStream:
    """x: [N, ...] numbers or [N, d] text; y (or the array named by ``label``): [N] numbers or text."""
    arrays = read_arrays(path)
    target = "y" if label is None else str(label)
    for key in ("x", target):
        if key not in arrays:
            raise InputError(f"{path}: no array {key!r}; the arrays are {', '.join(arrays) or 'none'}")
    x, y = arrays["x"], arrays[target]
    if x.ndim < 2 or y.shape != (len(x),) or not len(x):
        raise InputError(
            f"{path}: x has shape {list(x.shape)} and {target} {list(y.shape)}; [N, ...] and [N] are needed"
        )
    if x.dtype.kind not in "biufU" or y.dtype.kind not in "biufU":
        raise InputError(f"{path}: x is {x.dtype} and {target} is {y.dtype}; numbers or text are needed")
    width = int(np.prod(x.shape[1:]))
    names = (
        tuple(arrays["feature_names"].tolist()) if "feature_names" in arrays else tuple(f"x{j}" for j in range(width))
    )
    if len(names) != width:
        raise InputError(f"{path}: {len(names)} feature_names for {width} columns")
    plain = x.dtype.kind != "U" and not rules.nominal and not rules.drop
    if plain and "class_names" in arrays and y.dtype.kind in "biu":
        classes = tuple(arrays["class_names"].tolist())
        return from_arrays(x, y, name=path.name, columns=names, classes=classes, missing_label=rules.missing_label)
    if y.dtype.kind == "i" and np.any(y == NO_LABEL) and set(np.unique(y).tolist()) != {-1, 1}:
        y = np.where(y == NO_LABEL, np.nan, y)
    if plain:
        return _numbers(path, x, y, names, target, rules)
    reader = ArrayCells(path.name, (*names, target), x.reshape(len(x), width), y)
    plan = settle(reader, target, replace(rules, prefix=len(x)))
    return BlockStream(plan.spec, TableBlocks(reader, plan))


def _numbers(path: Path, x: Array, y: Array, names: tuple[str, ...], target: str, rules: Rules) -> BlockStream:
    """Numeric columns: only the labels' kind, and the names of classes, are to be found, from all of ``y``."""
    values, places = np.unique(y, return_inverse=True)
    regression = is_regression(values.tolist(), rules)
    classes: tuple[str, ...] | None = None
    if not regression:
        classes, _ = classes_of(values.tolist(), rules, path.name)
        known = {name: code for code, name in enumerate(classes)}
        codes = [NO_LABEL if is_missing(v) else known.get(numeral(category(v)), len(known)) for v in values.tolist()]
        y = np.array(codes, dtype=np.int64)[places]
    spec = StreamSpec(
        path.name,
        tuple(Column(n, missing=rules.missing) for n in names),
        target="regression" if regression else "classification",
        target_name=target,
        classes=classes,
        length=len(x),
        shape=x.shape[1:] if x.ndim > 2 else None,
    )
    return from_arrays(x, y, spec=spec, missing_label=rules.missing_label)
