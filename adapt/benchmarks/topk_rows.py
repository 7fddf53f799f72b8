"""Choosing rows, and scores of blocks, beside PyTorch's own functions.

"one layer": k of d scores beside ``torch.topk`` and a sort of the rows it finds, as the result has to rise. "a
network": the layers of a ResNet-18 in one call beside one ``torch.topk`` and sort for each. "blocks": the mean of
every block of a matrix beside ``avg_pool2d``. The floor is the bytes of scores read and rows or means written; small
cases are bound by the launch instead, or by the call.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch.nn import functional as F

from ...models.kernels.topk_rows import Layers, block_scores, topk_rows
from . import Row
from .floors import Step, floors, kernel_row, medians, rotated

WIDTHS = (1024, 4096, 16384)
RATIO = 0.3
RESNET18 = (64,) * 5 + (128,) * 5 + (256,) * 5 + (512,) * 5
MATRIX = {"cpu": (4096, 1024), "cuda": (8192, 8192)}
BLOCKS = (16, 32, 64)


def _one(d: int, device: str) -> Row:
    k = round(RATIO * d)

    def steps() -> list[Step]:
        score = torch.rand(d, generator=torch.Generator().manual_seed(0)).to(device)
        return [lambda: torch.topk(score, k, sorted=False).indices.sort(), lambda: topk_rows(score, k)]

    moved = 4 * d + 8 * k
    plain, ours = medians(rotated(steps, moved, device), device)
    return kernel_row(f"topk_rows: one layer, {k} of {d}", ours, plain, "topk, sort", floors(device).seconds(moved))


def _network(device: str) -> Row:
    counts = tuple(round(RATIO * size) for size in RESNET18)
    begins = [0, *accumulate(RESNET18)]
    layers = Layers.of(RESNET18, counts, device)

    def steps() -> list[Step]:
        score = torch.rand(sum(RESNET18), generator=torch.Generator().manual_seed(0)).to(device)
        parts = [(score[a:b], k) for a, b, k in zip(begins, begins[1:], counts)]
        return [
            lambda: [torch.topk(part, k, sorted=False).indices.sort() for part, k in parts],
            lambda: topk_rows(score, layers),
        ]

    moved = 4 * sum(RESNET18) + 8 * sum(counts)
    plain, ours = medians(rotated(steps, moved, device), device)
    case = f"topk_rows: a network of {len(counts)} layers, ratio {RATIO}"
    return kernel_row(case, ours, plain, "topk, sort for each", floors(device).seconds(moved))


def _blocks(block: int, device: str) -> Row:
    rows, columns = MATRIX[torch.device(device).type]

    def steps() -> list[Step]:
        values = torch.rand(rows, columns, generator=torch.Generator().manual_seed(0)).to(device)
        return [lambda: F.avg_pool2d(values[None, None], block), lambda: block_scores(values, (block, block))]

    moved = 4 * rows * columns * (1 + 1 / block**2)
    plain, ours = medians(rotated(steps, moved, device), device)
    case = f"block_scores: {rows}x{columns}, blocks of {block}"
    return kernel_row(case, ours, plain, "avg_pool2d", floors(device).seconds(moved))


def measure(device: str = "cpu") -> list[Row]:
    """Layers, a network, blocks."""
    return [*(_one(d, device) for d in WIDTHS), _network(device), *(_blocks(block, device) for block in BLOCKS)]
