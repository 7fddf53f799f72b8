"""Triton kernels of ``row_sparse_linear``: output with score, score of an output, gradient of chosen rows.

The contract is in ``row_sparse_linear.py``. Products add up in float32; float32 inputs are multiplied exactly ("ieee");
WIDEN is for the interpreter, which would multiply the bits of bfloat16. Sums over tokens go in two stages, first within
a tile, then over tiles, in an order that the shapes alone decide: the same inputs give the same bits.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

FUSED_TOKENS = 512
"""Up to so many tokens the score is summed where the output is formed. The product is then bound by reading the weight,
and what the fused kernel saves, a launch and a read of the output, is worth more than the library's better tiles.
Reasoned from bytes, not measured."""
PROGRAMS = 264
"""Programs that keep a GPU of 132 multiprocessors busy: a gradient of few tiles is cut along its tokens to reach it."""
STEP = 64
"""Numbers along the summed axis that a product takes at once."""


@triton.jit
def _linear_kernel(
    x: tl.tensor, weight: tl.tensor, bias: tl.tensor, y: tl.tensor, partial: tl.tensor,
    tokens: tl.tensor, d_in: tl.tensor, d_out: tl.tensor,
    x_row: tl.tensor, x_column: tl.tensor, weight_row: tl.tensor, weight_column: tl.tensor,
    BIASED: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, WIDEN: tl.constexpr,
) -> None:  # fmt: skip
    """One tile of y [tokens, d_out], and the sum of its |y| over its tokens."""
    tile = tl.program_id(0)
    token = tile * TOKENS + tl.arange(0, TOKENS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inner = tl.arange(0, STEP)
    a = x + token[:, None].to(tl.int64) * x_row
    b = weight + row[None, :].to(tl.int64) * weight_row
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    for at in range(0, d_in, STEP):
        entry = (at + inner).to(tl.int64)
        here = (token[:, None] < tokens) & (entry < d_in)[None, :]
        there = (row[None, :] < d_out) & (entry < d_in)[:, None]
        one = tl.load(a + entry[None, :] * x_column, mask=here, other=0.0)
        other = tl.load(b + entry[:, None] * weight_column, mask=there, other=0.0)
        if WIDEN:
            one, other = one.to(tl.float32), other.to(tl.float32)
        total = tl.dot(one, other, total, input_precision="ieee")
    if BIASED:
        total += tl.load(bias + row, mask=row < d_out, other=0.0).to(tl.float32)[None, :]
    inside = (token[:, None] < tokens) & (row[None, :] < d_out)
    out = total.to(y.dtype.element_ty)
    tl.store(y + token[:, None].to(tl.int64) * d_out + row[None, :], out, mask=inside)
    size = tl.sum(tl.where(inside, tl.abs(out.to(tl.float32)), 0.0), 0)
    tl.store(partial + tile.to(tl.int64) * d_out + row, size, mask=row < d_out)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """y [n, d_out] and its score."""
    (tokens, d_in), d_out = x.shape, len(weight)
    if tokens > FUSED_TOKENS:
        y = torch.nn.functional.linear(x, weight, bias)
        return y, score(y)
    y = torch.empty((tokens, d_out), dtype=x.dtype, device=x.device)
    tile = min(64, max(16, triton.next_power_of_2(tokens)))
    partial = torch.empty((triton.cdiv(tokens, tile), d_out), dtype=torch.float32, device=x.device)
    if y.numel():
        with torch.cuda.device_of(x):
            _linear_kernel[(len(partial), triton.cdiv(d_out, 64))](
                x, weight, bias, y, partial, tokens, d_in, d_out, *x.stride(), *weight.stride(),
                BIASED=bias is not None, TOKENS=tile, ROWS=64, STEP=STEP, WIDEN=x.device.type == "cpu",
                num_warps=4, num_stages=4,
            )  # fmt: skip
    return y, partial.sum(0)


@triton.jit
def _columns_kernel(
    y: tl.tensor, partial: tl.tensor, tokens: tl.tensor, d_out: tl.tensor, stride: tl.tensor,
    TOKENS: tl.constexpr, ROUNDS: tl.constexpr, ROWS: tl.constexpr,
) -> None:  # fmt: skip
    """The sum of |y| over ROUNDS TOKENS tokens of y [tokens, d_out]."""
    tile = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    for at in range(ROUNDS):
        token = ((tile * ROUNDS + at) * TOKENS + tl.arange(0, TOKENS))[:, None].to(tl.int64)
        here = tl.load(y + token * stride + row[None, :], mask=(token < tokens) & (row[None, :] < d_out), other=0.0)
        total += tl.abs(here.to(tl.float32))
    tl.store(partial + tile.to(tl.int64) * d_out + row, tl.sum(total, 0), mask=row < d_out)


@triton.jit
def _lines_kernel(
    y: tl.tensor, partial: tl.tensor, lines: tl.tensor, positions: tl.tensor,
    ROUNDS: tl.constexpr, LINES: tl.constexpr, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    """The sum of |y| along each line of y [lines, positions]."""
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    total = tl.zeros((LINES, WIDTH), tl.float32)
    for at in range(ROUNDS):
        position = (at * WIDTH + tl.arange(0, WIDTH))[None, :]
        inside = (line[:, None] < lines) & (position < positions)
        here = tl.load(y + line[:, None].to(tl.int64) * positions + position, mask=inside, other=0.0)
        total += tl.abs(here.to(tl.float32))
    tl.store(partial + line, tl.sum(total, 1), mask=line < lines)


def score(y: Tensor) -> Tensor:
    """The sum of |y| over tokens, float32[d_out], of y [n, d_out] or [n, d_out, *positions]."""
    d_out = y.shape[1]
    if y.dim() == 2 or not y.is_contiguous():
        flat = y.movedim(1, -1).reshape(-1, d_out).contiguous()
        partial = torch.empty((triton.cdiv(len(flat), 128), d_out), dtype=torch.float32, device=y.device)
        if partial.numel():
            with torch.cuda.device_of(y):
                _columns_kernel[(len(partial), triton.cdiv(d_out, 64))](
                    flat, partial, len(flat), d_out, d_out, TOKENS=16, ROUNDS=8, ROWS=64
                )
        return partial.sum(0)
    flat = y.view(len(y) * d_out, prod(y.shape[2:]))
    partial = torch.zeros((len(y), d_out), dtype=torch.float32, device=y.device)
    if flat.numel():
        positions = flat.shape[1]
        width = min(1024, triton.next_power_of_2(positions))
        high = max(1, 1024 // width)
        with torch.cuda.device_of(y):
            _lines_kernel[(triton.cdiv(len(flat), high),)](
                flat, partial, len(flat), positions, ROUNDS=triton.cdiv(positions, width), LINES=high, WIDTH=width
            )
    return partial.sum(0)


@triton.jit
def _gradient_kernel(
    grad: tl.tensor, x: tl.tensor, index: tl.tensor, out: tl.tensor, tokens: tl.tensor, k: tl.tensor, d_in: tl.tensor,
    share: tl.tensor, grad_row: tl.tensor, grad_column: tl.tensor, x_row: tl.tensor, x_column: tl.tensor,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, WIDEN: tl.constexpr,
) -> None:  # fmt: skip
    """One tile of grad[:, index]^T x over the ``share`` tokens of one part."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    part = tl.program_id(2)
    channel = tl.load(index + row, mask=row < k, other=0)
    a = grad + channel[None, :] * grad_column
    b = x + column[None, :].to(tl.int64) * x_column
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for at in range(part * share, tl.minimum((part + 1) * share, tokens), STEP):
        token = (at + tl.arange(0, STEP))[:, None].to(tl.int64)
        one = tl.load(a + token * grad_row, mask=(token < tokens) & (row[None, :] < k), other=0.0)
        other = tl.load(b + token * x_row, mask=(token < tokens) & (column[None, :] < d_in), other=0.0)
        if WIDEN:
            one, other = one.to(tl.float32), other.to(tl.float32)
        total = tl.dot(tl.trans(one), other, total, input_precision="ieee")
    place = (part.to(tl.int64) * k + row[:, None]) * d_in + column[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=(row[:, None] < k) & (column[None, :] < d_in))


def row_gradient(grad: Tensor, x: Tensor, index: Tensor, out: Tensor | None) -> Tensor:
    """[k, d_in] in the type of ``grad``, in ``out`` where it is given."""
    (tokens, d_in), k = x.shape, len(index)
    rows = torch.empty((k, d_in), dtype=grad.dtype, device=grad.device) if out is None else out
    if not (tokens and k and d_in):
        return rows.zero_()
    tiles = triton.cdiv(k, 64), triton.cdiv(d_in, 128)
    steps = triton.cdiv(tokens, STEP)
    share = STEP * triton.cdiv(steps, max(1, min(PROGRAMS // (tiles[0] * tiles[1]), steps // 4)))
    parts = triton.cdiv(tokens, share)
    to = rows if parts == 1 else torch.empty((parts, k, d_in), dtype=torch.float32, device=grad.device)
    with torch.cuda.device_of(grad):
        _gradient_kernel[(*tiles, parts)](
            grad, x, index, to, tokens, k, d_in, share, *grad.stride(), *x.stride(),
            ROWS=64, COLUMNS=128, STEP=STEP, WIDEN=x.device.type == "cpu", num_warps=4, num_stages=3,
        )  # fmt: skip
    return rows if parts == 1 else rows.copy_(to.sum(0))


def probe(device: torch.device) -> None:
    """Raises where the kernels and the contract differ on a tiny layer."""
    from . import row_sparse_linear as op

    draws = torch.Generator().manual_seed(0)
    shapes = ((20, 5), (9, 5), (9,), (20, 9), (2, 9, 3))
    x, weight, bias, grad, y = (torch.randn(shape, generator=draws).to(device, torch.bfloat16) for shape in shapes)
    index = torch.tensor([1, 4, 8], device=device)
    close: dict[str, Any] = {"rtol": 0.02, "atol": 0.02}
    for given in (bias, None):
        torch.testing.assert_close(*(op.scored_linear(x, weight, given, p) for p in ("triton", "compact")), **close)
    torch.testing.assert_close(*(op.row_gradient(grad, x, index, p) for p in ("triton", "compact")), **close)
    for outputs in (y, y[:, :, 0]):
        torch.testing.assert_close(score(outputs), op.row_score(outputs), **close)
