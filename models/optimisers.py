"""Optimisers whose state is plain and whose updates can be held to some entries or rows of a parameter.

What an update may not touch keeps its weight, its moments and its place under weight decay bit for bit: that is what
sparse training means here, and what a mask multiplied onto a gradient does not give as soon as there is momentum.

Dense updates go through PyTorch's fused and multi-tensor functions; updates of single rows and entries through
``kernels``. So do all updates of bfloat16 weights: their moments are float32, the new weight is computed in float32 and
rounded stochastically (``kernels/update_rules.py``), since steps below half a last place would otherwise be lost. They
have a count of updates for every row, as the random bits are drawn from it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .kernels.masked_optimizer import EntryUpdate, pack_mask, update_entries
from .kernels.row_sparse_optimizer import RowUpdate, update_rows
from .kernels.update_rules import Rates, working

Slots = dict[str, dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Entries:
    """The entries whose bit is set in ``words``: a mask in the parameter's layout, packed by ``pack_mask``."""

    words: Tensor

    @classmethod
    def where(cls, mask: Tensor) -> Entries:
        """Those where the mask (bool, of the parameter's shape and layout) holds."""
        return cls(pack_mask(mask))


@dataclass(frozen=True, slots=True)
class RowSet:
    """The rows (first axis) in ``index``: int64, rising. compact: the gradient holds these rows only.

    inputs: where given, [n, ...], the gradient is one of two factors, [n, k]: that of row r is grad[:, r] @ inputs.
    """

    index: Tensor
    compact: bool = False
    inputs: Tensor | None = None

    @classmethod
    def all(cls, weight: Tensor) -> RowSet:
        """All rows of a parameter."""
        return cls(torch.arange(len(weight) if weight.dim() else 1, device=weight.device), compact=True)


Only = Entries | RowSet


class SGD:
    """v = momentum v + g + decay w; w = w - lr v (v is kept only where there is momentum).

    slots: ``momentum`` per parameter, and ``t``, float32[rows], of bfloat16 ones. undecayed: names that weight decay
    leaves alone. seed: of the rounding of bfloat16.
    """

    def __init__(self, lr: float, momentum: float = 0.0, weight_decay: float = 0.0, *, seed: int = 0) -> None:
        self.lr, self.momentum, self.weight_decay, self.seed = lr, momentum, weight_decay, seed
        self.slots: Slots = {}
        self.undecayed: set[str] = set()

    def step(self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor | None], only: Mapping[str, Only]) -> None:
        """One update, in place. A parameter without gradient is left alone."""
        with torch.no_grad():
            limited: dict[str, Only] = dict(only)
            for names, decay in dense_groups(grads, only, self.undecayed, self.weight_decay):
                limited |= {n: RowSet.all(params[n]) for n in names if is_short(params[n])}
                if whole := [n for n in names if n not in limited]:
                    self._all(whole, params, grads, decay)
            there = [(name, some, grads[name]) for name, some in limited.items() if grads.get(name) is not None]
            update_some([self._some(name, params[name], _there(grad), some) for name, some, grad in there])

    def _all(
        self, names: list[str], params: Mapping[str, Tensor], grads: Mapping[str, Tensor | None], decay: float
    ) -> None:
        weights, steps = [params[n] for n in names], [_there(grads[n]) for n in names]
        if decay:
            steps = list(torch._foreach_add(steps, weights, alpha=decay))
        if self.momentum:
            kept = [self._velocity(n, params[n]) for n in names]
            torch._foreach_mul_(kept, self.momentum)
            torch._foreach_add_(kept, steps)
            steps = kept
        torch._foreach_add_(weights, steps, alpha=-self.lr)

    def _some(self, name: str, weight: Tensor, grad: Tensor, some: Only) -> EntryUpdate | RowUpdate:
        decay = 0.0 if name in self.undecayed else self.weight_decay
        moments = (self._velocity(name, weight),) if self.momentum else ()
        rates = Rates(self.lr, self.momentum, weight_decay=decay)
        if is_short(weight):
            slot = self.slots.setdefault(name, {})
            slot.setdefault("t", torch.zeros((), device=weight.device))
            return _rounded(self.seed, name, weight, moments, grad, rates, slot, some)
        if isinstance(some, Entries):
            return EntryUpdate(weight, moments, some.words, grad, rates)
        return RowUpdate(weight, moments, some.index, grad, rates, inputs=some.inputs)

    def _velocity(self, name: str, weight: Tensor) -> Tensor:
        slot = self.slots.setdefault(name, {})
        if "momentum" not in slot:
            slot["momentum"] = torch.zeros_like(weight, dtype=working(weight.dtype))
        return slot["momentum"]

    def state(self) -> dict[str, Any]:
        """The slots, by reference."""
        return {name: dict(slot) for name, slot in self.slots.items()}

    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over a copy of slots."""
        self.slots = {name: {k: t.clone() for k, t in slot.items()} for name, slot in state.items()}


class AdamW:
    """Adam with decoupled weight decay (Loshchilov, Hutter, ICLR 2019), bias-corrected.

    m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2;
    w = w (1 - lr decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps).
    slots per parameter: ``m``, ``v`` and ``t``: float32[] where every update touched all of it, float32[rows] once
    updates were held to rows, each row then having a count of its own. seed: of the rounding of bfloat16.
    """

    def __init__(
        self,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        seed: int = 0,
    ) -> None:
        self.lr, self.betas, self.eps, self.weight_decay, self.seed = lr, betas, eps, weight_decay, seed
        self.slots: Slots = {}
        self.undecayed: set[str] = set()

    def step(self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor | None], only: Mapping[str, Only]) -> None:
        """One update, in place. A parameter without gradient is left alone."""
        with torch.no_grad():
            limited: dict[str, Only] = dict(only)
            for names, decay in dense_groups(grads, only, self.undecayed, self.weight_decay):
                by_row = (n for n in names if self._slot(n, params[n])["t"].dim() or is_short(params[n]))
                limited |= {n: RowSet.all(params[n]) for n in by_row}
                if whole := [n for n in names if n not in limited]:
                    self._all(whole, params, grads, decay)
            there = [(name, some, grads[name]) for name, some in limited.items() if grads.get(name) is not None]
            update_some([self._some(name, params[name], _there(grad), some) for name, some, grad in there])

    def _all(
        self, names: list[str], params: Mapping[str, Tensor], grads: Mapping[str, Tensor | None], decay: float
    ) -> None:
        slots = [self.slots[n] for n in names]
        steps = [slot["t"] for slot in slots]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            [params[n] for n in names],
            [_there(grads[n]) for n in names],
            [slot["m"] for slot in slots],
            [slot["v"] for slot in slots],
            [],
            steps,
            lr=self.lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=decay,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )
        increment_version([params[n] for n in names])  # the fused function leaves it alone; packed copies look at it

    def _some(self, name: str, weight: Tensor, grad: Tensor, some: Only) -> EntryUpdate | RowUpdate:
        slot = self._slot(name, weight)
        decay = 0.0 if name in self.undecayed else self.weight_decay
        rates, moments = Rates(self.lr, *self.betas, self.eps, decay), (slot["m"], slot["v"])
        if is_short(weight):
            return _rounded(self.seed, name, weight, moments, grad, rates, slot, some)
        if isinstance(some, Entries):
            return EntryUpdate(weight, moments, some.words, grad, rates, slot["t"])
        return RowUpdate(weight, moments, some.index, grad, rates, _by_row(slot, weight), some.inputs)

    def _slot(self, name: str, weight: Tensor) -> dict[str, Tensor]:
        slot = self.slots.setdefault(name, {})
        if not slot:
            slot |= {key: torch.zeros_like(weight, dtype=working(weight.dtype)) for key in ("m", "v")}
            slot["t"] = torch.zeros((), dtype=torch.float32, device=weight.device)
        return slot

    def state(self) -> dict[str, Any]:
        """The slots, by reference."""
        return {name: dict(slot) for name, slot in self.slots.items()}

    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over a copy of slots."""
        self.slots = {name: {k: t.clone() for k, t in slot.items()} for name, slot in state.items()}


Optimiser = SGD | AdamW


def update_some(updates: Iterable[EntryUpdate | RowUpdate]) -> None:
    """Make updates of rows and entries: one call for all rows, one for all entries (of one device and type)."""
    entries: list[EntryUpdate] = []
    rows: list[RowUpdate] = []
    for update in updates:
        if isinstance(update, EntryUpdate):
            entries.append(update)
        else:
            rows.append(update)
    update_rows(rows)
    update_entries(entries)


def is_short(weight: Tensor) -> bool:
    """Whether updates of the weight are computed in a longer type and rounded."""
    return weight.dtype is torch.bfloat16


def _rounded(
    seed: int,
    name: str,
    weight: Tensor,
    moments: tuple[Tensor, ...],
    grad: Tensor,
    rates: Rates,
    slot: dict[str, Tensor],
    some: Only,
) -> EntryUpdate | RowUpdate:
    """An update whose result is rounded stochastically, each parameter by random bits of its own."""
    own = zlib.crc32(f"{seed} {name}".encode())
    if isinstance(some, Entries):
        slot["t"] = slot["t"].amax() if slot["t"].dim() else slot["t"]
        return EntryUpdate(weight, moments, some.words, grad, rates, slot["t"], own)
    count = _by_row(slot, weight)
    if not weight.dim():
        weight, grad, moments = weight.view(1), grad.view(1), tuple(moment.view(1) for moment in moments)
    return RowUpdate(weight, moments, some.index, grad, rates, count, some.inputs, own)


def _by_row(slot: dict[str, Tensor], weight: Tensor) -> Tensor:
    """float32[rows]: the slot's count of updates, one for every row."""
    if not slot["t"].dim():
        slot["t"] = slot["t"].expand(weight.shape[0] if weight.dim() else 1).clone()
    return slot["t"]


def dense_groups(
    grads: Mapping[str, Tensor | None], only: Mapping[str, Only], undecayed: set[str], decay: float
) -> list[tuple[list[str], float]]:
    """Names to update as wholes, those under weight decay apart from those that are not."""
    names = [n for n, g in grads.items() if g is not None and n not in only]
    if not decay or not undecayed:
        return [(names, decay)] if names else []
    groups = [([n for n in names if n not in undecayed], decay), ([n for n in names if n in undecayed], 0.0)]
    return [(some, rate) for some, rate in groups if some]


def grow_slots(slots: Slots, names: Iterable[str], rows: int) -> None:
    """Pad the slots of parameters that got new rows: zeros, counts of steps included."""
    for name in names:
        for key, tensor in slots.get(name, {}).items():
            if tensor.dim() and len(tensor) < rows:
                padded = tensor.new_zeros((rows, *tensor.shape[1:]))
                padded[: len(tensor)] = tensor
                slots[name][key] = padded


def _there(grad: Tensor | None) -> Tensor:
    assert grad is not None
    return grad
