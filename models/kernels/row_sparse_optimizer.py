"""Optimiser updates of some rows of a parameter: all other rows keep weight, moments and count bit for bit.

A row is what one output channel owns: ``weight[i]``, of any shape. The gradient comes in one of three forms: compact
([k, ...], one entry per active row), dense ([rows, ...], of which the active rows are read), or as two factors whose
product is the compact one, ``grad[n, k]`` and ``inputs[n, ...]``: grad.T @ inputs. The factors save writing and reading
a matrix, which pays for few examples.

``path``: "torch" (the contract; any device, any type), "compiled" (one pass over the active rows, CPU), None: choose.
AdamW: Loshchilov, Hutter, ICLR 2019. A count of updates for every row is our choice: a row that wakes late is then
bias-corrected like a fresh one.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..compiled import compiled, inner

Path = Literal["torch", "compiled"]
FACTORS = 8
"""Examples up to which two factors are faster in AdamW than their product: by 1.15 to 1.2 at 8 examples and 30 to 50 %
of the rows of 4096x1024 and 768x3072 (even at 5 %); even at 16 examples, slower from 32 on."""


def path_for(path: Path | None, *tensors: Tensor) -> Path:
    """The asked path, else compiled where weight and moments are float32 or float64, on the CPU and laid out alike."""
    if path is not None:
        return path
    plain = all(tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64) for tensor in tensors)
    layouts = {_layout(tensor) for tensor in tensors} if plain else {None}
    return "compiled" if len(layouts) == 1 and None not in layouts else "torch"


def row_sgd(
    weight: Tensor,
    velocity: Tensor | None,
    index: Tensor,
    grad: Tensor,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    inputs: Tensor | None = None,
    path: Path | None = None,
) -> None:
    """v = momentum v + g + decay w; w = w - lr v, in place on the rows in ``index`` (int64[k], rising).

    velocity: of the weight's shape, or None without momentum. grad, inputs, path: see the module.
    """
    weight = weight.detach()
    if path_for(path, weight, *([] if velocity is None else [velocity])) == "torch":
        step = compact_gradient(weight, index, grad, inputs) + weight_decay * weight[index]
        if velocity is not None:
            step += momentum * velocity[index]
            velocity[index] = step
        weight[index] -= lr * step
        return
    layout = _layout(weight)
    rows = _rows(weight, layout)
    speed = rows[:0] if velocity is None else _rows(velocity, layout)
    _sgd(rows, speed, index.numpy(), *_gradient(weight, index, grad, inputs), lr, momentum, weight_decay)


def row_adamw(
    weight: Tensor,
    m: Tensor,
    v: Tensor,
    t: Tensor,
    index: Tensor,
    grad: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    inputs: Tensor | None = None,
    path: Path | None = None,
) -> None:
    """AdamW in place on the rows in ``index`` (int64[k], rising); ``t`` [rows] counts the updates of each row.

    t += 1; m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
    w = w (1 - lr decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps). grad, inputs, path: see the module.
    """
    b1, b2 = betas
    weight = weight.detach()
    if path_for(path, weight, m, v) == "torch":
        g, w = compact_gradient(weight, index, grad, inputs), weight[index]
        t[index] += 1
        times = t[index].double().reshape(-1, *[1] * (weight.dim() - 1))
        first, second = b1 * m[index] + (1 - b1) * g, b2 * v[index] + (1 - b2) * g * g
        m[index], v[index] = first, second
        size, scale = (lr / (1 - b1**times)).to(w.dtype), (1 - b2**times).rsqrt().to(w.dtype)
        weight[index] = w * (1 - lr * weight_decay) - size * first / (second.sqrt() * scale + eps)
        return
    rows = [_rows(tensor, _layout(weight)) for tensor in (weight, m, v)]
    given = _gradient(weight, index, grad, inputs)
    _adamw(*rows, t.numpy(), index.numpy(), *given, lr, b1, b2, eps, weight_decay)


def compact_gradient(weight: Tensor, index: Tensor, grad: Tensor, inputs: Tensor | None = None) -> Tensor:
    """The gradient of the active rows, [k, ...], from any of its three forms."""
    if inputs is not None:
        return (grad.t() @ inputs.reshape(len(inputs), -1)).view(-1, *weight.shape[1:])
    return grad if grad.shape[0] == len(index) else grad[index]


def _layout(tensor: Tensor) -> torch.memory_format | None:
    """In which order the entries of each row lie in memory, if rows are dense and follow one another."""
    for layout, axes in ((torch.contiguous_format, 0), (torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if axes in (0, tensor.dim()) and tensor.is_contiguous(memory_format=layout):
            return layout
    return None


def _rows(tensor: Tensor, layout: torch.memory_format | None) -> np.ndarray:
    """[rows, entries] in the order of ``layout``; shares memory with a tensor that lies so."""
    plain = layout is None or layout is torch.contiguous_format
    array = tensor.detach().numpy() if plain else tensor.detach().movedim(1, -1).numpy()
    return np.ascontiguousarray(array).reshape(len(array), -1)


def _gradient(
    weight: Tensor, index: Tensor, grad: Tensor, inputs: Tensor | None
) -> tuple[np.ndarray, np.ndarray, bool]:
    """(source, factor, whether source is compact): gradient row r is factor[:, r] @ source, or where factor is empty
    source[r] of a compact and source[index[r]] of a dense gradient."""
    layout = _layout(weight)
    if inputs is not None:
        return _rows(inputs, layout), grad.detach().contiguous().numpy(), True
    none = np.empty((0, 0), dtype=np.float32 if weight.dtype is torch.float32 else np.float64)
    return _rows(grad, layout), none, grad.shape[0] == len(index)


@inner
def _correction(beta: float, t: float) -> float:
    """1 - beta^t. Not as a power: with a whole exponent that becomes a call of a function Numba does not link."""
    return -math.expm1(math.log(beta) * t)


@inner
def _gradient_row(source: np.ndarray, factor: np.ndarray, at: int, r: int, out: np.ndarray) -> np.ndarray:
    """Row r of the gradient: source[at], or factor[:, r] @ source formed in ``out``, four examples a pass."""
    if factor.size == 0:
        return source[at]
    out[:] = 0
    n = len(source)
    for first in range(0, n - 3, 4):
        a, b, c, d = factor[first, r], factor[first + 1, r], factor[first + 2, r], factor[first + 3, r]
        row_a, row_b, row_c, row_d = source[first], source[first + 1], source[first + 2], source[first + 3]
        for j in range(out.size):
            out[j] += (a * row_a[j] + b * row_b[j]) + (c * row_c[j] + d * row_d[j])
    for last in range(n - n % 4, n):
        a, row_a = factor[last, r], source[last]
        for j in range(out.size):
            out[j] += a * row_a[j]
    return out


@compiled
def _sgd(
    weight: np.ndarray,
    velocity: np.ndarray,
    index: np.ndarray,
    source: np.ndarray,
    factor: np.ndarray,
    compact: bool,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    real = weight.dtype.type
    rate, keep, decay = real(lr), real(momentum), real(weight_decay)
    formed = np.empty(weight.shape[1], weight.dtype)
    for r in range(index.size):
        i = index[r]
        w, g = weight[i], _gradient_row(source, factor, r if compact else i, r, formed)
        if velocity.size:
            u = velocity[i]
            for j in range(w.size):
                u[j] = keep * u[j] + (g[j] + decay * w[j])
                w[j] -= rate * u[j]
        else:
            for j in range(w.size):
                w[j] -= rate * (g[j] + decay * w[j])


@compiled
def _adamw(
    weight: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    t: np.ndarray,
    index: np.ndarray,
    source: np.ndarray,
    factor: np.ndarray,
    compact: bool,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Scalars take the weight's type outside the inner loop and rows are views: else the loop is not vectorised."""
    real = weight.dtype.type
    b1, c1, b2, c2 = real(beta1), real(1.0 - beta1), real(beta2), real(1.0 - beta2)
    floor, decay = real(eps), real(1.0 - lr * weight_decay)
    formed = np.empty(weight.shape[1], weight.dtype)
    size = scale = real(0.0)
    count = 0.0
    for r in range(index.size):
        i = index[r]
        t[i] += 1
        if t[i] != count:  # neighbours often share a count, and powers are dear
            count = t[i]
            size = real(lr / _correction(beta1, count))
            scale = real(1.0 / math.sqrt(_correction(beta2, count)))
        w, first, second = weight[i], m[i], v[i]
        g = _gradient_row(source, factor, r if compact else i, r, formed)
        for j in range(w.size):
            mean = b1 * first[j] + c1 * g[j]
            square = b2 * second[j] + c2 * g[j] * g[j]
            first[j], second[j] = mean, square
            w[j] = w[j] * decay - size * mean / (np.sqrt(square) * scale + floor)
