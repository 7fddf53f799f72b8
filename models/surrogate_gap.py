"""Directions of sharpness-aware descent, over lists of gradients that count as one long vector.

With L the loss at phi, g its gradient, and L_p, g_p the same at phi + ascent(g, rho): the gap L_p - L measures how
sharp the place is. SAM (Foret et al., ICLR 2021) descends along g_p; GSAM (Zhuang et al., ICLR 2022) takes from it
alpha times the part of g at right angles to g_p, which leaves L_p as it is to first order and shrinks the gap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TINY = 1e-12
LONG = 100_000


def joint_norm(parts: Sequence[Tensor]) -> Tensor:
    """The length of all parts as one vector, a tensor of no dimension."""
    return torch.linalg.vector_norm(_gathered(parts))


def all_finite(parts: Sequence[Tensor]) -> bool:
    """Whether every entry of every part is: no part may be empty.

    >>> all_finite([torch.tensor([1.0, 3e38])]), all_finite([torch.ones(2), torch.tensor([0.0, math.nan])])
    (True, False)
    """
    return bool(torch.isfinite(_gathered(parts, math.inf)).all())


def _gathered(parts: Sequence[Tensor], order: float = 2.0) -> Tensor:
    """All entries in one vector, or of long parts their norms: copying many short ones costs less than asking each."""
    if sum(p.numel() for p in parts) <= LONG:
        return torch.cat([p if p.dim() == 1 else p.reshape(-1) for p in parts])
    return torch.stack(torch._foreach_norm(list(parts), order))


def ascent(gradient: Sequence[Tensor], rho: float) -> list[Tensor]:
    """rho g / (||g|| + 1e-12).

    >>> ascent([torch.tensor([3.0]), torch.tensor([4.0])], 0.5)
    [tensor([0.3000]), tensor([0.4000])]
    """
    scale = rho / (joint_norm(gradient) + TINY)
    return [g * scale for g in gradient]


def gap_direction(gradient: Sequence[Tensor], perturbed: Sequence[Tensor], alpha: float) -> list[Tensor]:
    """g_p - alpha (g - c g_p) with c = <g, g_p> / (||g_p||^2 + 1e-12); g_p itself at alpha 0."""
    if alpha == 0:
        return list(perturbed)
    product = torch.stack([(g * p).sum() for g, p in zip(gradient, perturbed, strict=True)]).sum()
    c = product / (torch.stack([p.square().sum() for p in perturbed]).sum() + TINY)
    return [p - alpha * (g - c * p) for g, p in zip(gradient, perturbed, strict=True)]
