"""What a network costs, counted from the shapes that pass through it."""

from __future__ import annotations

from math import prod
from typing import Any

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
    modes = {module: module.training for module in network.modules()}
    try:
        with torch.no_grad():
            network.eval()(x)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return total


def _norm_layer_flops(layer: Any, shape: tuple[int, ...]) -> int:
    size, rows, channels = prod(shape), shape[0], shape[1]
    if isinstance(layer, nn.GroupNorm):
        return (8 if layer.affine else 6) * size + 4 * rows * layer.num_groups
    if isinstance(layer, AdaB2N):
        return 8 * size + 2 * rows * channels + 14 * channels
    return 8 * size + 10 * channels
