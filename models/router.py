"""A small network that routes rows to experts: three linear layers, ReLU between them, trained by Adam on BCE.

    h1 = relu(x W1 + b1),  h2 = relu(h1 W2 + b2),  z = h2 W3 + b3,
    L = -(1 / (B E)) sum_bi [ m_bi log sigma(z_bi) + (1 - m_bi) log(1 - sigma(z_bi)) ],  dL/dz = (sigma(z) - m) / (B E)

All parameters lie in one float32 vector, so that Adam is one loop. Single rows are pushed through by plain loops in a
fixed order of additions (the answer for a row does not depend on what is computed beside it); mini-batches train
through BLAS.

Legend: D inputs, H hidden units of the first layer (the second has H2), E outputs, B rows of the mini-batch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled

Singles = NDArray[np.float32]

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
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


@compiled
def _affine(theta: Singles, start: int, n: int, m: int, x: Singles, out: Singles) -> int:
    """out[m] = x[n] W + b for the layer at ``start``; zeros in x cost nothing. Returns where the next layer starts.

    Four rows of W are added at a time, so that out is read and written a quarter as often.
    """
    bias = start + n * m
    used = np.empty(n, np.int64)
    count = 0
    for i in range(n):
        if x[i] != 0:
            used[count] = start + i * m
            count += 1
    for j in range(m):
        out[j] = theta[bias + j]
    for first in range(0, count - 3, 4):
        a, b, c, d = used[first], used[first + 1], used[first + 2], used[first + 3]
        xa, xb, xc, xd = x[(a - start) // m], x[(b - start) // m], x[(c - start) // m], x[(d - start) // m]
        ra, rb, rc, rd = theta[a : a + m], theta[b : b + m], theta[c : c + m], theta[d : d + m]
        for j in range(m):
            out[j] += (xa * ra[j] + xb * rb[j]) + (xc * rc[j] + xd * rd[j])
    for k in range(count - count % 4, count):
        row, value = theta[used[k] : used[k] + m], x[(used[k] - start) // m]
        for j in range(m):
            out[j] += value * row[j]
    return bias + m


@compiled
def _rectify(h: Singles) -> None:
    for j in range(h.shape[0]):
        h[j] = max(h[j], np.float32(0))


@compiled
def route(router: Router, x: Singles, h1: Singles, h2: Singles, z: Singles) -> None:
    """Logits z[E] of one row x[D]; h1[H] and h2[H2] receive the hidden units."""
    d, h, k, e = router.size
    at = _affine(router.theta, 0, d, h, x, h1)
    _rectify(h1)
    at = _affine(router.theta, at, h, k, h1, h2)
    _rectify(h2)
    _affine(router.theta, at, k, e, h2, z)


@compiled
def collect(router: Router, x: Singles, mask: Singles, weight: Singles, rate: float, passes: int) -> bool:
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
        adam_step(router, gradient(router), rate)
    router.counter[FILLED] = 0
    return True


@compiled
def gradient(router: Router) -> Singles:
    """dL/dtheta[P] over the whole mini-batch."""
    d, h, k, e = router.size
    theta, x = router.theta, router.x
    a, b, c = d * h, d * h + h, d * h + h + h * k
    w1 = theta[:a].reshape(d, h)
    w2, w3 = theta[b:c].reshape(h, k), theta[c + k : c + k + k * e].reshape(k, e)
    h1 = np.maximum(np.dot(x, w1) + theta[a:b], np.float32(0))
    h2 = np.maximum(np.dot(h1, w2) + theta[c : c + k], np.float32(0))
    z = np.dot(h2, w3) + theta[c + k + k * e :]
    g3 = np.empty_like(z)
    for i in range(z.shape[0]):
        for j in range(e):
            share = router.weight[i, j] / np.float32(z.size)
            g3[i, j] = (sigmoid(z[i, j]) - router.mask[i, j]) * share
    g2 = np.dot(g3, w3.T) * (h2 > 0)
    g1 = np.dot(g2, w2.T) * (h1 > 0)
    out = np.empty_like(theta)
    out[:a] = np.dot(x.T, g1).ravel()
    out[b:c] = np.dot(h1.T, g2).ravel()
    out[c + k : c + k + k * e] = np.dot(h2.T, g3).ravel()
    out[a:b], out[c : c + k], out[c + k + k * e :] = g1.sum(axis=0), g2.sum(axis=0), g3.sum(axis=0)
    return out


@compiled
def sigmoid(z: float) -> float:
    """1 / (1 + exp(-z)), in single precision."""
    return np.float32(1) / (np.float32(1) + np.exp(-np.float32(z)))


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
