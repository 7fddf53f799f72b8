"""A layer whose weight gradient is of active rows only, beside the dense layer, product by product and as a whole step.

"weight gradient": the active rows of grad^T x, rows drawn at random, beside the whole product. "output and score":
x W^T + b and the sum of its sizes over tokens, beside the library's product followed by ``abs().sum(0)``. "step": two
square layers with a rectifier between them, squared error, choice of rows and AdamW, beside the dense layers with
fused AdamW; on a GPU both are CUDA graphs. Its floor takes the products and bytes that remain.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models.kernels.row_choice import Choice, RowSlot, Together
from ...models.kernels.row_sparse_linear import row_gradient, row_sparse_linear, scored_linear
from ...models.kernels.row_sparse_optimizer import RowTable, RowUpdate
from ...models.kernels.update_rules import Rates
from . import Row
from .floors import Step, floors, kernel_row, medians, rotated

WEIGHT = {"cpu": (4096, 1024), "cuda": (4096, 4096)}
TOKENS = {"cpu": (32, 256), "cuda": (256, 8192)}
WIDTH = {"cpu": 1024, "cuda": 4096}
STEP_TOKENS = {"cpu": 32, "cuda": 256}
DTYPES = {"cpu": (torch.float32,), "cuda": (torch.bfloat16, torch.float32)}
RATIOS = (0.1, 0.3)
LR = 1e-3
RATES = Rates(LR, 0.9, 0.999, 1e-8, 0.01)
"""Those of PyTorch's AdamW."""


def _layer(tokens: int, d_out: int, d_in: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """x, weight, bias, gradient of the output."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((tokens, d_in), (d_out, d_in), (d_out,), (tokens, d_out))
    return [torch.randn(shape, generator=draw).to(device, dtype) for shape in shapes]


def _gradient(tokens: int, ratio: float, dtype: torch.dtype, device: str) -> Row:
    kind = torch.device(device).type
    (d_out, d_in), size = WEIGHT[kind], dtype.itemsize
    k = round(ratio * d_out)

    def steps() -> list[Step]:
        x, _, _, grad = _layer(tokens, d_out, d_in, dtype, device)
        index = torch.randperm(d_out, generator=torch.Generator().manual_seed(1))[:k].sort().values.to(device)
        return [lambda: grad.t() @ x, lambda: row_gradient(grad, x, index)]

    moved = size * (tokens * (k + d_in) + k * d_in)
    dense, ours = medians(rotated(steps, moved, device), device)
    return kernel_row(
        f"row_sparse_linear: weight gradient {d_out}x{d_in}, {tokens} tokens, ratio {ratio}, {_name(dtype)}",
        ours, dense, "dense weight gradient", floors(device).seconds(moved, 2 * tokens * k * d_in, dtype),
        times=5.0 if kind == "cpu" and ratio == RATIOS[0] else None,
        within=1.25 if kind == "cuda" and ratio == RATIOS[1] and tokens == TOKENS[kind][-1] else None,
    )  # fmt: skip


def _scored(tokens: int, dtype: torch.dtype, device: str) -> Row:
    d_out, d_in = WEIGHT[torch.device(device).type]

    def steps() -> list[Step]:
        x, weight, bias, _ = _layer(tokens, d_out, d_in, dtype, device)
        return [lambda: F.linear(x, weight, bias).abs().sum(0), lambda: scored_linear(x, weight, bias)]

    moved = dtype.itemsize * (tokens * (d_in + d_out) + d_out * d_in)
    plain, ours = medians(rotated(steps, moved, device), device)
    return kernel_row(
        f"row_sparse_linear: output and score {d_out}x{d_in}, {tokens} tokens, {_name(dtype)}",
        ours, plain, "linear, abs, sum", floors(device).seconds(moved, 2 * tokens * d_out * d_in, dtype),
    )  # fmt: skip


def _step(ratio: float, dtype: torch.dtype, device: str) -> Row:
    kind = torch.device(device).type
    tokens, width = STEP_TOKENS[kind], WIDTH[kind]
    x, weight, _, target = _layer(tokens, width, width, dtype, device)
    plain, ours = medians(
        [
            _replayed(_dense_step(x, weight * width**-0.5, target), device),
            _replayed(_sparse_step(x, weight * width**-0.5, target, Choice(1 - ratio)), device),
        ],
        device,
    )
    entries, size = 2 * width * width, dtype.itemsize
    # weights for outputs and one input gradient, compact gradient written; update: weight, moments, gradient
    moved = entries * (1.5 * size + ratio * (size + 3 * size + 16))
    operations = 2 * tokens * entries * (1.5 + ratio)
    return kernel_row(
        f"row_sparse_linear: step of two layers {width}x{width}, {tokens} tokens, ratio {ratio}, {_name(dtype)}",
        ours, plain, "dense layers, fused AdamW", floors(device).seconds(moved, operations, dtype),
        times=2.0 if (kind, ratio, dtype) == ("cuda", RATIOS[1], torch.bfloat16) else None,
    )  # fmt: skip


def _dense_step(x: Tensor, weight: Tensor, target: Tensor) -> Step:
    one, two = (weight.clone().requires_grad_() for _ in range(2))
    adamw = torch.optim.AdamW([one, two], lr=LR, fused=True, capturable=x.is_cuda)

    def step() -> None:
        adamw.zero_grad()
        F.mse_loss(F.linear(F.linear(x, one).relu(), two), target).backward()
        adamw.step()

    return step


def _sparse_step(x: Tensor, weight: Tensor, target: Tensor, choice: Choice) -> Step:
    weights = [weight.clone().requires_grad_() for _ in range(2)]
    together = Together()
    slots = [RowSlot(choice, together=together) for _ in weights]
    real = torch.float32 if weight.dtype.itemsize < 4 else weight.dtype

    def update(slot: RowSlot, weight: Tensor) -> RowUpdate:
        held = slot.hold(weight)
        moments = (torch.zeros_like(weight, dtype=real), torch.zeros_like(weight, dtype=real))
        count = torch.zeros(len(weight), device=weight.device)
        return RowUpdate(weight.detach(), moments, torch.arange(len(held), device=x.device), held, RATES, count)

    table = RowTable.of([update(*pair) for pair in zip(slots, weights)])

    def step() -> None:
        hidden = row_sparse_linear(x, weights[0], None, slots[0]).relu()
        F.mse_loss(row_sparse_linear(hidden, weights[1], None, slots[1]), target).backward()
        table.step(torch.cat([rows for rows, _ in (slot.take() for slot in slots) if rows is not None]))

    return step


def _replayed(step: Step, device: str) -> Step:
    """The step as a CUDA graph, so that the device is timed and not the interpreter; on a CPU as it is."""
    if torch.device(device).type == "cpu":
        return step
    stream, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
    with torch.cuda.device(device), torch.cuda.graph(graph):
        step()
    return graph.replay


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def measure(device: str = "cpu") -> list[Row]:
    """Weight gradients and outputs by type and tokens, then steps."""
    kind = torch.device(device).type
    cases = [(tokens, dtype) for dtype in DTYPES[kind] for tokens in TOKENS[kind]]
    return [
        *(_gradient(tokens, ratio, dtype, device) for tokens, dtype in cases for ratio in RATIOS),
        *(_scored(tokens, dtype, device) for tokens, dtype in cases),
        *(_step(ratio, dtype, device) for dtype in DTYPES[kind] for ratio in RATIOS),
    ]
