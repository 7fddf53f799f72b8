"""Passes whose arithmetic is compiled as a whole (TorchInductor) or captured on a GPU (CUDA graphs).

Both are made from the same two functions as ``ManualPasses``, traced once for each size of batch: what comes in is the
batch and what moves, what goes out are logits and what the gradient needs, and nothing else is touched. The frozen
parameters and the source's statistics are part of the trace. Inductor is given the graphs themselves: what
``torch.compile`` asks about its arguments before each call is settled by the size of the batch, and asking cost a fifth
of a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from .kernels.joined_norm import Path
from .manual_passes import How, ManualPasses, Plan, backward, forward
from .passes import Gradients, Pass

Flat = Callable[..., Sequence[Tensor]]


@dataclass(frozen=True, slots=True)
class Traced:
    """ahead: (x, *moving) to logits and more tensors; back: (dL/dz, *those) to gradients, as ``names`` has them."""

    ahead: Flat
    back: Flat
    names: list[str]


def trace(passes: ManualPasses, x: Tensor, path: Path = "formula") -> Traced:
    """The two functions as graphs of tensor operations, for inputs of the size of x; path: of the norms."""
    plan, names = passes.plan, sorted(passes.plan.moving)
    tree: list[Any] = []

    def ahead(x: Tensor, *moving: Tensor) -> tuple[Tensor, ...]:
        value = {**passes.value, **dict(zip(names, moving, strict=True))}
        z, tape = forward(plan, passes.convolutions, path, value, x)
        tree[:] = pytree.tree_flatten(tape)
        return z, *(leaf for leaf in tree[0] if isinstance(leaf, Tensor))

    own = [passes.value[n] for n in names]
    z, *kept = ahead(x, *own)
    leaves, shape = tree
    rest = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    places = [isinstance(leaf, Tensor) for leaf in leaves]
    found: list[str] = []

    def back(slope: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
        given = iter(kept)
        tape = pytree.tree_unflatten([next(given) if t else r for t, r in zip(places, rest)], shape)
        gradients = backward(plan, passes.convolutions, path, tape, slope)
        found[:] = gradients
        return tuple(gradients.values())

    slope = torch.zeros_like(z)
    back(slope, *kept)
    return Traced(make_fx(ahead)(x, *own), make_fx(back)(slope, *kept), found)


class CompiledPasses:
    """``Passes`` compiled at the first batch of each size; warm_up: the seconds that took, by size.

    It needs a C++ compiler, which also writes the calls between what it fused: those of Python cost a tenth of a step.
    Weights that change otherwise than by moving are noticed, and compiled anew.
    """

    def __init__(self, net: nn.Module, plan: Plan, how: How) -> None:
        self.manual = ManualPasses(net, plan, how)
        self.names = sorted(plan.moving)
        self.warm_up: dict[str, float] = {}
        self._made: dict[torch.Size, Traced] = {}

    @torch.no_grad()
    def __call__(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Pass:
        x = self.manual.how.lay(x)
        if self.manual.refresh():
            self._made.clear()
        if x.shape not in self._made:
            self._made[x.shape] = self._make(x)
        value = weights or self.manual.value
        return _ask(self._made[x.shape], x, [value[n] for n in self.names])

    def _make(self, x: Tensor) -> Traced:
        start = time.perf_counter()
        graphs, moving = trace(self.manual, x), [self.manual.value[n] for n in self.names]
        z, *kept = graphs.ahead(x, *moving)
        ahead, back = _compiled(graphs.ahead, [x, *moving]), _compiled(graphs.back, [torch.zeros_like(z), *kept])
        made = Traced(ahead, back, graphs.names)
        first = _ask(made, x, moving)
        first.pull(torch.zeros_like(first.z))
        self.warm_up["x".join(map(str, x.shape))] = time.perf_counter() - start
        return made


def _compiled(graph: Any, given: list[Any]) -> Flat:
    """A graph made by ``trace``, for tensors like those given."""
    from torch import _inductor as inductor

    for node in graph.graph.nodes:
        node.meta.clear()  # what tracing noted of its own stand-ins for tensors
    made: Flat = inductor.compile(graph, given, options={"cpp_wrapper": True})
    return made


def _ask(made: Traced, x: Tensor, moving: Sequence[Tensor]) -> Pass:
    z, *kept = made.ahead(x, *moving)

    @torch.no_grad()
    def pull(slope: Tensor) -> Gradients:
        return dict(zip(made.names, made.back(slope, *kept), strict=True))

    return Pass(z, pull)


class CapturedPasses:
    """``Passes`` as two CUDA graphs for each size of batch, one forward and one back: a step then costs two launches.

    The graphs read and write tensors of their own, so a pass must be pulled before the next pass of that size; answers
    and gradients are copies.
    """

    def __init__(self, net: nn.Module, plan: Plan, how: How) -> None:
        self.manual = ManualPasses(net, plan, how)
        self.names = sorted(plan.moving)
        self._made: dict[torch.Size, _Captured] = {}

    @torch.no_grad()
    def __call__(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Pass:
        x = self.manual.how.lay(x)
        if self.manual.refresh():
            self._made.clear()
        if x.shape not in self._made:
            self._made[x.shape] = _Captured(self.manual, x, self.names)
        value = weights or self.manual.value
        return self._made[x.shape].ask(x, [value[n] for n in self.names])


class _Captured:
    """The graphs for one size of batch."""

    def __init__(self, passes: ManualPasses, x: Tensor, names: list[str]) -> None:
        traced = trace(passes, x, "torch")
        self.names = traced.names
        self.x, self.moving = x.clone(), [passes.value[n].clone() for n in names]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries choose and allocate before anything is captured
            for _ in range(3):
                z, *kept = traced.ahead(self.x, *self.moving)
                traced.back(torch.zeros_like(z), *kept)
        torch.cuda.current_stream().wait_stream(side)
        self.ahead, self.back = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.ahead):
            self.z, *self.kept = traced.ahead(self.x, *self.moving)
        self.slope = torch.zeros_like(self.z)
        with torch.cuda.graph(self.back, pool=self.ahead.pool()):
            self.gradients = traced.back(self.slope, *self.kept)

    def ask(self, x: Tensor, moving: list[Tensor]) -> Pass:
        self.x.copy_(x)
        torch._foreach_copy_(self.moving, moving)
        self.ahead.replay()

        @torch.no_grad()
        def pull(slope: Tensor) -> Gradients:
            self.slope.copy_(slope)
            self.back.replay()
            return {n: g.clone() for n, g in zip(self.names, self.gradients, strict=True)}

        return Pass(self.z.clone(), pull)
