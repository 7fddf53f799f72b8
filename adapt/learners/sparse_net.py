"""What every technique with masks needs around its rule: the form of the network, limits of updates, costs, state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...models.compact import Rows as RowForm
from ...models.flops import StepCost, layer_costs, step_cost
from ...models.forms import Blocks, Form, Masked, lay_channels_last
from ...models.kernels.masked_optimizer import unpack_mask
from ...models.kernels.selection import ops_on
from ...models.masks import Granularity, Mask, load_masks, masks_for, masks_state, prunable
from ...models.optimisers import SGD, Entries, Only, RowSet
from ...streams import InputError
from ..learner import State
from .parts import Active, Rows

if TYPE_CHECKING:
    from .gradient import GradientLearner

ONE_MASK = "each says which weights there are, so a network can have one of them only"
MASKING = ("SparCL", "RandomMask", "MagnitudeMask", "SNIP", "SET", "RigL")
RESHAPED = "it keeps a number for every weight of the dense network, and blocks and rows are taken out of that"
SCORING, SELECTING = 6, 4
"""Operations per entry of a masked weight when a mask, and when a gradient mask, is chosen anew."""


def refused(me: str, granularity: Granularity) -> dict[str, str]:
    """The parts that a technique with masks cannot be combined with, and why."""
    found = {name: ONE_MASK for name in MASKING if name != me}
    found["MIGU"] = "both say which weights an update may touch"
    if granularity != "element":
        found |= {"EWC": RESHAPED, "LwF": "its teacher is a copy of the network, whose layers change their sizes"}
    return found


def read_block(text: str) -> tuple[int, int]:
    """Rows and columns of a block written as 32x32; ``ValueError`` where it is none."""
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(f"block {text!r} is not rows and columns with x between, such as 32x32")
    return int(parts[0]), int(parts[1])


class SparseNet:
    """The network of a learner under masks.

    share: of the active granules that move.
    """

    def __init__(
        self,
        learner: GradientLearner,
        generator: np.random.Generator,
        sparsity: float,
        granularity: Granularity = "element",
        *,
        block: tuple[int, int] = (32, 32),
        multiple: int = 1,
        share: float = 1.0,
    ) -> None:
        if learner.params.head_only:
            raise InputError("masks are of the network's body: it must be trained (head_only is set)")
        if learner.writes:
            raise InputError(
                "masks of weights are for networks that give scores of classes: this one writes its answers"
            )
        self.learner, self.generator, self.sparsity = learner, generator, sparsity
        net, device = learner.net, learner.device
        self.costs = layer_costs(net, torch.zeros((1, *learner.inputs.shape), device=device))
        self.masks = masks_for(prunable(net), granularity, sparsity, block=block, multiple=multiple, device=device)
        self.form: Form = Masked(net, self.masks)
        last = device.type == "cpu" and (sparsity > 0 or share < 1)
        if last:
            lay_channels_last(net)
        try:
            if granularity == "block" and ops_on():
                self.form = Blocks(net, self.masks, 1 - sparsity)
            elif granularity == "row":
                self.form = RowForm(net, self.masks, share, generator, channels_last=last)
        except ValueError as fault:
            raise InputError(f"{fault}") from None
        self.scoring = False
        self.paper_flops = self.true_flops = 0.0
        self._loaded = False
        self._cost: StepCost | None = None

    @property
    def reshapes(self) -> bool:
        """Whether parameters change their shapes with the masks."""
        return not isinstance(self.form, Masked)

    # --- masks --------------------------------------------------------------------------------------------------

    def pool(self, name: str, values: Tensor) -> Tensor:
        """float[n]: the mean of ``values`` over each granule."""
        return self.form.pool(name, values)

    def weight(self, name: str) -> Tensor:
        """The weight as it is now, without graph."""
        return self.learner.net.get_parameter(name).detach()

    def renew(self, change: Callable[[str, Mask], Tensor | None]) -> None:
        """Change every mask: ``change`` drops from it, and may add to it granules that it returns (bool[n])."""
        stay = {}
        for name, mask in self.masks.items():
            new = change(name, mask)
            stay[name] = mask.active if new is None else mask.active & ~new
        if self.form.settle(stay, self.learner.optimiser.slots):
            self.learner.rebuilt()
        self._cost = None
        self.true_flops += SCORING * sum(self.costs[name].weights for name in self.masks)

    def moved(self) -> None:
        """``Mask.moving`` of some masks was set anew."""
        self.form.moved()
        self._cost = None
        self.true_flops += SELECTING * sum(self.costs[name].weights for name in self.masks)

    def limit(self, grads: dict[str, Tensor | None], only: dict[str, Only]) -> None:
        """Hold an update to what moves."""
        if self._loaded:
            self._align()
        sliced = isinstance(self.form, RowForm) and self.form.sliced  # what does not move has a gradient of 0 already
        clip, plain = bool(self.learner.params.clip) and not sliced, not sliced and self._plain()
        for name, limit in self.form.limits().items():
            grad = grads.get(name)
            if grad is None:
                continue
            if isinstance(limit, RowSet) and (clip or plain):
                grads[name] = torch.zeros_like(grad).index_copy_(0, limit.index, grad.index_select(0, limit.index))
            elif isinstance(limit, Entries) and clip:
                grads[name] = grad * unpack_mask(limit.words, self.weight(name))
            if isinstance(limit, Entries) or not plain:
                only[name] = limit

    def _plain(self) -> bool:
        """Whether an entry whose gradient is 0 keeps every bit anyway: SGD and nothing more, and nobody who changes
        gradients afterwards. Rows then take the whole update, which is one call for all parameters."""
        learner, optimiser = self.learner, self.learner.optimiser
        if not isinstance(optimiser, SGD) or optimiser.momentum or optimiser.weight_decay:
            return False
        others = [part for part in (*learner.techniques, learner.policy) if getattr(part, "sparse", None) is not self]
        return all(type(part).gradients is Active.gradients for part in others)

    def _align(self) -> None:
        """Moments out of a file get the layout in memory that their weights have: other layouts, other last bits."""
        self._loaded = False
        for name, slot in self.learner.optimiser.slots.items():
            weight = self.learner.weights[name]
            slot |= {k: torch.empty_like(weight).copy_(t) for k, t in slot.items() if t.shape == weight.shape}

    # --- costs --------------------------------------------------------------------------------------------------

    @property
    def cost(self) -> StepCost:
        """Of one sample, with the masks as they are."""
        if self._cost is None:
            there, moving = {}, {}
            for name in self.masks:
                n = self.costs[name].weights
                there[name], moving[name] = (count / n for count in self.form.entries(name))
            self._cost = step_cost(self.costs, there, moving)
        return self._cost

    def count(self, rows: Sequence[Rows]) -> None:
        """Rows go through the network forth and back."""
        now = sum(len(part) for part in rows if part.current)
        old = sum(len(part) for part in rows if not part.current)
        if self.scoring:
            self.true_flops += 3 * self.cost.forward * (now + old)
            return
        self.paper_flops += self.cost.paper(now, old)
        self.true_flops += self.cost.true(now, old)

    def telemetry(self) -> dict[str, float]:
        """Shares of the masked weights that are not there, and that move; operations by both conventions."""
        total = sum(self.costs[name].weights for name in self.masks)
        there, moving = np.sum([(0, 0), *(self.form.entries(name) for name in self.masks)], axis=0)
        return {
            "sparsity": 1 - float(there) / total if total else 0.0,
            "gradient_density": float(moving) / total if total else 1.0,
            "paper_flops": self.paper_flops,
            "true_flops": self.true_flops,
        }

    # --- state --------------------------------------------------------------------------------------------------

    def state(self) -> State:
        generator: Any = self.generator.bit_generator.state
        flops = {"paper": self.paper_flops, "true": self.true_flops}
        return {"masks": masks_state(self.masks), "generator": generator, "flops": flops}

    def load(self, state: State) -> None:
        load_masks(self.masks, state["masks"])
        self.generator.bit_generator.state = state["generator"]
        self.paper_flops, self.true_flops = float(state["flops"]["paper"]), float(state["flops"]["true"])
        self.form.shape()
        self._cost = None
        self._loaded = True
