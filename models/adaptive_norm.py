"""Batch norm whose statistics are chosen at every forward pass: those of the source, of the batch, or of both.

Nothing is ever stored: a pass is a function of its input, the affine parameters and the statistics of the source.
The mixture is that of Schneider et al., Improving robustness against common corruptions by covariate shift adaptation,
NeurIPS 2020. Ours: the rule ``auto``, and the biased variance of the batch inside the mixture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .norms import BATCH_NORMS

STATISTICS = ("auto", "source", "batch", "mixed")
ENOUGH = 16
"""Rows from which on a batch's own statistics are used by ``auto``."""


class AdaptiveNorm(nn.Module):
    """Normalises float[B, C, ...] per channel, then scales and shifts.

    statistics: ``source`` the stored ones; ``batch`` those of the rows at hand (biased variance); ``mixed``
    (prior source + B batch) / (prior + B), mean and variance alike; ``auto`` batch from 16 rows on, mixed below. Where
    a channel has one value only, ``batch`` is ``mixed`` as well. Gradients run through the statistics of ``batch``, and
    take those of ``mixed`` as given (as the published module does).

    >>> norm = AdaptiveNorm(nn.BatchNorm1d(2), "mixed", prior=1)
    >>> norm(torch.tensor([[3.0, 0.0]])).detach().round(decimals=3)  # mean 1.5 and 0, variance 0.5
    tensor([[2.1210, 0.0000]])
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: Any, statistics: str = "auto", prior: float = 16.0) -> None:
        super().__init__()
        if statistics not in STATISTICS or prior <= 0:
            raise ValueError(f"statistics are one of {', '.join(STATISTICS)}, and prior is above 0")
        self.statistics, self.prior, self.eps = statistics, prior, norm.eps
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("running_mean", norm.running_mean)
        self.register_buffer("running_var", norm.running_var)

    def forward(self, x: Tensor) -> Tensor:
        mode = self._mode(x)
        if mode == "source":
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        if mode == "batch":
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return self._mixed(x)

    def _mode(self, x: Tensor) -> str:
        if self.statistics == "auto":
            return "batch" if len(x) >= ENOUGH else "mixed"
        single = x.numel() <= len(self.running_mean)
        return "mixed" if self.statistics == "batch" and single else self.statistics

    def _mixed(self, x: Tensor) -> Tensor:
        over = [0, *range(2, x.dim())]
        n = len(x)
        with torch.no_grad():
            var, mean = torch.var_mean(x, over, correction=0)
            mean = (self.prior * self.running_mean + n * mean) / (self.prior + n)
            var = (self.prior * self.running_var + n * var) / (self.prior + n)
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)

    def extra_repr(self) -> str:
        return f"{len(self.running_mean)}, {self.statistics}, prior={self.prior}"


def adaptive_norms(net: nn.Module, statistics: str = "auto", prior: float = 16.0) -> list[AdaptiveNorm]:
    """Put an ``AdaptiveNorm`` in the place of every batch norm inside ``net``; returns them in order.

    Affine parameters and stored statistics are taken over, so the names in the network's state stay as they are.
    Norms without stored statistics always use the batch's and are left alone.
    """
    made: list[AdaptiveNorm] = []
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BATCH_NORMS) and child.running_mean is not None:
                made.append(AdaptiveNorm(child, statistics, prior))
                setattr(parent, name, made[-1])
    return made


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
