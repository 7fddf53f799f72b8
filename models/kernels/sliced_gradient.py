"""A linear layer, and a convolution, whose weight gradient is computed for some rows only; the others' is 0.

Unlike ``row_sparse_linear`` the rows are fixed beforehand and the gradient comes back in the weight's own shape, so
that it adds up over several passes like any other. Outputs and the gradient of the input are those of the plain layer.

``path``: "sliced" does that; "dense" is the contract: the plain layer, its gradient multiplied by the rows' mask.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .inference_linear import PLAIN, linear

Path = Literal["dense", "sliced"]
Geometry = tuple[list[int], list[int], list[int], bool, list[int], int]


def sliced_linear(x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, path: Path = "sliced") -> Tensor:
    """x weight^T + bias for x [..., in], weight [out, in]; rows: int64[k], rising, those that get a gradient."""
    if path == "sliced":
        out: Tensor = _SlicedLinear.apply(x, weight, bias, rows)
        return out
    return F.linear(x, _only_rows(weight, rows), bias)


def sliced_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, geometry: Geometry, path: Path = "sliced"
) -> Tensor:
    """A convolution of x [n, in, ...] with weight [out, in, ...]. geometry: as ``conv_geometry`` gives it."""
    if path == "sliced":
        out: Tensor = _SlicedConv.apply(x, weight, bias, rows, geometry)
        return out
    plain: Tensor = torch.ops.aten.convolution(x, _only_rows(weight, rows), bias, *geometry)
    return plain


def conv_geometry(conv: nn.Conv2d) -> Geometry:
    """Stride, padding and the rest as the backward function wants them; ``ValueError`` for what it cannot do."""
    if conv.groups != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise ValueError("only convolutions without groups and with zeros of a given width beyond the edge")
    return list(conv.stride), list(conv.padding), list(conv.dilation), False, [0, 0], 1


def _only_rows(weight: Tensor, rows: Tensor) -> Tensor:
    """The weight, through which a gradient reaches these rows alone."""
    there = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    there[rows] = True
    return torch.where(there.reshape(-1, *[1] * (weight.dim() - 1)), weight, weight.detach())


def _whole(weight: Tensor, rows: Tensor, some: Tensor) -> Tensor:
    return torch.zeros_like(weight).index_copy_(0, rows, some)


class _SlicedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, rows)
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rows = ctx.saved_tensors
        g, dx, dw = grad.reshape(-1, grad.shape[-1]), None, None
        if ctx.needs_input_grad[0]:
            dx = (g @ weight).view(x.shape)
        if ctx.needs_input_grad[1]:
            dw = _whole(weight, rows, g.index_select(1, rows).t() @ x.reshape(-1, x.shape[-1]))
        return dx, dw, g.sum(0) if ctx.needs_input_grad[2] else None, None


class _SlicedConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, weight, rows)
        ctx.geometry = geometry
        out: Tensor = torch.ops.aten.convolution(x, weight, bias, *geometry)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rows = ctx.saved_tensors
        backward, dx, dw = torch.ops.aten.convolution_backward, None, None
        if ctx.needs_input_grad[0]:
            dx = backward(grad, x, weight, None, *ctx.geometry, [True, False, False])[0]
        if ctx.needs_input_grad[1]:
            some, like = grad.index_select(1, rows), weight[: len(rows)]  # only the shape of the weight is looked at
            dw = _whole(weight, rows, backward(some, x, like, None, *ctx.geometry, [False, True, False])[1])
        return dx, dw, grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None, None, None


class SlicedLinear(nn.Linear):
    """A linear layer of which, while ``moving`` is set (int64[k]), only these rows get a gradient."""

    moving: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.moving is None or not torch.is_grad_enabled():
            return linear(x, self.weight, self.bias)
        return sliced_linear(x, self.weight, self.bias, self.moving)


class SlicedConv2d(nn.Conv2d):
    """A convolution of which, while ``moving`` is set (int64[k]), only these output channels get a gradient."""

    moving: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.moving is None or not torch.is_grad_enabled():
            return self._conv_forward(x, self.weight, self.bias)
        return sliced_conv(x, self.weight, self.bias, self.moving, conv_geometry(self))


def sliceable(layer: nn.Module) -> nn.Module:
    """The layer as one of the two classes above, with the same parameters; ``layer`` itself if it is neither kind."""
    made: nn.Module
    if type(layer) in PLAIN:
        assert isinstance(layer, nn.Linear)
        made = SlicedLinear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    elif type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros":
        if isinstance(layer.padding, str):
            return layer
        made = SlicedConv2d(
            layer.in_channels,
            layer.out_channels,
            (layer.kernel_size[0], layer.kernel_size[1]),
            (layer.stride[0], layer.stride[1]),
            (layer.padding[0], layer.padding[1]),
            (layer.dilation[0], layer.dilation[1]),
            bias=layer.bias is not None,
            device="meta",
        )
    else:
        return layer
    made.weight, made.bias = layer.weight, layer.bias
    return made.train(layer.training)
