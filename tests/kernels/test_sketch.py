"""The sketch memory: its paths against one another, the hand example of the method, and its invariants."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from driftway.models.kernels import sketch
from driftway.models.kernels.selection import triton_works
from driftway.models.kernels.sketch import Path, Readout, compensate, estimated_error, hash_rows, read, write
from torch import Tensor

PATHS: list[Path] = ["torch", "compiled"]
PLANES = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
"""K = 2 arrays of L = 1 bit in the plane."""


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(
    path: Path, *, values: int = 1, slots: int = 1, rows: int = 300, dtype: torch.dtype = torch.float64
) -> Tensor:
    """A memory of K = 7 arrays of 2^3 buckets with rows in all slots; some buckets stay empty."""
    table = sketch.new_table(7, 3, values, slots, dtype)
    buckets = hash_rows(drawn(rows, 5), drawn(21, 5, seed=1), 3, path)
    y, base = (drawn(rows, values, seed=s).sigmoid().double() for s in (2, 3))
    for slot in range(slots):
        mine = slice(slot, None, slots)
        write(table, slot, buckets[mine], y[mine], base[mine], torch.ones(len(y[mine])), path)
    return table


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def by_hand(path: Path) -> Tensor:
    """Rows A (1, 1), y = 1, base .5 and B (1, -1), y = 0, base .25 written."""
    table = sketch.new_table(2, 1)
    buckets = hash_rows(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), PLANES, 1, path)
    assert buckets.tolist() == [[1, 1], [1, 0]]
    write(table, 0, buckets, torch.tensor([[1.0], [0.0]]), torch.tensor([[0.5], [0.25]]), torch.ones(2), path)
    return table


def test_the_tables_by_hand(path: Path) -> None:
    table = by_hand(path)
    assert table[0, 0].tolist() == [[0, 0, 0], [2, 1, 0.75]]
    assert table[0, 1].tolist() == [[1, 0, 0.25], [1, 1, 0.5]]


@pytest.mark.parametrize(
    ("uniform", "tau", "gamma", "expected"),
    [(True, 0.1, 1.0, 0.54), (True, 0.1, 0.0, 0.525), (True, 0.1, 0.5, 0.5325), (False, 0.5, 1.0, 0.493788)],
)
def test_the_answer_by_hand(path: Path, uniform: bool, tau: float, gamma: float, expected: float) -> None:
    table, base = by_hand(path), torch.tensor([[0.4]], dtype=torch.float64)
    buckets = hash_rows(torch.tensor([[2.0, 3.0]]), PLANES, 1, path)
    found = read(table, buckets, base, total=2.0, tau=tau, uniform=uniform, path=path)
    if uniform:
        assert found.y.item() == pytest.approx(0.75)
        assert found.base.item() == pytest.approx(0.4375)
        assert found.n.item() == pytest.approx(1.5)
    else:
        assert found.y.item() == pytest.approx(0.634471, abs=1e-6)
    assert compensate(base, estimated_error(base, found, gamma), 0.4).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("values", [1, 3])
@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [0.003, 0.1])
def test_paths_agree(values: int, slots: int, dtype: torch.dtype, tau: float) -> None:
    tables = [filled(p, values=values, slots=slots, dtype=dtype) for p in PATHS]
    torch.testing.assert_close(*tables, rtol=1e-6, atol=1e-6)
    h, planes, base = drawn(33, 5, seed=7), drawn(21, 5, seed=1), drawn(33, values, seed=9).sigmoid().to(dtype)
    buckets = [hash_rows(h, planes, 3, p) for p in PATHS]
    assert torch.equal(*buckets)
    for prior in (0.0, 2.0):
        found = [read(tables[0], buckets[0], base, total=300.0, tau=tau, prior=prior, path=p) for p in PATHS]
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("values", [1, 2])
def test_nothing_known_is_the_base_bit_for_bit(path: Path, values: int) -> None:
    table, base = sketch.new_table(4, 2, values), drawn(6, values).sigmoid().double()
    buckets = hash_rows(drawn(6, 3), drawn(8, 3), 2, path)
    found = read(table, buckets, base, total=0.0, prior=3.0, path=path)
    assert found.n.tolist() == [0.0] * 6
    for gamma in (0.0, 0.3, 1.0):
        assert torch.equal(compensate(base, estimated_error(base, found, gamma), 0.9), base)


def test_lambda_nought_is_the_base_bit_for_bit(path: Path) -> None:
    table, base = filled(path), drawn(50, 1, seed=4).sigmoid().double()
    found = read(table, hash_rows(drawn(50, 5, seed=5), drawn(21, 5, seed=1), 3, path), base, total=300.0, path=path)
    assert (found.n > 0).all()
    assert torch.equal(compensate(base, estimated_error(base, found, 1.0), 0.0), base)


def test_empty_arrays_are_left_out_and_do_not_pull_to_nought(path: Path) -> None:
    """Row A alone: the query falls into its bucket in array 0 and into an empty one in array 1."""
    table = sketch.new_table(2, 1)
    write(table, 0, torch.tensor([[1, 1]], dtype=torch.int32), *torch.tensor([[[1.0]], [[0.5]]]), torch.ones(1), path)
    base = torch.tensor([[0.4]], dtype=torch.float64)
    found = read(table, torch.tensor([[1, 0]], dtype=torch.int32), base, total=1.0, path=path)
    assert (found.y.item(), found.base.item(), found.n.item()) == pytest.approx((1.0, 0.5, 1.0))


def test_full_trust_is_the_labels_of_the_neighbourhood_and_stays_a_probability(path: Path) -> None:
    table = filled(path)
    buckets = hash_rows(drawn(50, 5, seed=5), drawn(21, 5, seed=1), 3, path)
    for seed in (1, 2):
        base = drawn(50, 1, seed=seed).mul(9).sigmoid().double()
        found = read(table, buckets, base, total=300.0, path=path)
        torch.testing.assert_close(compensate(base, estimated_error(base, found, 1.0), 1.0), found.y)
        wild = compensate(base, estimated_error(base, found, 0.0), 1.5)
        assert ((wild >= 0) & (wild <= 1)).all()


def test_length_means_nothing_and_the_opposite_is_the_opposite_bucket(path: Path) -> None:
    h, planes = drawn(40, 6), sketch.new_planes(6, 5, 4, seed=3)
    there = hash_rows(h, planes, 4, path)
    assert torch.equal(hash_rows(h * 1e-3, planes, 4, path), there)
    assert torch.equal(hash_rows(-h, planes, 4, path), 15 - there)
    assert hash_rows(torch.zeros(1, 6), planes, 4, path).tolist() == [[0] * 5]


def test_every_array_holds_every_row(path: Path) -> None:
    table = filled(path, values=2, slots=3, rows=200)
    assert table[..., 0].sum((0, 2)).tolist() == [200.0] * 7
    sums = table[..., 1:].sum((0, 2))
    torch.testing.assert_close(sums, sums[:1].expand_as(sums))


def test_order_and_company_of_writes_mean_nothing_and_memories_add_up(path: Path) -> None:
    """Exact where labels and answers are short binary fractions."""
    buckets = hash_rows(drawn(90, 5), drawn(21, 5, seed=1), 3, path)
    y, base = (drawn(90, 1) > 0).double(), (drawn(90, 1, seed=2).sigmoid() * 64).round().double() / 64
    weight = torch.ones(90)

    def memory(*pieces: Tensor) -> Tensor:
        table = sketch.new_table(7, 3)
        for rows in pieces:
            write(table, 0, buckets[rows], y[rows], base[rows], weight[rows], path)
        return table

    every = torch.arange(90)
    whole = memory(every)
    assert torch.equal(memory(every.flip(0)), whole)
    assert torch.equal(memory(*every.split(1)), whole)
    assert torch.equal(memory(every[:30]) + memory(every[30:]), whole)


def test_weights_count_like_repeated_rows(path: Path) -> None:
    bucket, y, base = torch.tensor([[2, 0]], dtype=torch.int32), torch.tensor([[0.5]]), torch.tensor([[0.25]])
    once, thrice = sketch.new_table(2, 2), sketch.new_table(2, 2)
    write(once, 0, bucket, y, base, torch.tensor([3.0]), path)
    for _ in range(3):
        write(thrice, 0, bucket, y, base, torch.ones(1), path)
    assert torch.equal(once, thrice)


def test_how_often_two_vectors_share_a_bucket() -> None:
    """One bit: 1 - angle / pi; L bits: the L-th power of it."""
    u, v = torch.tensor([[1.0, 0.0]]), torch.tensor([[np.cos(0.7), np.sin(0.7)]], dtype=torch.float32)
    share = 1 - 0.7 / np.pi
    for bits in (1, 3):
        planes = sketch.new_planes(2, 10_000, bits, seed=5)
        same = hash_rows(u, planes, bits) == hash_rows(v, planes, bits)
        assert same.double().mean().item() == pytest.approx(share**bits, abs=0.02)


def test_one_place_only_is_its_mean_label(path: Path) -> None:
    table, h = sketch.new_table(7, 3), drawn(1, 5).expand(8, 5).contiguous()
    buckets = hash_rows(h, drawn(21, 5, seed=1), 3, path)
    y = torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 0])[:, None]
    write(table, 0, buckets, y, torch.full((8, 1), 0.5), torch.ones(8), path)
    found = read(table, buckets[:1], torch.tensor([[0.9]], dtype=torch.float64), total=8.0, path=path)
    assert found.y.item() == pytest.approx(0.25)
    shrunk = read(table, buckets[:1], torch.tensor([[0.9]], dtype=torch.float64), total=8.0, prior=2.0, path=path)
    assert shrunk.y.item() == pytest.approx((2 + 2 * 0.9) / (8 + 2))


def test_slots_are_summed_when_read(path: Path) -> None:
    apart, base = filled(path, slots=4), drawn(20, 1).sigmoid().double()
    buckets = hash_rows(drawn(20, 5, seed=5), drawn(21, 5, seed=1), 3, path)
    found: list[Readout] = [read(t, buckets, base, total=300.0, path=path) for t in (apart, apart.sum(0, keepdim=True))]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-7, atol=1e-9)


def test_path_follows_the_device_and_the_wish() -> None:
    assert sketch.path_for(None, torch.zeros(1)) == "compiled"
    assert sketch.path_for("torch", torch.zeros(1)) == "torch"
    assert sketch.path_for(None, torch.zeros(1, device="meta")) == "torch"


INTERPRETED = """
import torch
from driftway.models.kernels import selection, sketch as s
assert selection.triton_works("sketch", torch.device("cpu"))
g = torch.Generator().manual_seed(0)
for values, slots, arrays, bits in ((1, 1, 7, 3), (3, 2, 4, 2)):
    h, planes = torch.randn(9, 5, generator=g), s.new_planes(5, arrays, bits, 1)
    y, base = torch.rand(2, 9, values, generator=g)
    tables = [s.new_table(arrays, bits, values, slots, torch.float32) for _ in range(2)]
    buckets = [s.hash_rows(h, planes, bits, p) for p in ("torch", "triton")]
    assert torch.equal(*buckets)
    for table, path in zip(tables, ("torch", "triton")):
        for slot in range(slots):
            s.write(table, slot, buckets[0][:6], y[:6], base[:6], torch.ones(6), path)
    torch.testing.assert_close(*tables)
    if values == 1:  # in many rounds of the kernel: the bits of the loop that adds one row after the other
        both = [s.new_table(arrays, bits, 1, 1, torch.float32) for _ in range(2)]
        many = torch.randint(0, 8, (140, arrays), generator=g, dtype=torch.int32)
        fractions = torch.rand(140, generator=g)
        for table, path in zip(both, ("triton", "compiled")):
            s.write(table, 0, many, fractions[:, None], fractions[:, None], fractions, path)
        assert torch.equal(*both)
    for total, prior in ((0.0, 0.0), (6.0 * slots, 0.0), (6.0 * slots, 2.0)):
        found = [s.read(tables[0], buckets[0], base, total=total, prior=prior, path=p) for p in ("torch", "triton")]
        for one, other in zip(*found):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
print("agrees")
"""


def test_the_triton_kernels_agree_in_the_interpreter(agrees_in_the_interpreter: Callable[..., None]) -> None:
    agrees_in_the_interpreter(INTERPRETED, "default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_triton_kernels_agree_on_a_gpu() -> None:
    assert triton_works("sketch", torch.device("cuda"))
