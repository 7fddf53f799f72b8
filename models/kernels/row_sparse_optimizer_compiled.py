"""Updates of rows in compiled code: one call for the rows of all parameters; the contract is in
``row_sparse_optimizer.py``."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compiled import compiled, inner
from .parameter_table import EXTRA, FIRST, GRAD, LAST, MORE, SECOND, START, WEIGHT, WIDTH, array_at
from .update_rules_compiled import (
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

FACTOR, EXAMPLES, ACTIVE = EXTRA, MORE, LAST
"""Own columns of the table. Where the gradient is two factors: address of [examples, active], examples (else 0), active
rows; the column of the gradient then has the address of [examples, width]."""


@inner
def _gradient_row(line: Any, i: int, e: int, out: Any) -> Any:
    """The gradient of row i, entry e of the table of active rows: read, or formed in ``out``, four examples a pass."""
    start, width, source = line[START], line[WIDTH], line[GRAD]
    n, k = line[EXAMPLES], line[ACTIVE]
    if n == 0:
        return array_at(source, (i if start < 0 else e - start) * width, width, out)
    factor = array_at(line[FACTOR], e - start, (n - 1) * k + 1, out)
    out[:] = 0
    for first in range(0, n - 3, 4):
        a, b, c, d = factor[first * k], factor[(first + 1) * k], factor[(first + 2) * k], factor[(first + 3) * k]
        row_a = array_at(source, first * width, width, out)
        row_b = array_at(source, (first + 1) * width, width, out)
        row_c = array_at(source, (first + 2) * width, width, out)
        row_d = array_at(source, (first + 3) * width, width, out)
        for j in range(width):
            out[j] += (a * row_a[j] + b * row_b[j]) + (c * row_c[j] + d * row_d[j])
    for last in range(n - n % 4, n):
        a, row_a = factor[last * k], array_at(source, last * width, width, out)
        for j in range(width):
            out[j] += a * row_a[j]
    return out


@inner
def _update_row(line: Any, rates: Any, p: int, i: int, w: Any, g: Any, moments: int, count: float, memo: Any) -> None:
    width = line[WIDTH]
    if moments == 2:
        bias_corrected(rates, p, count, memo)
        m, v = array_at(line[FIRST], i * width, width, w), array_at(line[SECOND], i * width, width, w)
        adamw_row(w, m, v, g, rates[p], memo)
    elif moments == 1:
        momentum_row(w, array_at(line[FIRST], i * width, width, w), g, rates[p])
    else:
        sgd_row(w, g, rates[p])


@compiled
def update_rows(table: Any, rates: Any, tensor: Any, row: Any, moments: int, widest: int, like: Any) -> None:
    """All active rows. like: an array of the type of weights, moments and gradients.

    One thread: it takes all the bandwidth of the memory, a second one was measured to gain nothing.
    """
    formed, memo = np.empty(widest, like.dtype), np.full(MEMO, -1.0)
    for e in range(len(row)):
        p, i = tensor[e], row[e]
        line = table[p]
        width = line[WIDTH]
        g = _gradient_row(line, i, e, formed[:width])
        w = array_at(line[WEIGHT], i * width, width, like)
        _update_row(line, rates, p, i, w, g, moments, counted(line, i), memo)


@compiled
def update_short_rows(table: Any, rates: Any, tensor: Any, row: Any, moments: int, widest: int, random: bool) -> None:
    """The same for weights in bfloat16, moments and gradients in float32: each row is widened, updated and rounded."""
    formed, memo = np.empty(widest, np.float32), np.full(MEMO, -1.0)
    bits, halves = np.empty(widest, np.uint32), np.empty(1, np.uint16)
    for e in range(len(row)):
        p, i = tensor[e], row[e]
        line = table[p]
        width = line[WIDTH]
        g = _gradient_row(line, i, e, formed[:width])
        half = array_at(line[WEIGHT], i * width, width, halves)
        widen(half, bits)
        count = counted(line, i)
        _update_row(line, rates, p, i, bits.view(np.float32)[:width], g, moments, count, memo)
        narrow(bits, half, random, row_key(line, i, count) if random else np.uint32(0), 0)
