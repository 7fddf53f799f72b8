"""Which output rows of a layer are active in a step: scores of its outputs, the rows chosen by them.

The rule is MIGU's (Du et al., Unlocking continual learning abilities in language models, EMNLP Findings 2024, arXiv
2406.17245): the rows with the largest sum of |output| over all tokens of a step. From the paper: that score and
k = rows - floor(ratio rows). From its code: the choice by a quantile. Ours: ties go to the lowest rows, so that k rows
are chosen, neither more nor fewer; blocks of neighbouring rows; the controls ``random`` and ``bottom``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .topk_rows import Layers, block_scores, topk_rows
from .update_rules import working


def active_count(rows: int, ratio: float) -> int:
    """k = max(1, rows - floor(ratio rows)), safe against 0.7 * 10 = 7.000000000000001 or 6.99.

    >>> [active_count(rows, 0.7) for rows in (4, 8, 10, 64, 1024, 2816)]
    [2, 3, 3, 20, 308, 845]
    """
    return max(1, rows - int(ratio * rows + 1e-9))


def row_score(y: Tensor, kind: Literal["sum_abs", "token_l1"] = "sum_abs", keep: Tensor | None = None) -> Tensor:
    """One number per row, float[d], from outputs [n, d] of a linear layer or [n, d, *positions] of a convolution.

    sum_abs: sum over tokens of |y| (dividing by their number or by the L1 norm of the score changes no order).
    token_l1: every token's |y| divided by its own sum first, so that loud tokens do not count more.
    Sums of short floats are kept in float32. keep: bool, n of them; tokens that do not count are False (padding).
    """
    size = y.detach().abs()
    if keep is not None:
        size = size * keep.reshape(-1, *[1] * (y.dim() - 1))
    long = torch.float32 if size.dtype in (torch.float16, torch.bfloat16) else size.dtype
    if kind == "token_l1":
        size = size.to(long) / size.sum(1, keepdim=True, dtype=long).clamp_min(torch.finfo(long).tiny)
    return size.sum([axis for axis in range(y.dim()) if axis != 1], dtype=long)


def quantile_rows(score: Tensor, ratio: float) -> Tensor:
    """The rows at or above the ``ratio`` quantile of the score, as MIGU's code has it: all rows of a tie."""
    values = score.numpy(force=True)
    return torch.from_numpy(np.flatnonzero(values >= np.quantile(values, ratio))).to(score.device)


def repeated() -> bool:
    """Whether this forward pass runs within a backward pass: activation checkpointing repeats one that was seen."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


@dataclass(frozen=True, slots=True)
class Choice:
    """How rows are chosen. ratio: masked share; block_rows: so many neighbours are chosen together.

    parts: so many equal stretches of rows are chosen from apart (layers one behind the other in one weight).
    """

    ratio: float
    score: Literal["sum_abs", "token_l1"] = "sum_abs"
    select: Literal["top", "random", "bottom"] = "top"
    block_rows: int = 1
    quantile: bool = False
    parts: int = 1

    def count(self, rows: int) -> int | None:
        """How many of so many rows are chosen; None where that depends on the score or the draw, or there are parts."""
        size = self.block_rows
        if self.quantile or self.select == "random" or rows % size or self.parts > 1:
            return None
        return size * active_count(rows // size, self.ratio)

    def rows(self, score: Tensor, draw: tuple[int, ...] = (0,)) -> Tensor:
        """The active rows of a finite score, int64[k], rising. draw: the seed of a random choice.

        With blocks, k counts blocks, the score of a block is the mean of its rows, and the last may be shorter.
        """
        if self.parts > 1:
            one, size = replace(self, parts=1), len(score) // self.parts
            found = [one.rows(part, (*draw, i)) + i * size for i, part in enumerate(score.split(size))]
            return torch.cat(found)
        n = -(-len(score) // self.block_rows)
        k = active_count(n, self.ratio)
        if self.select == "random":
            drawn = np.sort(np.random.default_rng(draw).permutation(n)[:k])
            rows = self._spread(torch.from_numpy(drawn).to(score.device))
        elif self.quantile:
            rows = self._spread(quantile_rows(self._of_blocks(score), self.ratio))
        else:
            rows = self.best(score, k)
        return rows[rows < len(score)] if len(score) % self.block_rows else rows

    def best(self, score: Tensor, k: int | Layers) -> Tensor:
        """The rows of the k best blocks; of those of all ``Layers``, whose sizes and counts are blocks."""
        return self._spread(topk_rows(self._of_blocks(score), k))

    def _of_blocks(self, score: Tensor) -> Tensor:
        score = score if self.block_rows == 1 else block_scores(score, self.block_rows)
        return score if self.select == "top" else -score

    def _spread(self, blocks: Tensor) -> Tensor:
        size = self.block_rows
        if size == 1:
            return blocks
        return (blocks[:, None] * size + torch.arange(size, device=blocks.device)).flatten()


@dataclass(slots=True)
class Together:
    """The slots of a network on a GPU: rows of them all are chosen in one call that does not wait for the device."""

    slots: list[RowSlot] = field(default_factory=list)
    layers: dict[tuple[torch.device, tuple[int, ...]], Layers] = field(default_factory=dict)

    def choose(self, device: torch.device) -> None:
        """Fix the rows of every slot of this device that has a score and no rows yet; all slots have one choice.

        How many are chosen must be known beforehand (``Choice.count``). In a layer whose score is not finite they are
        chosen as in any other, NaN first; the first slot's ``not_finite`` counts such layers, on the device.
        """
        seen = [(slot, slot.score) for slot in self.slots if slot.score is not None and slot.index is None]
        slots, scores = zip(*((slot, score) for slot, score in seen if score.device == device))
        choice, score = slots[0].choice, torch.cat(scores)
        layers = self._layers(tuple(map(len, scores)), choice, device)
        found = choice.best(score, layers).split([k * choice.block_rows for k in layers.counts])
        for slot, rows in zip(slots, found, strict=True):
            slot.index = rows
        begins = layers.table[0] * choice.block_rows
        finite = torch.segment_reduce(score.isfinite().float(), "min", offsets=begins, unsafe=True)
        slots[0].not_finite = slots[0].not_finite + (1 - finite).sum()

    def _layers(self, widths: tuple[int, ...], choice: Choice, device: torch.device) -> Layers:
        key = (device, widths)
        if key not in self.layers:
            sizes = tuple(width // choice.block_rows for width in widths)
            self.layers[key] = Layers.of(sizes, tuple(active_count(size, choice.ratio) for size in sizes), device)
        return self.layers[key]


class RowSlot:
    """What a layer hands from its forward passes to its backward passes and on to the optimiser, within one step.

    Scores add up until the first backward pass needs the rows; these then stay for the step, so that later passes
    (accumulated micro-batches) take the rows of the earlier ones: our choice, as a gradient of chosen rows cannot be
    chosen again. factors: gradients of so few examples are kept as two factors (``row_sparse_optimizer``), 0 for never.

    In a compiled network (``torch.compile``) the rows are those of the step's first forward pass, and the gradient
    comes as that of ``tap``, a tensor nothing reads: ``prepare`` makes it before compiling.
    """

    def __init__(
        self, choice: Choice, seed: tuple[int, ...] = (0,), factors: int = 0, together: Together | None = None
    ) -> None:
        self.choice, self.seed, self.factors = choice, seed, factors
        self.together = Together() if together is None else together
        self.together.slots.append(self)
        self.score: Tensor | None = None
        self.index: Tensor | None = None
        self.step: int | None = None
        self.tap: Tensor | None = None
        self.held: Tensor | None = None
        self.not_finite: int | Tensor = 0
        self._given: Tensor | tuple[Tensor, Tensor] | None = None

    def arm(self, step: int) -> None:
        """The passes from here to ``take`` belong to this step."""
        self.step = step

    def prepare(self, weight: Tensor) -> None:
        """Make ``tap`` for a compiled network; ``ValueError`` for a choice whose count is not known beforehand."""
        self.tap = weight.new_zeros(()).expand(self._shape(weight)).requires_grad_()

    def hold(self, weight: Tensor) -> Tensor:
        """Room for the compact gradient, which lies there at every step from now on, as a CUDA graph of the optimiser
        wants it; ``ValueError`` as in ``prepare``."""
        self.held = weight.new_zeros(self._shape(weight))
        return self.held

    def _shape(self, weight: Tensor) -> tuple[int, ...]:
        k = self.choice.count(len(weight))
        if k is None:
            raise ValueError(
                "rows by quantile, at random, or in blocks that do not divide a layer have no count: run them eagerly"
            )
        return k, *weight.shape[1:]

    def room(self, k: int) -> Tensor | None:
        """Where a gradient of k rows is to be written, if that is fixed."""
        return self.held if self._given is None and self.held is not None and len(self.held) == k else None

    def see(self, y: Tensor, keep: Tensor | None = None) -> None:
        """Add the outputs of a forward pass to the score. keep: see ``row_score``."""
        if not repeated():
            self.add(row_score(y, self.choice.score, keep))

    def add(self, score: Tensor) -> None:
        """Add the score of a forward pass, unless it repeats one."""
        if not repeated():
            self.score = score if self.score is None else self.score + score

    def rows(self) -> Tensor:
        """The active rows of this step.

        On a CPU, or where their count is not known beforehand, all of them where the score is not finite, counted in
        ``not_finite``; on a GPU see ``Together``.
        """
        if self.index is None:
            assert self.score is not None, "no forward pass was seen"
            if self.score.device.type != "cpu" and self.choice.count(len(self.score)) is not None:
                self.together.choose(self.score.device)
            elif np.isfinite(self.score.numpy(force=True)).all():
                self.index = self.choice.rows(self.score, (*self.seed, self.step or 0))
            else:
                self.not_finite = self.not_finite + 1
                self.index = torch.arange(len(self.score), device=self.score.device)
        assert self.index is not None
        return self.index

    def first_rows(self, score: Tensor) -> Tensor:
        """As many rows as ``tap`` has, by the score of the step's first pass."""
        self.add(score)
        if self.index is None:
            assert self.tap is not None
            self.index = self.choice.best(score, len(self.tap) // self.choice.block_rows)
        return self.index

    def give(self, grad: Tensor, inputs: Tensor) -> None:
        """The active columns of an output gradient, [n, k], and the layer's inputs, [n, d_in]."""
        if self._given is None and len(grad) <= self.factors:
            self._given = (grad, inputs)
        else:
            self.give_rows(torch.mm(grad.t(), inputs, out=self.room(grad.shape[1])))

    def give_rows(self, rows: Tensor) -> None:
        """The gradient of the active rows, [k, ...]; it is added to what was given before, in float32 at least."""
        if isinstance(self._given, tuple):
            self._given = self._given[0].t() @ self._given[1]
        room = self.room(len(rows))
        if room is not None and rows is not room:
            rows = room.copy_(rows)
        self._given = rows if self._given is None else self._given.to(working(rows.dtype)) + rows

    def take(self) -> tuple[Tensor | None, Tensor | tuple[Tensor, Tensor] | None]:
        """(active rows, gradient of these rows or its two factors), None for what there was not; and start anew."""
        index = None if self.score is None else self.rows()
        given, self._given = self._given, None
        if self.tap is not None and self.tap.grad is not None:
            given, self.tap.grad = self.tap.grad, None
        self.score = self.index = self.step = None
        return index, given
