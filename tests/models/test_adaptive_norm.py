"""Batch norm with chosen statistics, against PyTorch's and against the definition of the mixture."""

from __future__ import annotations

import copy
import math

import torch
from driftway.models.adaptive_norm import (
    AdaptiveNorm,
    adaptive_norms,
    adopt,
    followed,
    following,
    in_views,
    proposals,
    start_anew,
)
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


def test_running_statistics_by_hand() -> None:
    net = nn.Sequential(nn.BatchNorm1d(1)).eval()  # of the source: mean 0, variance 1
    adaptive_norms(net, "running", follow=0.25)
    x = torch.tensor([[1.0], [5.0]], requires_grad=True)
    still = net(x)
    torch.testing.assert_close(still, x / math.sqrt(1 + 1e-5))
    assert proposals(net) == {}
    with following(net):
        y = net(x)
    # the batch has mean 3 and variance 4: moved to 0.75 and 1.75
    torch.testing.assert_close(y, (x - 0.75) / math.sqrt(1.75 + 1e-5))
    (slope,) = torch.autograd.grad(y[0, 0], x)
    # d/dx_0 (x_0 - m) / s with dm/dx_i = .25 / 2, dv/dx_i = .25 (x_i - 3) = -.5 and .5
    s = math.sqrt(1.75 + 1e-5)
    expected = [(1 - 0.125) / s - 0.125 * -0.5 / s**3, -0.125 / s - 0.125 * 0.5 / s**3]
    torch.testing.assert_close(slope[:, 0], torch.tensor(expected))
    assert followed(net)["0.followed_mean"].item() == 0
    adopt(followed(net), proposals(net))
    assert [t.item() for t in followed(net).values()] == [0.75, 1.75]
    with following(net):
        net(torch.tensor([[2.75]]))  # one value: the variance stays
    adopt(followed(net), proposals(net))
    assert [t.item() for t in followed(net).values()] == [1.25, 1.75]
    with following(net):
        net(torch.tensor([[1e9], [-1e9], [3e9]]))  # counts as 10 deviations and 100 variances
    adopt(followed(net), proposals(net))
    mean, var = followed(net).values()
    torch.testing.assert_close(mean, torch.tensor([0.75 * 1.25 + 2.5]), rtol=1e-4, atol=0)
    torch.testing.assert_close(var, torch.tensor([0.75 * 1.75 + 25]), rtol=1e-4, atol=0)
    with following(net):
        net(torch.tensor([[math.nan], [0.0]]))
    adopt(followed(net), proposals(net))
    assert torch.equal(followed(net)["0.followed_var"], var)
    assert [net.state_dict()[f"0.running_{k}"].item() for k in ("mean", "var")] == [0, 1]
    start_anew(net)
    assert [t.item() for t in followed(net).values()] == [0, 1]


def test_views_have_statistics_of_their_own() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).eval()
    adaptive_norms(net)
    draw = torch.Generator().manual_seed(0)
    for rows in (16, 3):  # of the batch, and mixed
        x = torch.randn(4, rows, 2, 5, 5, generator=draw) * torch.arange(1, 5).view(4, 1, 1, 1, 1)
        with torch.no_grad():
            alone = torch.stack([net(view) for view in x])
            with in_views(net, 4):
                together = net(x.flatten(0, 1)).unflatten(0, (4, rows))
            torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
            assert not torch.allclose(net(x.flatten(0, 1)).unflatten(0, (4, rows)), alone, atol=1e-2)
