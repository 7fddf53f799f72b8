"""What the loop itself costs: a learner that does nothing, one event per row.

Ours is measured without evaluation and with all of ``Prequential``. The peers get the same rows as the dicts that river
wants (made beforehand, so that neither side pays for reading) and a classifier that does nothing either:

- river's ``evaluate.progressive_val_score`` with ``Accuracy`` alone: less than we compute, the usual river program;
- river's objects for the same figures: accuracy, balanced accuracy, kappa and log loss, each since the start and over a
  window of 1,000 rows, the two baselines, ADWIN and Page-Hinkley (what it lacks, faded scores and the kappas beyond the
  baselines, is left out);
- a bare Python loop that calls the two methods: what a loop without guarantees costs.
"""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from ...evaluation.prequential import Prequential
from ...streams import Array, Batch, Column, Event, StreamSpec
from ..learner import Learner, Prediction, State
from ..loop import Loop
from ..runs import Given
from . import Row, row

ROWS, COLUMNS, REPEATS = 20_000, 8, 5


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


class Nothing:
    """River's side of ``Idle``."""

    def predict_one(self, x: Any) -> int:  # noqa: ARG002 - river's signature
        return 0

    def predict_proba_one(self, x: Any) -> dict[int, float]:  # noqa: ARG002 - river's signature
        return {0: 0.75, 1: 0.25}

    def learn_one(self, x: Any, y: Any) -> None:
        """Learns nothing."""


Rows = list[tuple[dict[Any, Any], Any]]


def bare(rows: Rows) -> float:
    """Rows a second of a loop of three lines."""
    model = Nothing()
    started = perf_counter()
    for x, y in rows:
        model.predict_one(x)
        model.learn_one(x, y)
    return len(rows) / (perf_counter() - started)


def usual(rows: Rows) -> float:
    """Rows a second of river's own evaluation, accuracy alone."""
    from river import base, evaluate, metrics

    model = type("River", (Nothing, base.Classifier), {})()
    started = perf_counter()
    evaluate.progressive_val_score(rows, model, metrics.Accuracy())
    return len(rows) / (perf_counter() - started)


def alike(rows: Rows) -> float:
    """Rows a second of a loop with river's objects for the same figures."""
    from river import drift, dummy, metrics, utils

    kinds = (metrics.Accuracy, metrics.BalancedAccuracy, metrics.CohenKappa)
    watches: list[Any] = [w for kind in kinds for w in (kind(), utils.Rolling(kind, 1000))]
    losses: list[Any] = [metrics.LogLoss(), utils.Rolling(metrics.LogLoss, 1000)]
    rivals = [(m, metrics.Accuracy()) for m in (dummy.NoChangeClassifier(), dummy.PriorClassifier())]
    detectors = [drift.ADWIN(), drift.PageHinkley()]
    model = Nothing()
    started = perf_counter()
    for x, y in rows:
        answer, scores = model.predict_one(x), model.predict_proba_one(x)
        for watch in watches:
            watch.update(y, answer)
        for loss in losses:
            loss.update(y, scores)
        for rival, score in rivals:
            score.update(y, rival.predict_one(x))
            rival.learn_one(x, y)
        for detector in detectors:
            detector.update(int(answer != y))
        model.learn_one(x, y)
    return len(rows) / (perf_counter() - started)


PEERS = {
    "bare": (bare, "bare Python loop"),
    "usual": (usual, "river progressive_val_score, accuracy alone"),
    "alike": (alike, "river's objects for the same figures"),
}


def measure() -> list[Row]:
    """Every case, ours and the peer in turn, medians of five rounds after one that does not count."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(ROWS, COLUMNS)), rng.integers(0, 2, ROWS)
    spec = StreamSpec("idle", tuple(Column(f"x{j}") for j in range(COLUMNS)), classes=("0", "1"))
    names = [c.name for c in spec.columns]
    dicts = [(dict(zip(names, values)), label) for values, label in zip(x.tolist(), y.tolist())]
    single, blocks = events_of(x, y, 1), events_of(x, y, 512)
    cases = {
        "batch 1, no evaluation": (single, False, False, "bare"),
        "batch 1, prequential": (single, True, False, "usual"),
        "batch 1, prequential, same figures": (single, True, False, "alike"),
        "rows in blocks, row by row, prequential": (blocks, True, True, "alike"),
    }
    found: dict[str, list[tuple[float, float]]] = {case: [] for case in cases}
    for turn in range(REPEATS + 1):
        for case, (events, evaluate, row_by_row, peer) in cases.items():
            speed = ours(spec, events, ROWS, evaluate=evaluate, row_by_row=row_by_row)
            other = PEERS[peer][0](dicts)
            if turn:
                found[case].append((speed, other))
    return [
        row("loop", case, "rows/s", median(a for a, _ in pairs), median(b for _, b in pairs), PEERS[cases[case][3]][1])
        for case, pairs in found.items()
    ]
