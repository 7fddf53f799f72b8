"""Normalisation layers: batch, group and continual norm by name.

Sources: group norm, Wu and He, ECCV 2018; continual norm, Pham et al., Continual Normalization, ICLR 2022: group norm
without affine parameters, then batch norm.
"""

from __future__ import annotations

from torch import nn

KINDS = ("batch", "group", "continual", "none")
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def make_norm(kind: str, channels: int, dimensions: int = 2) -> nn.Module:
    """The norm named ``kind`` (one of ``KINDS``) for inputs [N, channels, ...] with ``dimensions`` axes of positions.

    Raises ``ValueError`` for a name that is none of them.
    """
    if kind == "batch":
        return BATCH_NORMS[max(dimensions - 1, 0)](channels)
    if kind == "group":
        return nn.GroupNorm(group_count(channels), channels)
    if kind == "continual":
        plain = nn.GroupNorm(group_count(channels), channels, affine=False)
        return nn.Sequential(plain, make_norm("batch", channels, dimensions))
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"unknown norm {kind!r}: there are {', '.join(KINDS)}")


def group_count(channels: int, most: int = 32) -> int:
    """The largest divisor of ``channels`` up to ``most``: 32 groups where 32 divides the channels, as is usual."""
    return max(n for n in range(1, min(most, channels) + 1) if channels % n == 0)
