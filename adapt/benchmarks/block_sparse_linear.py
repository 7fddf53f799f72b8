"""A linear layer of blocks, forward pass and both gradients, beside the dense layer's three products.

Square weights; the share is that of the blocks there are. The floor is the larger of the three products' operations at
the rate of a large one, and of their bytes: x and dy read in two products each, the blocks read twice and written once,
y and dx written. The target holds below the break-even share that the op states.
"""

from __future__ import annotations

import torch

from ...models.kernels.block_sparse_linear import DENSE_PAYS, Layout, assemble, block_sparse_linear
from . import Row
from .floors import Step, floors, kernel_row, medians, rotated

SIDE = {"cpu": 1024, "cuda": 4096}
BATCHES = {"cpu": (32, 256), "cuda": (256, 4096)}
DTYPES = {"cpu": (torch.float32,), "cuda": (torch.float32, torch.bfloat16)}
BLOCKS = (16, 32, 64)
SHARES = (0.1, 0.25, 0.5)


def _steps(side: int, batch: int, block: int, share: float, dtype: torch.dtype, device: str) -> list[Step]:
    """The dense layer and ours, from equal weights."""
    draw = torch.Generator().manual_seed(0)
    along = side // block
    at = torch.randperm(along**2, generator=draw)[: max(1, round(share * along**2))].sort().values.to(device)
    layout = Layout.of(at // along, at % along, (side, side), (block, block))
    blocks = torch.randn(len(at), block, block, generator=draw).to(device, dtype).requires_grad_()
    dense = assemble(blocks.detach(), layout).requires_grad_()
    x, dy = (torch.randn(batch, side, generator=draw).to(device, dtype) for _ in range(2))
    x.requires_grad_()
    return [
        lambda: torch.autograd.grad(x @ dense.t(), [x, dense], dy),
        lambda: torch.autograd.grad(block_sparse_linear(x, blocks, layout), [x, blocks], dy),
    ]


def _case(side: int, batch: int, block: int, share: float, dtype: torch.dtype, device: str) -> Row:
    kept, size = share * side**2, torch.finfo(dtype).bits // 8
    moved = size * (6 * batch * side + 3 * kept)
    given = (side, batch, block, share, dtype, device)
    dense, ours = medians(rotated(lambda: _steps(*given), moved, device), device)
    floor = floors(device).seconds(moved, 6 * batch * kept, dtype)
    name = f"block_sparse_linear: {side}x{side}, {batch} rows, blocks of {block}, share {share}"
    name += f", {str(dtype).removeprefix('torch.')}"
    return kernel_row(name, ours, dense, "dense layer", floor, times=1.0 if share <= DENSE_PAYS[block] else None)


def measure(device: str = "cpu") -> list[Row]:
    """All blocks, batches and shares of one weight."""
    kind = torch.device(device).type
    return [
        _case(SIDE[kind], batch, block, share, dtype, device)
        for dtype in DTYPES[kind]
        for batch in BATCHES[kind]
        for block in BLOCKS
        for share in SHARES
    ]
