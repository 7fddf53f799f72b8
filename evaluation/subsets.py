"""A fixed part of the held-out rows: evaluation at a fraction of the cost, and how far off it may be.

Drawn once and from a generator of its own: a part that is drawn anew for every evaluation makes a minimum over time a
minimum over fresh noise, and one drawn from a shared generator changes the training that it watches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..streams import Experience


def subset(experience: Experience, rows: int, seed: int = 0) -> Experience:
    """So many of its held-out rows, each class with its share (rounded, largest remainders first, at least one row).

    The same rows for the same seed, in their old order; all of them where there are no more than ``rows``.
    """
    y = np.asarray(experience.y)
    if rows >= len(y):
        return experience
    classes, counts = np.unique(y, return_counts=True)
    share = counts * rows / len(y)
    take = np.minimum(np.maximum(np.floor(share).astype(np.int64), 1), counts)
    for c in np.argsort(np.floor(share) - share, kind="stable"):
        take[c] += take.sum() < rows and take[c] < counts[c]
    rng = np.random.default_rng(seed)
    kept = [rng.choice(np.flatnonzero(y == c), n, replace=False) for c, n in zip(classes, take, strict=True)]
    at = np.sort(np.concatenate(kept))
    return replace(experience, x=np.asarray(experience.x)[at], y=y[at])


def standard_error(share: float, rows: int, of: int) -> float:
    """Of an accuracy on ``rows`` rows drawn out of ``of``: ``sqrt(p (1 - p) / n) sqrt((N - n) / (N - 1))``.

    Drawing by class makes it smaller, so this is on the safe side.

    >>> round(standard_error(0.8, 100, 400), 5)
    0.03468
    """
    return math.sqrt(share * (1 - share) / rows * (of - rows) / max(1, of - 1))


def margin(shares: Sequence[float], rows: Sequence[int], of: Sequence[int]) -> float | None:
    """Half the width of a 95 % interval around the mean accuracy of several sets; None where all rows were asked."""
    if not shares or tuple(rows) == tuple(of):
        return None
    errors = [standard_error(*facts) for facts in zip(shares, rows, of, strict=True)]
    return 1.96 * math.sqrt(sum(e * e for e in errors)) / len(errors)
