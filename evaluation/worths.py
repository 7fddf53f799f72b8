"""What the chosen plans were worth by the truth, beside those that the unadapted model would have chosen."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..streams import Array, Worth
from .watch import Watch

SWING = 0.2
"""A change of the whole score by more than this is help or harm."""
ROW, PLAN, BEFORE = "row", "plan", "plan_before"


class Worths(Watch):
    """Means of what judged answers are worth, since the start; each is also a record of kind ``worth``.

    worth: the stream's. In the summary, under ``worth``: how many were judged, the mean of every figure, the same of
    the unadapted model's answers under ``before``, and the shares of answers that adaptation changed, and of those that
    are worth more (helped) or less (harmed) by over 0.2 for it.
    """

    def __init__(self, worth: Worth) -> None:
        super().__init__()
        self.worth = worth
        self.columns = (*worth.names, ROW, PLAN, BEFORE)
        self._sums = np.zeros((2, len(worth.names)))
        self._counts = np.zeros(5, np.int64)

    def answers(self, ids: Array, output: Array, source: Array | None) -> list[dict[str, Any]]:
        """Judge answers (int64[n]) to rows; source: the unadapted model's scores [n, M], None without one.

        Returns the values of a record for every row that is judged.
        """
        got = self.worth.of(ids, output)
        judged = np.flatnonzero(~np.isnan(got[:, 0]))
        if not len(judged):
            return []
        before = None if source is None else source.argmax(1)
        found = []
        for i in judged.tolist():
            values = dict(zip(self.worth.names, got[i].tolist())) | {ROW: int(ids[i]), PLAN: int(output[i])}
            self._sums[0] += got[i]
            self._counts[0] += 1
            if before is not None:
                old = self.worth.of(ids[i : i + 1], before[i : i + 1])[0]
                self._sums[1] += old
                gain = float(got[i, 0] - old[0])
                self._counts[1:] += (1, int(output[i] != before[i]), gain > SWING, gain < -SWING)
                values[BEFORE] = int(before[i])
            found.append(values)
        return found

    def row(self) -> dict[str, Any]:
        n = int(self._counts[0])
        return dict.fromkeys(self.worth.names) if not n else dict(zip(self.worth.names, (self._sums[0] / n).tolist()))

    def summary(self) -> dict[str, Any]:
        n, pairs, changed, helped, harmed = self._counts.tolist()
        if not n:
            return {"worth": None}
        names = self.worth.names
        beside: dict[str, Any] = {"before": None, "changed": None, "helped": None, "harmed": None}
        if pairs:
            beside = {
                "before": dict(zip(names, (self._sums[1] / pairs).tolist())),
                "changed": changed / pairs,
                "helped": helped / pairs,
                "harmed": harmed / pairs,
            }
        return {"worth": {"judged": n, **dict(zip(names, (self._sums[0] / n).tolist())), **beside}}

    def state(self) -> dict[str, Any]:
        return {"stretch": self.stretch, "sums": self._sums, "counts": self._counts}

    def load(self, state: dict[str, Any]) -> None:
        self.stretch = int(state["stretch"])
        self._sums, self._counts = np.array(state["sums"]), np.array(state["counts"])
