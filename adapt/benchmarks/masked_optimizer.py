"""Updates under masks of entries and of blocks beside PyTorch's fused optimiser of all, with and without a mask before.

Random masks that a tenth of all entries, or of all blocks, is active in. Peers, types and steps as in
``row_sparse_optimizer``. The floor is the bytes of the active entries, but memory moves in lines (64 bytes on a CPU, 32
on a GPU): of scattered entries the lines that hold one are counted, most of them at this share, and the packed mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...models.kernels.masked_optimizer import (
    BlockTable,
    BlockUpdate,
    EntryTable,
    EntryUpdate,
    grid,
    pack_mask,
    update_blocks,
    update_entries,
)
from . import Row
from .floors import Step, floors, kernel_row, medians, rotated
from .row_sparse_optimizer import DTYPES, MATRICES, RATES, RULES, WITHIN, bytes_an_entry, peers, state

SHARE = 0.1
LINE = {"cpu": 64, "cuda": 32}
SIDES = (16, 32, 64)
TIMES = 4.0
"""Target for blocks on a GPU, against the mask and the fused optimiser."""


def _chosen(shape: tuple[int, int], side: int) -> Tensor:
    """The mask bool[rows, columns]; side 1: of single entries."""
    down, across = -(-shape[0] // side), -(-shape[1] // side)
    small = torch.zeros(down * across, dtype=torch.bool)
    small[torch.randperm(down * across)[: round(SHARE * down * across)]] = True
    wide = small.view(down, across).repeat_interleave(side, 0).repeat_interleave(side, 1)
    return wide[: shape[0], : shape[1]].contiguous()


def _ours(mask: Tensor, side: int, moments: int, dtype: torch.dtype, device: str) -> Step:
    weight, slots = state(tuple(mask.shape), moments, dtype, device)
    grad, on_cpu = torch.randn_like(weight), torch.device(device).type == "cpu"
    if side == 1:
        entries = [EntryUpdate(weight, slots, pack_mask(mask).to(device), grad, RATES, torch.zeros((), device=device))]
        return (lambda: update_entries(entries)) if on_cpu else EntryTable.of(entries).step
    block = mask[::side, ::side].flatten().nonzero().flatten().to(device)
    blocks = [BlockUpdate(weight, slots, block, side, grad, RATES, torch.zeros(grid(weight, side), device=device))]
    if on_cpu:
        return lambda: update_blocks(blocks)
    table = BlockTable.of(blocks)
    return lambda: table.step(block)


def _steps(shape: tuple[int, int], side: int, moments: int, dtype: torch.dtype, device: str) -> list[Step]:
    mask = _chosen(shape, side)
    return [*peers([shape], [mask.to(device)], moments, dtype), _ours(mask, side, moments, dtype, device)]


def _moved(shape: tuple[int, int], side: int, moments: int, dtype: torch.dtype, kind: str) -> float:
    mask, entry = _chosen(shape, side), bytes_an_entry(moments, dtype)
    if side > 1:
        return int(mask.sum()) * entry
    line = LINE[kind] // dtype.itemsize
    return int(mask.view(-1, line).any(1).sum()) * line * entry + mask.numel() / 8


def _case(shape: tuple[int, int], side: int, moments: int, dtype: torch.dtype, device: str) -> list[Row]:
    torch.manual_seed(0)
    kind = torch.device(device).type
    moved = _moved(shape, side, moments, dtype, kind)
    made: Any = rotated(lambda: _steps(shape, side, moments, dtype, device), moved, device)
    fused, masked, ours = medians(made, device)
    what = "entries" if side == 1 else f"blocks of {side}"
    case = f"masked_optimizer: {'x'.join(map(str, shape))}, {RULES[moments]}, {SHARE:.0%} of {what}"
    case += f", {str(dtype).removeprefix('torch.')}"
    floor, on_gpu = floors(device).seconds(moved), kind == "cuda"
    within, times = WITHIN if on_gpu else None, TIMES if on_gpu and side > 1 else None
    return [
        kernel_row(case, ours, fused, "fused optimiser", floor, within=within),
        kernel_row(case, ours, masked, "mask, fused optimiser", floor, times=times),
    ]


def measure(device: str = "cpu") -> list[Row]:
    """AdamW of all matrices and kinds of masks; momentum of the first matrix."""
    kind, rows = torch.device(device).type, []
    for dtype in DTYPES[kind]:
        for shape in MATRICES[kind]:
            for side in (1, *SIDES):
                rows += _case(shape, side, 2, dtype, device)
        for side in (1, 32):
            rows += _case(MATRICES[kind][0], side, 1, dtype, device)
    return rows
