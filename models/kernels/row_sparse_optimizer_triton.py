"""The Triton kernel of ``row_sparse_optimizer``: one launch for the rows of all parameters, one program a row.

A row is one program's alone, so that its count is read and written by nobody else; the count is written once all
threads of the program have read it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .parameter_table import COLUMNS, COUNT, FIRST, GRAD, SECOND, SEED, START, WEIGHT, WIDTH
from .update_rules_triton import TYPES, bias_corrected, row_at, row_key, update

LANES = 2048
"""Entries of a row that are under way together."""


@triton.jit
def _rows_kernel(
    where: tl.tensor, rates: tl.tensor, tensor: tl.tensor, row: tl.tensor,
    TYPE: tl.constexpr, GRAD_TYPE: tl.constexpr, MOMENTS: tl.constexpr, COUNTED: tl.constexpr, RANDOM: tl.constexpr,
    EVEN: tl.constexpr, LANES: tl.constexpr, ROUNDS: tl.constexpr, COLUMNS: tl.constexpr,
    WEIGHT: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, COUNT: tl.constexpr, GRAD: tl.constexpr,
    WIDTH: tl.constexpr, START: tl.constexpr, SEED: tl.constexpr,
) -> None:  # fmt: skip
    entry = tl.program_id(0).to(tl.int64)
    p, i = tl.load(tensor + entry), tl.load(row + entry)
    line = where + p * COLUMNS
    width, start = tl.load(line + WIDTH), tl.load(line + START)
    if EVEN:
        width = tl.multiple_of(width, 16)
    w = row_at(line + WEIGHT, i * width, TYPE, EVEN)
    g = row_at(line + GRAD, tl.where(start < 0, i, entry - start) * width, GRAD_TYPE, EVEN)
    first = row_at(line + FIRST, i * width, tl.float32, EVEN)
    second = row_at(line + SECOND, i * width, tl.float32, EVEN)

    count = tl.full((), 0.0, tl.float32)
    counts = tl.load(line + COUNT).to(tl.pointer_type(tl.float32)) + i
    if COUNTED:
        count = tl.load(counts) + 1.0
    key = tl.full((), 0, tl.uint32)
    if RANDOM:
        key = row_key(tl.load(line + SEED), i, count)
    size, scale = bias_corrected(rates + p * 5, count, MOMENTS)
    for turn in range(ROUNDS):
        at = turn * LANES + tl.arange(0, LANES)
        inside = at < width
        slope = tl.load(g + at, mask=inside, other=0.0).to(tl.float32)
        update(
            w, first, second, slope, at, inside, rates + p * 5, size, scale, key, at,
            MOMENTS, RANDOM,
        )  # fmt: skip
    if COUNTED:
        tl.debug_barrier()
        tl.store(counts, count)


def update_rows(
    where: Tensor,
    rates: Tensor,
    tensor: Tensor,
    row: Tensor,
    types: tuple[torch.dtype, torch.dtype],
    rule: tuple[int, bool, bool],
    widest: int,
    even: bool,
) -> None:
    """Update all entries of a ``RowTable``. types: of weights and gradients. rule: how many moments, whether updates
    are counted, and rounded at random. even: rows begin at multiples of 16 bytes."""
    if not len(row):
        return
    moments, counted, random = rule
    lanes = min(LANES, max(64, triton.next_power_of_2(widest)))
    with torch.cuda.device_of(where):
        _rows_kernel[(len(row),)](
            where, rates, tensor, row, TYPES[types[0]], TYPES[types[1]], moments, counted, random, even,
            lanes, triton.cdiv(widest, lanes), COLUMNS, WEIGHT, FIRST, SECOND, COUNT, GRAD, WIDTH, START, SEED,
            num_warps=max(1, lanes // 256),
        )  # fmt: skip


def probe(device: torch.device) -> None:
    """Raises where the kernel and the contract differ on a few rows."""
    from . import row_sparse_optimizer as op

    generator = torch.Generator().manual_seed(0)
    for moments in range(3):
        found = []
        for path in ("triton", "torch"):
            generator.manual_seed(0)
            updates = []
            for shape, index in (((3, 40), [0, 2]), ((2, 16), [1])):
                weight, *slots, grad = (
                    torch.rand(shape, generator=generator).to(device) for _ in range(moments + 2)
                )  # fmt: skip
                count = torch.zeros(len(weight), device=device)
                rates = op.Rates(0.1, 0.9, 0.99, 1e-6, 0.1)
                updates.append(
                    op.RowUpdate(weight, tuple(slots), torch.tensor(index).to(device), grad, rates, count)
                )  # fmt: skip
            op.update_rows(updates, path)
            found.append([(u.weight, *u.moments, u.count) for u in updates])
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
