"""A norm with given or measured statistics, the sum with a shortcut, and ReLU, as one op, and its gradient as another.

Let h be [N, C, ...] with n values a channel, and keep the weight of the stored statistics:

    mean = keep stored_mean + (1 - keep) mean_n(h),   var = keep stored_var + (1 - keep) var_n(h)  (biased)
    r    = 1 / sqrt(var + eps),   y = relu(gamma r (h - mean) + beta + join)

With dy the gradient of y, d = dy where y > 0 (all of dy without ReLU) is that of ``join`` and

    dbeta = sum d,   dgamma = r sum d (h - mean),
    dh    = gamma r d                                                   keep > 0: statistics are constants
    dh    = gamma r (d - dbeta / n - r (h - mean) dgamma / n)           keep = 0: statistics are the batch's

``path``: "torch" is the contract, any device, type and layout; "compiled" (float32 on the CPU, channels last in memory)
does each way in two passes over memory where the contract takes up to five; "formula" is what stands above, in plain
tensor operations, for compilers to fuse; "graph" is for exporters, one graph for every number of rows: there ``keep``
and ``through`` may be tensors; None chooses. NaN stays NaN in all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numba import carray, types
from numba.extending import intrinsic
from torch import Tensor

from ..compiled import compiled

Path = Literal["torch", "compiled", "formula", "graph"]
WIDE = 512
"""Rows are put together up to so many numbers, so that a loop over channels is a long one."""
CHUNK = 64
"""Sums run over so many rows in single precision, then go on in double."""


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """mean, var: float[C], the stored ones; keep: their weight, 0 to 1, for the path "graph" also a tensor float[].

    through, for that path alone: how much of the gradient through the rows' statistics counts, float[], or of mean and
    variance apart, float[2, C]; None: none, ever.
    """

    mean: Tensor
    var: Tensor
    keep: float | Tensor
    eps: float
    through: Tensor | None = None


class Saved(NamedTuple):
    """What the gradient needs: h, y (None without ReLU), and float[C] mean and r; for the path "graph" also h less the
    rows' own mean, by how much ``mean`` lies above that, and ``through``."""

    h: Tensor
    y: Tensor | None
    mean: Tensor
    inverse: Tensor
    centred: Tensor | None = None
    shift: Tensor | None = None
    through: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Slopes:
    """Gradients of h (None if not asked), of gamma and beta, and of the shortcut (d)."""

    h: Tensor | None
    gamma: Tensor
    beta: Tensor
    join: Tensor


def joined_norm(
    h: Tensor,
    gamma: Tensor,
    beta: Tensor,
    statistics: Statistics,
    join: Tensor | None = None,
    *,
    relu: bool = False,
    path: Path | None = None,
) -> tuple[Tensor, Saved]:
    """y, laid out like h, and what ``joined_norm_back`` needs. Nothing is differentiated by autograd."""
    path = path or _fastest(h)
    if path != "torch":
        return _FORWARD[path](h, gamma, beta, statistics, join, relu)
    s, mean, var = statistics, statistics.mean, statistics.var
    if s.keep == 0:
        y, mean, inverse = torch.native_batch_norm(h, gamma, beta, None, None, True, 0.0, s.eps)
    else:
        if s.keep < 1:
            now_mean, now_var = torch.ops.aten.batch_norm_update_stats(h, None, None, 0.0)
            mean, var = torch.lerp(now_mean, mean, s.keep), torch.lerp(now_var, var, s.keep)
        y = torch.native_batch_norm(h, gamma, beta, mean, var, False, 0.0, s.eps)[0]
        inverse = torch.rsqrt(var + s.eps)
    if join is not None:
        y = y + join
    y = torch.relu(y) if relu else y
    return y, Saved(h, y if relu else None, mean, inverse)


def joined_norm_back(
    dy: Tensor,
    saved: Saved,
    gamma: Tensor,
    keep: float | Tensor,
    *,
    onward: bool = True,
    path: Path | None = None,
) -> Slopes:
    """The gradients; onward: that of h too. keep: as in the forward pass."""
    path = path or _fastest(saved.h)
    if path != "torch":
        return _BACKWARD[path](dy, saved, gamma, keep, onward)
    d = dy if saved.y is None else torch.ops.aten.threshold_backward(dy, saved.y, 0.0)
    measured = keep == 0
    given = (saved.mean, saved.inverse.pow(-2))
    dh, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward(
        d,
        saved.h,
        gamma,
        *((None, None) if measured else given),
        *((saved.mean, saved.inverse) if measured else (None, None)),
        measured,
        0.0,
        [onward, True, True],
    )
    return Slopes(dh if onward else None, dgamma, dbeta, d)


def _wide(values: Tensor, h: Tensor) -> Tensor:
    """float[C], to stand beside h."""
    return values.reshape(1, -1, *(1,) * (h.dim() - 2))


def _formula(
    h: Tensor, gamma: Tensor, beta: Tensor, s: Statistics, join: Tensor | None, relu: bool
) -> tuple[Tensor, Saved]:
    mean, var = s.mean, s.var
    if s.keep < 1:
        over = [0, *range(2, h.dim())]
        mean = h.mean(over)
        var = (h - _wide(mean, h)).square().mean(over)
        if s.keep > 0:
            mean, var = s.keep * s.mean + (1 - s.keep) * mean, s.keep * s.var + (1 - s.keep) * var
    inverse = torch.rsqrt(var + s.eps)
    scale = gamma * inverse
    y = h * _wide(scale, h) + _wide(beta - mean * scale, h)
    y = y if join is None else y + join
    y = torch.relu(y) if relu else y
    return y, Saved(h, y if relu else None, mean, inverse)


def _formula_back(dy: Tensor, saved: Saved, gamma: Tensor, keep: float, onward: bool) -> Slopes:
    h, y, mean, r = saved[:4]
    over, n = [0, *range(2, h.dim())], h.numel() / h.shape[1]
    d = dy if y is None else torch.where(y <= 0, 0.0, dy)
    dbeta = d.sum(over)
    dgamma = r * (d * (h - _wide(mean, h))).sum(over)
    dh = None
    if onward:
        dh = d * _wide(gamma * r, h)
        if keep == 0:
            slope = -gamma * r * r * dgamma / n
            dh = dh + h * _wide(slope, h) - _wide(gamma * r * dbeta / n + slope * mean, h)
    return Slopes(dh, dgamma, dbeta, d)


def _graph(
    h: Tensor, gamma: Tensor, beta: Tensor, s: Statistics, join: Tensor | None, relu: bool
) -> tuple[Tensor, Saved]:
    """Few nodes, for each costs something however small it is: one of them does all between statistics and sum."""
    mean, var = s.mean, s.var
    centred = shift = None
    mixed, measured = isinstance(s.keep, Tensor) or 0 < s.keep < 1, not isinstance(s.keep, Tensor) and s.keep == 0
    if mixed or measured or s.through is not None:
        over = [0, *range(2, h.dim())]
        middle = h.mean(over)
        centred = _affine(h, mean=middle)
        shift = None if measured else s.mean - middle
        if mixed or measured:
            mean, var = middle, (centred * centred).mean(over)
        if mixed:
            shift = s.keep * (s.mean - middle)
            mean, var = middle + shift, var + s.keep * (s.var - var)
    y = _affine(h, gamma, beta, mean, var, s.eps)
    y = y if join is None else y + join
    y = torch.relu(y) if relu else y
    return y, Saved(h, y if relu else None, mean, (var + s.eps).pow(-0.5), centred, shift, s.through)


def _graph_back(dy: Tensor, saved: Saved, gamma: Tensor, keep: float | Tensor, onward: bool) -> Slopes:  # noqa: ARG001
    h, y, mean, r, centred, shift, through = saved
    over, n = [0, *range(2, h.dim())], h.numel() // h.shape[1]
    d = dy if y is None else torch.where(y > 0, dy, 0.0)
    dbeta = d.sum(over)
    along = (d * (_affine(h, mean=mean) if centred is None else centred)).sum(over)
    dgamma = r * (along if shift is None else along - shift * dbeta)
    if not onward:
        return Slopes(None, dgamma, dbeta, d)
    scale = gamma * r
    if through is None or centred is None:
        return Slopes(_affine(d, scale), dgamma, dbeta, d)
    share = through / -n
    to_mean, to_var = (share, share) if share.dim() == 0 else share.unbind()
    dh = _affine(d, scale, scale * to_mean * dbeta) + _affine(centred, scale * to_var * r * dgamma)
    return Slopes(dh, dgamma, dbeta, d)


def _affine(
    h: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """scale (h - mean) / sqrt(var + eps) + shift, in one node; float[C] each, None what changes nothing."""
    zeros, ones = h.new_zeros(h.shape[1]), h.new_ones(h.shape[1])
    mean, shift = (zeros if part is None else part for part in (mean, shift))
    var, scale = (ones if part is None else part for part in (var, scale))
    return torch.nn.functional.batch_norm(h, mean, var, scale, shift, False, 0.0, eps)


def _fastest(h: Tensor) -> Path:
    plain = h.device.type == "cpu" and h.dtype == torch.float32
    return "compiled" if plain and _last(h) else "torch"


def _last(x: Tensor) -> bool:
    """Whether the channels lie next to each other."""
    return x.is_contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.is_contiguous()


def _laid(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.contiguous_format)


@lru_cache(maxsize=256)
def _sizes(numbers: int, channels: int) -> tuple[int, int, int]:
    """Rows, channels, and how many rows count as one."""
    rows, fold = numbers // channels, 1
    while rows % (2 * fold) == 0 and 2 * fold * channels <= WIDE:
        fold *= 2
    return rows, channels, fold


def _compiled(
    h: Tensor, gamma: Tensor, beta: Tensor, s: Statistics, join: Tensor | None, relu: bool
) -> tuple[Tensor, Saved]:
    if h.dtype != torch.float32 or not h.shape[1] == len(gamma) == len(beta) == len(s.mean) == len(s.var):
        raise TypeError("the compiled norm is for single precision, and one parameter of each kind for each channel")
    h = _laid(h)
    join = None if join is None else _laid(join.expand_as(h))
    y, stats = torch.empty_like(h), s.mean.new_empty((2, h.shape[1]))
    _forward(
        *_sizes(h.numel(), h.shape[1]), h.data_ptr(), gamma.data_ptr(), beta.data_ptr(), s.mean.data_ptr(),
        s.var.data_ptr(), float(s.keep), s.eps, 0 if join is None else join.data_ptr(), relu, y.data_ptr(),
        stats.data_ptr(),
    )  # fmt: skip
    return y, Saved(h, y if relu else None, *stats.unbind())


def _compiled_back(dy: Tensor, saved: Saved, gamma: Tensor, keep: float, onward: bool) -> Slopes:
    h, y, dy = saved.h, saved.y, _laid(dy)
    d = dy if y is None else torch.empty_like(h)
    dh = torch.empty_like(h) if onward else None
    slopes = gamma.new_empty((2, h.shape[1]))
    _backward(
        *_sizes(h.numel(), h.shape[1]), dy.data_ptr(), h.data_ptr(), 0 if y is None else y.data_ptr(), gamma.data_ptr(),
        saved.mean.data_ptr(), saved.inverse.data_ptr(), keep == 0, d.data_ptr(),
        0 if dh is None else dh.data_ptr(), slopes.data_ptr(),
    )  # fmt: skip
    dgamma, dbeta = slopes.unbind()
    return Slopes(dh, dgamma, dbeta, d)


def _to_pointer(_typing: Any, _address: Any) -> Any:
    """The pointer to single-precision numbers at an address."""
    kind = types.CPointer(types.float32)

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(kind))

    return kind(types.int64), generate


_pointer: Any = intrinsic(_to_pointer)


@compiled
def _forward(
    rows: int, channels: int, fold: int, at_h: int, at_gamma: int, at_beta: int, at_mean: int, at_var: int,
    keep: float, eps: float, at_join: int, relu: bool, at_y: int, at_stats: int,
) -> None:  # fmt: skip
    n, wide, zero = rows // fold, channels * fold, np.float32(0)
    h, y = carray(_pointer(at_h), (n, wide)), carray(_pointer(at_y), (n, wide))
    gamma, beta = carray(_pointer(at_gamma), channels), carray(_pointer(at_beta), channels)
    stored_mean, stored_var = carray(_pointer(at_mean), channels), carray(_pointer(at_var), channels)
    stats = carray(_pointer(at_stats), (2, channels))
    mean, var = np.zeros(channels), np.zeros(channels)
    if keep < 1:
        _moments(h, channels, fold, mean, var)
    scale, shift = np.empty(wide, np.float32), np.empty(wide, np.float32)
    for c in range(channels):
        middle, spread = mean[c], var[c]
        if keep > 0:
            middle = keep * stored_mean[c] + (1 - keep) * middle
            spread = keep * stored_var[c] + (1 - keep) * spread
        inverse = 1 / np.sqrt(spread + eps)
        stats[0, c], stats[1, c] = middle, inverse
        for k in range(c, wide, channels):
            scale[k] = gamma[c] * inverse
            shift[k] = beta[c] - gamma[c] * inverse * middle
    if at_join:
        join = carray(_pointer(at_join), (n, wide))
        for i in range(n):
            a, j, b = h[i], join[i], y[i]
            if relu:
                for c in range(wide):
                    v = a[c] * scale[c] + shift[c] + j[c]
                    b[c] = zero if v <= zero else v
            else:
                for c in range(wide):
                    b[c] = a[c] * scale[c] + shift[c] + j[c]
    else:
        for i in range(n):
            a, b = h[i], y[i]
            if relu:
                for c in range(wide):
                    v = a[c] * scale[c] + shift[c]
                    b[c] = zero if v <= zero else v
            else:
                for c in range(wide):
                    b[c] = a[c] * scale[c] + shift[c]


@compiled
def _moments(h: Any, channels: int, fold: int, mean: Any, var: Any) -> None:
    """Mean and biased variance of every channel: sums of what lies beyond the mean of the first rows."""
    n, wide = h.shape
    first = min(n, CHUNK)
    total, square = np.zeros(wide, np.float32), np.zeros(wide, np.float32)
    for i in range(first):
        a = h[i]
        for c in range(wide):
            total[c] += a[c]
    for c in range(channels):
        for k in range(c, wide, channels):
            mean[c] += total[k] / (first * fold)
    base = np.empty(wide, np.float32)
    for k in range(wide):
        base[k] = mean[k % channels]
    sums, squares = np.zeros(channels), np.zeros(channels)
    for start in range(0, n, CHUNK):
        total[:] = 0
        square[:] = 0
        for i in range(start, min(n, start + CHUNK)):
            a = h[i]
            for c in range(wide):
                v = a[c] - base[c]
                total[c] += v
                square[c] += v * v
        for k in range(wide):
            sums[k % channels] += total[k]
            squares[k % channels] += square[k]
    for c in range(channels):
        off = sums[c] / (n * fold)
        mean[c] = np.float64(base[c]) + off
        var[c] = max(squares[c] / (n * fold) - off * off, 0.0)


@compiled
def _backward(
    rows: int, channels: int, fold: int, at_dy: int, at_h: int, at_y: int, at_gamma: int, at_mean: int,
    at_inverse: int, measured: bool, at_d: int, at_dh: int, at_slopes: int,
) -> None:  # fmt: skip
    n, wide, zero = rows // fold, channels * fold, np.float32(0)
    dy, h = carray(_pointer(at_dy), (n, wide)), carray(_pointer(at_h), (n, wide))
    d = carray(_pointer(at_d), (n, wide))
    gamma, mean = carray(_pointer(at_gamma), channels), carray(_pointer(at_mean), channels)
    inverse, slopes = carray(_pointer(at_inverse), channels), carray(_pointer(at_slopes), (2, channels))
    base = np.empty(wide, np.float32)
    for k in range(wide):
        base[k] = mean[k % channels]
    total, product = np.zeros(wide, np.float32), np.zeros(wide, np.float32)
    sums, products = np.zeros(channels), np.zeros(channels)
    for start in range(0, n, CHUNK):
        total[:] = 0
        product[:] = 0
        for i in range(start, min(n, start + CHUNK)):
            g, a, b = dy[i], h[i], d[i]
            if at_y:
                y = carray(_pointer(at_y), (n, wide))[i]
                for c in range(wide):
                    v = zero if y[c] <= zero else g[c]
                    b[c] = v
                    total[c] += v
                    product[c] += v * (a[c] - base[c])
            else:
                for c in range(wide):
                    total[c] += g[c]
                    product[c] += g[c] * (a[c] - base[c])
        for k in range(wide):
            sums[k % channels] += total[k]
            products[k % channels] += product[k]
    for c in range(channels):
        slopes[0, c], slopes[1, c] = products[c] * inverse[c], sums[c]
    if at_dh:
        out = carray(_pointer(at_dh), (n, wide))
        _onward(d, h, out, gamma, mean, inverse, sums, products, measured)


@compiled
def _onward(
    d: Any, h: Any, out: Any, gamma: Any, mean: Any, inverse: Any, sums: Any, products: Any, measured: bool
) -> None:
    n, wide = d.shape
    channels = len(gamma)
    scale, slope, level = np.empty(wide, np.float32), np.empty(wide, np.float32), np.empty(wide, np.float32)
    values = n * (wide // channels)
    for k in range(wide):
        c = k % channels
        a = np.float64(gamma[c]) * inverse[c]
        b = -a * inverse[c] * inverse[c] * products[c] / values
        scale[k], slope[k], level[k] = a, b, -a * sums[c] / values - b * mean[c]
    for i in range(n):
        g, a, b = d[i], h[i], out[i]
        if measured:
            for c in range(wide):
                b[c] = scale[c] * g[c] + slope[c] * a[c] + level[c]
        else:
            for c in range(wide):
                b[c] = scale[c] * g[c]


_FORWARD: dict[str, Callable[..., tuple[Tensor, Saved]]] = {
    "compiled": _compiled,
    "formula": _formula,
    "graph": _graph,
}
_BACKWARD: dict[str, Callable[..., Slopes]] = {
    "compiled": _compiled_back,
    "formula": _formula_back,
    "graph": _graph_back,
}
