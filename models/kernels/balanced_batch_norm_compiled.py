"""The loops of ``balanced_batch_norm`` for a CPU: maps stored channel by channel (planes) or pixel by pixel (pixels).

Sums over positions are taken in the type of the input, about one of its values, which keeps them from cancelling; all
that is per sample or per channel is in double precision. m and q are each sample's mean, and mean square about the
common mean. ``table`` is [4, C]: mean, 1 / deviation, and how far mean and variance lie from the running ones. Loops
stand where a slice would do, because assignments to slices cost seconds of compiling.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..compiled import compiled, inner


@compiled
def weigh(psi: Any, ids: Any, counts: Any, reference: bool, w: Any, balance: Any) -> float:
    """The weights of samples into w [N], pi and phi / Z into balance [2, seen]; returns 1 - sum of w."""
    top, z, rest = 0.0, 0.0, 1.0
    for k in range(len(counts)):
        if reference or counts[k] > 0:
            top = max(top, psi[k])
    for k in range(len(counts)):
        balance[1, k] = math.exp(psi[k] - top) if reference or counts[k] > 0 else 0.0
        balance[0, k] = balance[1, k] + math.exp(-top) * counts[k]
        z += balance[0, k]
    for k in range(len(counts)):
        balance[0, k] /= z
        balance[1, k] /= z
        if counts[k] > 0:
            rest -= balance[0, k]
    for i in range(len(w)):
        w[i] = balance[0, ids[i]] / counts[ids[i]]
    return rest if reference else 0.0


@compiled
def to_psi(dw: Any, ids: Any, counts: Any, balance: Any, dpsi: Any) -> None:
    """dpsi_k = phi_k / Z (h_k - sum_j pi_j h_j), h_k the mean of dw over group k."""
    h = np.zeros(len(counts))
    for i in range(len(ids)):
        h[ids[i]] += dw[i] / counts[ids[i]]
    among = 0.0
    for k in range(len(counts)):
        among += balance[0, k] * h[k]
    for k in range(len(counts)):
        dpsi[k] = balance[1, k] * (h[k] - among)


@inner
def _settle(
    c: int, mean: float, var: float, running_mean: Any, running_var: Any, rate: float, eps: float, table: Any
) -> float:
    """Move one channel's running statistics and fill its column of ``table``; its share of the loss."""
    running_mean[c] = (1.0 - rate) * running_mean[c] + rate * mean
    running_var[c] = (1.0 - rate) * running_var[c] + rate * var
    table[0, c] = mean
    table[1, c] = 1.0 / math.sqrt(var + eps)
    table[2, c] = mean - running_mean[c]
    table[3, c] = var - running_var[c]
    return table[2, c] ** 2 + table[3, c] ** 2


@inner
def _pulls(c: int, k: float, first: float, second: float, rest: float, table: Any, dloss: float) -> tuple[float, float]:
    """Total derivatives by mean and variance, from the sums of dy and of dy (a - mean) and from the loss.

    The last term is how the variance moves with the mean when the weights do not sum to 1.
    """
    channels = table.shape[1]
    dvar = -0.5 * k * second * table[1, c] ** 2 + dloss * 2.0 / channels * table[3, c]
    dmean = -k * first + dloss * 2.0 / channels * table[2, c] - 2.0 * dvar * table[0, c] * rest
    return dmean, dvar


@compiled(fastmath=True)
def forward_planes(
    a: Any, w: Any, rest: float, gamma: Any, beta: Any, running_mean: Any, running_var: Any, rate: float, eps: float,
    m: Any, q: Any, table: Any, y: Any,
) -> float:  # fmt: skip
    """a, y [N, C, P], m, q [C, N]: channel after channel, so that the second reading finds it in the cache."""
    samples, channels, positions = a.shape
    number = a.dtype.type
    loss = 0.0
    for c in range(channels):
        origin = a[0, c, 0]
        m_N, q_N = m[c], q[c]
        off, var = -rest * origin, 0.0
        for i in range(samples):
            row = a[i, c]
            first, second = number(0), number(0)
            for p in range(positions):
                d = row[p] - origin
                first += d
                second += d * d
            m_N[i], q_N[i] = first / positions, second / positions
            off += w[i] * m_N[i]
        for i in range(samples):
            q_N[i] = max(q_N[i] + off * (off - 2.0 * m_N[i]), 0.0)
            var += w[i] * q_N[i]
            m_N[i] += origin
        loss += _settle(c, origin + off, var, running_mean, running_var, rate, eps, table)
        mean, k, b = number(table[0, c]), number(table[1, c] * gamma[c]), beta[c]
        for i in range(samples):
            row, out = a[i, c], y[i, c]
            for p in range(positions):
                out[p] = (row[p] - mean) * k + b
    return loss / channels


@compiled(fastmath=True)
def forward_pixels(
    a: Any, w: Any, rest: float, gamma: Any, beta: Any, running_mean: Any, running_var: Any, rate: float, eps: float,
    m: Any, q: Any, table: Any, y: Any,
) -> float:  # fmt: skip
    """a, y [N, P, C], m, q [N, C]: all channels side by side, in two passes."""
    samples, positions, channels = a.shape
    number = a.dtype.type
    origin = a[0, 0]
    off, var = np.empty(channels), np.zeros(channels)
    for c in range(channels):
        off[c] = -rest * origin[c]
    for i in range(samples):
        first, second = m[i], q[i]
        for c in range(channels):
            first[c], second[c] = number(0), number(0)
        for p in range(positions):
            row = a[i, p]
            for c in range(channels):
                d = row[c] - origin[c]
                first[c] += d
                second[c] += d * d
        for c in range(channels):
            first[c] /= positions
            off[c] += w[i] * first[c]
    for i in range(samples):
        first, second = m[i], q[i]
        for c in range(channels):
            second[c] = max(second[c] / positions + off[c] * (off[c] - 2.0 * first[c]), 0.0)
            var[c] += w[i] * second[c]
            first[c] += origin[c]
    loss = 0.0
    mean, k = np.empty_like(gamma), np.empty_like(gamma)
    for c in range(channels):
        loss += _settle(c, origin[c] + off[c], var[c], running_mean, running_var, rate, eps, table)
        mean[c], k[c] = number(table[0, c]), number(table[1, c] * gamma[c])
    for i in range(samples):
        for p in range(positions):
            row, out = a[i, p], y[i, p]
            for c in range(channels):
                out[c] = (row[c] - mean[c]) * k[c] + beta[c]
    return loss / channels


@compiled(fastmath=True)
def backward_planes(
    a: Any, dy: Any, w: Any, rest: float, gamma: Any, m: Any, q: Any, table: Any, dloss: float, da: Any, dgamma: Any,
    dbeta: Any, dw: Any,
) -> None:  # fmt: skip
    """The gradient for [N, C, P]: one pass of sums, one that writes."""
    samples, channels, positions = a.shape
    number = a.dtype.type
    for c in range(channels):
        mean, inverse = number(table[0, c]), table[1, c]
        first, second = 0.0, 0.0
        for i in range(samples):
            row, slope = a[i, c], dy[i, c]
            one, two = number(0), number(0)
            for p in range(positions):
                one += slope[p]
                two += slope[p] * (row[p] - mean)
            first += one
            second += two
        dbeta[c], dgamma[c] = first, second * inverse
        k = number(gamma[c] * inverse)
        dmean, dvar = _pulls(c, k, first, second, rest, table, dloss)
        m_N, q_N = m[c], q[c]
        for i in range(samples):
            dw[i] += dmean * m_N[i] + dvar * q_N[i]
            row, slope, out = a[i, c], dy[i, c], da[i, c]
            flat, steep = number(w[i] / positions * dmean), number(2.0 * w[i] / positions * dvar)
            for p in range(positions):
                out[p] = k * slope[p] + flat + steep * (row[p] - mean)


@compiled(fastmath=True)
def backward_pixels(
    a: Any, dy: Any, w: Any, rest: float, gamma: Any, m: Any, q: Any, table: Any, dloss: float, da: Any, dgamma: Any,
    dbeta: Any, dw: Any,
) -> None:  # fmt: skip
    """The gradient for [N, P, C]."""
    samples, positions, channels = a.shape
    number = a.dtype.type
    sums, dmean, dvar = np.zeros((2, channels)), np.empty(channels), np.empty(channels)
    mean, k, one, two = np.empty_like(gamma), np.empty_like(gamma), np.empty_like(gamma), np.empty_like(gamma)
    for c in range(channels):
        mean[c] = table[0, c]
    for i in range(samples):
        for c in range(channels):
            one[c], two[c] = number(0), number(0)
        for p in range(positions):
            row, slope = a[i, p], dy[i, p]
            for c in range(channels):
                one[c] += slope[c]
                two[c] += slope[c] * (row[c] - mean[c])
        for c in range(channels):
            sums[0, c] += one[c]
            sums[1, c] += two[c]
    for c in range(channels):
        first, second = sums[0, c], sums[1, c]
        dbeta[c], dgamma[c] = first, second * table[1, c]
        k[c] = number(gamma[c] * table[1, c])
        dmean[c], dvar[c] = _pulls(c, k[c], first, second, rest, table, dloss)
    for i in range(samples):
        flat, steep, m_C, q_C = one, two, m[i], q[i]
        to_weight, each = 0.0, w[i] / positions
        for c in range(channels):
            to_weight += dmean[c] * m_C[c] + dvar[c] * q_C[c]
        dw[i] = to_weight
        for c in range(channels):
            flat[c] = each * dmean[c]
            steep[c] = 2.0 * each * dvar[c]
        for p in range(positions):
            row, slope, out = a[i, p], dy[i, p], da[i, p]
            for c in range(channels):
                out[c] = k[c] * slope[c] + flat[c] + steep[c] * (row[c] - mean[c])
