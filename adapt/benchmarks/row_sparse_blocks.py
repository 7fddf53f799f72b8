"""A whole training step of a transformer block with MIGU's row masks in every linear layer, beside two dense ones.

Two kinds of block of width 512 and 8 heads: "llama", a causal one with a gated feed-forward network of 1376, and "t5",
which looks both ways and has one of 2048 with ReLU. A step is: forward pass, scores and choice of rows in every layer,
mean squared error, backward pass down to the block's input, AdamW on the weights of the linear layers. One thread,
float32, sequences of 128 tokens. The mask ratio is the share of rows that are left out. Peers:

- "dense": no masks, ``torch.optim.AdamW(fused=True)``;
- "masked": the published way, dense gradients times a mask by ``torch.quantile``, then the same AdamW.

floor is our time by the limit

    dense step - ratio (weight gradients + fused update, each timed alone in the same rounds),

that is a step whose forward pass, attention and input gradients stay dense, and whose scores and choice are free. If
there were nothing but matrix products, the limit would be the dense step divided by 3 / (2 + rho), rho = 1 - ratio.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.kernels.row_choice import Choice, RowSlot, Together
from ...models.kernels.row_sparse_optimizer import FACTORS
from ...models.named import linears
from ...models.optimisers import AdamW, RowSet
from ..learners.migu import MaskedLayer, together
from . import Row, row
from .floors import Step, in_turn

WIDTH, HEADS, LENGTH = 512, 8, 128
BLOCKS = {"llama": 1376, "t5": 2048}
TOKENS = {256: 3, 2048: 2}
"""Tokens of a step, and rounds in which steps are timed."""
RATIOS = (0.5, 0.7, 0.9, 0.95)
LR, DECAY = 1e-3, 0.01


class Block(nn.Module):
    """Attention and a feed-forward network, each after a norm and beside a shortcut: float[B, T, 512] to the same."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.causal = self.gated = kind == "llama"
        inner = BLOCKS[kind]
        self.norm, self.second = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, inner, bias=False), nn.Linear(inner, WIDTH, bias=False)
        self.gate = nn.Linear(WIDTH, inner, bias=False) if self.gated else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).unflatten(2, (HEADS, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.o(seen.transpose(1, 2).flatten(2))
        h = self.second(x)
        inner = F.silu(self.gate(h)) * self.up(h) if self.gated else torch.relu(self.up(h))
        y: Tensor = x + self.down(inner)
        return y


def case(kind: str, tokens: int) -> tuple[Block, dict[str, nn.Module], Tensor, Tensor]:
    """A block, its linear layers by name, an input that wants a gradient, and a target."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = Block(kind)
        for norm in (block.norm, block.second):
            norm.requires_grad_(False)
        x, target = (torch.randn(tokens // LENGTH, LENGTH, WIDTH) for _ in range(2))
    return block, linears(block, "*"), x.requires_grad_(), target


def dense(kind: str, tokens: int, ratio: float | None = None) -> Step:
    """The plain step; with ``ratio``, the published mask that leaves this share of the rows out."""
    block, layers, x, target = case(kind, tokens)
    weights = [layer.get_parameter("weight") for layer in layers.values()]
    optimiser = torch.optim.AdamW(weights, lr=LR, weight_decay=DECAY, fused=True)
    scores: dict[nn.Module, Tensor] = {}
    if ratio is not None:
        for layer in layers.values():
            layer.register_forward_hook(lambda layer, _, y: scores.update({layer: y.detach().abs().sum((0, 1))}))

    def step() -> None:
        optimiser.zero_grad()
        x.grad = None
        F.mse_loss(block(x), target).backward()
        for layer, score in scores.items():
            assert ratio is not None
            grad = layer.get_parameter("weight").grad
            assert grad is not None
            grad *= (score >= torch.quantile(score, ratio))[:, None]
        optimiser.step()

    return step


def sparse(kind: str, tokens: int, ratio: float) -> Step:
    """Our step, as the technique makes it."""
    block, layers, x, target = case(kind, tokens)
    params = {name: layer.get_parameter("weight") for name, layer in layers.items()}
    optimiser, all_slots = AdamW(LR, weight_decay=DECAY), Together()
    slots = {name: RowSlot(Choice(ratio), (0, k), FACTORS, all_slots) for k, name in enumerate(layers)}
    for name, layer in layers.items():
        layer.forward = MaskedLayer(layer, slots[name], "compact")

    def step() -> None:
        for slot in slots.values():
            slot.arm(0)
        torch.autograd.grad(F.mse_loss(block(x), target), [x, *params.values()], allow_unused=True)
        grads: dict[str, Tensor | None] = {}
        only = {}
        for name, slot in slots.items():
            index, given = slot.take()
            assert index is not None
            grads[name], inputs = together(given, None, index)
            only[name] = RowSet(index, compact=True, inputs=inputs)
        optimiser.step(params, grads, only)

    return step


def prunable(kind: str, tokens: int) -> tuple[Step, Step]:
    """What shrinks with the active rows: the products that give the weight gradients, and the fused update."""
    _, layers, _, _ = case(kind, tokens)
    weights = [nn.Parameter(torch.randn_like(layer.get_parameter("weight"))) for layer in layers.values()]
    pairs = [(torch.randn(tokens, w.shape[0]), torch.randn(tokens, w.shape[1])) for w in weights]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimiser = torch.optim.AdamW(weights, lr=LR, weight_decay=DECAY, fused=True)
    return lambda: [grad.t() @ x for grad, x in pairs], optimiser.step


def measure() -> list[Row]:
    """Both kinds, both batches, all ratios, on as many threads as PyTorch uses."""
    rows = []
    for kind in BLOCKS:
        for tokens, rounds in TOKENS.items():
            steps = [dense(kind, tokens), dense(kind, tokens, 0.7), *prunable(kind, tokens)]
            ours = [sparse(kind, tokens, ratio) for ratio in RATIOS]
            plain, masked, products, update, *own = in_turn([*steps, *ours], rounds)
            for seconds, ratio in zip(own, RATIOS, strict=True):
                limit = plain - ratio * (products + update)
                for time, name in ((plain, "dense, fused AdamW"), (masked, "dense gradients masked, fused AdamW")):
                    text = f"{kind} block 512, {tokens} tokens, mask ratio {ratio}"
                    measured = row("row-sparse", text, "steps/s", 1 / seconds, 1 / time, name)
                    rows.append(measured | {"floor": seconds / limit})
    return rows
