"""What evaluators have in common that add figures to the summary and no columns to the records."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..streams import Array


def plain(values: Any, dtype: np.dtype[Any]) -> Array:
    """The values as a contiguous writable array: one kind of argument, so that nothing is compiled twice."""
    if type(values) is np.ndarray and values.dtype is dtype and values.flags.carray:
        return values
    return np.require(values, dtype, ["C", "A", "W"])


class Watch:
    """An evaluator with nothing to write down on the way; see ``adapt.evaluator.Evaluator`` for what each verb means.

    queries_only: it is shown only rows whose labels are for judging (``Labels.learn`` is False).
    """

    queries_only: ClassVar[bool] = False

    def __init__(self) -> None:
        self.columns: tuple[str, ...] = ()
        self.stretch = 0

    def baseline(self, n: int) -> Array:
        """float64[n, 3]: no baselines (-1), and how many Boundaries there were before these rows."""
        return np.tile((-1.0, -1.0, float(self.stretch)), (n, 1))

    def update(self, y: Array, output: Array, scores: Array | None, baseline: Array) -> None:
        """Rows whose labels came. y, output: int64[B]. scores: float64[B, C] or None. baseline: float64[B, 2 or 3] as
        it was when they were predicted."""

    def update_rows(self, y: Array, output: Array, scores: Array | None) -> None:
        """Rows tested and then trained on one after the other."""
        if not self.queries_only:
            self.update(y, output, scores, self.baseline(len(y)))

    def boundary(self, name: str, step: int) -> None:  # noqa: ARG002 - one signature for all
        """A known change: rows predicted from here on belong to another stretch."""
        self.stretch += 1

    def alarms(self) -> list[dict[str, Any]]:
        return []

    def row(self) -> dict[str, Any]:
        return {}
