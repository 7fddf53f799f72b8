"""What the loop itself costs: a learner that does nothing, one event per row.

The peer is river's ``evaluate.progressive_val_score`` with a classifier that does nothing, over the same rows as the
dicts that river wants (made beforehand, so that neither side pays for reading). With and without a metric on both
sides; ours is all of ``Prequential`` (accuracies cumulative, windowed and faded, kappas, log loss, two baselines, two
drift detectors), river's is ``Accuracy``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from ...evaluation.prequential import Prequential
from ...streams import Array, Batch, Column, Event, StreamSpec
from ..learner import Learner, Prediction, State
from ..loop import Loop
from . import Row, row

ROWS, COLUMNS, REPEATS = 40_000, 8, 5


class Idle(Learner):
    """Always says class 0 and never learns."""

    def __init__(self, spec: StreamSpec, params: Any = None, seed: int = 0) -> None:
        super().__init__(spec, params, seed)
        self._answers: dict[int, Prediction] = {}

    def predict(self, batch: Batch) -> Prediction:
        n = len(batch.ids)
        if n not in self._answers:
            self._answers[n] = Prediction(np.zeros(n, np.int64), np.tile([0.75, 0.25], (n, 1)))
        return self._answers[n]

    def test_then_train(self, batch: Batch) -> Prediction:
        return self.predict(batch)

    def state(self) -> State:
        return {}

    def load(self, state: State) -> None:
        """There is nothing to load."""


@dataclass
class Given:
    """Events made beforehand, as a stream."""

    spec: StreamSpec
    events: list[Event]

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def cursor(self) -> dict[str, Any]:
        return {}

    def seek(self, cursor: dict[str, Any]) -> None:
        """Always starts anew."""


def events_of(x: Array, y: Array, block: int) -> list[Event]:
    """The rows as batches of ``block`` rows."""
    ids = np.arange(len(x))
    starts = range(0, len(x), block)
    return [Batch(ids[i : i + block], x[i : i + block], float(i), y[i : i + block]) for i in starts]


def ours(spec: StreamSpec, events: list[Event], rows: int, *, evaluate: bool, row_by_row: bool = False) -> float:
    """Rows a second of our loop."""
    evaluators = [Prequential(spec)] if evaluate else []
    loop = Loop(Idle(spec), evaluators=evaluators, row_by_row=row_by_row)
    started = perf_counter()
    for _ in loop.steps(Given(spec, events)):
        pass
    return rows / (perf_counter() - started)


def rivers(rows: list[tuple[dict[Any, Any], Any]], *, evaluate: bool) -> float:
    """Rows a second of river's loop, with and without its metric."""
    from river import base, metrics
    from river import evaluate as river_evaluate

    class Nothing(base.Classifier):
        def learn_one(self, x: Any, y: Any) -> None: ...

        def predict_one(self, x: Any, **_: Any) -> int:  # noqa: ARG002 - river's signature
            return 0

    model = Nothing()
    started = perf_counter()
    if evaluate:
        river_evaluate.progressive_val_score(rows, model, metrics.Accuracy())
    else:
        for x, y in rows:
            model.predict_one(x)
            model.learn_one(x, y)
    return len(rows) / (perf_counter() - started)


def measure() -> list[Row]:
    """Three cases, ours and the peer in turn, medians of five rounds after one that does not count."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(ROWS, COLUMNS)), rng.integers(0, 2, ROWS)
    spec = StreamSpec("idle", tuple(Column(f"x{j}") for j in range(COLUMNS)), classes=("0", "1"))
    names = [c.name for c in spec.columns]
    dicts = [(dict(zip(names, values)), label) for values, label in zip(x.tolist(), y.tolist())]
    single, blocks = events_of(x, y, 1), events_of(x, y, 512)
    cases = {
        "batch 1, no evaluation": (single, False, False),
        "batch 1, prequential": (single, True, False),
        "rows handed over in blocks, prequential": (blocks, True, True),
    }
    found: dict[str, tuple[list[float], list[float]]] = {case: ([], []) for case in cases}
    for turn in range(REPEATS + 1):
        for case, (events, evaluate, row_by_row) in cases.items():
            speeds = (
                ours(spec, events, ROWS, evaluate=evaluate, row_by_row=row_by_row),
                rivers(dicts, evaluate=evaluate),
            )
            if turn:
                for kept, speed in zip(found[case], speeds):
                    kept.append(speed)
    peers = {False: "plain loop over dicts", True: "river progressive_val_score, Accuracy only"}
    return [
        row("loop", case, "rows/s", median(mine), median(theirs), peers[cases[case][1]])
        for case, (mine, theirs) in found.items()
    ]
