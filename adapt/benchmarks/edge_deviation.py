"""How far a bundle goes from a run in double precision, beside how far PyTorch itself goes.

Three runs on the same random rows, each from its own state: the bundle under ``Runner``, the learner in PyTorch, and
the functions that the graphs were written down from with every single-precision number of theirs in double. ours, peer:
the largest difference of a score from the third run's in so many steps, medians of the seeds; a ratio of one third is
the limit that the project sets itself. What is below ``LEAST`` counts as that, as learners in double precision are.

Networks are small and their weights random; labels, where there are any, too. Learners that go as their own sources
have no graphs and are held against the compiled ones by tests; ``snip``, ``set``, ``rigl`` and fixed masks of weights
take the steps of ``sparcl``, ``ncm`` those of ``teen``.
"""

from __future__ import annotations

import copy
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ...models.networks import build
from ...models.planner import Planner
from ...models.prototypes import Prototypes
from ...streams import Array, Batch, Column, StreamSpec, open_stream
from ..edge.export import export
from ..edge.runner import Runner
from ..edge.steps import Steps, steps_of
from ..learner import Learner
from ..learners import make_learner
from ..learners.centaur import Centaur
from ..learners.test_time import TestTimeLearner
from ..learners.test_time_teacher import Hold
from . import Row, row
from .tta import Differs

STEPS, SEEDS = (200, 2000), 3
ROWS, NEVER, LEAST = 2, 10**9, 1e-15
STILL = {"refresh": NEVER, "delta_updates": NEVER}
"""Masks of a bundle stay as they are."""
IMAGES = StreamSpec(
    "random images",
    tuple(Column(f"x{j}", missing=False) for j in range(64)),
    classes=tuple("abcdef"),
    shape=(1, 8, 8),
    notes={"mean": [0.3], "std": [0.7], "base": 4},
)
CLICKS = StreamSpec("random table", (Column("a"), Column("b"), Column("c", ("x", "y", "z"))), classes=("no", "yes"))


@dataclass(frozen=True)
class Case:
    """make: the learner of a seed, before anything moved. rows: of a seed and step, with labels where they teach."""

    make: Callable[[int], Learner]
    rows: Callable[[int, int], Batch]


def measure() -> list[Row]:
    """A line for each learner and number of steps."""
    found: list[Row] = []
    for name, case in cases().items():
        runs = [deviations(case, seed) for seed in range(SEEDS)]
        for i, steps in enumerate(STEPS):
            ours, peer = (median(run[i][side] for run in runs) for side in (0, 1))
            told = f"{name}, {steps} steps"
            found.append(row("edge-deviation", told, "of a score", ours, peer, "PyTorch", more_is_better=False))
    return found


def deviations(case: Case, seed: int) -> list[tuple[float, float]]:
    """For each of ``STEPS``: how far the bundle went, and the learner."""
    eager = case.make(seed)
    steps = steps_of(eager)
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(export(eager, eager.spec, Path(folder) / "bundle"))
        runner.about["guard"]["every"] = NEVER
        exact, far, told = Exact(steps), [LEAST, LEAST], []
        for i in range(max(STEPS)):
            batch = case.rows(seed, i)
            x: Any = np.c_[batch.x, np.full(len(batch), batch.time)] if steps.beside else batch.x
            said = eager.predict(batch)
            adapt = batch.y is None  # labelled rows teach by their labels alone
            scores = ((runner.adapt if adapt else runner.predict)(x), said.scores)
            true = exact.answer(x, adapt=adapt)
            gaps = [float(np.abs(s - true).max()) for s in scores]
            if not np.isfinite(gaps).all():
                raise Differs(f"{type(eager.params).__name__}: an answer of step {i} is no number")
            far = [max(f, gap) for f, gap in zip(far, gaps)]
            eager.adapt(batch, said)
            if batch.y is not None:
                eager.learn(batch, said)
                runner.learn(x, batch.y)
                exact.learn(x, batch.y)
            if i + 1 in STEPS:
                told.append((far[0], far[1]))
    if "moving" in steps.state and not runner.counts["steps"]:
        raise Differs(f"{type(eager.params).__name__}: no step was taken")
    return told


class Exact:
    """A learner's verbs in double precision."""

    def __init__(self, steps: Steps) -> None:
        self.verbs = {name: copy.deepcopy(verb) for name, verb in steps.verbs.items()}
        self.state = {n: _double(t.clone()) for n, t in steps.state.items()}

    def answer(self, x: Array, *, adapt: bool) -> Array:
        """Scores of rows, and the step where there is one."""
        answers, self.state = self._run("adapt" if adapt and "adapt" in self.verbs else "predict", x=x)
        found: Array = answers["scores"].numpy()
        return found

    def learn(self, x: Array, y: Array) -> None:
        """Learn labels, by what the answer left for it where it did."""
        traced, verb = self._run("predict", x=x)[0].get("trace"), self.verbs["learn"]
        at_once = 1 if verb.single else len(x)
        given = torch.from_numpy(x) if traced is None else traced
        (name, *_) = verb.rows(1, 0)
        for i in range(0, len(x), at_once):
            rows = {name: given[i : i + at_once].numpy(), "y": y[i : i + at_once]}
            _, self.state = self._run("learn", **rows)

    def _run(self, verb: str, **rows: Array) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with Doubled():
            given = {n: _double(torch.from_numpy(np.ascontiguousarray(a))) for n, a in rows.items()}
            return self.verbs[verb].step(given, self.state)


class Doubled(TorchDispatchMode):
    """Every operation in double precision where it would be in single."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(_double, (args, kwargs or {}))
        return func(*args, **kwargs)


def _double(value: Any) -> Any:
    """Single-precision numbers, and the word for them, doubled; all else as it is."""
    if isinstance(value, Tensor):
        return value.double() if value.dtype == torch.float32 else value
    return torch.float64 if value is torch.float32 else value


# --- learners -----------------------------------------------------------------------------------------------------


def cases() -> dict[str, Case]:
    """By what is told of them."""
    return {
        "bn-adapt": Case(_recipe("bn-adapt"), _images),
        "tent, SGD": Case(_recipe("tent", optimizer="sgd", lr=1e-3), _images),
        "tent, Adam": Case(_recipe("tent", optimizer="adam", lr=1e-3), _images),
        "eata with a penalty": Case(_held, _images),
        "sar": Case(_recipe("sar", e_frac=0.97, recover=0, lr=1e-3), _images),
        "rsgs": Case(_recipe("rsgs", e_frac=0.97, recover=0, lr=1e-3), _images),
        "tent, statistics that follow": Case(_recipe("tent", statistics="running", lr=1e-3), _images),
        "centaur on classes": Case(_recipe("centaur", groups=3, lr=1e-3), _images),
        "centaur's planner": _planner(),
        "csfa": Case(_shots("csfa", lr=0.05, e_frac=0.97, recover=0.0), _now_and_then),
        "teen": Case(_shots("teen"), _now_and_then),
        "finetune, SGD with momentum": Case(_gradient("finetune", momentum=0.9, lr=0.01), _labelled),
        "finetune, AdamW": Case(_gradient("finetune", optimizer="adamw", lr=1e-3), _labelled),
        "adab2n": Case(_gradient("adab2n", momentum=0.9, lr=0.01), _labelled),
        "migu": Case(_gradient("migu", model="mlp:24-16", momentum=0.9, lr=0.01), _labelled),
        "sparcl, rows": Case(_gradient("sparcl", model="mlp:24-16", granularity="row", lr=0.01, **STILL), _labelled),
        "acu": Case(_clicks("acu", width=16), _table),
        "reloop2": Case(_clicks("reloop2", warmup=4), _table),
        "platt": Case(_clicks("platt", warmup=4), _table),
    }


def _images(seed: int, i: int, rows: int = ROWS, y: Array | None = None) -> Batch:
    x = np.random.default_rng((seed, i)).random((rows, 64), np.float32)
    return Batch(np.arange(rows) + ROWS * i, x.astype(float), float(i), y)


def _labelled(seed: int, i: int) -> Batch:
    """One row: statistics that follow rows see them one at a time."""
    return _images(seed, i, 1, np.array([i * 7 % 6]))


def _now_and_then(seed: int, i: int) -> Batch:
    """Two labelled rows of one of the two new classes every fiftieth step."""
    return _images(seed, i, y=np.full(ROWS, 4 + i // 50 % 2) if i % 50 == 7 else None)


def _table(seed: int, i: int) -> Batch:
    draw = np.random.default_rng((seed, i))
    x = np.c_[draw.normal(size=(ROWS, 2)), draw.integers(0, 3, ROWS)]
    return Batch(np.arange(ROWS) + ROWS * i, x, float(i), (x[:, 0] + draw.normal(size=ROWS) > 0).astype(np.int64))


def _network(seed: int, classes: int) -> Any:
    """Random weights, large enough for answers to differ; statistics as training leaves them."""
    torch.manual_seed(seed)
    net = build("convnet:4", (1, 8, 8), classes).eval()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.05, 0.2)  # type: ignore[union-attr]
    with torch.no_grad():
        net.head.weight.normal_(0, 1)
    return net


def _recipe(name: str, **settings: Any) -> Callable[[int], Learner]:
    return lambda seed: make_learner(name, IMAGES, seed=seed, model=_network(seed, 6), **settings)


def _held(seed: int) -> Learner:
    """EATA with a Fisher information that is made up."""
    learner = _recipe("eata", lr=0.005, e_frac=0.95, like=0.995, beta=0)(seed)
    assert isinstance(learner, TestTimeLearner)
    fisher = {n: 0.05 * torch.rand_like(w) for n, w in learner.source.items()}
    learner.hold = Hold(2.0, fisher, learner.source)
    return learner


def _shots(name: str, **settings: Any) -> Callable[[int], Learner]:
    def make(seed: int) -> Learner:
        body = _network(seed, 2).body
        head = Prototypes(torch.randn(4, 4).abs(), torch.tensor([9, 8, 7, 9]), torch.arange(4))
        return make_learner(name, IMAGES, seed=seed, model=nn.Sequential(OrderedDict(body=body, head=head)), **settings)

    return make


def _gradient(name: str, model: str = "convnet:4", **settings: Any) -> Callable[[int], Learner]:
    def make(seed: int) -> Learner:
        learner = make_learner(name, IMAGES, seed=seed, model=model, **settings)
        for i in range(2):
            batch = _labelled(seed + 100, i)
            learner.learn(batch, learner.predict(batch))
        return learner

    return make


def _clicks(name: str, **settings: Any) -> Callable[[int], Learner]:
    def make(seed: int) -> Learner:
        learner = make_learner(name, CLICKS, seed=seed, **settings)
        for i in range(6):
            batch = _table(seed + 100, i)
            learner.learn(batch, learner.predict(batch))
        return learner

    return make


def _planner() -> Case:
    """Accumulating, on frames of random numbers half a second apart."""
    spec = open_stream("driving", scenes=4, plans=16, training=40).spec
    worth: Any = spec.worth

    def make(seed: int) -> Learner:
        planner = Planner(worth.vocabulary, worth.layout, width=16, seed=seed)
        return Centaur(spec, Centaur.Params(delta=0.02, mode="accumulate", background="no"), planner=planner)

    def rows(seed: int, i: int) -> Batch:
        x = np.random.default_rng((seed, i)).normal(size=(1, spec.n_features)).astype(np.float32)
        return Batch(np.array([i]), x.astype(float), 0.5 * i)

    return Case(make, rows)
