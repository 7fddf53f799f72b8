"""The norm with its sum and ReLU: contract against autograd on the formula, compiled path against the contract."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from driftway.models.kernels.joined_norm import Path, Statistics, joined_norm, joined_norm_back
from torch import Tensor

SHAPES = [(1, 20, 8, 8), (2, 7, 5, 3), (16, 16, 4, 4), (3, 1, 6, 6), (5, 33), (1, 512, 2, 2), (130, 3, 9, 9)]
PATHS: list[Path] = ["torch", "formula"]
KEEPS = [0.0, 16 / 17, 1.0]


def drawn(shape: tuple[int, ...], keep: float, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Inputs whose sums with the shortcut lie away from 0, so that no ReLU turns on rounding."""
    g = torch.Generator().manual_seed(sum(shape))
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=g, dtype=dtype)

    c = shape[1]
    return {
        "h": (3 + 2 * normal(*shape)).contiguous(memory_format=layout),
        "gamma": 1 + 0.1 * normal(c),
        "beta": normal(c),
        "statistics": Statistics(normal(c), 1 + normal(c).square(), keep, 1e-5),
        "join": (8 * normal(*shape).sign() * (1 + normal(*shape).abs())).contiguous(memory_format=layout),
        "dy": normal(*shape).contiguous(memory_format=layout),
    }


def formula(d: dict[str, Any], join: bool, relu: bool) -> Tensor:
    """The op by its formula, differentiable; statistics are constants where any of the stored ones is kept."""
    h, s = d["h"], d["statistics"]
    over = [0, *range(2, h.dim())]
    one = (1, -1, *(1,) * (h.dim() - 2))
    seen = h if s.keep == 0 else h.detach()
    mean = s.keep * s.mean + (1 - s.keep) * seen.mean(over)
    var = s.keep * s.var + (1 - s.keep) * seen.var(over, correction=0)
    y = (h - mean.view(one)) / (var.view(one) + s.eps).sqrt() * d["gamma"].view(one) + d["beta"].view(one)
    y = y + d["join"] if join else y
    return torch.relu(y) if relu else y


def ours(d: dict[str, Any], join: bool, relu: bool, path: Path) -> list[Tensor]:
    s = d["statistics"]
    y, saved = joined_norm(d["h"], d["gamma"], d["beta"], s, d["join"] if join else None, relu=relu, path=path)
    slopes = joined_norm_back(d["dy"], saved, d["gamma"], s.keep, path=path)
    assert slopes.h is not None
    return [y, slopes.h, slopes.gamma, slopes.beta, *([slopes.join] if join else [])]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("join", [False, True])
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_contract_is_the_formula(shape: tuple[int, ...], keep: float, join: bool, relu: bool) -> None:
    d = drawn(shape, keep, torch.float64)
    leaves = [d[n].requires_grad_(True) for n in ("h", "gamma", "beta", *(["join"] if join else []))]
    y = formula(d, join, relu)
    wanted = [y, *torch.autograd.grad(y, leaves, d["dy"])]
    with torch.no_grad():
        for path in PATHS:
            for a, b in zip(ours(d, join, relu, path), wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        for known in (True, False):  # for a graph, the weight may be a number or come out of one
            weight = keep if known else torch.tensor(keep, dtype=torch.float64)
            through = torch.tensor(float(keep == 0), dtype=torch.float64)
            of_rows = {**d, "statistics": replace(d["statistics"], keep=weight, through=through)}
            for a, b in zip(ours(of_rows, join, relu, "graph"), wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("parts", ["of both", "of each channel"])
def test_a_graph_takes_any_share_of_the_gradient_through_the_statistics(keep: float, parts: str) -> None:
    d = drawn((3, 4, 5, 2), keep, torch.float64)
    share = torch.rand((2, 4), dtype=torch.float64) if "each" in parts else torch.tensor(0.4, dtype=torch.float64)
    h, s, (to_mean, to_var) = d["h"].requires_grad_(True), d["statistics"], share.expand(2, 4)
    mean, var = h.mean((0, 2, 3)), h.var((0, 2, 3), correction=0)
    mean = keep * s.mean + (1 - keep) * mean.detach() + to_mean * (mean - mean.detach())
    var = keep * s.var + (1 - keep) * var.detach() + to_var * (var - var.detach())
    one = (1, -1, 1, 1)
    y = (h - mean.view(one)) / (var.view(one) + s.eps).sqrt() * d["gamma"].view(one) + d["beta"].view(one)
    wanted = [y, *torch.autograd.grad(y, h, d["dy"])]
    with torch.no_grad():
        found = ours({**d, "statistics": replace(s, through=share)}, False, False, "graph")
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_the_compiled_path_is_the_contract(shape: tuple[int, ...], keep: float, relu: bool) -> None:
    d = drawn(shape, keep)
    for a, b in zip(ours(d, True, relu, "compiled"), ours(d, True, relu, "torch"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * max(1.0, float(b.abs().max())))
    without = ours(d, False, False, "compiled")
    for a, b in zip(without, ours(d, False, False, "torch"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * max(1.0, float(b.abs().max())))


@torch.no_grad()
def test_far_means_do_not_spoil_the_variance() -> None:
    d = drawn((16, 8, 16, 16), 0.0)
    d["h"] = d["h"] + 1000 * torch.arange(8.0)[None, :, None, None]
    exact = {k: v.double() if isinstance(v, Tensor) else v for k, v in d.items()}
    exact["statistics"] = Statistics(d["statistics"].mean.double(), d["statistics"].var.double(), 0.0, 1e-5)
    torch.testing.assert_close(
        ours(d, False, False, "compiled")[0].double(), ours(exact, False, False, "torch")[0], rtol=0, atol=2e-3
    )


@pytest.mark.parametrize("path", [*PATHS, "compiled"])
@torch.no_grad()
def test_what_is_not_a_number_is_not_hidden(path: Any) -> None:
    d = drawn((2, 4, 3, 3), 1.0)
    d["h"][0, 1, 0, 0] = float("nan")
    d["h"][1, 2, 0, 0] = float("inf")
    y, dh, dgamma, *_ = ours(d, False, True, path)
    assert bool(y[0, 1, 0, 0].isnan())
    assert bool(y[1, 2, 0, 0].isinf())
    assert not bool(dgamma[1].isfinite())
    assert bool(dh[:, 0].isfinite().all())


@torch.no_grad()
def test_the_gradient_goes_no_further_than_asked_and_layouts_do_not_matter() -> None:
    d = drawn((2, 6, 4, 4), 0.0)
    _, saved = joined_norm(d["h"], d["gamma"], d["beta"], d["statistics"], relu=True, path="compiled")
    slopes = joined_norm_back(d["dy"], saved, d["gamma"], 0.0, onward=False, path="compiled")
    assert slopes.h is None
    other = joined_norm_back(d["dy"].contiguous(), saved, d["gamma"], 0.0, path="compiled")
    torch.testing.assert_close(slopes.gamma, other.gamma, rtol=0, atol=0)
    images = d["h"].contiguous()
    y, _ = joined_norm(images, d["gamma"], d["beta"], d["statistics"])
    assert y.is_contiguous()
    torch.testing.assert_close(y, formula({**d, "h": images}, False, False), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_compiled_path_refuses_what_it_cannot_address() -> None:
    d = drawn((2, 6, 4, 4), 0.0)
    with pytest.raises(TypeError, match="single precision"):
        joined_norm(d["h"].double(), d["gamma"], d["beta"], d["statistics"], path="compiled")
    with pytest.raises(TypeError, match="each channel"):
        joined_norm(d["h"], d["gamma"][:5], d["beta"], d["statistics"], path="compiled")
