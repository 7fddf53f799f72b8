"""What a stream is made of: five small values, each a fact about one moment.

Arrays are NumPy and their leading axis is the item. ``time`` is the stream's own clock (a row number where the
source has no better one), never the wall clock, so that a run can be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Features: TypeAlias = "Array | Mapping[str, Array]"

NO_LABEL = -1
"""The class code of a row whose label is not known (``y`` of a regression stream holds NaN instead)."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that arrive together and are to be predicted.

    ids: int64[B], unique within a stream. x: float64[B, d] for tables (nominal columns as category codes, NaN where a
    value is missing), or a mapping of such arrays. y: int64[B] class codes (``NO_LABEL`` where unknown), float64[B]
    for regression, or None when no label is known yet.
    """

    ids: Array
    x: Features
    time: float
    y: Array | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, index: slice | Array) -> Batch:
        """The chosen rows as a batch of their own (a view where ``index`` is a slice)."""
        x = {k: v[index] for k, v in self.x.items()} if isinstance(self.x, Mapping) else self.x[index]
        return Batch(self.ids[index], x, self.time, None if self.y is None else self.y[index])


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of earlier rows that come later. ids: int64[B]; y as in ``Batch``.

    learn=False: they are for whoever judges the answers; the learner never sees them.
    """

    ids: Array
    y: Array
    time: float
    learn: bool = True


@dataclass(frozen=True, slots=True)
class Forget:
    """A request to unlearn the rows with these ids (int64[B]).

    kind: "ids"; with "class" or "group" it is all rows of one, whose code or number ids then holds.
    """

    ids: Array
    time: float
    reason: str = ""
    kind: str = "ids"


@dataclass(frozen=True, slots=True)
class Boundary:
    """A known change of the world: for the evaluator, and for learners that declare they need it."""

    name: str
    time: float


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row of the source that could not be read as its spec demands: quarantined by the loop, never learnt.

    row: its number in the source, counted from 0. reason: one line that names the column.
    """

    row: int
    reason: str
    time: float


Event: TypeAlias = Batch | Labels | Forget | Boundary | Rejected


def concatenate(batches: list[Batch]) -> Batch:
    """One batch out of several, in order; its time is the first one's. Labels survive only if every part has them."""
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    if isinstance(first.x, Mapping):
        x: Features = {k: np.concatenate([b.x[k] for b in batches]) for k in first.x}
    else:
        x = np.concatenate([b.x for b in batches])
    labels = [b.y for b in batches if b.y is not None]
    y = np.concatenate(labels) if len(labels) == len(batches) else None
    return Batch(np.concatenate([b.ids for b in batches]), x, first.time, y)
