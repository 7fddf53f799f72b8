"""The end of a residual block whose branch has some of the channels only: relu(shortcut + branch put into its places).

shortcut: float[N, C, H, W]; branch: float[N, k, H, W]; rows: int64[k], rising, the channels that the branch adds to.

``path``: "torch" is the contract; "compiled" (float32 on the CPU) does it in one pass over memory each way, for both
layouts, where the contract takes three and copies; None chooses.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..compiled import compiled

Path = Literal["torch", "compiled"]


def narrow_join(shortcut: Tensor, branch: Tensor, rows: Tensor, path: Path | None = None) -> Tensor:
    """The output of the block, float[N, C, H, W], laid out as the shortcut is."""
    if path is None:
        plain = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (shortcut, branch))
        path = "compiled" if plain else "torch"
    if path == "compiled":
        out: Tensor = _NarrowJoin.apply(shortcut, branch, rows)
        return out
    return torch.relu(shortcut.index_add(1, rows, branch))


class _NarrowJoin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shortcut: Tensor, branch: Tensor, rows: Tensor) -> Tensor:
        layout = _layout(shortcut)
        a, b = shortcut.contiguous(memory_format=layout), branch.contiguous(memory_format=layout)
        out = torch.empty_like(a)
        kernel = _join_pixels if layout is torch.channels_last else _join_planes
        kernel(_view(a, layout), _view(b, layout), rows.numpy(), _view(out, layout))
        ctx.save_for_backward(out, rows)
        ctx.layout = layout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        out, rows = ctx.saved_tensors
        layout = ctx.layout
        grad = grad.contiguous(memory_format=layout)
        to_shortcut = torch.empty_like(out)
        to_branch = out.new_empty(len(out), len(rows), *out.shape[2:]).contiguous(memory_format=layout)
        kernel = _split_pixels if layout is torch.channels_last else _split_planes
        kernel(
            *(_view(t, layout) for t in (grad, out)),
            rows.numpy(),
            *(_view(t, layout) for t in (to_shortcut, to_branch)),
        )
        return to_shortcut, to_branch, None


def _layout(x: Tensor) -> torch.memory_format:
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _view(x: Tensor, layout: torch.memory_format) -> np.ndarray:
    """[N, C, positions], or [N * positions, C] where channels come last."""
    if layout is torch.channels_last:
        return x.detach().permute(0, 2, 3, 1).reshape(-1, x.shape[1]).numpy()
    return x.detach().reshape(*x.shape[:2], -1).numpy()


@compiled(fastmath=True)
def _join_planes(shortcut: Any, branch: Any, rows: Any, out: Any) -> None:
    samples, channels, positions = shortcut.shape
    for i in range(samples):
        j = 0
        for c in range(channels):
            a, y = shortcut[i, c], out[i, c]
            if j < len(rows) and rows[j] == c:
                b = branch[i, j]
                for p in range(positions):
                    y[p] = max(a[p] + b[p], np.float32(0))
                j += 1
            else:
                for p in range(positions):
                    y[p] = max(a[p], np.float32(0))


@compiled(fastmath=True)
def _join_pixels(shortcut: Any, branch: Any, rows: Any, out: Any) -> None:
    positions, channels = shortcut.shape
    for p in range(positions):
        a, b, y = shortcut[p], branch[p], out[p]
        for c in range(channels):
            y[c] = a[c]
        for j in range(len(rows)):
            y[rows[j]] += b[j]
        for c in range(channels):
            y[c] = max(y[c], np.float32(0))


@compiled(fastmath=True)
def _split_planes(grad: Any, out: Any, rows: Any, to_shortcut: Any, to_branch: Any) -> None:
    samples, channels, positions = out.shape
    for i in range(samples):
        for c in range(channels):
            g, y, d = grad[i, c], out[i, c], to_shortcut[i, c]
            for p in range(positions):
                d[p] = g[p] if y[p] > 0 else np.float32(0)
        for j in range(len(rows)):
            to_branch[i, j] = to_shortcut[i, rows[j]]


@compiled(fastmath=True)
def _split_pixels(grad: Any, out: Any, rows: Any, to_shortcut: Any, to_branch: Any) -> None:
    positions, channels = out.shape
    for p in range(positions):
        g, y, d, b = grad[p], out[p], to_shortcut[p], to_branch[p]
        for c in range(channels):
            d[c] = g[c] if y[c] > 0 else np.float32(0)
        for j in range(len(rows)):
            b[j] = d[rows[j]]
