"""DriftMoE against river's adaptive random forest of ten trees: speed and accuracy, through the same loop.

Both run over the same first rows of each stream, in turn, with every row tested and then trained on and prequential
evaluation on. The floor is not stated: what an instance must cost depends on how far its trees have grown.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from ...streams import InputError
from ...streams.compose import rebatch
from ..config import resolve
from ..loop import Loop
from ..runs import Run
from . import Row, row

PEER = "river:forest.ARFClassifier"
PEER_NAME = "river ARF(10)"
STREAMS = ("electricity", "gas-sensors", "outdoor", "keystroke", "sea", "two-regimes")
ROWS = 10_000
ROUNDS = 3


def summary(stream: str, learner: str, *, rows: int | None = None, **settings: Any) -> dict[str, Any]:
    """Run a learner over a stream and return its summary. Settings of the run go by name, others to the learner."""
    own: dict[str, Any] = {k: settings.pop(k) for k in ("seed", "delay") if k in settings}
    given: dict[str, Any] = {"stream": stream, "learner": learner, "limit": rows, **own}
    run = Run(resolve(given, settings=[f"learner.{k}={v}" for k, v in settings.items()]))
    for _ in run.steps():
        pass
    return run.summary()


def single_rows(stream: str, **settings: Any) -> float:
    """Rows a second when every row is an event of its own: one call to predict, one to learn."""
    run = Run(resolve({"stream": stream, "learner": "driftmoe"}, settings=[f"{k}={v}" for k, v in settings.items()]))
    events = rebatch(run.stream, 1)
    loop = Loop(run.learner, evaluators=[run.evaluator])
    for _ in loop.steps(events):
        pass
    return loop.step / sum(loop.seconds.values())


def measure() -> list[Row]:
    """Speed and accuracy on the streams that are there, then the faithful setting on all of electricity."""
    rows: list[Row] = []
    for stream in STREAMS:
        try:
            rows += _beside_peer(stream)
        except InputError as missing:
            print(f"left out {stream}: {missing}")
    return rows + _faithful()


def _beside_peer(stream: str) -> list[Row]:
    mine, theirs = [], []
    for seed in range(1, ROUNDS + 1):
        mine.append(summary(stream, "driftmoe", rows=ROWS, seed=seed))
        theirs.append(summary(stream, PEER, rows=ROWS, seed=seed, n_models=10))
    speed, score = "examples_per_second", "accuracy"
    return [
        row("driftmoe", f"{stream}, speed", "rows/s", *_medians(mine, theirs, speed), PEER_NAME),
        row("driftmoe", f"{stream}, accuracy", "share", *_medians(mine, theirs, score), PEER_NAME),
    ]


def _medians(mine: list[dict[str, Any]], theirs: list[dict[str, Any]], key: str) -> tuple[float, float]:
    return median(s[key] for s in mine), median(s[key] for s in theirs)


def _faithful() -> list[Row]:
    """The published setting on all rows of electricity: blocks of rows, and every row an event."""
    try:
        blocks, singles, peer = [], [], []
        for seed in range(1, ROUNDS + 1):
            blocks.append(summary("electricity", "driftmoe", seed=seed, faithful=True)["examples_per_second"])
            singles.append(single_rows("electricity", faithful=True))
            peer.append(summary("electricity", PEER, rows=5_000, seed=seed, n_models=10)["examples_per_second"])
    except InputError as missing:
        print(f"left out electricity: {missing}")
        return []
    return [
        row("driftmoe", "electricity, faithful, blocks", "rows/s", median(blocks), median(peer), PEER_NAME),
        row("driftmoe", "electricity, faithful, single rows", "rows/s", median(singles), median(peer), PEER_NAME),
    ]
