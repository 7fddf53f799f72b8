"""Batch norm whose statistics are chosen at every forward pass: of the source, the batch, both, or those that follow.

No pass stores what later ones use: a pass is a function of its input, the affine parameters and the statistics of the
source, which never move, and, for ``running``, of statistics beside them that move when ``adopt`` is called.
The mixture is that of Schneider et al., Improving robustness against common corruptions by covariate shift adaptation,
NeurIPS 2020; ``running`` is the robust batch norm of Yuan et al. (RoTTA), CVPR 2023. Ours: the rule ``auto``, the
biased variance of the batch inside the mixture, the bounds of what ``running`` follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .norms import BATCH_NORMS

STATISTICS = ("auto", "source", "batch", "mixed", "running")
ENOUGH = 16
"""Rows from which on a batch's own statistics are used by ``auto``."""
FARTHEST, WIDEST = 10.0, 100.0
"""Bounds of what running statistics follow, in deviations and variances of the source."""


class AdaptiveNorm(nn.Module):
    """Normalises float[B, C, ...] per channel, then scales and shifts.

    statistics: ``source`` the stored ones; ``batch`` those of the rows at hand (biased variance); ``mixed``
    (prior source + B batch) / (prior + B), mean and variance alike; ``auto`` batch from 16 rows on, mixed below. Where
    a channel has one value only, ``batch`` is ``mixed`` as well. Gradients run through the statistics of ``batch``, and
    take those of ``mixed`` as given (as the published module does). ``running``: statistics that begin as the source's;
    inside ``following`` a pass normalises by s <- (1 - follow) s + follow s_batch, gradient through s_batch included,
    and keeps that as ``proposed`` until ``adopt``. A batch's moments count as no farther from the source's than 10 of
    its deviations and 100 of its variances, and one value per channel leaves the variance as it is.

    views: the rows are so many batches one behind the other, each of which has statistics of its own.

    >>> norm = AdaptiveNorm(nn.BatchNorm1d(2), "mixed", prior=1)
    >>> norm(torch.tensor([[3.0, 0.0]])).detach().round(decimals=3)  # mean 1.5 and 0, variance 0.5
    tensor([[2.1210, 0.0000]])
    """

    running_mean: Tensor
    running_var: Tensor
    followed_mean: Tensor
    followed_var: Tensor

    def __init__(self, norm: Any, statistics: str = "auto", prior: float = 16.0, follow: float = 0.05) -> None:
        super().__init__()
        if statistics not in STATISTICS or prior <= 0 or not 0 <= follow <= 1:
            raise ValueError(f"statistics are one of {', '.join(STATISTICS)}, prior is above 0, follow in 0..1")
        self.statistics, self.prior, self.follow, self.eps = statistics, prior, follow, norm.eps
        self.following, self.views = False, 1
        self.proposed: tuple[Tensor, Tensor] | None = None
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)
        self.register_buffer("followed_mean", norm.running_mean.clone(), persistent=False)
        self.register_buffer("followed_var", norm.running_var.clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        mode = self.mode(x)
        if mode == "source":
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        if mode == "running":
            return self._running(x)
        if self.views > 1:
            return self._apart(x, mode)
        if mode == "batch":
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return self._mixed(x)

    def mode(self, x: Tensor) -> str:
        """The statistics that a pass over x uses: source, batch, mixed or running."""
        if self.statistics == "auto":
            return "batch" if len(x) >= ENOUGH * self.views else "mixed"
        single = x.numel() <= len(self.running_mean) * self.views
        return "mixed" if self.statistics == "batch" and single else self.statistics

    def _mixed(self, x: Tensor) -> Tensor:
        over = [0, *range(2, x.dim())]
        n = len(x)
        with torch.no_grad():
            var, mean = torch.var_mean(x, over, correction=0)
            mean = (self.prior * self.running_mean + n * mean) / (self.prior + n)
            var = (self.prior * self.running_var + n * var) / (self.prior + n)
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)

    def _apart(self, x: Tensor, mode: str) -> Tensor:
        """Views that do not know of each other, of batch or mixed statistics."""
        parts = x.unflatten(0, (self.views, -1))
        over, n = [1, *range(3, parts.dim())], parts.shape[1]
        var, mean = torch.var_mean(parts, over, correction=0, keepdim=True)
        if mode == "mixed":
            one = (1, 1, -1, *(1,) * (parts.dim() - 3))
            mean = (self.prior * self.running_mean.view(one) + n * mean.detach()) / (self.prior + n)
            var = (self.prior * self.running_var.view(one) + n * var.detach()) / (self.prior + n)
        return self._scaled(((parts - mean) * torch.rsqrt(var + self.eps)).flatten(0, 1))

    def _running(self, x: Tensor) -> Tensor:
        if not self.following:
            return F.batch_norm(x, self.followed_mean, self.followed_var, self.weight, self.bias, False, 0.0, self.eps)
        var, mean = torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
        wide = self.running_var.clamp(min=float(self.running_var.mean())) + self.eps
        far = FARTHEST * wide.sqrt()
        mean = torch.minimum(torch.maximum(mean, self.running_mean - far), self.running_mean + far)
        var = self.followed_var if x.numel() <= len(var) else torch.minimum(var, WIDEST * wide)
        mean = (1 - self.follow) * self.followed_mean + self.follow * mean
        var = (1 - self.follow) * self.followed_var + self.follow * var
        self.proposed = mean.detach(), var.detach()
        one = (1, -1, *(1,) * (x.dim() - 2))
        return self._scaled((x - mean.view(one)) * torch.rsqrt(var + self.eps).view(one))

    def _scaled(self, x: Tensor) -> Tensor:
        one = (1, -1, *(1,) * (x.dim() - 2))
        x = x if self.weight is None else x * self.weight.view(one)
        return x if self.bias is None else x + self.bias.view(one)

    def extra_repr(self) -> str:
        return f"{len(self.running_mean)}, {self.statistics}, prior={self.prior}"


def adaptive_norms(
    net: nn.Module, statistics: str = "auto", prior: float = 16.0, follow: float = 0.05
) -> list[AdaptiveNorm]:
    """Put an ``AdaptiveNorm`` in the place of every batch norm inside ``net``; returns them in order.

    Affine parameters and stored statistics are taken over, so the names in the network's state stay as they are.
    Norms without stored statistics always use the batch's and are left alone.
    """
    made: list[AdaptiveNorm] = []
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BATCH_NORMS) and child.running_mean is not None:
                made.append(AdaptiveNorm(child, statistics, prior, follow))
                setattr(parent, name, made[-1])
    return made


def followed(net: nn.Module) -> dict[str, Tensor]:
    """The running statistics of all norms that have them, by name, by reference; none of other modes."""
    return {
        f"{path}.{name}": getattr(module, name)
        for path, module in net.named_modules()
        if isinstance(module, AdaptiveNorm) and module.statistics == "running"
        for name in ("followed_mean", "followed_var")
    }


@contextmanager
def following(net: nn.Module) -> Iterator[None]:
    """While inside, passes with running statistics move them, for themselves and as a proposal."""
    yield from _while(net, "following", True)


@contextmanager
def in_views(net: nn.Module, views: int) -> Iterator[None]:
    """While inside, the rows of a pass are so many batches one behind the other."""
    yield from _while(net, "views", views)


@contextmanager
def using(net: nn.Module, statistics: str) -> Iterator[None]:
    """While inside, every batch norm of the network uses these statistics."""
    yield from _while(net, "statistics", statistics)


def _while(net: nn.Module, name: str, value: Any) -> Iterator[None]:
    norms = [m for m in net.modules() if isinstance(m, AdaptiveNorm)]
    before = [getattr(m, name) for m in norms]
    for m in norms:
        setattr(m, name, value)
    try:
        yield
    finally:
        for m, old in zip(norms, before, strict=True):
            setattr(m, name, old)


def proposals(net: nn.Module) -> dict[str, Tensor]:
    """What the last pass inside ``following`` proposed, by the names of ``followed``; the norms give it up."""
    found: dict[str, Tensor] = {}
    for path, module in net.named_modules():
        if isinstance(module, AdaptiveNorm) and module.proposed is not None:
            found[f"{path}.followed_mean"], found[f"{path}.followed_var"] = module.proposed
            module.proposed = None
    return found


def adopt(statistics: Mapping[str, Tensor], proposed: Mapping[str, Tensor]) -> None:
    """Running statistics take over a proposal in place: all of it, or nothing where some of it is not finite."""
    if all(bool(t.isfinite().all()) for t in proposed.values()):
        with torch.no_grad():
            for name, value in proposed.items():
                statistics[name].copy_(value)


def start_anew(net: nn.Module) -> None:
    """Running statistics are those of the source again."""
    for module in net.modules():
        if isinstance(module, AdaptiveNorm):
            module.followed_mean.copy_(module.running_mean)
            module.followed_var.copy_(module.running_var)


AFFINE = (AdaptiveNorm, *BATCH_NORMS, nn.LayerNorm, nn.GroupNorm)


def affine_names(net: nn.Module) -> list[str]:
    """Names of the scales and shifts of all norms, as in ``net.named_parameters()``."""
    return [
        f"{path}.{name}"
        for path, module in net.named_modules()
        if isinstance(module, AFFINE)
        for name in ("weight", "bias")
        if getattr(module, name) is not None
    ]
