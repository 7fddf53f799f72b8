"""Triton kernels of ``topk_rows`` and ``block_scores``; the contract is in ``topk_rows.py``.

A score becomes a whole number that grows with it. The k-th largest number is then found two bits at a time: of three
bars, how many numbers reach each is counted in one sum of three 21-bit fields. A last pass writes the rows that reach
the bar, the first of those that equal it, where a running count puts them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LANES = 4096
"""Scores a program looks at together; wider layers take more rounds."""


@triton.jit
def _numbers(scores: tl.tensor, at: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """int64 in 0 .. 2^32 - 1 that rises with the score, NaN on top; -1 outside."""
    value = tl.load(scores + at, mask=inside, other=0.0).to(tl.float32)
    value = tl.where(value == 0.0, 0.0, value)
    bits = value.to(tl.int32, bitcast=True)
    bits = tl.where(value != value, 0x7FFFFFFF, bits)
    rising = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(inside, rising.to(tl.int64) + 2147483648, -1)


@triton.jit
def _topk_kernel(
    scores: tl.tensor, table: tl.tensor, found: tl.tensor, width: tl.tensor, count: tl.tensor, layers: tl.tensor,
    TABLE: tl.constexpr, ROUNDS: tl.constexpr, LANES: tl.constexpr,
) -> None:  # fmt: skip
    layer = tl.program_id(0).to(tl.int64)
    if TABLE:
        begin, first = tl.load(table + layer), tl.load(table + layers + 1 + layer)
        size, k = tl.load(table + layer + 1) - begin, tl.load(table + layers + 2 + layer) - first
    else:
        begin, first = layer * width, layer * count
        size, k = width + begin * 0, count + begin * 0
    lane = tl.arange(0, LANES)

    bar = tl.full((), 0, tl.int64)  # the largest number found so far that k numbers reach
    for step in range(16):
        unit = tl.full((), 1, tl.int64) << (30 - 2 * step)
        reach = tl.zeros((LANES,), tl.int64)
        for at in range(0, ROUNDS * LANES, LANES):
            number = _numbers(scores + begin, at + lane, at + lane < size)
            reach += (number >= bar + unit).to(tl.int64)
            reach += (number >= bar + 2 * unit).to(tl.int64) << 21
            reach += (number >= bar + 3 * unit).to(tl.int64) << 42
        three = tl.sum(reach, 0)
        bars = ((three & 0x1FFFFF) >= k).to(tl.int64)
        bars += (((three >> 21) & 0x1FFFFF) >= k).to(tl.int64)
        bars += ((three >> 42) >= k).to(tl.int64)
        bar += bars * unit

    higher = tl.zeros((LANES,), tl.int64)
    for at in range(0, ROUNDS * LANES, LANES):
        higher += (_numbers(scores + begin, at + lane, at + lane < size) > bar).to(tl.int64)
    wanted = k - tl.sum(higher, 0)  # so many of those that equal the bar

    above, equal = tl.full((), 0, tl.int64), tl.full((), 0, tl.int64)
    for at in range(0, ROUNDS * LANES, LANES):
        number = _numbers(scores + begin, at + lane, at + lane < size)
        both = (number > bar).to(tl.int32) + ((number == bar).to(tl.int32) << 16)
        before = tl.cumsum(both, 0) - both
        above_before = above + (before & 0xFFFF).to(tl.int64)
        equal_before = equal + (before >> 16).to(tl.int64)
        chosen = (number > bar) | ((number == bar) & (equal_before < wanted))
        place = above_before + tl.minimum(equal_before, wanted)
        tl.store(found + first + place, at + lane.to(tl.int64), mask=chosen)
        here = tl.sum(both, 0)
        above += (here & 0xFFFF).to(tl.int64)
        equal += (here >> 16).to(tl.int64)


def topk(score: Tensor, total: int, table: Tensor | None, widest: int) -> Tensor:
    """The rows of every layer: of ``table`` (see ``Layers``), else of score [..., widest]."""
    score = score.contiguous()
    layers = score.numel() // max(widest, 1) if table is None else table.shape[1] - 1
    shape = (*score.shape[:-1], total) if table is None else (total,)
    found = torch.empty(shape, dtype=torch.int64, device=score.device)
    if total and layers:
        lanes = min(LANES, max(64, triton.next_power_of_2(widest)))
        with torch.cuda.device_of(score):
            _topk_kernel[(layers,)](
                score, table, found, widest, total, layers,
                TABLE=table is not None, ROUNDS=triton.cdiv(widest, lanes), LANES=lanes, num_warps=max(1, lanes // 256),
            )  # fmt: skip
    return found


@triton.jit
def _blocks_kernel(
    values: tl.tensor, found: tl.tensor, rows: tl.tensor, columns: tl.tensor, across: tl.tensor,
    row_stride: tl.tensor, column_stride: tl.tensor,
    HIGH: tl.constexpr, WIDE: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr,
) -> None:  # fmt: skip
    """GROUP neighbouring blocks of one row of blocks. WIDTH: the power of two that WIDE fits into."""
    groups = tl.cdiv(across, GROUP)
    down = (tl.program_id(0) // groups).to(tl.int64)
    group = tl.program_id(0) % groups * GROUP + tl.arange(0, GROUP)
    inner = tl.arange(0, WIDTH)
    column = group[:, None].to(tl.int64) * WIDE + inner[None, :]
    there = (inner[None, :] < WIDE) & (column < columns)
    total = tl.zeros((GROUP, WIDTH), tl.float32)
    for i in range(HIGH):
        row = down * HIGH + i + tl.zeros((GROUP, WIDTH), tl.int64)
        at = row * row_stride + column * column_stride
        total += tl.load(values + at, mask=there & (row < rows), other=0.0).to(tl.float32)
    high = tl.minimum(rows - down * HIGH, HIGH)
    wide = tl.maximum(tl.minimum(columns - group.to(tl.int64) * WIDE, WIDE), 1)
    mean = tl.sum(total, 1) / (high * wide).to(tl.float32)
    tl.store(found + down * across + group, mean, mask=group < across)


def blocks(table: Tensor, high: int, wide: int) -> Tensor:
    """The mean of every block of a matrix of any strides."""
    (rows, columns), down, across = table.shape, -(-table.shape[0] // high), -(-table.shape[1] // wide)
    found = torch.empty(down * across, dtype=torch.float32, device=table.device)
    if len(found):
        width = triton.next_power_of_2(wide)
        group = max(1, min(1024 // width, triton.next_power_of_2(across)))
        with torch.cuda.device_of(table):
            _blocks_kernel[(down * triton.cdiv(across, group),)](
                table, found, rows, columns, across, *table.stride(),
                HIGH=high, WIDE=wide, WIDTH=width, GROUP=group,
            )  # fmt: skip
    return found


def probe(device: torch.device) -> None:
    """Raises where the kernels and the contract differ on a few scores."""
    from . import topk_rows as op

    score = torch.tensor([2.0, 0.0, -1.0, 2.0, -0.0, 7.0, float("nan")], device=device)
    paths: tuple[op.Path, ...] = ("triton", "torch")
    layers = op.Layers.of((4, 3), (2, 1), device)
    torch.testing.assert_close(*(op.topk_rows(score, layers, path) for path in paths), rtol=0, atol=0)
    torch.testing.assert_close(*(op.topk_rows(score, 4, path) for path in paths), rtol=0, atol=0)
    torch.testing.assert_close(*(op.block_scores(score[:6].view(2, 3), (2, 2), path) for path in paths))
