"""How a frozen convolution is computed, forward and back to its input: by PyTorch's own call, or with weights that lie
ready in the order that the processor's library wants.

PyTorch hands convolutions to oneDNN, which puts the weights in its own order at every call. Weights that never move can
be put in order once: measured, the forward pass of a wide ResNet-18 on one image then takes half the time. The gradient
for the input is a convolution with the weights turned over where the stride is 1, else a transposed one. The operations
for this are PyTorch's private ones (``mkldnn``): where they are missing, or refuse, the plain call serves. They cost 18
microseconds a call beside the work, so small convolutions never go by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .units import Conv

PACKING_PAYS = 500_000
"""Multiply-adds from which on a packed convolution can win."""

Sizes = tuple[int, ...]


class PlainConvolutions:
    """By PyTorch's own calls; channels_last: weights are laid so (what comes in decides how the result lies)."""

    def __init__(self, weights: Mapping[str, Tensor], channels_last: bool = False) -> None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.weights = {n: w.detach().contiguous(memory_format=layout) if w.dim() == 4 else w.detach()
                        for n, w in weights.items()}  # fmt: skip

    def forward(self, unit: Conv, x: Tensor) -> Tensor:
        """The convolution of x float[B, C, H, W]."""
        bias = None if unit.bias is None else self.weights[unit.bias]
        return F.conv2d(x, self.weights[unit.weight], bias, unit.stride, unit.padding, unit.dilation, unit.groups)

    def back(self, unit: Conv, dy: Tensor, x: Tensor) -> Tensor:
        """The gradient for x, given that of the result."""
        how = (unit.stride, unit.padding, unit.dilation, False, (0, 0), unit.groups)
        weight = self.weights[unit.weight]
        dx: Tensor = torch.ops.aten.convolution_backward(dy, x, weight, None, *how, (True, False, False))[0]
        return dx


class PackedConvolutions:
    """By oneDNN with weights in its order, for each size of input once; float32 on the CPU, channels last."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.plain = PlainConvolutions(weights, channels_last=True)
        self.dense = weights
        self._forward: dict[tuple[str, Sizes], _Packed | None] = {}
        self._back: dict[tuple[str, Sizes], _Packed | None] = {}

    def forward(self, unit: Conv, x: Tensor) -> Tensor:
        """As ``PlainConvolutions.forward``."""
        key = (unit.weight, tuple(x.shape))
        if key not in self._forward:
            self._forward[key] = self._pack_forward(unit, x.shape)
        packed = self._forward[key]
        return self.plain.forward(unit, x) if packed is None else packed(x)

    def back(self, unit: Conv, dy: Tensor, x: Tensor) -> Tensor:
        """As ``PlainConvolutions.back``."""
        key = (unit.weight, tuple(x.shape))
        if key not in self._back:
            self._back[key] = self._pack_back(unit, dy.shape, x.shape)
        packed = self._back[key]
        return self.plain.back(unit, dy, x) if packed is None else packed(dy)

    def _worthwhile(self, unit: Conv, positions: int) -> bool:
        weight = self.dense[unit.weight]
        simple = unit.groups == 1 and set(unit.dilation) == {1} and packing_works()
        return simple and positions * weight.numel() >= PACKING_PAYS

    def _pack_forward(self, unit: Conv, size: torch.Size) -> _Packed | None:
        high, wide = _result(size[2:], unit, self.dense[unit.weight].shape[2:])
        if not self._worthwhile(unit, size[0] * high * wide):
            return None
        bias = None if unit.bias is None else self.dense[unit.bias].detach()
        return _Packed(self.dense[unit.weight].detach(), bias, unit.padding, unit.stride, size)

    def _pack_back(self, unit: Conv, given: torch.Size, size: torch.Size) -> _Packed | None:
        if not self._worthwhile(unit, given[0] * prod(given[2:])):
            return None
        weight = self.dense[unit.weight].detach()
        kernel = weight.shape[2:]
        if set(unit.stride) == {1} and all(p < k for p, k in zip(unit.padding, kernel)):
            turned = weight.flip(2, 3).transpose(0, 1).contiguous()
            return _Packed(turned, None, tuple(k - 1 - p for p, k in zip(unit.padding, kernel)), unit.stride, given)
        rest = tuple(
            whole - ((part - 1) * s - 2 * p + k)
            for whole, part, s, p, k in zip(size[2:], given[2:], unit.stride, unit.padding, kernel)
        )
        return _Packed(weight, None, unit.padding, unit.stride, given, rest)


class _Packed:
    """One convolution with its packed weight; ``rest``: a transposed one, with so much more at the far edges."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, padding: Sizes, stride: Sizes, size: Sizes, rest: Sizes | None = None
    ) -> None:
        ops: Any = torch.ops.mkldnn
        one, size = (1, 1), tuple(size)
        if rest is None:
            weight = ops._reorder_convolution_weight(weight, padding, stride, one, 1, size)
            self.call = ops._convolution_pointwise.default
            how: tuple[Any, ...] = (padding, stride)
        else:
            weight = ops._reorder_convolution_transpose_weight(weight, padding, rest, stride, one, 1, size)
            self.call = ops._convolution_transpose_pointwise.default
            how = (padding, rest, stride)
        self.given = (weight, bias, *how, one, 1, "none", [], "")

    def __call__(self, x: Tensor) -> Tensor:
        found: Tensor = self.call(x, *self.given)
        return found


@lru_cache(maxsize=1)
def packing_works() -> bool:
    """Whether PyTorch's private operations are there, and right for two small cases (asked once)."""
    x, weight = torch.arange(50.0).reshape(1, 2, 5, 5), torch.arange(36.0).reshape(2, 2, 3, 3) - 17
    x = x.contiguous(memory_format=torch.channels_last)
    try:
        straight = _Packed(weight, None, (1, 1), (2, 2), x.shape)(x)
        back = _Packed(weight, None, (1, 1), (2, 2), straight.shape, (0, 0))(straight)
    except (AttributeError, RuntimeError, TypeError):
        return False
    wanted = F.conv2d(x, weight, None, 2, 1)
    turned = F.conv_transpose2d(wanted, weight, None, 2, 1)
    return torch.allclose(straight, wanted, rtol=1e-4) and torch.allclose(back, turned, rtol=1e-4)


def _result(size: Sizes, unit: Conv, kernel: Sizes) -> list[int]:
    """Height and width of the result, without dilation."""
    return [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(size, unit.padding, kernel, unit.stride)]
