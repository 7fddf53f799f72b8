"""Which output rows of a layer are active in a step: scores of its outputs, the rows chosen by them.

The rule is MIGU's (Du et al., Unlocking continual learning abilities in language models, EMNLP Findings 2024, arXiv
2406.17245): the rows with the largest sum of |output| over all tokens of a step. From the paper: that score and
k = rows - floor(ratio rows). From its code: the choice by a quantile. Ours: ties go to the lowest rows, so that k rows
are chosen, neither more nor fewer; blocks of neighbouring rows; the controls ``random`` and ``bottom``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray


def active_count(rows: int, ratio: float) -> int:
    """k = max(1, rows - floor(ratio rows)), safe against 0.7 * 10 = 7.000000000000001 or 6.99.

    >>> [active_count(rows, 0.7) for rows in (4, 8, 10, 64, 1024, 2816)]
    [2, 3, 3, 20, 308, 845]
    """
    return max(1, rows - int(ratio * rows + 1e-9))


def row_score(y: Tensor, kind: Literal["sum_abs", "token_l1"] = "sum_abs") -> Tensor:
    """One number per row, float[d], from outputs [n, d] of a linear layer or [n, d, *positions] of a convolution.

    sum_abs: sum over tokens of |y| (dividing by their number or by the L1 norm of the score changes no order).
    token_l1: every token's |y| divided by its own sum first, so that loud tokens do not count more.
    Sums of short floats are kept in float32.
    """
    size = y.detach().abs()
    long = torch.float32 if size.dtype in (torch.float16, torch.bfloat16) else size.dtype
    if kind == "token_l1":
        size = size.to(long) / size.sum(1, keepdim=True, dtype=long).clamp_min(torch.finfo(long).tiny)
    return size.sum([axis for axis in range(y.dim()) if axis != 1], dtype=long)


def top_rows(score: Array, k: int) -> Array:
    """The k rows of the largest score, int64[k], rising; among equals the lowest rows."""
    bar = np.partition(score, len(score) - k)[len(score) - k]
    found = np.flatnonzero(score >= bar)
    return found if len(found) == k else np.sort(np.argsort(-score, kind="stable")[:k])


def quantile_rows(score: Array, ratio: float) -> Array:
    """The rows at or above the ``ratio`` quantile of the score, as MIGU's code has it: all rows of a tie."""
    return np.flatnonzero(score >= np.quantile(score, ratio))


@dataclass(frozen=True, slots=True)
class Choice:
    """How rows are chosen. ratio: masked share; block_rows: so many neighbours are chosen together."""

    ratio: float
    score: Literal["sum_abs", "token_l1"] = "sum_abs"
    select: Literal["top", "random", "bottom"] = "top"
    block_rows: int = 1
    quantile: bool = False

    def rows(self, score: Array, draw: tuple[int, ...] = (0,)) -> Array | None:
        """The active rows, int64[k], rising; None where the score is not finite. draw: the seed of a random choice.

        With blocks, k counts blocks, the score of a block is the mean of its rows, and the last may be shorter.
        """
        if not np.isfinite(score).all():
            return None
        size = self.block_rows
        of_blocks = score if size == 1 else np.add.reduceat(score, np.arange(0, len(score), size))
        if size > 1 and len(score) % size:
            of_blocks[-1] *= size / (len(score) % size)
        found = self._of(of_blocks, draw)
        if size == 1:
            return found
        rows = (found[:, None] * size + np.arange(size)).ravel()
        return rows[: np.searchsorted(rows, len(score))]

    def _of(self, score: Array, draw: tuple[int, ...]) -> Array:
        k = active_count(len(score), self.ratio)
        if self.select == "random":
            return np.sort(np.random.default_rng(draw).permutation(len(score))[:k])
        score = score if self.select == "top" else -score
        return quantile_rows(score, self.ratio) if self.quantile else top_rows(score, k)


class RowSlot:
    """What a layer hands from its forward passes to its backward passes and on to the optimiser, within one step.

    Scores add up until the first backward pass needs the rows; these then stay for the step, so that later passes
    (accumulated micro-batches) take the rows of the earlier ones: our choice, as a gradient of chosen rows cannot be
    chosen again. factors: gradients of so few examples are kept as two factors (``row_sparse_optimizer``), 0 for never.
    """

    def __init__(self, choice: Choice, seed: tuple[int, ...] = (0,), factors: int = 0) -> None:
        self.choice, self.seed, self.factors = choice, seed, factors
        self.score: Tensor | None = None
        self.step: int | None = None
        self.not_finite = 0
        self._index: Tensor | None = None
        self._given: Tensor | tuple[Tensor, Tensor] | None = None

    def arm(self, step: int) -> None:
        """The passes from here to ``take`` belong to this step."""
        self.step = step

    def see(self, y: Tensor) -> None:
        """Add the outputs of a forward pass to the score."""
        score = row_score(y, self.choice.score)
        self.score = score if self.score is None else self.score + score

    def rows(self) -> Tensor:
        """The active rows of this step; all of them, counted in ``not_finite``, where the score is not finite."""
        if self._index is None:
            assert self.score is not None, "no forward pass was seen"
            chosen = self.choice.rows(self.score.numpy(force=True), (*self.seed, self.step or 0))
            if chosen is None:
                self.not_finite += 1
                chosen = np.arange(len(self.score))
            self._index = torch.from_numpy(chosen).to(self.score.device)
        return self._index

    def give(self, grad: Tensor, inputs: Tensor) -> None:
        """The active columns of an output gradient, [n, k], and the layer's inputs, [n, d_in]."""
        if self._given is None and len(grad) <= self.factors:
            self._given = (grad, inputs)
        else:
            self.give_rows(grad.t() @ inputs)

    def give_rows(self, rows: Tensor) -> None:
        """The gradient of the active rows, [k, ...]; it is added to what was given before."""
        if isinstance(self._given, tuple):
            self._given = self._given[0].t() @ self._given[1]
        self._given = rows if self._given is None else self._given + rows

    def take(self) -> tuple[Tensor | None, Tensor | tuple[Tensor, Tensor] | None]:
        """(active rows, gradient of these rows or its two factors), None for what there was not; and start anew."""
        index = None if self.score is None else self.rows()
        given, self._given = self._given, None
        self.score = self._index = self.step = None
        return index, given
