"""A step of test-time adaptation, our learner's beside plain PyTorch loops written as the published code is.

ours: ``predict`` and ``adapt`` of the learner with the recipes tent and sar (SGD with momentum 0.9), all that belongs
to them included, by the way of computing that ``models/fastest_passes.py`` chooses on the first batches; the case
tells which. peer: ResNet-18 in training mode, batch norms without running statistics, scales and shifts alone require a
gradient, ``loss.backward()``, ``torch.optim.SGD``, ``zero_grad``; SAR with its two passes and the ascent written into
the parameters and undone. Below 16 rows both use mixed statistics (the source's count for 16 rows) without a gradient
through them. Random images of 3x32x32, float32, random weights, ten classes; SAR's thresholds are such that all rows
count, so that every step is a whole one.

Milliseconds of a step, medians of rounds in which both take turns, every other round backwards: of processor time on
one thread, which other programs disturb less, of the clock on two. floor is ours divided by the time that the
multiplications of the convolutions, forward and back to their inputs, take at the rate of a large matrix product.

Before anything is timed the answers are compared: logits and parameters after one step from the same state to 1e-4,
and over more steps how far the logits go from a run in double precision: at most three times as far as the peer's.

``measure_compiled`` is the same with ``step=compiled`` for the slim net and one row; the case tells how long compiling
took.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.fastest_passes import FastestPasses
from ...models.flops import layer_costs
from ...models.kernels.inference_linear import linear
from ...models.networks import Network, build
from ...streams import Batch, Column, StreamSpec
from ..learners.test_time import TestTimeLearner
from ..learners.test_time_recipes import SAR, Recipe, Tent
from . import Row

MODELS = ("resnet18:20", "resnet18:64")
BATCHES = (1, 16, 64)
THREADS = (1, 2)
METHODS = ("tent", "sar")
ROUNDS, ROUND_SECONDS = 9, 0.25
SHAPE, CLASSES, PRIOR, ENOUGH, RATE, RHO = (3, 32, 32), 10, 16, 16, 1e-4, 0.05
CLOSE, WORSE, STEPS = 1e-4, 3.0, 4
MATRIX = 1024


@dataclass(frozen=True)
class Case:
    """What is measured. way: auto, or one asked for."""

    model: str
    method: str
    batch: int
    threads: int
    way: str = "auto"

    @property
    def recipe(self) -> Recipe:
        """Ours, with everything counting."""
        if self.method == "tent":
            return Tent(optimizer="sgd", lr=RATE)
        return SAR(lr=RATE, rho=RHO, e_frac=1.0, recover=0.0)


def network(model: str) -> Network:
    """Random weights, and statistics as training leaves them."""
    net = build(model, SHAPE, CLASSES).eval()
    g = torch.Generator().manual_seed(1)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_(0, 0.1, generator=g)
            norm.running_var.uniform_(0.5, 1.5, generator=g)
    return net


# --- the peer ---------------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """Batch norm by statistics of source and batch, as published modules for few rows have it."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm, n = self.norm, len(x)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        with torch.no_grad():
            var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
            mean = (PRIOR * norm.running_mean + n * mean) / (PRIOR + n)
            var = (PRIOR * norm.running_var + n * var) / (PRIOR + n)
        return F.batch_norm(x, mean, var, norm.weight, norm.bias, False, 0.0, norm.eps)


class Plain:
    """The published loop of a method."""

    def __init__(self, net: nn.Module, method: str, batch: int, rate: float) -> None:
        self.net = copy.deepcopy(net).train().requires_grad_(False)
        norms = {path: m for path, m in self.net.named_modules() if isinstance(m, nn.BatchNorm2d)}
        self.params: dict[str, Tensor] = {}
        for path, norm in norms.items():
            if method == "tent" or not path.startswith(("body.blocks.6.", "body.blocks.7.")):
                self.params[f"{path}.weight"] = norm.weight.requires_grad_(True)
                self.params[f"{path}.bias"] = norm.bias.requires_grad_(True)
            if batch < ENOUGH:
                self.net.set_submodule(path, Mixed(norm))
            else:
                norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
        self.optimiser = torch.optim.SGD(list(self.params.values()), rate, momentum=0.9)
        self.step = self.tent if method == "tent" else self.sar
        self.margin = math.log(CLASSES)

    def tent(self, x: Tensor) -> Tensor:
        """One step; the logits before it."""
        z: Tensor = self.net(x)
        _entropy(z).mean(0).backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        return z

    def sar(self, x: Tensor) -> Tensor:
        """One step; the logits before it."""
        self.optimiser.zero_grad()
        z: Tensor = self.net(x)
        e = _entropy(z)
        chosen = torch.where(e < self.margin)
        e[chosen].mean(0).backward()
        before = {}
        norm = torch.norm(torch.stack([p.grad.norm(p=2) for p in self.params.values() if p.grad is not None]))
        for name, p in self.params.items():
            before[name] = p.data.clone()
            assert p.grad is not None
            with torch.no_grad():
                p.add_(p.grad * (RHO / (norm + 1e-12)))
        self.optimiser.zero_grad()
        e = _entropy(self.net(x))[chosen]
        float(e.detach().mean(0))  # for the running loss
        e[torch.where(e < self.margin)].mean(0).backward()
        for name, p in self.params.items():
            p.data = before[name]
        self.optimiser.step()
        self.optimiser.zero_grad()
        return z


def _entropy(z: Tensor) -> Tensor:
    return -(z.softmax(1) * z.log_softmax(1)).sum(1)


# --- ours -------------------------------------------------------------------------------------------------------


class Ours:
    """The learner, whose choice is made here and now and kept nowhere."""

    def __init__(self, net: Network, case: Case) -> None:
        d = math.prod(SHAPE)
        spec = StreamSpec(
            "random images",
            tuple(Column(f"x{j}", missing=False) for j in range(d)),
            classes=tuple("0123456789"),
            shape=SHAPE,
            notes={"mean": [0.0] * SHAPE[0], "std": [1.0] * SHAPE[0]},
        )
        self.learner = TestTimeLearner(spec, case.recipe, model=copy.deepcopy(net))
        way = None if case.way == "auto" else case.way
        self.learner.passes = FastestPasses(self.learner.net, self.learner.moving, only=way)

    def step(self, batch: Batch) -> Any:
        """One step; the answer before it."""
        prediction = self.learner.predict(batch)
        self.learner.adapt(batch, prediction)
        return prediction


def batches(case: Case, n: int) -> list[Batch]:
    """Random images."""
    rng = np.random.default_rng(case.batch)
    size = (n, case.batch, math.prod(SHAPE))
    return [Batch(np.arange(case.batch), rows, 0.0) for rows in rng.standard_normal(size, np.float32)]


# --- the comparison ---------------------------------------------------------------------------------------------


class Differs(Exception):
    """The two do not answer alike."""


def check(net: Network, case: Case, chosen: dict[str, str]) -> None:
    """``Differs`` where our answers, by the ways chosen, are not those of the peer."""
    ours = Ours(net, case)
    ours.learner.passes.load(chosen)
    rate = ours.learner.parts.descent.rate(case.batch) if ours.learner.parts.descent else 0.0
    plain, exact = (Plain(which, case.method, case.batch, rate) for which in (net, copy.deepcopy(net).double()))
    mine, theirs = 0.0, 0.0
    for i, batch in enumerate(batches(case, STEPS)):
        x = ours.learner.inputs.tensor(np.asarray(batch.x))
        prediction = ours.learner.predict(batch)
        said = ours.learner._said
        assert said is not None
        ours.learner.adapt(batch, prediction)
        z, right = plain.step(x).detach(), exact.step(x.double()).detach()
        mine = max(mine, float((said[1].z - right).abs().max()))
        theirs = max(theirs, float((z - right).abs().max()))
        if i == 0:
            apart = max(float((ours.learner.moving[n] - p).detach().abs().max()) for n, p in plain.params.items())
            off = float((said[1].z - z).abs().max())
            if max(apart, off) > CLOSE or plain.params.keys() != ours.learner.moving.keys():
                raise Differs(f"{case}: one step, logits {off:.1e}, parameters {apart:.1e} apart")
    if ours.learner.counts["steps"] != STEPS:
        raise Differs(f"{case}: {ours.learner.counts['steps']} steps of {STEPS}")
    if mine > WORSE * theirs + CLOSE / 10:
        raise Differs(f"{case}: {mine:.1e} from double precision where the peer is {theirs:.1e}")


def compare(case: Case, peak: float) -> Row:
    """One line. peak: multiply-adds a second of a large matrix product."""
    net = network(case.model)
    ours = Ours(net, case)
    rate = ours.learner.parts.descent.rate(case.batch) if ours.learner.parts.descent else 0.0
    plain = Plain(net, case.method, case.batch, rate)
    rows = batches(case, 4)
    images = [ours.learner.inputs.tensor(np.asarray(b.x)) for b in rows]
    for i in range(4):  # chooses at the second, and is warm
        ours.step(rows[i])
        plain.step(images[i])
    check(net, case, ours.learner.passes.chosen)
    clock = time.process_time if case.threads == 1 else time.perf_counter

    def timed(step: Callable[[Any], Any], given: list[Any]) -> Callable[[int], float]:
        def run(n: int) -> float:
            start = clock()
            for i in range(n):
                step(given[i % 4])
            return (clock() - start) / n

        return run

    both = {"ours": timed(ours.step, rows), "peer": timed(plain.step, images)}
    n = max(1, int(ROUND_SECONDS / both["peer"](1)))
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for turn in range(ROUNDS):
        for who in list(both)[:: 1 if turn % 2 else -1]:
            seconds[who].append(both[who](n))
    mine, theirs = median(seconds["ours"]), median(seconds["peer"])
    return _line(case, ours.learner, mine, theirs, _macs(net, case) / peak)


def _line(case: Case, learner: TestTimeLearner, ours: float, peer: float, limit: float) -> Row:
    facts = learner.passes.facts()
    way = next(iter(facts["chosen"].values()), "plain")
    how = "".join(f", ready after {s} s" for s in facts.get("warm_up_seconds", {}).values())
    rows = "1 row" if case.batch == 1 else f"{case.batch} rows"
    threads = "1 thread" if case.threads == 1 else f"{case.threads} threads"
    return {
        "bench": "tta",
        "case": f"{case.model} {case.method}, {rows}, {threads}: {way}{how}",
        "unit": "ms/step",
        "ours": 1e3 * ours,
        "peer": 1e3 * peer,
        "peer_name": "plain PyTorch loop",
        "ratio": peer / ours,
        "floor": ours / limit,
    }


def _macs(net: Network, case: Case) -> float:
    """Multiply-adds of a step's convolutions and head; the first convolution has no gradient for its input."""
    costs = [layer.macs for layer in layer_costs(copy.deepcopy(net), torch.zeros(1, *SHAPE)).values()]
    once = case.batch * (2 * sum(costs) - costs[0])
    return once * (1 if case.method == "tent" else 2)


def peak_rate(threads: int) -> float:
    """Multiply-adds a second of the faster of PyTorch's two libraries on matrices of 1024."""
    a, b = torch.rand(2, MATRIX, MATRIX)
    clock = time.process_time if threads == 1 else time.perf_counter
    best = math.inf
    with torch.inference_mode():
        for multiply in (lambda: a @ b, lambda: linear(a, b, None)):
            for _ in range(30):
                start = clock()
                multiply()
                best = min(best, clock() - start)
    return MATRIX**3 / best


def measure(chosen: Callable[[Case], bool] = lambda _: True) -> list[Row]:
    """Every case beside its peer; two threads where there are as many cores."""
    found = [
        Case(model, method, batch, threads)
        for threads in THREADS
        if threads <= (os.cpu_count() or 1)
        for model in MODELS
        for method in METHODS
        for batch in BATCHES
    ]
    return _measured([case for case in found if chosen(case)])


def measure_compiled() -> list[Row]:
    """The slim net on one row, compiled."""
    return _measured([Case(MODELS[0], method, 1, 1, "compiled") for method in METHODS])


def _measured(cases: list[Case]) -> list[Row]:
    before = torch.get_num_threads()
    rows: list[Row] = []
    peaks: dict[int, float] = {}
    try:
        for case in cases:
            torch.set_num_threads(case.threads)
            if case.threads not in peaks:
                peaks[case.threads] = peak_rate(case.threads)
            rows.append(compare(case, peaks[case.threads]))
    finally:
        torch.set_num_threads(before)
    return rows
