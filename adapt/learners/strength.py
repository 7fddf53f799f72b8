"""How far an answer is moved along a proposed direction: one number, learnt from every label.

An answer lies at z (the logit of a click; the log of every class's probability; the value itself, in units of the usual
error) and may be moved to z + lambda u. With q the moved answer and l its loss,

    click   g = (q - y) u,  h = q (1 - q) u^2                  value   g = (q - y) u,  h = u^2
    class   g = sum_c (q_c - [y = c]) u_c,  h = sum_c q_c u_c^2 - (sum_c q_c u_c)^2
    H <- fade H + h,  lambda <- clip(lambda - g / max(H, 5), 0, cap);   lambda = 0 and H = 5 at the start

The loss is convex in lambda, so this is Newton's step with a fading Hessian. Ours, and measured against every fixed
lambda. The ``hedge`` mixes several such answers and the unmoved one: shares w <- w exp(-l), then a thousandth of all is
shared out again (Herbster, Warmuth: Tracking the best expert. Machine Learning 32, 1998).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ...models.compiled import compiled
from ...streams import Array
from ..learner import State

Kind = Literal["click", "class", "value"]
CLIP = 0.005
"""Probabilities are held within this and 1 - this before logarithms."""
FIRST, SHARED = 5.0, 1e-3


def lift(p: Array, kind: Kind) -> Array:
    """z of answers, float64[B, W]: one column for clicks and values, one for every class."""
    if kind == "value":
        return p
    held = np.clip(p, CLIP, 1 - CLIP)
    return np.log(held / (1 - held)) if kind == "click" else np.log(held)


def settle(z: Array, kind: Kind) -> Array:
    """The answers that lie at z."""
    if kind == "value":
        return z
    if kind == "click":
        return 1 / (1 + np.exp(-z))
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@compiled
def _moved(click: bool, value: bool, z: Array, u: Array, strength: float, q: Array) -> None:
    """q of one row: the answer at z + strength u."""
    for c in range(z.shape[0]):
        q[c] = z[c] + strength * u[c]
    if value:
        return
    if click:
        q[0] = 1 / (1 + np.exp(-q[0]))
        return
    top, total = q.max(), 0.0
    for c in range(q.shape[0]):
        q[c] = np.exp(q[c] - top)
        total += q[c]
    for c in range(q.shape[0]):
        q[c] /= total


@compiled
def _learn(
    click: bool,
    value: bool,
    z: Array,
    u: Array,
    y: Array,
    lam: Array,
    hess: Array,
    trust: Array,
    fade: float,
    cap: float,
) -> None:
    """Rows in order. z: float64[B, W]; u: float64[B, E, W]; y: float64[B]; lam, hess: [E]; trust: [1 + E]."""
    q, still, loss = np.empty(z.shape[1]), np.zeros(z.shape[1]), np.empty(len(trust))
    for i in range(z.shape[0]):
        for e in range(len(trust)):
            way = still if e == 0 else u[i, e - 1]
            _moved(click, value, z[i], way, 0.0 if e == 0 else lam[e - 1], q)
            g, h, mean = 0.0, 0.0, 0.0
            if value:
                g, h, loss[e] = (q[0] - y[i]) * way[0], way[0] * way[0], 0.5 * (q[0] - y[i]) ** 2
            elif click:
                g, h = (q[0] - y[i]) * way[0], q[0] * (1 - q[0]) * way[0] * way[0]
                loss[e] = -np.log(max(q[0] if y[i] > 0.5 else 1 - q[0], 1e-12))
            else:
                label = int(y[i])
                for c in range(q.shape[0]):
                    g += (q[c] - (c == label)) * way[c]
                    h += q[c] * way[c] * way[c]
                    mean += q[c] * way[c]
                h -= mean * mean
                loss[e] = -np.log(max(q[label], 1e-12))
            if e > 0:
                hess[e - 1] = fade * hess[e - 1] + h
                lam[e - 1] = min(max(lam[e - 1] - g / max(hess[e - 1], FIRST), 0.0), cap)
        least, total = loss.min(), 0.0
        for e in range(len(trust)):
            trust[e] *= np.exp(least - loss[e])
            total += trust[e]
        for e in range(len(trust)):
            trust[e] = (1 - SHARED) * trust[e] / total + SHARED / len(trust)


class Strength:
    """Lambda of each of E directions, and the shares of the hedge. mix: the hedge's answer instead of the first's."""

    def __init__(self, kind: Kind, directions: int, *, fade: float, cap: float, mix: bool) -> None:
        self.kind: Kind = kind
        self.fade, self.cap, self.mix = fade, cap, mix
        self.lam, self.hess = np.zeros(directions), np.full(directions, FIRST)
        self.trust = np.full(1 + directions, 1 / (1 + directions))
        self._squares, self._rows = 0.0, 0

    @property
    def unit(self) -> float:
        """Root mean square of the model's own errors, for values; 1 before any."""
        return float(np.sqrt(self._squares / self._rows)) if self._squares > 0 else 1.0

    def direction(self, said: Array, target: Array) -> Array:
        """u: from answers to what they should be, float64[B, W] each; classes' targets are made to sum to 1."""
        if self.kind == "class":
            target = np.clip(target, 0.0, 1.0)
            target = target / target.sum(1, keepdims=True)
        return lift(target, self.kind) - lift(said, self.kind)

    def answer(self, said: Array, u: Array) -> Array:
        """float64[B, W]: said (float64[B, W]) moved along u (float64[B, E, W]); itself where nothing moves it."""
        z = lift(said, self.kind)
        moved = [settle(z + lam * u[:, e], self.kind) for e, lam in enumerate(self.lam)]
        if self.mix:
            blend = self.trust[0] * said + sum(w * p for w, p in zip(self.trust[1:], moved))
            return np.where(np.any(u, axis=(1, 2))[:, None], blend, said)
        still = ~np.any(u[:, 0] * self.lam[0], axis=1, keepdims=True)
        return np.where(still, said, moved[0])

    def learn(self, said: Array, u: Array, y: Array) -> None:
        """Rows with their labels: int64[B] codes, or float64[B]."""
        if not len(y):
            return
        if self.kind == "value":
            errors = np.clip(y - said[:, 0], -1e100, 1e100)
            self._squares += float(errors @ errors)
            self._rows += len(y)
            said, u, y = said / self.unit, u / self.unit, y / self.unit
        z = np.ascontiguousarray(lift(said, self.kind))
        _learn(
            self.kind == "click", self.kind == "value", z, np.ascontiguousarray(u), y.astype(np.float64),
            self.lam, self.hess, self.trust, self.fade, self.cap,
        )  # fmt: skip

    def state(self) -> State:
        return {
            "lam": self.lam,
            "hess": self.hess,
            "trust": self.trust,
            "squares": self._squares,
            "rows": self._rows,
        }

    def load(self, state: State) -> None:
        self.lam, self.hess, self.trust = (np.array(state[k]) for k in ("lam", "hess", "trust"))
        self._squares, self._rows = float(state["squares"]), int(state["rows"])
