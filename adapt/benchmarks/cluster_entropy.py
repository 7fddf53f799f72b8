"""Cluster entropy and its gradient beside eager autograd of the product of softmax and the clusters' indicators.

Shapes are rows, entries, clusters. The floor is four times the logits' bytes: the forward pass reads them and writes
the slope, the backward pass reads that and writes the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ...models.cluster_entropy import ClusterEntropy
from . import Row
from .floors import Step, floors, kernel_row, medians, rotated

SHAPES = {
    "cpu": ((1, 64, 4), (16, 256, 8), (64, 4096, 8), (8, 16384, 8)),
    "cuda": ((16, 256, 8), (64, 4096, 8), (4096, 4096, 8), (512, 16384, 64)),
}


def _steps(rows: int, entries: int, clusters: int, device: str) -> list[Step]:
    """Eager autograd, and ours."""
    draw = torch.Generator().manual_seed(0)
    z = (3 * torch.randn(rows, entries, generator=draw)).to(device).requires_grad_()
    ids = (torch.arange(entries) % clusters)[torch.randperm(entries, generator=draw)].to(device)
    indicators, objective = one_hot(ids, clusters).float(), ClusterEntropy(ids, reduction="sum").to(device)

    def eager() -> tuple[Tensor, ...]:
        q = torch.softmax(z, -1) @ indicators
        return torch.autograd.grad(-(q * q.clamp(min=1e-12).log()).sum(), z)

    return [eager, lambda: torch.autograd.grad(objective(z), z)]


def _case(rows: int, entries: int, clusters: int, device: str) -> Row:
    moved = 16.0 * rows * entries
    eager, ours = medians(rotated(lambda: _steps(rows, entries, clusters, device), moved, device), device)
    name = f"cluster_entropy: {rows}x{entries}, {clusters} clusters"
    return kernel_row(name, ours, eager, "softmax @ one-hot, autograd", floors(device).seconds(moved), times=1.0)


def measure(device: str = "cpu") -> list[Row]:
    """All shapes."""
    return [_case(*shape, device) for shape in SHAPES[torch.device(device).type]]
