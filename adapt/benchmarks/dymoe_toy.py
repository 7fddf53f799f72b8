"""Does guidance help against forgetting? A toy whose tokens are known: growth alone, + TAG, + TAG + RSR.

Samples of 12 tokens, d = 32, 4 classes, 4 tasks. Of task t's tokens 50 % are its own (its mean, of norm 4, and the
class's offset), 30 % shared (a common mean, nothing of the class), 20 % ambiguous (the mean of its own and the previous
task's mean, and half the offset); noise .7. Network: two layers of experts (32 -> 64 -> 64, GELU between) on frozen
random weights, the mean over tokens, a frozen random head shared by all tasks. Banks of 4 experts of rank 2, alpha 16,
top 4, T_r = .01, T_s = .1, tau = .2; 150 AdamW steps of 32 rows a task, lr .01.

A case is a variant: mean over seeds of BWT (peer: growth alone) and of the final accuracy; ratio is their difference,
not a quotient. In the notes' own run, three seeds: BWT -.254, -.151 and -.195 with RSR at 1e-3.
"""

from __future__ import annotations

from statistics import fmean
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.dymoe import ExpertLinear, Guidance, Pass, Routing
from . import Row

SEEDS = tuple(range(5))
TASKS, CLASSES, LENGTH, WIDTH, HIDDEN = 4, 4, 12, 32, 64
STEPS, BATCH, HELD, LR = 150, 32, 256, 0.01
Start: TypeAlias = Literal["random", "tokens"]
VARIANTS: dict[str, tuple[Guidance, float, Start]] = {
    "growth alone": (Guidance(tag=False), 0.0, "random"),
    "+ TAG": (Guidance(), 0.0, "random"),
    "+ TAG + RSR 1e-3": (Guidance(), 1e-3, "random"),
    "growth alone, rows at tokens (ours)": (Guidance(tag=False), 0.0, "tokens"),
    "+ TAG, rows at tokens (ours)": (Guidance(), 0.0, "tokens"),
}
"""Guidance, weight of the regularisation, where router rows begin."""


class Toy:
    """Tokens of all tasks, drawn from one seed."""

    def __init__(self, seed: int) -> None:
        self.draw = torch.Generator().manual_seed(seed)
        self.means = 4 * F.normalize(self._normal(TASKS, WIDTH), dim=1)
        self.common = 4 * F.normalize(self._normal(1, WIDTH), dim=1)[0]
        self.offsets = self._normal(TASKS, CLASSES, WIDTH) * 1.5 * WIDTH**-0.5

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.draw)

    def rows(self, task: int, n: int) -> tuple[Tensor, Tensor]:
        """x float32[n, 12, 32], y int64[n]."""
        y = torch.randint(CLASSES, (n,), generator=self.draw)
        offset = self.offsets[task][y][:, None]
        between = (self.means[task] + self.means[task - 1 if task else 0]) / 2
        kind = torch.rand(n, LENGTH, 1, generator=self.draw)
        own, ambiguous = self.means[task] + offset, between + offset / 2
        x = torch.where(kind < 0.5, own, torch.where(kind < 0.8, self.common, ambiguous))
        return x + 0.7 * self._normal(n, LENGTH, WIDTH), y


class Net(nn.Module):
    """Two layers of experts, mean over tokens, a frozen head."""

    def __init__(self, seed: int, guidance: Guidance, start: Start) -> None:
        super().__init__()
        self.shared = Pass()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sizes = ((WIDTH, HIDDEN), (HIDDEN, HIDDEN))
            self.layers = nn.ModuleList(
                ExpertLinear(
                    nn.Linear(*size), number, experts=4, rank=2, alpha=16.0, guidance=guidance,
                    routing=Routing(4, 0.01, start=start), shared=self.shared, seed=seed,
                )
                for number, size in enumerate(sizes)
            )  # fmt: skip
            self.head = nn.Linear(HIDDEN, CLASSES).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layers[1](F.gelu(self.layers[0](x))).mean(1))
        return out


def accuracies(seed: int, guidance: Guidance, rsr: float, start: Start = "random") -> Tensor:
    """float[tasks, tasks]: accuracy on task i after task t."""
    toy, net = Toy(seed), Net(seed, guidance, start)
    held = [toy.rows(task, HELD) for task in range(TASKS)]
    table = torch.zeros(TASKS, TASKS)
    for task in range(TASKS):
        if task:
            for layer in net.layers:
                assert isinstance(layer, ExpertLinear)
                layer.grow()
        _learn(net.train(), toy, task, rsr)
        net.eval()
        with torch.inference_mode():
            table[task] = torch.tensor([(net(x).argmax(1) == y).float().mean() for x, y in held])
    return table


def _learn(net: Net, toy: Toy, task: int, rsr: float) -> None:
    optimiser = torch.optim.AdamW([w for w in net.parameters() if w.requires_grad], lr=LR, weight_decay=0.0)
    shared = net.shared
    for step in range(STEPS):
        ramp = max(0.0, 2 * step / STEPS - 1)
        shared.recording, shared.regularised, shared.step = True, bool(rsr and ramp), step
        x, y = toy.rows(task, BATCH)
        loss = F.cross_entropy(net(x), y)
        terms = [found.rsr for each in shared.found.values() for found in each if found.rsr is not None]
        shared.found.clear()
        if terms:
            loss = loss + ramp * rsr * torch.stack(terms).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def bwt(table: Tensor) -> float:
    """Mean of A[T, i] - A[i, i] over all tasks but the last."""
    return float((table[-1] - table.diagonal())[:-1].mean())


def measure() -> list[Row]:
    """Every variant beside growth alone, the same seeds."""
    found: dict[str, list[Tensor]] = {
        name: [accuracies(seed, *variant) for seed in SEEDS] for name, variant in VARIANTS.items()
    }
    figures = {
        "BWT": {name: fmean(bwt(table) for table in tables) for name, tables in found.items()},
        "final accuracy": {name: fmean(float(t[-1].mean()) for t in tables) for name, tables in found.items()},
        "accuracy just after learning": {
            name: fmean(float(t.diagonal().mean()) for t in tables) for name, tables in found.items()
        },
    }
    first, *others = VARIANTS
    return [
        {
            "bench": "dymoe-toy",
            "case": f"{figure}, {name}, mean of {len(SEEDS)} seeds",
            "unit": "share",
            "ours": values[name],
            "peer": values[first],
            "peer_name": first,
            "ratio": values[name] - values[first],
            "floor": None,
        }
        for figure, values in figures.items()
        for name in others
    ]
