"""Linear layers made of blocks, against the dense layer in double precision that they stand for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from driftway.adapt.benchmarks import block_sparse_linear as bench
from driftway.adapt.benchmarks import floors
from driftway.models.kernels import block_sparse_linear as module
from driftway.models.kernels.block_sparse_linear import (
    BlockLinear,
    Layout,
    Path,
    assemble,
    block_sparse_linear,
    cut_out,
    fastest_on_cpu,
)
from torch import Tensor

Shape = tuple[int, int]


def some_blocks(shape: Shape, block: Shape, share: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Layout]:
    """Blocks of a random weight, and where they lie."""
    generator = torch.Generator().manual_seed(0)
    down, across = -(-shape[0] // block[0]), -(-shape[1] // block[1])
    at = (torch.rand(down * across, generator=generator) < share).nonzero().flatten()
    rows, cols = torch.div(at, across, rounding_mode="floor"), at % across
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    return cut_out(weight, rows, cols, block).to(dtype), Layout.of(rows, cols, shape, block)


def outcome(
    path: Path | None, batch: int, blocks: Tensor, layout: Layout, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Output, and gradients of input, blocks and bias, of inputs that lie apart in memory."""
    generator = torch.Generator().manual_seed(1)
    x, bias, aim = (
        torch.randn(n, generator=generator, dtype=torch.float64)
        for n in ((batch, 2 * layout.shape[1]), layout.shape[0], (batch, layout.shape[0]))
    )
    inputs = [t.to(dtype).requires_grad_() for t in (x[:, ::2], blocks, bias)]
    y = block_sparse_linear(inputs[0], inputs[1], layout, inputs[2], path)
    return [y.detach(), *torch.autograd.grad((y * aim.to(dtype)).sum(), inputs)]


@pytest.mark.parametrize("shape", [(64, 96), (65, 97), (10, 33), (32, 32)])
@pytest.mark.parametrize("block", [(32, 32), (16, 8), (1, 32)])
@pytest.mark.parametrize(("batch", "share"), [(1, 0.4), (7, 0.4), (0, 0.4), (3, 0.0)])
def test_paths_agree(shape: Shape, block: Shape, batch: int, share: float) -> None:
    """To 1e-12 in double precision; with no example, and with no block."""
    blocks, layout = some_blocks(shape, block, share)
    expected = outcome("dense", batch, blocks, layout)
    for path in ("gathered", "looped", None):
        for found, wanted in zip(outcome(path, batch, blocks, layout), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("path", ["gathered", "looped"])
def test_lower_precision(path: Path, dtype: torch.dtype, tolerance: float) -> None:
    """Relative to the largest entry; bfloat16 keeps 8 bits."""
    blocks, layout = some_blocks((65, 97), (16, 16), 0.4, dtype)
    expected = outcome("dense", 20, blocks.double(), layout)
    for found, wanted in zip(outcome(path, 20, blocks, layout, dtype), expected, strict=True):
        assert found.dtype == dtype
        assert float((found.double() - wanted).abs().max() / wanted.abs().max()) < tolerance


@pytest.mark.parametrize("path", ["gathered", "looped"])
def test_gradcheck(path: Path) -> None:
    blocks, layout = some_blocks((5, 7), (2, 3), 0.5)
    x = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    bias = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *given: block_sparse_linear(given[0], given[1], layout, given[2], path),
        (x, blocks.requires_grad_(), bias),
    )


def test_leading_axes_are_kept() -> None:
    blocks, layout = some_blocks((6, 8), (2, 4), 0.5)
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(block_sparse_linear(x, blocks, layout), x @ assemble(blocks, layout).t())


def test_a_layout_lists_blocks_by_rows_and_by_columns() -> None:
    layout = Layout.of(torch.tensor([0, 0, 2]), torch.tensor([1, 2, 0]), (5, 6), (2, 2))
    assert layout.row_starts.tolist() == [0, 2, 2, 3]
    assert layout.by_col.tolist() == [2, 0, 1]
    assert layout.col_starts.tolist() == [0, 1, 2, 3]
    assert layout.share == pytest.approx(1 / 3)


def test_the_choice_follows_batch_and_share() -> None:
    """Few examples: gathered. Many: one product a row, and above the break-even share the whole weight."""
    few, many = (some_blocks((256, 256), (16, 16), share)[1] for share in (0.1, 0.8))
    assert fastest_on_cpu(4, many) == "gathered"
    assert fastest_on_cpu(100_000, few) == "looped"
    assert fastest_on_cpu(module.MANY, many) == "dense"


def test_cutting_out_and_assembling_are_inverse() -> None:
    weight = torch.randn(10, 33, generator=torch.Generator().manual_seed(0))
    rows, cols = torch.arange(4).repeat_interleave(3), torch.arange(3).repeat(4)
    whole = Layout.of(rows, cols, (10, 33), (3, 16))
    assert torch.equal(assemble(cut_out(weight, rows, cols, (3, 16)), whole), weight)
    one = cut_out(weight, rows[:1], cols[:1], (3, 16))
    alone = assemble(one, Layout.of(rows[:1], cols[:1], (10, 33), (3, 16)))
    assert torch.equal(alone[:3, :16], weight[:3, :16])
    assert not alone[3:].any()


def test_a_layer_without_any_block_says_its_bias() -> None:
    layer = BlockLinear((6, 5), torch.nn.Parameter(torch.arange(6.0)))
    layer.place(torch.zeros(0, 2, 2), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert torch.equal(layer(torch.randn(3, 5)), torch.arange(6.0).expand(3, 6))
    assert set(layer.state_dict()) == {"weight", "bias"}


def test_a_layer_takes_its_layout_along() -> None:
    layer = BlockLinear((4, 4), None)
    layer.place(torch.zeros(1, 2, 2), torch.tensor([1]), torch.tensor([0]))
    assert layer.to("meta")(torch.zeros(3, 4, device="meta")).shape == (3, 4)


def test_its_benchmark_has_one_row_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "ROUNDS", 1)
    monkeypatch.setattr(floors, "ROUND_SECONDS", 0.0)
    monkeypatch.setattr(floors, "SIDE", {"cpu": 16})
    monkeypatch.setattr(floors, "COPIED", {"cpu": 1024})
    monkeypatch.setattr(bench, "SIDE", {"cpu": 64})
    monkeypatch.setattr(bench, "BATCHES", {"cpu": (4,)})
    floors.floors.cache_clear()
    rows = bench.measure("cpu")
    floors.floors.cache_clear()
    assert len({row["case"] for row in rows}) == len(rows) == len(bench.SHARES) * 3
    assert all(row["ratio"] == pytest.approx(row["peer"] / row["ours"]) for row in rows)


INTERPRETED = """
import torch
import test_block_sparse_linear as t
from driftway.models.kernels import block_sparse_linear_triton as kernels
from driftway.models.kernels.block_sparse_linear import block_sparse_linear
from driftway.models.kernels.selection import triton_works

empty = torch.Tensor.new_empty


def poisoned(self, *size, **given):
    made = empty(self, *size, **given)
    return made.fill_(float("nan")) if made.is_floating_point() else made


torch.Tensor.new_empty = poisoned
assert triton_works("block_sparse_linear", torch.device("cpu"))
cases = [((20, 50), (16, 32), 5, 0.7, torch.bfloat16, 2e-2), ((70, 33), (64, 16), 18, 0.9, torch.float32, 1e-5)]
cases += [((33, 33), (16, 16), 0, 0.5, torch.float32, 0.0), ((33, 33), (32, 16), 3, 0.0, torch.float32, 1e-5)]
for shape, block, batch, share, dtype, tolerance in cases:
    blocks, layout = t.some_blocks(shape, block, share, dtype)
    expected = t.outcome("dense", batch, blocks.double(), layout)
    for found, wanted in zip(t.outcome("triton", batch, blocks, layout, dtype), expected):
        assert found.dtype == dtype
        scale = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=tolerance * scale)
blocks, layout = t.some_blocks((20, 30), (16, 16), 0.8, torch.float32)
x = torch.randn(5, 30)
for path in ("gathered", "triton"):
    step = lambda x, b, path=path: block_sparse_linear(x, b, layout, None, path).square().sum()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found, expected = (torch.autograd.grad(f(x, blocks.requires_grad_()), blocks)[0] for f in (compiled, step))
    torch.testing.assert_close(found, expected)
print("agrees")
"""


def test_the_triton_kernels_agree_in_the_interpreter(agrees_in_the_interpreter: Callable[..., None]) -> None:
    """Outputs are NaN beforehand."""
    agrees_in_the_interpreter(INTERPRETED, "default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("side", module.SIDES)
def test_the_triton_kernels_agree_on_a_gpu(side: int, dtype: torch.dtype, tolerance: float) -> None:
    """Against double precision on the CPU, and into one CUDA graph, which has no host to ask."""
    blocks, layout = some_blocks((200, 300), (side, side), 0.4, dtype)
    x = torch.randn(33, 300, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = block_sparse_linear(x.double(), blocks.double(), layout, None, "dense")
    there = Layout(layout.shape, layout.block, *(getattr(layout, name).cuda() for name in module.PLACES))
    given, cuda_blocks = x.cuda(), blocks.cuda()
    block_sparse_linear(given, cuda_blocks, there, None, "triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = block_sparse_linear(given, cuda_blocks, there, None, "triton")
    y.fill_(torch.nan)
    graph.replay()
    torch.testing.assert_close(y.cpu().double(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))
