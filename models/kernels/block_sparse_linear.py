"""A linear layer of which only some blocks exist: forward, gradient of the input, gradient of the blocks.

The weight [out, in] is cut into blocks of ``high`` x ``wide``; ``blocks`` [n, high, wide] are those there are, block i
at block row ``rows[i]`` and block column ``cols[i]`` (int64, by rising row, then column). Entries of a block beyond the
edge of the weight take no part and get no gradient.

``path``: "gathered" multiplies the blocks in one batched product and adds up the results; "dense" is the contract: the
weight put together, then the plain layer. Gathering pays below a quarter of the blocks and for few examples: with many
its products leave the cache.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Path = Literal["dense", "gathered"]
Shape = tuple[int, int]


def block_sparse_linear(
    x: Tensor,
    blocks: Tensor,
    rows: Tensor,
    cols: Tensor,
    bias: Tensor | None,
    shape: Shape,
    path: Path = "gathered",
) -> Tensor:
    """x [B, in] times the transpose of the weight of ``shape`` (out, in) that the blocks make, plus bias: [B, out]."""
    if path == "gathered":
        out: Tensor = _BlockLinear.apply(x, blocks, rows, cols, bias, shape)
        return out
    return F.linear(x, assemble(blocks, rows, cols, shape), bias)


def assemble(blocks: Tensor, rows: Tensor, cols: Tensor, shape: Shape) -> Tensor:
    """The weight [out, in], zero where there is no block."""
    high, wide = blocks.shape[1:]
    down, across = -(-shape[0] // high), -(-shape[1] // wide)
    grid = blocks.new_zeros(down * across, high, wide).index_copy(0, rows * across + cols, blocks)
    return grid.reshape(down, across, high, wide).transpose(1, 2).reshape(down * high, -1)[: shape[0], : shape[1]]


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


def _added(parts: Tensor, to: Tensor, n: int) -> Tensor:
    """[B, n]: parts [blocks, B, width] added up by strip."""
    width = parts.shape[2]
    strips = parts.new_zeros(-(-n // width), *parts.shape[1:]).index_add_(0, to, parts)
    return strips.transpose(0, 1).reshape(parts.shape[1], -1)[:, :n]


class _BlockLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, blocks: Tensor, rows: Tensor, cols: Tensor, bias: Tensor | None, shape: Shape
    ) -> Tensor:
        chosen = _strips(x, blocks.shape[2]).index_select(0, cols)
        y = _added(torch.bmm(chosen, blocks.transpose(1, 2)), rows, shape[0])
        ctx.save_for_backward(chosen, blocks, rows, cols)
        ctx.shape = shape
        return y if bias is None else y + bias

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        chosen, blocks, rows, cols = ctx.saved_tensors
        g, dx, dw = _strips(grad, blocks.shape[1]).index_select(0, rows), None, None
        if ctx.needs_input_grad[0]:
            dx = _added(torch.bmm(g, blocks), cols, ctx.shape[1])
        if ctx.needs_input_grad[1]:
            dw = torch.bmm(g.transpose(1, 2), chosen)
        return dx, dw, None, None, grad.sum(0) if ctx.needs_input_grad[4] else None, None


class BlockLinear(nn.Module):
    """A linear layer made of blocks. weight: [n, high, wide]; where they lie is no parameter (``place``)."""

    rows: Tensor
    cols: Tensor

    def __init__(self, shape: Shape, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.shape = shape
        self.weight = nn.Parameter(torch.zeros(0, 1, 1))
        self.bias = bias
        self.register_buffer("rows", torch.zeros(0, dtype=torch.int64), persistent=False)
        self.register_buffer("cols", torch.zeros(0, dtype=torch.int64), persistent=False)

    def place(self, weight: Tensor, rows: Tensor, cols: Tensor) -> None:
        """Be these blocks from now on."""
        self.weight = nn.Parameter(weight)
        self.rows, self.cols = rows, cols

    def forward(self, x: Tensor) -> Tensor:
        return block_sparse_linear(x, self.weight, self.rows, self.cols, self.bias, self.shape)

    def extra_repr(self) -> str:
        """Sizes, as other layers show them."""
        return f"{self.shape[1]}, {self.shape[0]}, blocks={len(self.weight)}"
