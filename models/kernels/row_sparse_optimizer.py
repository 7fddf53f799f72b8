"""Optimiser updates of some rows of parameters: all other rows keep weight, moments and count bit for bit.

A row is what one output channel owns: ``weight[i]``, of any shape. The rows of all parameters of a device are updated
by one call, or one launch, over a table of (parameter, row) pairs. The rules, SGD with and without momentum and AdamW,
are those of ``update_rules``; which of them it is says the number of moments.

The gradient comes in one of three forms: compact ([k, ...], one entry per active row), dense ([rows, ...], of which the
active rows are read), or as two factors whose product is the compact one, ``grad[n, k]`` and ``inputs[n, ...]``:
grad.T @ inputs. The factors save writing and reading a matrix, which pays for few examples.

A count of updates for every row is our choice: a row that wakes late is then bias-corrected like a fresh one.

``path``: "torch" is the contract (any device, any type); "compiled" (CPU) takes one pass over the active rows;
"triton" (CUDA, float32 and bfloat16) is one launch. None chooses. The op is also an operator of PyTorch
(``driftway::row_sparse_optimizer``), which ``torch.compile`` passes by as it is; eager calls go past it, since it would
cost 70 microseconds more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from . import row_sparse_optimizer_compiled as machine
from .parameter_table import LIKE, addresses, aligned, known, laid_out, layout, lines, rates_of, refuse, upload, written
from .selection import choose
from .update_rules import Rates, check, rounded, row_keys, updated, working

Path = Literal["torch", "compiled", "triton"]
FACTORS = 8
"""Examples up to which two factors are faster in AdamW than their product: by 1.15 to 1.2 at 8 examples and 30 to 50 %
of the rows of 4096x1024 and 768x3072 (even at 5 %); even at 16 examples, slower from 32 on."""


@dataclass(frozen=True, slots=True, eq=False)
class RowUpdate:
    """The rows ``index`` (int64[k], rising) of one parameter and what they are updated with, in place.

    moments: none (SGD), the velocity (momentum), or first and second moment (AdamW), of the weight's shape.
    grad, inputs: see the module. rates: numbers, or float64[5] on the device, as a CUDA graph needs it.
    count: float32[rows], the updates of each row so far (up to 2^24); needed by AdamW and where a seed is given.
    seed: round bfloat16 weights stochastically; parameters should have different ones.
    """

    weight: Tensor
    moments: tuple[Tensor, ...]
    index: Tensor
    grad: Tensor
    rates: Rates | Tensor
    count: Tensor | None = None
    inputs: Tensor | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        shape, grad, k = self.weight.shape, self.grad.shape, self.index.shape[0]
        check(self.weight, self.moments, self.count, shape[:1], self.seed)
        if self.inputs is not None:
            fits = grad == (len(self.inputs), k) and self.inputs.numel() == len(self.inputs) * _width(self.weight)
        else:
            fits = grad[1:] == shape[1:] and (grad[0] == k or grad[0] == shape[0])
        if not fits:
            raise ValueError(f"a gradient {list(grad)} is not that of {k} rows of a weight {list(shape)}")


def update_rows(updates: Sequence[RowUpdate], path: Path | None = None) -> None:
    """Update rows of several parameters, those of one device, type and rule in one call."""
    if path is None and torch.compiler.is_compiling():
        _as_operator(updates)
        return
    groups: dict[tuple[Path, tuple[object, ...]], list[RowUpdate]] = {}
    for update in updates:
        own = path_for(path, update)
        if own == "torch":
            _reference(update)
        else:
            ready = _prepared(update, own)
            groups.setdefault((own, _kind(ready)), []).append(ready)
    for (own, _), some in groups.items():
        row = some[0].index if len(some) == 1 else torch.cat([update.index for update in some])
        if own == "compiled":
            written(some)
            rates = rates_of([update.rates for update in some], row.device)
            _compiled(some[0], *_addresses(some), rates.numpy(), row.numpy())
        else:
            RowTable._of(some, own).step(row)


def path_for(path: Path | None, update: RowUpdate) -> Path:
    """The asked path, else by device; the contract where types or layouts are none that the others know."""
    if not known(update.weight, *update.moments):
        return refuse(path)
    return choose(path, "row_sparse_optimizer", update.weight, "compiled", "torch")


def _kind(update: RowUpdate) -> tuple[object, ...]:
    """What updates in one call have in common."""
    weight, grad = update.weight, update.grad
    return weight.device, weight.dtype, grad.dtype, len(update.moments), update.count is None, update.seed is None


def _prepared(update: RowUpdate, path: Path) -> RowUpdate:
    """The update with a gradient as the path reads it: laid out like the weight; in compiled code, of moments' type."""
    order, real = layout(update.weight), working(update.weight.dtype)
    assert order is not None
    grad, inputs = update.grad, update.inputs
    if inputs is not None and path == "triton":
        grad, inputs = compact_gradient(update), None
    if path == "compiled" and grad.dtype is not real:
        grad = grad.to(real)
    if inputs is not None:
        grad, inputs = grad.contiguous(), laid_out(inputs.to(real), order)
    else:
        grad = laid_out(grad, order)
    return update if grad is update.grad and inputs is update.inputs else replace(update, grad=grad, inputs=inputs)


def compact_gradient(update: RowUpdate) -> Tensor:
    """The gradient of the active rows, [k, ...], from any of its three forms."""
    weight, index, grad, inputs = update.weight, update.index, update.grad, update.inputs
    if inputs is not None:
        return (grad.t() @ inputs.reshape(len(inputs), _width(weight))).view(len(index), *weight.shape[1:])
    return grad if grad.shape[0] == index.shape[0] else grad[index]


# --- the contract ---------------------------------------------------------------------------------------------------


def _reference(update: RowUpdate) -> None:
    weight, index, count = update.weight.detach(), update.index, update.count
    order, real = layout(weight), working(weight.dtype)
    if not len(index):
        return
    if count is not None:
        count[index] += 1
    times = None if count is None else count[index]
    w, g, *moments = (
        lines(tensor, order).to(real)
        for tensor in (weight[index], compact_gradient(update).detach(), *(m[index] for m in update.moments))
    )
    w, moments = updated(w, g, moments, tuple(update.rates), times)
    keys = None
    if update.seed is not None:
        assert times is not None
        keys = row_keys(update.seed, index, times)
    for tensor, new in zip((weight, *update.moments), (rounded(w, weight.dtype, keys), *moments), strict=True):
        tensor[index] = _shaped(new, weight, order)


def _shaped(rows: Tensor, weight: Tensor, order: torch.memory_format | None) -> Tensor:
    """Rows [k, entries], whose entries are in the order of ``lines``, in the shape of the weight's."""
    if order is None or order is torch.contiguous_format:
        return rows.view(len(rows), *weight.shape[1:])
    return rows.view(len(rows), *weight.shape[2:], weight.shape[1]).movedim(-1, 1)


# --- one call for all -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class RowTable:
    """Updates of one device, type and rule whose tensors stay where they are: from then on only the rows change.

    Made once for gradients in buffers that stay, it is what a CUDA graph captures: a step is one launch.
    tensor: int64[E], the parameter of each active row. where: the table of addresses. rates: float64[P, 5], which may
    be written to. All on the device. The updates are held, so that their tensors stay.
    """

    updates: tuple[RowUpdate, ...]
    tensor: Tensor
    where: Tensor
    rates: Tensor
    path: Path

    widest: int
    even: bool

    @classmethod
    def of(cls, updates: Sequence[RowUpdate], path: Path | None = None) -> RowTable:
        """``ValueError`` where they are not of one kind, or a gradient does not lie as its path reads it."""
        path = path_for(path, updates[0])
        if len({_kind(update) for update in updates}) > 1 or path == "torch":
            raise ValueError("a table is for weights and gradients of one device, type and rule: make one for each")
        if any(_prepared(update, path) is not update for update in updates):
            raise ValueError("a table reads gradients where they lie: lay them out like the weight")
        return cls._of(updates, path)

    @classmethod
    def _of(cls, updates: Sequence[RowUpdate], path: Path) -> RowTable:
        device = updates[0].weight.device
        where, numbers, widest = _addresses(updates)
        even = path == "triton" and all(
            _width(u.weight) % 16 == 0 and aligned(u.weight, u.grad, *u.moments) for u in updates
        )
        tensor, places = (upload(torch.from_numpy(array), device) for array in (numbers, where))
        rates = rates_of([update.rates for update in updates], device)
        return cls(tuple(updates), tensor, places, rates, path, widest, even)

    def step(self, row: Tensor) -> None:
        """Update rows int64[E], those of each parameter (rising) behind those of the one before."""
        if row.shape != self.tensor.shape:
            raise ValueError(f"the table is for {len(self.tensor)} active rows, not {tuple(row.shape)}")
        first = self.updates[0]
        written(self.updates)
        if self.path == "triton":
            from . import row_sparse_optimizer_triton as triton

            types = first.weight.dtype, first.grad.dtype
            rule = len(first.moments), first.count is not None, first.seed is not None
            triton.update_rows(self.where, self.rates, self.tensor, row, types, rule, self.widest, self.even)
            return
        where, tensor, rates, rows = (t.numpy() for t in (self.where, self.tensor, self.rates, row))
        _compiled(first, where, tensor, self.widest, rates, rows)


def _compiled(
    first: RowUpdate, where: np.ndarray, tensor: np.ndarray, widest: int, rates: np.ndarray, row: np.ndarray
) -> None:
    """What a table holds, in compiled code. first: any of its updates."""
    given = where, rates, tensor, row, len(first.moments), widest
    if first.weight.dtype is torch.bfloat16:
        machine.update_short_rows(*given, first.seed is not None)
    else:
        machine.update_rows(*given, LIKE[first.weight.dtype])


def _width(weight: Tensor) -> int:
    return weight.numel() // max(1, weight.shape[0])


def _addresses(updates: Sequence[RowUpdate]) -> tuple[np.ndarray, np.ndarray, int]:
    """The table of addresses, the parameter of each active row, and the entries of the widest row."""
    found, counts, start, widest = [], [], 0, 0
    for u in updates:
        grad, k, width = u.grad.data_ptr(), u.index.shape[0], _width(u.weight)
        if u.inputs is not None:
            own = (u.inputs.data_ptr(), width, start, u.seed or 0, grad, u.inputs.shape[0], k)
        else:
            own = (grad, width, start if u.grad.shape[0] == k else -1, u.seed or 0, 0, 0, k)
        found.append((*addresses(u.weight, u.moments, u.count), *own))
        counts.append(k)
        start, widest = start + k, max(widest, width)
    return np.array(found, np.int64), np.repeat(np.arange(len(counts)), counts), widest


# --- as an operator of PyTorch --------------------------------------------------------------------------------------


@torch.library.custom_op("driftway::row_sparse_optimizer", mutates_args=("weights", "firsts", "seconds", "counts"))
def _operator(
    weights: list[Tensor],
    firsts: list[Tensor],
    seconds: list[Tensor],
    counts: list[Tensor],
    indices: list[Tensor],
    grads: list[Tensor],
    rates: list[Tensor],
    seeds: list[int],
) -> None:
    """``update_rows`` of lists; those of moments, counts and seeds are empty where there are none."""
    moments = list(zip(*(some for some in (firsts, seconds) if some))) or [()] * len(weights)
    update_rows(
        [
            RowUpdate(w, tuple(m), i, g, r, counts[p] if counts else None, None, seeds[p] if seeds else None)
            for p, (w, m, i, g, r) in enumerate(zip(weights, moments, indices, grads, rates, strict=True))
        ]
    )


@_operator.register_fake
def _(*_: object) -> None: ...


def _as_operator(updates: Sequence[RowUpdate]) -> None:
    """Under ``torch.compile``: one call for each rule."""
    groups: dict[tuple[int, bool, bool], list[RowUpdate]] = {}
    for update in updates:
        kind = (len(update.moments), update.count is None, update.seed is None)
        groups.setdefault(kind, []).append(update)
    for (moments, uncounted, exact), some in groups.items():
        torch.ops.driftway.row_sparse_optimizer(
            [u.weight.detach() for u in some],
            [u.moments[0] for u in some] if moments else [],
            [u.moments[1] for u in some] if moments == 2 else [],
            [] if uncounted else [u.count for u in some],
            [u.index for u in some],
            [compact_gradient(u).detach() for u in some],
            [u.rates if isinstance(u.rates, Tensor) else torch.tensor(u.rates, dtype=torch.float64) for u in some],
            [] if exact else [u.seed for u in some],
        )
