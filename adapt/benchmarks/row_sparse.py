"""One training step of a linear layer with MIGU's row masks: only active rows have a weight gradient and an update.

A step is: forward pass, score of the rows and choice of the largest, mean squared error, gradients of input, weight and
bias, AdamW. Weights are [d_out, d_in]; ``rows`` in a case is the size of the batch; the ratio is the share of rows that
are updated; ``blocks of 16`` chooses 16 neighbours together. One thread, float32. Peers:

- "dense": the plain layer and ``torch.optim.AdamW(fused=True)``, no mask at all;
- "masked": the published form of MIGU, a mask by ``torch.quantile`` multiplied onto the dense gradient, fused AdamW.

Medians of processor time, taken in turn (``floors.in_turn``). floor is our time by the Amdahl limit,

    limit = dense step - (1 - ratio) (weight gradient + fused update, each timed alone in the same rounds),

that is a step whose forward pass and input gradient stay dense, whose weight gradient and update shrink to the active
rows, and whose score, choice and gather are free. The narrow layer, 256x256, is there because little is gained on it.
Whole blocks of transformers come after the single layers: ``row_sparse_blocks.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models.kernels.row_choice import Choice, RowSlot
from ...models.kernels.row_sparse_linear import row_sparse_linear
from ...models.kernels.row_sparse_optimizer import FACTORS
from ...models.optimisers import AdamW, RowSet
from . import Row, row, row_sparse_blocks
from .floors import Step, in_turn

LAYERS = ((768, 3072), (4096, 1024), (256, 256))
BATCHES = (8, 32, 256)
RATIOS = (0.05, 0.1, 0.3, 0.5)
BLOCKS = (1, 16)
LR, DECAY = 1e-3, 0.01
ROUNDS = 5


def layer(d_out: int, d_in: int, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """weight, bias, input and target; the input wants a gradient, as in the middle of a network."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(d_out, d_in, generator=generator) * d_in**-0.5
    x = torch.randn(batch, d_in, generator=generator)
    target = torch.randn(batch, d_out, generator=generator)
    return weight, torch.zeros(d_out), x.requires_grad_(), target


def dense(d_out: int, d_in: int, batch: int, keep: float | None = None) -> Step:
    """The plain step; with ``keep``, the published mask that leaves this share of the rows."""
    weight, bias, x, target = layer(d_out, d_in, batch)
    weight, bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
    optimiser = torch.optim.AdamW([weight, bias], lr=LR, weight_decay=DECAY, fused=True)

    def step() -> None:
        optimiser.zero_grad()
        x.grad = None
        y = F.linear(x, weight, bias)
        F.mse_loss(y, target).backward()
        if keep is not None:
            score = y.detach().abs().sum(0)
            assert weight.grad is not None
            weight.grad *= (score >= torch.quantile(score, 1 - keep))[:, None]
        optimiser.step()

    return step


def sparse(d_out: int, d_in: int, batch: int, ratio: float, block_rows: int) -> Step:
    """Our step."""
    weight, bias, x, target = layer(d_out, d_in, batch)
    params = {"weight": weight.requires_grad_(), "bias": bias.requires_grad_()}
    optimiser = AdamW(LR, weight_decay=DECAY)
    slot = RowSlot(Choice(1 - ratio, block_rows=block_rows), factors=FACTORS)

    def step() -> None:
        loss = F.mse_loss(row_sparse_linear(x, weight, bias, slot), target)
        _, grad_bias = torch.autograd.grad(loss, [x, bias])
        index, given = slot.take()
        assert index is not None
        assert given is not None
        grad, inputs = given if isinstance(given, tuple) else (given, None)
        optimiser.step(params, {"weight": grad, "bias": grad_bias}, {"weight": RowSet(index, True, inputs)})

    return step


def prunable(d_out: int, d_in: int, batch: int) -> tuple[Step, Step]:
    """What shrinks with the active rows: the product that gives the weight gradient, and the fused update."""
    weight, _, x, target = layer(d_out, d_in, batch)
    optimised = torch.nn.Parameter(weight)
    optimised.grad = torch.randn_like(weight)
    optimiser = torch.optim.AdamW([optimised], lr=LR, weight_decay=DECAY, fused=True)
    return lambda: target.t() @ x.detach(), optimiser.step


def cases(d_out: int, d_in: int, batch: int, ratio: float) -> list[Row]:
    """Ours with single rows and with blocks, against both peers."""
    shape = (d_out, d_in, batch)
    peers = [dense(*shape), dense(*shape, keep=ratio)]
    ours = [sparse(*shape, ratio, block) for block in BLOCKS]
    plain, masked, *own, product, update = in_turn([*peers, *ours, *prunable(*shape)], ROUNDS)
    limit = plain - (1 - ratio) * (product + update)
    rows = []
    for seconds, block in zip(own, BLOCKS):
        case = f"{d_out}x{d_in}, {batch} rows, ratio {ratio}" + (f", blocks of {block}" if block > 1 else "")
        for time, name in ((plain, "dense, fused AdamW"), (masked, "dense gradient masked, fused AdamW")):
            measured = row("row-sparse", case, "steps/s", 1 / seconds, 1 / time, name)
            rows.append(measured | {"floor": seconds / limit})
    return rows


def measure() -> list[Row]:
    """All layers, batches and ratios, then blocks of transformers, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        shapes = [(*layer, batch) for layer in LAYERS for batch in BATCHES]
        single = [found for shape in shapes for ratio in RATIOS for found in cases(*shape, ratio)]
        return single + row_sparse_blocks.measure()
    finally:
        torch.set_num_threads(threads)
