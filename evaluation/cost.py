"""What a run costs: latency percentiles in bounded memory. Clock readings, so no part of records or checkpoints."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

FLOOR = 1e-8
"""Seconds; anything faster is told as this."""
CEILING = 1e4
"""Seconds; anything slower is told as this."""
STEP = 1.02
"""Upper over lower edge of one bucket: a quantile is within 1 % of a duration that was measured."""

WARM_UP = 20
"""Batches that a mean leaves out: they compile, and learners choose their fastest way on them."""
RECENT = 2048
"""Batches that medians are taken over, the latest ones."""
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
    """What a batch costs: medians over the latest 2,048 batches, and a mean without the first 20, where there are 40.

    Medians leave out what few batches pay for (compiling, but also the step of a method that steps now and then), the
    mean of a long run has the latter.

    >>> cost = BatchCost()
    >>> cost.count(1, {"predict": 9.0, "adapt": 5.0, "learn": 0.0})
    >>> cost.count(1, {"predict": 9.002, "adapt": 5.001, "learn": 0.0})
    >>> cost.count(1, {"predict": 9.004, "adapt": 5.002, "learn": 0.0})
    >>> {k: round(v, 3) for k, v in cost.figures().items()}
    {'batches': 3, 'predict': 2.0, 'adapt': 1.0, 'learn': 0.0, 'total': 3.0, 'mean': 4668.667}
    """

    def __init__(self) -> None:
        self._first: tuple[float, ...] | None = None
        self._clock: deque[tuple[float, ...]] = deque([(0, 0.0, 0.0, 0.0)], maxlen=RECENT + 1)

    @property
    def batches(self) -> int:
        """How many there were."""
        return int(self._clock[-1][0])

    def count(self, batches: int, seconds: Mapping[str, float]) -> None:
        """So many batches more; seconds: spent in each phase so far."""
        now = (self._clock[-1][0] + batches, seconds["predict"], seconds["adapt"], seconds["learn"])
        self._clock.append(now)
        if self._first is None and now[0] >= WARM_UP:
            self._first = now

    def figures(self) -> dict[str, Any]:
        """Milliseconds of a batch: medians to predict, adapt and learn and of all three, and their mean; None without
        a batch.

        Where rows are tested and learnt in one compiled call all of it is part of learn, and the two others are None.
        """
        n, spent = self.batches, np.diff(np.array(self._clock), axis=0)
        if not n:
            return {"batches": 0, **dict.fromkeys((*PHASES, "total", "mean"))}
        each = spent[:, 1:] / spent[:, :1]
        medians = dict(zip((*PHASES, "total"), np.median(np.column_stack([each, each.sum(1)]), axis=0), strict=True))
        last, first = np.array(self._clock[-1]), np.zeros(4)
        if self._first is not None and 2 * WARM_UP <= n > self._first[0]:
            first = np.array(self._first)
        mean = (last - first)[1:].sum() / (last - first)[0]
        whole = {p: round(1e3 * float(s), 6) for p, s in (medians | {"mean": mean}).items()}
        apart = {} if last[1] else dict.fromkeys(("predict", "adapt"))
        return {"batches": n, **whole, **apart}
