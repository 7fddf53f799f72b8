"""A layer of experts, forward and backward, beside the loop over experts of the published style.

A frozen linear layer d -> d and banks of 16 experts of rank 4, one for each task, the last one new; cosine router, top
16, T_r = .01, tau = .2, no dropout, float32. "training": under exclusive TAG, gradients of the input and of the new
bank. "inference": no gradient, no guidance. Weights and tokens are drawn, some tokens near new router rows; the share
of new ones that comes of it is in the case. Peers:

- "loop over experts": two small linear layers for each expert, all on every token, each result times its weight and
  added; the same scores, guidance, top-k and softmax, old experts frozen. The form of the published adapters.
- "masked bank" (training with old banks): our products over the whole bank, tokens not sorted by group.

What was expected, and came (AMD EPYC, one thread): the loop's products have 4 columns, so it loses most of the
processor's rate. Sorting saves the share ``new`` of the old bank's products and 1 - new of the new bank's: with 3 % new
tokens 5 % of a step at 8 tasks, and it was never slower. Not expected: three quarters of our step were products at half
the processor's rate, which is the library's choice (``models/kernels/product.py``).

Medians of processor time on one thread, in turn; on a GPU by CUDA events. floor: our time by that of the products
and bytes that must be, at the rates of this machine: base 2 N d^2 each way; each token the bank it is for, 4 d R, the
same back; 4 d R_new for each new token's weight gradient; scores of all experts, 2 d E each way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.dymoe import ExpertLinear, Guidance, Pass, Routing
from ...models.kernels.product import product
from ...models.token_groups import guided, token_groups
from ...streams import InputError
from . import Row, row
from .floors import SIDE, Step, floors, in_turn, medians

TASKS = (1, 4, 8)
WIDTHS = (512, 1024)
TOKENS = {"cpu": (256, 1024), "cuda": (1024, 8192)}
EXPERTS, RANK, ROUTING, GUIDANCE = 16, 4, Routing(16, 0.01), Guidance()
ROUNDS = 5
SPREAD = 0.02
"""Standard deviation of B, as if it had been trained."""
MEANT = 0.3
"""Share of the tokens that lie near one of the new router's rows."""


class LoopOverExperts(nn.Module):
    """The same function as a layer of ours, expert by expert."""

    def __init__(self, ours: ExpertLinear) -> None:
        super().__init__()
        self.base, self.scale, self.routing, self.old = ours.base, ours.scale, ours.routing, len(ours.old_router)
        a, b = torch.cat([ours.old_a, ours.new_a]).detach(), torch.cat([ours.old_b, ours.new_b]).detach()
        self.a = nn.ModuleList(_linear(part) for part in a.split(ours.rank))
        self.b = nn.ModuleList(_linear(part.t()) for part in b.split(ours.rank))
        self.old_router = ours.old_router
        self.router = nn.Parameter(ours.new_router.detach().clone())
        for layer in [*self.a[: self.old], *self.b[: self.old]]:
            layer.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        scores = F.normalize(x, dim=1) @ F.normalize(torch.cat([self.old_router, self.router]), dim=1).t()
        if self.training and self.old:
            groups = token_groups(scores[:, : self.old].amax(1), scores[:, self.old :].amax(1), GUIDANCE.tau)
            scores = guided(scores, self.old, groups.new)
        values, places = scores.topk(min(self.routing.top_k, scores.shape[1]), dim=1)
        w = torch.zeros_like(scores).scatter(1, places, torch.softmax(values / self.routing.temperature, 1))
        y: Tensor = self.base(x)
        for j, (a, b) in enumerate(zip(self.a, self.b, strict=True)):
            y = y + b(a(x)) * w[:, j : j + 1] * self.scale
        return y


def _linear(weight: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
    made.weight = nn.Parameter(weight.contiguous().clone())
    return made


@dataclass(frozen=True, slots=True)
class Case:
    """A layer d -> d after so many tasks, tokens and the gradient of its output, and the share of new tokens."""

    ours: ExpertLinear
    x: Tensor
    grad: Tensor
    new: float

    @classmethod
    def of(cls, width: int, tokens: int, tasks: int, device: str) -> Case:
        draw = torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            base = nn.Linear(width, width)
        layer = ExpertLinear(
            base, experts=EXPERTS, rank=RANK, routing=ROUTING, guidance=GUIDANCE, shared=Pass(recording=True)
        )
        for task in range(tasks):
            if task:
                layer.grow()
            with torch.no_grad():
                layer.new_b.copy_(torch.randn(layer.new_b.shape, generator=draw) * SPREAD)
        layer.to(device).train()
        x, grad = (torch.randn(tokens, width, generator=draw).to(device) for _ in range(2))
        some = torch.arange(0, tokens, round(1 / MEANT), device=device)
        x[some] += width**0.5 * F.normalize(layer.new_router.detach()[some % EXPERTS], dim=1)
        layer(x)
        (found,) = layer.shared.found.pop(0)
        layer.shared.recording = False
        return cls(layer, x.requires_grad_(), grad, float(found.shares[0]))

    def trained(self, layer: nn.Module) -> Step:
        """Forward and backward."""
        wanted = [self.x, *(w for w in layer.parameters() if w.requires_grad)]
        return lambda: torch.autograd.grad(layer.train()(self.x), wanted, self.grad)

    def asked(self, layer: nn.Module) -> Step:
        """Forward alone."""

        def step() -> Tensor:
            with torch.inference_mode():
                out: Tensor = layer.eval()(self.x)
                return out

        return step

    def masked(self) -> Step:
        """Training with the whole bank for every token."""
        ours, old = self.ours, len(self.ours.old_router)
        wanted = [self.x, ours.new_a, ours.new_b, ours.new_router]

        def step() -> object:
            scores = ours.scores(self.x)
            seen = scores.detach()
            groups = token_groups(seen[:, :old].amax(1), seen[:, old:].amax(1), GUIDANCE.tau)
            w = ours.weights(guided(scores, old, groups.new))
            return torch.autograd.grad(ours.beneath(self.x) + ours.mixed(self.x, w, "both"), wanted, self.grad)

        return step

    def least(self, *, training: bool) -> tuple[float, float]:
        """Bytes and operations that must be."""
        n, d = self.x.shape
        rank, new = EXPERTS * RANK, self.new
        old_rank, experts = len(self.ours.old_a), len(self.ours.old_router) + EXPERTS
        for_token = new * rank + (1 - new) * old_rank if training and old_rank else old_rank + rank
        once = 2 * n * d * d + 4 * n * d * for_token + 2 * n * d * experts
        weights = d * d + (2 * d) * (old_rank + rank) + d * experts
        moved = 4.0 * (2 * n * d + weights)
        if not training:
            return moved, once
        return 2 * moved + 4 * 2 * d * rank, 2 * once + 4 * n * new * d * rank + 2 * n * d * EXPERTS


def cases(width: int, tokens: int, tasks: int, device: str, rate: float) -> list[Row]:
    """Training and inference of one layer beside their peers. rate: operations a second of a large product."""
    case = Case.of(width, tokens, tasks, device)
    loop = LoopOverExperts(case.ours)
    found = []
    for training in (True, False):
        steps = [case.trained(m) if training else case.asked(m) for m in (case.ours, loop)]
        steps += [case.masked()] if training and tasks > 1 else []
        seconds = in_turn(steps, ROUNDS) if device == "cpu" else medians(steps, device)
        moved, operations = case.least(training=training)
        least = max(moved / floors(device).copy, operations / rate)
        name = f"d={width}, {tokens} tokens, {tasks} task{'s' if tasks > 1 else ''}"
        name += f", training ({case.new:.0%} new)" if training else ", inference"
        for peer, peer_name in zip(seconds[1:], ("loop over experts", "masked bank")):
            measured = row("dymoe", name, "ms", 1e3 * seconds[0], 1e3 * peer, peer_name, more_is_better=False)
            found.append(measured | {"floor": seconds[0] / least})
    return found


def measure(device: str = "cpu") -> list[Row]:
    """All widths, tokens and tasks, on one thread; ``InputError`` for a device that is not there."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device} is not there; leave --device out to measure on the CPU")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rate = _rate(device)
        kind = torch.device(device).type
        return [
            found
            for width in WIDTHS
            for tokens in TOKENS[kind]
            for tasks in TASKS
            for found in cases(width, tokens, tasks, device, rate)
        ]
    finally:
        torch.set_num_threads(threads)


def _rate(device: str) -> float:
    side = SIDE[torch.device(device).type]
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    (seconds,) = medians([lambda: product(a, b)], device)
    return 2 * side**3 / seconds
