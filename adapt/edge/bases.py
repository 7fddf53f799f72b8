"""Base learners that stand still, as functions: rows in, answers and hidden vectors out.

What ``reloop2`` and ``platt`` have around them on a device. A base learner is written down as it is; its numbers are
standardised by the moments that it has, and nothing of it moves from then on.

Hashes of open columns are those of ``models/ctr.py`` in whole numbers of 64 bits, whose signed products wrap to the
same bits as the unsigned ones there; shifts are made logical by a mask, and the remainder is taken of two halves.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ...models.ctr import Places
from ..learner import Learner
from ..learners.ctr import CLIP, ClickLearner
from ..learners.logistic import Logistic
from .steps import CannotExport, plain_layers

WORD = 2**64
HALF = 2**32


def base_of(learner: Learner) -> nn.Module:
    """float64[B, d] to (scores float64[B, C], hidden float32[B, h] or None); ``CannotExport`` for other learners."""
    if isinstance(learner, Logistic):
        return Linear(learner)
    if isinstance(learner, ClickLearner) and learner.params.kind != "din":
        return Clicks(learner)
    name = learner.params.kind if isinstance(learner, ClickLearner) else type(learner).__name__
    why = " (its histories of users move)" if name == "din" else ""
    raise CannotExport(f"{name} has no form as a graph inside another learner{why}; logistic, ctr-lr, fm, deepfm and "
                       "dcnv2 have")  # fmt: skip


class Linear(nn.Module):
    """``logistic``: softmax of standardised numbers and one-hot categories."""

    def __init__(self, learner: Logistic) -> None:
        super().__init__()
        first, sizes = learner._layout
        count, mean, squares = learner._stats
        self.first, self.sizes, self.clip = first.tolist(), sizes.tolist(), learner.params.clip
        numeric = np.flatnonzero(sizes == 0)
        known = (squares > 0)[numeric]
        self.numeric = torch.from_numpy(numeric)
        self.mean = torch.from_numpy(mean[numeric])
        deviation = np.sqrt(squares[numeric] / np.maximum(count[numeric], 1))
        self.scale = torch.from_numpy(np.where(known, 1 / np.where(known, deviation, 1.0), 0.0))
        self.weights = torch.from_numpy(learner._weights.copy())
        self.of_numbers = self.weights[torch.from_numpy(first[numeric])]

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        numbers = x[:, self.numeric]
        there = torch.isfinite(numbers)
        at = ((torch.where(there, numbers, self.mean) - self.mean) * self.scale).clamp(-self.clip, self.clip)
        z = self.weights[0] + at @ self.of_numbers
        for j, (first, size) in enumerate(zip(self.first, self.sizes)):
            if size:
                column = x[:, j]
                code = torch.where(torch.isfinite(column), column, 0.0).long() % size
                z = z + torch.where(torch.isfinite(column)[:, None], self.weights[first + code], 0.0)
        return torch.softmax(z, 1), None


class Clicks(nn.Module):
    """A click model without histories: places in its table, then its network."""

    def __init__(self, learner: ClickLearner) -> None:
        super().__init__()
        self.net, self.places = plain_layers(learner.net), learner._places
        count, mean, squares = learner._moments
        deviation = np.sqrt(squares / np.maximum(count, 1))
        numbers = learner._numbers
        self.numbers = torch.from_numpy(numbers)
        self.mean = torch.from_numpy(np.where(numbers, mean, 0.0))
        self.scale = torch.from_numpy(np.where(deviation > 0, 1 / np.where(deviation > 0, deviation, 1.0), 0.0))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        there = ~torch.isnan(x)
        filled = torch.where(there, x, self.mean)
        value = ((filled - self.mean) * self.scale).clamp(-CLIP, CLIP)
        value = torch.where(self.numbers, torch.where(there, value, 0.0), 1.0).float()
        z, hidden = self.net(places_of(self.places, x), value)
        p = torch.sigmoid(z.double())
        return torch.stack([1 - p, p], 1), hidden


def places_of(places: Places, x: Tensor) -> Tensor:
    """int64[B, F]: as ``Places.rows``, a code beyond those of a column being the last of them."""
    found = []
    for f, field in enumerate(places.fields):
        column = x[:, f]
        if not (field.categories or field.open):
            found.append(torch.zeros_like(column, dtype=torch.int64) + places.first[f])
            continue
        code = torch.where(torch.isnan(column), -1.0, column).long()
        if places.hashed[f]:
            found.append(places.start + hashed(code + 2, (f + 1) * 0x9E3779B97F4A7C15, places.size - places.start))
        else:
            found.append(places.first[f] + 1 + code.clamp(-1, field.categories - 1))
    return torch.stack(found, 1)


def hashed(word: Tensor, salt: int, size: int) -> Tensor:
    """int64[B] in 0..size - 1, from whole numbers of 64 bits (splitmix64)."""
    if size >= 2**31:
        raise CannotExport("a table of 2^31 places or more has no form as a graph")
    word = word + _signed(salt)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        word = (word ^ _down(word, shift)) * _signed(factor)
    return (_down(word, 32) % size * (HALF % size) + (word & (HALF - 1)) % size) % size


def _down(word: Tensor, by: int) -> Tensor:
    """Shifted, zeros coming in from above whatever the sign."""
    return (word >> by) & (2 ** (64 - by) - 1)


def _signed(number: int) -> int:
    """The same 64 bits as a signed number."""
    number %= WORD
    return number - WORD if number >= WORD // 2 else number
