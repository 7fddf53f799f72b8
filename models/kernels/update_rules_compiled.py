"""The rules of ``update_rules`` on one row, in compiled code.

Scalars take the weight's type outside the inner loop and rows are plain vectors: else the loop is not vectorised.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..compiled import inner
from .parameter_table import COUNT, SEED, array_at

MEMO = 4
FLOATS = np.zeros(1, np.float32)


@inner
def correction(beta: float, t: float) -> float:
    """1 - beta^t. Not as a power: with a whole exponent that becomes a call of a function Numba does not link."""
    return -math.expm1(math.log(beta) * t)


@inner
def counted(line: Any, i: int) -> float:
    """Count an update of row (or block) i, where there are counts; the number of this update."""
    if line[COUNT] == 0:
        return 0.0
    counts = array_at(line[COUNT], i, 1, FLOATS)
    counts[0] += np.float32(1)
    return counts[0]


@inner
def bias_corrected(rates: Any, p: int, count: float, memo: Any) -> None:
    """memo = p, count, lr / (1 - b1^count), 1 / sqrt(1 - b2^count): neighbours often share these, and powers cost."""
    if memo[0] != p or memo[1] != count:
        memo[0], memo[1] = p, count
        memo[2] = rates[p, 0] / correction(rates[p, 1], count)
        memo[3] = 1.0 / math.sqrt(correction(rates[p, 2], count))


@inner
def sgd_row(w: Any, g: Any, rate: Any) -> None:
    real = w.dtype.type
    lr, decay = real(rate[0]), real(rate[4])
    for j in range(w.size):
        w[j] -= lr * (g[j] + decay * w[j])


@inner
def momentum_row(w: Any, u: Any, g: Any, rate: Any) -> None:
    real = w.dtype.type
    lr, keep, decay = real(rate[0]), real(rate[1]), real(rate[4])
    for j in range(w.size):
        u[j] = keep * u[j] + (g[j] + decay * w[j])
        w[j] -= lr * u[j]


@inner
def adamw_row(w: Any, m: Any, v: Any, g: Any, rate: Any, memo: Any) -> None:
    real = w.dtype.type
    b1, c1, b2, c2 = real(rate[1]), real(1.0 - rate[1]), real(rate[2]), real(1.0 - rate[2])
    floor, decay = real(rate[3]), real(1.0 - rate[0] * rate[4])
    size, scale = real(memo[2]), real(memo[3])
    for j in range(w.size):
        mean = b1 * m[j] + c1 * g[j]
        square = b2 * v[j] + c2 * g[j] * g[j]
        m[j], v[j] = mean, square
        w[j] = w[j] * decay - size * mean / (np.sqrt(square) * scale + floor)


# --- bfloat16 -------------------------------------------------------------------------------------------------------


@inner
def mixed(x: Any) -> Any:
    """The hash of ``update_rules.mixed``, of one uint32."""
    x ^= x >> np.uint32(16)
    x = np.uint32(x * np.uint32(0x7FEB352D))
    x ^= x >> np.uint32(15)
    x = np.uint32(x * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


@inner
def row_key(line: Any, row: int, count: float) -> Any:
    """What the random bits of a row start from."""
    key = mixed(np.uint32(line[SEED]))
    key = mixed(np.uint32(key + np.uint32(row)))
    return mixed(np.uint32(key + np.uint32(np.int64(count))))


@inner
def widen(half: Any, bits: Any) -> None:
    """bfloat16 (as uint16) to float32 (as uint32)."""
    for j in range(half.size):
        bits[j] = np.uint32(half[j]) << np.uint32(16)


@inner
def narrow(bits: Any, half: Any, random: bool, key: Any, column: int) -> None:
    """float32 (as uint32) to bfloat16 (as uint16): to nearest, ties to even, or at random; column: of the first."""
    start = np.uint32(key + np.uint32(column))
    for j in range(half.size):
        b = bits[j]
        nearest = np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))
        noise = mixed(np.uint32(start + np.uint32(j))) >> np.uint32(16) if random else nearest
        size = b & np.uint32(0x7FFFFFFF)
        noise = np.uint32(0) if size == np.uint32(0x7F800000) else noise
        short = np.uint32(b + noise) >> np.uint32(16)
        half[j] = np.uint16(0x7FC0) if size > np.uint32(0x7F800000) else np.uint16(short)
