"""What techniques share that freeze a network and let adapters beside its linear layers learn."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from torch import nn

from ...models.named import linears, matches, replace, shortened
from ...streams import InputError

if TYPE_CHECKING:
    from .gradient import GradientLearner

Layer = TypeVar("Layer", bound=nn.Module)
HEAD = "head.*"
"""What learns beside adapters if nothing else is said; a network may be without a head of its own."""


def attach(
    learner: GradientLearner, flag: str, patterns: str, make: Callable[[nn.Module, int], Layer]
) -> dict[str, Layer]:
    """Put ``make(layer, number)`` in the place of every chosen linear layer; returns them by the layers' names.

    flag: the parameter's name, for the message where the patterns name nothing. The head, and what are adapters
    already (modules called lora_A, lora_B), are left as they are.
    """
    if learner.params.head_only:
        raise InputError("head_only trains the head alone: adapters in the body would never learn")
    try:
        found = linears(learner.net, patterns)
    except ValueError as fault:
        raise InputError(f"{flag}: {fault}") from None
    head = getattr(learner.net, "head", None)
    chosen = {name: layer for name, layer in found.items() if layer is not head and ".lora_" not in name}
    made = {name: make(layer, number) for number, (name, layer) in enumerate(chosen.items())}
    for layer in made.values():
        layer.train(learner.net.training)
    replace(learner.net, {chosen[name]: layer for name, layer in made.items()})
    return made


def freeze(learner: GradientLearner, but: str, learning: Collection[str]) -> None:
    """Freeze the network's parameters, except those that match ``but`` or are named in ``learning``.

    Frozen ones lose their slots in the optimiser. Call ``learner.rebuilt()`` afterwards where something changed.
    """
    rest = [name for name, _ in learner.net.named_parameters() if name not in learning]
    if but.strip() not in ("", HEAD) and not any(matches(name, but) for name in rest):
        raise InputError(f"train_also={but} names no parameter; there are {shortened(reversed(rest))}")
    for name, weight in learner.net.named_parameters():
        weight.requires_grad_(name in learning or matches(name, but))
        if not weight.requires_grad:
            learner.optimiser.slots.pop(name, None)


def seed_of(learner: GradientLearner, *of: int) -> int:
    """A seed in 0 .. 2^62 - 1 of its own for each tuple of numbers, such as (layer, adapter)."""
    return int(np.random.SeedSequence((learner.seed, *of)).generate_state(1, np.uint64)[0] >> 2)
