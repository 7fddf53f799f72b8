"""The largest drop and the largest rise of a curve within a window of evaluations, one value after the other.

Window forgetting and window plasticity are the largest of them over time. M. De Lange, G. M. van de Ven, T. Tuytelaars,
"Continual evaluation for lifelong learning: identifying the stability gap", ICLR 2023. The monotonic queues are ours;
so is the use of whole numbers (right answers, not their share), which makes every comparison exact.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np


class Moves:
    """Largest drop and rise between two of ``width`` consecutive values: O(width) memory, O(1) a value on average.

    drop = max of A(m) - A(q), rise = max of A(q) - A(m), both over m < q < m + width, and 0 where there is none.
    ``reference=True`` takes rises as the authors' code does, which passes over every start that is lower than a value
    before it in the window. That skip is right for drops; of the rises it leaves those from the window's oldest value
    (the lowest start that is not passed over), so a recovery can be reported too small.

    >>> moves = Moves(3)
    >>> for n, right in enumerate([9, 1, 8]):
    ...     moves.add(n, right)
    >>> moves.drop, moves.rise
    (8, 7)
    """

    __slots__ = ("_lows", "_recent", "_tops", "drop", "rise", "width")

    def __init__(self, width: int, *, reference: bool = False) -> None:
        if width < 1:
            raise ValueError("a window holds at least one evaluation")
        self.width = width
        self.drop = self.rise = 0
        self._tops: deque[tuple[int, int]] = deque()
        self._lows: deque[tuple[int, int]] = deque()
        self._recent: deque[int] | None = deque(maxlen=width) if reference else None

    def add(self, n: int, value: int) -> None:
        """The value of evaluation ``n``; n goes up by one from call to call."""
        oldest, tops, lows = n - self.width + 1, self._tops, self._lows
        if tops and tops[0][0] < oldest:
            tops.popleft()
        if lows and lows[0][0] < oldest:
            lows.popleft()
        if tops:  # compared before it is pushed: a value makes no pair with itself
            self.drop = max(self.drop, tops[0][1] - value)
            while tops and tops[-1][1] <= value:
                tops.pop()
        if lows:
            if self._recent is None:
                self.rise = max(self.rise, value - lows[0][1])
            while lows and lows[-1][1] >= value:
                lows.pop()
        tops.append((n, value))
        lows.append((n, value))
        if self._recent is not None:
            self._recent.append(value)
            self.rise = max(self.rise, tops[0][1] - self._recent[0])

    def state(self) -> dict[str, Any]:
        """Everything that later figures depend on."""
        return {
            "moves": [self.drop, self.rise],
            "tops": np.array(self._tops, np.int64).reshape(-1, 2),
            "lows": np.array(self._lows, np.int64).reshape(-1, 2),
            "recent": None if self._recent is None else np.array(self._recent, np.int64),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what ``state()`` of one with the same settings returned."""
        self.drop, self.rise = state["moves"]
        self._tops = deque((n, v) for n, v in state["tops"].tolist())
        self._lows = deque((n, v) for n, v in state["lows"].tolist())
        if self._recent is not None:
            self._recent = deque(state["recent"].tolist(), maxlen=self.width)
