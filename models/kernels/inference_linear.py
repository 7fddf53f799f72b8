"""A linear layer that, where no gradient is asked for, multiplies by whichever of PyTorch's two libraries is faster.

On x86 PyTorch hands matrix products to MKL, which runs at about half speed on processors that are not Intel's; oneDNN,
which does PyTorch's convolutions, runs at full speed on both. Measured on an AMD EPYC with AVX-512, one thread and
float32: 1.5 to 3.6 times faster from 100 rows on (400x400, 784x400, 1024x4096), slower below some million
multiply-adds, where the call costs more than the product. Which one is taken depends on the processor and the shapes
alone, never on the clock, so the same machine gives the same bits. Training keeps to PyTorch's own path.

The contract is ``torch.nn.functional.linear``; sums run in another order, so last bits differ (1e-6 of the largest).
"""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ENOUGH = 1_500_000
"""Multiply-adds from which on the call pays."""


class Linear(nn.Linear):
    """``nn.Linear``, faster in evaluation on some processors: x float[..., d_in] to float[..., d_out]."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


PLAIN = (nn.Linear, Linear)
"""The types that are a linear layer and nothing more."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias, by oneDNN where no gradient is asked for and it pays."""
    if torch.is_grad_enabled() or not worthwhile(x, weight):
        return F.linear(x, weight, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def worthwhile(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is to do this product."""
    return (
        x.numel() * len(weight) >= ENOUGH
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and weight.is_contiguous()
        and onednn_is_better()
    )


@lru_cache(maxsize=1)
def onednn_is_better() -> bool:
    """Whether this processor is one that MKL serves badly, and the operation is there and right (asked once)."""
    operation: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if operation is None or not torch.backends.mkldnn.is_available() or not torch.backends.mkl.is_available():
        return False
    if maker() in ("GenuineIntel", ""):
        return False
    x, weight, bias = torch.ones(3, 4), torch.arange(8.0).reshape(2, 4), torch.ones(2)
    try:
        found = operation(x, weight, bias, "none", [], "")
    except RuntimeError:
        return False
    return torch.allclose(found, F.linear(x, weight, bias))


def maker() -> str:
    """Who made the processor, as it says itself; empty where it does not tell or is no x86."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor().rpartition(" ")[2]
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
