"""Optimiser updates of single rows of a parameter: all other rows keep every bit.

These plain functions are the contract. All work in place; rows are taken along the first axis; ``index`` (int64) rises
and ``grad`` holds its rows only, [k, ...].
"""

from __future__ import annotations

import torch
from torch import Tensor


def row_sgd(
    weight: Tensor,
    velocity: Tensor | None,
    index: Tensor,
    grad: Tensor,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """v = momentum v + g + decay w; w = w - lr v on the rows of ``index``. velocity: None without momentum."""
    old = weight[index]
    step = torch.add(grad, old, alpha=weight_decay) if weight_decay else grad
    if velocity is not None:
        step = momentum * velocity[index] + step
        velocity[index] = step
    weight[index] = old - lr * step


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
) -> None:
    """AdamW on the rows of ``index``. t: float32[rows], how often each row was updated; counted up here."""
    b1, b2 = betas
    t[index] += 1
    count = t[index].reshape(-1, *([1] * (weight.dim() - 1)))
    first = b1 * m[index] + (1 - b1) * grad
    second = b2 * v[index] + (1 - b2) * grad * grad
    m[index], v[index] = first, second
    step = (first / (1 - b1**count)) / ((second / (1 - b2**count)).sqrt() + eps)
    weight[index] = weight[index] * (1 - lr * weight_decay) - lr * step
