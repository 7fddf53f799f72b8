"""A linear layer, and a convolution, whose weight gradient is computed for some output rows only.

The rows are known once the output is (``row_choice``), so the backward pass gathers the active columns of the output
gradient and multiplies only these: of the three products of a training step (output, input gradient, weight gradient)
the third shrinks to the share of active rows. The gradient of the weight is not in ``.grad``: it waits, compact, in the
layer's ``RowSlot``. Gradients of input and bias are those of the plain layer.

``path``: "compact" does that; "dense" is the contract, the plain layer, whose whole gradient the caller cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .row_choice import RowSlot

Path = Literal["dense", "compact"]


def row_sparse_linear(x: Tensor, weight: Tensor, bias: Tensor | None, slot: RowSlot, path: Path = "compact") -> Tensor:
    """x weight^T + bias for x [..., d_in], weight [d_out, d_in]; the outputs are added to the slot's score."""
    if path == "compact":
        out: Tensor = _RowLinear.apply(x, weight, bias, slot)
        return out
    y = F.linear(x, weight, bias)
    slot.see(y.detach().reshape(-1, len(weight)))
    return y


def row_sparse_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    slot: RowSlot,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    path: Path = "compact",
) -> Tensor:
    """A convolution without groups, zeros beyond the edge: x [n, c_in, *positions], weight [c_out, c_in, *kernel]."""
    geometry = (list(stride), list(padding), list(dilation), False, [0] * len(stride), 1)
    if path == "compact":
        out: Tensor = _RowConv.apply(x, weight, bias, slot, geometry)
        return out
    y: Tensor = torch.ops.aten.convolution(x, weight, bias, *geometry)
    slot.see(y.detach())
    return y


class _RowLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, slot: RowSlot) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y = rows @ weight.t() if bias is None else torch.addmm(bias, rows, weight.t())
        slot.see(y)
        ctx.save_for_backward(rows, weight)
        ctx.slot, ctx.shape = slot, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g = grad.reshape(-1, grad.shape[-1])
        if ctx.needs_input_grad[1]:
            ctx.slot.give(g.index_select(1, ctx.slot.rows()), x)
        dx = (g @ weight).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return dx, None, g.sum(0) if ctx.needs_input_grad[2] else None, None


class _RowConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, slot: RowSlot, geometry: Any) -> Tensor:
        y: Tensor = torch.ops.aten.convolution(x, weight, bias, *geometry)
        slot.see(y)
        ctx.save_for_backward(x, weight)
        ctx.slot, ctx.geometry = slot, geometry
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        backward = torch.ops.aten.convolution_backward
        if ctx.needs_input_grad[1]:
            rows = ctx.slot.rows()
            some, like = grad.index_select(1, rows), weight[: len(rows)]  # only the shape of the weight is looked at
            ctx.slot.give_rows(backward(some, x, like, None, *ctx.geometry, [False, True, False])[1])
        dx = None
        if ctx.needs_input_grad[0]:
            dx = backward(grad, x, weight, None, *ctx.geometry, [True, False, False])[0]
        positions = [axis for axis in range(grad.dim()) if axis != 1]
        return dx, None, grad.sum(positions) if ctx.needs_input_grad[2] else None, None, None
