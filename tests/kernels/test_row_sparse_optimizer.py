"""Updates of single rows: every path against the contract in float64 and PyTorch's optimisers, and what may not move.

Tolerances after 20 updates, of weights of size 1: float32 1e-5, float64 1e-12; bfloat16 after one, half a last place
(2^-8 of the weight) where it is rounded to nearest, a whole one where at random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from driftway.models.kernels.row_sparse_optimizer import Path, RowTable, RowUpdate, path_for, update_rows
from driftway.models.kernels.update_rules import Rates, working
from torch import Tensor

RATES = Rates(0.01, 0.9, 0.999, 1e-8, 0.1)
PATHS: list[Path] = ["torch", "compiled"]
SHAPES = [(7, 5), (1, 1), (33, 17), (9,), (16, 3, 3, 3), (4, 2, 3, 3, 3), (6, 0)]
LONG = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}
Seen = tuple[Tensor, ...]


def bits(tensor: Tensor) -> Tensor:
    """What lies in memory, so that -0 is not 0 and NaN is NaN."""
    return tensor.detach().contiguous().view(LONG[tensor.dtype])


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def some_rows(rows: int, seed: int) -> Tensor:
    chosen = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    return chosen[: max(1, rows // 3)].sort().values


def fresh(shape: tuple[int, ...], moments: int, dtype: torch.dtype, draw: int = 0, **given: Any) -> RowUpdate:
    """An update of some rows; what else there is, moments and gradient of other rows, is NaN."""
    index = some_rows(shape[0], draw)
    slots, grad = [], torch.full(shape, torch.nan, dtype=dtype)
    for n in range(moments):
        slot = torch.full(shape, torch.nan, dtype=working(dtype))
        slot[index] = drawn(len(index), *shape[1:], seed=draw + n + 1).abs().to(slot)
        slots.append(slot)
    grad[index] = drawn(len(index), *shape[1:], seed=draw + 3, dtype=dtype)
    weight = drawn(*shape, seed=draw + 4, dtype=dtype)
    return RowUpdate(weight, tuple(slots), index, grad, RATES, torch.zeros(shape[0]), **given)


def copied(update: RowUpdate, dtype: torch.dtype | None = None) -> RowUpdate:
    """An equal update of other tensors, in another type where one is named."""
    kept = update.weight.dtype if dtype is None else dtype
    moments = tuple(m.clone() if dtype is None else m.to(kept, copy=True) for m in update.moments)
    count = None if update.count is None else update.count.clone()
    weight, grad = update.weight.to(kept, copy=True), update.grad.to(kept, copy=True)
    return replace(update, weight=weight, moments=moments, grad=grad, count=count)


def seen(update: RowUpdate) -> Seen:
    assert update.count is not None
    return (update.weight, *update.moments, update.count)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("moments", "kind"), [(0, "SGD"), (1, "SGD"), (2, "AdamW")])
def test_all_rows_are_pytorchs_optimisers_in_float64(path: Path, moments: int, kind: str) -> None:
    update = fresh((6, 10), 0, torch.float64)
    slots = tuple(torch.zeros_like(update.weight) for _ in range(moments))
    peer = torch.nn.Parameter(update.weight.clone())
    own = {"momentum": 0.9} if moments == 1 else {}
    optimiser = getattr(torch.optim, kind)([peer], lr=0.01, weight_decay=0.1, **own)
    for n in range(20):
        grad = drawn(6, 10, seed=n, dtype=torch.float64)
        peer.grad = grad.clone()
        optimiser.step()
        update_rows([replace(update, moments=slots, index=torch.arange(6), grad=grad)], path)
    torch.testing.assert_close(update.weight, peer.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("moments", [0, 1, 2])
@pytest.mark.parametrize("compact", [True, False])
def test_every_path_is_the_contract_in_float64(path: Path, dtype: torch.dtype, moments: int, compact: bool) -> None:
    """20 updates of several parameters together; other rows keep every bit, full of garbage as they are."""
    updates = [fresh(shape, moments, dtype, n) for n, shape in enumerate(SHAPES)]
    exact, before = [copied(u, torch.float64) for u in updates], [copied(u) for u in updates]
    for n in range(20):
        for some, own in ((updates, path), (exact, "torch")):
            turned = [replace(u, grad=u.grad * (1 - n / 10)) for u in some]
            turned = [replace(u, grad=u.grad[u.index]) for u in turned] if compact else turned
            update_rows(turned, own)  # type: ignore[arg-type]
    tolerance = 1e-5 if dtype is torch.float32 else 1e-12
    for now, true, old in zip(updates, exact, before, strict=True):
        rest = torch.ones(len(now.weight), dtype=torch.bool).index_fill(0, now.index, False)
        for a, b, c in zip(seen(now), seen(true), seen(old), strict=True):
            assert torch.equal(bits(a)[rest], bits(c)[rest])
            torch.testing.assert_close(a[now.index].double(), b[now.index].double(), rtol=tolerance, atol=tolerance)
        assert not now.weight.numel() or not torch.equal(now.weight, old.weight)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("moments", [0, 1, 2])
@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("grads", [torch.bfloat16, torch.float32])
def test_bfloat16_is_the_contract_rounded(path: Path, moments: int, seed: int | None, grads: torch.dtype) -> None:
    update = fresh((9, 33), moments, torch.bfloat16, 5)
    update = replace(update, grad=update.grad.to(grads), seed=seed)
    exact, old = copied(replace(update, seed=None), torch.float64), copied(update)
    update_rows([update], path)
    update_rows([exact], "torch")
    index, rest = update.index, torch.ones(9, dtype=torch.bool).index_fill(0, update.index, False)
    apart = (update.weight.double() - exact.weight)[index].abs()
    assert (apart <= exact.weight[index].abs() * (2**-8 if seed is None else 2**-7) * 1.01).all()
    for a, b in zip(update.moments, exact.moments, strict=True):
        torch.testing.assert_close(a[index].double(), b[index], rtol=1e-5, atol=1e-6)
    for a, b in zip(seen(update), seen(old), strict=True):
        assert torch.equal(bits(a)[rest], bits(b)[rest])


@pytest.mark.parametrize("path", PATHS)
def test_rounding_at_random_is_right_on_average_and_repeats_itself(path: Path) -> None:
    """Steps of 3/16 of the last place of 1: each is 0 or 1 place, 3/16 on average (5 standard deviations)."""
    place, n = 2.0**-7, 40_000
    ones = torch.ones(4, n // 4, dtype=torch.bfloat16)
    found = []
    for seed, sign in ((1, 1), (1, 1), (2, 1), (1, -1)):
        count, grad = torch.zeros(4), torch.full((4, n // 4), -3 / 16 * place * sign)
        update = RowUpdate(ones * sign, (), torch.arange(4), grad, Rates(1.0), count, seed=seed)
        update_rows([update], path)
        steps = (update.weight * sign - 1) / place
        assert set(steps.unique().tolist()) == {0.0, 1.0}
        assert steps.double().mean().item() == pytest.approx(3 / 16, abs=5 * (3 / 16 * 13 / 16 / n) ** 0.5)
        found.append(steps)
        update_rows([update], path)
        assert not torch.equal((update.weight * sign - 1) / place - steps, steps)  # other bits in the next step
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(found[0], found[3])
    to_nearest = RowUpdate(ones.clone(), (), torch.arange(4), grad, Rates(1.0))
    update_rows([to_nearest], path)
    assert torch.equal(to_nearest.weight, ones)


def test_paths_round_at_random_alike_in_every_layout() -> None:
    """Numbers whose update is exact in float32 leave nothing but the random bits to differ."""
    for shape, order in (((5, 40), torch.contiguous_format), ((6, 4, 3, 3), torch.channels_last)):
        whole = drawn(*shape, seed=1).mul(16).round().div(16).contiguous(memory_format=order)
        found = []
        for path in PATHS:
            weight = whole.to(torch.bfloat16, copy=True)
            index, count = torch.tensor([1, 3]), torch.full((len(whole),), 70_000.0)
            grad = drawn(*shape, seed=2).mul(4).round()
            update_rows([RowUpdate(weight, (), index, grad, Rates(2.0**-14), count, seed=2**31 + 5)], path)
            found.append(weight)
        assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_factors_are_their_product(dtype: torch.dtype) -> None:
    for moments in (0, 2):
        for n, shape in enumerate(SHAPES):
            update = fresh(shape, moments, dtype)
            factor = drawn(n + 1, len(update.index), seed=8, dtype=dtype)
            inputs = drawn(n + 1, *shape[1:], seed=9, dtype=dtype)
            found = [copied(update) for _ in PATHS]
            for one, path in zip(found, PATHS):
                update_rows([replace(one, grad=factor, inputs=inputs)], path)
            tolerance = 1e-6 if dtype is torch.float32 else 1e-13
            torch.testing.assert_close(*map(seen, found), rtol=tolerance, atol=10 * tolerance, equal_nan=True)


def test_one_call_is_a_call_for_each_parameter_bit_for_bit() -> None:
    given: list[dict[str, Any]] = [{}, {"seed": 3}, {}]
    dtypes = [torch.float32, torch.bfloat16, torch.float64]
    updates = [fresh(s, 2, t, n, **g) for n, s in enumerate(SHAPES) for t, g in zip(dtypes, given)]
    apart = [copied(u) for u in updates]
    for _ in range(3):
        update_rows(updates)
        for update in apart:
            update_rows([update])
    for a, b in zip(updates, apart, strict=True):
        assert all(torch.equal(bits(x), bits(y)) for x, y in zip(seen(a), seen(b), strict=True))


def test_a_table_made_once_follows_the_rows_and_the_rates() -> None:
    updates = [fresh(shape, 2, torch.float32, n) for n, shape in enumerate(SHAPES[:4])]
    twins = [copied(u) for u in updates]
    table = RowTable.of(updates)
    for n in range(3):
        index = [some_rows(len(u.weight), n) for u in updates]
        table.rates[:, 0] = 0.01 * (n + 1)
        table.step(torch.cat(index))
        rates = RATES._replace(lr=0.01 * (n + 1))
        update_rows([replace(u, index=i, rates=rates) for u, i in zip(twins, index)])
    for a, b in zip(updates, twins, strict=True):
        assert all(torch.equal(bits(x), bits(y)) for x, y in zip(seen(a), seen(b), strict=True))
    with pytest.raises(ValueError, match="the table is for"):
        table.step(torch.arange(3))
    with pytest.raises(ValueError, match="one device, type and rule"):
        RowTable.of([*updates, fresh((3, 3), 1, torch.float32)])
    with pytest.raises(ValueError, match="where they lie"):
        RowTable.of([replace(updates[0], grad=torch.zeros(5, 7).t())])


@pytest.mark.parametrize("path", PATHS)
def test_nothing_active_is_nothing_done(path: Path) -> None:
    update = replace(fresh((4, 3), 2, torch.float32), index=torch.empty(0, dtype=torch.int64), grad=torch.empty(0, 3))
    other = fresh((5, 2), 2, torch.float32, 1)
    old, counted = copied(update), copied(other)
    update_rows([], path)
    update_rows([update], path)
    update_rows([update, other], path)
    update_rows([counted], path)
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(seen(update), seen(old), strict=True))
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(seen(other), seen(counted), strict=True))


def last_row_of_many(path: Path) -> None:
    """More than 2^31 entries, of which only those of two rows are ever touched."""
    weight = torch.empty(2**21 + 2, 1024, dtype=torch.bfloat16)
    weight[-1], weight[-2] = 1.0, 2.0
    index, grad = torch.tensor([len(weight) - 1]), torch.ones(1, 1024, dtype=torch.bfloat16)
    update_rows([RowUpdate(weight, (), index, grad, Rates(0.5))], path)
    assert (weight[-1] == 0.5).all()
    assert (weight[-2] == 2.0).all()


def test_more_than_32_bits_of_entries() -> None:
    last_row_of_many("compiled")


@pytest.mark.parametrize("path", PATHS)
def test_a_row_that_wakes_late_takes_a_first_step(path: Path) -> None:
    """A count of its own: the first step of every row is lr times the sign of its gradient, however late."""
    weight, m, v, count = drawn(2, 3, seed=0), torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2)
    rates = RATES._replace(weight_decay=0.0)
    for _ in range(50):
        update_rows([RowUpdate(weight, (m, v), torch.tensor([0]), torch.ones(1, 3), rates, count)], path)
    before = weight[1].clone()
    late = torch.tensor([[1.0, -2.0, 0.5]])
    update_rows([RowUpdate(weight, (m, v), torch.tensor([1]), late, rates, count)], path)
    torch.testing.assert_close(weight[1] - before, torch.tensor([-0.01, 0.01, -0.01]), rtol=1e-4, atol=1e-7)
    assert count.tolist() == [50, 1]


def test_layouts_of_weights_and_gradients() -> None:
    index, grad = torch.tensor([0, 5]), drawn(2, 4, 3, 3, seed=1)
    found = []
    for weights, moments, grads in (
        (torch.contiguous_format, torch.contiguous_format, torch.contiguous_format),
        (torch.channels_last, torch.channels_last, torch.contiguous_format),
        (torch.channels_last, torch.channels_last, torch.channels_last),
        (torch.contiguous_format, torch.channels_last, torch.channels_last),
    ):
        weight = drawn(8, 4, 3, 3, seed=0).contiguous(memory_format=weights)
        slots = tuple(torch.zeros(8, 4, 3, 3).contiguous(memory_format=moments) for _ in range(2))
        given = grad.contiguous(memory_format=grads)
        update = RowUpdate(weight, slots, index, given, RATES, torch.zeros(8))
        assert path_for(None, update) == ("compiled" if weights is moments else "torch")
        update_rows([update])
        odd = replace(update, grad=torch.stack([given, given], -1)[..., 0])
        update_rows([odd])
        found.append(seen(update))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-6, atol=1e-7)
    gaps = RowUpdate(drawn(8, 6, seed=0)[:, ::2], (), index, drawn(2, 3, seed=1), RATES)
    assert path_for(None, gaps) == "torch"
    with pytest.raises(ValueError, match="path compiled needs"):
        update_rows([gaps], "compiled")


@pytest.mark.parametrize("path", ["torch", "compiled"])
def test_autograd_notices_that_a_weight_has_changed(path: Path) -> None:
    weight, x = drawn(4, 3, seed=0).requires_grad_(), drawn(2, 3, seed=1).requires_grad_()
    loss = (x @ weight.t()).sum()
    update_rows([RowUpdate(weight, (), torch.tensor([1]), torch.ones(4, 3), RATES)], path)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_does_not_belong_together_is_refused_in_one_line() -> None:
    weight = torch.zeros(3, 2)
    whole = RowUpdate(weight, (), torch.tensor([0]), torch.zeros(1, 2), RATES)
    cases: tuple[tuple[str, dict[str, Any]], ...] = (
        ("need count", {"moments": (weight, weight)}),
        ("moments of a torch.float32 weight", {"moments": (weight[:1],)}),
        (r"count must be float32\[3\]", {"count": torch.zeros(2)}),
        ("without gaps", {"count": torch.zeros(6)[::2]}),
        ("for bfloat16 weights", {"count": torch.zeros(3), "seed": 1}),
        ("not that of 1 rows", {"grad": torch.zeros(2, 2)}),
        ("not that of 1 rows", {"inputs": torch.zeros(1, 3)}),
    )
    for words, given in cases:
        with pytest.raises(ValueError, match=words):
            replace(whole, **given)


def test_it_is_an_operator_that_compiles_in_one_graph() -> None:
    updates = [fresh(shape, 2, t, n) for n, (shape, t) in enumerate(zip(SHAPES[:2], [torch.float32, torch.bfloat16]))]
    updates += [fresh((4, 5), 1, torch.float32, 8), fresh((4, 5), 0, torch.bfloat16, 9, seed=3)]
    twins = [copied(u) for u in updates]
    rates = torch.tensor(RATES, dtype=torch.float64)

    def step(rates: Tensor) -> None:
        update_rows([replace(u, grad=u.grad[u.index] * 2, rates=rates) for u in updates])

    torch.compile(step, fullgraph=True, backend="aot_eager")(rates)
    update_rows([replace(u, grad=u.grad[u.index] * 2) for u in twins])
    for a, b in zip(updates, twins, strict=True):
        assert all(torch.equal(bits(x), bits(y)) for x, y in zip(seen(a), seen(b), strict=True))
    weight, m = torch.ones(3, 2), torch.ones(3, 2)
    given = ([weight], [m], [m + 1], [torch.zeros(3)], [torch.tensor([1])], [torch.ones(1, 2)], [rates], [])
    torch.library.opcheck(torch.ops.driftway.row_sparse_optimizer, given)


INTERPRETED = """
import torch
from dataclasses import replace
from driftway.models.kernels import row_sparse_optimizer_triton, selection
from driftway.models.kernels.row_sparse_optimizer import RowUpdate, update_rows
from test_row_sparse_optimizer import copied, fresh, last_row_of_many, seen
assert selection.triton_works("row_sparse_optimizer", torch.device("cpu"))
row_sparse_optimizer_triton.LANES = 64  # several rounds
short = torch.bfloat16
for dtype, seed, moments in (*((torch.float32, None, m) for m in range(3)), (short, None, 2), (short, 5, 1)):
    updates = [fresh(s, moments, dtype, n, seed=seed) for n, s in enumerate(((4, 150), (9, 3, 3), (6, 0), (2, 64)))]
    updates = [replace(u, grad=u.grad[u.index]) if n % 2 else u for n, u in enumerate(updates)]
    nothing = fresh((5, 3), moments, dtype, seed=seed)
    updates.append(replace(nothing, index=nothing.index[:0], grad=nothing.grad[:0]))
    twins = [copied(u) for u in updates]
    for _ in range(2):
        update_rows(updates, "triton")
        update_rows(twins, "torch")
    rtol = 1e-5 if dtype is torch.float32 else 2**-7
    for one, two in zip(updates, twins):
        torch.testing.assert_close(seen(one), seen(two), rtol=rtol, atol=1e-6, equal_nan=True)
whole = torch.arange(-300, 300).view(6, 100).to(torch.bfloat16)
found = [whole.clone() for _ in range(2)]
for weight, path in zip(found, ("torch", "triton")):
    given = (torch.tensor([1, 4]), torch.ones(2, 100), torch.tensor([0.25, 0, 0, 0, 0]).double(), torch.ones(6))
    update_rows([RowUpdate(weight, (), *given, seed=3)], path)
assert torch.equal(*found) and not torch.equal(found[0], whole)
last_row_of_many("triton")
print("agrees")
"""


def test_the_triton_kernel_agrees_in_the_interpreter(agrees_in_the_interpreter: Callable[..., None]) -> None:
    agrees_in_the_interpreter(INTERPRETED)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_graph_on_a_gpu_replays_what_the_contract_does(dtype: torch.dtype) -> None:
    updates = [fresh(shape, 2, dtype, n) for n, shape in enumerate(((300, 4096), (64, 3, 3, 3), (70, 1000)))]
    there = [
        replace(u, weight=u.weight.cuda(), moments=tuple(m.cuda() for m in u.moments), index=u.index.cuda(),
                grad=u.grad.cuda(), count=None if u.count is None else u.count.cuda()) for u in updates
    ]  # fmt: skip
    assert {path_for(None, u) for u in there} == {"triton"}
    row, table = torch.cat([u.index for u in there]), RowTable.of(there)
    graph = torch.cuda.CUDAGraph()
    update_rows(there)
    with torch.cuda.graph(graph):
        update_rows(there)
        table.step(row)
    for _ in range(2):
        graph.replay()
    for _ in range(5):
        update_rows(updates, "torch")
    tolerance = 1e-5 if dtype is torch.float32 else 2**-6
    for one, two in zip(there, updates, strict=True):
        for a, b in zip(seen(one), seen(two), strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=tolerance, atol=tolerance, equal_nan=True)
