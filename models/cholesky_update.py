"""The head of ``analytic.py`` carried by the Cholesky factor of A, for float32: the factor sees the square root of A's
condition, so single precision goes twice as far in it as in A or its inverse.

    A = L L^T,  A' = A + s X^T X,  s = +1 (learn) or -1 (forget),  V = X^T
    for j: v = V[j], a = L[j, j], r = sqrt(a^2 + v.v) (learn) or sqrt((a - |v|)(a + |v|)) (forget)
           l' = (a l + s V[j+1:] v) / r,  V[j+1:] -= (l + l') v^T / (a + r),  L[j, j] = r,  l = L[j+1:, j]

A block of rows goes through the columns together: one J-orthogonal Householder reflection for each column, in its
mixed form, which is stable for forgetting as well.

Source: hyperbolic Householder transformations (Rader, Steinhardt 1986; the mixed form of Bojanczyk et al. 1987), as
derived in our note; not part of the ACU paper. float32 is for devices that have nothing better: an answer from it is
never called exact.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from scipy.linalg import solve_triangular

from .analytic import Array, NotContained, StateCorrupt, check_rows, digest_of
from .compiled import compiled

BLOCK = 64
"""Rows that go through the factor together."""


@compiled
def _update(upper: Array, rows: Array, sign: float) -> float:
    """The factor L^T (upper triangle) for one block more, or one less, in place; ``rows`` is used up.

    Returns the smallest r^2 / a^2, or -1 where there is no such factor (``upper`` is then half done).
    """
    d, m = upper.shape[0], rows.shape[0]
    least = np.inf
    for j in range(d):
        a = float(upper[j, j])
        q = 0.0
        for i in range(m):
            q += float(rows[i, j]) ** 2
        if q == 0.0:
            continue
        length = np.sqrt(q)
        square = a * a + q if sign > 0 else (a - length) * (a + length)
        if not square > 0:
            return -1.0
        r = np.sqrt(square)
        least = min(least, square / (a * a))
        upper[j, j] = r
        for k in range(j + 1, d):
            dot = 0.0
            for i in range(m):
                dot += rows[i, k] * rows[i, j]
            old = upper[j, k]
            new = (a * old + sign * dot) / r
            shared = (old + new) / (a + r)
            for i in range(m):
                rows[i, k] -= shared * rows[i, j]
            upper[j, k] = new
    return least


class CholeskyFactor:
    """B, counts and L^T. dtype: of the factor; B stays in float64 and so does the solve.

    d, classes, gamma: as in ``Statistics``. Memory: d^2 numbers of the dtype (64 MB at d = 4096 in float32), twice
    that while forgetting, since a request that fails half way must leave nothing behind.
    """

    def __init__(
        self, d: int, classes: int = 0, gamma: float = 0.1, *, dtype: Literal["float32", "float64"] = "float32"
    ) -> None:
        if d < 1 or classes < 0 or not 0 < gamma < np.inf:
            raise ValueError("d is at least 1, classes are at least 0, gamma is above 0")
        self.d, self.gamma = d, gamma
        self.upper: Array = np.eye(d, dtype=dtype) * np.asarray(np.sqrt(gamma), dtype)
        self.cross = np.zeros((d, classes))
        self.counts = np.zeros(classes, np.int64)
        self.n = 0
        self.pivot = float("nan")
        """The smallest r^2 / a^2 of the last request."""
        self._weights: Array | None = None

    @property
    def classes(self) -> int:
        return int(self.cross.shape[1])

    def grow(self, classes: int) -> None:
        """Zero columns for classes not met before."""
        if classes > self.classes:
            self.cross = np.pad(self.cross, ((0, 0), (0, classes - self.classes)))
            self.counts = np.pad(self.counts, (0, classes - len(self.counts)))
            self._weights = None

    def learn(self, x: Array, y: Array) -> None:
        """x: float64[m, d], y: float64[m, C]; fewer columns than there are count as zeros."""
        check_rows(x, y, self.d)
        self.grow(y.shape[1])
        self._through(self.upper, x, 1.0)
        self._count(x, y, 1)

    def forget(self, x: Array, y: Array, *, sure: bool = False) -> None:
        """Take out rows that were learnt; raises ``NotContained``, or ``StateCorrupt`` where they surely were.

        Nothing is changed then.
        """
        check_rows(x, y, self.d)
        fewer = np.count_nonzero(y, axis=0)
        if len(x) > self.n or y.shape[1] > self.classes or (fewer > self.counts[: y.shape[1]]).any():
            raise NotContained("the model holds fewer rows of that class than are to be forgotten")
        if len(x) == self.n and len(x):
            self.upper[...] = np.eye(self.d) * np.sqrt(self.gamma)
            self.pivot = self.gamma
        else:
            draft = self.upper.copy()
            if not self._through(draft, x, -1.0):
                reason = "the factor ends: these rows are not contained in the model"
                raise StateCorrupt(reason) if sure else NotContained(reason)
            self.upper = draft
        self._count(x, y, -1)

    def _through(self, upper: Array, x: Array, sign: float) -> bool:
        self.pivot = np.inf
        for at in range(0, len(x), BLOCK):
            least = _update(upper, np.array(x[at : at + BLOCK], upper.dtype, order="C"), sign)
            if least < 0:
                return False
            self.pivot = min(self.pivot, least)
        return True

    def _count(self, x: Array, y: Array, sign: int) -> None:
        width = y.shape[1]
        self.cross[:, :width] += sign * (x.T @ y)
        self.counts[:width] += sign * np.count_nonzero(y, axis=0)
        self.n += sign * len(x)
        if sign < 0:
            self.cross[:, self.counts == 0] = 0
        self._weights = None

    def weights(self) -> Array:
        """W, float64[d, C]; columns of classes without rows are zero."""
        if self._weights is None:
            upper = self.upper.astype(np.float64)
            half = solve_triangular(upper, self.cross, trans="T")
            self._weights = np.ascontiguousarray(solve_triangular(upper, half))
        return self._weights

    def bound(self) -> float:
        """||L L^T W - B||_F / gamma: of the solve alone; what rounding did to the factor is not in it."""
        upper = np.triu(self.upper.astype(np.float64))
        rest = upper.T @ (upper @ self.weights()) - self.cross
        return float(np.linalg.norm(rest)) / self.gamma

    def digest(self) -> str:
        """sha256 of factor, B and counts."""
        return digest_of(self.upper, self.cross, self.counts)

    def state(self) -> dict[str, Any]:
        return {"upper": self.upper, "cross": self.cross, "counts": self.counts, "n": self.n}

    def load(self, state: dict[str, Any]) -> None:
        self.upper, self.cross = np.array(state["upper"], order="C"), np.array(state["cross"], order="C")
        self.counts, self.n = np.array(state["counts"]), int(state["n"])
        self.pivot, self._weights = float("nan"), None
