"""What masks look like in a network: entries held at zero, or blocks and rows that are really not there.

A form holds a network to its masks. It is asked for the score of each granule, told which granules stay and which are
new, and says which entries an update may touch. Weights that leave are 0 from then on, their moments too; what comes
begins at 0. ``Masked`` keeps the dense weights; ``Blocks`` keeps linear layers as their blocks where that is faster;
``Rows`` (``compact.py``) makes the network smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from .kernels.block_sparse_linear import BlockLinear, cut_out
from .kernels.inference_linear import PLAIN
from .masks import Mask
from .optimisers import Entries, Only, RowSet, Slots

Chosen = Mapping[str, Tensor]
"""Granules of each masked weight, bool[n], by the weight's name."""

BLOCKS_PAY = 0.25
"""Above this share of blocks a dense product is faster."""
SLICING_PAYS = 0.5
"""Above this share of rows a whole weight gradient costs no more than one of chosen rows."""


class Form(Protocol):
    """Holds a network to ``masks``."""

    masks: dict[str, Mask]

    def pool(self, name: str, values: Tensor) -> Tensor:
        """float[n]: the mean over each granule of ``values``, shaped as the parameter is now; any number where there is
        no granule."""
        ...

    def settle(self, stay: Chosen, slots: Slots) -> bool:
        """The masks changed: active granules that ``stay`` keep their weights and moments, the other active ones begin.
        Returns whether parameters were replaced."""
        ...

    def shape(self) -> bool:
        """Give the parameters the shapes that the masks ask for, values aside. Returns whether any were replaced."""
        ...

    def limits(self) -> dict[str, Only]:
        """What an update may touch, by ``Mask.moving``; weights without an entry are free."""
        ...

    def moved(self) -> None:
        """``Mask.moving`` changed."""
        ...

    def whole(self, on: bool) -> None:
        """Whether gradients are to be those of all weights there are, for scoring."""
        ...

    def entries(self, name: str) -> tuple[int, int]:
        """Entries of the weight that are there, and those that move."""
        ...


def zero_outside(name: str, weight: Tensor, stay: Tensor, slots: Slots) -> None:
    """Weights and moments (of the weight's shape) outside of ``stay`` become 0."""
    gone = ~stay
    with torch.no_grad():
        weight.masked_fill_(gone, 0.0)
    for tensor in slots.get(name, {}).values():
        if tensor.shape == weight.shape:
            tensor.masked_fill_(gone, 0.0)


class Masked:
    """Dense weights, zero outside of their masks."""

    def __init__(self, net: nn.Module, masks: dict[str, Mask]) -> None:
        self.net, self.masks = net, masks
        self._limits: dict[str, Only] | None = None

    def pool(self, name: str, values: Tensor) -> Tensor:
        return self.masks[name].granules.pool(values)

    def settle(self, stay: Chosen, slots: Slots) -> bool:
        for name, mask in self.masks.items():
            zero_outside(name, self.net.get_parameter(name), mask.granules.spread(stay[name]), slots)
        self.moved()
        return False

    def shape(self) -> bool:
        self.moved()
        return False

    def limits(self) -> dict[str, Only]:
        if self._limits is None:
            self._limits = {
                name: Entries.where(like(self.net.get_parameter(name), mask.granules.spread(mask.moving)))
                for name, mask in self.masks.items()
                if not bool(mask.moving.all())
            }
        return self._limits

    def moved(self) -> None:
        self._limits = None

    def whole(self, on: bool) -> None:
        """They always are."""

    def entries(self, name: str) -> tuple[int, int]:
        mask = self.masks[name]
        return mask.granules.entries(mask.active), mask.granules.entries(mask.moving)


class Blocks:
    """Linear layers as the blocks they have, where there are few enough; all else as in ``Masked``."""

    def __init__(self, net: nn.Module, masks: dict[str, Mask], share: float) -> None:
        self.net, self.masks = net, masks
        few = share <= BLOCKS_PAY
        names = {n for n in masks if few and type(net.get_submodule(layer_of(n))) in PLAIN}
        self.rest = Masked(net, {n: m for n, m in masks.items() if n not in names})
        self.layers: dict[str, BlockLinear] = {}
        self._at: dict[str, Tensor] = {}
        for name in names:
            old = net.get_submodule(layer_of(name))
            assert isinstance(old, nn.Linear)
            layer = BlockLinear((old.out_features, old.in_features), old.bias)
            every = torch.arange(masks[name].granules.n, device=old.weight.device)
            place = _places(masks[name], every)
            layer.place(cut_out(old.weight.detach(), *place, masks[name].granules.block), *place)
            net.set_submodule(layer_of(name), layer.train(old.training))
            self.layers[name], self._at[name] = layer, every

    def pool(self, name: str, values: Tensor) -> Tensor:
        mask = self.masks[name]
        if name not in self.layers:
            return self.rest.pool(name, values)
        at = self._at[name]
        found = values.new_zeros(mask.granules.n)
        found[at] = values.sum((1, 2)) / mask.granules.sizes(values.device)[at]
        return found

    def settle(self, stay: Chosen, slots: Slots) -> bool:
        self.rest.settle(stay, slots)
        for name, layer in self.layers.items():
            self._become(name, layer, stay[name], slots)
        return bool(self.layers)

    def shape(self) -> bool:
        self.rest.shape()
        for name, layer in self.layers.items():
            self._become(name, layer, self.masks[name].active, {})
        return bool(self.layers)

    def _become(self, name: str, layer: BlockLinear, stay: Tensor, slots: Slots) -> None:
        """Keep the blocks that stay, in their new places; the others are zeros."""
        mask, at = self.masks[name], self._at[name]
        after = mask.active.nonzero().flatten()
        kept = stay[at]

        def move(old: Tensor) -> Tensor:
            grid = old.new_zeros(mask.granules.n, *old.shape[1:])
            grid[at[kept]] = old[kept]
            return grid[after]

        high, wide = mask.granules.block
        weight = layer.weight.detach()
        weight = move(weight) if len(weight) else weight.new_zeros(len(after), high, wide)
        layer.place(weight, *_places(mask, after))
        for key, tensor in slots.get(name, {}).items():
            if tensor.dim():
                slots[name][key] = move(tensor)
        self._at[name] = after

    def limits(self) -> dict[str, Only]:
        found = dict(self.rest.limits())
        for name in self.layers:
            moving = self.masks[name].moving[self._at[name]]
            if not bool(moving.all()):
                found[name] = RowSet(moving.nonzero().flatten())
        return found

    def moved(self) -> None:
        self.rest.moved()

    def whole(self, on: bool) -> None:
        """They always are."""

    def entries(self, name: str) -> tuple[int, int]:
        mask = self.masks[name]
        return mask.granules.entries(mask.active), mask.granules.entries(mask.moving)


def _places(mask: Mask, at: Tensor) -> tuple[Tensor, Tensor]:
    """Block rows and block columns of granules."""
    across = mask.granules.grid[1]
    return torch.div(at, across, rounding_mode="floor"), at % across


def like(weight: Tensor, mask: Tensor) -> Tensor:
    """The mask, laid out in memory as the weight is."""
    return torch.empty_like(weight, dtype=torch.bool).copy_(mask)


def lay_channels_last(net: nn.Module) -> None:
    """Lay the weights of all convolutions out so that channels come last, which oneDNN prefers on a CPU."""
    for parameter in net.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def layer_of(name: str) -> str:
    """The module that a parameter belongs to."""
    return name.rpartition(".")[0]
