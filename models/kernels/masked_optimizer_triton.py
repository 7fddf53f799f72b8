"""Triton kernels of ``masked_optimizer``: one launch for all parameters, a program a chunk of entries or a block."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .masked_optimizer_compiled import ACROSS, ROWS, WORDS
from .parameter_table import COLUMNS, COUNT, FIRST, GRAD, SECOND, SEED, START, WEIGHT, WIDTH
from .update_rules_triton import TYPES, bias_corrected, row_at, row_key, update

LANES = 1024
"""Entries of one program; a divisor of 2^32."""


@triton.jit
def _entries_kernel(
    where: tl.tensor, rates: tl.tensor, params: tl.tensor,
    TYPE: tl.constexpr, GRAD_TYPE: tl.constexpr, MOMENTS: tl.constexpr, RANDOM: tl.constexpr,
    PARAMS: tl.constexpr, LANES: tl.constexpr, COLUMNS: tl.constexpr,
    WEIGHT: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, COUNT: tl.constexpr, GRAD: tl.constexpr,
    WIDTH: tl.constexpr, START: tl.constexpr, SEED: tl.constexpr, WORDS: tl.constexpr,
) -> None:  # fmt: skip
    """START: the parameter's first program. PARAMS: the power of two that the parameters fit into."""
    program, lane = tl.program_id(0).to(tl.int64), tl.arange(0, PARAMS)
    starts = tl.load(where + lane * COLUMNS + START, mask=lane < params, other=0x7FFFFFFFFFFFFFFF)
    p = tl.sum((starts <= program).to(tl.int32), 0).to(tl.int64) - 1
    line = where + p * COLUMNS
    begin = (program - tl.load(line + START)) * LANES
    word, bit = tl.arange(0, LANES // 32), tl.arange(0, 32)
    at = begin + word[:, None] * 32 + bit[None, :]
    width = tl.load(line + WIDTH)
    words = tl.load(line + WORDS).to(tl.pointer_type(tl.int32)) + begin // 32 + word
    held = tl.load(words, mask=begin + word * 32 < width, other=0)
    on = (at < width) & (((held[:, None] >> bit[None, :]) & 1) != 0)

    w = row_at(line + WEIGHT, 0, TYPE, False)
    first, second = row_at(line + FIRST, 0, tl.float32, False), row_at(line + SECOND, 0, tl.float32, False)
    grad = row_at(line + GRAD, 0, GRAD_TYPE, False)
    count, key = tl.full((), 0.0, tl.float32), tl.full((), 0, tl.uint32)
    if MOMENTS == 2 or RANDOM:
        count = tl.load(tl.load(line + COUNT).to(tl.pointer_type(tl.float32)))
    if RANDOM:
        key = row_key(tl.load(line + SEED), begin >> 32, count)
    slope = tl.load(grad + at, mask=on, other=0.0).to(tl.float32)
    size, scale = bias_corrected(rates + p * 5, count, MOMENTS)
    update(w, first, second, slope, at, on, rates + p * 5, size, scale, key, at, MOMENTS, RANDOM)


def programs(entries: int) -> int:
    """How many programs a parameter of so many entries takes."""
    return triton.cdiv(entries, LANES)


def update_entries(
    where: Tensor, rates: Tensor, types: tuple[torch.dtype, torch.dtype], rule: tuple[int, bool], total: int
) -> None:
    """Update what packed masks say. types: of weights and gradients. rule: how many moments, whether rounded at random.
    total: programs of all parameters."""
    if not total:
        return
    with torch.cuda.device_of(where):
        _entries_kernel[(total,)](
            where, rates, len(where), TYPES[types[0]], TYPES[types[1]], *rule,
            triton.next_power_of_2(len(where)), LANES, COLUMNS,
            WEIGHT, FIRST, SECOND, COUNT, GRAD, WIDTH, START, SEED, WORDS, num_warps=4,
        )  # fmt: skip


@triton.jit
def _blocks_kernel(
    where: tl.tensor, rates: tl.tensor, tensor: tl.tensor, block: tl.tensor,
    TYPE: tl.constexpr, GRAD_TYPE: tl.constexpr, MOMENTS: tl.constexpr, COUNTED: tl.constexpr, RANDOM: tl.constexpr,
    EVEN: tl.constexpr, SIDE: tl.constexpr, COLUMNS: tl.constexpr,
    WEIGHT: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, COUNT: tl.constexpr, GRAD: tl.constexpr,
    WIDTH: tl.constexpr, START: tl.constexpr, SEED: tl.constexpr, ACROSS: tl.constexpr, ROWS: tl.constexpr,
) -> None:  # fmt: skip
    entry = tl.program_id(0).to(tl.int64)
    p, number = tl.load(tensor + entry), tl.load(block + entry)
    line = where + p * COLUMNS
    width, start, across = tl.load(line + WIDTH), tl.load(line + START), tl.load(line + ACROSS)
    if EVEN:
        width = tl.multiple_of(width, 16)
    top, left = (number // across) * SIDE, (number % across) * SIDE
    corner, apart = top * width + left, tl.where(start < 0, width, SIDE)
    w, first = row_at(line + WEIGHT, corner, TYPE, EVEN), row_at(line + FIRST, corner, tl.float32, EVEN)
    second = row_at(line + SECOND, corner, tl.float32, EVEN)
    grad = row_at(line + GRAD, tl.where(start < 0, corner, (entry - start) * (SIDE * SIDE)), GRAD_TYPE, EVEN)
    inner = tl.arange(0, SIDE)
    row, column = top + inner[:, None], left + inner[None, :]
    inside = (row < tl.load(line + ROWS)) & (column < width)

    count, key = tl.full((), 0.0, tl.float32), tl.full((SIDE, 1), 0, tl.uint32)
    counts = tl.load(line + COUNT).to(tl.pointer_type(tl.float32)) + number
    if COUNTED:
        count = tl.load(counts) + 1.0
    if RANDOM:
        key = row_key(tl.load(line + SEED), row, count)
    at, in_grad = inner[:, None] * width + inner[None, :], inner[:, None] * apart + inner[None, :]
    slope = tl.load(grad + in_grad, mask=inside, other=0.0).to(tl.float32)
    size, scale = bias_corrected(rates + p * 5, count, MOMENTS)
    update(
        w, first, second, slope, at, inside, rates + p * 5, size, scale, key, column,
        MOMENTS, RANDOM,
    )  # fmt: skip
    if COUNTED:
        tl.debug_barrier()
        tl.store(counts, count)


def update_blocks(
    where: Tensor,
    rates: Tensor,
    tensor: Tensor,
    block: Tensor,
    types: tuple[torch.dtype, torch.dtype],
    rule: tuple[int, bool, bool],
    side: int,
    even: bool,
) -> None:
    """Update blocks. types: of weights and gradients. rule: how many moments, whether updates are counted, and rounded
    at random. even: rows of weights begin at multiples of 16 bytes."""
    if not len(block):
        return
    with torch.cuda.device_of(where):
        _blocks_kernel[(len(block),)](
            where, rates, tensor, block, TYPES[types[0]], TYPES[types[1]], *rule, even, side,
            COLUMNS, WEIGHT, FIRST, SECOND, COUNT, GRAD, WIDTH, START, SEED, ACROSS, ROWS,
            num_warps=max(1, side * side // 512),
        )  # fmt: skip


def probe(device: torch.device) -> None:
    """Raises where the kernels and the contract differ on a few entries and blocks."""
    from . import masked_optimizer as op

    generator = torch.Generator()
    for moments in range(3):
        found = []
        for path in ("triton", "torch"):
            generator.manual_seed(0)
            weight, *slots, grad = (torch.rand(33, 40, generator=generator).to(device) for _ in range(moments + 2))
            mask = (torch.rand(33, 40, generator=generator) < 0.3).to(device)
            rates, block = op.Rates(0.1, 0.9, 0.99, 1e-6, 0.1), torch.tensor([1, 5]).to(device)
            once, counts = torch.zeros((), device=device), torch.zeros(3, 3, device=device)
            entries = op.EntryUpdate(weight, tuple(slots), op.pack_mask(mask), grad, rates, once)
            op.update_entries([entries], path)
            op.update_blocks([op.BlockUpdate(weight, tuple(slots), block, 16, grad, rates, counts)], path)
            found.append([weight, *slots, once, counts])
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
