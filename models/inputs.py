"""From the rows of a batch to the tensors of a network.

Images whose mean and deviation are known are shifted and scaled by them once and for all; the tokens of a language
stream stay as they are. Everything else is encoded column by column with running moments (``encoding.py``), which are
part of the learner's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .arrays import from_dict, to_dict
from .compiled import compiled
from .encoding import Encoder, Floats, bound, encode, encoded_width, new_encoder, observe_scale

Array = NDArray[Any]


class Pixels:
    """Images: (x - mean) / std per channel, float32[B, *shape]. Holds no state."""

    fixed = True
    """Whether the same row always gives the same tensor."""

    def __init__(self, shape: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> None:
        self.shape = tuple(shape)
        rest = (1,) * (len(self.shape) - 1)
        self._mean = torch.tensor(mean, dtype=torch.float32).reshape(1, -1, *rest)
        self._scale = 1 / torch.tensor(std, dtype=torch.float32).reshape(1, -1, *rest)

    def observe(self, x: Array) -> None:
        """Nothing is learnt from rows."""

    def tensor(self, x: Array) -> Tensor:
        """x: float[B, d], flattened images."""
        rows = torch.from_numpy(np.ascontiguousarray(x)).to(torch.float32).reshape(len(x), *self.shape)
        return (rows - self._mean).mul_(self._scale)

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """There is nothing to take over."""


class Tokens:
    """Rows of a language stream: token ids and then, where there is an image, its pixels; float32[B, d] as they are.

    An id that the vocabulary does not have reads as padding, a pixel beyond 0..255 as the nearest one. No state.
    """

    fixed = True

    def __init__(self, width: int, length: int, vocabulary: int, pad: int) -> None:
        self.shape = (width,)
        self._length, self._vocabulary, self._pad = length, vocabulary, pad

    def observe(self, x: Array) -> None:
        """Nothing is learnt from rows."""

    def tensor(self, x: Array) -> Tensor:
        """x: float[B, d]."""
        rows = torch.from_numpy(np.ascontiguousarray(x)).to(torch.float32, copy=True)
        ids, pixels = rows[:, : self._length], rows[:, self._length :]
        ids.masked_fill_(~((ids >= 0) & (ids < self._vocabulary)), self._pad)
        pixels.nan_to_num_(0.0).clamp_(0, 255)
        return rows

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """There is nothing to take over."""


class Columns:
    """Table rows: standardised numbers, one-hot categories, no gaps; float32[B, D], or reshaped to an image."""

    fixed = False

    def __init__(self, fan: list[int], shape: Sequence[int] | None = None, *, clip: float = 5.0) -> None:
        self._encoder = new_encoder(fan, clip=clip)
        self.shape = (encoded_width(self._encoder),) if shape is None else tuple(shape)

    def observe(self, x: Array) -> None:
        """Take the rows into the running moments."""
        _observe(self._encoder, x)

    def tensor(self, x: Array) -> Tensor:
        """x: float[B, d]."""
        out = np.empty((len(x), encoded_width(self._encoder)))
        _encode(self._encoder, np.ascontiguousarray(x, np.float64), out)
        return torch.from_numpy(out).to(torch.float32).reshape(len(x), *self.shape)

    def state(self) -> dict[str, Any]:
        return dict(to_dict(self._encoder))

    def load(self, state: dict[str, Any]) -> None:
        self._encoder = from_dict(Encoder, state)


@compiled
def _observe(encoder: Encoder, x: Floats) -> None:
    row = np.empty(x.shape[1])
    for i in range(x.shape[0]):
        bound(x[i], row)
        observe_scale(encoder, row)


@compiled
def _encode(encoder: Encoder, x: Floats, out: Floats) -> None:
    row = np.empty(x.shape[1])
    for i in range(x.shape[0]):
        bound(x[i], row)
        encode(encoder, row, out[i])


Inputs = Pixels | Tokens | Columns
