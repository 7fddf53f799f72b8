"""Optimiser updates of single entries of a parameter: where the mask does not hold, every bit stays as it was.

Weight, moments, mask (bool) and grad have one shape; all is done in place. ``path``: "torch" is the contract (any
device, any type); "compiled" (CPU, float32 or float64) does it in one pass over memory, where the contract takes
several; None chooses.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..compiled import compiled

Path = Literal["torch", "compiled"]


def path_for(path: Path | None, *tensors: Tensor) -> Path:
    """The asked path, else compiled where all lie on the CPU as long or double floats."""
    if path is not None:
        return path
    plain = all(t.device.type == "cpu" and t.dtype in (torch.float32, torch.float64) for t in tensors)
    return "compiled" if plain and all(_last(t) == _last(tensors[0]) is not None for t in tensors) else "torch"


def masked_sgd(
    weight: Tensor,
    velocity: Tensor | None,
    mask: Tensor,
    grad: Tensor,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    path: Path | None = None,
) -> None:
    """v = momentum v + g + decay w; w = w - lr v, where the mask holds. velocity: None without momentum."""
    weight = weight.detach()
    if path_for(path, *_there(weight, velocity)) == "compiled":
        w, m = _flat(weight, weight), _flat(mask, weight)
        _sgd(
            w,
            _flat(velocity, weight) if velocity is not None else w[:0],
            m,
            _flat(grad, weight),
            lr,
            momentum,
            weight_decay,
        )
        return
    step = torch.add(grad, weight, alpha=weight_decay) if weight_decay else grad
    if velocity is not None:
        velocity.copy_(torch.where(mask, momentum * velocity + step, velocity))
        step = velocity
    weight.copy_(torch.where(mask, weight - lr * step, weight))


def masked_adamw(
    weight: Tensor,
    m: Tensor,
    v: Tensor,
    mask: Tensor,
    grad: Tensor,
    *,
    t: Tensor,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    path: Path | None = None,
) -> None:
    """AdamW where the mask holds. t: float32[], the number of this update, one count for the whole parameter."""
    weight = weight.detach()
    b1, b2 = betas
    if path_for(path, weight, m, v) == "compiled":
        times = float(t)
        first, second = 1 - b1**times, (1 - b2**times) ** -0.5
        tensors = [_flat(x, weight) for x in (weight, m, v, mask, grad)]
        _adamw(*tensors, lr / first, second, 1 - lr * weight_decay, b1, b2, eps)
        return
    m.copy_(torch.where(mask, b1 * m + (1 - b1) * grad, m))
    v.copy_(torch.where(mask, b2 * v + (1 - b2) * grad * grad, v))
    step = (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)
    weight.copy_(torch.where(mask, weight * (1 - lr * weight_decay) - lr * step, weight))


def _there(weight: Tensor, velocity: Tensor | None) -> list[Tensor]:
    return [weight] if velocity is None else [weight, velocity]


def _last(tensor: Tensor) -> bool | None:
    """Whether channels come last in memory; None for a tensor that has gaps."""
    if tensor.is_contiguous():
        return False
    return True if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) else None


def _flat(tensor: Tensor, like: Tensor) -> np.ndarray:
    """All entries in the order in which ``like`` has them; shares memory with a tensor that lies so."""
    tensor = tensor.detach()
    return (tensor.permute(0, 2, 3, 1) if _last(like) else tensor).reshape(-1).numpy()


@compiled
def _sgd(w: Any, u: Any, mask: Any, g: Any, lr: float, momentum: float, weight_decay: float) -> None:
    """Both outcomes are written: a choice of values runs in vectors, a branch does not."""
    real = w.dtype.type
    rate, keep, decay = real(lr), real(momentum), real(weight_decay)
    if u.size:
        for i in range(w.size):
            speed = keep * u[i] + (g[i] + decay * w[i])
            u[i] = speed if mask[i] else u[i]
            w[i] = w[i] - rate * speed if mask[i] else w[i]
    else:
        for i in range(w.size):
            moved = w[i] - rate * (g[i] + decay * w[i])
            w[i] = moved if mask[i] else w[i]


@compiled
def _adamw(
    w: Any, m: Any, v: Any, mask: Any, g: Any, size: float, scale: float, keep: float, b1: float, b2: float, eps: float
) -> None:
    real = w.dtype.type
    step, ib, rest, a, c, e = real(size), real(scale), real(keep), real(b1), real(b2), real(eps)
    da, dc = real(1 - b1), real(1 - b2)
    for i in range(w.size):
        first = a * m[i] + da * g[i]
        second = c * v[i] + dc * g[i] * g[i]
        moved = w[i] * rest - step * first / (np.sqrt(second) * ib + e)
        m[i] = first if mask[i] else m[i]
        v[i] = second if mask[i] else v[i]
        w[i] = moved if mask[i] else w[i]
