"""Balanced batch norm: every path against ordinary autograd, and the weights of groups by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from driftway.adapt.benchmarks import adab2n, floors
from driftway.models.kernels.balanced_batch_norm import (
    Groups,
    Running,
    balanced_batch_norm,
    equal_weights,
    sample_weights,
)
from torch import Tensor

PATHS = ("torch", "compiled")
SHAPES = [(7, 3, 5, 4), (6, 5), (1, 2, 4, 4), (6, 2, 9), (9, 17, 1, 1), (4, 33, 3, 3), (4, 1, 3, 3), (5, 4, 2, 2, 3)]
SEEN = 5


def some_groups(n: int) -> Groups:
    """Samples in groups 0, 2 and 4 of five; one sample alone in group 0."""
    return Groups.of(torch.randint(0, 3, (n,), generator=torch.Generator().manual_seed(n)) * 2 * (n > 1), SEEN)


def outcome(
    path: str,
    shape: tuple[int, ...],
    groups: Groups | None,
    *,
    reference: bool = False,
    clip: float = math.inf,
    loss_weight: float = 0.3,
    dtype: torch.dtype = torch.float64,
    last: bool = False,
    device: str = "cpu",
    given_rate: bool = False,
) -> dict[str, Tensor]:
    """Everything that the op gives: output, loss, running statistics, gradients of sum(G y) + loss_weight * loss."""
    draw = torch.Generator().manual_seed(1)
    channels, kept = shape[1], torch.float32 if dtype == torch.bfloat16 else dtype
    a = torch.randn(shape, generator=draw, dtype=torch.float64) * 2
    a += torch.arange(channels).reshape(-1, *(1,) * (len(shape) - 2)) * 3
    a = a.to(device, dtype, memory_format=torch.channels_last if last else torch.preserve_format).requires_grad_()
    gamma, beta, psi = (
        torch.randn(n, generator=draw, dtype=torch.float64).to(device, kept).requires_grad_()
        for n in (channels, channels, SEEN + 1)
    )
    rate = torch.tensor(0.3, device=device) if given_rate else 0.3
    mean, var = torch.zeros(channels, dtype=kept, device=device), torch.ones(channels, dtype=kept, device=device)
    running = Running(mean, var, rate, clip=clip)
    y, loss = balanced_batch_norm(a, gamma, beta, psi, groups, running, reference=reference, path=path)
    towards = torch.randn(shape, generator=draw, dtype=torch.float64).to(device, dtype)
    ((y * towards).sum() + loss_weight * loss).backward()
    found = {"y": y.detach(), "loss": loss.detach(), "mean": running.mean, "var": running.var}
    for name, tensor in {"a": a, "gamma": gamma, "beta": beta, "psi": psi}.items():
        found[f"d{name}"] = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, tensor in expected.items():
        scale = max(1.0, float(tensor.abs().max()))
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=tolerance * scale, msg=lambda m: f"{name}: {m}")  # noqa: B023


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reference", [False, True], ids=["present", "reference"])
@pytest.mark.parametrize("known", [False, True], ids=["no groups", "groups"])
def test_closed_form_is_autograd(shape: tuple[int, ...], reference: bool, known: bool) -> None:
    """To 1e-10 in float64, with loss and without, held at its limit or not, in both layouts of memory."""
    groups = some_groups(shape[0]) if known else None
    for clip, weight in ((math.inf, 0.3), (0.5, 0.3), (math.inf, 0.0)):
        for last in (False, True)[: 1 + (len(shape) == 4)]:
            given: dict[str, Any] = {"reference": reference, "clip": clip, "loss_weight": weight, "last": last}
            expected = outcome("plain", shape, groups, **given)
            for path in PATHS + ("native",) * equal_weights(groups, reference):
                assert_same(outcome(path, shape, groups, **given), expected, 1e-10)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [(20, 20, 8, 8), (20, 64), (10, 33, 5, 5)], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_single_precision(path: str, shape: tuple[int, ...], last: bool) -> None:
    last = last and len(shape) == 4
    expected = outcome("plain", shape, some_groups(shape[0]))
    found = outcome(path, shape, some_groups(shape[0]), dtype=torch.float32, last=last)
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert_same({name: tensor.double() for name, tensor in found.items()}, expected, 2e-4)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("reference", [False, True], ids=["present", "reference"])
def test_gradcheck(path: str, reference: bool) -> None:
    """Numerical differentiation of output and loss by a, gamma, beta and psi."""
    groups = Groups.of([1, 3, 1, 0], 4)
    draw = torch.Generator().manual_seed(5)
    inputs = [torch.randn(s, generator=draw, dtype=torch.float64) for s in ((4, 2, 3, 2), (2,), (2,), (4,))]

    def op(a: Tensor, gamma: Tensor, beta: Tensor, psi: Tensor) -> tuple[Tensor, Tensor]:
        running = Running(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64), 0.2)
        # the running statistics are constants of the gradient, so numerical differentiation must not see them move
        y, _ = balanced_batch_norm(a, gamma, beta, psi, groups, running, reference=reference, path=path)
        fixed = Running(torch.full((2,), 0.3).double(), torch.full((2,), 0.8).double(), 0.0)
        return y, balanced_batch_norm(a, gamma, beta, psi, groups, fixed, reference=reference, path=path)[1]

    assert torch.autograd.gradcheck(op, [x.requires_grad_() for x in inputs])


def test_weights_balance_the_groups() -> None:
    """w = pi / N; equal for all samples of a group; large psi: groups count alike; small psi: samples count alike."""
    groups = Groups.of([1, 1, 1, 0], 3)
    w = sample_weights(torch.zeros(3), groups, 4, False)
    torch.testing.assert_close(w, torch.tensor([2 / 9, 2 / 9, 2 / 9, 1 / 3]))
    for psi, expected in ((500.0, [1 / 6, 1 / 6, 1 / 6, 1 / 2]), (-500.0, [0.25] * 4)):
        w = sample_weights(torch.full((3,), psi), groups, 4, False)
        torch.testing.assert_close(w, torch.tensor(expected))
    torch.testing.assert_close(sample_weights(torch.randn(3), Groups.of([2, 2], 3), 2, False), torch.full((2,), 0.5))
    torch.testing.assert_close(sample_weights(torch.randn(3), None, 5, True), torch.full((5,), 0.2))


def test_huge_psi_of_an_absent_group_leaves_no_trace() -> None:
    psi = torch.tensor([0.0, 1000.0, 0.0], requires_grad=True)
    sample_weights(psi, Groups.of([0, 2], 3), 2, False)[0].backward()
    assert psi.grad is not None
    assert bool(torch.isfinite(psi.grad).all())


@pytest.mark.parametrize("path", ["plain", *PATHS])
@pytest.mark.parametrize(("reference", "mean", "var"), [(False, 5.0, 0.0), (True, 30 / 7, 0.437318)])
def test_absent_group(path: str, reference: bool, mean: float, var: float) -> None:
    """The note's constant input 5, counts (1, 0, 3): the authors' code shrinks the mean and makes up a variance."""
    running = Running(torch.zeros(1), torch.ones(1), 1.0)
    a = torch.full((4, 1, 1, 1), 5.0)
    groups = Groups.of([0, 2, 2, 2], 3)
    y, _ = balanced_batch_norm(a, None, None, torch.zeros(3), groups, running, reference=reference, path=path)
    torch.testing.assert_close(running.mean, torch.tensor([mean]))
    torch.testing.assert_close(running.var, torch.tensor([var]), atol=1e-5, rtol=0)
    torch.testing.assert_close(y, torch.full_like(a, (5 - mean) / math.sqrt(var + 1e-5)), atol=1e-3, rtol=0)


def test_values_far_from_zero_keep_their_variance() -> None:
    """Mean 10,000, deviation 1, single precision: sums of squares would cancel."""
    a = 1e4 + torch.randn((16, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    for path in ("compiled", "torch"):
        running = Running(torch.zeros(3), torch.ones(3), 1.0)
        y, _ = balanced_batch_norm(a, None, None, torch.zeros(2), Groups.of([0] * 8 + [1] * 8, 2), running, path=path)
        expected = a.double().var((0, 2, 3), correction=0)
        torch.testing.assert_close(running.var.double(), expected, rtol=5e-3, atol=0)
        torch.testing.assert_close(y.std((0, 2, 3), correction=0), torch.ones(3), rtol=5e-3, atol=0)


def test_half_precision_keeps_its_statistics_in_single() -> None:
    a = torch.randn((4, 3, 5, 5), generator=torch.Generator().manual_seed(2))
    found, exact = (Running(torch.zeros(3), torch.ones(3), 1.0) for _ in range(2))
    y, loss = balanced_batch_norm(a.bfloat16(), None, None, torch.zeros(1), None, found)
    balanced_batch_norm(a.bfloat16().float(), None, None, torch.zeros(1), None, exact)
    assert (y.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(found.mean, exact.mean)


def test_what_is_not_a_number_stays_visible() -> None:
    """The loops may reorder sums; a NaN must come out all the same, for the guard to see."""
    for shape in ((4, 2, 8, 8), (4, 2)):
        a = torch.zeros(shape)
        a[1, 1] = math.nan
        y, _ = balanced_batch_norm(a, None, None, torch.zeros(1), None, Running(torch.zeros(2), torch.ones(2), 0.1))
        assert bool(y[:, 1].isnan().all())
        assert bool(y[:, 0].isfinite().all())


def test_output_keeps_the_layout_and_needs_no_packed_input() -> None:
    a = torch.randn((4, 6, 5, 7), generator=torch.Generator().manual_seed(3))
    expected, _ = balanced_batch_norm(a, None, None, torch.zeros(1), None, Running(torch.zeros(6), torch.ones(6), 0.1))
    for other in (a.to(memory_format=torch.channels_last), a.repeat(1, 1, 2, 1)[:, :, ::2].copy_(a), a.mT.clone().mT):
        y, _ = balanced_batch_norm(other, None, None, torch.zeros(1), None, Running(torch.zeros(6), torch.ones(6), 0.1))
        torch.testing.assert_close(y, expected)
    last = a.to(memory_format=torch.channels_last)
    y, _ = balanced_batch_norm(last, None, None, torch.zeros(1), None, Running(torch.zeros(6), torch.ones(6), 0.1))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_its_benchmark_names_both_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "ROUND_SECONDS", 1e-4)
    rows = adab2n.cases((4, 2, 3, 3), torch.channels_last)
    assert [row["peer_name"] for row in rows] == ["torch batch_norm", "autograd"]
    for row in rows:
        assert row["case"] == "4x2x3x3, channels last"
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
        assert row["floor"] > 0


INTERPRETED = """
import math
import torch
import test_balanced_batch_norm as t
from driftway.models.kernels import balanced_batch_norm_triton as kernels
from driftway.models.kernels.balanced_batch_norm import Running, balanced_batch_norm
from driftway.models.kernels.selection import triton_works

assert triton_works("balanced_batch_norm", torch.device("cpu"))
empty = torch.empty_like
kernels._single = lambda like, *shape: torch.full(shape, torch.nan)
kernels.torch.empty_like = lambda like, **given: empty(like, **given).fill_(torch.nan)
kernels.TILE, kernels.BLOCKS = 128, 2  # several tiles, several rounds of the last program
cases = [((7, 3, 5, 4), False, {}), ((6, 5), True, {}), ((9, 17, 3, 1), False, {"last": True, "clip": 0.5})]
cases += [((4, 9, 3, 3), True, {"reference": True, "last": True}), ((1, 2, 9, 9), False, {"loss_weight": 0.0})]
cases += [((7, 3, 5), True, {"given_rate": True, "clip": 0.5})]
for shape, known, given in cases:
    groups = t.some_groups(shape[0]) if known else None
    expected = t.outcome("plain", shape, groups, **given)
    found = t.outcome("triton", shape, groups, dtype=torch.float32, **given)
    t.assert_same({name: tensor.double() for name, tensor in found.items()}, expected, 2e-4)
again = t.outcome("triton", shape, groups, dtype=torch.float32, **given)
assert all(torch.equal(found[name], again[name]) for name in found)
half = t.outcome("triton", (6, 4, 3, 3), t.some_groups(6), dtype=torch.bfloat16)
assert half["y"].dtype == half["da"].dtype == torch.bfloat16
t.assert_same({n: v.double() for n, v in half.items()}, t.outcome("plain", (6, 4, 3, 3), t.some_groups(6)), 5e-2)


groups = t.some_groups(5)


def step(a, psi, running, path):
    y, loss = balanced_batch_norm(a, None, None, psi, groups, running, path=path)
    return y.square().sum() * y.sum() + loss


compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
a, found = torch.randn(5, 3, 2, 2), []
for way, path in ((compiled, "triton"), (step, "plain")):
    running, psi = Running(torch.zeros(3), torch.ones(3), 0.3), torch.zeros(5, requires_grad=True)
    found.append((*torch.autograd.grad(way(a.requires_grad_(), psi, running, path), [a, psi]), running.mean))
torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)
print("agrees")
"""


def test_the_triton_kernels_agree_in_the_interpreter(agrees_in_the_interpreter: Callable[..., None]) -> None:
    """Outputs are NaN beforehand; two runs give the same bits; ``torch.compile`` takes the op as one graph."""
    agrees_in_the_interpreter(INTERPRETED, "default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("shape", [(20, 64, 32, 32), (33, 17, 5, 7), (64, 512)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-4), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("known", [False, True], ids=["no groups", "groups"])
def test_the_triton_kernels_agree_on_a_gpu(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float, known: bool
) -> None:
    """Against double precision on the CPU, in both layouts, the same bits each time."""
    here = some_groups(shape[0])
    there = Groups.of(here.ids, SEEN, "cuda")
    expected = outcome("plain", shape, here if known else None)
    for last in (False, True)[: 1 + (len(shape) == 4)]:
        given: dict[str, Any] = {"dtype": dtype, "last": last, "device": "cuda"}
        found, again = (outcome("triton", shape, there if known else None, **given) for _ in range(2))
        assert all(torch.equal(found[name], again[name]) for name in found)
        assert_same({name: tensor.cpu().double() for name, tensor in found.items()}, expected, tolerance)
