"""Triton kernels of ``block_sparse_linear``. Sums are taken in float32, in the order of the blocks, without atomics.

Importing this module needs Triton; under ``TRITON_INTERPRET=1`` it runs on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 128
"""Examples of a program at most."""


@triton.jit
def _lines_kernel(
    x: tl.tensor, blocks: tl.tensor, origin: tl.tensor, order: tl.tensor, starts: tl.tensor,
    y: tl.tensor, batch: tl.tensor, n_in: tl.tensor, n_out: tl.tensor,
    x_row: tl.tensor, x_col: tl.tensor, w_in: tl.tensor, w_out: tl.tensor,
    ORDERED: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, TILE: tl.constexpr, AS: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    line, tile = tl.program_id(0), tl.program_id(1)
    row = (tile * TILE + tl.arange(0, TILE)).to(tl.int64)
    inside, lane_in, lane_out = row < batch, tl.arange(0, IN), tl.arange(0, OUT)
    total = tl.zeros((TILE, OUT), tl.float32)
    first = tl.load(starts + line)
    for j in range(first, tl.load(starts + line + 1)):
        block = tl.load(order + j) if ORDERED else 0 * first + j  # 64 bits wide
        col = tl.load(origin + block) * IN + lane_in
        at = row[:, None] * x_row + col[None, :] * x_col
        strip = tl.load(x + at, mask=inside[:, None] & (col < n_in)[None, :], other=0.0)
        weight = tl.load(blocks + block * (IN * OUT) + lane_in[:, None] * w_in + lane_out[None, :] * w_out)
        total = tl.dot(strip.to(AS), weight.to(AS), total, input_precision=PRECISION)
    out = line * OUT + lane_out
    to = row[:, None] * n_out + out[None, :]
    tl.store(y + to, total.to(y.dtype.element_ty), mask=inside[:, None] & (out < n_out)[None, :])


def lines(
    x: Tensor, blocks: Tensor, origin: Tensor, order: Tensor | None, starts: Tensor, n: int, turned: bool
) -> Tensor:
    """[B, n]: forward with the columns as origin and the lines of rows; ``turned`` the gradient of the input."""
    high, wide = blocks.shape[1:]
    width, out = (high, wide) if turned else (wide, high)
    y = x.new_empty(len(x), n)
    if y.numel():
        tile = _tile(len(x))
        with torch.cuda.device_of(x):
            _lines_kernel[(len(starts) - 1, triton.cdiv(len(x), tile))](
                x, blocks.contiguous(), origin, order, starts, y, len(x), x.shape[1], n, *x.stride(),
                wide if turned else 1, 1 if turned else wide,
                ORDERED=order is not None, IN=width, OUT=out, TILE=tile, AS=_product_type(x), PRECISION=_precision(),
            )  # fmt: skip
    return y


@triton.jit
def _gradients_kernel(
    x: tl.tensor, grad: tl.tensor, rows: tl.tensor, cols: tl.tensor, dw: tl.tensor,
    batch: tl.tensor, n_in: tl.tensor, n_out: tl.tensor,
    x_row: tl.tensor, x_col: tl.tensor, g_row: tl.tensor, g_col: tl.tensor,
    HIGH: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr, AS: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    block = tl.program_id(0).to(tl.int64)
    lane_h, lane_w, lane_b = tl.arange(0, HIGH), tl.arange(0, WIDE), tl.arange(0, TILE)
    out, col = tl.load(rows + block) * HIGH + lane_h, tl.load(cols + block) * WIDE + lane_w
    total = tl.zeros((HIGH, WIDE), tl.float32)
    for start in range(0, batch, TILE):
        row = (start + lane_b).to(tl.int64)
        inside = row < batch
        at_g = out[:, None] * g_col + row[None, :] * g_row
        at_x = row[:, None] * x_row + col[None, :] * x_col
        slope = tl.load(grad + at_g, mask=(out < n_out)[:, None] & inside[None, :], other=0.0)
        strip = tl.load(x + at_x, mask=inside[:, None] & (col < n_in)[None, :], other=0.0)
        total = tl.dot(slope.to(AS), strip.to(AS), total, input_precision=PRECISION)
    to = block * (HIGH * WIDE) + lane_h[:, None] * WIDE + lane_w[None, :]
    tl.store(dw + to, total.to(dw.dtype.element_ty))


def gradients(x: Tensor, grad: Tensor, rows: Tensor, cols: Tensor, high: int, wide: int) -> Tensor:
    """dW [n, high, wide]."""
    dw = x.new_empty(len(rows), high, wide)
    if len(rows):
        with torch.cuda.device_of(x):
            _gradients_kernel[(len(rows),)](
                x, grad, rows, cols, dw, len(x), x.shape[1], grad.shape[1], *x.stride(), *grad.stride(),
                HIGH=high, WIDE=wide, TILE=min(_tile(len(x)), 64), AS=_product_type(x), PRECISION=_precision(),
            )  # fmt: skip
    return dw


def _tile(batch: int) -> int:
    """Examples of one program: a power of two, 16 at least, as products on tensor cores need."""
    return max(16, min(TILE, triton.next_power_of_2(batch)))


def _product_type(x: Tensor) -> Any:
    """The input's own; the interpreter, which would multiply the bits of bfloat16, takes float32."""
    return tl.bfloat16 if x.is_cuda and x.dtype == torch.bfloat16 else tl.float32


def _precision() -> str:
    """Of a product of float32, as PyTorch's own are set."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def probe(device: torch.device) -> None:
    """Raises where kernels and reference differ on a tiny layer."""
    from .block_sparse_linear import Layout, block_sparse_linear

    rows, cols = torch.tensor([[0, 0, 1], [0, 1, 1]], device=device)
    layout = Layout.of(rows, cols, (20, 30), (16, 16))
    x, blocks = torch.randn(5, 30, device=device), torch.randn(3, 16, 16, device=device)
    found = []
    for path in ("dense", "triton"):
        given = [x.clone().requires_grad_(), blocks.clone().requires_grad_()]
        y = block_sparse_linear(given[0], given[1], layout, None, path)
        found.append((y, *torch.autograd.grad(y.square().sum(), given)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)
