"""A linear layer of which only some blocks exist: forward, gradient of the input, gradient of the blocks.

The weight [out, in] is cut into blocks of ``high`` x ``wide``; ``blocks`` [n, high, wide] are those there are, and a
``Layout`` says where. Entries of a block beyond the edge of the weight take no part and get no gradient.

    y = x W^T + bias,   dx = dy W,   dW_i = dy[:, rows of block i]^T x[:, columns of block i]

``path``: "dense" is the contract: the weight put together, then the plain layer. "gathered" multiplies all blocks in
one batched product and adds up the results. "looped" takes one product a block row. "triton" (CUDA, blocks with sides
of 16, 32 or 64): a program a block row or column and tile of the batch, which adds up its blocks in a fixed order, and
one a block for dW; products of float32 are exact ("ieee") unless PyTorch's own may use TF32. Left out: by device, on a
CPU by size (``fastest_on_cpu``).

Break-even density beside the dense layer, one thread, 1024x1024, forward and both gradients (measured; MKL on AVX-512):

    block          16     32     64
    8 examples     .25    .6     > .6
    32 examples    .2     .45    .55
    256 examples   .2     .35    .55
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .selection import choose, ops_on

Path = Literal["dense", "gathered", "looped", "triton"]
Shape = tuple[int, int]

SIDES = (16, 32, 64)
"""Sides of a block that the Triton kernels know."""
GATHERED_BYTES = 1 << 17
"""Up to so many bytes of gathered input a column of a block the batched product pays; then it leaves the cache."""
MANY = 128
"""From so many examples on, putting the weight together is cheap beside the products."""
DENSE_PAYS = {16: 0.2, 32: 0.35, 64: 0.55}
"""Share of blocks above which it is then faster, by the longer side of a block; other sides as the next smaller."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where the blocks of a weight of ``shape`` lie, by rows and by columns; built once for a mask.

    rows, cols: int64[n], by rising row, then column. row_starts [down + 1]: blocks row_starts[r] to row_starts[r + 1]
    are in block row r. by_col [n]: the blocks by rising column, then row; col_starts [across + 1] as row_starts.
    """

    shape: Shape
    block: Shape
    rows: Tensor
    cols: Tensor
    row_starts: Tensor
    by_col: Tensor
    col_starts: Tensor

    @classmethod
    def of(cls, rows: Tensor, cols: Tensor, shape: Shape, block: Shape) -> Layout:
        """From sorted rows and cols."""
        by_col = torch.argsort(cols, stable=True)
        starts = [
            torch.searchsorted(places, torch.arange(-(-n // side) + 1, device=places.device))
            for places, n, side in ((rows, shape[0], block[0]), (cols[by_col], shape[1], block[1]))
        ]
        return cls(shape, block, rows, cols, starts[0], by_col, starts[1])

    @property
    def share(self) -> float:
        """How many of all blocks there are."""
        return len(self.rows) / ((len(self.row_starts) - 1) * (len(self.col_starts) - 1))


PLACES = ("rows", "cols", "row_starts", "by_col", "col_starts")
"""The tensors of a layout."""


def block_sparse_linear(
    x: Tensor, blocks: Tensor, layout: Layout, bias: Tensor | None = None, path: Path | None = None
) -> Tensor:
    """x [..., in] times the transpose of the weight of the layout's shape (out, in), plus bias: [..., out]."""
    flat = x.reshape(-1, x.shape[-1])
    chosen = path or _chosen(flat, layout)
    if chosen == "dense":
        y = F.linear(flat, assemble(blocks, layout), bias)
    else:
        places = (getattr(layout, name) for name in PLACES)
        y = _BlockLinear.apply(flat, blocks, bias, *places, layout.shape, chosen)
    return y.reshape(*x.shape[:-1], layout.shape[0])


def _chosen(x: Tensor, layout: Layout) -> Path:
    if not ops_on():
        return "dense"
    on_cpu = fastest_on_cpu(len(x), layout)
    if not set(layout.block) <= set(SIDES):
        return on_cpu
    return choose(None, "block_sparse_linear", x, on_cpu, "gathered")


def fastest_on_cpu(examples: int, layout: Layout) -> Path:
    """By the rules measured; a graph that is being compiled cannot look into the layout, as the loop does."""
    side = max(layout.block)
    known = [s for s in DENSE_PAYS if s <= side]
    if examples >= MANY and layout.share > DENSE_PAYS[max(known, default=16)]:
        return "dense"
    fits = len(layout.rows) * examples * 4 <= GATHERED_BYTES
    return "gathered" if fits or torch.compiler.is_compiling() else "looped"


def assemble(blocks: Tensor, layout: Layout) -> Tensor:
    """The weight [out, in], zero where there is no block."""
    high, wide = blocks.shape[1:]
    down, across = len(layout.row_starts) - 1, len(layout.col_starts) - 1
    grid = blocks.new_zeros(down * across, high, wide).index_copy(0, layout.rows * across + layout.cols, blocks)
    whole = grid.reshape(down, across, high, wide).transpose(1, 2).reshape(down * high, -1)
    return whole[: layout.shape[0], : layout.shape[1]]


def cut_out(weight: Tensor, rows: Tensor, cols: Tensor, block: Shape) -> Tensor:
    """The blocks [n, high, wide] of a weight [out, in], filled with zeros beyond its edge."""
    high, wide = block
    down, across = -(-weight.shape[0] // high), -(-weight.shape[1] // wide)
    padded = F.pad(weight, (0, across * wide - weight.shape[1], 0, down * high - weight.shape[0]))
    grid = padded.reshape(down, high, across, wide).transpose(1, 2).reshape(down * across, high, wide)
    return grid.index_select(0, rows * across + cols)


def _strips(x: Tensor, width: int) -> Tensor:
    """[strips, B, width] from [B, n], with zeros beyond n."""
    count = -(-x.shape[1] // width)
    if count * width != x.shape[1]:
        x = F.pad(x, (0, count * width - x.shape[1]))
    return x.reshape(len(x), count, width).transpose(0, 1)


def _joined(strips: Tensor, n: int) -> Tensor:
    """[B, n] from [strips, B, width]."""
    count, batch, width = strips.shape
    return strips.transpose(0, 1).reshape(batch, count * width)[:, :n]


# --- the batched product --------------------------------------------------------------------------------------------


def _gathered_sum(x: Tensor, blocks: Tensor, origin: Tensor, to: Tensor, n: int) -> Tensor:
    """[B, n]: strip origin[i] of x times block i [out, in], added to strip to[i]."""
    parts = torch.bmm(_strips(x, blocks.shape[2]).index_select(0, origin), blocks.transpose(1, 2))
    strips = parts.new_zeros(-(-n // parts.shape[2]), *parts.shape[1:]).index_add_(0, to, parts)
    return _joined(strips, n)


def _gathered_blocks(x: Tensor, grad: Tensor, rows: Tensor, cols: Tensor, block: Shape) -> Tensor:
    """dW [n, high, wide]."""
    g, chosen = _strips(grad, block[0]).index_select(0, rows), _strips(x, block[1]).index_select(0, cols)
    return torch.bmm(g.transpose(1, 2), chosen)


# --- one product a block row ----------------------------------------------------------------------------------------


def _row_slices(row_starts: Tensor) -> list[tuple[int, int, int]]:
    """(row, first block, end) of every row that has blocks."""
    ends = row_starts.tolist()
    return [(r, lo, hi) for r, (lo, hi) in enumerate(pairwise(ends)) if lo < hi]


def _looped_forward(x: Tensor, blocks: Tensor, cols: Tensor, row_starts: Tensor, n: int) -> Tensor:
    _, high, wide = blocks.shape
    strips, y = _strips(x, wide), x.new_zeros(len(x), (len(row_starts) - 1) * high)
    for r, lo, hi in _row_slices(row_starts):
        chosen = strips.index_select(0, cols[lo:hi]).transpose(0, 1).reshape(len(x), (hi - lo) * wide)
        weight = blocks[lo:hi].transpose(0, 1).reshape(high, -1)
        y[:, r * high : (r + 1) * high] = chosen @ weight.t()
    return y[:, :n]


def _looped_backward(
    grad: Tensor, x: Tensor, blocks: Tensor, cols: Tensor, row_starts: Tensor, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    _, high, wide = blocks.shape
    strips, slopes = _strips(x, wide), _strips(grad, high)
    dx = torch.zeros_like(strips, memory_format=torch.contiguous_format) if needs[0] else None
    dw = torch.empty_like(blocks) if needs[1] else None
    for r, lo, hi in _row_slices(row_starts):
        g = slopes[r]
        if dx is not None:
            back = g @ blocks[lo:hi].transpose(0, 1).reshape(high, -1)
            dx.index_add_(0, cols[lo:hi], back.view(len(x), hi - lo, wide).transpose(0, 1))
        if dw is not None:
            chosen = strips.index_select(0, cols[lo:hi]).transpose(0, 1).reshape(len(x), (hi - lo) * wide)
            dw[lo:hi] = (g.t() @ chosen).view(high, hi - lo, wide).transpose(0, 1)
    return None if dx is None else _joined(dx, x.shape[1]), dw


# --- on a GPU -------------------------------------------------------------------------------------------------------


def _lines(
    x: Tensor, blocks: Tensor, origin: Tensor, order: Tensor | None, starts: Tensor, n: int, turned: bool
) -> Tensor:
    """[B, n]: each line (block row; ``turned``: block column) the sum over its blocks of strip origin[block] of x."""
    from . import block_sparse_linear_triton as kernels

    return kernels.lines(x, blocks, origin, order, starts, n, turned)


def _gradients(x: Tensor, grad: Tensor, rows: Tensor, cols: Tensor, high: int, wide: int) -> Tensor:
    """dW [n, high, wide]."""
    from . import block_sparse_linear_triton as kernels

    return kernels.gradients(x, grad, rows, cols, high, wide)


_lines_op = torch.library.custom_op("driftway::block_lines", _lines, mutates_args=())
_gradients_op = torch.library.custom_op("driftway::block_gradients", _gradients, mutates_args=())
"""What a graph that is being compiled holds; run directly, the functions save their dispatch."""


@_lines_op.register_fake
def _(x: Tensor, _blocks: Tensor, _origin: Any, _order: Any, _starts: Any, n: int, _turned: bool) -> Tensor:
    return x.new_empty(len(x), n)


@_gradients_op.register_fake
def _(x: Tensor, _grad: Tensor, rows: Tensor, _cols: Tensor, high: int, wide: int) -> Tensor:
    return x.new_empty(len(rows), high, wide)


class _BlockLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, blocks: Tensor, bias: Tensor | None, rows: Tensor, cols: Tensor, row_starts: Tensor,
        by_col: Tensor, col_starts: Tensor, shape: Shape, path: Path,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, blocks, rows, cols, row_starts, by_col, col_starts)
        ctx.shape, ctx.path = shape, path
        if path == "triton":
            lines = _lines_op if torch.compiler.is_compiling() else _lines
            y = lines(x, blocks, cols, None, row_starts, shape[0], False)
        elif path == "looped":
            y = _looped_forward(x, blocks, cols, row_starts, shape[0])
        else:
            y = _gathered_sum(x, blocks, cols, rows, shape[0])
        return y if bias is None else y + bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, blocks, rows, cols, row_starts, by_col, col_starts = ctx.saved_tensors
        needs, block, dx, dw = ctx.needs_input_grad, (blocks.shape[1], blocks.shape[2]), None, None
        if ctx.path == "looped":
            dx, dw = _looped_backward(grad, x, blocks, cols, row_starts, needs[:2])
        elif ctx.path == "triton":
            tracing = torch.compiler.is_compiling()
            lines, gradients = (_lines_op, _gradients_op) if tracing else (_lines, _gradients)
            dx = lines(grad, blocks, rows, by_col, col_starts, ctx.shape[1], True) if needs[0] else None
            dw = gradients(x, grad, rows, cols, *block) if needs[1] else None
        else:
            dx = _gathered_sum(grad, blocks.transpose(1, 2), rows, cols, ctx.shape[1]) if needs[0] else None
            dw = _gathered_blocks(x, grad, rows, cols, block) if needs[1] else None
        return dx, dw, grad.sum(0) if needs[2] else None, *(None,) * 7


class BlockLinear(nn.Module):
    """A linear layer made of blocks. weight: [n, high, wide]; where they lie is no parameter (``place``)."""

    def __init__(self, shape: Shape, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.shape = shape
        self.bias = bias
        for name in PLACES:
            self.register_buffer(name, None, persistent=False)
        nowhere = torch.zeros(0, dtype=torch.int64)
        self.place(torch.zeros(0, 1, 1), nowhere, nowhere)

    def place(self, weight: Tensor, rows: Tensor, cols: Tensor) -> None:
        """Be these blocks from now on. rows, cols: int64[n], by rising row, then column."""
        self.weight = nn.Parameter(weight)
        layout = Layout.of(rows, cols, self.shape, (weight.shape[1], weight.shape[2]))
        for name in PLACES:
            setattr(self, name, getattr(layout, name))

    def forward(self, x: Tensor) -> Tensor:
        block = (self.weight.shape[1], self.weight.shape[2])
        layout = Layout(self.shape, block, *(getattr(self, name) for name in PLACES))
        return block_sparse_linear(x, self.weight, layout, self.bias)

    def extra_repr(self) -> str:
        """Sizes, as other layers show them."""
        return f"{self.shape[1]}, {self.shape[0]}, blocks={len(self.weight)}"
