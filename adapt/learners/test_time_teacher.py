"""What CoTTA, RoTTA and EATA have beside a step: a slow teacher, weights drawn back to the source, weights held there.

Sources: CoTTA, Wang et al., CVPR 2022; RoTTA, Yuan et al., CVPR 2023; EATA, Niu et al., ICML 2022; each in the form of
its code. Ours: random draws follow from a seed and from how far adaptation has come, so that the same answer can be
given twice; Fisher information is that of training rows of the source (the code of EATA takes validation rows), so
that no row of the stream is met before its time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ...models.adaptive_norm import adopt, followed, following, in_views, proposals
from ...models.augmentations import Augmentation
from ...models.inputs import Columns, Pixels
from ...models.passes import Gradients, Passes
from ...streams import InputError, StreamSpec
from ..learner import State
from .test_time_parts import Anchor, Rows, Teaching

VIEWS, STRONG, RESTORE, FISHER = range(4)
"""What a draw is for."""
ROWS_AT_ONCE = 64
"""Of a pass over several views."""


def generator(*key: int) -> torch.Generator:
    """Draws that follow from these numbers alone."""
    words = np.random.SeedSequence(key).generate_state(2)
    return torch.Generator().manual_seed(int(words[0]) | (int(words[1] & 0x7FFFFFFF) << 32))


def augmentation_of(spec: StreamSpec) -> Augmentation:
    """Views that suit the rows of a stream: of images where it says their moments."""
    if spec.shape is None or len(spec.shape) != 3 or "mean" not in spec.notes:
        return Augmentation()
    return Augmentation(tuple(spec.notes["mean"]), tuple(spec.notes["std"]))


class Teacher:
    """The moving average of what moves in a network; its answers are the learner's.

    net: that of the student, which lends its frozen parts. source: the moving parameters before any step, whose
    confidence decides whether an answer is the mean over views. Running statistics are the teacher's own.
    """

    def __init__(self, how: Teaching, net: nn.Module, source: Mapping[str, Tensor], augment: Augmentation) -> None:
        self.how, self.net, self.source, self.augment = how, net, source, augment
        self.weights = {n: w.clone() for n, w in source.items()}
        self.statistics = {n: t.clone() for n, t in followed(net).items()}

    def logits(self, x: Tensor, draw: torch.Generator) -> Tensor:
        """float[B, C] of x float[B, ...]; of views drawn by ``draw`` where the source is unsure of the batch."""
        with torch.inference_mode():
            if not self.how.views or not self._unsure(x):
                return self._of(x)
            views = self.augment(x, self.how.views, draw)
            size = max(1, ROWS_AT_ONCE // max(1, len(x)))
            total = torch.stack([self._together(part).sum(0) for part in views.split(size)]).sum(0)
            return total / self.how.views

    def _unsure(self, x: Tensor) -> bool:
        sure = torch.softmax(functional_call(self.net, dict(self.source), (x,)), 1).amax(1).mean()
        return not float(sure) >= self.how.sure

    def _of(self, x: Tensor) -> Tensor:
        z: Tensor = functional_call(self.net, {**self.weights, **self.statistics}, (x,))
        return z

    def _together(self, views: Tensor) -> Tensor:
        """float[V, B, C] of views float[V, B, ...], each with batch statistics of its own."""
        with in_views(self.net, len(views)):
            return self._of(views.flatten(0, 1)).unflatten(0, views.shape[:2])

    def see(self, x: Tensor) -> Tensor:
        """float[B, C]: logits of rows that the student learns from; moves the teacher's running statistics."""
        with torch.inference_mode(), following(self.net):
            z = self._of(x)
            adopt(self.statistics, proposals(self.net))
        return z

    def follow(self, moving: Mapping[str, Tensor]) -> None:
        """One step towards the student's parameters."""
        with torch.no_grad():
            mine, theirs = list(self.weights.values()), [moving[n] for n in self.weights]
            torch._foreach_mul_(mine, self.how.decay)
            torch._foreach_add_(mine, theirs, alpha=1 - self.how.decay)

    def reset(self, statistics: Mapping[str, Tensor]) -> None:
        """The source again, with these running statistics."""
        copy_into(self.weights, self.source)
        copy_into(self.statistics, statistics)

    def state(self) -> State:
        return {"weights": dict(self.weights), "statistics": dict(self.statistics)}

    def load(self, state: State) -> None:
        copy_into(self.weights, state["weights"])
        copy_into(self.statistics, state["statistics"])


def copy_into(into: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Tensors take the values of the same names, in place."""
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(torch.as_tensor(values[name]))


def draw_back(
    moving: Mapping[str, Tensor], source: Mapping[str, Tensor], probability: float, draw: torch.Generator
) -> None:
    """Every single number of the parameters takes its source's value with this probability, in place."""
    with torch.no_grad():
        for name, weight in moving.items():
            chosen = torch.rand(weight.shape, generator=draw) < probability
            weight.copy_(torch.where(chosen.to(weight.device), source[name], weight))


class Hold:
    """The penalty beta sum_i F_i (phi_i - phi_i^0)^2 that holds the moving parameters near the source.

    F_i: the mean over mini-batches of the squared gradient of their mean cross-entropy to the model's own answers.
    """

    def __init__(self, beta: float, fisher: Gradients, source: Mapping[str, Tensor]) -> None:
        self.beta, self.fisher, self.source = beta, fisher, source

    def value(self, at: Mapping[str, Tensor]) -> Tensor:
        """In nats, a tensor of no dimension."""
        parts = [(f * (at[n].detach() - self.source[n]).square()).sum() for n, f in self.fisher.items()]
        return self.beta * torch.stack(parts).sum()

    def slope(self, at: Mapping[str, Tensor]) -> Gradients:
        """2 beta F (phi - phi^0), by parameter name."""
        return {n: 2 * self.beta * f * (at[n].detach() - self.source[n]) for n, f in self.fisher.items()}


def hold_of(
    anchor: Anchor,
    spec: StreamSpec,
    inputs: Pixels | Columns,
    passes: Passes,
    source: Mapping[str, Tensor],
    seed: int,
) -> Hold:
    """The penalty for a source model as ``passes`` sees it, from training rows of ``spec.source`` drawn by the seed.

    source: its moving parameters. Raises ``InputError`` where the stream has no clean rows.
    """
    if spec.source is None:
        raise InputError(f"stream {spec.name} has no clean rows to take Fisher information from: beta must be 0")
    device = next(iter(source.values())).device
    rows, _ = spec.source.train()
    order = torch.randperm(len(rows), generator=generator(seed, FISHER))[: anchor.rows].sort().values
    x = inputs.tensor(rows[order.numpy()])
    return Hold(anchor.beta, fisher(passes, (part.to(device) for part in x.split(anchor.batch))), source)


def fisher(passes: Passes, batches: Iterable[Tensor]) -> Gradients:
    """The mean over batches of (d CE(f(x), argmax f(x)) / d phi)^2, by parameter name."""
    total: Gradients = {}
    count = 0
    for x in batches:
        seen = passes(x)
        slope = torch.softmax(seen.z, 1) - F.one_hot(seen.z.argmax(1), seen.z.shape[1])
        found = {n: g.square() for n, g in seen.pull(slope / len(x)).items()}
        total = {n: total[n] + g if total else g for n, g in found.items()}
        count += 1
    return {n: t / count for n, t in total.items()}


def weighted(rows: Rows, weight: Tensor | None) -> Rows:
    """Losses and slopes times float[B]."""
    if weight is None:
        return rows
    return Rows(rows.value * weight, rows.slope * weight[:, None], rows.doubt, rows.most)
