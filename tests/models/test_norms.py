"""Norm layers: the note's tables and hand examples, batch norm as the limit, what moves statistics and what not."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from driftway.models.flops import norm_flops
from driftway.models.networks import build
from driftway.models.norms import (
    BATCH_NORMS,
    AdaB2N,
    ada_loss,
    balanced_layers,
    frozen_stats,
    group_count,
    grouped,
    grow_groups,
    make_norm,
    replace_norms,
    set_groups,
)
from torch import Tensor, nn

THREE = [torch.tensor(values).reshape(2, 1, 1, 1) for values in ([0.0, 2.0], [4.0, 8.0], [10.0, 10.0])]
"""Batches with means 1, 6, 10 and biased variances 1, 4, 0."""

RATES = {
    0.0: (1, 0.5, 0.333333, 0.25, 0.125, 0.0),
    0.1: (0.794328, 0.445289, 0.310348, 0.238753, 0.125737, 0.010481),
    0.4: (0.398107, 0.293408, 0.234325, 0.196407, 0.124058, 0.041268),
    0.5: (0.316228, 0.25, 0.208562, 0.180223, 0.121997, 0.051317),
    0.7: (0.199526, 0.176818, 0.159912, 0.146868, 0.115439, 0.071098),
    1.0: (0.1, 0.1, 0.1, 0.1, 0.1, 0.1),
}
"""kappa -> eta of updates 1, 2, 3, 4, 8 and in the long run."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def loss_of(net: nn.Module) -> Tensor:
    loss = ada_loss(net)
    assert loss is not None
    return loss


@pytest.mark.parametrize("kappa", RATES)
def test_rates(kappa: float) -> None:
    """The note's table, falling all the way to 1 - (1 - eta)^kappa."""
    layer, found = AdaB2N(1, kappa=kappa), []
    for _ in range(2000):
        layer(THREE[0])
        found.append(float(layer.rate))
    assert [found[m - 1] for m in (1, 2, 3, 4, 8)] == pytest.approx(RATES[kappa][:5], abs=1e-6)
    assert all(0 < b <= a * (1 + 1e-12) for a, b in pairwise(found))
    limit = 1 - 0.9**kappa
    assert limit == pytest.approx(RATES[kappa][5], abs=1e-6)
    assert found[-1] == pytest.approx(limit, abs=1 / 1999 if kappa == 0 else 1e-9)


@pytest.mark.parametrize(
    ("kappa", "means", "variances", "losses"),
    [
        (0.0, (1, 3.5, 5.666667), (1, 2.5, 1.666667), (0, 8.5, 21.555556)),
        (0.5, (0.316228, 1.737171, 3.460485), (1, 1.75, 1.385016), (0.467544, 23.234213, 44.683533)),
        (1.0, (0.1, 0.69, 1.621), (1, 1.3, 1.17), (0.81, 35.4861, 71.57653)),
    ],
)
def test_three_batches_by_hand(kappa: float, means: list[float], variances: list[float], losses: list[float]) -> None:
    layer = AdaB2N(1, kappa=kappa, clip=math.inf)
    for batch, mean, variance, loss in zip(THREE, means, variances, losses):
        layer(batch)
        assert float(layer.running_mean) == pytest.approx(mean, abs=2e-6)
        assert float(layer.running_var) == pytest.approx(variance, abs=2e-6)
        assert loss_of(layer).item() == pytest.approx(loss, rel=1e-5, abs=1e-6)


def test_weighted_batch_by_hand() -> None:
    """Counts (1, 3), so weights 2/9, 2/9, 2/9, 1/3: mean 4, variance 88/9; the loss's gradient by psi."""
    layer = AdaB2N(1, kappa=1.0, groups=2, clip=math.inf)
    with grouped(layer, [1, 1, 1, 0]):
        y = layer(torch.tensor([4.0, 6.0, 8.0, 0.0]).reshape(4, 1, 1, 1))
    assert y.flatten().tolist() == pytest.approx([0, 0.639602, 1.279204, -1.279204], abs=1e-5)
    assert (float(layer.running_mean), float(layer.running_var)) == pytest.approx((0.4, 1.877778))
    loss = loss_of(layer)
    assert loss.item() == pytest.approx(75.37001, rel=1e-6)
    grow_groups(layer, 3)  # a third group that nobody is in: its gradient is 0, and exp(psi) does not count
    layer.running_mean.zero_()
    layer.running_var.fill_(1)
    with grouped(layer, [1, 1, 1, 0]):
        layer(torch.tensor([4.0, 6.0, 8.0, 0.0]).reshape(4, 1, 1, 1))
    loss = loss_of(layer)
    (slope,) = torch.autograd.grad(loss, layer.psi)
    assert slope.tolist() == pytest.approx([11.5852, -5.7926, 0], abs=1e-3)


@pytest.mark.parametrize(("kappa", "mean"), [(1, 1.9948), (0.7, 1.9744), (0.4, 1.8668), (0.1, 1.3349), (0, 1.0)])
def test_what_a_stream_of_three_tasks_leaves(kappa: float, mean: float) -> None:
    """Three tasks of 50 batches with constant inputs 0, 1, 2: the smaller kappa, the longer the memory."""
    layer = AdaB2N(1, kappa=kappa)
    for task in range(3):
        for _ in range(50):
            layer(torch.full((4, 1, 2, 2), float(task)))
    assert float(layer.running_mean) == pytest.approx(mean, abs=5e-5)
    first = (layer.momentum**-kappa - 1) / float(layer.span) * 0.9 ** (kappa * 149)
    assert float(layer.running_var) == pytest.approx(first, abs=1e-6), "only the variance it began with is left"


@pytest.mark.parametrize("kappa", [0.0, 0.3, 0.7, 1.0])
def test_running_mean_is_the_explicit_sum(kappa: float) -> None:
    """Batch i of n has weight r^(n-i) / u_n, the initial value (u_1 - 1) r^(n-1) / u_n; they sum to 1."""
    n, r, layer = 12, 0.9**kappa, AdaB2N(1, kappa=kappa)
    layer.running_mean.fill_(7.0)
    means = [float(i * i) for i in range(n)]
    for mean in means:
        layer(torch.full((2, 1, 1, 1), mean))
    u = [0.1**-kappa]
    for _ in range(n - 1):
        u.append(1 + r * u[-1])
    weights = [r ** (n - 1 - i) / u[-1] for i in range(n)]
    initial = (u[0] - 1) * r ** (n - 1) / u[-1]
    assert sum(weights) + initial == pytest.approx(1)
    expected = 7 * initial + sum(w * m for w, m in zip(weights, means))
    assert float(layer.running_mean) == pytest.approx(expected, rel=1e-5)
    if kappa == 0:
        assert float(layer.running_mean) == pytest.approx(sum(means) / n, rel=1e-6)


@pytest.mark.parametrize("shape", [(10, 4, 3, 3), (10, 4), (6, 4, 5)], ids=str)
def test_batch_norm_is_the_limit(shape: tuple[int, ...]) -> None:
    """kappa 1, no groups: outputs, gradients and running mean are batch norm's; the running variance is biased."""
    layer, peer = AdaB2N(4, kappa=1.0), nn.BatchNorm2d(4) if len(shape) == 4 else nn.BatchNorm1d(4)
    n = shape[0] * math.prod(shape[2:])
    moved = torch.ones(4)
    for seed in range(5):
        ours, theirs = (noise(*shape, seed=seed).requires_grad_() for _ in range(2))
        y, z = layer(ours), peer(theirs)
        torch.testing.assert_close(y, z, atol=1e-6, rtol=1e-5)
        towards = noise(*shape, seed=seed + 100)
        for p in (*layer.parameters(), *peer.parameters()):
            p.grad = None
        y.backward(towards)
        z.backward(towards)
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(layer.weight.grad, peer.weight.grad, atol=1e-5, rtol=1e-5)  # type: ignore[union-attr]
        torch.testing.assert_close(layer.bias.grad, peer.bias.grad, atol=1e-5, rtol=1e-5)  # type: ignore[union-attr]
        biased = ours.detach().transpose(0, 1).flatten(1).var(1, correction=0)
        moved = 0.9 * moved + 0.1 * biased
    torch.testing.assert_close(layer.running_mean, peer.running_mean)
    torch.testing.assert_close(layer.running_var, moved)
    factor = (peer.running_var - 0.9**5) / (layer.running_var - 0.9**5)  # type: ignore[operator]
    torch.testing.assert_close(factor, torch.full((4,), n / (n - 1)), rtol=1e-4, atol=0)


def test_cumulative_average_is_batch_norms() -> None:
    layer, peer = AdaB2N(3, kappa=0.0), nn.BatchNorm2d(3, momentum=None)
    layer.running_mean.fill_(99.0)
    for seed in range(7):
        x = noise(5, 3, 2, 2, seed=seed)
        layer(x)
        peer(x)
    torch.testing.assert_close(layer.running_mean, peer.running_mean)


def test_one_group_is_plain() -> None:
    """Equal ids change nothing, whatever psi is."""
    one, none = AdaB2N(3, groups=4), AdaB2N(3)
    nn.init.normal_(one.psi)
    x = noise(6, 3, 4, 4)
    with grouped(one, [2] * 6):
        torch.testing.assert_close(one(x), none(x))


def test_loss_is_held_at_its_limit() -> None:
    """Value and gradient shrink by the same factor, so that far-off layers still move, slowly."""
    pulls = []
    for clip in (math.inf, 5.0):
        layer, x = AdaB2N(2, clip=clip), (9 + noise(4, 2, 3, 3)).requires_grad_()
        layer(x)
        loss = loss_of(layer)
        pulls.append((loss.item(), torch.autograd.grad(loss, x)[0]))
    assert pulls[0][0] > 5
    assert pulls[1][0] == pytest.approx(5)
    torch.testing.assert_close(pulls[1][1], pulls[0][1] * 5 / pulls[0][0])


def test_evaluation_moves_nothing_and_looks_at_single_rows() -> None:
    layer = AdaB2N(3, groups=2)
    layer(noise(8, 3, 4, 4))
    layer.eval()
    before = copy.deepcopy(layer.state_dict())
    x = noise(5, 3, 4, 4, seed=1)
    together = layer(x)
    assert layer.loss is None
    torch.testing.assert_close(together[2:3], layer(x[2:3]))
    assert all(torch.equal(tensor, layer.state_dict()[name]) for name, tensor in before.items())


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1), (0, 3, 2, 2)], ids=str)
@pytest.mark.parametrize("make", [AdaB2N, lambda channels: make_norm("batch", channels)], ids=["adab2n", "batch"])
def test_one_value_a_channel_is_no_statistic(make: Any, shape: tuple[int, ...]) -> None:
    """Normalised by the running statistics, which stay; so does the schedule."""
    layer = make(3)
    layer(noise(8, 3))
    before = copy.deepcopy(layer.state_dict())
    x = noise(*shape)
    y = layer(x)
    torch.testing.assert_close(y, layer.eval()(x))
    assert all(torch.equal(tensor, layer.state_dict()[name]) for name, tensor in before.items())


def test_state_continues_the_schedule() -> None:
    """Loaded elsewhere, more groups or not, it goes on bit for bit."""
    one = AdaB2N(3, groups=4)
    for seed in range(6):
        one(noise(4, 3, 2, 2, seed=seed))
    other = AdaB2N(3)
    other.load_state_dict(one.state_dict())
    for layer in (one, other):
        with grouped(layer, [0, 3, 1, 1]):
            layer(noise(4, 3, 2, 2, seed=7))
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert float(one.rate) < 0.13
    one.restart()
    one(noise(4, 3, 2, 2))
    assert float(one.rate) == pytest.approx(0.1**0.7)


def test_nothing_leads_into_running_statistics() -> None:
    layer = AdaB2N(3, groups=2)
    with grouped(layer, [0, 1, 1]):
        layer(noise(3, 3, 2, 2).requires_grad_())
    loss = loss_of(layer)
    loss.backward()
    assert layer.psi.grad is not None
    assert not any(buffer.requires_grad for buffer in layer.buffers())
    assert ada_loss(layer) is None, "a loss is taken once"


def test_groups_are_checked() -> None:
    layer = AdaB2N(3, groups=2)
    with pytest.raises(ValueError, match="grow_groups"):
        set_groups(layer, [0, 2])
    assert grow_groups(layer, 3)
    assert not grow_groups(layer, 2)
    set_groups(layer, [0, 2])
    with pytest.raises(ValueError, match="2 samples were set, 3 came"):
        layer(noise(3, 3))
    set_groups(layer, None)
    layer(noise(3, 3))
    with pytest.raises(ValueError, match="kappa"):
        AdaB2N(3, kappa=1.5)


def test_grown_psi_keeps_what_it_learnt() -> None:
    layer = AdaB2N(3, groups=2)
    nn.init.constant_(layer.psi, 0.5)
    grow_groups(layer, 4)
    assert layer.psi.tolist() == [0.5, 0.5, 0.0, 0.0]
    assert layer.psi.requires_grad


@pytest.mark.parametrize(("name", "norms"), [("convnet", 3), ("resnet18:8", 20), ("mlp-norm:9-7", 2)])
def test_norms_of_a_network_are_replaced(name: str, norms: int) -> None:
    """In evaluation mode nothing changes; in training mode every layer has a loss and its psi a gradient."""
    net = build(name, (3, 8, 8), 4)
    net.train()(noise(6, 3, 8, 8))
    x = noise(5, 3, 8, 8, seed=1)
    before = net.eval()(x)
    layers = replace_norms(net, kappa=0.4, groups=2)
    assert layers == balanced_layers(net)
    assert len(layers) == norms
    assert not any(isinstance(m, BATCH_NORMS) for m in net.modules())
    torch.testing.assert_close(net(x), before)
    net.train()
    with grouped(net, [0, 0, 0, 1, 1]):
        out = net(x)
    loss = loss_of(net)
    (out.square().mean() + 0.1 * loss).backward()
    assert all(layer.psi.grad is not None and bool(layer.psi.grad.abs().sum() > 0) for layer in layers)
    assert copy.deepcopy(net).eval()(x).shape == before.shape


@pytest.mark.parametrize("balanced", [False, True], ids=["batch norm", "adab2n"])
def test_frozen_stats(balanced: bool) -> None:
    """Scoring passes in training mode use the batch's statistics and leave no trace; afterwards all is as it was."""
    net = build("convnet", (1, 8, 8), 3)
    if balanced:
        replace_norms(net)
    net.train()
    x = noise(6, 1, 8, 8)
    net(x)
    ada_loss(net)
    before = copy.deepcopy(net.state_dict())
    with frozen_stats(net), frozen_stats(net):
        frozen = net(5 * x)
        net(torch.full_like(x, math.nan))
    assert ada_loss(net) is None
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before.items())
    torch.testing.assert_close(net(5 * x), frozen)
    assert not all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before.items())


def test_makers() -> None:
    assert (group_count(64), group_count(20), group_count(7), group_count(1)) == (32, 10, 1, 1)
    continual = make_norm("continual", 8)
    x = noise(4, 8, 3, 3) * 5 + 2
    expected = nn.BatchNorm2d(8)(nn.functional.group_norm(x, 4))
    torch.testing.assert_close(continual(x), expected)
    learnt = [len(list(make_norm(kind, 8).parameters())) for kind in ("batch", "group", "continual", "none")]
    assert learnt == [2, 2, 2, 0]
    with pytest.raises(ValueError, match="there are batch, group, continual, none"):
        make_norm("layer", 8)


def test_operations_of_the_notes_network() -> None:
    """ResNet-18, input 10x3x32x32: the four figures of the authors' notebook; the network is left as it was."""
    x = torch.zeros(10, 3, 32, 32)
    found = [norm_flops(build("resnet18", (3, 32, 32), 10, norm=kind), x) for kind in ("batch", "group", "continual")]
    assert found == [49_200_000, 49_177_600, 86_089_600]
    net = build("resnet18", (3, 32, 32), 10)
    replace_norms(net)
    net.train()
    before = copy.deepcopy(net.state_dict())
    assert norm_flops(net, x) == 49_315_200
    assert net.training
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before.items())
