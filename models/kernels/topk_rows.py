"""Which rows have the largest scores, in every layer, and scores of blocks.

``topk_rows``: k rows of each layer, neither more nor fewer, rising; among equal scores the lowest rows; NaN is above
infinity, so that what is broken is seen. All layers of a model go in one call, and nothing waits for the device: how
many rows are chosen is known beforehand. ``block_scores``: the mean score of every block of a vector or a matrix.

``path``: "torch" is the contract (any device, any type; it sorts); "numpy" (CPU) cuts each layer at its k-th largest
score; "triton" (CUDA, floats of at most 32 bits) finds that score bit by bit, one program a layer. None chooses by
device. Both are operators of PyTorch (``driftway::topk_rows``, ``driftway::block_scores``), which ``torch.compile``
takes as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .selection import choose

Path = Literal["torch", "numpy", "triton"]

WIDEST = 1 << 20
"""Wider layers go without Triton: its kernel counts in 21 bits."""


@dataclass(frozen=True, slots=True, eq=False)
class Layers:
    """Layers whose scores lie one after another. table: int64[2, L + 1], where scores and chosen rows of each begin."""

    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    table: Tensor

    @classmethod
    def of(cls, sizes: tuple[int, ...], counts: tuple[int, ...], device: torch.device | str = "cpu") -> Layers:
        """counts: how many rows of each are chosen. Made once, not in every step: the table is copied to the device."""
        if len(sizes) != len(counts) or any(not 0 <= k <= n for k, n in zip(counts, sizes)):
            raise ValueError(f"of layers of {sizes} rows, {counts} cannot be chosen: give one count a layer, 0..rows")
        starts = [[0, *accumulate(numbers)] for numbers in (sizes, counts)]
        return cls(sizes, counts, torch.tensor(starts).to(device))


def topk_rows(score: Tensor, k: int | Layers, path: Path | None = None) -> Tensor:
    """The k rows of the largest score: int64[..., k] of score [..., d], rising.

    With ``Layers``, of scores [all rows] of them all: int64[all counts], each layer's rows counted from its own first.
    """
    if isinstance(k, Layers):
        if score.shape != (sum(k.sizes),):
            raise ValueError(f"scores of shape {tuple(score.shape)} are not those of layers of {k.sizes} rows")
        total, table, widest = sum(k.counts), k.table, max((0, *k.sizes))
    else:
        total, table, widest = k, None, score.shape[-1]
        if not 0 <= k <= widest:
            raise ValueError(f"{k} of {widest} rows cannot be chosen")
    if path is None and torch.compiler.is_compiling():
        found: Tensor = torch.ops.driftway.topk_rows(score, total, table, widest)
        return found
    return _topk(score, total, table, widest, path)


def _topk(score: Tensor, total: int, table: Tensor | None, widest: int, path: Path | None = None) -> Tensor:
    if path is None and (widest > WIDEST or score.dtype.itemsize > 4) and score.device.type != "cpu":
        path = "torch"
    way: Path = choose(path, "topk_rows", score, "numpy", "torch")
    if way == "triton":
        from . import topk_rows_triton

        return topk_rows_triton.topk(score, total, table, widest)
    one = _sorted if way == "torch" else _cut
    if table is None:
        if score.dim() == 1:
            return one(score, total)
        found = [one(layer, total) for layer in score.reshape(-1, widest)] if score.numel() else []
        return _joined(found, score).view(*score.shape[:-1], total)
    (begins, firsts) = table.tolist()
    counts = np.diff(firsts)
    return _joined([one(score[a:b], int(k)) for a, b, k in zip(begins, begins[1:], counts)], score)


def _joined(found: list[Tensor], score: Tensor) -> Tensor:
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64, device=score.device)


def _sorted(score: Tensor, k: int) -> Tensor:
    return torch.sort(score, descending=True, stable=True).indices[:k].sort().values


def _cut(score: Tensor, k: int) -> Tensor:
    """On a CPU: all above the k-th largest score, and of those that equal it the first."""
    if k == 0:
        return torch.empty(0, dtype=torch.int64)
    values = (score.float() if score.dtype.itemsize < 4 else score).numpy(force=True)
    bar = np.partition(values, len(values) - k)[len(values) - k]
    found = np.flatnonzero(values >= bar)
    if len(found) != k:
        if np.isnan(bar):
            return _sorted(score, k)
        above = np.isnan(values) | (values > bar)
        above[np.flatnonzero(values == bar)[: k - above.sum()]] = True
        found = np.flatnonzero(above)
    return torch.from_numpy(found)


@torch.library.custom_op("driftway::topk_rows", mutates_args=())
def _topk_op(score: Tensor, total: int, table: Tensor | None, widest: int) -> Tensor:
    return _topk(score, total, table, widest)


@_topk_op.register_fake
def _(score: Tensor, total: int, table: Tensor | None, *_: int) -> Tensor:
    shape = (total,) if table is not None else (*score.shape[:-1], total)
    return score.new_empty(shape, dtype=torch.int64)


# --- blocks ---------------------------------------------------------------------------------------------------------


def block_scores(values: Tensor, block: int | tuple[int, int], path: Path | None = None) -> Tensor:
    """The mean over each block: float[ceil(d / block)] of a vector [d]; of a matrix [rows, columns], blocks row by row.

    Blocks at the edges may be smaller. Short floats are summed and returned in float32.
    """
    table = values if values.dim() == 2 else values.reshape(1, -1)
    high, wide = block if isinstance(block, tuple) else (1, block)
    if min(high, wide) < 1 or values.dim() != (2 if isinstance(block, tuple) else 1):
        raise ValueError(f"blocks of {block} do not cut up scores of shape {tuple(values.shape)}")
    if path is None and torch.compiler.is_compiling():
        found: Tensor = torch.ops.driftway.block_scores(table, high, wide)
        return found
    return _blocks(table, high, wide, path)


def _blocks(table: Tensor, high: int, wide: int, path: Path | None = None) -> Tensor:
    if path is None and table.dtype.itemsize > 4 and table.device.type != "cpu":
        path = "torch"
    way: Path = choose(path, "topk_rows", table, "numpy", "torch")
    if way == "triton":
        from . import topk_rows_triton

        return topk_rows_triton.blocks(table, high, wide)
    long, (rows, columns), (down, across) = _long(table.dtype), table.shape, _grid(table, high, wide)
    even = (rows, columns) == (down * high, across * wide)
    if not even:
        table = torch.nn.functional.pad(table, (0, across * wide - columns, 0, down * high - rows))
    if even and high == 1:
        return table.reshape(-1, wide).mean(1, dtype=long)
    cells = table.reshape(down, high, across, wide)
    if way == "numpy" and wide > 1:  # the near ones first: it is faster
        cells = cells.sum(3, dtype=long, keepdim=True)
    total = cells.sum((1, 3), dtype=long)
    if even:
        return total.flatten().div_(high * wide)
    sizes = [
        torch.arange(n, device=table.device).mul(-b).add(m).clamp(max=b)
        for n, b, m in ((down, high, rows), (across, wide, columns))
    ]
    return total.div_(torch.outer(*sizes)).flatten()


def _grid(table: Tensor, high: int, wide: int) -> tuple[int, int]:
    return -(-table.shape[0] // high), -(-table.shape[1] // wide)


def _long(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize < 4 else dtype


@torch.library.custom_op("driftway::block_scores", mutates_args=())
def _blocks_op(table: Tensor, high: int, wide: int) -> Tensor:
    return _blocks(table, high, wide)


@_blocks_op.register_fake
def _(table: Tensor, high: int, wide: int) -> Tensor:
    down, across = _grid(table, high, wide)
    return table.new_empty((down * across,), dtype=_long(table.dtype))
