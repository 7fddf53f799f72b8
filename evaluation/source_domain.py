"""What a learner still knows of the clean rows that its model came from, after it has adapted to others.

Asked twice, before the first event and after the last one, by ``probe``, which changes nothing. Rows are asked in
batches of 200 (our choice, whatever the batches of the run): with statistics of the batch an answer depends on the rows
beside it, and the difference of the two figures should tell what the weights have lost, not what small batches cost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ..streams import Array, Source
from .watch import Watch

ROWS, BATCH = 2000, 200


class Probed(Protocol):
    """What is wanted of a learner; see ``adapt.learner.Learner``."""

    def probe(self, x: Array) -> Callable[[], Array]: ...


class SourceDomain(Watch):
    """Accuracy on the source's test rows before and after; at most 2,000 of them, always the same ones."""

    def __init__(self, source: Source, rows: int = ROWS, seed: int = 0) -> None:
        super().__init__()
        self._source, self._rows, self._seed = source, rows, seed
        self._asked = 0
        self.before: float | None = None
        self.after: float | None = None

    def begin(self, learner: Probed) -> None:
        """How well the source is known before the first event; asked once only, also by a run that was resumed."""
        if self.before is None:
            self.before = self._accuracy(learner)

    def end(self, learner: Probed) -> None:
        """How well it is known now."""
        self.after = self._accuracy(learner)

    def _accuracy(self, learner: Probed) -> float | None:
        x, y = self._source.test()
        order = np.random.default_rng(self._seed).permutation(len(y))[: self._rows]
        x, y = x[order], np.asarray(y)[order]
        parts = [slice(at, at + BATCH) for at in range(0, len(y), BATCH)]
        right = sum(int((learner.probe(x[part])().argmax(1) == y[part]).sum()) for part in parts)
        self._asked = len(y)
        return right / len(y) if len(y) else None

    def summary(self) -> dict[str, Any]:
        """source_domain: accuracy before and after, what was forgotten (below 0: gained), rows that were asked."""
        if self.before is None or self.after is None:
            return {"source_domain": None}
        forgotten = self.before - self.after
        return {
            "source_domain": {
                "before": self.before, "after": self.after, "forgotten": forgotten, "rows": self._asked,
            }
        }  # fmt: skip

    def state(self) -> dict[str, Any]:
        return {"before": self.before, "stretch": self.stretch}

    def load(self, state: dict[str, Any]) -> None:
        self.before = None if state["before"] is None else float(state["before"])
        self.stretch = int(state["stretch"])
