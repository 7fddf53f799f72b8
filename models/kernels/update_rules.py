"""SGD, SGD with momentum and AdamW on pieces of parameters: what row-sparse and masked updates do where they do it.

The number of moments is the rule; g: gradient, w: weight, t: the number of this update:

    0    w = w - lr (g + decay w)
    1    u = b1 u + g + decay w;  w = w - lr u                                             (b1 is the momentum)
    2    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
         w = w (1 - lr decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)         AdamW

AdamW: Loshchilov, Hutter, Decoupled weight decay regularization, ICLR 2019.

Weights are float32 or float64 with moments of the same type, or bfloat16 with moments of float32: all is computed in
the type of the moments. A bfloat16 weight is rounded to nearest, or stochastically: 16 random bits are added below its
last bit and the rest is cut off, so that small steps are not lost but happen rarely. The random bits are a hash of
seed, row, number of the update and column, hence the same for every path and order. Ours; the hash is lowbias32 of
C. Wellons, Prospecting for hash functions, 2018 (public domain).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LOW = 0xFFFFFFFF
RATES = 5


class Rates(NamedTuple):
    """lr, b1 (the momentum of SGD), b2, eps, weight decay."""

    lr: float
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0
    weight_decay: float = 0.0


def working(dtype: torch.dtype) -> torch.dtype:
    """The type of the moments of weights of this type, in which their updates are computed."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def updated(
    w: Tensor, g: Tensor, moments: Sequence[Tensor], rates: Sequence[float | Tensor], count: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """New weight and moments [k, n] of rows of one working type. count: [k], the number of this update, for AdamW."""
    lr, b1, b2, eps, decay = rates
    if not moments:
        return w - lr * (g + decay * w), []
    if len(moments) == 1:
        speed = b1 * moments[0] + (g + decay * w)
        return w - lr * speed, [speed]
    assert count is not None
    times = count.double()[:, None]
    first, second = b1 * moments[0] + (1 - b1) * g, b2 * moments[1] + (1 - b2) * g * g
    size, scale = (lr / (1 - b1**times)).to(w.dtype), (1 - b2**times).rsqrt().to(w.dtype)
    return w * (1 - lr * decay) - size * first / (second.sqrt() * scale + eps), [first, second]


# --- rounding -------------------------------------------------------------------------------------------------------


def mixed(x: Tensor) -> Tensor:
    """A hash of 32 bits of whole numbers, int64 in 0 .. 2^32 - 1 each."""
    x = x & LOW
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & LOW
    x = ((x ^ (x >> 15)) * 0x846CA68B) & LOW
    return x ^ (x >> 16)


def row_keys(seed: int, row: Tensor, count: Tensor) -> Tensor:
    """int64[k]: what the random bits of each row's update number ``count`` start from."""
    return mixed(mixed(mixed(torch.full_like(row, seed)) + row) + count.long())


def rounded(values: Tensor, dtype: torch.dtype, keys: Tensor | None, column: Tensor | None = None) -> Tensor:
    """values [k, n] in a weight's type: to nearest, or with ``keys`` (int64[k], bfloat16 only) stochastically.

    column: int64[k, n] or [n], 0 .. n - 1 where None; the random bits of an entry are those of its key and its column.
    """
    if keys is None:
        return values.to(dtype)
    column = torch.arange(values.shape[1], device=values.device) if column is None else column
    noise = mixed(keys[:, None] + column) >> 16
    bits = values.contiguous().view(torch.int32).long()
    cut = ((bits + noise) >> 16).to(torch.int16).view(torch.bfloat16)
    return torch.where(values.isfinite(), cut, values.to(torch.bfloat16))


def check(
    weight: Tensor, moments: Sequence[Tensor], count: Tensor | None, counted: tuple[int, ...], seed: int | None
) -> None:
    """``ValueError`` where weight, moments, count and seed do not belong together."""
    real = working(weight.dtype)
    if len(moments) > 2 or any(m.shape != weight.shape or m.dtype != real for m in moments):
        raise ValueError(f"moments of a {weight.dtype} weight are none, one or two of its shape, of type {real}")
    if count is None and (len(moments) == 2 or seed is not None):
        raise ValueError("AdamW and stochastic rounding need count, the numbers of updates so far")
    if count is not None and (count.shape != counted or count.dtype != torch.float32 or not count.is_contiguous()):
        raise ValueError(f"count must be float32{list(counted)} without gaps, not {count.dtype}{list(count.shape)}")
    if seed is not None and weight.dtype != torch.bfloat16:
        raise ValueError("stochastic rounding (seed) is for bfloat16 weights")
