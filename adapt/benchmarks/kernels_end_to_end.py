"""A whole step of five learners with the ops on and off: the same results, how much faster, and the most there can be.

Off means ``selection.references``: every op runs its reference, that is ordinary PyTorch (MIGU: the published form, a
mask on the dense gradient, then the dense update, which for plain SGD is the same rule). Both start from equal weights,
take the same steps, and must agree to ``TOLERANCE`` of the largest number; then both are timed, in turn, on one thread.

floor is our time by Amdahl's limit: the step with the ops off less what the ops alone take in it, timed in the same
rounds. For MIGU and SparCL it is the dense learner's step, without any masks, less the share that masks leave out: of
the hidden layers' weight gradients and updates (what a learner that trains the head alone does without, the gradient of
the second layer's input put back), and of all multiplications.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...models.cluster_entropy import ClusterEntropy
from ...models.kernels import sketch
from ...models.kernels.balanced_batch_norm import Groups, Running, balanced_batch_norm
from ...models.kernels.selection import references
from ...models.norms import AdaB2N
from ...models.planner import Planner
from ...models.trajectories import manoeuvres
from ...streams import Batch, Column, StreamSpec
from ...streams.driving import LAYOUT, scenes
from ...streams.kinematics import random_drives
from ...streams.vocabulary import vocabulary
from ..learners import make_learner
from . import Row, row
from .centaur import trained
from .floors import Step, in_turn
from .sparcl import Timed

TOLERANCE = 1e-3
STEPS = 3
HIDDEN, ROWS, RATIO, DENSITY = 1024, 32, 0.1, 0.1
MLP = f"mlp:{HIDDEN}-{HIDDEN}"
NORMED, NORMED_ROWS = "resnet18:20", 20
CLICKS, WIDTH, ARRAYS, BITS = 256, 64, 70, 16
PLANS = 64

Way = tuple[Step, Callable[[], Tensor]]
"""A step, and the result after some."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """Ways with the ops on and off; the ops alone; ``dense``: a dense learner's step, whose share ``saved`` of the ops
    can be saved, None for the step with the ops off, of which all can; ``rest``: such a step without the ops, where
    leaving them out is nearer the truth than timing them alone."""

    on: Way
    off: Way
    alone: list[Step]
    dense: Step | None = None
    saved: float = 1.0
    rest: Step | None = None


def off(step: Step) -> Step:
    """The step by the references."""

    def run() -> None:
        with references():
            step()

    return run


def _scores(learner: Any, batch: Batch) -> Tensor:
    found = learner.predict(batch).scores
    assert found is not None
    return torch.from_numpy(np.asarray(found, np.float64))


def migu() -> Case:
    """One row in ten of every layer is updated."""

    def made(mode: str) -> Way:
        timed = Timed("finetune+migu", MLP, ROWS, mask_ratio=1 - RATIO, migu_mode=mode)
        return timed.step, lambda: _scores(timed.learner, timed.batch)

    only_head, slope = Timed("finetune", MLP, ROWS, head_only=True).step, _input_gradient()

    def rest() -> None:
        only_head()
        slope()

    return Case(made("strict"), made("reference"), [], Timed("finetune", MLP, ROWS).step, 1 - RATIO, rest)


def sparcl() -> Case:
    """A tenth of the blocks of 32 x 32."""

    def made() -> Timed:
        timed = Timed("finetune+sparcl", MLP, ROWS, granularity="block", sparsity=1 - DENSITY)
        timed.technique.since = 0
        return timed

    one = made()
    with references():
        other = made()
    dense = Timed("finetune", MLP, ROWS).step
    on, without = ((way.step, lambda way=way: _scores(way.learner, way.batch)) for way in (one, other))
    return Case(on, (off(without[0]), without[1]), [dense], dense, 1 - one.share)


def _input_gradient() -> Step:
    """Of a hidden layer of the MLP."""
    weight, dy = torch.randn(HIDDEN, HIDDEN), torch.randn(ROWS, HIDDEN)
    return lambda: dy @ weight


def adab2n() -> Case:
    """Every norm layer of a slim ResNet-18."""

    def made() -> Timed:
        return Timed("finetune+adab2n", NORMED, NORMED_ROWS)

    one, other = made(), made()
    shapes: list[tuple[int, ...]] = []
    layers = [layer for layer in other.learner.net.modules() if isinstance(layer, AdaB2N)]
    hooks = [layer.register_forward_hook(lambda *call: shapes.append(tuple(call[1][0].shape))) for layer in layers]
    other.learner.predict(other.batch)
    for hook in hooks:
        hook.remove()
    alone = [_norm_alone((NORMED_ROWS, *shape[1:])) for shape in shapes]
    return Case(
        (one.step, lambda: _scores(one.learner, one.batch)),
        (off(other.step), lambda: _scores(other.learner, other.batch)),
        [off(step) for step in alone],
    )


def _norm_alone(shape: tuple[int, ...]) -> Step:
    a, dy = torch.randn(shape).requires_grad_(), torch.randn(shape)
    gamma, beta, psi = (torch.ones(n).requires_grad_() for n in (shape[1], shape[1], 1))
    groups, running = Groups.of([0] * shape[0], 1), Running(torch.zeros(shape[1]), torch.ones(shape[1]), 0.1)

    def step() -> None:
        y, loss = balanced_batch_norm(a, gamma, beta, psi, groups, running)
        torch.autograd.grad((y * dy).sum() + loss, [a, gamma, beta])

    return step


def centaur() -> Case:
    """An answer of the planner, and the gradient of its frame."""
    torch.manual_seed(0)
    planner = Planner(vocabulary(random_drives(1500), PLANS), LAYOUT).requires_grad_(False).eval()
    x = torch.from_numpy(scenes([0], severity=2)[0].observations)

    def made() -> Way:
        tuned, frames = trained(planner, "no"), [0]

        def step() -> None:
            answer = tuned.answer(x[frames[0] % len(x)][None], 0.5 * frames[0])
            tuned.observe(answer.features, 0.5 * frames[0])
            frames[0] += 1

        return step, lambda: tuned.answer(x[0][None], 0.5 * frames[0]).scores

    on, (step, result) = made(), made()
    z = torch.randn(1, PLANS).requires_grad_()
    objective = ClusterEntropy(torch.from_numpy(manoeuvres(planner.trajectories.numpy())))
    return Case(on, (off(step), result), [off(lambda: torch.autograd.grad(objective(z), z))])


def reloop2() -> Case:
    """An answer to rows and the writing of their labels."""
    columns = tuple(Column(f"x{j}") for j in range(WIDTH))
    spec = StreamSpec("random clicks", columns, classes=("0", "1"))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(CLICKS, WIDTH))
    batch = Batch(np.arange(CLICKS), x, 0.0, (x[:, 0] > 0).astype(np.int64))

    def made() -> Way:
        learner = make_learner("reloop2:logistic", spec, warmup=CLICKS, arrays=ARRAYS, bits=BITS)
        learner.learn(batch, learner.predict(batch))
        return lambda: learner.learn(batch, learner.predict(batch)), lambda: _scores(learner, batch)

    on, (step, result) = made(), made()
    table, planes = sketch.new_table(ARRAYS, BITS), sketch.new_planes(WIDTH, ARRAYS, BITS, 0)
    h, base, one = torch.randn(CLICKS, WIDTH), torch.rand(CLICKS, 1), torch.ones(CLICKS)

    def alone() -> None:
        buckets = sketch.hash_rows(h, planes, BITS)
        sketch.read(table, buckets, base, total=1.0)
        sketch.write(table, 0, buckets, base, base, one)

    return Case(on, (off(step), result), [off(alone)])


CASES = {"migu": migu, "sparcl": sparcl, "adab2n": adab2n, "centaur": centaur, "reloop2": reloop2}


def compare(name: str) -> Row:
    """One learner; ``AssertionError`` where the ops change more than the last digits."""
    case = CASES[name]()
    (on, result), (without, expected) = case.on, case.off
    for _ in range(STEPS):
        on()
        without()
    found, wanted = result(), expected()
    worst = float((found - wanted).abs().max() / wanted.abs().max())
    assert worst <= TOLERANCE, f"{name}: results with the ops on are {worst:.1e} off"
    steps = [on, without, case.dense or without, case.rest or (lambda: [step() for step in case.alone])]
    ours, peer, whole, part = in_turn(steps)
    limit = max(whole - case.saved * (part if case.rest is None else whole - part), 0.01 * whole)
    words = f"{name}: agrees to {worst:.0e}, at most {peer / limit:.2f}x"
    made = row("kernels-end-to-end", words, "ms/step", 1e3 * ours, 1e3 * peer, "ops off", more_is_better=False)
    return made | {"floor": ours / limit}


def measure() -> list[Row]:
    """All five, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [compare(name) for name in CASES]
    finally:
        torch.set_num_threads(threads)
