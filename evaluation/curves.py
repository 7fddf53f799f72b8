"""The whole curve of a continual evaluation as a file: right answers of each experience at each evaluation.

Columns: update, step (rows of the stream so far), experience (the one being learnt, from 0), then one per experience,
titled ``NAME of ROWS``, with right answers as whole numbers and nothing while it has not been seen. Counts are exact,
so every metric can be had again from this file.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..streams import Array, InputError

FIXED = ("update", "step", "experience")


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """One run's curve of n evaluations over K experiences.

    names, sizes: of the experiences, sizes in held-out rows. update, step, experience: int64[n]. right: int64[n, K],
    right answers, -1 where the experience had not been seen.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    update: Array
    step: Array
    experience: Array
    right: Array

    @property
    def accuracy(self) -> Array:
        """float64[n, K]: share of right answers, NaN where the experience had not been seen."""
        return np.where(self.right < 0, np.nan, self.right / np.array(self.sizes))

    @property
    def switches(self) -> Array:
        """int64[s]: places in the curve that are the last of their experience, the last place of all left out."""
        return np.flatnonzero(np.diff(self.experience))


def curve_header(names: Sequence[str], sizes: Sequence[int]) -> list[str]:
    """The titles of all columns."""
    return [*FIXED, *(f"{name} of {rows}" for name, rows in zip(names, sizes, strict=True))]


def read_curve(path: Path) -> Curve:
    """Read such a file; a last line that a kill cut short is left out. ``InputError`` in one line if it is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise InputError(f"{path}: cannot be read ({fault})") from fault
    header, *lines = list(csv.reader(text.split("\n")[:-1])) or [[]]
    titles = [title.rpartition(" of ") for title in header[len(FIXED) :]]
    if tuple(header[: len(FIXED)]) != FIXED or not all(rows.isdigit() for *_, rows in titles):
        raise InputError(f"{path}: not the curve of a continual evaluation")
    try:
        table = np.array([[int(cell or -1) for cell in line] for line in lines], np.int64).reshape(-1, len(header))
    except ValueError:
        raise InputError(f"{path}: a line does not hold {len(header)} whole numbers") from None
    names, sizes = tuple(t[0] for t in titles), tuple(int(t[2]) for t in titles)
    update, step, experience = table[:, :3].T
    return Curve(names, sizes, update, step, experience, table[:, 3:])
