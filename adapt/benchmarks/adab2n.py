"""One AdaB2N layer, forward and backward, beside PyTorch's batch norm and beside its own formulas under autograd.

A pass is: statistics, output, running statistics, and the gradients of input, affine parameters and, ours, psi, from a
given gradient of the output; ours with five groups of samples and the layer's loss. float32, one thread, both layouts
of memory (peers in the same one). Peers:

- "batch norm": ``torch.nn.functional.batch_norm``, which knows neither groups nor a loss;
- "autograd": ``balanced_batch_norm_plain``, the same op as ours, written down as its formulas stand.

floor is our time by the least that memory allows: five times the map's bytes (read a, write y; read a and dy, write da)
at the speed of copying a map of this size, measured in the same rounds.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models.kernels.balanced_batch_norm import Groups, Running, balanced_batch_norm
from . import Row, row
from .floors import Step, in_turn

SHAPES = ((20, 64, 32, 32), (64, 64, 32, 32), (20, 128, 16, 16), (20, 512, 4, 4), (20, 20, 32, 32), (20, 16, 8, 8))
GROUPS = 5


def steps_of(shape: tuple[int, ...], layout: torch.memory_format) -> list[Step]:
    """Batch norm, autograd, ours, and a copy of the map."""
    draw = torch.Generator().manual_seed(0)
    a, dy = (torch.randn(shape, generator=draw).to(memory_format=layout) for _ in range(2))
    groups = Groups.of(torch.randint(0, GROUPS, shape[:1], generator=draw), GROUPS)
    gamma, beta, psi = torch.ones(shape[1]), torch.zeros(shape[1]), torch.zeros(GROUPS)
    inputs = [tensor.requires_grad_() for tensor in (a, gamma, beta, psi)]
    running = Running(torch.zeros(shape[1]), torch.ones(shape[1]), 0.1, clip=10.0)
    one = torch.ones(())

    def native() -> object:
        y = F.batch_norm(a, running.mean, running.var, gamma, beta, True)
        return torch.autograd.grad(y, inputs[:3], dy)

    def balanced(path: str | None) -> tuple[Tensor, ...]:
        out = balanced_batch_norm(a, gamma, beta, psi, groups, running, path=path)
        return torch.autograd.grad(out, inputs, (dy, one))

    return [native, lambda: balanced("plain"), lambda: balanced(None), lambda: a.detach().clone()]


def cases(shape: tuple[int, ...], layout: torch.memory_format) -> list[Row]:
    """Ours against both peers on one shape."""
    native, autograd, ours, copy = in_turn(steps_of(shape, layout))
    limit = 2.5 * copy
    case = "x".join(map(str, shape)) + (", channels last" if layout == torch.channels_last else "")
    peers = ((native, "torch batch_norm"), (autograd, "autograd"))
    found = [row("adab2n", case, "passes/s", 1 / ours, 1 / time, name) for time, name in peers]
    return [measured | {"floor": ours / limit} for measured in found]


def measure() -> list[Row]:
    """All shapes in both layouts, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        layouts = (torch.contiguous_format, torch.channels_last)
        return [found for shape in SHAPES for layout in layouts for found in cases(shape, layout)]
    finally:
        torch.set_num_threads(threads)
