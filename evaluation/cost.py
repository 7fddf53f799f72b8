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

WARM_UP = 20
"""Batches that a mean leaves out: they compile, and learners choose their fastest way on them."""
PHASES = ("predict", "adapt", "learn")

_SCALE = 1.0 / math.log(STEP)
_BUCKETS = math.ceil(math.log(CEILING / FLOOR) * _SCALE)


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


class BatchCost:
    """What a batch costs once all is compiled and chosen: means without the first 20 batches, where there are 40.

    >>> cost, seconds = BatchCost(), {"predict": 9.0, "adapt": 5.0, "learn": 0.0}
    >>> cost.count(20, seconds)
    >>> cost.count(80, {"predict": 9.16, "adapt": 5.08, "learn": 0.0})
    >>> found = cost.figures({"predict": 9.16, "adapt": 5.08, "learn": 0.0}, LatencyHistogram())
    >>> found["batches"], round(found["predict"], 3), round(found["adapt"], 3), round(found["total"], 3)
    (100, 2.0, 1.0, 3.0)
    """

    def __init__(self) -> None:
        self.batches = 0
        self._first: tuple[int, dict[str, float]] | None = None

    def count(self, batches: int, seconds: Mapping[str, float]) -> None:
        """So many batches more; seconds: spent in each phase so far."""
        self.batches += batches
        if self._first is None and self.batches >= WARM_UP:
            self._first = self.batches, dict(seconds)

    def figures(self, seconds: Mapping[str, float], latency: LatencyHistogram) -> dict[str, Any]:
        """Mean milliseconds of a batch to predict, adapt and learn, and in all; None without a batch.

        median: of predicting and adapting, from the median row and the rows of a mean batch. Where rows are tested and
        learnt in one compiled call all of it is part of learn, and the two others are None.
        """
        n, before = self.batches, dict.fromkeys(seconds, 0.0)
        if self._first is not None and self.batches >= 2 * WARM_UP and self.batches > self._first[0]:
            n, before = self.batches - self._first[0], self._first[1]
        if not n:
            return {"batches": 0, **dict.fromkeys((*PHASES, "total", "median"))}
        means = {p: 1e3 * (seconds[p] - before[p]) / n for p in PHASES}
        median = 1e3 * latency.quantile(0.5) * latency.rows / self.batches
        whole = {p: round(ms, 6) for p, ms in (means | {"total": sum(means.values()), "median": median}).items()}
        apart = {} if seconds["predict"] else dict.fromkeys(("predict", "adapt"))
        return {"batches": self.batches, **whole, **apart}
