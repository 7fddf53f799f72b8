"""A training step of a network under SparCL's masks, as the learner takes it, beside the dense learner.

A step is one ``learn`` of 32 rows (256 where the case says so): plain SGD, no replay, the rows' digests for data
removal, the choice of what moves (two more passes) spread over the 30 updates between two of them. The peer is the
faster of the dense learner with its convolutions contiguous and with channels last. One thread, float32, random images
of 3x32x32; the MLP has 1024 inputs. "row": rows dropped from the network; "element" and "block": masks at zero, the
latter as real blocks of 32x32 in linear layers; "gradient alone": no masks of weights, a fifth of the rows moves.

ours and peer are milliseconds of processor time, which other programs disturb less than they do the clock on the wall;
medians of rounds in which all take turns, every other round backwards. floor is ours divided by

    limit = peer x (multiplications that the masks leave) / (those of the dense step),

forward pass and input gradient counted with the density of the weights, the weight gradient with that of what moves,
all other layers whole (``models/flops.py``): what would be reached if every multiplication took as long as in the dense
step and nothing else took any time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import process_time
from typing import Any

import numpy as np
import torch

from ...models.flops import step_cost
from ...models.forms import lay_channels_last
from ...streams import Batch, Column, Experience, StreamSpec
from ..learners import make_learner
from ..learners.gradient import GradientLearner
from . import Row

EPOCHS, ROWS, REFRESH = 50, 10_000, 30
WEIGHT_GRADIENT_ALONE: dict[str, Any] = {"granularity": "row", "sparsity": 0.0, "gradient_share": 0.2}


@dataclass(frozen=True, eq=False)
class Case:
    """What is measured: a model, the size of a batch, and settings of the technique."""

    model: str
    settings: dict[str, Any]
    batch: int = 32

    def __str__(self) -> str:
        what = f"{self.settings['granularity']} {self.settings['sparsity']:.2f}"
        if self.settings is WEIGHT_GRADIENT_ALONE:
            what = "gradient alone"
        return f"{self.model} {what}" + (f", {self.batch} rows" if self.batch != 32 else "")


def cases() -> list[Case]:
    """Every case, the expensive network last."""

    def some(model: str, granularity: str, *levels: float, batch: int = 32) -> list[Case]:
        return [Case(model, {"granularity": granularity, "sparsity": s}, batch) for s in levels]

    mlp, slim, wide = "mlp:1024-1024", "resnet18:20", "resnet18:64"
    found = some(mlp, "row", 0.75, 0.9, 0.95) + some(mlp, "block", 0.75, 0.9, 0.95) + some(mlp, "element", 0.75, 0.95)
    found += some(mlp, "block", 0.75, 0.9, batch=256) + some(mlp, "row", 0.9, batch=256)
    found += [Case(mlp, WEIGHT_GRADIENT_ALONE)]
    for resnet in (slim, wide):
        found += some(resnet, "row", 0.75, 0.9, 0.95) + some(resnet, "element", 0.9)
        found += [Case(resnet, WEIGHT_GRADIENT_ALONE)]
    return found + some(slim, "block", 0.9)


def spec_for(model: str) -> StreamSpec:
    """Long experiences of many epochs, so that no stage ends while steps are timed."""
    shape = (1, 32, 32) if model.startswith("mlp") else (3, 32, 32)
    d = int(np.prod(shape))
    task = Experience("task", np.zeros((1, d), np.float32), np.zeros(1, np.int64), ROWS, (0, 1))
    return StreamSpec(
        "random images",
        tuple(Column(f"x{j}", missing=False) for j in range(d)),
        classes=tuple("0123456789"),
        shape=shape,
        notes={"mean": [0.5] * shape[0], "std": [0.3] * shape[0], "epochs": EPOCHS, "scenario": "class"},
        experiences=(task,),
    )


class Timed:
    """A learner, and its steps one by one."""

    def __init__(self, name: str, model: str, batch: int, *, channels_last: bool = False, **settings: Any) -> None:
        spec = spec_for(model)
        made = make_learner(name, spec, model=model, lr=0.01, **settings)
        assert isinstance(made, GradientLearner)
        self.learner = made
        if channels_last:
            lay_channels_last(made.net)
        rng = np.random.default_rng(0)
        x, y = rng.random((batch, len(spec.columns))), rng.integers(0, 2, batch)
        self.batch = Batch(np.arange(batch), x, 0.0, y)
        self.answer = made.predict(self.batch)
        self.technique: Any = next(iter(made.techniques), None)
        self.seconds: list[float] = []
        self.choosing: list[float] = []

    def step(self) -> float:
        """Seconds of one step."""
        started = process_time()
        self.learner.learn(self.batch, self.answer)
        return process_time() - started

    def round(self, steps: int) -> None:
        """Some steps, and one in which is chosen what moves."""
        if self.technique is not None:
            self.technique.since = 0
            self.choosing.append(self.step())
        self.seconds += [self.step() for _ in range(steps)]

    @property
    def milliseconds(self) -> float:
        """Of a step, the choice's share included."""
        plain = median(self.seconds)
        extra = max(0.0, median(self.choosing) - plain) / REFRESH if self.choosing else 0.0
        return 1e3 * (plain + extra)

    @property
    def share(self) -> float:
        """Multiplications left, of those of the dense step."""
        sparse = self.technique.sparse
        return float(sparse.cost.train / step_cost(sparse.costs).train)


def measure(rounds: int = 5, chosen: Callable[[Case], bool] = lambda _: True) -> list[Row]:
    """Every case beside the dense learner of its model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        wanted = [case for case in cases() if chosen(case)]
        groups = list(dict.fromkeys((case.model, case.batch) for case in wanted))
        return [
            row
            for group in groups
            for row in _compare(*group, [c for c in wanted if (c.model, c.batch) == group], rounds)
        ]
    finally:
        torch.set_num_threads(threads)


def _compare(model: str, batch: int, wanted: list[Case], rounds: int) -> list[Row]:
    dense = {"contiguous": Timed("finetune", model, batch)}
    if not model.startswith("mlp"):
        dense["channels last"] = Timed("finetune", model, batch, channels_last=True)
    ours = {case: Timed("finetune+sparcl", model, batch, **case.settings) for case in wanted}
    every = [*dense.values(), *ours.values()]
    steps = 2 if model == "resnet18:64" else 5 if dense.keys() - {"contiguous"} else 25
    for turn in range(rounds + 1):
        for timed in every if turn % 2 else every[::-1]:
            timed.round(steps)
            if not turn:
                timed.seconds.clear()
                timed.choosing.clear()
    layout, peer = min(dense.items(), key=lambda item: item[1].milliseconds)
    return [_line(case, timed, f"dense learner, {layout}", peer.milliseconds) for case, timed in ours.items()]


def _line(case: Case, timed: Timed, name: str, peer: float) -> Row:
    mine = timed.milliseconds
    return {
        "bench": "sparcl",
        "case": str(case),
        "unit": "ms/step",
        "ours": mine,
        "peer": peer,
        "peer_name": name,
        "ratio": peer / mine,
        "floor": mine / (peer * timed.share),
    }
