"""Cluster entropy in one pass: every path against the formulas in double precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from driftway.adapt.benchmarks import cluster_entropy as bench
from driftway.adapt.benchmarks import floors
from driftway.models.kernels.cluster_entropy import Clusters, Path, reference, value_and_slope
from torch import Tensor

SHAPES = [(1, 1), (3, 7), (5, 33), (2, 300), (2, 3, 40)]


def some(shape: tuple[int, ...], clusters: int) -> tuple[Tensor, Clusters]:
    """Logits with a few entries ruled out, one row of nothing else, and far values; clusters, some of them empty."""
    draw = torch.Generator().manual_seed(sum(shape))
    u = torch.randn(shape, generator=draw) * 6
    flat = u.reshape(-1, shape[-1])
    flat[0, ::3] = -torch.inf
    flat[-1] = flat[-1] - 200 * (torch.arange(shape[-1]) % 2)
    if len(flat) > 2:
        flat[1] = -torch.inf
    ids = torch.randint(0, max(1, clusters - 1), (shape[-1],), generator=draw)
    return u, Clusters.of(ids, clusters)


def assert_agrees(
    path: Path, shape: tuple[int, ...], clusters: int, within: float, dtype: torch.dtype, tol: float
) -> None:
    """Value and slope within ``tol``, absolute: both are of the order of 1."""
    u, where = some(shape, clusters)
    u = u.to(dtype)
    expected = reference(u.double(), where.ids, None, clusters, within)
    for given in (u, u.repeat_interleave(2, -1)[..., ::2]):
        for found, wanted in zip(value_and_slope(given, where, within, path), expected, strict=True):
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), wanted, rtol=tol, atol=tol)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("clusters", [1, 5, 40])
@pytest.mark.parametrize("within", [0.0, 0.3, 1.0])
def test_the_compiled_path_agrees(shape: tuple[int, ...], clusters: int, within: float) -> None:
    assert_agrees("compiled", shape, clusters, within, torch.float32, 2e-5)


def test_half_precision() -> None:
    assert_agrees("compiled", (3, 40), 5, 0.3, torch.bfloat16, 2e-2)


def test_slope_is_that_of_autograd() -> None:
    """The reference, against numerical differentiation of its own value."""
    u, where = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 4
    step = 1e-6 * torch.eye(9, dtype=torch.float64)
    for within in (0.0, 0.4):
        _, slope = reference(u, where, None, 4, within)
        up, down = (reference(u[:, None] + sign * step, where, None, 4, within)[0] for sign in (1, -1))
        torch.testing.assert_close(slope, (up - down) / 2e-6, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_a_number_stays_visible(bad: float) -> None:
    u, where = torch.zeros(3, 8), Clusters.of(torch.arange(8) % 2, 2)
    u[1, 3] = bad
    value, slope = value_and_slope(u, where)
    assert value.isnan().tolist() == [False, True, False]
    assert slope.isnan().all(1).tolist() == [False, True, False]


def test_no_rows_are_no_values() -> None:
    where = Clusters.of(torch.arange(8) % 2, 2)
    assert [tuple(t.shape) for t in value_and_slope(torch.zeros(0, 8), where)] == [(0,), (0, 8)]


def test_its_benchmark_has_a_row_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "ROUNDS", 1)
    monkeypatch.setattr(floors, "ROUND_SECONDS", 0.0)
    monkeypatch.setattr(floors, "SIDE", {"cpu": 16})
    monkeypatch.setattr(floors, "COPIED", {"cpu": 1024})
    monkeypatch.setattr(bench, "SHAPES", {"cpu": ((2, 16, 3),)})
    floors.floors.cache_clear()
    (row,) = bench.measure("cpu")
    floors.floors.cache_clear()
    assert row["ratio"] == pytest.approx(row["peer"] / row["ours"])
    assert row["target"] == ">= 1x peer"


INTERPRETED = """
import torch
import test_cluster_entropy as t
from driftway.models.kernels import cluster_entropy_triton as kernels
from driftway.models.kernels.cluster_entropy import Clusters, value_and_slope
from driftway.models.kernels.selection import triton_works

assert triton_works("cluster_entropy", torch.device("cpu"))
empty, kernels.TILE = torch.empty, 64  # several tiles
kernels.torch.empty = lambda *size, **given: empty(*size, **given).fill_(torch.nan)
for shape in t.SHAPES:
    t.assert_agrees("triton", shape, 5, 0.3, torch.float32, 2e-5)
t.assert_agrees("triton", (3, 50), 1, 0.0, torch.float32, 2e-5)
t.assert_agrees("triton", (3, 50), 5, 0.0, torch.bfloat16, 2e-2)
kernels.torch.empty = empty
where = Clusters.of(torch.arange(8) % 2, 2)
bad = torch.zeros(2, 8)
bad[1, 3] = torch.nan
assert value_and_slope(bad, where, 0.0, "triton")[1].isnan().all(1).tolist() == [False, True]
compiled = torch.compile(lambda u: value_and_slope(u, where, 0.0, "triton"), fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(bad[:1]), value_and_slope(bad[:1], where, 0.0, "reference"))
print("agrees")
"""


def test_the_triton_kernel_agrees_in_the_interpreter(agrees_in_the_interpreter: Callable[..., None]) -> None:
    """Outputs are NaN beforehand; ``torch.compile`` takes the op as one graph."""
    agrees_in_the_interpreter(INTERPRETED, "error::RuntimeWarning")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("clusters", [1, 5, 100])
def test_the_triton_kernel_agrees_on_a_gpu(clusters: int) -> None:
    u, where = some((64, 4097), clusters)
    there = Clusters(where.ids.cuda(), where.order.cuda(), where.starts.cuda())
    for within in (0.0, 0.3):
        expected = reference(u.double(), where.ids, None, clusters, within)
        for found, wanted in zip(value_and_slope(u.cuda(), there, within, "triton"), expected, strict=True):
            torch.testing.assert_close(found.cpu().double(), wanted, rtol=2e-5, atol=2e-5)
