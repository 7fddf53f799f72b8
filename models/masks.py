"""Masks of weights: which entries, rows or blocks of a parameter there are, chosen by exact count.

A mask is a state of its own and is never read off the values of the weights: a weight of value 0 may well be active.
What is counted is granules: single entries, whole output rows, or blocks of the weight as a matrix [rows, rest].
Counts follow one function, so that growing and shrinking are inverse; ties go to the lowest index, so that a count is
exact even where all scores are equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .kernels.topk_rows import block_scores

Granularity = Literal["element", "row", "block"]

MIN_ENTRIES = 1024
"""Smaller weights stay dense."""
SLACK = 1e-9
"""A share times a count that misses a whole number by less is that number."""


def keep_count(n: int, sparsity: float) -> int:
    """How many of n stay: n - round(sparsity n), halves to even.

    >>> [keep_count(16384, s) for s in (0.9, 0.91, 0.89)], keep_count(100, 0.75)
    ([1638, 1475, 1802], 25)
    """
    return n - round(sparsity * n)


def best(scores: Tensor, among: Tensor, count: int) -> Tensor:
    """bool[n]: the ``count`` largest of scores float[n] where ``among`` (bool[n]) holds; of equals the lowest index."""
    where = among.nonzero().flatten()
    chosen = torch.zeros_like(among)
    if count >= len(where):
        return among.clone()
    if count <= 0:
        return chosen
    found = scores[where]
    edge = torch.kthvalue(found, len(found) - count + 1).values
    above = found > edge
    ties = (found == edge).nonzero().flatten()[: count - int(above.sum())]
    above[ties] = True
    chosen[where[above]] = True
    return chosen


def above_percentile(scores: Tensor, share: float) -> Tensor:
    """bool[n]: scores strictly above the percentile 100 ``share``, linear between ranks (the published code's rule)."""
    edge = np.percentile(scores.numpy(force=True).astype(np.float64), 100 * share)
    return scores > torch.tensor(edge, dtype=scores.dtype, device=scores.device)


def sprout(active: Tensor, extra: int, generator: np.random.Generator) -> Tensor:
    """bool[n]: ``extra`` positions drawn evenly from those that are not active (all of them, where there are fewer)."""
    free = (~active).nonzero().flatten()
    new = torch.zeros_like(active)
    extra = min(extra, len(free))
    if extra > 0:
        drawn = generator.choice(len(free), extra, replace=False, shuffle=False)
        new[free[torch.from_numpy(np.sort(drawn)).to(free.device)]] = True
    return new


@dataclass(frozen=True, slots=True)
class Granules:
    """How a weight of ``shape`` is cut up: blocks of its matrix [rows, rest]; those at the edges may be smaller.

    >>> Granules((100, 40, 3, 3), (32, 32)).grid
    (4, 12)
    """

    shape: tuple[int, ...]
    block: tuple[int, int] = (1, 1)

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and the product of all other axes."""
        return self.shape[0], prod(self.shape[1:])

    @property
    def grid(self) -> tuple[int, int]:
        """Granules along rows and columns."""
        (rows, rest), (high, wide) = self.matrix, self.block
        return -(-rows // high), -(-rest // wide)

    @property
    def n(self) -> int:
        """Number of granules."""
        return prod(self.grid)

    @property
    def even(self) -> bool:
        """Whether all granules are of one size."""
        return all(m % b == 0 for m, b in zip(self.matrix, self.block, strict=True))

    def entries(self, chosen: Tensor) -> int:
        """How many entries the granules in bool[n] have."""
        if self.even:
            return int(chosen.sum()) * prod(self.block)
        return int(self.sizes(chosen.device)[chosen].sum())

    def sizes(self, device: torch.device | str = "cpu") -> Tensor:
        """int64[n]: entries of each granule."""
        high, wide = (
            torch.arange(g, device=device).mul(-b).add(m).clamp(max=b)
            for g, b, m in zip(self.grid, self.block, self.matrix, strict=True)
        )
        return torch.outer(high, wide).flatten()

    def pool(self, values: Tensor) -> Tensor:
        """float[n]: the mean of ``values`` (of the weight's shape) over each granule."""
        if self.block == (1, 1):
            return values.reshape(-1)
        return block_scores(values.reshape(self.matrix), self.block)

    def spread(self, chosen: Tensor) -> Tensor:
        """bool of the weight's shape out of bool[n]."""
        if self.block == (1, 1):
            return chosen.reshape(self.shape)
        (rows, rest), (high, wide) = self.matrix, self.block
        table = chosen.reshape(self.grid).repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :rest]
        return table.reshape(self.shape)


@dataclass(slots=True)
class Mask:
    """The mask of one weight. active: bool[n], the granules there are; moving: those that updates may change.

    guarded: no row is left without a granule, where there are enough for all. multiple: counts are rounded up to
    multiples of it.
    """

    granules: Granules
    guarded: bool = False
    multiple: int = 1
    device: torch.device | str = "cpu"
    active: Tensor = field(init=False)
    moving: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.active = torch.ones(self.granules.n, dtype=torch.bool, device=self.device)
        self.moving = self.active.clone()

    def count(self, sparsity: float) -> int:
        """How many granules this sparsity leaves, one at least."""
        keep = max(1, keep_count(self.granules.n, sparsity))
        return min(self.granules.n, -(-keep // self.multiple) * self.multiple)

    def keep_best(self, scores: Tensor, sparsity: float) -> None:
        """Drop the least of the active granules (scores float[n]) until ``sparsity``; nothing, if it is reached."""
        count = self.count(sparsity)
        if count >= int(self.active.sum()):
            return
        if self.guarded and count >= self.granules.grid[0]:
            scores = self._row_first(scores)
        self.replace(best(scores, self.active, count))

    def grow(self, sparsity: float, generator: np.random.Generator) -> Tensor:
        """Draw new granules from the inactive ones until ``sparsity``; returns which, bool[n]."""
        return self.add(sprout(self.active, self.count(sparsity) - int(self.active.sum()), generator))

    def add(self, new: Tensor) -> Tensor:
        """Make these granules active too; returns them."""
        self.replace(self.active | new)
        return new

    def replace(self, active: Tensor) -> None:
        """These are the active granules from now on, and all of them move."""
        self.active = active
        self.moving = active.clone()

    def _row_first(self, scores: Tensor) -> Tensor:
        """Scores with the best active granule of every row above all others."""
        table = scores.masked_fill(~self.active, -torch.inf).reshape(self.granules.grid)
        top = table.argmax(1, keepdim=True)
        there = table.gather(1, top) > -torch.inf
        raised = scores.clone().reshape(self.granules.grid)
        raised.scatter_(1, top, torch.where(there, torch.inf, raised.gather(1, top)))
        return raised.flatten()


def prunable(net: nn.Module, head: str = "head") -> dict[str, tuple[int, ...]]:
    """Weights that are masked, by parameter name, with their shapes.

    Linear layers and convolutions of at least ``MIN_ENTRIES`` entries; never the first convolution (the stem), 1x1
    convolutions (shortcuts) and the last linear layer (``head``); no biases and norms.
    """
    found: dict[str, tuple[int, ...]] = {}
    stem = True
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            skip, stem = stem or set(module.kernel_size) == {1}, False
        elif isinstance(module, nn.Linear):
            skip = name == head
        else:
            continue
        if not skip and module.weight.numel() >= MIN_ENTRIES:
            found[f"{name}.weight"] = tuple(module.weight.shape)
    return found


def masks_for(
    shapes: Mapping[str, tuple[int, ...]],
    granularity: Granularity,
    sparsity: float,
    *,
    block: tuple[int, int] = (32, 32),
    multiple: int = 1,
    device: torch.device | str = "cpu",
) -> dict[str, Mask]:
    """A mask for each weight, all active at first. Layers that could not keep one granule a row are left out."""
    made: dict[str, Mask] = {}
    for name, shape in shapes.items():
        rowwise = granularity == "row"
        cut = {"element": (1, 1), "row": (1, prod(shape[1:])), "block": block}[granularity]
        mask = Mask(Granules(shape, cut), not rowwise, multiple if rowwise else 1, device)
        rows = 1 if rowwise else mask.granules.grid[0]
        if keep_count(mask.granules.n, sparsity) >= rows:
            made[name] = mask
    return made


def masks_state(masks: Mapping[str, Mask]) -> dict[str, Any]:
    """Both masks of every weight."""
    return {name: {"active": mask.active, "moving": mask.moving} for name, mask in masks.items()}


def load_masks(masks: Mapping[str, Mask], state: Mapping[str, Any]) -> None:
    """Take over a copy of what ``masks_state`` returned."""
    for name, mask in masks.items():
        mask.active = state[name]["active"].clone().to(mask.device)
        mask.moving = state[name]["moving"].clone().to(mask.device)
