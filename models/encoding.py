"""Table rows as inputs for linear models and networks: standardised numbers, one-hot categories, no gaps.

Legend: d columns, D slots of the encoded row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled, inner

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LARGEST = 1e75

LARGEST_PLAIN = 1e12


class Encoder(NamedTuple):
    """Running moments of the numeric columns, and where each column goes.

    A numeric column takes one slot, a nominal one ``slots`` of them (its code modulo that number; a missing category
    leaves them all 0). A missing number becomes the running mean. A plain encoder (``clip`` 0) passes numbers and
    codes on as they are, within +-1e12, so that a network's gradients and their squares stay in single precision.
    """

    first: Ints  # [d] first slot of a column
    slots: Ints  # [d] 0 for a numeric column
    seen: Floats  # [d] values seen
    mean: Floats  # [d]
    squares: Floats  # [d] sum of squared deviations
    imputed: Ints  # [1] missing values filled in while learning
    clip: Floats  # [1] largest standardised value, 0: plain


def new_encoder(fan: list[int], *, clip: float = 5.0, most_slots: int = 64) -> Encoder:
    """An encoder over columns with ``fan`` categories each (0: numeric); ``clip=0`` makes it plain."""
    slots = np.array([0 if clip == 0 else min(n, most_slots) for n in fan], np.int64)
    width = np.maximum(slots, 1)
    d = len(fan)
    return Encoder(
        first=np.cumsum(width) - width,
        slots=slots,
        seen=np.zeros(d),
        mean=np.zeros(d),
        squares=np.zeros(d),
        imputed=np.zeros(1, np.int64),
        clip=np.array([clip]),
    )


def encoded_width(encoder: Encoder) -> int:
    """D."""
    return int(np.maximum(encoder.slots, 1).sum())


@inner
def bound(x: Floats, out: Floats) -> None:
    """Copy a row x[d] into out[d], numbers kept within +-LARGEST, so that sums of squares stay finite; NaN stays."""
    for f in range(x.shape[0]):
        value = x[f]
        if value > LARGEST:
            value = LARGEST
        elif value < -LARGEST:
            value = -LARGEST
        out[f] = value


@compiled
def encode(encoder: Encoder, x: Floats, out: Floats) -> None:
    """Write the encoded row x[d] into out[D]: (x - mean) / sd within +-clip, sd over all values seen so far."""
    clip = encoder.clip[0]
    for f in range(x.shape[0]):
        at, slots, value = encoder.first[f], encoder.slots[f], x[f]
        if slots > 0:
            out[at : at + slots] = 0.0
            if not np.isnan(value):
                out[at + int(value) % slots] = 1.0
            continue
        if np.isnan(value):
            value = encoder.mean[f]
        if clip == 0:
            out[at] = min(max(value, -LARGEST_PLAIN), LARGEST_PLAIN)
            continue
        variance = encoder.squares[f] / encoder.seen[f] if encoder.seen[f] > 0 else 0.0
        scaled = (value - encoder.mean[f]) / np.sqrt(variance) if variance > 0 else 0.0
        out[at] = min(max(scaled, -clip), clip)


@compiled
def observe_scale(encoder: Encoder, x: Floats) -> None:
    """Take a row x[d] into the running moments (Welford)."""
    for f in range(x.shape[0]):
        value = x[f]
        if np.isnan(value):
            encoder.imputed[0] += 1
        elif encoder.slots[f] == 0:
            encoder.seen[f] += 1.0
            gap = value - encoder.mean[f]
            encoder.mean[f] += gap / encoder.seen[f]
            encoder.squares[f] += gap * (value - encoder.mean[f])
