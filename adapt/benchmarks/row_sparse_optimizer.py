"""Updates of some rows beside PyTorch's fused optimiser of all rows, with and without a mask on the gradient before it.

Ours gets a compact gradient; in cases with blocks, 16 neighbouring rows are chosen together. On a CPU a step is the
whole call of ``update_rows``, for other rows every time, lest they stay in the cache; the gradient may, as one that a
backward pass has just written. On a GPU a step is that of a table made before, one launch. "resnet18": all its
parameters together. The floor is the bytes of active entries: weight and moments read and written, gradient read.
Peers of bfloat16 weights keep moments of bfloat16, ours of float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import torch
from torch import Tensor

from ...models.kernels.row_sparse_optimizer import RowTable, RowUpdate, update_rows
from ...models.kernels.update_rules import Rates, working
from ...models.resnet import ResNet18
from . import Row
from .floors import Step, floors, kernel_row, medians, rotated

MATRICES: dict[str, tuple[tuple[int, int], ...]] = {
    "cpu": ((4096, 1024), (768, 3072)),
    "cuda": ((4096, 4096), (16384, 4096)),
}
DTYPES = {"cpu": (torch.float32,), "cuda": (torch.float32, torch.bfloat16)}
RATES = Rates(1e-3, 0.9, 0.999, 1e-8, 0.01)
RULES = ("SGD", "momentum", "AdamW")
"""By how many moments each has."""
TIMES = {"cpu": {1: 5.0, 16: 8.0}, "cuda": {1: 4.0, 16: 4.0}}
"""Targets of one matrix at ratio 0.1, by rows of a block: on a CPU against the fused optimiser, on a GPU against that
with a mask."""
TURNS = 10
"""Sets of rows that take turns on a CPU."""
WITHIN = 1.25
"""On a GPU, of the floor, for matrices of 4096 rows and columns or more."""

Shape = tuple[int, ...]


def peers(shapes: Sequence[Shape], masks: Sequence[Tensor], moments: int, dtype: torch.dtype) -> list[Step]:
    """The fused optimiser, and the same after multiplying masks, which broadcast, onto gradients in place."""
    device = masks[0].device
    weights = [torch.nn.Parameter(torch.randn(shape, device=device, dtype=dtype)) for shape in shapes]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    grads = [weight.grad for weight in weights if weight.grad is not None]
    lr, decay = RATES.lr, RATES.weight_decay
    optimiser: torch.optim.Optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=decay, fused=True)
    if moments < 2:
        momentum = RATES.beta1 * moments
        optimiser = torch.optim.SGD(weights, lr=lr, momentum=momentum, weight_decay=decay, fused=True)
    factors = [mask.to(dtype) for mask in masks]

    def masked() -> None:
        torch._foreach_mul_(grads, factors)
        optimiser.step()

    return [optimiser.step, masked]


def state(shape: Shape, moments: int, dtype: torch.dtype, device: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A weight and its moments."""
    real = working(dtype)
    slots = tuple(torch.rand(shape, device=device, dtype=real) for _ in range(moments))
    return torch.randn(shape, device=device, dtype=dtype), slots


def bytes_an_entry(moments: int, dtype: torch.dtype) -> int:
    """Weight and moments read and written, gradient read."""
    return 3 * dtype.itemsize + 2 * moments * working(dtype).itemsize


def chosen_rows(rows: int, ratio: float, block: int) -> Tensor:
    """int64[k]: ratio of the rows, in blocks of neighbours, rising."""
    blocks = torch.randperm(rows // block)[: max(1, round(ratio * rows / block))].sort().values
    return (blocks[:, None] * block + torch.arange(block)).flatten()


def _steps(
    shapes: Sequence[Shape], moments: int, ratio: float, block: int, dtype: torch.dtype, device: str
) -> list[Step]:
    kept = []
    for shape in shapes:
        k = len(chosen_rows(shape[0], ratio, block))
        grad = torch.randn(k, *shape[1:], device=device, dtype=dtype)
        kept.append((*state(shape, moments, dtype, device), grad, torch.zeros(shape[0], device=device)))

    def drawn() -> list[RowUpdate]:
        return [
            RowUpdate(weight, slots, chosen_rows(len(weight), ratio, block).to(device), grad, RATES, count)
            for weight, slots, grad, count in kept
        ]

    updates = drawn()
    masks = [
        torch.zeros(len(u.weight), device=device).index_fill(0, u.index, 1.0).view(-1, *[1] * (u.weight.dim() - 1))
        for u in updates
    ]
    rivals = peers(shapes, masks, moments, dtype)
    if torch.device(device).type == "cpu":
        turns = cycle([drawn() for _ in range(TURNS)])
        return [*rivals, lambda: update_rows(next(turns))]
    table, row = RowTable.of(updates), torch.cat([update.index for update in updates])
    return [*rivals, lambda: table.step(row)]


def _case(
    name: str, shapes: Sequence[Shape], moments: int, ratio: float, block: int, dtype: torch.dtype, device: str
) -> list[Row]:
    torch.manual_seed(0)
    active = sum(len(chosen_rows(s[0], ratio, block)) * torch.Size(s[1:]).numel() for s in shapes)
    moved = active * bytes_an_entry(moments, dtype)
    fused, masked, ours = medians(
        rotated(lambda: _steps(shapes, moments, ratio, block, dtype, device), moved, device), device
    )
    case = f"row_sparse_optimizer: {name}, {RULES[moments]}, ratio {ratio}" + (
        f", blocks of {block}" if block > 1 else ""
    )
    case += f", {str(dtype).removeprefix('torch.')}"
    kind, floor = torch.device(device).type, floors(device).seconds(moved)
    wanted = TIMES[kind][block] if ratio == 0.1 and moments == 2 and len(shapes) == 1 else None
    large = kind == "cuda" and min(shapes[0]) >= 4096
    return [
        kernel_row(
            case, ours, fused, "fused optimiser", floor,
            times=wanted if kind == "cpu" else None, within=WITHIN if large else None,
        ),
        kernel_row(case, ours, masked, "mask, fused optimiser", floor, times=wanted if kind == "cuda" else None),
    ]  # fmt: skip


def measure(device: str = "cpu") -> list[Row]:
    """AdamW of matrices and of a whole network; the other rules of the first matrix."""
    kind, rows = torch.device(device).type, []
    matrices, network = MATRICES[kind], [tuple(p.shape) for p in ResNet18(3, 64, "batch").parameters()]
    for dtype in DTYPES[kind]:
        for shape in matrices:
            for ratio in (0.1, 0.3):
                for block in (1, 16):
                    rows += _case("x".join(map(str, shape)), [shape], 2, ratio, block, dtype, device)
        for moments in (0, 1):
            rows += _case("x".join(map(str, matrices[0])), matrices[:1], moments, 0.1, 1, dtype, device)
        rows += _case("resnet18", network, 2, 0.1, 1, dtype, device)
    return rows
