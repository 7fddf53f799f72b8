"""Passes without autograd: a network's units forward, with what their gradients need, and back again in closed form.

``forward`` and ``backward`` are functions of what they are given, nothing of the network changes: the same two serve
step by step, compiled as a whole, captured on a GPU, and exported. Only what moves, and what lies between it and the
logits, gets a gradient; before the first norm that moves nothing is kept.

The convolutions are one of ``models/convolutions.py``, the norms one path of ``models/kernels/joined_norm.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .adaptive_norm import AdaptiveNorm
from .convolutions import PackedConvolutions, PlainConvolutions
from .kernels.joined_norm import Path, Statistics, joined_norm, joined_norm_back
from .passes import Gradients, Pass
from .units import Conv, Dense, Flatten, MaxPool, MeanPool, Norm, Unit, units_of

Tape = list[Any]
"""By unit: what its gradient needs, None where none is asked for."""


class Convolutions(Protocol):
    """How convolutions are computed."""

    def forward(self, unit: Conv, x: Tensor) -> Tensor:
        """The convolution of x."""
        ...

    def back(self, unit: Conv, dy: Tensor, x: Tensor) -> Tensor:
        """The gradient for x."""
        ...


@dataclass(frozen=True)
class Plan:
    """What is fixed before any pass: the units, and which values and norms a gradient is asked for.

    wanted: by value, whether anything that moves lies before it. norms: path to the norm.
    """

    units: tuple[Unit, ...]
    norms: dict[str, AdaptiveNorm]
    moving: frozenset[str]
    wanted: tuple[bool, ...]

    @classmethod
    def of(cls, net: nn.Module, names: Iterable[str]) -> Plan | None:
        """None for a network that is no list of units, or where other things move than scales and shifts of norms."""
        units = units_of(net)
        if units is None:
            return None
        norms = {u.at: net.get_submodule(u.at) for u in units if isinstance(u, Norm)}
        moving = frozenset(names)
        affine = {f"{at}.{name}" for at in norms for name in ("weight", "bias")}
        if not moving or not moving <= affine:
            return None
        wanted = [False]
        for unit in units:
            mine = isinstance(unit, Norm) and not moving.isdisjoint((f"{unit.at}.weight", f"{unit.at}.bias"))
            joined = isinstance(unit, Norm) and unit.join is not None and wanted[unit.join]
            wanted.append(mine or joined or wanted[unit.source])
        return cls(units, {at: m for at, m in norms.items() if isinstance(m, AdaptiveNorm)}, moving, tuple(wanted))

    def statistics(self, at: str, h: Tensor) -> Statistics:
        """What the norm normalises h by."""
        norm = self.norms[at]
        mode = norm.mode(h)
        keep = 1.0 if mode == "source" else 0.0
        if mode == "mixed":
            keep = norm.prior / (norm.prior + len(h))
        return Statistics(norm.running_mean, norm.running_var, keep, norm.eps)

    @property
    def fits(self) -> bool:
        """Whether all norms are used as the units know them: no statistics that follow, one view."""
        return all(m.statistics != "running" and m.views == 1 for m in self.norms.values())


def forward(
    plan: Plan, convolutions: Convolutions, path: Path, value: Mapping[str, Tensor], x: Tensor
) -> tuple[Tensor, Tape]:
    """Logits float[B, C], and the tape. value: of every parameter that no convolution holds, by name."""
    values: list[Tensor] = [x]
    tape: Tape = []
    for i, unit in enumerate(plan.units):
        h = values[unit.source]
        kept: Any = None
        if isinstance(unit, Conv):
            out, kept = convolutions.forward(unit, h), h
        elif isinstance(unit, Norm):
            gamma, beta = value[f"{unit.at}.weight"], value[f"{unit.at}.bias"]
            s = plan.statistics(unit.at, h)
            join = None if unit.join is None else values[unit.join]
            out, saved = joined_norm(h, gamma, beta, s, join, relu=unit.relu, path=path)
            kept = (saved, gamma, s.keep)
        elif isinstance(unit, MaxPool):
            out, where = F.max_pool2d(h, unit.kernel, unit.stride, unit.padding, return_indices=True)
            kept = (h, where)
        elif isinstance(unit, Dense):
            out = F.linear(h, value[unit.weight], None if unit.bias is None else value[unit.bias])
            kept = value[unit.weight]
        else:
            out, kept = (h.mean((2, 3)) if isinstance(unit, MeanPool) else h.flatten(1)), h.shape
        values.append(out)
        tape.append(kept if plan.wanted[i + 1] else None)
    return values[-1], tape


def backward(plan: Plan, convolutions: Convolutions, path: Path, tape: Tape, slope: Tensor) -> Gradients:
    """dL/dw of every moving parameter, from dL/dz float[B, C]."""
    slopes: list[Tensor | None] = [None] * (len(plan.units) + 1)
    slopes[-1] = slope
    found: Gradients = {}
    for i in range(len(plan.units) - 1, -1, -1):
        unit, dy, kept = plan.units[i], slopes[i + 1], tape[i]
        slopes[i + 1] = None
        if dy is None:
            continue
        onward = plan.wanted[unit.source]
        if isinstance(unit, Norm):
            saved, gamma, keep = kept
            back = joined_norm_back(dy, saved, gamma, keep, onward=onward, path=path)
            found[f"{unit.at}.weight"], found[f"{unit.at}.bias"] = back.gamma, back.beta
            if back.h is not None:
                _add(slopes, unit.source, back.h)
            if unit.join is not None and plan.wanted[unit.join]:
                _add(slopes, unit.join, back.join)
        elif onward:
            _add(slopes, unit.source, _back(convolutions, unit, dy, kept))
    return {n: g for n, g in found.items() if n in plan.moving}


def _back(convolutions: Convolutions, unit: Unit, dy: Tensor, kept: Any) -> Tensor:
    """The gradient for the input of a unit that is no norm."""
    if isinstance(unit, Conv):
        return convolutions.back(unit, dy, kept)
    if isinstance(unit, MaxPool):
        h, where = kept
        how = (unit.kernel, unit.stride, unit.padding, (1, 1), False)
        dx: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(dy, h, *how, where)
        return dx
    if isinstance(unit, Dense):
        return dy @ kept
    if isinstance(unit, Flatten):
        return dy.reshape(kept)
    return (dy / (kept[2] * kept[3]))[:, :, None, None].expand(kept)


def _add(slopes: list[Tensor | None], at: int, slope: Tensor) -> None:
    """A value that several units use has the sum of their gradients."""
    before = slopes[at]
    slopes[at] = slope if before is None else before + slope


@dataclass(frozen=True, slots=True)
class How:
    """One way to compute: convolutions ``plain`` or ``packed``; the path of norms; the layout of images."""

    convolutions: Literal["plain", "packed"] = "plain"
    norms: Path = "torch"
    channels_last: bool = False

    def make(self, weights: Mapping[str, Tensor]) -> Convolutions:
        """The convolutions with these weights."""
        if self.convolutions == "packed":
            return PackedConvolutions(weights)
        return PlainConvolutions(weights, self.channels_last)

    def lay(self, x: Tensor) -> Tensor:
        """x in this layout."""
        last = self.channels_last and x.dim() == 4
        return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


class ManualPasses:
    """``Passes`` by units, for networks that have a ``Plan``; nothing is kept from one pass to the next but weights in
    another layout or order, which are made anew when the network's own have changed.

    >>> from driftway.models.adaptive_norm import adaptive_norms, affine_names
    >>> from driftway.models.networks import build
    >>> net = build("convnet:4", (1, 8, 8), 3).eval()
    >>> norms = adaptive_norms(net)
    >>> passes = ManualPasses(net, Plan.of(net, affine_names(net)))
    >>> sorted(passes(torch.zeros(2, 1, 8, 8)).pull(torch.ones(2, 3)))
    ['body.1.bias', 'body.1.weight']
    """

    def __init__(self, net: nn.Module, plan: Plan, how: How = How()) -> None:
        self.net, self.plan, self.how = net, plan, how
        self._forward: Any = forward
        self._backward: Any = backward
        self._take()

    def _take(self) -> None:
        """The network's parameters as they are now."""
        everything = dict(self.net.named_parameters())
        self.head = getattr(self.net, "head", None)
        self.value = {n: w.detach() for n, w in everything.items()}
        held = {n: everything[n] for u in self.plan.units if isinstance(u, Conv) for n in (u.weight, u.bias) if n}
        self.frozen = list(held.values())
        self.versions = [w._version for w in self.frozen]
        self.convolutions = self.how.make(held)

    def refresh(self) -> bool:
        """Take the parameters anew where weights of convolutions were written to, or the head is another one."""
        same = getattr(self.net, "head", None) is self.head and self.versions == [w._version for w in self.frozen]
        if not same:
            self._take()
        return not same

    @torch.no_grad()
    def __call__(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Pass:
        self.refresh()
        value = self.value if weights is None else self.value | {n: w.contiguous() for n, w in weights.items()}
        z, tape = self._forward(self.plan, self.convolutions, self.how.norms, value, self.how.lay(x))

        @torch.no_grad()
        def pull(slope: Tensor) -> Gradients:
            found: Gradients = self._backward(self.plan, self.convolutions, self.how.norms, tape, slope)
            return found

        return Pass(z, pull)
