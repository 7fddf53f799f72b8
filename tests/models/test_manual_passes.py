"""Passes by units: gradients are those of autograd, for every network, statistic, size and way to compute."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from driftway.models import convolutions
from driftway.models.adaptive_norm import AdaptiveNorm, adaptive_norms, affine_names, in_views
from driftway.models.compiled_passes import CapturedPasses, CompiledPasses, trace
from driftway.models.fastest_passes import WAYS
from driftway.models.manual_passes import How, ManualPasses, Plan
from driftway.models.networks import build, grow_head
from driftway.models.passes import AutogradPasses, Passes
from torch import Tensor, nn

NETS: dict[str, tuple[int, ...]] = {"convnet:4-6": (1, 9, 7), "resnet18:4": (3, 16, 16), "mlp-norm:6-5": (7,)}
if find_spec("torchvision") is not None:
    NETS["torchvision:resnet18"] = (3, 19, 23)
STATISTICS = ["auto", "source", "batch", "mixed"]
MANUAL = How()
LAST = ("body.blocks.6.", "body.blocks.7.", "body.layer4.")


def ready(name: str, statistics: str = "auto", dtype: torch.dtype = torch.float64) -> nn.Module:
    net = build(name, NETS[name], 5).eval().to(dtype)
    g = torch.Generator().manual_seed(3)
    for norm in adaptive_norms(net, statistics):
        for tensor, low, high in (
            (norm.running_mean, -0.3, 0.3),
            (norm.running_var, 0.5, 2.0),
            (norm.weight, 0.5, 1.5),
        ):
            tensor.data.uniform_(low, high, generator=g)
        norm.bias.data.uniform_(-0.5, 0.5, generator=g)
    return net.requires_grad_(False)


def manual(net: nn.Module, names: list[str], how: How = MANUAL) -> ManualPasses:
    plan = Plan.of(net, names)
    assert plan is not None
    return ManualPasses(net, plan, how)


def rows(name: str, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, *NETS[name], generator=torch.Generator().manual_seed(n), dtype=dtype)


def same(mine: Passes, other: Passes, x: Tensor, tolerance: float, weights: dict[str, Tensor] | None = None) -> None:
    """Logits and gradients, each to a share of its largest entry."""
    a, b = mine(x, weights), other(x, weights)
    assert not a.z.requires_grad
    slope = torch.randn(a.z.shape, generator=torch.Generator().manual_seed(1), dtype=a.z.dtype)
    found, wanted = a.pull(slope), b.pull(slope)
    assert set(found) == set(wanted)
    joint = max(float(t.abs().max()) for t in wanted.values())
    torch.testing.assert_close(a.z, b.z, rtol=0, atol=tolerance * float(b.z.abs().max()))
    for name, gradient in found.items():
        torch.testing.assert_close(
            gradient, wanted[name], rtol=0, atol=tolerance * joint, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("n", [1, 2, 7, 16])
@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("name", NETS)
def test_gradients_are_those_of_autograd(name: str, statistics: str, n: int) -> None:
    net = ready(name, statistics)
    names = affine_names(net)
    same(manual(net, names), AutogradPasses(net, names), rows(name, n), 1e-9)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("statistics", ["source", "mixed"])
@pytest.mark.parametrize("name", NETS)
def test_every_way_is_autograd_in_single_precision(name: str, statistics: str, way: str) -> None:
    net = ready(name, statistics, torch.float32)
    names = affine_names(net)
    for n in (1, 7):
        x = rows(name, n, torch.float32)
        same(manual(net, names, WAYS[way]), AutogradPasses(net, names), x, 1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_batch_statistics_in_single_precision_are_no_farther_from_double_than_autograd(way: str) -> None:
    net = ready("resnet18:4", "batch", torch.float32)
    names = affine_names(net)
    x = rows("resnet18:4", 16)
    exact = AutogradPasses(copy.deepcopy(net).double(), names)(x)
    slope = torch.randn(exact.z.shape, generator=torch.Generator().manual_seed(1))
    wanted = exact.pull(slope.double())

    def off(passes: Passes) -> float:
        seen = passes(x.float())
        found = seen.pull(slope)
        return float(sum((found[n].double() - w).square().sum() for n, w in wanted.items()).sqrt())  # type: ignore[union-attr]

    length = float(sum(w.square().sum() for w in wanted.values()).sqrt())  # type: ignore[union-attr]
    assert off(manual(net, names, WAYS[way])) <= 3 * off(AutogradPasses(net, names)) + 1e-6 * length


@pytest.mark.parametrize("name", [n for n in NETS if "resnet18" in n])
def test_only_what_moves_gets_a_gradient(name: str) -> None:
    net = ready(name, "batch")
    every = affine_names(net)
    early = [n for n in every if not n.startswith(LAST)]
    late = [n for n in every if n.startswith(LAST)]
    assert early
    assert late
    for names in (early, late, every[-1:], every[:1], every[4:5]):
        same(manual(net, names), AutogradPasses(net, names), rows(name, 4), 1e-9)


def test_nothing_is_kept_or_computed_below_the_first_norm_that_moves() -> None:
    net = ready("resnet18:4")
    late = [n for n in affine_names(net) if n.startswith(LAST)]
    passes = manual(net, late)
    asked: list[str] = []
    plain = passes.convolutions

    class Watched:
        def forward(self, unit: Any, x: Tensor) -> Tensor:
            return plain.forward(unit, x)

        def back(self, unit: Any, dy: Tensor, x: Tensor) -> Tensor:
            asked.append(unit.weight)
            return plain.back(unit, dy, x)

    passes.convolutions = Watched()
    passes(rows("resnet18:4", 2)).pull(torch.ones(2, 5, dtype=torch.float64))
    assert asked == ["body.blocks.7.conv2.weight", "body.blocks.7.conv1.weight", "body.blocks.6.conv2.weight"]


@pytest.mark.parametrize("how", [MANUAL, WAYS["packed-fused"]], ids=["manual", "packed-fused"])
def test_other_weights_are_used_where_they_are_given(how: How) -> None:
    dtype = torch.float64 if how.norms == "torch" else torch.float32
    net = ready("convnet:4-6", "mixed", dtype)
    names = affine_names(net)
    before = {n: w.clone() for n, w in net.state_dict().items()}
    shifted = {n: net.get_parameter(n).detach() + 0.1 for n in names}
    mine, x = manual(net, names, how), rows("convnet:4-6", 3, dtype)
    same(mine, AutogradPasses(net, names), x, 1e-5, shifted)
    assert not torch.equal(mine(x).z, mine(x, shifted).z)
    assert all(torch.equal(w, before[n]) for n, w in net.state_dict().items())


@pytest.mark.parametrize("way", WAYS)
def test_changed_weights_are_noticed(way: str) -> None:
    net = ready("resnet18:4", "mixed", torch.float32)
    names = affine_names(net)
    mine, x = manual(net, names, WAYS[way]), rows("resnet18:4", 2, torch.float32)
    mine(x)
    with torch.no_grad():
        for n, w in net.named_parameters():
            w.mul_(0.7 if n in names else 1.2)
    same(mine, AutogradPasses(net, names), x, 1e-5)
    grow_head(net, 8, seed=1)  # type: ignore[arg-type]
    same(mine, AutogradPasses(net, names), x, 1e-5)


def test_what_has_no_plan() -> None:
    net = ready("convnet:4-6")
    everything = [n for n, _ in net.named_parameters()]
    assert Plan.of(net, everything) is None
    assert Plan.of(net, []) is None
    assert Plan.of(build("convnet:4", (1, 8, 8), 3), ["body.1.weight"]) is None
    plan = Plan.of(net, affine_names(net))
    assert plan is not None
    assert plan.fits
    with in_views(net, 2):
        assert not plan.fits
    for norm in plan.norms.values():
        assert isinstance(norm, AdaptiveNorm)
        norm.statistics = "running"
    assert not plan.fits


def test_without_the_private_operations_packed_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    net = ready("resnet18:4", "mixed", torch.float32)
    names, x = affine_names(net), rows("resnet18:4", 2, torch.float32)
    monkeypatch.setattr(convolutions, "packing_works", lambda: False)
    passes = manual(net, names, WAYS["packed"])
    found = passes(x)
    plain = manual(net, names, WAYS["channels-last"])(x)
    assert torch.equal(found.z, plain.z)
    held: Any = passes.convolutions
    assert set(held._forward.values()) == {None}


def test_the_private_operations_are_asked_once_and_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    convolutions.packing_works.cache_clear()
    monkeypatch.setattr(convolutions, "torch", _Without(torch))
    try:
        assert not convolutions.packing_works()
    finally:
        monkeypatch.undo()
        convolutions.packing_works.cache_clear()


class _Without:
    """PyTorch without its private operations."""

    def __init__(self, whole: Any) -> None:
        self._whole = whole
        self.ops = type("ops", (), {"mkldnn": object()})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)


@pytest.mark.parametrize("kernel", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_packed_convolutions_of_odd_sizes(monkeypatch: pytest.MonkeyPatch, kernel: int, stride: int) -> None:
    if not convolutions.packing_works():
        pytest.skip("this PyTorch has no packed convolutions")
    monkeypatch.setattr(convolutions, "PACKING_PAYS", 0)
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 4, kernel, kernel, generator=g)
    plain = convolutions.PlainConvolutions({"w": weight})
    for padding in range((kernel + 1) // 2 + 1):
        packed = convolutions.PackedConvolutions({"w": weight})
        unit = convolutions.Conv(0, "w", None, (stride, stride), (padding, padding), (1, 1), 1)
        for size in ((9, 7), (8, 10)):
            x = torch.randn(3, 4, *size, generator=g).contiguous(memory_format=torch.channels_last)
            y = plain.forward(unit, x)
            torch.testing.assert_close(packed.forward(unit, x), y, rtol=0, atol=1e-4)
            dy = torch.randn(y.shape, generator=g).contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(packed.back(unit, dy, x), plain.back(unit, dy, x), rtol=0, atol=1e-4)
        assert all(p is not None for p in packed._forward.values())


def test_the_traced_step_depends_on_its_input_alone() -> None:
    """Statistics are taken from the rows that come, not from those that were there at the trace."""
    for statistics, n in (("mixed", 3), ("batch", 16)):
        net = ready("resnet18:4", statistics)
        names = affine_names(net)
        traced = trace(manual(net, names), rows("resnet18:4", n))
        x = torch.randn(n, *NETS["resnet18:4"], dtype=torch.float64, generator=torch.Generator().manual_seed(99))
        shifted = {k: net.get_parameter(k).detach() * 1.1 for k in names}
        wanted = AutogradPasses(net, names)(x, shifted)
        z, *kept = traced.ahead(x, *(shifted[k] for k in sorted(names)))
        slope = torch.ones_like(z)
        slope[:, 0] = -1
        gradients = dict(zip(traced.names, traced.back(slope, *kept), strict=True))
        torch.testing.assert_close(z, wanted.z, rtol=1e-9, atol=1e-9)
        for k, g in wanted.pull(slope).items():
            torch.testing.assert_close(gradients[k], g, rtol=1e-8, atol=1e-8)


def test_compiled_passes_are_autograds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling itself is left to the benchmark: here the graphs run as they are traced."""
    monkeypatch.setattr("torch._inductor.compile", lambda graph, _, **__: graph)
    net = ready("convnet:4-6", "mixed", torch.float32)
    names = affine_names(net)
    plan = Plan.of(net, names)
    assert plan is not None
    passes, plain = CompiledPasses(net, plan, WAYS["packed"]), AutogradPasses(net, names)
    for n in (2, 3, 2):
        same(passes, plain, rows("convnet:4-6", n, torch.float32), 1e-5)
    assert list(passes.warm_up) == ["2x1x9x7", "3x1x9x7"]
    with torch.no_grad():
        for n, w in net.named_parameters():
            w.mul_(0.7 if n in names else 1.2)
    same(passes, plain, rows("convnet:4-6", 3, torch.float32), 1e-5)
    shifted = {n: net.get_parameter(n).detach() + 0.1 for n in names}
    same(passes, plain, rows("convnet:4-6", 3, torch.float32), 1e-5, shifted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_captured_passes_are_autograds() -> None:
    net = ready("resnet18:4", "mixed", torch.float32).cuda()
    names = affine_names(net)
    plan = Plan.of(net, names)
    assert plan is not None
    passes, plain = CapturedPasses(net, plan, WAYS["channels-last"]), AutogradPasses(net, names)
    shifted = {n: net.get_parameter(n).detach() + 0.1 for n in names}
    for n in (2, 3, 2):
        x = rows("resnet18:4", n, torch.float32).cuda()
        same(passes, plain, x, 1e-3)
        same(passes, plain, x, 1e-3, shifted)
