"""Scores of click models: how well they rank, within users too, and whether their probabilities are true; by time slot.

y: int[B], 1 for a click; p: float[B], its probability; group: whose row it is (a user). None where not defined.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .metrics import logloss

Array: TypeAlias = NDArray[Any]


def auc(y: ArrayLike, p: ArrayLike) -> float | None:
    """The share of pairs of a click and a non-click that are ranked rightly, ties counting half.

    ``(sum of the clicks' ranks - n1 (n1 + 1) / 2) / (n1 n0)``, mid-ranks. None with one class only.
    J. A. Hanley, B. J. McNeil, Radiology 143, 1982.

    >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), auc([1, 0], [0.5, 0.5]), auc([1, 1], [0.2, 0.3])
    (0.75, 0.5, None)
    """
    y = np.asarray(y)
    clicks = int((y == 1).sum())
    if not 0 < clicks < len(y):
        return None
    _, place, counts = np.unique(np.asarray(p, np.float64), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((ranks[y == 1].sum() - clicks * (clicks + 1) / 2) / (clicks * (len(y) - clicks)))


def gauc(y: ArrayLike, p: ArrayLike, group: ArrayLike) -> float | None:
    """AUC within each group, averaged by the groups' rows; groups of one class are dropped.

    H. Zhu et al., Optimized cost per click in Taobao display advertising, KDD 2017.

    >>> gauc([0, 1, 0, 1, 1], [0.2, 0.9, 0.8, 0.1, 0.7], ["a", "a", "b", "b", "c"])
    0.5
    """
    y, p = np.asarray(y), np.asarray(p)
    _, place = np.unique(np.asarray(group), return_inverse=True)
    order = np.argsort(place, kind="stable")
    total = rows = 0.0
    for part in np.split(order, np.flatnonzero(np.diff(place[order])) + 1):
        found = auc(y[part], p[part])
        if found is not None:
            total += found * len(part)
            rows += len(part)
    return total / rows if rows else None


def calibration(y: ArrayLike, p: ArrayLike) -> float | None:
    """Clicks foretold over clicks that came, ``sum p / sum y``: above 1 the model promises too much.

    >>> calibration([0, 1, 0, 1], [0.5, 0.5, 0.25, 0.25])
    0.75
    """
    clicks = float(np.sum(np.asarray(y) == 1))
    return float(np.sum(np.asarray(p, np.float64))) / clicks if clicks else None


def click_scores(y: ArrayLike, p: ArrayLike, group: ArrayLike | None = None) -> dict[str, float | None]:
    """AUC, gAUC (None without groups), log loss and calibration."""
    p = np.asarray(p, np.float64)
    return {
        "auc": auc(y, p),
        "gauc": None if group is None else gauc(y, p, group),
        "logloss": logloss(y, np.stack([1 - p, p], 1)),
        "calibration": calibration(y, p),
    }


def by_slot(
    y: ArrayLike, p: ArrayLike, slot: ArrayLike, group: ArrayLike | None = None
) -> dict[int, dict[str, float | None]]:
    """``click_scores`` of every slot of time, in their order. slot: int[B], such as ``time // 3600``."""
    y, p, slot = np.asarray(y), np.asarray(p), np.asarray(slot, np.int64)
    whose = None if group is None else np.asarray(group)
    return {
        int(s): click_scores(y[slot == s], p[slot == s], None if whose is None else whose[slot == s])
        for s in np.unique(slot)
    }
