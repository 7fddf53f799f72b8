"""A network as a function of the parameters that may move: a pass forward, and what its logits' slope means for them.

Objectives of test-time adaptation know their slope in closed form, so a step needs from a network no more than this:
logits, and the gradient of the moving parameters for a given slope dL/dz. Whoever can do that, by autograd, by hand,
compiled or captured, can stand in for the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

Gradients = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Pass:
    """z: float[B, C], logits, without a graph. pull: from dL/dz, float[B, C], to dL/dw of every moving parameter by
    name; to be called once at most."""

    z: Tensor
    pull: Callable[[Tensor], Gradients]


class Passes(Protocol):
    """A network and the names of what may move in it."""

    def __call__(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Pass:
        """One pass over x float[B, ...]; weights: values to use for the moving parameters instead of the network's."""
        ...


class AutogradPasses:
    """By autograd, for every network: the reference. Only moving parameters get gradients, frozen parts no graph.

    net: in the mode in which it is to be asked. names: of parameters, as in ``net.named_parameters()``.

    >>> passes = AutogradPasses(nn.Linear(2, 1, bias=False).requires_grad_(False), ["weight"])
    >>> passes(torch.tensor([[3.0, 4.0]])).pull(torch.tensor([[2.0]]))
    {'weight': tensor([[6., 8.]])}
    """

    def __init__(self, net: nn.Module, names: Sequence[str]) -> None:
        everything = dict(net.named_parameters())
        self.net, self.own = net, {n: everything[n].requires_grad_(True) for n in names}

    def __call__(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Pass:
        if weights is None:
            leaves = self.own
            z: Tensor = self.net(x)
        else:
            leaves = {n: weights[n].detach().requires_grad_(True) for n in self.own}
            z = functional_call(self.net, leaves, (x,))

        def pull(slope: Tensor) -> Gradients:
            found = torch.autograd.grad(z, list(leaves.values()), slope, materialize_grads=True)
            return dict(zip(leaves, found, strict=True))

        return Pass(z.detach(), pull)
