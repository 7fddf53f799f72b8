"""Batch norm with chosen statistics, against PyTorch's and against the definition of the mixture."""

from __future__ import annotations

import copy

import torch
from driftway.models.adaptive_norm import AdaptiveNorm
from torch import nn


def test_statistics_by_definition() -> None:
    norm = nn.BatchNorm2d(3)
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(20, 3, 4, 4, generator=draw) * 2 + 1
    with torch.no_grad():
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert value is not None
            value.copy_(torch.rand(3, generator=draw) + 0.5)
    own = copy.deepcopy(norm).train()
    assert torch.equal(AdaptiveNorm(norm, "source")(x), norm.eval()(x))
    torch.testing.assert_close(AdaptiveNorm(norm, "batch")(x), own(x))
    assert torch.equal(AdaptiveNorm(norm, "auto")(x[:16]), AdaptiveNorm(norm, "batch")(x[:16]))
    assert torch.equal(AdaptiveNorm(norm, "auto")(x[:15]), AdaptiveNorm(norm, "mixed")(x[:15]))
    few = x[:4]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean = (16 * norm.running_mean + 4 * few.mean((0, 2, 3))) / 20
    var = (16 * norm.running_var + 4 * few.var((0, 2, 3), correction=0)) / 20
    mean, var, weight, bias = (t.detach().reshape(1, 3, 1, 1) for t in (mean, var, norm.weight, norm.bias))
    torch.testing.assert_close(AdaptiveNorm(norm)(few).detach(), (few - mean) / (var + 1e-5).sqrt() * weight + bias)
    flat = torch.ones(1, 3, 1, 1)
    assert torch.equal(AdaptiveNorm(norm, "batch")(flat), AdaptiveNorm(norm, "mixed")(flat))
