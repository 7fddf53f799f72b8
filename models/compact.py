"""Networks that really are smaller: output rows that are not in the mask, and all that hangs on them, are not there.

A dropped row takes with it its bias, its channel of the norm behind it and the columns of the layer that reads it; its
output is exactly 0. So the smaller network computes what the dense one would with these set to zero, and its parameters
are the only ones there are: there is no dense copy beside them.

Within a residual block the first convolution and its norm keep k channels; the second has k inputs, keeps its own
outputs, and adds these alone onto the shortcut. In a chain of layers each reads what the one before it has left, and
the features at its end are put back into their places.

A unit of which every weight in and out is zero gets no gradient. So, other than single weights, a new row is drawn as
layers are at the start, and what reads it begins at zero; where it is added onto a shortcut its norm's scale does
(without a norm: the row itself). Either way a new row changes no output. All of this is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .forms import SLICING_PAYS, Chosen, layer_of
from .kernels.narrow_join import narrow_join
from .kernels.sliced_gradient import SlicedConv2d, SlicedLinear, sliceable
from .masks import Mask
from .networks import MLP, ConvNet
from .norms import BATCH_NORMS, AdaB2N
from .optimisers import Only, RowSet, Slots
from .resnet import BasicBlock, ResNet18


@dataclass(frozen=True, slots=True)
class Link:
    """A layer whose rows or columns may go. layer, norm, reads: names of modules; reads: whose rows are its columns.

    residual: its output is added onto a shortcut. last: its output is what the head sees.
    """

    layer: str
    norm: str | None = None
    reads: str | None = None
    residual: bool = False
    last: bool = False


class NarrowBlock(nn.Module):
    """A residual block whose second convolution keeps the channels ``rows`` only."""

    rows: Tensor

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.conv1, self.norm1 = block.conv1, block.norm1
        self.conv2, self.norm2 = block.conv2, block.norm2
        self.shortcut = block.shortcut
        self.width = block.conv2.out_channels
        self.register_buffer("rows", torch.arange(self.width, device=block.conv2.weight.device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        if len(self.rows) == self.width:
            return torch.relu(inner + self.shortcut(x))
        return narrow_join(self.shortcut(x), inner, self.rows)


class Spread(nn.Module):
    """Puts features float[B, k] into the places ``rows`` of float[B, width]; the others are 0."""

    rows: Tensor

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("rows", torch.arange(width, device=device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if len(self.rows) == self.width:
            return x
        return x.new_zeros(x.shape[0], self.width).index_copy(1, self.rows, x)


def links_of(body: nn.Module) -> list[Link]:
    """The layers of a body that can be made narrower; ``ValueError`` for one whose build is not known here."""
    if isinstance(body, ResNet18):
        blocks = [f"body.blocks.{i}" for i in range(len(body.blocks))]
        firsts = [Link(f"{b}.conv1", f"{b}.norm1") for b in blocks]
        seconds = [Link(f"{b}.conv2", f"{b}.norm2", reads=f"{b}.conv1", residual=True) for b in blocks]
        return firsts + seconds
    if not isinstance(body, MLP | ConvNet):
        raise ValueError("rows can be dropped from mlp, convnet and resnet18 only; element and block go with any model")
    links: list[Link] = []
    layers: list[tuple[str, str | None]] = []
    for name, module in body.named_children():
        if isinstance(module, nn.Linear | nn.Conv2d):
            layers.append((f"body.{name}", None))
        elif layers and (isinstance(module, (AdaB2N, nn.GroupNorm, nn.Sequential, *BATCH_NORMS))):
            layers[-1] = (layers[-1][0], f"body.{name}")
    for i, (layer, norm) in enumerate(layers):
        links.append(Link(layer, norm, layers[i - 1][0] if i else None, last=i == len(layers) - 1))
    return links


@dataclass(frozen=True, slots=True)
class Move:
    """Slices go from their places ``at`` to the places ``to`` (int64, among all n) if their place stays (bool[n])."""

    at: Tensor
    stay: Tensor
    to: Tensor

    def carry(self, old: Tensor, axis: int, fill: float = 0.0) -> Tensor:
        """The slices of a tensor along an axis, moved; those that do not stay, and those that were not there, are
        ``fill``."""
        sizes = list(old.shape)
        sizes[axis] = len(self.stay)
        kept = self.stay[self.at]
        wide = old.new_full(sizes, fill)
        wide.index_copy_(axis, self.at[kept], old.index_select(axis, kept.nonzero().flatten()))
        return wide.index_select(axis, self.to)


class Rows:
    """Holds a network to masks of output rows by making it smaller.

    share: of the rows that move, of those there are. channels_last: keep convolutions so.
    """

    def __init__(
        self,
        net: nn.Module,
        masks: dict[str, Mask],
        share: float,
        generator: np.random.Generator,
        *,
        channels_last: bool = True,
    ) -> None:
        self.net, self.masks, self.generator = net, masks, generator
        self.channels_last = channels_last
        body = net.get_submodule("body")
        self.links = links_of(body)
        self.device = next(net.parameters()).device
        for link in self.links:
            self._check_norm(link)
        self._sizes = {link.layer: len(self._layer(link).weight) for link in self.links}
        self._fan = {link.layer: self._layer(link).weight[0].numel() for link in self.links}
        self.at = {layer: torch.arange(n, device=self.device) for layer, n in self._sizes.items()}
        self._limits: dict[str, Only] = {}
        self.sliced = share <= SLICING_PAYS
        if self.sliced:
            for name in masks:
                net.set_submodule(layer_of(name), sliceable(net.get_submodule(layer_of(name))))
        if isinstance(body, ResNet18):
            for i, block in enumerate(body.blocks):
                assert isinstance(block, BasicBlock)
                body.blocks[i] = NarrowBlock(block).train(block.training)
        else:
            assert isinstance(body, nn.Sequential)
            body.append(Spread(self._sizes[self.links[-1].layer], self.device))

    def pool(self, name: str, values: Tensor) -> Tensor:
        found = values.new_zeros(self.masks[name].granules.n)
        found[self.at[layer_of(name)]] = values.flatten(1).mean(1)
        return found

    def settle(self, stay: Chosen, slots: Slots) -> bool:
        every = {layer: torch.ones(n, dtype=torch.bool, device=self.device) for layer, n in self._sizes.items()}
        stays = every | {layer_of(name): chosen for name, chosen in stay.items()}
        active = every | {layer_of(name): mask.active for name, mask in self.masks.items()}
        before = self.at
        self.at = {layer: active[layer].nonzero().flatten() for layer in before}
        moves = {layer: Move(before[layer], stays[layer], self.at[layer]) for layer in before}
        for link in self.links:
            self._become(link, moves[link.layer], moves[link.reads] if link.reads else None, slots)
            new = active[link.layer] & ~stays[link.layer]
            self._begin(link, new)
            if link.last:
                self._silence(new, slots)
        self._place()
        self.moved()
        return True

    def shape(self) -> bool:
        return self.settle({name: mask.active for name, mask in self.masks.items()}, {})

    def limits(self) -> dict[str, Only]:
        return self._limits

    def moved(self) -> None:
        self._limits = {}
        for name, mask in self.masks.items():
            moving = mask.moving[self.at[layer_of(name)]]
            if not bool(moving.all()):
                self._limits[name] = RowSet(moving.nonzero().flatten())
        self.whole(False)

    def whole(self, on: bool) -> None:
        for name in self.masks:
            layer, limit = self.net.get_submodule(layer_of(name)), self._limits.get(name)
            if isinstance(layer, SlicedLinear | SlicedConv2d):
                layer.moving = limit.index if isinstance(limit, RowSet) and not on else None

    def entries(self, name: str) -> tuple[int, int]:
        mask, weight = self.masks[name], self.net.get_parameter(name)
        return weight.numel(), int(mask.moving.sum()) * weight[:1].numel()

    # --- one layer ----------------------------------------------------------------------------------------------

    def _layer(self, link: Link) -> Any:
        return self.net.get_submodule(link.layer)

    def _check_norm(self, link: Link) -> None:
        norm = self.net.get_submodule(link.norm) if link.norm else None
        if norm is not None and not isinstance(norm, (AdaB2N, nn.Identity, *BATCH_NORMS)):
            raise ValueError("rows can be dropped where channels are normalised each by itself: norm=batch or none")

    def _become(self, link: Link, rows: Move, cols: Move | None, slots: Slots) -> None:
        """Keep what stays of the layer, its norm, and their moments."""

        def moved(old: Tensor) -> Tensor:
            out = rows.carry(old.detach(), 0)
            return out if cols is None or out.dim() < 2 else cols.carry(out, 1)

        layer = self._layer(link)
        tensors = [(layer, "weight", 0.0), (layer, "bias", 0.0)]
        norm: Any = self.net.get_submodule(link.norm) if link.norm else None
        if norm is not None:
            fills = {"weight": 0.0 if link.residual else 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
            tensors += [(norm, key, fill) for key, fill in fills.items()]
        for module, key, fill in tensors:
            old = getattr(module, key, None)
            if old is None:
                continue
            tensor = rows.carry(old.detach(), 0, fill) if module is norm else moved(old)
            tensor = self._laid_out(tensor)
            setattr(module, key, nn.Parameter(tensor) if isinstance(old, nn.Parameter) else tensor)
        for name in (link.layer, link.norm):
            for suffix in ("weight", "bias"):
                slot = slots.get(f"{name}.{suffix}", {})
                slot |= {key: self._laid_out(moved(tensor)) for key, tensor in slot.items() if tensor.dim()}
        _tell_sizes(layer, norm)

    def _laid_out(self, tensor: Tensor) -> Tensor:
        last = self.channels_last and tensor.dim() == 4
        return tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def _begin(self, link: Link, new: Tensor) -> None:
        """Draw the rows that are new; they stay zero where nothing else would hold back their output."""
        fresh = new[self.at[link.layer]].nonzero().flatten()
        if not len(fresh) or (link.residual and self._normless(link)):
            return
        weight = self._layer(link).weight
        edge = self._fan[link.layer] ** -0.5
        drawn = self.generator.uniform(-edge, edge, (len(fresh), *weight.shape[1:]))
        with torch.no_grad():
            weight[fresh] = torch.from_numpy(drawn).to(weight)

    def _normless(self, link: Link) -> bool:
        return link.norm is None or getattr(self.net.get_submodule(link.norm), "weight", None) is None

    def _silence(self, new: Tensor, slots: Slots) -> None:
        """The head does not listen to new features yet."""
        weight = self.net.get_parameter("head.weight")
        slot = slots.get("head.weight", {})
        with torch.no_grad():
            for tensor in (weight, *slot.values()):
                if tensor.shape == weight.shape:
                    tensor[:, new] = 0.0

    def _place(self) -> None:
        """Tell the modules that put rows back where these belong."""
        body = self.net.get_submodule("body")
        if isinstance(body, ResNet18):
            for i, block in enumerate(body.blocks):
                assert isinstance(block, NarrowBlock)
                block.rows = self.at[f"body.blocks.{i}.conv2"]
        else:
            assert isinstance(body, nn.Sequential)
            spread = body[-1]
            assert isinstance(spread, Spread)
            spread.rows = self.at[self.links[-1].layer]


def _tell_sizes(layer: Any, norm: Any) -> None:
    """Bring what modules say of their own size up to date."""
    out, into = layer.weight.shape[:2]
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = out, into
    else:
        layer.out_channels, layer.in_channels = out, into
    if isinstance(norm, AdaB2N):
        norm.channels = out
    elif isinstance(norm, BATCH_NORMS):
        norm.num_features = out
