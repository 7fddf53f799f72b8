"""Ways to make a network forget rows without training it anew: the rivals of exact forgetting.

All are recalled from the literature, not re-read; step lengths and epochs are ours. Every one needs the retained rows
but negative gradient, and none gives a guarantee.

finetune        descend on the retained rows.
neg_grad        climb on the forgotten rows.
neg_grad_plus   descend on alpha L_retained - (1 - alpha) L_forgotten (Kurmanji et al., NeurIPS 2023).
scrub           in turn away from the teacher on forgotten rows and towards it, and the labels, on retained ones, which
                come last (Kurmanji et al., NeurIPS 2023). At the teacher itself there is no slope away from it, so
                the first epoch moves only towards the labels.
salun           random labels for the forgotten rows and the right ones for the retained, moving only the weights that
                the forgotten rows' loss depends on most (Fan et al., ICLR 2024).
The reference, training anew on what is retained, is the caller's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Steps:
    """epochs over the retained rows, rate and batch of plain SGD with momentum 0.9; the gradient's norm is at most
    ``clip``. climb: rate of steps that climb. alpha: share of the retained rows' loss. share: of weights that move."""

    epochs: int = 3
    rate: float = 0.02
    batch: int = 32
    clip: float = 1.0
    climb: float = 0.005
    alpha: float = 0.95
    share: float = 0.5


@dataclass(frozen=True, slots=True)
class Rows:
    """x: float[n, ...]; y: int64[n]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[Rows]:
        """All rows once, shuffled."""
        for some in torch.randperm(len(self), generator=generator).split(size):
            yield Rows(self.x[some], self.y[some])


Method = Callable[[nn.Module, Rows, Rows, Steps, torch.Generator], None]
"""(network, retained rows, rows to forget, steps, generator): changes the network in place."""


def train(net: nn.Module, rows: Rows, steps: Steps, generator: torch.Generator) -> None:
    """Cross-entropy on shuffled batches, in place."""
    _descend(net, steps.rate, steps, (F.cross_entropy(net(b.x), b.y) for b in _epochs(rows, steps, generator)))


def finetune(net: nn.Module, retained: Rows, forgotten: Rows, steps: Steps, generator: torch.Generator) -> None:  # noqa: ARG001
    train(net, retained, steps, generator)


def neg_grad(net: nn.Module, retained: Rows, forgotten: Rows, steps: Steps, generator: torch.Generator) -> None:  # noqa: ARG001
    _descend(net, steps.climb, steps, (-F.cross_entropy(net(b.x), b.y) for b in _epochs(forgotten, steps, generator)))


def neg_grad_plus(net: nn.Module, retained: Rows, forgotten: Rows, steps: Steps, generator: torch.Generator) -> None:
    def losses() -> Iterator[Tensor]:
        for b in _epochs(retained, steps, generator):
            some = torch.randint(len(forgotten), (min(len(forgotten), steps.batch),), generator=generator)
            away = F.cross_entropy(net(forgotten.x[some]), forgotten.y[some])
            yield steps.alpha * F.cross_entropy(net(b.x), b.y) - (1 - steps.alpha) * away

    _descend(net, steps.rate, steps, losses())


def scrub(net: nn.Module, retained: Rows, forgotten: Rows, steps: Steps, generator: torch.Generator) -> None:
    teacher = copy.deepcopy(net).eval()

    def apart(b: Rows) -> Tensor:
        """KL(teacher || network)."""
        with torch.no_grad():
            told = F.log_softmax(teacher(b.x), 1)
        return F.kl_div(F.log_softmax(net(b.x), 1), told, reduction="batchmean", log_target=True)

    once = Steps(1, steps.rate, steps.batch, steps.clip)
    for epoch in range(steps.epochs):
        if epoch < max(1, steps.epochs - 1):
            _descend(net, steps.climb, once, (-apart(b) for b in _epochs(forgotten, once, generator)))
        towards = (apart(b) + F.cross_entropy(net(b.x), b.y) for b in _epochs(retained, once, generator))
        _descend(net, steps.rate, once, towards)


def salun(net: nn.Module, retained: Rows, forgotten: Rows, steps: Steps, generator: torch.Generator) -> None:
    weights = list(net.parameters())
    slopes = torch.autograd.grad(F.cross_entropy(net(forgotten.x), forgotten.y), weights)
    sizes = torch.cat([g.abs().flatten() for g in slopes])
    edge = torch.quantile(sizes, 1 - steps.share)
    masks = [(g.abs() >= edge).to(g.dtype) for g in slopes]
    with torch.no_grad():
        classes = net(forgotten.x[:1]).shape[1]
    others = torch.randint(1, classes, forgotten.y.shape, generator=generator)
    mixed = Rows(torch.cat([retained.x, forgotten.x]), torch.cat([retained.y, (forgotten.y + others) % classes]))
    losses = (F.cross_entropy(net(b.x), b.y) for b in _epochs(mixed, steps, generator))
    _descend(net, steps.rate, steps, losses, masks)


METHODS: dict[str, Method] = {
    "finetune": finetune,
    "neg-grad": neg_grad,
    "neg-grad+": neg_grad_plus,
    "scrub": scrub,
    "salun": salun,
}


def _epochs(rows: Rows, steps: Steps, generator: torch.Generator) -> Iterator[Rows]:
    for _ in range(steps.epochs):
        yield from rows.batches(steps.batch, generator)


def _descend(
    net: nn.Module, rate: float, steps: Steps, losses: Iterator[Tensor], masks: list[Tensor] | None = None
) -> None:
    """One step of SGD for each loss as it is made; with masks only where they are 1."""
    weights = list(net.parameters())
    optimiser = torch.optim.SGD(weights, rate, 0.9)
    for loss in losses:
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for weight, mask in zip(weights, masks or []):
            if weight.grad is not None:
                weight.grad *= mask
        nn.utils.clip_grad_norm_(weights, steps.clip)
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
