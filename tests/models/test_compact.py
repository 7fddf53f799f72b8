"""Networks without the rows that masks drop, against the dense network with these rows at zero."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from driftway.models.compact import Rows, links_of
from driftway.models.forms import lay_channels_last, layer_of
from driftway.models.masks import Mask, masks_for, prunable
from driftway.models.networks import Network, build
from driftway.models.norms import replace_norms
from torch import Tensor

NETS = {
    "mlp:64-48": (20, 20),
    "convnet:16-24-40": (3, 8, 8),
    "resnet18:8": (3, 8, 8),
}


def made(
    name: str, norm: str = "batch", *, share: float = 1.0, channels_last: bool = True
) -> tuple[Network, Network, Rows]:
    """A network, a dense copy of it, and the form that is going to make the first one smaller."""
    net = build(name, NETS[name], 5, norm=norm, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # norms that do something
        for module in net.modules():
            if hasattr(module, "running_var"):
                for key in ("weight", "bias", "running_mean", "running_var"):
                    getattr(module, key).add_(torch.rand(len(module.weight), generator=generator))
    twin = copy.deepcopy(net)
    masks = masks_for(prunable(net), "row", 0.6)
    assert masks
    if channels_last:
        lay_channels_last(net)
    return net, twin, Rows(net, masks, share, np.random.default_rng(0), channels_last=channels_last)


def shrink(form: Rows, seed: int = 3) -> None:
    """Keep random rows."""
    generator = torch.Generator().manual_seed(seed)
    for mask in form.masks.values():
        mask.keep_best(torch.rand(mask.granules.n, generator=generator), 0.6)
    form.settle({name: mask.active for name, mask in form.masks.items()}, {})


def silence(twin: Network, form: Rows) -> None:
    """Set to zero, in the dense network, all that belongs to rows that are not there."""
    with torch.no_grad():
        for link in form.links:
            gone = torch.ones(len(twin.get_parameter(f"{link.layer}.weight")), dtype=torch.bool)
            gone[form.at[link.layer]] = False
            for name in (link.layer, link.norm):
                module: Any = twin.get_submodule(name) if name else None
                for key in ("weight", "bias", "running_mean"):
                    if getattr(module, key, None) is not None:
                        getattr(module, key)[gone] = 0.0


def inputs(name: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(24, *NETS[name], generator=generator), torch.randn(24, 5, generator=generator)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_outputs_and_gradients_are_those_of_the_masked_dense_network(
    name: str, norm: str, training: bool, share: float
) -> None:
    net, twin, form = made(name, norm, share=share)
    shrink(form)
    silence(twin, form)
    if share < 1:
        for mask in form.masks.values():
            mask.moving = mask.active & (torch.arange(mask.granules.n) % 2 == 0)
        form.moved()
    x, aim = inputs(name)
    net.train(training)
    twin.train(training)
    y, dense = net(x), twin(x)
    torch.testing.assert_close(y, dense, rtol=1e-4, atol=1e-4)
    mine, its = dict(net.named_parameters()), dict(twin.named_parameters())
    assert list(mine) == list(its)
    assert sum(p.numel() for p in mine.values()) < sum(p.numel() for p in its.values())
    small, whole = (
        dict(zip(p, torch.autograd.grad((out * aim).sum(), list(p.values())), strict=True))
        for p, out in ((mine, y), (its, dense))
    )
    for link in form.links:
        gradient = whole[f"{link.layer}.weight"][form.at[link.layer]]
        gradient = gradient[:, form.at[link.reads]] if link.reads else gradient
        found, mask = small[f"{link.layer}.weight"], form.masks.get(f"{link.layer}.weight")
        if share < 1 and mask is not None:
            still = ~mask.moving[form.at[link.layer]]
            assert not found[still].any()
            gradient[still] = 0.0
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-4)
        if link.norm and norm == "batch":
            for key in ("weight", "bias"):
                expected = whole[f"{link.norm}.{key}"][form.at[link.layer]]
                torch.testing.assert_close(small[f"{link.norm}.{key}"], expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(small["head.weight"], whole["head.weight"], rtol=1e-3, atol=1e-4)


def exchange(form: Rows, slots: dict[str, dict[str, Tensor]], drop: int = 2) -> dict[str, Tensor]:
    """Drop some rows and draw as many; returns which are new."""
    rng, stay, new = np.random.default_rng(8), {}, {}
    for name, mask in form.masks.items():
        before = mask.active
        mask.keep_best(torch.arange(mask.granules.n, dtype=torch.float32), 1 - (int(before.sum()) - drop) / len(before))
        new[name] = mask.grow(1 - int(before.sum()) / len(before), rng)
        stay[name] = mask.active & ~new[name]
    assert form.settle(stay, slots)
    return new


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_new_rows_change_no_output_and_can_learn(name: str, norm: str) -> None:
    net, _, form = made(name, norm)
    shrink(form)
    x, aim = inputs(name)
    only_drop = copy.deepcopy(form)
    before = {n: m.active.clone() for n, m in form.masks.items()}
    new = exchange(form, {})
    smaller = {n: before[n] & form.masks[n].active & ~new[n] for n in new}
    for name_, mask in only_drop.masks.items():
        mask.active = smaller[name_]
    only_drop.settle(smaller, {})
    for training in (False, True):
        for module in (net, only_drop.net):
            module.train(training)
        torch.testing.assert_close(net(x), only_drop.net(x), rtol=1e-4, atol=1e-5)
    reached = {n: torch.zeros(m.granules.n, dtype=torch.bool) for n, m in form.masks.items()}
    for _ in range(3):
        weights = dict(net.named_parameters())
        grads = torch.autograd.grad((net(x) * aim).sum(), list(weights.values()))
        with torch.no_grad():
            for (n, w), g in zip(weights.items(), grads, strict=True):
                w -= 0.01 * g
                if n in reached:
                    reached[n][form.at[layer_of(n)]] |= g.flatten(1).any(1)
    learning = torch.cat([rows[new[n]] for n, rows in reached.items()])
    assert learning.float().mean() > 0.5, "without a norm some units are silent from the start; most are not"


def test_moments_follow_their_rows() -> None:
    net, _, form = made("resnet18:8")
    shrink(form)
    named = dict(net.named_parameters())
    slots = {n: {"m": torch.full_like(p, 1.0), "t": torch.arange(len(p)).float()} for n, p in named.items()}
    slots["head.weight"]["t"] = torch.tensor(3.0)
    kept = {link.layer: form.at[link.layer].clone() for link in form.links}
    new = exchange(form, slots)
    for link in form.links:
        weight = f"{link.layer}.weight"
        rows, fresh = form.at[link.layer], new.get(weight)
        moment = slots[weight]["m"]
        assert moment.shape == net.get_parameter(weight).shape
        old_row = torch.isin(rows, kept[link.layer]) if fresh is None else ~fresh[rows]
        old_col = torch.ones(moment.shape[1], dtype=torch.bool)
        came = new.get(f"{link.reads}.weight")
        if link.reads and came is not None:
            old_col = ~came[form.at[link.reads]]
        expected = torch.outer(old_row, old_col).float()
        torch.testing.assert_close(moment.flatten(2).amax(2), expected)
        torch.testing.assert_close(slots[f"{link.norm}.weight"]["m"], old_row.float())
        place = {int(r): i for i, r in enumerate(kept[link.layer])}
        times = [float(place[int(r)]) if old else 0.0 for r, old in zip(rows, old_row, strict=True)]
        assert slots[weight]["t"].tolist() == times
    assert float(slots["head.weight"]["t"]) == 3.0


def test_with_all_rows_it_is_the_dense_network_bit_for_bit() -> None:
    for name in NETS:
        net, twin, _ = made(name, channels_last=False)
        x, _ = inputs(name)
        assert torch.equal(net(x), twin(x))


def test_balanced_norms_are_cut_like_any() -> None:
    net = build("resnet18:8", (3, 8, 8), 5, seed=1)
    replace_norms(net)
    masks: dict[str, Mask] = masks_for(prunable(net), "row", 0.6)
    form = Rows(net, masks, 1.0, np.random.default_rng(0))
    shrink(form)
    x, aim = inputs("resnet18:8")
    (net.train()(x) * aim).sum().backward()
    norm: Any = net.get_submodule("body.blocks.6.norm1")
    assert len(norm.running_mean) == len(norm.weight) == norm.channels == len(form.at["body.blocks.6.conv1"])


def test_networks_that_cannot_be_cut() -> None:
    from driftway.models.networks import Network
    from torch import nn

    with pytest.raises(ValueError, match="mlp, convnet and resnet18 only"):
        links_of(nn.Sequential(nn.Linear(3, 4)))
    for norm in ("group", "continual"):
        net = build("resnet18:8", (3, 8, 8), 5, norm=norm)
        assert isinstance(net, Network)
        with pytest.raises(ValueError, match="normalised each by itself"):
            Rows(net, masks_for(prunable(net), "row", 0.5), 1.0, np.random.default_rng(0))
