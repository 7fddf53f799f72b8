"""Optimiser updates of single entries or of square blocks of parameters: where the mask does not hold, every bit stays.

All parameters of a device are updated by one call, or one launch, and no mask is multiplied onto anything. The rules
are those of ``update_rules``; which of them it is says the number of moments.

Entries: the mask is packed, one bit an entry (``pack_mask``). AdamW has one count of updates for the whole parameter.
Blocks of side 16, 32 or 64 of a matrix [rows, columns], those at the edges smaller: int64[k], rising, block
r * across + c standing at block row r and block column c of ceil(columns / side) = across. Every block has a count of
its own, so that one that wakes late is bias-corrected like a fresh one (ours). Their gradient is dense, or compact:
[k, side, side], any number beyond the edge.

``path``: "torch" is the contract (any device, any type); "compiled" (CPU) is one pass over memory, which leaves out
blocks, and pieces of 1024 entries, without active ones; "triton" (CUDA, float32 and bfloat16) is one launch. None
chooses. Both are operators of PyTorch (``driftway::masked_optimizer``, ``driftway::block_masked_optimizer``), which
``torch.compile`` passes by as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from . import masked_optimizer_compiled as machine
from .parameter_table import (
    LIKE,
    START,
    addresses,
    aligned,
    known,
    laid_out,
    layout,
    lines,
    rates_of,
    refuse,
    upload,
    written,
)
from .selection import choose
from .update_rules import LOW, Rates, check, rounded, row_keys, updated, working

Path = Literal["torch", "compiled", "triton"]
SIDES = (16, 32, 64)
U = TypeVar("U", "EntryUpdate", "BlockUpdate")


# --- packed masks ---------------------------------------------------------------------------------------------------


def pack_mask(mask: Tensor) -> Tensor:
    """int32[ceil(n / 32)]: entry j of the mask (bool), in the order in which it lies in memory, is bit j % 32 of word
    j // 32. A mask is packed in the layout of the weight it is for; bits beyond the end are 0."""
    order = layout(mask)
    flat = lines(mask if mask.dim() else mask[None], order).reshape(-1)
    padded = torch.nn.functional.pad(flat.view(torch.uint8), (0, -len(flat) % 32))
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=mask.device)
    return (padded.view(-1, 8) * weights).sum(1, dtype=torch.uint8).view(torch.int32)


def unpack_mask(words: Tensor, like: Tensor) -> Tensor:
    """bool, of the shape and layout of ``like``: the mask whose packed form ``words`` is."""
    bits = words.view(torch.uint8)[:, None] >> torch.arange(8, dtype=torch.uint8, device=words.device)
    flat = (bits & 1).bool().view(-1)[: like.numel()]
    order = layout(like)
    if order is None or order is torch.contiguous_format:
        return flat.view(like.shape)
    return flat.view(like.movedim(1, -1).shape).movedim(-1, 1)


# --- entries --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class EntryUpdate:
    """The entries of one parameter whose bit is set in ``words`` and what they are updated with, in place.

    moments: none (SGD), the velocity (momentum), or first and second moment (AdamW), of the weight's shape; so is grad.
    rates: numbers, or float64[5] on the device. count: float32[], the updates so far; needed by AdamW and where a seed
    is given. seed: round bfloat16 weights stochastically; parameters should have different ones.
    """

    weight: Tensor
    moments: tuple[Tensor, ...]
    words: Tensor
    grad: Tensor
    rates: Rates | Tensor
    count: Tensor | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        check(self.weight, self.moments, self.count, (), self.seed)
        words, rest = self.words, -self.weight.numel() % 32
        if words.dtype != torch.int32 or words.numel() * 32 != self.weight.numel() + rest or not words.is_contiguous():
            raise ValueError("words must be the weight's mask as pack_mask gives it")
        if self.grad.shape != self.weight.shape:
            raise ValueError(f"the gradient is {list(self.grad.shape)} and the weight {list(self.weight.shape)}")


def update_entries(updates: Sequence[EntryUpdate], path: Path | None = None) -> None:
    """Update entries of several parameters, those of one device, type and rule in one call (counts in another)."""
    if path is None and torch.compiler.is_compiling():
        _entries_as_operator(updates)
        return
    groups: dict[tuple[Path, tuple[object, ...]], list[EntryUpdate]] = {}
    for update in updates:
        own = path_for(path, update.weight, *update.moments)
        if own == "torch":
            _entries_reference(update)
        else:
            ready = _ready(update, own)
            groups.setdefault((own, _kind(ready)), []).append(ready)
    for (own, _), some in groups.items():
        if own == "compiled":
            written(some)
            _count(some)
            rates = rates_of([update.rates for update in some], some[0].weight.device)
            _compiled(some[0], _entry_table(some), rates.numpy())
        else:
            EntryTable._of(some, own).step()


def path_for(path: Path | None, weight: Tensor, *moments: Tensor) -> Path:
    """The asked path, else by device; the contract where types or layouts are none that the others know."""
    if not known(weight, *moments):
        return refuse(path)
    return choose(path, "masked_optimizer", weight, "compiled", "torch")


def _kind(update: EntryUpdate | BlockUpdate) -> tuple[object, ...]:
    """What updates in one call have in common."""
    weight, side = update.weight, update.side if isinstance(update, BlockUpdate) else 0
    counts = update.count is None, update.seed is None
    return weight.device, weight.dtype, update.grad.dtype, len(update.moments), *counts, side


def _ready(update: U, path: Path) -> U:
    """The update with a gradient as the path reads it: laid out like the weight; in compiled code, of moments' type."""
    order, grad = layout(update.weight), update.grad
    assert order is not None
    grad = laid_out(grad.to(working(update.weight.dtype)) if path == "compiled" else grad, order)
    return update if grad is update.grad else replace(update, grad=grad)


def _entries_reference(update: EntryUpdate) -> None:
    if update.count is not None:
        update.count.add_(1)
    _where_it_holds(update, unpack_mask(update.words, update.weight), update.grad, update.count)


def _where_it_holds(update: EntryUpdate | BlockUpdate, mask: Tensor, grad: Tensor, count: Tensor | None) -> None:
    """All entries are updated, and taken where the mask holds. count: one number, or of the weight's shape."""
    weight = update.weight.detach()
    order, real = layout(weight), working(weight.dtype)
    if not weight.numel():
        return

    def flat(tensor: Tensor) -> Tensor:
        return lines(tensor if tensor.dim() else tensor[None], order).reshape(-1, 1)

    times = None if count is None else flat(count.expand_as(weight))[:, 0]
    w, g, *moments = (flat(tensor).to(real) for tensor in (weight, grad.detach(), *update.moments))
    w, moments = updated(w, g, moments, tuple(update.rates), times)
    keys = column = None
    if update.seed is not None:
        assert times is not None
        row, column = _random_place(update, len(w), weight.device)
        keys = row_keys(update.seed, row, times)
    for tensor, new in zip((weight, *update.moments), (rounded(w, weight.dtype, keys, column), *moments), strict=True):
        shape = tensor.shape if order in (None, torch.contiguous_format) else tensor.movedim(1, -1).shape
        moved = new.view(shape) if shape == tensor.shape else new.view(shape).movedim(-1, 1)
        tensor.copy_(torch.where(mask, moved, tensor))


def _random_place(update: EntryUpdate | BlockUpdate, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row [n] and column [n, 1] from which the random bits of each entry come."""
    at = torch.arange(n, device=device)
    if isinstance(update, EntryUpdate):
        return at >> 32, (at & LOW)[:, None]
    width = update.weight.shape[1]
    return at // width, (at % width)[:, None]


@dataclass(frozen=True, slots=True, eq=False)
class EntryTable:
    """Updates of one device, type and rule whose tensors stay where they are: what a CUDA graph captures, as
    ``row_sparse_optimizer.RowTable``. Masks may be written to."""

    updates: tuple[EntryUpdate, ...]
    where: Tensor
    rates: Tensor
    path: Path
    programs: int

    @classmethod
    def of(cls, updates: Sequence[EntryUpdate], path: Path | None = None) -> EntryTable:
        """``ValueError`` where they are not of one kind, or a gradient does not lie as its path reads it."""
        path = path_for(path, updates[0].weight, *updates[0].moments)
        _check_table(updates, path)
        return cls._of(updates, path)

    @classmethod
    def _of(cls, updates: Sequence[EntryUpdate], path: Path) -> EntryTable:
        device, table, programs = updates[0].weight.device, _entry_table(updates), 0
        if path == "triton":
            from . import masked_optimizer_triton as triton

            ends = np.cumsum([triton.programs(u.weight.numel()) for u in updates])
            table[1:, START], programs = ends[:-1], int(ends[-1])
        where = upload(torch.from_numpy(table), device)
        return cls(tuple(updates), where, rates_of([u.rates for u in updates], device), path, programs)

    def step(self) -> None:
        """Update the entries that the masks say."""
        first = self.updates[0]
        written(self.updates)
        _count(self.updates)
        if self.path == "triton":
            from . import masked_optimizer_triton as triton

            types, rule = (first.weight.dtype, first.grad.dtype), (len(first.moments), first.seed is not None)
            triton.update_entries(self.where, self.rates, types, rule, self.programs)
            return
        _compiled(first, self.where.numpy(), self.rates.numpy())


def _count(updates: Sequence[EntryUpdate]) -> None:
    counts = [u.count for u in updates if u.count is not None]
    if counts:
        torch._foreach_add_(counts, 1)


def _compiled(first: EntryUpdate, where: np.ndarray, rates: np.ndarray) -> None:
    """What a table holds, in compiled code. first: any of its updates."""
    if first.weight.dtype is torch.bfloat16:
        machine.update_short_entries(where, rates, len(first.moments), first.seed is not None)
    else:
        machine.update_entries(where, rates, len(first.moments), LIKE[first.weight.dtype])


def _entry_table(updates: Sequence[EntryUpdate]) -> np.ndarray:
    """The table of addresses; where programs start is left to be filled in."""
    own = [(u.weight.numel(), 0, u.seed or 0, u.words.data_ptr(), 0, 0) for u in updates]
    return np.array([(*_addresses(u), *others) for u, others in zip(updates, own)], np.int64)


def _check_table(updates: Sequence[U], path: Path) -> None:
    if len({_kind(update) for update in updates}) > 1 or path == "torch":
        raise ValueError("a table is for weights and gradients of one device, type and rule: make one for each")
    if any(_ready(update, path) is not update for update in updates):
        raise ValueError("a table reads gradients where they lie: lay them out like the weight")


def _addresses(update: EntryUpdate | BlockUpdate) -> tuple[int, ...]:
    """Of weight, both moments, count and gradient."""
    return *addresses(update.weight, update.moments, update.count), update.grad.data_ptr()


# --- blocks ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class BlockUpdate:
    """The blocks ``block`` (int64[k], rising) of one matrix and what they are updated with, in place.

    As ``EntryUpdate``; grad dense or [k, side, side]; count: float32[down, across], the updates of each block so far.
    """

    weight: Tensor
    moments: tuple[Tensor, ...]
    block: Tensor
    side: int
    grad: Tensor
    rates: Rates | Tensor
    count: Tensor | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.side not in SIDES or self.weight.dim() != 2:
            raise ValueError(f"blocks are of side {', '.join(map(str, SIDES))} and of a matrix [rows, columns]")
        check(self.weight, self.moments, self.count, grid(self.weight, self.side), self.seed)
        if self.grad.shape not in (self.weight.shape, (len(self.block), self.side, self.side)):
            raise ValueError(f"a gradient {list(self.grad.shape)} is neither the weight's nor that of its blocks")


def grid(weight: Tensor, side: int) -> tuple[int, int]:
    """How many blocks stand on one another, and side by side."""
    return -(-weight.shape[0] // side), -(-weight.shape[1] // side)


def update_blocks(updates: Sequence[BlockUpdate], path: Path | None = None) -> None:
    """Update blocks of several parameters, those of one device, type, rule and side in one call."""
    if path is None and torch.compiler.is_compiling():
        _blocks_as_operator(updates)
        return
    groups: dict[tuple[Path, tuple[object, ...]], list[BlockUpdate]] = {}
    for update in updates:
        own = path_for(path, update.weight, *update.moments)
        if own == "torch":
            _blocks_reference(update)
        else:
            ready = _ready(update, own)
            groups.setdefault((own, _kind(ready)), []).append(ready)
    for (own, _), some in groups.items():
        block = some[0].block if len(some) == 1 else torch.cat([update.block for update in some])
        BlockTable._of(some, own).step(block)


def _blocks_reference(update: BlockUpdate) -> None:
    weight, side, count, block = update.weight, update.side, update.count, update.block
    (down, across), (rows, columns) = grid(weight, side), weight.shape

    def spread(tiles: Tensor) -> Tensor:
        """[rows, columns] out of [down * across, side, side] or [down * across, 1, 1]."""
        wide = tiles.expand(-1, side, side).reshape(down, across, side, side).transpose(1, 2)
        return wide.reshape(down * side, across * side)[:rows, :columns]

    if count is not None:
        count.view(-1)[block] += 1
    there = torch.zeros(down * across, 1, 1, dtype=torch.bool, device=weight.device)
    there[block] = True
    grad = update.grad
    if grad.dim() == 3:
        grad = spread(grad.new_zeros(down * across, side, side).index_copy(0, block, grad))
    times = None if count is None else spread(count.reshape(-1, 1, 1)).clamp(min=1)
    _where_it_holds(update, spread(there), grad, times)


@dataclass(frozen=True, slots=True, eq=False)
class BlockTable:
    """The same for blocks: from then on only their numbers change, how many there are of each parameter does not."""

    updates: tuple[BlockUpdate, ...]
    tensor: Tensor
    where: Tensor
    rates: Tensor
    path: Path
    even: bool

    @classmethod
    def of(cls, updates: Sequence[BlockUpdate], path: Path | None = None) -> BlockTable:
        """``ValueError`` where they are not of one kind, or a gradient does not lie as its path reads it."""
        path = path_for(path, updates[0].weight, *updates[0].moments)
        _check_table(updates, path)
        return cls._of(updates, path)

    @classmethod
    def _of(cls, updates: Sequence[BlockUpdate], path: Path) -> BlockTable:
        device, found, start = updates[0].weight.device, [], 0
        for u in updates:
            rows, columns = u.weight.shape
            own = columns, start if u.grad.dim() == 3 else -1, u.seed or 0, grid(u.weight, u.side)[1], rows, 0
            found.append((*_addresses(u), *own))
            start += len(u.block)
        numbers = np.repeat(np.arange(len(updates)), [len(u.block) for u in updates])
        tensor, where = (upload(torch.from_numpy(t), device) for t in (numbers, np.array(found, np.int64)))
        even = path == "triton" and all(
            u.weight.shape[1] % 16 == 0 and aligned(u.weight, u.grad, *u.moments) for u in updates
        )
        return cls(tuple(updates), tensor, where, rates_of([u.rates for u in updates], device), path, even)

    def step(self, block: Tensor) -> None:
        """Update blocks int64[E], those of each parameter (rising) behind those of the one before."""
        if block.shape != self.tensor.shape:
            raise ValueError(f"the table is for {len(self.tensor)} active blocks, not {tuple(block.shape)}")
        first = self.updates[0]
        written(self.updates)
        moments, counted, random = len(first.moments), first.count is not None, first.seed is not None
        if self.path == "triton":
            from . import masked_optimizer_triton as triton

            types, rule = (first.weight.dtype, first.grad.dtype), (moments, counted, random)
            triton.update_blocks(self.where, self.rates, self.tensor, block, types, rule, first.side, self.even)
            return
        given = *(t.numpy() for t in (self.where, self.rates, self.tensor, block)), first.side, moments
        if first.weight.dtype is torch.bfloat16:
            machine.update_short_blocks(*given, random)
        else:
            machine.update_blocks(*given, LIKE[first.weight.dtype])


# --- as operators of PyTorch ----------------------------------------------------------------------------------------


@torch.library.custom_op("driftway::masked_optimizer", mutates_args=("weights", "firsts", "seconds", "counts"))
def _entries_operator(
    weights: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    counts: list[Tensor],
    words: list[Tensor],
    grads: list[Tensor],
    rates: list[Tensor],
    seeds: list[int],
) -> None:
    """``update_entries`` of lists; those of moments, counts and seeds are empty where there are none."""
    slots = _slots(len(weights), firsts, seconds, counts, seeds)
    given = zip(weights, words, grads, rates, slots, strict=True)
    update_entries([EntryUpdate(w, moments, m, g, r, count, seed) for w, m, g, r, (moments, count, seed) in given])


@torch.library.custom_op("driftway::block_masked_optimizer", mutates_args=("weights", "firsts", "seconds", "counts"))
def _blocks_operator(
    weights: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    counts: list[Tensor],
    blocks: list[Tensor],
    side: int,
    grads: list[Tensor],
    rates: list[Tensor],
    seeds: list[int],
) -> None:
    """``update_blocks`` of lists."""
    slots = _slots(len(weights), firsts, seconds, counts, seeds)
    given = zip(weights, blocks, grads, rates, slots, strict=True)
    update_blocks([BlockUpdate(w, moments, b, side, g, r, count, seed) for w, b, g, r, (moments, count, seed) in given])


@_entries_operator.register_fake
def _(*_: object) -> None: ...


@_blocks_operator.register_fake
def _(*_: object) -> None: ...


def _slots(
    n: int, firsts: list[Tensor], seconds: list[Tensor], counts: list[Tensor], seeds: list[int]
) -> list[tuple[tuple[Tensor, ...], Tensor | None, int | None]]:
    """Moments, count and seed of n parameters."""
    moments = list(zip(*(some for some in (firsts, seconds) if some))) or [()] * n
    none = (None,) * n
    return list(zip(moments, counts or none, seeds or none))


def _rules(updates: Sequence[U]) -> list[list[U]]:
    """Updates apart by what one call of an operator has in common."""
    groups: dict[object, list[U]] = {}
    for update in updates:
        groups.setdefault(_kind(update), []).append(update)
    return list(groups.values())


def _lists(updates: Sequence[EntryUpdate] | Sequence[BlockUpdate]) -> tuple[list[list[Tensor]], list[int]]:
    """Weights, first and second moments, counts, gradients and rates; seeds."""
    moments = len(updates[0].moments)
    rates = [u.rates if isinstance(u.rates, Tensor) else torch.tensor(u.rates, dtype=torch.float64) for u in updates]
    tensors = [
        [u.weight.detach() for u in updates],
        [u.moments[0] for u in updates] if moments else [],
        [u.moments[1] for u in updates] if moments == 2 else [],
        [u.count for u in updates if u.count is not None],
        [u.grad.detach() for u in updates],
        rates,
    ]
    return tensors, [u.seed for u in updates if u.seed is not None]


def _entries_as_operator(updates: Sequence[EntryUpdate]) -> None:
    for some in _rules(updates):
        (*own, grads, rates), seeds = _lists(some)
        torch.ops.driftway.masked_optimizer(*own, [u.words for u in some], grads, rates, seeds)


def _blocks_as_operator(updates: Sequence[BlockUpdate]) -> None:
    for some in _rules(updates):
        (*own, grads, rates), seeds = _lists(some)
        torch.ops.driftway.block_masked_optimizer(*own, [u.block for u in some], some[0].side, grads, rates, seeds)
