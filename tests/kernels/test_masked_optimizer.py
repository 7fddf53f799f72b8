"""Updates of entries and of blocks: every path against the contract in float64 and PyTorch, and what may not move.

Tolerances after 20 updates, of weights of size 1: float32 1e-5, float64 1e-12; bfloat16 after one, half a last place
(2^-8 of the weight) where it is rounded to nearest, a whole one where at random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from driftway.models.kernels.masked_optimizer import (
    BlockTable,
    BlockUpdate,
    EntryTable,
    EntryUpdate,
    Path,
    grid,
    pack_mask,
    path_for,
    unpack_mask,
    update_blocks,
    update_entries,
)
from driftway.models.kernels.update_rules import Rates, working
from torch import Tensor

RATES = Rates(0.01, 0.9, 0.999, 1e-8, 0.1)
PATHS: list[Path] = ["torch", "compiled"]
SHAPES = [(7, 5), (1, 1), (129,), (16, 3, 3, 3), (3, 700), (4, 0)]
MATRICES = [(40, 33), (16, 16), (1, 5), (70, 16)]
LONG = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}
Update = EntryUpdate | BlockUpdate


def bits(tensor: Tensor) -> Tensor:
    """What lies in memory, so that -0 is not 0 and NaN is NaN."""
    return tensor.detach().contiguous().view(LONG[tensor.dtype])


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def slots_of(mask: Tensor, moments: int, dtype: torch.dtype, draw: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Moments and gradient that are NaN where the mask does not hold."""
    there = [drawn(*mask.shape, seed=draw + n).abs().to(working(dtype)) for n in range(moments)]
    grad = drawn(*mask.shape, seed=draw + 5, dtype=dtype)
    return tuple(t.masked_fill(~mask, torch.nan) for t in there), grad.masked_fill(~mask, torch.nan)


def entries(shape: tuple[int, ...], moments: int, dtype: torch.dtype, draw: int = 0, **given: Any) -> EntryUpdate:
    mask = drawn(*shape, seed=draw + 9) > 0.5
    slots, grad = slots_of(mask, moments, dtype, draw)
    weight, count = drawn(*shape, seed=draw + 6, dtype=dtype), torch.zeros(())
    return EntryUpdate(weight, slots, pack_mask(mask), grad, RATES, count, **given)


def blocks(shape: tuple[int, int], moments: int, dtype: torch.dtype, draw: int = 0, **given: Any) -> BlockUpdate:
    """Every other block of side 16."""
    weight = drawn(*shape, seed=draw + 6, dtype=dtype)
    down, across = grid(weight, 16)
    block = torch.arange(draw % 2, down * across, 2)
    slots, grad = slots_of(mask_of(weight, block), moments, dtype, draw)
    return BlockUpdate(weight, slots, block, 16, grad, RATES, torch.zeros(down, across), **given)


def mask_of(weight: Tensor, block: Tensor) -> Tensor:
    down, across = grid(weight, 16)
    small = torch.zeros(down * across, dtype=torch.bool).index_fill(0, block, True).view(down, across)
    return small.repeat_interleave(16, 0).repeat_interleave(16, 1)[: len(weight), : weight.shape[1]]


def holds(update: Update) -> Tensor:
    if isinstance(update, EntryUpdate):
        return unpack_mask(update.words, update.weight)
    return mask_of(update.weight, update.block)


def compact(update: BlockUpdate) -> BlockUpdate:
    """The same update with the gradient of its blocks only, NaN beyond the edge."""
    down, across = grid(update.weight, 16)
    rows, columns = update.weight.shape
    edges = (0, 16 * across - columns, 0, 16 * down - rows)
    padded = torch.nn.functional.pad(update.grad, edges, value=torch.nan)
    tiles = padded.view(down, 16, across, 16).transpose(1, 2).reshape(-1, 16, 16)
    return replace(update, grad=tiles[update.block])


def copied(update: Any, dtype: torch.dtype | None = None) -> Any:
    """An equal update of other tensors, in another type where one is named."""
    kept = update.weight.dtype if dtype is None else dtype
    moments = tuple(m.clone() if dtype is None else m.to(kept, copy=True) for m in update.moments)
    weight, grad = update.weight.to(kept, copy=True), update.grad.to(kept, copy=True)
    return replace(update, weight=weight, moments=moments, grad=grad, count=update.count.clone())


def run(updates: Sequence[Any], path: Path | None = None) -> None:
    if updates and isinstance(updates[0], EntryUpdate):
        update_entries(updates, path)
    else:
        update_blocks(updates, path)


def seen(update: Update) -> tuple[Tensor, ...]:
    assert update.count is not None
    return (update.weight, *update.moments, update.count)


def same(a: Update, b: Update) -> bool:
    return all(torch.equal(bits(x), bits(y)) for x, y in zip(seen(a), seen(b), strict=True))


def made(kind: str, moments: int, dtype: torch.dtype, **given: Any) -> list[Any]:
    if kind == "entries":
        return [entries(shape, moments, dtype, n, **given) for n, shape in enumerate(SHAPES)]
    found = [blocks(shape, moments, dtype, n, **given) for n, shape in enumerate(MATRICES)]
    return [compact(u) for u in found] if kind == "compact blocks" else found


KINDS = ["entries", "blocks", "compact blocks"]


# --- packed masks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (32,), (33,), (7, 5), (8, 4, 3, 3), (0, 3), ()])
def test_masks_go_round_in_one_bit_an_entry(shape: tuple[int, ...]) -> None:
    mask = drawn(*shape, seed=1) > 0
    words = pack_mask(mask)
    assert words.dtype is torch.int32
    assert len(words) == -(-mask.numel() // 32)
    assert torch.equal(unpack_mask(words, mask), mask)
    if len(shape) == 4:
        last = mask.contiguous(memory_format=torch.channels_last)
        found = unpack_mask(pack_mask(last), last)
        assert torch.equal(found, mask)
        assert found.stride() == last.stride()
        assert not torch.equal(pack_mask(last), words)


def test_which_bit_is_which_entry() -> None:
    assert pack_mask(torch.tensor([True, False, True])).tolist() == [5]
    assert pack_mask(torch.arange(40) == 31).tolist() == [-(2**31), 0]


# --- updates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["entries", "blocks"])
@pytest.mark.parametrize(("moments", "peer_kind"), [(0, "SGD"), (1, "SGD"), (2, "AdamW")])
def test_a_full_mask_is_pytorchs_optimiser_in_float64(path: Path, kind: str, moments: int, peer_kind: str) -> None:
    weight = drawn(20, 18, seed=0, dtype=torch.float64)
    slots = tuple(torch.zeros_like(weight) for _ in range(moments))
    peer = torch.nn.Parameter(weight.clone())
    own = {"momentum": 0.9} if moments == 1 else {}
    optimiser = getattr(torch.optim, peer_kind)([peer], lr=0.01, weight_decay=0.1, **own)
    words, once, counts = pack_mask(torch.ones(20, 18, dtype=torch.bool)), torch.zeros(()), torch.zeros(2, 2)
    for n in range(20):
        grad = drawn(20, 18, seed=n, dtype=torch.float64)
        peer.grad = grad.clone()
        optimiser.step()
        if kind == "entries":
            update_entries([EntryUpdate(weight, slots, words, grad, RATES, once)], path)
        else:
            update_blocks([BlockUpdate(weight, slots, torch.arange(4), 16, grad, RATES, counts)], path)
    torch.testing.assert_close(weight, peer.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("moments", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_path_is_the_contract_in_float64(path: Path, dtype: torch.dtype, moments: int, kind: str) -> None:
    """20 updates of several parameters together; all else keeps every bit, full of garbage as it is."""
    updates = made(kind, moments, dtype)
    exact, before = [copied(u, torch.float64) for u in updates], [copied(u) for u in updates]
    for n in range(20):
        run([replace(u, grad=u.grad * (1 - n / 10)) for u in updates], path)
        run([replace(u, grad=u.grad * (1 - n / 10)) for u in exact], "torch")
    tolerance = 1e-5 if dtype is torch.float32 else 1e-12
    for now, true, old in zip(updates, exact, before, strict=True):
        mask = holds(now)
        for a, b, c in zip(seen(now)[:-1], seen(true)[:-1], seen(old)[:-1], strict=True):
            assert torch.equal(bits(a)[~mask], bits(c)[~mask])
            torch.testing.assert_close(a[mask].double(), b[mask], rtol=tolerance, atol=tolerance)
            assert (a != c)[mask].all()
        assert torch.equal(now.count, true.count)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("moments", [0, 2])
@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_the_contract_rounded(path: Path, moments: int, seed: int | None, kind: str) -> None:
    updates = made(kind, moments, torch.bfloat16, seed=seed)
    updates[0].weight[~holds(updates[0])] = torch.nan
    bits(updates[0].weight)[~holds(updates[0])] += 1  # a NaN that rounding would not give
    exact, before = [copied(replace(u, seed=None), torch.float64) for u in updates], [copied(u) for u in updates]
    run(updates, path)
    run(exact, "torch")
    for now, true, old in zip(updates, exact, before, strict=True):
        mask = holds(now)
        apart = (now.weight.double() - true.weight)[mask].abs()
        assert (apart <= true.weight[mask].abs() * (2**-8 if seed is None else 2**-7) * 1.01).all()
        for a, b in zip(seen(now)[:-1], seen(old)[:-1], strict=True):
            assert torch.equal(bits(a)[~mask], bits(b)[~mask])
        for a, b in zip(now.moments, true.moments, strict=True):
            torch.testing.assert_close(a[mask].double(), b[mask], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["entries", "blocks"])
def test_rounding_at_random_is_the_same_on_every_path_and_right_on_average(kind: str) -> None:
    """Steps of 3/16 of the last place of 1: each is 0 or 1 place, 3/16 on average (5 standard deviations)."""
    place, n, found = 2.0**-7, 160 * 256, []
    for path in PATHS:
        weight, grad = torch.ones(160, 256, dtype=torch.bfloat16), torch.full((160, 256), -3 / 16 * place)
        if kind == "entries":
            words, count = pack_mask(torch.ones(160, 256, dtype=torch.bool)), torch.full((), 70_000.0)
            update_entries([EntryUpdate(weight, (), words, grad, Rates(1.0), count, seed=2**31 + 1)], path)
        else:
            every, counts = torch.arange(160), torch.full((10, 16), 70_000.0)
            update_blocks([BlockUpdate(weight, (), every, 16, grad, Rates(1.0), counts, seed=2**31 + 1)], path)
        found.append((weight - 1) / place)
    assert torch.equal(*found)
    assert set(found[0].unique().tolist()) == {0.0, 1.0}
    assert found[0].double().mean().item() == pytest.approx(3 / 16, abs=5 * (3 / 16 * 13 / 16 / n) ** 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_one_call_is_a_call_for_each_parameter_bit_for_bit(kind: str) -> None:
    updates = [u for dtype in (torch.float32, torch.bfloat16) for u in made(kind, 2, dtype)]
    updates += made(kind, 2, torch.bfloat16, seed=3)
    apart = [copied(u) for u in updates]
    for _ in range(3):
        run(updates)
        for update in apart:
            run([update])
    assert all(same(a, b) for a, b in zip(updates, apart, strict=True))


def last_block_of_many(path: Path) -> None:
    """More than 2^31 entries, of which only those of a block and its neighbours are ever touched."""
    weight = torch.empty(2**21 + 2, 1024, dtype=torch.bfloat16)
    weight[-2:] = 1.0
    block, grad = torch.tensor([2**17 * 64 + 1]), torch.ones(1, 16, 16, dtype=torch.bfloat16)
    update_blocks([BlockUpdate(weight, (), block, 16, grad, Rates(0.5))], path)
    changed = (weight[-2:] != 1).nonzero()
    assert changed.tolist() == [[row, column] for row in (0, 1) for column in range(16, 32)]


def test_more_than_32_bits_of_entries() -> None:
    last_block_of_many("compiled")


@pytest.mark.parametrize("path", PATHS)
def test_nothing_active_is_nothing_done(path: Path) -> None:
    no_entry = replace(entries((5, 70), 2, torch.float32), words=torch.zeros(11, dtype=torch.int32))
    no_block = compact(replace(blocks((40, 33), 2, torch.float32), block=torch.empty(0, dtype=torch.int64)))
    for update in (no_entry, no_block):
        old = copied(update)
        run([], path)
        run([update], path)
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(seen(update)[:-1], seen(old)[:-1], strict=True))
    assert no_block.count is not None
    assert not no_block.count.any()


def test_layouts_of_weights_and_gradients() -> None:
    """What is updated does not depend on how tensors lie in memory, the mask's layout following the weight's."""
    mask, found = drawn(8, 4, 3, 3, seed=5) > 0, []
    plain, last = torch.contiguous_format, torch.channels_last
    for weights, moments, grads in (
        (plain, plain, plain),
        (last, last, plain),
        (last, last, last),
        (plain, last, last),
    ):
        weight = drawn(8, 4, 3, 3, seed=0).contiguous(memory_format=weights)
        slots = tuple(torch.zeros(8, 4, 3, 3).contiguous(memory_format=moments) for _ in range(2))
        grad = drawn(8, 4, 3, 3, seed=1).contiguous(memory_format=grads)
        assert path_for(None, weight, *slots) == ("compiled" if weights is moments else "torch")
        words, count = pack_mask(mask.contiguous(memory_format=weights)), torch.zeros(())
        update_entries([EntryUpdate(weight, slots, words, torch.stack([grad, grad], -1)[..., 0], RATES, count)])
        found.append([weight, *slots])
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-6, atol=1e-7)
    assert path_for(None, torch.zeros(4, 6)[:, ::2]) == "torch"
    with pytest.raises(ValueError, match="path compiled needs"):
        path_for("compiled", torch.zeros(4, dtype=torch.float16))


def test_tables_made_once_follow_masks_and_blocks() -> None:
    some = made("entries", 2, torch.float32)[:4]
    twins = [copied(u) for u in some]
    table = EntryTable.of(some)
    for n in range(3):
        for update in (*some, *twins):
            update.words.fill_(0b1011 << n)
            update.words[-1] &= (1 << update.weight.numel() % 32) - 1 if update.weight.numel() % 32 else -1
        table.step()
        update_entries(twins)
    assert all(same(a, b) for a, b in zip(some, twins, strict=True))
    tiles = [replace(u, block=u.block[:1]) for u in made("blocks", 1, torch.float32) if len(u.block)]
    copies, block_table = [copied(u) for u in tiles], BlockTable.of(tiles)
    for block in ([0, 0, 1], [3, 0, 4]):
        block_table.step(torch.tensor(block))
        update_blocks([replace(u, block=torch.tensor([b])) for u, b in zip(copies, block, strict=True)])
    assert all(same(a, b) for a, b in zip(tiles, copies, strict=True))
    with pytest.raises(ValueError, match="the table is for 3"):
        block_table.step(torch.arange(2))
    with pytest.raises(ValueError, match="one device, type and rule"):
        EntryTable.of([*some, entries((3, 3), 1, torch.float32)])


@pytest.mark.parametrize("path", ["torch", "compiled"])
def test_a_change_is_seen_in_the_version_of_weight_and_moments(path: Path) -> None:
    weight, speed, grad = (torch.zeros(8, 8) for _ in range(3))
    words, block = pack_mask(torch.ones(8, 8, dtype=torch.bool)), torch.tensor([0])
    update_entries([EntryUpdate(weight, (speed,), words, grad, RATES)], path)
    before = weight._version, speed._version
    assert min(before) > 0
    update_blocks([BlockUpdate(weight, (speed,), block, 16, grad, RATES)], path)
    assert weight._version > before[0]
    assert speed._version > before[1]


def test_what_does_not_belong_together_is_refused_in_one_line() -> None:
    weight, words = torch.zeros(8, 8), torch.zeros(2, dtype=torch.int32)
    for text, make in (
        ("as pack_mask gives it", lambda: EntryUpdate(weight, (), words[:1], weight, RATES)),
        ("as pack_mask gives it", lambda: EntryUpdate(weight, (), words.repeat(2)[::2], weight, RATES)),
        (r"gradient is \[4, 8\]", lambda: EntryUpdate(weight, (), words, weight[:4], RATES)),
        ("neither the weight's", lambda: BlockUpdate(weight, (), torch.arange(1), 16, weight[:4], RATES)),
        ("need count", lambda: EntryUpdate(weight, (weight, weight), words, weight, RATES)),
        ("sides? 16, 32, 64|of side 16", lambda: BlockUpdate(weight, (), torch.arange(1), 8, weight, RATES)),
        ("of a matrix", lambda: BlockUpdate(weight[0], (), torch.arange(1), 16, weight[0], RATES)),
    ):
        with pytest.raises(ValueError, match=text):
            make()


def test_both_are_operators_that_compile_in_one_graph() -> None:
    some = [*made("entries", 2, torch.float32)[:2], *made("entries", 0, torch.bfloat16, seed=4)[:1]]
    tiles = [*made("blocks", 1, torch.float32)[:2], *made("compact blocks", 2, torch.float32)[:1]]
    others = [copied(u) for u in some], [copied(u) for u in tiles]
    rates = torch.tensor(RATES, dtype=torch.float64)

    def step(rates: Tensor) -> None:
        update_entries([replace(u, grad=u.grad * 2, rates=rates) for u in some])
        update_blocks([replace(u, grad=u.grad * 2, rates=rates) for u in tiles])

    torch.compile(step, fullgraph=True, backend="aot_eager")(rates)
    for twins in others:
        run([replace(u, grad=u.grad * 2) for u in twins])
    assert all(same(a, b) for a, b in zip((*some, *tiles), (*others[0], *others[1]), strict=True))
    w, words = torch.ones(3, 2), torch.ones(1, dtype=torch.int32)
    given: Any = ([w], [w + 1], [w + 2], [torch.zeros(())], [words], [w + 3], [rates], [])
    torch.library.opcheck(torch.ops.driftway.masked_optimizer, given)
    given = ([w], [], [], [], [torch.tensor([0])], 16, [w + 3], [rates], [])
    torch.library.opcheck(torch.ops.driftway.block_masked_optimizer, given)


INTERPRETED = """
import torch
from driftway.models.kernels import masked_optimizer_triton, selection
from test_masked_optimizer import KINDS, copied, last_block_of_many, made, run, seen
assert selection.triton_works("masked_optimizer", torch.device("cpu"))
masked_optimizer_triton.LANES = 64  # several programs a parameter
for kind in KINDS:
    for dtype, seed, moments in ((torch.float32, None, 2), (torch.float32, None, 1), (torch.bfloat16, 5, 0)):
        updates = made(kind, moments, dtype, seed=seed)[::3]
        twins = [copied(u) for u in updates]
        for _ in range(2):
            run(updates, "triton")
            run(twins, "torch")
        rtol = 1e-5 if dtype is torch.float32 else 2**-7
        for one, two in zip(updates, twins):
            torch.testing.assert_close(seen(one), seen(two), rtol=rtol, atol=1e-6, equal_nan=True)
last_block_of_many("triton")
print("agrees")
"""


def test_the_triton_kernels_agree_in_the_interpreter(agrees_in_the_interpreter: Callable[..., None]) -> None:
    agrees_in_the_interpreter(INTERPRETED)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_on_a_gpu_replays_what_the_contract_does(kind: str, dtype: torch.dtype) -> None:
    updates = made(kind, 2, dtype)
    own = "words" if kind == "entries" else "block"
    there = [
        replace(u, weight=u.weight.cuda(), moments=tuple(m.cuda() for m in u.moments), grad=u.grad.cuda(),
                count=u.count.cuda(), **{own: getattr(u, own).cuda()}) for u in updates
    ]  # fmt: skip
    assert {path_for(None, u.weight, *u.moments) for u in there} == {"triton"}
    graph = torch.cuda.CUDAGraph()
    run(there)
    with torch.cuda.graph(graph):
        run(there)
    for _ in range(2):
        graph.replay()
    for _ in range(3):
        run(updates, "torch")
    tolerance = 1e-5 if dtype is torch.float32 else 2**-6
    for one, two in zip(there, updates, strict=True):
        for a, b in zip(seen(one), seen(two), strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=tolerance, atol=tolerance, equal_nan=True)
