"""The end of a residual block whose branch has some of the channels only: relu(shortcut + branch put into its places).

shortcut: float[N, C, H, W]; branch: float[N, k, H, W]; rows: int64[k], rising, the channels that the branch adds to.

``path``: "torch" is the contract; "compiled" (float32 on the CPU, channels last in memory) does it in one pass each
way, where the contract takes three and copies; None chooses.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..compiled import compiled
from .selection import ops_on

Path = Literal["torch", "compiled"]
LAST = torch.channels_last


def narrow_join(shortcut: Tensor, branch: Tensor, rows: Tensor, path: Path | None = None) -> Tensor:
    """The output of the block, float[N, C, H, W]."""
    if path is None:
        plain = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (shortcut, branch))
        traced = not ops_on() or torch.compiler.is_compiling()
        path = "compiled" if plain and not traced and shortcut.is_contiguous(memory_format=LAST) else "torch"
    if path == "compiled":
        out: Tensor = _NarrowJoin.apply(shortcut, branch, rows)
        return out
    return torch.relu(shortcut.index_add(1, rows, branch))


class _NarrowJoin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shortcut: Tensor, branch: Tensor, rows: Tensor) -> Tensor:
        out = torch.empty_like(shortcut, memory_format=LAST)
        _join(_pixels(shortcut), _pixels(branch), rows.numpy(), _pixels(out))
        ctx.save_for_backward(out, rows)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        out, rows = ctx.saved_tensors
        samples, _, high, wide = out.shape
        to_shortcut = torch.empty_like(out)
        to_branch = out.new_empty((samples, high, wide, len(rows))).permute(0, 3, 1, 2)
        _split(*(_pixels(t) for t in (grad, out)), rows.numpy(), *(_pixels(t) for t in (to_shortcut, to_branch)))
        return to_shortcut, to_branch, None


def _pixels(x: Tensor) -> np.ndarray:
    """[N * positions, C]; shares memory with a tensor whose channels come last."""
    return x.detach().permute(0, 2, 3, 1).reshape(-1, x.shape[1]).numpy()


@compiled(fastmath=True)
def _join(shortcut: Any, branch: Any, rows: Any, out: Any) -> None:
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
def _split(grad: Any, out: Any, rows: Any, to_shortcut: Any, to_branch: Any) -> None:
    positions, channels = out.shape
    for p in range(positions):
        g, y, d, b = grad[p], out[p], to_shortcut[p], to_branch[p]
        for c in range(channels):
            d[c] = g[c] if y[c] > 0 else np.float32(0)
        for j in range(len(rows)):
            b[j] = d[rows[j]]
