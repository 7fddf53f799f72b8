"""A small network that routes rows to experts: three linear layers, ReLU between them, trained by Adam on BCE.

    h1 = relu(x W1 + b1),  h2 = relu(h1 W2 + b2),  z = h2 W3 + b3,
    L = -(1 / (B E)) sum_bi [ m_bi log sigma(z_bi) + (1 - m_bi) log(1 - sigma(z_bi)) ],  dL/dz = (sigma(z) - m) / (B E)

All parameters lie in one float32 vector, so that Adam is one loop. A single row is pushed through as sums of weighted
rows of W in a fixed order, skipping zeros (half of all units after a ReLU); mini-batches go through BLAS.

Legend: D inputs, H hidden units of the first layer (the second has H2), E outputs, B rows of the mini-batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled, inner

Singles = NDArray[np.float32]

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
ROWS_AT_ONCE = 32  # of a mini-batch, so that products stay small
LARGEST_PIECE = 2**18  # multiply-adds up to which OpenBLAS stays in one thread
STEPS, FILLED, ROWS = range(3)  # entries of counter


class Router(NamedTuple):
    """Parameters, Adam moments (float32[P] each), the mini-batch under way, and counters."""

    size: NDArray[np.int64]  # [4]: D, H, H2, E
    theta: Singles
    moment1: Singles
    moment2: Singles
    x: Singles  # [B, D]
    mask: Singles  # [B, E]
    weight: Singles  # [B, E]
    counter: NDArray[np.int64]  # [3]: Adam steps, rows in the mini-batch, rows seen in all


def layout(size: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(inputs, outputs) of the three layers."""
    d, h, h2, e = (int(n) for n in size)
    return [(d, h), (h, h2), (h2, e)]


def new_router(inputs: int, hidden: tuple[int, int], outputs: int, batch: int, rng: np.random.Generator) -> Router:
    """Xavier-uniform weights, zero biases, zero moments, an empty mini-batch."""
    size = np.array([inputs, *hidden, outputs], np.int64)
    parts = []
    for n, m in layout(size):
        bound = np.sqrt(6.0 / (n + m))
        parts += [rng.uniform(-bound, bound, n * m), np.zeros(m)]
    theta = np.concatenate(parts).astype(np.float32)
    return Router(
        size=size,
        theta=theta,
        moment1=np.zeros_like(theta),
        moment2=np.zeros_like(theta),
        x=np.zeros((batch, inputs), np.float32),
        mask=np.zeros((batch, outputs), np.float32),
        weight=np.ones((batch, outputs), np.float32),
        counter=np.zeros(3, np.int64),
    )


def with_outputs(router: Router, outputs: int, rng: np.random.Generator) -> Router:
    """The same router with more outputs: new columns Xavier-uniform, their biases and moments 0."""
    h2, old = int(router.size[2]), int(router.size[3])
    cut = len(router.theta) - h2 * old - old
    bound = np.sqrt(6.0 / (h2 + outputs))

    def widen(vector: Singles, fresh: NDArray) -> Singles:
        weights = np.concatenate([vector[cut : cut + h2 * old].reshape(h2, old), fresh], axis=1)
        bias = np.concatenate([vector[cut + h2 * old :], np.zeros(outputs - old)])
        return np.concatenate([vector[:cut], weights.ravel(), bias]).astype(np.float32)

    none = np.zeros((h2, outputs - old))
    rows = np.zeros((len(router.mask), outputs - old), np.float32)
    return router._replace(
        size=np.array([*router.size[:3], outputs], np.int64),
        theta=widen(router.theta, rng.uniform(-bound, bound, none.shape)),
        moment1=widen(router.moment1, none),
        moment2=widen(router.moment2, none),
        mask=np.concatenate([router.mask, rows], axis=1),
        weight=np.concatenate([router.weight, rows + 1], axis=1),
    )


@inner
def add_rows(out: Singles, share: Singles, rows: Singles, used: NDArray[np.int64]) -> None:
    """out[m] += sum_i share[i] rows[i, m]; zeros in share cost nothing. used: scratch, at least as long as share.

    Four rows are added at a time, so that out is read and written a quarter as often.
    """
    count = 0
    for i in range(share.shape[0]):
        if share[i] != 0:
            used[count] = i
            count += 1
    for first in range(0, count - 3, 4):
        a, b, c, d = used[first], used[first + 1], used[first + 2], used[first + 3]
        sa, sb, sc, sd = share[a], share[b], share[c], share[d]
        ra, rb, rc, rd = rows[a], rows[b], rows[c], rows[d]
        for j in range(out.shape[0]):
            out[j] += (sa * ra[j] + sb * rb[j]) + (sc * rc[j] + sd * rd[j])
    for k in range(count - count % 4, count):
        one, row = share[used[k]], rows[used[k]]
        for j in range(out.shape[0]):
            out[j] += one * row[j]


@inner
def _weights(theta: Singles, start: int, n: int, m: int) -> Singles:
    """The matrix [n, m] that starts at ``start`` (a view)."""
    return theta[start : start + n * m].reshape(n, m)


@inner
def _layer(theta: Singles, start: int, n: int, m: int, x: Singles, out: Singles, used: NDArray[np.int64]) -> None:
    """out[m] = x[n] W + b for the layer at ``start``."""
    bias = start + n * m
    for j in range(m):
        out[j] = theta[bias + j]
    add_rows(out, x, _weights(theta, start, n, m), used)


@inner
def _rectify(h: Singles) -> None:
    for j in range(h.shape[0]):
        h[j] = max(h[j], np.float32(0))


@inner
def _thin(units: Singles, keep: Singles) -> None:
    for j in range(keep.shape[0]):
        units[j] *= keep[j]


@compiled
def route(router: Router, keep: Singles, x: Singles, h1: Singles, h2: Singles, z: Singles) -> None:
    """Logits z[E] of one row x[D]; h1[H] and h2[H2] receive the hidden units.

    keep: [H] what each unit of the first layer is multiplied by (dropout), or empty for no dropout.
    """
    d, h, k, e = router.size
    used = np.empty(max(d, max(h, k)), np.int64)
    second, third = d * h + h, d * h + h + h * k + k
    _layer(router.theta, 0, d, h, x, h1, used)
    _rectify(h1)
    _thin(h1, keep)
    _layer(router.theta, second, h, k, h1, h2, used)
    _rectify(h2)
    _layer(router.theta, third, k, e, h2, z, used)


@compiled
def collect(
    router: Router, keep: Singles, x: Singles, mask: Singles, weight: Singles, rate: float, passes: int
) -> bool:
    """Add a row and its targets to the mini-batch; a full one is trained on ``passes`` times. True if it was."""
    at = router.counter[FILLED]
    router.x[at] = x
    router.mask[at] = mask
    router.weight[at] = weight
    router.counter[FILLED] = at + 1
    router.counter[ROWS] += 1
    if at + 1 < router.x.shape[0]:
        return False
    for _ in range(passes):
        adam_step(router, gradient(router, keep), rate)
    router.counter[FILLED] = 0
    return True


@inner
def _product(a: Singles, b: Singles, out: Singles) -> None:
    """out = a b, by BLAS, in pieces too small for it to start threads: the same bits whatever else is running."""
    step = max(1, LARGEST_PIECE // (b.shape[0] * b.shape[1]))
    for i in range(0, a.shape[0], step):
        np.dot(a[i : i + step], b, out[i : i + step])


@inner
def _add_layer_gradient(out: Singles, start: int, inputs: Singles, errors: Singles) -> None:
    """Add dL/dW = inputs' errors and dL/db = sum_b errors of the layer at ``start``; inputs[B, n], errors[B, m]."""
    n, m = inputs.shape[1], errors.shape[1]
    turned = np.empty((n, inputs.shape[0]), np.float32)
    for b in range(inputs.shape[0]):
        for i in range(n):
            turned[i, b] = inputs[b, i]
    product = np.empty((n, m), np.float32)
    _product(turned, errors, product)
    weights, bias = _weights(out, start, n, m), out[start + n * m : start + n * m + m]
    for i in range(n):
        for j in range(m):
            weights[i, j] += product[i, j]
    for b in range(errors.shape[0]):
        for j in range(m):
            bias[j] += errors[b, j]


@inner
def _forward(theta: Singles, start: int, x: Singles, out: Singles, rectified: bool) -> None:
    """out[B, m] = x[B, n] W + b for the layer at ``start``, below zero cut off where it is rectified."""
    n, m = x.shape[1], out.shape[1]
    _product(x, _weights(theta, start, n, m), out)
    bias = theta[start + n * m : start + n * m + m]
    for b in range(out.shape[0]):
        for j in range(m):
            value = out[b, j] + bias[j]
            out[b, j] = max(value, np.float32(0)) if rectified else value


@inner
def _errors_below(errors: Singles, w: Singles, units: Singles, out: Singles) -> None:
    """out[B, n] = errors[B, m] W' where the layer's units[B, n] are active, else 0."""
    _product(errors, w.T, out)
    for b in range(out.shape[0]):
        for i in range(out.shape[1]):
            out[b, i] = out[b, i] if units[b, i] > 0 else np.float32(0)


@inner
def _output_errors(z: Singles, mask: Singles, weight: Singles, rows: int) -> None:
    """Turn logits z[B, E] into dL/dz = w (sigma(z) - m) / (rows E)."""
    for b in range(z.shape[0]):
        for j in range(z.shape[1]):
            share = weight[b, j] / np.float32(rows * z.shape[1])
            z[b, j] = (sigmoid(z[b, j]) - mask[b, j]) * share


@compiled
def gradient(router: Router, keep: Singles) -> Singles:
    """dL/dtheta[P] over the whole mini-batch; keep as in ``route``."""
    out = np.zeros_like(router.theta)
    for first in range(0, router.x.shape[0], ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        _add_gradient(router, keep, router.x[rows], router.mask[rows], router.weight[rows], out)
    return out


@inner
def _add_gradient(router: Router, keep: Singles, x: Singles, mask: Singles, weight: Singles, out: Singles) -> None:
    """Add the share of some rows of the mini-batch in dL/dtheta."""
    d, h, k, e = router.size
    theta, rows = router.theta, x.shape[0]
    second, third = d * h + h, d * h + h + h * k + k
    h1, h2, g3 = np.empty((rows, h), np.float32), np.empty((rows, k), np.float32), np.empty((rows, e), np.float32)
    _forward(theta, 0, x, h1, True)
    for b in range(rows):
        _thin(h1[b], keep)
    _forward(theta, second, h1, h2, True)
    _forward(theta, third, h2, g3, False)
    _output_errors(g3, mask, weight, router.x.shape[0])
    g1, g2 = np.empty_like(h1), np.empty_like(h2)
    _errors_below(g3, _weights(theta, third, k, e), h2, g2)
    _errors_below(g2, _weights(theta, second, h, k), h1, g1)
    for b in range(rows):
        _thin(g1[b], keep)
    _add_layer_gradient(out, 0, x, g1)
    _add_layer_gradient(out, second, h1, g2)
    _add_layer_gradient(out, third, h2, g3)


@inner
def sigmoid(z: float) -> np.float32:
    """1 / (1 + exp(-z)), rounded to single precision once: the same bits whoever computes the exponential."""
    return np.float32(1.0 / (1.0 + np.exp(-np.float64(z))))


@compiled
def adam_step(router: Router, g: Singles, rate: float) -> None:
    """One Adam step (Kingma and Ba, ICLR 2015) with bias correction and no weight decay."""
    router.counter[STEPS] += 1
    t = router.counter[STEPS]
    b1, b2 = np.float32(BETA1), np.float32(BETA2)
    step = np.float32(rate / (1.0 - BETA1**t))
    scale = np.float32(1.0 / np.sqrt(1.0 - BETA2**t))
    theta, first, second = router.theta, router.moment1, router.moment2
    for i in range(g.shape[0]):
        first[i] = b1 * first[i] + (np.float32(1) - b1) * g[i]
        second[i] = b2 * second[i] + (np.float32(1) - b2) * g[i] * g[i]
        theta[i] -= step * first[i] / (np.sqrt(second[i]) * scale + np.float32(EPSILON))


@compiled
def loss(z: Singles, mask: Singles) -> float:
    """Mean BCE with logits over z[B, E]: max(z, 0) - z m + log(1 + exp(-|z|))."""
    total = 0.0
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            v = float(z[i, j])
            total += max(v, 0.0) - v * mask[i, j] + np.log1p(np.exp(-abs(v)))
    return total / z.size
