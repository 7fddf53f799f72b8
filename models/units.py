"""A network as a plain list of units, each a function of values that came before: what has no modules and no state.

Value 0 is the input, unit i makes value i + 1, and the last value is the answer. A ReLU, and an addition before it,
belong to the norm they follow, so that a residual block is two convolutions, two norms, and a third pair where its
shortcut is not the identity. The list is read off a symbolic trace of the network (``torch.fx``); a network with
anything else in it has no such list.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from .adaptive_norm import AdaptiveNorm
from .kernels.inference_linear import PLAIN


@dataclass(frozen=True, slots=True)
class Conv:
    """Convolution of value ``source`` with the parameter ``weight``."""

    source: int
    weight: str
    bias: str | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True, slots=True)
class Norm:
    """The adaptive norm at path ``at``, then the addition of value ``join`` if there is one, then ReLU if asked."""

    source: int
    at: str
    join: int | None = None
    relu: bool = False


@dataclass(frozen=True, slots=True)
class MaxPool:
    """The maximum over windows."""

    source: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


@dataclass(frozen=True, slots=True)
class MeanPool:
    """The mean over positions: float[B, C, H, W] to float[B, C]."""

    source: int


@dataclass(frozen=True, slots=True)
class Flatten:
    """float[B, ...] to float[B, all the rest]."""

    source: int


@dataclass(frozen=True, slots=True)
class Dense:
    """x weight^T + bias."""

    source: int
    weight: str
    bias: str | None


Unit = Conv | Norm | MaxPool | MeanPool | Flatten | Dense


class Unknown(Exception):
    """The network has something that no unit is for."""


def units_of(net: nn.Module) -> tuple[Unit, ...] | None:
    """The units of ``net``, whose batch norms are adaptive already; None where it has anything that no unit is for.

    >>> from driftway.models.adaptive_norm import adaptive_norms
    >>> from driftway.models.networks import build
    >>> net = build("convnet:4", (1, 8, 8), 3).eval()
    >>> units_of(net) is None, adaptive_norms(net)
    (True, [AdaptiveNorm(4, auto, prior=16.0)])
    >>> [type(unit).__name__ for unit in units_of(net)]
    ['Conv', 'Norm', 'MeanPool', 'Dense']
    """
    try:
        graph = _Tracer().trace(net)
        return _Reader(net).read(graph)
    except Exception:  # whatever a network of one's own does when it is asked for its graph
        return None


def missing_unit(net: nn.Module) -> str:
    """What in ``net`` no unit is for, and where, in a few words; nothing where every part has one."""
    try:
        _Reader(net).read(_Tracer().trace(net))
    except Unknown as fault:
        return str(fault)
    except Exception as fault:
        return f"its graph cannot be read ({' '.join(str(fault).split())})"
    return ""


class _Tracer(fx.Tracer):
    """Looks into modules, but not into those that a unit is for."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (AdaptiveNorm, *PLAIN)) or super().is_leaf_module(m, module_qualified_name)


class _Reader:
    """Turns the nodes of a graph into units, one by one."""

    def __init__(self, net: nn.Module) -> None:
        self.modules = dict(net.named_modules())
        self.units: list[Unit | None] = [None]
        """By value; None for the input, and for a norm that was joined into a later one."""
        self.values: dict[Any, int] = {}

    def read(self, graph: fx.Graph) -> tuple[Unit, ...]:
        answer = -1
        for node in graph.nodes:
            if node.op == "output":
                (answer,) = (self.values[a] for a in node.args)
            elif node.op == "placeholder":
                if self.values:
                    raise Unknown("a second input")
                self.values[node] = 0
            else:
                try:
                    self.values[node] = self._value(node)
                except Unknown as fault:
                    where = node.target if node.op == "call_module" else node.name
                    raise Unknown(f"{fault} at {where}") from None
        return self._renumbered(answer)

    def _value(self, node: fx.Node) -> int:
        if node.op == "call_module":
            return self._module(node, str(node.target), self.modules[str(node.target)])
        if node.op not in ("call_function", "call_method"):
            raise Unknown(node.op)
        given: list[Any] = list(node.args)
        if node.target in (operator.add, operator.iadd, torch.add) and not node.kwargs:
            a, b = given
            return self._add(a, b)
        source = given[0]
        if node.target in (torch.relu, F.relu, "relu", "relu_") and set(node.kwargs) <= {"inplace"}:
            return self._relu(source)
        if node.target in ("mean", torch.mean) and tuple(given[1:]) in (((2, 3),), ((-2, -1),)) and not node.kwargs:
            return self._put(MeanPool(self.values[source]))
        if node.target in ("flatten", torch.flatten) and given[1:] == [1] and not node.kwargs:
            return self._flatten(self.values[source])
        raise Unknown(str(node.target))

    def _module(self, node: fx.Node, path: str, module: Any) -> int:
        (given,) = node.args
        source = self.values[given]
        kind = type(module)
        if kind is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            if isinstance(self.units[source], MeanPool):
                raise Unknown("a convolution of means")
            bias = None if module.bias is None else f"{path}.bias"
            how = (module.stride, module.padding, module.dilation, module.groups)
            return self._put(Conv(source, f"{path}.weight", bias, *how))
        if kind is AdaptiveNorm and module.weight is not None and module.bias is not None:
            return self._put(Norm(source, path))
        if kind in PLAIN:
            return self._put(Dense(source, f"{path}.weight", None if module.bias is None else f"{path}.bias"))
        simple: dict[type, Callable[[], int]] = {
            nn.Identity: lambda: source,
            nn.ReLU: lambda: self._relu(given),
            nn.MaxPool2d: lambda: self._max_pool(source, module),
        }
        if kind in simple:
            return simple[kind]()
        if kind is nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1)):
            return self._put(MeanPool(source))
        if kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            return self._flatten(source)
        raise Unknown(kind.__name__)

    def _put(self, unit: Unit) -> int:
        self.units.append(unit)
        return len(self.units) - 1

    def _max_pool(self, source: int, module: nn.MaxPool2d) -> int:
        if module.dilation not in (1, (1, 1)) or module.ceil_mode or module.return_indices:
            raise Unknown("a maximum over unusual windows")
        return self._put(MaxPool(source, _pair(module.kernel_size), _pair(module.stride), _pair(module.padding)))

    def _flatten(self, source: int) -> int:
        """Nothing where the value is flat already."""
        return source if isinstance(self.units[source], MeanPool) else self._put(Flatten(source))

    def _relu(self, given: Any) -> int:
        """Into the norm before it, which nothing else may use."""
        at = self.values[given]
        norm = self.units[at]
        if not isinstance(norm, Norm) or norm.relu or len(given.users) != 1:
            raise Unknown("a ReLU that follows no norm")
        self.units[at] = replace(norm, relu=True)
        return at

    def _add(self, a: fx.Node, b: fx.Node) -> int:
        """Into one of the two norms, in the place of the sum."""
        for mine, other in ((a, b), (b, a)):
            at = self.values[mine]
            norm = self.units[at]
            plain = isinstance(norm, Norm) and norm.join is None and not norm.relu
            if plain and len(mine.users) == 1 and at != self.values[other]:
                assert isinstance(norm, Norm)
                self.units[at] = None
                return self._put(replace(norm, join=self.values[other]))
        raise Unknown("a sum without a norm")

    def _renumbered(self, answer: int) -> tuple[Unit, ...]:
        """Without the empty places; the answer must be the last value."""
        kept = [at for at, unit in enumerate(self.units) if at == 0 or unit is not None]
        number = {at: i for i, at in enumerate(kept)}
        if answer != kept[-1] or answer == 0:
            raise Unknown("an answer that is not the last value")
        found: list[Unit] = []
        for at in kept[1:]:
            unit = self.units[at]
            assert unit is not None
            unit = replace(unit, source=number[unit.source])
            if isinstance(unit, Norm) and unit.join is not None:
                unit = replace(unit, join=number[unit.join])
            found.append(unit)
        return tuple(found)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
