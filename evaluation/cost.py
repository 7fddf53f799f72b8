"""What a run costs: latency percentiles in bounded memory. Clock readings, so no part of records or checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

FLOOR = 1e-8
"""Seconds; anything faster is told as this."""
CEILING = 1e4
"""Seconds; anything slower is told as this."""
STEP = 1.02
"""Upper over lower edge of one bucket: a quantile is within 1 % of a duration that was measured."""

_SCALE = 1.0 / math.log(STEP)
_BUCKETS = math.ceil(math.log(CEILING / FLOOR) * _SCALE)


def per_batch(seconds: Mapping[str, float | None], batches: int, latency: float = 0.0) -> dict[str, Any]:
    """Mean milliseconds that one batch took to predict, adapt and learn, and in all; None where that was not timed.

    latency: seconds in which the median row was predicted and adapted to, times the rows of a mean batch; ``median``
    tells it in milliseconds. It leaves out what happens once, or now and then, such as a first batch that compiles.

    >>> per_batch({"predict": 0.2, "adapt": 0.1, "learn": 0.0, "io": 9.0}, 100, 0.0025)
    {'batches': 100, 'predict': 2.0, 'adapt': 1.0, 'learn': 0.0, 'total': 3.0, 'median': 2.5}
    """
    phases = {p: seconds.get(p) for p in ("predict", "adapt", "learn")}
    means = {p: None if s is None or not batches else round(1e3 * s / batches, 6) for p, s in phases.items()}
    total = sum(s for s in phases.values() if s is not None)
    whole = {"total": 1e3 * total / batches, "median": 1e3 * latency} if batches else dict.fromkeys(("total", "median"))
    return {"batches": batches, **means, **{k: None if v is None else round(v, 6) for k, v in whole.items()}}


class LatencyHistogram:
    """Counts durations in 1,396 buckets, each 2 % wider than the one before, so that memory never grows.

    >>> latency = LatencyHistogram()
    >>> for milliseconds in range(1, 101):
    ...     latency.add(milliseconds / 1e3)
    >>> round(latency.quantile(0.5), 2), round(latency.quantile(0.99), 2), latency.rows
    (0.05, 0.1, 100)
    """

    def __init__(self) -> None:
        self.rows = 0
        self._counts = [0] * _BUCKETS

    def add(self, seconds: float, rows: int = 1) -> None:
        """``rows`` rows took ``seconds`` each."""
        held = min(max(seconds, FLOOR), CEILING)
        self._counts[min(int(math.log(held / FLOOR) * _SCALE), _BUCKETS - 1)] += rows
        self.rows += rows

    def quantile(self, q: float) -> float:
        """Seconds within which a fraction q (0 < q <= 1) of all rows was done; 0 when there was no row.

        The nearest-rank quantile, read from the middle (geometric) of the bucket that holds it.
        """
        rank, below = math.ceil(q * self.rows), 0
        if self.rows == 0:
            return 0.0
        for at, count in enumerate(self._counts):
            below += count
            if below >= rank and count:
                return FLOOR * STEP ** (at + 0.5)
        raise ValueError(f"q is a fraction above 0 and at most 1, not {q}")
