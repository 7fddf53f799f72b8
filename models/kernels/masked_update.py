"""Optimiser updates of single entries of a parameter: where the mask does not hold, every bit stays as it was.

These plain functions are the contract. All work in place; weight, moments, mask and grad have one shape.
"""

from __future__ import annotations

import torch
from torch import Tensor


def masked_sgd(
    weight: Tensor,
    velocity: Tensor | None,
    mask: Tensor,
    grad: Tensor,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """v = momentum v + g + decay w; w = w - lr v, where mask (bool) holds. velocity: None without momentum."""
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
) -> None:
    """AdamW where mask (bool) holds. t: float32[], the number of this update, one count for the whole parameter."""
    b1, b2 = betas
    m.copy_(torch.where(mask, b1 * m + (1 - b1) * grad, m))
    v.copy_(torch.where(mask, b2 * v + (1 - b2) * grad * grad, v))
    step = (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)
    weight.copy_(torch.where(mask, weight * (1 - lr * weight_decay) - lr * step, weight))
