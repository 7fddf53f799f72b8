"""A model against its source on the same rows: right answers of both as labels come, and the gain guessed before."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..streams import Array


class Paired:
    """Counts of two classifiers on the same rows, in fixed memory.

    window: rows of the recent gain. ``estimate`` is the last guess of the gain, None before the first.

    >>> both = Paired(100)
    >>> both.judge(np.array([True, True, False, True]), np.array([True, False, False, False]))
    >>> {k: v for k, v in both.summary().items() if k in ("adapted", "source", "gain")}
    {'adapted': 0.75, 'source': 0.25, 'gain': 0.5}
    """

    def __init__(self, window: int) -> None:
        self.estimate: float | None = None
        self._guessed = 0.0
        self._weight = self._rows = self._mine = self._its = self._split = 0
        self._recent = np.zeros(window, np.int64)

    def judge(self, mine: Array, its: Array) -> None:
        """Whether each answered rightly: bool[n] of the model and of its source."""
        won = mine.astype(np.int64) - its
        at = (self._rows + np.arange(len(won))) % len(self._recent)
        self._recent[at] = won
        self._rows += len(won)
        self._mine += int(mine.sum())
        self._its += int(its.sum())
        self._split += int(np.abs(won).sum())

    def guess(self, gain: float, rows: int) -> None:
        """A gain estimated without labels; rows: how many came since the last one, its weight in the mean."""
        self.estimate = gain
        self._guessed += gain * rows
        self._weight += rows

    def recent_gain(self) -> float | None:
        """Over the last rows with labels."""
        n = min(self._rows, len(self._recent))
        return float(self._recent[:n].mean()) if n else None

    def summary(self) -> dict[str, Any]:
        """Accuracies and gain with its standard error, and the mean guess; None where no label or guess came.

        The error is that of paired rows, sqrt(mean won² - gain²) / sqrt(n) with won in -1, 0, 1, as if rows were
        independent of each other: too small where labels come in runs.
        """
        n = self._rows
        gain = (self._mine - self._its) / n if n else None
        return {
            "judged_rows": n,
            "adapted": self._mine / n if n else None,
            "source": self._its / n if n else None,
            "gain": gain,
            "gain_se": None if gain is None else math.sqrt(max(0.0, self._split / n - gain**2) / n),
            "estimated_gain": self._guessed / self._weight if self._weight else None,
        }

    def state(self) -> dict[str, Any]:
        """All counts, by reference."""
        counts = [self._weight, self._rows, self._mine, self._its, self._split]
        return {"estimate": self.estimate, "guessed": self._guessed, "counts": counts, "recent": self._recent}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what ``state()`` returned; copies what it keeps."""
        self.estimate = None if state["estimate"] is None else float(state["estimate"])
        self._guessed = float(state["guessed"])
        self._weight, self._rows, self._mine, self._its, self._split = (int(c) for c in state["counts"])
        self._recent = np.array(state["recent"])
