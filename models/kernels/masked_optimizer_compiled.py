"""Updates under masks in compiled code: one call for all parameters; the contract is in ``masked_optimizer.py``."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compiled import compiled, inner
from .parameter_table import COUNT, EXTRA, FIRST, GRAD, MORE, SECOND, START, WEIGHT, WIDTH, array_at
from .update_rules_compiled import (
    FLOATS,
    MEMO,
    adamw_row,
    bias_corrected,
    counted,
    momentum_row,
    narrow,
    row_key,
    sgd_row,
    widen,
)

WORDS = ACROSS = EXTRA
"""Own columns of the table: the address of the packed mask, or how many blocks stand side by side."""
ROWS = MORE
CHUNK = 1024
"""Entries that are left out together where none of them is active."""
BYTES = np.zeros(1, np.uint8)
BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").view(np.uint64).ravel()
"""The eight bits of each byte, lowest first, as eight bytes of 0 or 1."""
HALVES = np.zeros(1, np.uint16)


# --- element masks --------------------------------------------------------------------------------------------------


@inner
def _unpack(packed: Any, on: Any) -> bool:
    """on[k], eight bytes, = the bits of byte k; whether any is set."""
    found = np.uint8(0)
    for k in range(packed.size):
        found |= packed[k]
    if found == 0:
        return False
    for k in range(packed.size):
        on[k] = BITS[packed[k]]
    return True


@inner
def _sgd(w: Any, g: Any, on: Any, rate: Any) -> None:
    """Both outcomes are written: a choice of values runs in vectors, a branch does not."""
    real = w.dtype.type
    lr, decay = real(rate[0]), real(rate[4])
    for j in range(w.size):
        moved = w[j] - lr * (g[j] + decay * w[j])
        w[j] = moved if on[j] else w[j]


@inner
def _momentum(w: Any, u: Any, g: Any, on: Any, rate: Any) -> None:
    real = w.dtype.type
    lr, keep, decay = real(rate[0]), real(rate[1]), real(rate[4])
    for j in range(w.size):
        speed = keep * u[j] + (g[j] + decay * w[j])
        moved = w[j] - lr * speed
        u[j] = speed if on[j] else u[j]
        w[j] = moved if on[j] else w[j]


@inner
def _adamw(w: Any, m: Any, v: Any, g: Any, on: Any, rate: Any, memo: Any) -> None:
    real = w.dtype.type
    b1, c1, b2, c2 = real(rate[1]), real(1.0 - rate[1]), real(rate[2]), real(1.0 - rate[2])
    floor, decay = real(rate[3]), real(1.0 - rate[0] * rate[4])
    size, scale = real(memo[2]), real(memo[3])
    for j in range(w.size):
        mean = b1 * m[j] + c1 * g[j]
        square = b2 * v[j] + c2 * g[j] * g[j]
        moved = w[j] * decay - size * mean / (np.sqrt(square) * scale + floor)
        m[j] = mean if on[j] else m[j]
        v[j] = square if on[j] else v[j]
        w[j] = moved if on[j] else w[j]


@inner
def _update_chunk(line: Any, rates: Any, p: int, at: int, w: Any, on: Any, g: Any, moments: int, memo: Any) -> None:
    if moments == 2:
        m, v = array_at(line[FIRST], at, w.size, w), array_at(line[SECOND], at, w.size, w)
        _adamw(w, m, v, g, on, rates[p], memo)
    elif moments == 1:
        _momentum(w, array_at(line[FIRST], at, w.size, w), g, on, rates[p])
    else:
        _sgd(w, g, on, rates[p])


@inner
def _count(line: Any) -> float:
    return array_at(line[COUNT], 0, 1, FLOATS)[0] if line[COUNT] != 0 else 0.0


@compiled
def update_entries(table: Any, rates: Any, moments: int, like: Any) -> None:
    """like: an array of the type of weights, moments and gradients. Counts say the number of this update already."""
    on, memo = np.empty(CHUNK // 8, np.uint64), np.full(MEMO, -1.0)
    flat = on.view(np.uint8)
    for p in range(len(table)):
        line = table[p]
        if moments == 2:
            bias_corrected(rates, p, _count(line), memo)
        for at in range(0, line[WIDTH], CHUNK):
            n = min(CHUNK, line[WIDTH] - at)
            if _unpack(array_at(line[WORDS], at // 8, (n + 7) // 8, BYTES), on):
                w, g = array_at(line[WEIGHT], at, n, like), array_at(line[GRAD], at, n, like)
                _update_chunk(line, rates, p, at, w, flat[:n], g, moments, memo)


@compiled
def update_short_entries(table: Any, rates: Any, moments: int, random: bool) -> None:
    """The same for weights in bfloat16, moments and gradients in float32."""
    on, memo = np.empty(CHUNK // 8, np.uint64), np.full(MEMO, -1.0)
    flat = on.view(np.uint8)
    bits, new = np.empty(CHUNK, np.uint32), np.empty(CHUNK, np.uint16)
    for p in range(len(table)):
        line = table[p]
        if moments == 2:
            bias_corrected(rates, p, _count(line), memo)
        for at in range(0, line[WIDTH], CHUNK):
            n = min(CHUNK, line[WIDTH] - at)
            if not _unpack(array_at(line[WORDS], at // 8, (n + 7) // 8, BYTES), on):
                continue
            half, g = array_at(line[WEIGHT], at, n, HALVES), array_at(line[GRAD], at, n, FLOATS)
            widen(half, bits)
            _update_chunk(line, rates, p, at, bits.view(np.float32)[:n], flat[:n], g, moments, memo)
            key = row_key(line, at >> 32, _count(line)) if random else np.uint32(0)
            narrow(bits, new[:n], random, key, at)
            for j in range(n):
                half[j] = new[j] if flat[j] else half[j]


# --- block masks ----------------------------------------------------------------------------------------------------


@inner
def _place(line: Any, block: int, e: int, side: int) -> tuple[int, int, int, int, int, int]:
    """Of a block: first row, first column, rows, columns; where its gradient begins, and how far its rows are apart."""
    width, start = line[WIDTH], line[START]
    top, left = (block // line[ACROSS]) * side, (block % line[ACROSS]) * side
    high, wide = min(side, line[ROWS] - top), min(side, width - left)
    if start < 0:
        return top, left, high, wide, top * width + left, width
    return top, left, high, wide, (e - start) * side * side, side


@inner
def _update_piece(line: Any, rates: Any, p: int, at: int, w: Any, g: Any, moments: int, memo: Any) -> None:
    if moments == 2:
        m, v = array_at(line[FIRST], at, w.size, w), array_at(line[SECOND], at, w.size, w)
        adamw_row(w, m, v, g, rates[p], memo)
    elif moments == 1:
        momentum_row(w, array_at(line[FIRST], at, w.size, w), g, rates[p])
    else:
        sgd_row(w, g, rates[p])


@compiled
def update_blocks(table: Any, rates: Any, tensor: Any, block: Any, side: int, moments: int, like: Any) -> None:
    """like: as in ``update_entries``; counts are of the blocks."""
    memo = np.full(MEMO, -1.0)
    for e in range(len(block)):
        p = tensor[e]
        line = table[p]
        top, left, high, wide, begin, apart = _place(line, block[e], e, side)
        count = counted(line, block[e])
        if moments == 2:
            bias_corrected(rates, p, count, memo)
        for r in range(high):
            at = (top + r) * line[WIDTH] + left
            w, g = array_at(line[WEIGHT], at, wide, like), array_at(line[GRAD], begin + r * apart, wide, like)
            _update_piece(line, rates, p, at, w, g, moments, memo)


@compiled
def update_short_blocks(table: Any, rates: Any, tensor: Any, block: Any, side: int, moments: int, random: bool) -> None:
    """The same for weights in bfloat16, moments and gradients in float32."""
    memo, bits = np.full(MEMO, -1.0), np.empty(side, np.uint32)
    for e in range(len(block)):
        p = tensor[e]
        line = table[p]
        top, left, high, wide, begin, apart = _place(line, block[e], e, side)
        count = counted(line, block[e])
        if moments == 2:
            bias_corrected(rates, p, count, memo)
        for r in range(high):
            at = (top + r) * line[WIDTH] + left
            half, g = array_at(line[WEIGHT], at, wide, HALVES), array_at(line[GRAD], begin + r * apart, wide, FLOATS)
            widen(half, bits)
            _update_piece(line, rates, p, at, bits.view(np.float32)[:wide], g, moments, memo)
            key = row_key(line, top + r, count) if random else np.uint32(0)
            narrow(bits, half, random, key, left)
