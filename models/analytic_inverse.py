"""The head of ``analytic.py`` kept ready: a request of a few rows costs a product with A^-1 and no factorisation.

    R = A^-1 = R0 + Z^T D Z,  p = R x,  s = +1 (learn) or -1 (forget)
    one row:   den = 1 + s x.p,  W += s p (y - x W) / den,  Z gets the row p / sqrt(den) with D = -s
    m rows:    P = X R,  M = I + s X P^T = L L^T,  S = L^-1 P,  W += s S^T L^-1 (Y - X W),  Z gets S with D = -s

which is the Woodbury identity in its symmetric form. R0 and A are brought up to date by ``fold``, once for many
requests, best between two of them. Only half of R0 is ever written, so that it stays symmetric by construction; the
form that relies on symmetry without enforcing it grows its own rounding errors from request to request.

A forgotten row of leverage h multiplies the error of R by up to 1 / (1 - h)^2. That bound is followed; where it passes
the tolerance the residual A W - B decides at the next fold (which comes at once where the bound is far past it), and if
that is too large as well R is made anew from A.
So it is after a request that is too large (more than d / 12 rows), too near the edge (1 - h below 1e-6), and after so
many requests.

Source: the recursion of ACIL, arXiv 2205.14922, with its sign turned for forgetting (ACU, arXiv 2505.12239 v1, from
its abstract). Symmetrising, deferring, half storage and the rules for starting anew are ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.linalg import blas, lapack

from .analytic import Array, NotContained, StateCorrupt, Statistics, add_outer, check_rows, half_times

ROUNDING = 1.2e-16
SHARE = 12
"""More rows than d / 12 are cheaper by a factorisation."""
FEW = 32
"""Rows up to which a product with half a matrix, which BLAS packs anew for every call, is cheaper by strips."""
STRIP = 64
EDGE = 1e-6
"""Smallest 1 - leverage that is trusted."""
WORN = 1e-4
"""Followed bound on the relative error from which no fold is waited for; what it bounds is far smaller as a rule."""


class Inverse:
    """A, B, W and A^-1 at hand.

    d, classes, gamma: as in ``Statistics``. fold: rows after which R0 and A are brought up to date, before the request
    that would pass it; 1: at the end of every request. tolerance: of the relative error of W. every: requests after
    which R0 is made anew whatever the monitor says.

    Memory: 8 d^2 bytes each for A, its factor and R0 (128 MB at d = 4096), 16 d for every row that waits for a fold.
    """

    def __init__(
        self,
        d: int,
        classes: int = 0,
        gamma: float = 0.1,
        *,
        fold: int = 64,
        tolerance: float = 1e-8,
        every: int = 1000,
    ) -> None:
        if fold < 1 or every < 1:
            raise ValueError("fold and every are at least 1")
        self.statistics = Statistics(d, classes, gamma)
        self.d, self.gamma = d, gamma
        self.fold_at, self.tolerance, self.every = fold, tolerance, every
        self.inverse: Array | None = np.eye(d) / gamma
        """R0, upper triangle; None where it is to be made from A."""
        self.w = np.zeros((d, classes))
        room = max(fold, d // SHARE)
        self.z = np.zeros((room, d))
        self.x = np.zeros((room, d))
        self.signs = np.zeros(room)
        self.waiting = 0
        self.error = self.rounding = ROUNDING
        """The followed bound on the relative error, and what rounding adds to it with each request."""
        self.since = 0
        """Requests since R0 was made."""
        self.pivot = float("nan")
        """The smallest pivot of the last request's M, or of the last factor of A."""
        self.refreshes = 0

    @property
    def classes(self) -> int:
        return int(self.w.shape[1])

    @property
    def counts(self) -> Array:
        return self.statistics.counts

    @property
    def n(self) -> int:
        return self.statistics.n

    def grow(self, classes: int) -> None:
        """Zero columns for classes not met before."""
        self.statistics.grow(classes)
        if classes > self.classes:
            self.w = np.pad(self.w, ((0, 0), (0, classes - self.classes)))

    # --- requests -----------------------------------------------------------------------------------------------

    def learn(self, x: Array, y: Array) -> None:
        """x: float64[m, d], y: float64[m, C]; fewer columns than there are count as zeros."""
        check_rows(x, y, self.d)
        if len(x):
            self._change(x, y, 1.0, sure=True)

    def forget(self, x: Array, y: Array, *, sure: bool = False) -> None:
        """Take out rows that were learnt; ``sure`` as in ``Statistics.forget``.

        Raises ``NotContained``, or ``StateCorrupt`` for rows that are surely there; nothing is changed then.
        """
        check_rows(x, y, self.d)
        if not len(x):
            return
        fewer = np.count_nonzero(y, axis=0)
        if len(x) > self.n or y.shape[1] > self.classes or (fewer > self.counts[: y.shape[1]]).any():
            raise NotContained("the model holds fewer rows of that class than are to be forgotten")
        self._change(x, y, -1.0, sure=sure)

    def subtract(self, rows: Array, cross: Array, counts: Array) -> None:
        """Take out a group by its record, as ``Statistics.subtract``."""
        self.fold()
        self.statistics.subtract(rows, cross, counts)
        self._refresh()

    def _change(self, x: Array, y: Array, sign: float, *, sure: bool) -> None:
        self.grow(y.shape[1])
        if len(x) > max(1, self.d // SHARE) or (sign < 0 and len(x) >= self.n):
            self._by_statistics(x, y, sign, sure=sure)
            return
        if self.waiting + len(x) > self.fold_at:
            self.fold()
        if not self._at_once(x, y, sign):
            self._by_statistics(x, y, sign, sure=sure)
        elif self.fold_at == 1 or self.error > WORN:
            self.fold()

    def _at_once(self, x: Array, y: Array, sign: float) -> bool:
        """The update of W and Z; False, and nothing changed, where the rows stand too near the edge."""
        moved = self._one(x[0], y, sign) if len(x) == 1 else self._several(x, y, sign)
        if moved is None:
            return False
        z, least = moved
        m, at = len(x), self.waiting
        self.z[at : at + m], self.x[at : at + m], self.signs[at : at + m] = z, x, -sign
        self.waiting += m
        self._count(x, y, sign)
        self.error = (self.error / min(1.0, least) ** 2 if sign < 0 else self.error) + self.rounding
        self.since += 1
        return True

    def _one(self, x: Array, y: Array, sign: float) -> tuple[Array, float] | None:
        p = blas.dsymv(1.0, self._inverse().T, x, lower=1)
        if self.waiting:
            z = self.z[: self.waiting]
            p += (self.signs[: self.waiting] * (z @ x)) @ z
        den = 1.0 + sign * float(x @ p)
        if not den > EDGE:
            return None
        rest = -(x @ self.w)
        rest[: y.shape[1]] += y[0]
        self.w += np.outer(p, rest * (sign / den))
        self.pivot = den
        return p / np.sqrt(den), den

    def _several(self, x: Array, y: Array, sign: float) -> tuple[Array, float] | None:
        p = self.times_inverse(x)
        m = sign * (x @ p.T)
        m.flat[:: len(x) + 1] += 1.0
        lower, fault = lapack.dpotrf((m + m.T) / 2, lower=1, clean=1)
        if fault or not np.isfinite(lower).all():
            return None
        back, _ = lapack.dtrtri(lower, lower=1)
        least = 1 / float(np.sum(back**2))
        pivot = float((np.diagonal(lower) ** 2).min())
        if not pivot > EDGE:
            return None
        rest = -(x @ self.w)
        rest[:, : y.shape[1]] += y
        z = back @ p
        self.w += sign * (z.T @ (back @ rest))
        self.pivot = pivot
        return z, max(least, EDGE)

    def times_inverse(self, x: Array) -> Array:
        """X A^-1, float64[m, d]."""
        half = self._inverse()
        p = _few_times(half, x) if len(x) <= FEW else np.ascontiguousarray(half_times(half, x.T).T)
        if self.waiting:
            z = self.z[: self.waiting]
            p += ((x @ z.T) * self.signs[: self.waiting]) @ z
        return p

    def _count(self, x: Array, y: Array, sign: float) -> None:
        """B, counts and the columns of classes that have no rows left; A waits for the fold."""
        statistics, width = self.statistics, y.shape[1]
        statistics.cross[:, :width] += sign * (x.T @ y)
        statistics.counts[:width] += int(sign) * np.count_nonzero(y, axis=0)
        statistics.n += int(sign) * len(x)
        if sign < 0 and (gone := statistics.counts == 0).any():
            statistics.cross[:, gone] = 0
            self.w[:, gone] = 0

    def _by_statistics(self, x: Array, y: Array, sign: float, *, sure: bool) -> None:
        """Change the sums and make the head anew; the inverse follows when it is next needed."""
        self.fold()
        kept = None
        if sign > 0:
            self.statistics.learn(x, y)
        else:
            kept = self.statistics.cross.copy()
            self.statistics.forget(x, y, sure=sure)
        try:
            self._refresh()
        except StateCorrupt:
            if kept is None:
                raise
            self.statistics.learn(x, y)
            self.statistics.cross[:] = kept
            raise

    # --- keeping it right ---------------------------------------------------------------------------------------

    def fold(self) -> None:
        """Bring A and R0 up to date; then look at the error, if its followed bound asks for it."""
        if not self.waiting:
            return
        z, x, signs = self.z[: self.waiting], self.x[: self.waiting], self.signs[: self.waiting]
        half = self._inverse()
        for sign in (1.0, -1.0):
            add_outer(half, z[signs == sign], sign)
            add_outer(self.statistics.gram, x[signs == sign], -sign)
        self.waiting = 0
        self.statistics.touched()
        if self.since >= self.every:
            self._refresh()
        elif self.error > self.tolerance:
            size = float(np.linalg.norm(self.w))
            if self.statistics.bound(self.w) <= self.tolerance * max(size, 1.0):
                self.error = self.rounding
            else:
                self._refresh()

    def _refresh(self) -> None:
        """W from the sums; R0 when it is next needed."""
        self.w = self.statistics.weights().copy()
        self.pivot = self.statistics.pivot
        pivots = np.diagonal(self.statistics.factor())
        self.rounding = ROUNDING * float((pivots.max() / pivots.min()) ** 2)
        self.error = self.rounding
        self.inverse = None
        self.since = 0
        self.refreshes += 1

    def _inverse(self) -> Array:
        """R0, made from the factor of A where it is stale."""
        if self.inverse is None:
            lower, _ = lapack.dpotri(self.statistics.factor(), lower=1)
            self.inverse = np.asarray(lower).T
            self.statistics.touched()
        return self.inverse

    def settle(self) -> None:
        """Do now what the next request would have to wait for."""
        self.fold()
        self._inverse()

    # --- the head -----------------------------------------------------------------------------------------------

    def weights(self) -> Array:
        """W, float64[d, C], as it is."""
        return self.w

    def bound(self) -> float:
        """||A W - B||_F / gamma, which the distance to the exact head cannot exceed. Folds first."""
        self.fold()
        return self.statistics.bound(self.w)

    def digest(self) -> str:
        """As ``Statistics.digest``. Folds first."""
        self.fold()
        return self.statistics.digest()

    def state(self) -> dict[str, Any]:
        """Folds first where forgotten rows wait: what is written down must not hold their features."""
        if (self.signs[: self.waiting] > 0).any():
            self.fold()
        at = self.waiting
        return {
            "statistics": self.statistics.state(),
            "inverse": self.inverse,
            "w": self.w,
            "waiting": {"z": self.z[:at], "x": self.x[:at], "signs": self.signs[:at]},
            "error": self.error,
            "rounding": self.rounding,
            "since": self.since,
            "refreshes": self.refreshes,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.statistics.load(state["statistics"])
        self.inverse = None if state["inverse"] is None else np.array(state["inverse"], order="C")
        self.w = np.array(state["w"], order="C")
        kept = state["waiting"]
        self.waiting = at = len(kept["signs"])
        self.z[:at], self.x[:at], self.signs[:at] = kept["z"], kept["x"], kept["signs"]
        self.error, self.rounding = float(state["error"]), float(state["rounding"])
        self.since, self.refreshes = int(state["since"]), int(state["refreshes"])
        self.pivot = float("nan")


def _few_times(half: Array, x: Array) -> Array:
    """X times the symmetric matrix whose upper triangle is given: every strip of it is read once, for both halves."""
    p = np.zeros_like(x)
    for i in range(0, len(half), STRIP):
        j = i + STRIP
        corner = np.triu(half[i:j, i:j])
        p[:, i:j] += x[:, i:j] @ (corner + np.triu(corner, 1).T)
        right = half[i:j, j:]
        p[:, j:] += x[:, i:j] @ right
        p[:, i:j] += x[:, j:] @ right.T
    return p
