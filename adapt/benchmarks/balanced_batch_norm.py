"""A layer of AdaB2N, forward and backward, beside PyTorch's batch norm on the same map.

Ours has five groups of samples and, counted in, the running statistics, the loss and the gradients of input, affine
parameters and psi; the peer (cuDNN's on a GPU) knows neither groups nor a loss. The peer has the same layout of memory.
The floor is five times the map's bytes: read a, write y; read a and dy, write da.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models.kernels.balanced_batch_norm import Groups, Running, balanced_batch_norm
from . import Row
from .floors import Step, floors, kernel_row, medians, rotated

SHAPES = {
    "cpu": ((20, 64, 32, 32), (64, 64, 32, 32), (20, 128, 16, 16), (20, 512, 4, 4), (20, 20, 32, 32)),
    "cuda": ((64, 64, 32, 32), (256, 128, 28, 28), (256, 512, 14, 14), (20, 512, 4, 4)),
}
DTYPES = {"cpu": (torch.float32,), "cuda": (torch.float32, torch.bfloat16)}
TIMES = {"cpu": 1 / 1.4, "cuda": 1 / 1.2}
"""Targets: at most 1.4 times the peer's time on a CPU, 1.2 times on a GPU."""
GROUPS = 5


def _steps(shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype, device: str) -> list[Step]:
    """Batch norm, and ours."""
    draw = torch.Generator().manual_seed(0)
    a, dy = (torch.randn(shape, generator=draw).to(device, dtype, memory_format=layout) for _ in range(2))
    groups = Groups.of(torch.randint(0, GROUPS, shape[:1], generator=draw), GROUPS, device)
    gamma, beta, psi = (torch.full((n,), 0.5, device=device) for n in (shape[1], shape[1], GROUPS))
    inputs = [tensor.requires_grad_() for tensor in (a, gamma, beta, psi)]
    running = Running(torch.zeros(shape[1], device=device), torch.ones(shape[1], device=device), 0.1, clip=10.0)
    one = torch.ones((), device=device)

    def native() -> object:
        y = F.batch_norm(a, running.mean, running.var, gamma, beta, True)
        return torch.autograd.grad(y, inputs[:3], dy)

    def ours() -> tuple[Tensor, ...]:
        out = balanced_batch_norm(a, gamma, beta, psi, groups, running)
        return torch.autograd.grad(out, inputs, (dy, one))

    return [native, ours]


def _case(shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype, device: str) -> Row:
    moved = 5 * torch.Size(shape).numel() * torch.finfo(dtype).bits / 8
    native, ours = medians(rotated(lambda: _steps(shape, layout, dtype, device), moved, device), device)
    name = f"balanced_batch_norm: {'x'.join(map(str, shape))}, {str(dtype).removeprefix('torch.')}"
    name += ", channels last" if layout == torch.channels_last else ""
    times = TIMES[torch.device(device).type]
    return kernel_row(name, ours, native, "torch batch_norm", floors(device).seconds(moved), times=times)


def measure(device: str = "cpu") -> list[Row]:
    """All shapes in both layouts."""
    kind = torch.device(device).type
    return [
        _case(shape, layout, dtype, device)
        for dtype in DTYPES[kind]
        for shape in SHAPES[kind]
        for layout in (torch.contiguous_format, torch.channels_last)
    ]
