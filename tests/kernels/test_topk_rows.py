"""The rows of the largest scores and scores of blocks: every path against a plain sort and against plain means."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from driftway.adapt.benchmarks import floors
from driftway.adapt.benchmarks import topk_rows as bench
from driftway.models.kernels.selection import triton_works
from driftway.models.kernels.topk_rows import Layers, Path, block_scores, topk_rows
from torch import Tensor

PATHS: list[Path] = ["torch", "numpy"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def drawn(*shape: int, seed: int = 0, levels: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers; with ``levels``, whole numbers of which many are equal."""
    generator = torch.Generator().manual_seed(seed)
    if levels:
        return torch.randint(-levels, levels + 1, shape, generator=generator).to(dtype)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def sorted_rows(score: list[float], k: int) -> list[int]:
    return sorted(sorted(range(len(score)), key=lambda i: (-score[i], i))[:k])


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", [0, 3])
def test_rows_are_those_of_a_stable_sort(path: Path, dtype: torch.dtype, levels: int) -> None:
    for seed, (d, k) in enumerate([(1, 0), (1, 1), (2, 1), (7, 7), (33, 10), (500, 37), (500, 499)]):
        score = drawn(d, seed=seed, levels=levels, dtype=dtype)
        found = topk_rows(score, k, path)
        assert found.dtype is torch.int64
        assert found.tolist() == sorted_rows(score.tolist(), k)
    both = drawn(3, 2, 9, levels=levels, dtype=dtype)
    for layer, found in zip(both.view(6, 9), topk_rows(both, 4, path).view(6, 4), strict=True):
        assert found.tolist() == sorted_rows(layer.tolist(), 4)


def test_layers_of_different_widths_go_together(path: Path) -> None:
    sizes, counts = (5, 0, 64, 3, 1), (2, 0, 20, 0, 1)
    score = drawn(sum(sizes), levels=4)
    found = topk_rows(score, Layers.of(sizes, counts), path)
    expected = [sorted_rows(s.tolist(), k) for s, k in zip(score.split(sizes), counts, strict=True)]
    assert [rows.tolist() for rows in found.split(counts)] == expected
    assert topk_rows(torch.empty(0), Layers.of((), ()), path).tolist() == []
    assert topk_rows(torch.empty(0, 4), 2, path).shape == (0, 2)


def test_noughts_of_both_signs_are_equal_and_nan_is_on_top(path: Path) -> None:
    assert topk_rows(torch.tensor([-0.0, 0.0, -0.0, 0.0]), 2, path).tolist() == [0, 1]
    assert topk_rows(-torch.tensor([0.0, 1.0, 0.0]), 1, path).tolist() == [0]
    nan, inf = torch.nan, torch.inf
    wild = torch.tensor([1.0, inf, nan, -inf, inf, -nan])
    assert [topk_rows(wild, k, path).tolist() for k in (1, 2, 3, 4, 5)] == [
        [2], [2, 5], [1, 2, 5], [1, 2, 4, 5], [0, 1, 2, 4, 5],
    ]  # fmt: skip


def test_scores_need_not_lie_together(path: Path) -> None:
    table = drawn(40, 6, levels=5)
    assert topk_rows(table[:, 2], 7, path).tolist() == sorted_rows(table[:, 2].tolist(), 7)
    assert torch.equal(topk_rows(table.t(), 7, path), topk_rows(table.t().contiguous(), 7, path))


def test_counts_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="9 of 8 rows"):
        topk_rows(torch.zeros(8), 9)
    with pytest.raises(ValueError, match="one count a layer"):
        Layers.of((3, 4), (1, 5))
    with pytest.raises(ValueError, match="are not those of layers"):
        topk_rows(torch.zeros(6), Layers.of((3, 4), (1, 2)))
    with pytest.raises(ValueError, match="do not cut up"):
        block_scores(torch.zeros(8), (2, 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "block"),
    [((64, 64), (32, 32)), ((70, 50), (16, 16)), ((5, 7), (2, 3)), ((6, 10), (6, 1)), ((1, 3), (64, 64)), ((33,), 16)],
)
def test_a_block_scores_the_mean_of_its_entries(
    path: Path, dtype: torch.dtype, shape: tuple[int, ...], block: tuple[int, int] | int
) -> None:
    values = drawn(*shape, dtype=dtype)
    table, (high, wide) = values.double().view(-1, shape[-1]), block if isinstance(block, tuple) else (1, block)
    expected = [part.mean() for rows in table.split(high) for part in rows.split(wide, 1)]
    tolerance = 1e-12 if dtype is torch.float64 else 1e-6
    for given in (values, values.t().contiguous().t()):
        found = block_scores(given, block, path)
        assert found.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
        torch.testing.assert_close(found.double(), torch.stack(expected), rtol=tolerance, atol=tolerance)


def test_both_are_operators_that_compile_in_one_graph() -> None:
    layers = Layers.of((20, 12), (4, 3))

    def chosen(score: Tensor) -> Tensor:
        return torch.cat([topk_rows(score, layers), topk_rows(block_scores(score, 4), 2)])

    score = drawn(32)
    found = torch.compile(chosen, fullgraph=True, backend="aot_eager")(score)
    assert torch.equal(found, chosen(score))
    for op, given in (
        (torch.ops.driftway.topk_rows, (score, 7, layers.table, 20)),
        (torch.ops.driftway.topk_rows, (score.view(2, 16), 3, None, 16)),
        (torch.ops.driftway.block_scores, (score.view(4, 8), 3, 2)),
    ):
        torch.library.opcheck(op, given)


def test_its_benchmark_has_one_row_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ROUNDS": 1, "ROUND_SECONDS": 0.0, "SIDE": {"cpu": 16}, "COPIED": {"cpu": 1024}}.items():
        monkeypatch.setattr(floors, name, value)
    monkeypatch.setattr(bench, "WIDTHS", (10, 20))
    monkeypatch.setattr(bench, "MATRIX", {"cpu": (64, 64)})
    floors.floors.cache_clear()
    rows = bench.measure("cpu")
    floors.floors.cache_clear()
    assert len({row["case"] for row in rows}) == len(rows) == 2 + 1 + 3
    assert all(row["ratio"] == pytest.approx(row["peer"] / row["ours"]) for row in rows)


INTERPRETED = """
import torch
from driftway.models.kernels import selection, topk_rows_triton
from driftway.models.kernels.topk_rows import Layers, block_scores, topk_rows
assert selection.triton_works("topk_rows", torch.device("cpu"))
g = torch.Generator().manual_seed(0)
empty, count = torch.empty, 0
def poisoned(*a, **named):
    made = empty(*a, **named)
    return made.fill_(torch.nan if made.is_floating_point() else -7)
topk_rows_triton.torch.empty = poisoned
topk_rows_triton.LANES = 128  # several rounds
for dtype in (torch.float32, torch.bfloat16):
    for d, k in ((7, 0), (200, 70), (33, 33)):
        for score in (torch.randint(-5, 6, (d,), generator=g), torch.randn(3, d, generator=g)):
            score = score.to(dtype)
            assert torch.equal(topk_rows(score, k, "triton"), topk_rows(score, k, "torch")), (d, k)
    layers = Layers.of((5, 200, 0, 9), (2, 30, 0, 0))
    score = torch.randn(214, generator=g).to(dtype)
    score[3], score[17], score[18], score[19] = torch.nan, torch.inf, -torch.inf, -torch.nan
    assert torch.equal(topk_rows(score, layers, "triton"), topk_rows(score, layers, "torch"))
    for shape, block in (((70, 50), (16, 16)), ((33,), 16), ((5, 7), (2, 3)), ((6, 90), (6, 1))):
        values = torch.randn(shape, generator=g).to(dtype)
        for given in (values, values.t().contiguous().t()):
            found = [block_scores(given, block, path) for path in ("triton", "torch")]
            torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
print("agrees")
"""


def test_the_triton_kernels_agree_in_the_interpreter(agrees_in_the_interpreter: Callable[..., None]) -> None:
    """With outputs full of garbage before."""
    agrees_in_the_interpreter(INTERPRETED)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_triton_kernels_agree_on_a_gpu() -> None:
    assert triton_works("topk_rows", torch.device("cuda"))
    score = drawn(5000, levels=40).cuda()
    assert torch.equal(topk_rows(score, 700).cpu(), topk_rows(score.cpu(), 700))
