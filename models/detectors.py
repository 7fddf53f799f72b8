"""Change detectors for many series at once, compiled: ADWIN and Page-Hinkley over plain arrays.

A detector here is a row of a few arrays, so that hundreds of them live in one checkpoint, are copied by copying
arrays, and are updated from other compiled code without a Python object in sight. Both follow river's detectors
step by step (same detections, same means): ADWIN with river's defaults ``clock=32, max_buckets=5,
min_window_length=5, grace_period=10``.

Values given to a detector must be finite; whoever calls sees to that. All functions are put into their callers whole
(``inlined``) and write cells one by one: a slice that is assigned to, or a call with several arrays, makes Numba count
references at every value, which costs more than the work itself (110 ns against 25).

Sources: A. Bifet, R. Gavaldà, "Learning from time-changing data with adaptive windowing", SDM 2007 (ADWIN2);
B. Babcock et al., "Maintaining variance and k-medians over data stream windows", PODS 2003 (the variance of joined
buckets); E. S. Page, "Continuous inspection schemes", Biometrika 41, 1954 (Page-Hinkley). The details that the papers
leave open (which cuts are tried, ``min_window_length``, the window thrown away at the value after a detection) are
those of river's code. From us: the layout, and a bound of 32 levels of buckets, beyond which the oldest values go.
"""

from __future__ import annotations

from math import log, sqrt
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .compiled import inlined

Array: TypeAlias = NDArray[Any]

CLOCK = 32
"""ADWIN looks for a cut at every 32nd value."""
GRACE = 10
"""ADWIN looks for no cut in a window of at most this many values."""
SHORTEST = 5
"""Either side of a cut holds at least this many values."""
BUCKETS = 5
"""Buckets of one size; one more and the two oldest are joined into one of twice the size."""
LEVELS = 32
"""Bucket sizes 1, 2, 4, ..., 2**31."""

LARGEST = float(np.finfo(np.float64).max)


(WIDTH, TOTAL, SQUARES, TICKS, TOP, FOUND) = range(6)
"""Places in a row of ``Adwins.cells``: values in the window, their sum, their squared deviations from their mean;
values since the last reset; levels in use; 1 if the last value ended in a detection."""
COUNTS = 6
"""From here on the buckets in use per level, and from ``CELLS`` on the buckets themselves, level by level, oldest
first: pairs of (sum, squared deviations)."""
CELLS = COUNTS + LEVELS
SIZE = CELLS + LEVELS * (BUCKETS + 1) * 2


class Adwins(NamedTuple):
    """n ADWIN detectors. cells: float64[n, SIZE], one row each: figures of the window, then counts, then buckets."""

    cells: Array


def new_adwins(n: int) -> Adwins:
    """n empty ADWIN detectors."""
    cells = np.zeros((n, SIZE))
    cells[:, TOP] = 1.0
    return Adwins(cells)


@inlined
def _empty(cells: Array) -> None:
    """Start anew; what stands in the buckets does not matter."""
    for at in range(CELLS):
        cells[at] = 0.0
    cells[TOP] = 1.0


@inlined
def adwin_reset(a: Adwins, i: int) -> None:
    """Empty detector i."""
    _empty(a.cells[i])


@inlined
def adwin_width(a: Adwins, i: int) -> float:
    """How many values the window of detector i holds."""
    return a.cells[i, WIDTH]


@inlined
def adwin_mean(a: Adwins, i: int) -> float:
    """Mean of the window of detector i; 0 when it is empty."""
    return a.cells[i, TOTAL] / a.cells[i, WIDTH] if a.cells[i, WIDTH] > 0.0 else 0.0


@inlined
def _bucket(level: int, k: int) -> int:
    """Where the k-th oldest bucket of a level stands."""
    return CELLS + (level * (BUCKETS + 1) + k) * 2


@inlined
def _drop_first(cells: Array, level: int, n: int) -> None:
    """Take the n oldest buckets out of a level."""
    left = int(cells[COUNTS + level]) - n
    for at in range(_bucket(level, 0), _bucket(level, left)):
        cells[at] = cells[at + 2 * n]
    cells[COUNTS + level] = left


@inlined
def _forget_oldest(cells: Array) -> None:
    """Take the oldest bucket out of the window, and its share out of the window's figures."""
    level = int(cells[TOP]) - 1
    n = float(1 << level)
    at = _bucket(level, 0)
    cells[WIDTH] -= n
    cells[TOTAL] -= cells[at]
    width = cells[WIDTH]
    gap = cells[at] / n - cells[TOTAL] / width
    cells[SQUARES] -= cells[at + 1] + n * width * gap * gap / (n + width)
    _drop_first(cells, level, 1)
    if cells[COUNTS + level] == 0.0:
        cells[TOP] = level


@inlined
def _join_buckets(cells: Array) -> None:
    """Wherever a level holds one bucket too many, join its two oldest into one of the next level."""
    for level in range(LEVELS):
        if cells[COUNTS + level] <= BUCKETS:
            return
        if level == LEVELS - 1:
            _forget_oldest(cells)
            return
        n = float(1 << level)
        at, into = _bucket(level, 0), _bucket(level + 1, int(cells[COUNTS + level + 1]))
        gap = cells[at] / n - cells[at + 2] / n
        cells[into] = cells[at] + cells[at + 2]
        cells[into + 1] = cells[at + 1] + cells[at + 3] + n * 0.5 * gap * gap
        cells[COUNTS + level + 1] += 1.0
        cells[TOP] = max(cells[TOP], level + 2.0)
        _drop_first(cells, level, 2)


@inlined
def _has_cut(cells: Array, delta: float) -> bool:
    """Whether some cut of the window, from the oldest on, parts values whose means differ.

    The means of n0 old and n1 young values differ when ``|m0 - m1| > sqrt(2 r v d) + 2/3 r d`` with
    ``r = 1/(n0 - 4) + 1/(n1 - 4)``, v the variance of the window of width W and ``d = log(2 log(W) / delta)``
    (Bifet and Gavaldà 2007, section 3.2; the 4 is ``SHORTEST - 1``, as in river).
    """
    d = log(2.0 * log(cells[WIDTH]) / delta)
    variance = cells[SQUARES] / cells[WIDTH]
    n0, n1, u0, u1 = 0.0, cells[WIDTH], 0.0, cells[TOTAL]
    for level in range(int(cells[TOP]) - 1, -1, -1):
        n = float(1 << level)
        for k in range(int(cells[COUNTS + level])):
            total = cells[_bucket(level, k)]
            n0 += n
            n1 -= n
            u0 += total
            u1 -= total
            if n1 < SHORTEST:
                return False
            if n0 < SHORTEST:
                continue
            r = 1.0 / (n0 - SHORTEST + 1.0) + 1.0 / (n1 - SHORTEST + 1.0)
            if abs(u0 / n0 - u1 / n1) > sqrt(2.0 * r * variance * d) + 2.0 / 3.0 * d * r:
                return True
    return False


@inlined
def adwin_update(a: Adwins, i: int, value: float, delta: float) -> bool:
    """Give detector i the next value of its series; True when the mean has changed (significance ``delta``).

    At a detection the oldest buckets are dropped until no cut is left, so that ``adwin_mean`` tells the new mean; the
    value after a detection starts an empty window. Amortised time per value is constant but for the search for
    cuts, O(log width) at every 32nd value.

    >>> detector = new_adwins(1)
    >>> values = [0.0] * 320 + [1.0] * 320
    >>> [t for t, value in enumerate(values) if adwin_update(detector, 0, value, 0.002)]
    [351]
    >>> float(adwin_mean(detector, 0))
    1.0
    """
    cells = a.cells[i]
    if cells[FOUND] == 1.0:
        _empty(cells)
    at = _bucket(0, int(cells[COUNTS]))
    cells[at], cells[at + 1] = value, 0.0
    cells[COUNTS] += 1.0
    before = cells[WIDTH]
    cells[WIDTH] = before + 1.0
    if before > 0.0:
        gap = value - cells[TOTAL] / before
        cells[SQUARES] += before * gap * gap / (before + 1.0)
    cells[TOTAL] += value
    _join_buckets(cells)
    cells[TICKS] += 1.0
    if int(cells[TICKS]) % CLOCK != 0 or cells[WIDTH] <= GRACE:
        return False
    found = False
    while _has_cut(cells, delta):
        found = True
        _forget_oldest(cells)
    cells[FOUND] = 1.0 if found else 0.0
    return found


class PageHinkleys(NamedTuple):
    """n Page-Hinkley detectors.

    sums: float64[n, 7]: values since the last reset, their mean, the faded sum for a rise, the faded sum for a fall,
    the least of the first, the greatest of the second, 1 if the last value ended in a detection.
    """

    sums: Array


def new_page_hinkleys(n: int) -> PageHinkleys:
    """n fresh Page-Hinkley detectors."""
    return PageHinkleys(np.tile(np.array([0.0, 0.0, 0.0, 0.0, LARGEST, -1.0, 0.0]), (n, 1)))


@inlined
def page_hinkley_reset(p: PageHinkleys, i: int) -> None:
    """Make detector i fresh."""
    for k in range(7):
        p.sums[i, k] = 0.0
    p.sums[i, 4], p.sums[i, 5] = LARGEST, -1.0


@inlined
def page_hinkley_mean(p: PageHinkleys, i: int) -> float:
    """Mean of the values since detector i was last fresh; 0 when there was none."""
    return p.sums[i, 1]


@inlined
def page_hinkley_update(
    p: PageHinkleys,
    i: int,
    value: float,
    min_instances: int,
    delta: float,
    threshold: float,
    alpha: float,
    two_sided: bool = True,
) -> bool:
    """Give detector i the next value; True when the mean has changed (only risen, where ``two_sided`` is False).

    ``U <- alpha U + (x - mean) - delta``; a rise is found when ``U - min U > threshold``, a fall by the mirror image.
    No detection before ``min_instances`` values; the value after a detection starts afresh. river's defaults are
    ``min_instances=30, delta=0.005, threshold=50, alpha=0.9999``; ``two_sided=False`` is its ``mode="up"``.

    >>> detector = new_page_hinkleys(1)
    >>> values = [0.0] * 300 + [1.0] * 300
    >>> [t for t, value in enumerate(values) if page_hinkley_update(detector, 0, value, 30, 0.005, 50.0, 0.9999)]
    [354]
    """
    s = p.sums[i]
    if s[6] == 1.0:
        page_hinkley_reset(p, i)
    s[0] += 1.0
    s[1] += (1.0 / s[0]) * (value - s[1])
    gap = value - s[1]
    s[2] = alpha * s[2] + gap - delta
    s[3] = alpha * s[3] + gap + delta
    s[4] = min(s[4], s[2])
    s[5] = max(s[5], s[3])
    found = s[0] >= min_instances and (s[2] - s[4] > threshold or (two_sided and s[5] - s[3] > threshold))
    s[6] = 1.0 if found else 0.0
    return found
