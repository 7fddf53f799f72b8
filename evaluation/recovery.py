"""How a score falls after a known drift and when it is back: from a stored curve, or row by row in fixed memory.

Let ``before`` be the score just before the drift and ``A_1, A_2, ...`` the scores after it. The depth of the drop is
``before - min A_n``, the recovery time the first n with ``A_n >= before - tolerance`` that holds for ``hold`` scores in
a row, and what was lost ``sum max(0, before - A_n)``, both taken up to the recovery. A drop that is not over when one
stops watching is reported as not recovered, never left out.

On a stream A_n is the mean score of ``STRETCH`` rows in a row, the first of which is the n-th row after the drift: a
window that still held rows from before the drift would hide the drop. So n = 1 says that the drift did no harm.
(The definitions are the usual ones of the drift literature; stretch, tolerance and hold are our choice.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..models.compiled import inlined

Array: TypeAlias = NDArray[Any]

STRETCH = 200
"""Rows whose mean score is one A_n."""
HOLD = 50
"""Scores in a row that must be back."""
TOLERANCE = 0.02
"""How near to the accuracy before is back; for regression a tenth of the error before (``RELATIVE``)."""
RELATIVE = 0.1


@dataclass(frozen=True, slots=True)
class Recovery:
    """rows: the recovery time, None if not recovered. depth, lost: None if there was no score. watched: scores seen."""

    rows: int | None
    depth: float | None
    lost: float | None
    watched: int


def recovery(curve: ArrayLike, before: float, tolerance: float = TOLERANCE, hold: int = 1) -> Recovery:
    """The drop and the recovery of a curve (float64[n], the scores after a drift, higher is better).

    >>> recovery([0.4, 0.6, 0.8, 0.9], before=0.9, tolerance=0.1)
    Recovery(rows=3, depth=0.5, lost=0.9, watched=3)
    >>> recovery([0.4, 0.6], before=0.9).rows is None
    True
    """
    short = before - np.asarray(curve, dtype=np.float64)
    back = np.asarray(curve, dtype=np.float64) >= before - tolerance
    held = np.convolve(back, np.ones(hold), "valid") > hold - 0.5 if len(back) >= hold else np.zeros(0, bool)
    rows = int(held.argmax()) + 1 if held.any() else None
    fallen = short[:rows]
    if not len(fallen):
        return Recovery(None, None, None, 0)
    watched = len(fallen) if rows is None else rows + hold - 1
    return Recovery(rows, float(fallen.max()), round(float(np.maximum(fallen, 0.0).sum()), 12), watched)


(ON, BEFORE, NEAR, ROWS, PREFIX, DEPTH, LOST, HELD, START, DEPTH_THEN, LOST_THEN) = range(11)
"""Places in a track (float64[11]). ON: 1 while watching, 2 once recovered, 0 when there is nothing to watch. NEAR: the
score that counts as back. ROWS: rows since the drift. PREFIX: sum of the scores since the stretch last began anew.
HELD: scores in a row that were back; START, DEPTH_THEN, LOST_THEN: n, depth and loss when the first of them came."""


def new_track() -> Array:
    """A track with nothing to watch."""
    return np.zeros(11)


def begin(track: Array, before: float, tolerance: float) -> None:
    """Watch the rows that come now, against the score before."""
    track[:] = 0.0
    track[ON], track[BEFORE], track[NEAR], track[DEPTH] = 1.0, before, before - tolerance, -1e300


def read(track: Array, size: int = STRETCH) -> Recovery:
    """What a track has found up to now; size: rows of one stretch."""
    watched = max(0, int(track[ROWS]) - size + 1)
    if not watched:
        return Recovery(None, None, None, 0)
    if track[ON] == 2.0:
        return Recovery(int(track[START]), float(track[DEPTH_THEN]), float(track[LOST_THEN]), watched)
    return Recovery(None, float(track[DEPTH]), float(track[LOST]), watched)


@inlined
def follow(track: Array, stretch: Array, score: float) -> None:
    """One more row after the drift, with its score (1 or 0 for a class, minus the absolute error for a number).

    stretch: float64[S], zeros at first. The sum of the last S scores is kept without ever taking one out again, which
    would leave rounding errors behind: whenever the ring is full its values become the sums from each place to the end,
    and a stretch is then the rest of the old ring plus the ``PREFIX`` of the new one.
    """
    if track[ON] != 1.0:
        return
    size = stretch.shape[0]
    rows = int(track[ROWS])
    at = rows % size
    if at == 0:
        for k in range(size - 2, -1, -1):
            stretch[k] += stretch[k + 1]
        track[PREFIX] = 0.0
    stretch[at] = score
    track[PREFIX] += score
    track[ROWS] = rows + 1
    if rows + 1 < size:
        return
    mean = (track[PREFIX] + (stretch[at + 1] if at + 1 < size else 0.0)) / size
    short = track[BEFORE] - mean
    track[DEPTH] = max(track[DEPTH], short)
    track[LOST] += max(0.0, short)
    if mean < track[NEAR]:
        track[HELD] = 0.0
        return
    if track[HELD] == 0.0:
        track[START], track[DEPTH_THEN], track[LOST_THEN] = rows + 2 - size, track[DEPTH], track[LOST]
    track[HELD] += 1.0
    if track[HELD] >= HOLD:
        track[ON] = 2.0
