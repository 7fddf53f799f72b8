"""What a network costs, counted from the shapes that pass through it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .norms import BATCH_NORMS, AdaB2N


def norm_flops(network: nn.Module, x: Tensor) -> int:
    """Operations of all norm layers of ``network`` in one forward pass of ``x`` in training mode.

    With S elements, B rows, C channels and G groups a layer: batch norm 8 S + 10 C; group norm 8 S + 4 B G, without
    affine parameters 6 S + 4 B G; AdaB2N 8 S + 2 B C + 14 C; continual norm is both of its halves. The convention is
    that of AdaB2N's authors (a notebook of their code). Nothing of the network changes.
    """
    total = 0

    def count(layer: Any, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        nonlocal total
        total += _norm_layer_flops(layer, tuple(inputs[0].shape))

    kinds = (*BATCH_NORMS, nn.GroupNorm, AdaB2N)
    hooks = [layer.register_forward_hook(count) for layer in network.modules() if isinstance(layer, kinds)]
    _watched_pass(network, x, hooks)
    return total


def _watched_pass(network: nn.Module, x: Tensor, hooks: list[Any]) -> None:
    """One forward pass in evaluation mode and the network's precision; hooks and modes are as if it had not been."""
    modes = {module: module.training for module in network.modules()}
    if x.is_floating_point():
        x = x.to(next((w.dtype for w in network.parameters()), x.dtype))
    try:
        with torch.no_grad():
            network.eval()(x)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode


def _norm_layer_flops(layer: Any, shape: tuple[int, ...]) -> int:
    size, rows, channels = prod(shape), shape[0], shape[1]
    if isinstance(layer, nn.GroupNorm):
        return (8 if layer.affine else 6) * size + 4 * rows * layer.num_groups
    if isinstance(layer, AdaB2N):
        return 8 * size + 2 * rows * channels + 14 * channels
    return 8 * size + 10 * channels


# --- what a step of sparse training costs ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Layer:
    """macs: multiplications of one sample's forward pass if the layer were dense. weights: its parameters."""

    macs: int
    weights: int


def layer_costs(network: nn.Module, x: Tensor) -> dict[str, Layer]:
    """Every linear layer and convolution by the name of its weight, counted on one sample x [1, ...].

    Norms, activations and biases are not counted, as in SparCL's convention. Nothing of the network changes.
    """
    found: dict[str, Layer] = {}

    def count(name: str, layer: Any, output: Tensor) -> None:
        weight = layer.weight
        positions = output.numel() // (len(output) * len(weight))
        found[f"{name}.weight"] = Layer(positions * weight.numel(), weight.numel())

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    hooks = [
        layer.register_forward_hook(lambda module, _, out, name=name: count(name, module, out))
        for name, layer in network.named_modules()
        if isinstance(layer, kinds)
    ]
    _watched_pass(network, x, hooks)
    return found


@dataclass(frozen=True, slots=True)
class StepCost:
    """Operations per sample: the forward pass, and the gradient of the weights. That of the activations costs what the
    forward pass does. One multiplication with its addition is two operations."""

    forward: float
    weights: float

    @property
    def train(self) -> float:
        """Forward, gradient of activations, gradient of weights."""
        return 2 * self.forward + self.weights

    def paper(self, now: float, replayed: float = 0.0) -> float:
        """Of so many rows, as the SparCL paper counts: of a replayed row only its forward pass."""
        return now * self.train + replayed * self.forward

    def true(self, now: float, replayed: float = 0.0) -> float:
        """Of so many rows: a replayed row has a backward pass like any other."""
        return (now + replayed) * self.train


def step_cost(
    costs: Mapping[str, Layer], density: Mapping[str, float] | None = None, moving: Mapping[str, float] | None = None
) -> StepCost:
    """The cost where of some weights (by name) a share ``density`` is there and a share ``moving`` gets a gradient.

    Both are shares of all the layer's weights; a layer without entry is dense, and moves as far as it is there.
    """
    density = density or {}
    moving = moving or {}
    forward = weights = 0.0
    for name, layer in costs.items():
        d = density.get(name, 1.0)
        forward += 2 * layer.macs * d
        weights += 2 * layer.macs * moving.get(name, d)
    return StepCost(forward, weights)


def surviving(share: float, cutoff: int, every: int, epochs: int) -> float:
    """Mean share of an experience's rows presented in an epoch, if a part share / cutoff leaves after each of the first
    ``cutoff`` stages of ``every`` epochs."""
    return sum(1 - share * min(e // every, cutoff) / max(cutoff, 1) for e in range(epochs)) / epochs


def sparse_bytes(
    n: int, there: int, moving: int, rows: int, kept: Literal["csr", "bitmap", "block", "rows"], block: int = 1024
) -> dict[str, int]:
    """Bytes of a weight of n entries (4 bytes each) of which some are there, and some of these move.

    kept: how it is told which: csr, 4 bytes per entry and per row; bitmap, one bit per entry of the whole; block, 4
    bytes per block of ``block`` entries; rows, 4 bytes per row kept. mask: one bit per entry, as it lies beside. The
    activations, which are not in here, are as large as ever unless rows are dropped.
    """
    index = {"csr": 4 * there + 4 * rows, "bitmap": -(-n // 8), "block": 4 * -(-there // block), "rows": 4 * rows}[kept]
    return {"weights": 4 * there, "index": index, "gradient": 4 * moving, "mask": -(-n // 8)}
