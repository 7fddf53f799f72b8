"""The sketch memory of ReLoop2: what labels and a model's answers were, by region of a space of vectors.

K arrays of M = 2^L buckets; array k has L random planes of its own, and the bucket of a vector is the number whose bits
say on which side of each plane it lies (SimHash). A bucket holds n, S_y, S_b: how many rows fell into it, the sums of
their labels and of what the model had answered. Four steps:

    hash    b_k(h) = sum_l [w_kl . h > 0] 2^l                                     (0 is not above 0: bit 0)
    read    y_k = (S_y + m base) / (n + m), the same for S_b; a = softmax over the k with n > 0 of s_k / tau,
            s_k = n_k / N;  y = sum a_k y_k,  b = sum a_k b_k,  n = sum a_k n_k    (all empty: y = b = base, n = 0)
    compensate   p = clamp(base + lambda (gamma (y - base) + (1 - gamma) (y - b)), 0, 1)
    write   n_k += w, S_y += w y, S_b += w base in every array

Source: ReLoop2, arXiv 2306.08808, section 4 (its code is not public; s_k is one of two readings of the text, the other
being equal weights). Ours: buckets without rows are left out of the softmax, m, weights w, several slots of time that
are summed when read, several values a row.

Letters: B rows, d numbers in a vector, K arrays, L bits, M buckets, R slots, V values a row (1 for a click).
table: float[R, K, M, 1 + 2 V], each bucket n, S_y (V), S_b (V) side by side. buckets: int32[B, K].

``path``: "torch" is the contract (any device); "compiled" (CPU) packs, reads and writes in one pass each, with an
exponential that runs in vectors; "triton" (CUDA) does so on a GPU. None chooses by device.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..compiled import compiled
from .selection import choose

Path = Literal["torch", "compiled", "triton"]

SOFT = 1 / 16
"""From this tau on the exponent is at least -16, where the compiled exponential is good to 2e-7."""


class Readout(NamedTuple):
    """What the memory says of rows: y, base: float[B, V]; n: float[B], 0 where it knows nothing."""

    y: Tensor
    base: Tensor
    n: Tensor


def path_for(path: Path | None, tensor: Tensor) -> Path:
    """The asked path, else by device; without a Triton that works there, the contract."""
    return choose(path, "sketch", tensor, "torch" if torch.compiler.is_compiling() else "compiled", "torch")


def new_planes(d: int, arrays: int, bits: int, seed: int) -> Tensor:
    """float32[K L, d]: independent standard normal numbers."""
    draws = np.random.default_rng(seed).standard_normal((arrays * bits, d))
    return torch.from_numpy(draws.astype(np.float32))


def new_table(arrays: int, bits: int, values: int = 1, slots: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """An empty memory. float32 stops counting at 2^24 rows in one bucket."""
    return torch.zeros((slots, arrays, 1 << bits, 1 + 2 * values), dtype=dtype)


# --- hash -----------------------------------------------------------------------------------------------------------


def hash_rows(h: Tensor, planes: Tensor, bits: int, path: Path | None = None) -> Tensor:
    """int32[B, K]: the bucket of every row in every array. h: float32[B, d]; planes: float32[K L, d]; bits: L."""
    path = path_for(path, h)
    sides = torch.mm(h, planes.t())
    arrays = len(planes) // bits
    if path == "compiled":
        found = np.empty((len(h), arrays), np.int32)
        _pack(sides.numpy(), bits, found)
        return torch.from_numpy(found)
    if path == "triton":
        return _pack_op(sides, bits)
    above = (sides > 0).reshape(len(h), arrays, bits)
    return (above << torch.arange(bits, device=h.device)).sum(2).to(torch.int32)


@compiled
def _pack(sides: Any, bits: int, found: Any) -> None:
    for i in range(found.shape[0]):
        for k in range(found.shape[1]):
            code = 0
            for j in range(bits):
                code |= (sides[i, k * bits + j] > 0) << j
            found[i, k] = code


# --- read -----------------------------------------------------------------------------------------------------------


def read(
    table: Tensor,
    buckets: Tensor,
    base: Tensor,
    *,
    total: float,
    tau: float = 0.1,
    prior: float = 0.0,
    uniform: bool = False,
    path: Path | None = None,
) -> Readout:
    """What the buckets hold, averaged over the arrays.

    base: float[B, V], what the model answers to the rows. total: N, the weight of all rows in the memory. prior: m, so
    many rows of the model's own answer are taken to lie in every bucket. uniform: equal weights, s_k = 1.
    """
    path = path_for(path, table)
    inverse = 0.0 if uniform or total <= 0 else 1 / (total * tau)
    if path == "compiled":
        y, said, n = (torch.empty(shape, dtype=table.dtype) for shape in (base.shape, base.shape, (len(base),)))
        given = (table.numpy(), buckets.numpy(), base.to(table.dtype).contiguous().numpy(), inverse, prior)
        if base.shape[1] == 1:
            _read_clicks(*given, uniform or tau >= SOFT, y.numpy(), said.numpy(), n.numpy())
        else:
            _read_values(*given, y.numpy(), said.numpy(), n.numpy())
        return Readout(y, said, n)
    if path == "triton":
        return Readout(*_read_op(table, buckets, base, inverse, prior))
    arrays, values = table.shape[1], base.shape[1]
    cells = table[:, torch.arange(arrays, device=table.device), buckets.long()].sum(0)  # [B, K, 1 + 2 V]
    n, known = cells[..., 0], cells[..., 0] > 0
    score = torch.where(known, n * inverse, -torch.inf)
    a = torch.softmax(torch.where(known.any(1, keepdim=True), score, 0.0), 1) * known  # [B, K]
    held = torch.where(known, n + prior, 1.0)[..., None]
    base = base.to(table.dtype)
    means = (cells[..., 1:] + prior * torch.cat([base, base], 1)[:, None]) / held  # [B, K, 2 V]
    mixed = torch.where(known.any(1)[:, None], (a[..., None] * means).sum(1), torch.cat([base, base], 1))
    return Readout(mixed[:, :values], mixed[:, values:], (a * n).sum(1))


@compiled(fastmath=True)
def _read_clicks(
    table: Any, buckets: Any, base: Any, inverse: float, prior: float, soft: bool, y: Any, said: Any, n: Any
) -> None:
    """One value a row. Buckets are gathered first, so that many loads are under way at once; the rest runs in
    vectors. soft: no exponent is below -16."""
    slots, arrays, size, flat = table.shape[0], table.shape[1], table.shape[2], table.reshape(-1)
    real = table.dtype.type
    counts, labels, answers = (
        np.empty(arrays, table.dtype),
        np.empty(arrays, table.dtype),
        np.empty(arrays, table.dtype),
    )
    slope, m, one, zero = real(inverse), real(prior), real(1), real(0)
    for i in range(buckets.shape[0]):
        for k in range(arrays):
            at = 3 * (k * size + buckets[i, k])
            counts[k], labels[k], answers[k] = flat[at], flat[at + 1], flat[at + 2]
        for r in range(1, slots):
            for k in range(arrays):
                at = 3 * ((r * arrays + k) * size + buckets[i, k])
                counts[k] += flat[at]
                labels[k] += flat[at + 1]
                answers[k] += flat[at + 2]
        top = zero
        for k in range(arrays):
            top = max(top, counts[k])
        own = base[i, 0]
        if not top > zero:
            y[i, 0], said[i, 0], n[i] = own, own, zero
            continue
        weight, sum_y, sum_b, sum_n = zero, zero, zero, zero
        for k in range(arrays):
            x = (counts[k] - top) * slope
            a = _soft_exp(x, real) if soft else np.exp(x)
            a = a if counts[k] > zero else zero
            each = a / (counts[k] + m if counts[k] > zero else one)
            weight += a
            sum_y += each * (labels[k] + m * own)
            sum_b += each * (answers[k] + m * own)
            sum_n += a * counts[k]
        y[i, 0], said[i, 0], n[i] = sum_y / weight, sum_b / weight, sum_n / weight


@compiled(fastmath=True)
def _soft_exp(x: float, real: Any) -> float:
    """exp(x) for -16 <= x <= 0: seven terms at x / 64, squared six times."""
    z = x * real(1 / 64)
    e = real(1 / 5040)
    e = e * z + real(1 / 720)
    e = e * z + real(1 / 120)
    e = e * z + real(1 / 24)
    e = e * z + real(1 / 6)
    e = e * z + real(1 / 2)
    e = e * z + real(1)
    e = e * z + real(1)
    e *= e
    e *= e
    e *= e
    e *= e
    e *= e
    return e * e


@compiled
def _read_values(table: Any, buckets: Any, base: Any, inverse: float, prior: float, y: Any, said: Any, n: Any) -> None:
    """As ``_read_clicks`` for V values a row; strict, since loops over V would have other last bits by turns."""
    slots, arrays, values = table.shape[0], table.shape[1], base.shape[1]
    counts, a = np.empty(arrays, table.dtype), np.empty(arrays, table.dtype)
    for i in range(buckets.shape[0]):
        top = 0.0
        for k in range(arrays):
            counts[k] = 0.0
            for r in range(slots):
                counts[k] += table[r, k, buckets[i, k], 0]
            top = max(top, counts[k])
        y[i], said[i], n[i] = base[i], base[i], 0.0
        if not top > 0.0:
            continue
        weight = 0.0
        for k in range(arrays):
            x = (counts[k] - top) * inverse
            a[k] = np.exp(x) if counts[k] > 0.0 else 0.0
            weight += a[k]
        for v in range(values):
            y[i, v], said[i, v] = 0.0, 0.0
        for k in range(arrays):
            if counts[k] > 0.0:
                share = a[k] / weight
                n[i] += share * counts[k]
                each = share / (counts[k] + prior)
                for v in range(values):
                    labels, answers = prior * base[i, v], prior * base[i, v]
                    for r in range(slots):
                        labels += table[r, k, buckets[i, k], 1 + v]
                        answers += table[r, k, buckets[i, k], 1 + values + v]
                    y[i, v] += each * labels
                    said[i, v] += each * answers


# --- compensate -----------------------------------------------------------------------------------------------------


def estimated_error(base: Tensor, found: Readout, gamma: float) -> Tensor:
    """float[B, V]: gamma (y - base) + (1 - gamma) (y - b); exactly 0 where the memory knows nothing."""
    return gamma * (found.y - base) + (1 - gamma) * (found.y - found.base)


def compensate(base: Tensor, error: Tensor, strength: float) -> Tensor:
    """clamp(base + lambda error, 0, 1); base itself, bit for bit, where lambda or the error is 0."""
    return (base + strength * error).clamp(0.0, 1.0)


# --- write ----------------------------------------------------------------------------------------------------------


def write(
    table: Tensor, slot: int, buckets: Tensor, y: Tensor, base: Tensor, weight: Tensor, path: Path | None = None
) -> None:
    """Add rows to one slot, in place. y, base: float[B, V]; weight: float[B]."""
    path = path_for(path, table)
    if path == "compiled":
        given = (t.to(table.dtype).contiguous().numpy() for t in (y, base, weight))
        kernel = _write_clicks if y.shape[1] == 1 else _write_values
        kernel(table[slot].numpy(), buckets.numpy(), *given)
        return
    rows = torch.cat([torch.ones_like(weight)[:, None], y, base], 1).to(table.dtype) * weight.to(table.dtype)[:, None]
    if path == "triton":
        _write_op(table[slot], buckets, rows)
    else:
        arrays = torch.arange(table.shape[1], device=table.device).expand(buckets.shape)
        table[slot].index_put_((arrays, buckets.long()), rows[:, None].expand(-1, table.shape[1], -1), accumulate=True)


@compiled
def _write_clicks(cells: Any, buckets: Any, y: Any, base: Any, weight: Any) -> None:
    """One value a row."""
    flat, size = cells.reshape(-1), cells.shape[1]
    for i in range(buckets.shape[0]):
        w, label, answer = weight[i], weight[i] * y[i, 0], weight[i] * base[i, 0]
        for k in range(buckets.shape[1]):
            at = 3 * (k * size + buckets[i, k])
            flat[at] += w
            flat[at + 1] += label
            flat[at + 2] += answer


@compiled
def _write_values(cells: Any, buckets: Any, y: Any, base: Any, weight: Any) -> None:
    """V values a row."""
    values = y.shape[1]
    for i in range(buckets.shape[0]):
        w = weight[i]
        for k in range(buckets.shape[1]):
            at = buckets[i, k]
            cells[k, at, 0] += w
            for v in range(values):
                cells[k, at, 1 + v] += w * y[i, v]
                cells[k, at, 1 + values + v] += w * base[i, v]


# --- on a GPU -------------------------------------------------------------------------------------------------------


@torch.library.custom_op("driftway::sketch_pack", mutates_args=())
def _pack_op(sides: Tensor, bits: int) -> Tensor:
    from . import sketch_triton

    return sketch_triton.pack(sides, bits)


@_pack_op.register_fake
def _(sides: Tensor, bits: int) -> Tensor:
    return sides.new_empty((len(sides), sides.shape[1] // bits), dtype=torch.int32)


@torch.library.custom_op("driftway::sketch_read", mutates_args=())
def _read_op(
    table: Tensor, buckets: Tensor, base: Tensor, inverse: float, prior: float
) -> tuple[Tensor, Tensor, Tensor]:
    from . import sketch_triton

    return sketch_triton.read(table, buckets, base, inverse, prior)


@_read_op.register_fake
def _(table: Tensor, _buckets: Tensor, base: Tensor, *_rest: float) -> tuple[Tensor, Tensor, Tensor]:
    return table.new_empty(base.shape), table.new_empty(base.shape), table.new_empty(len(base))


@torch.library.custom_op("driftway::sketch_write", mutates_args=("cells",))
def _write_op(cells: Tensor, buckets: Tensor, rows: Tensor) -> None:
    from . import sketch_triton

    sketch_triton.write(cells, buckets, rows)
