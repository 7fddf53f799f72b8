"""A matrix product by whichever of PyTorch's two libraries is faster, for code that forms its gradients itself.

Why there are two, and how it is found out which: ``inference_linear.py``. Measured on the same processor, one thread,
float32: 160 to 200 GFLOP/s against 80 from 1024x512x64 on, either factor transposed or not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .inference_linear import ENOUGH, linear, onednn_is_better


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b, float[n, m], of float[n, k] and float[k, m] of one type; without a graph.

    >>> product(torch.ones(2, 3), torch.eye(3)[:, :2]).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    pays = a.numel() * b.shape[1] >= ENOUGH and a.dtype == torch.float32 and a.device.type == "cpu"
    if not pays or not onednn_is_better():
        return a @ b
    out: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    return out


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias, float[..., d_out], of a layer that does not learn: the gradient is formed for x alone."""
    out: Tensor = _FrozenLinear.apply(x, weight, bias)
    return out


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,), (weight,) = grads, ctx.saved_tensors
        return product(grad.flatten(0, -2), weight).view(*grad.shape[:-1], weight.shape[1]), None, None
