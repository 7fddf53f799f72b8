"""A ridge head kept as sums over rows: learning adds a row's share, forgetting subtracts it.

    A = sum x x^T + gamma I,  B = sum x y^T,  A W = B;  logits = x W

A and B are sums, so what remains after forgetting is what the other rows alone would have given, whatever the order
and grouping: forgetting equals training anew. In float64 that holds up to the rounding of sums; with rows rounded to a
grid of 2^-bits the sums are integers and it holds for every bit.

Sources. The sums and the recursion for learning: ACIL, arXiv 2205.14922, and G-ACIL, arXiv 2403.15706. Forgetting as
the recursion run backwards: ACU, arXiv 2505.12239 v1 (from its abstract; its equations were not readable to us, the
algebra leaves no choice). Class weights: AIR, arXiv 2408.10349 (its code). Our choices: the sums in float64 with a
factor made when the head is next asked for, the residual certificate, the grid of integers, the check of a request
that no list of learnt rows vouches for.

Only half of A is ever written. Arrays are in C order with the upper triangle valid, which BLAS reads as the lower one
of the transpose: symmetry cannot be lost because there is no other half.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas, lapack

Array = NDArray[Any]

SLACK = 1e-6
"""Of gamma: how far below zero the smallest eigenvalue of a sum of x x^T may seem to lie by rounding."""
STRIP = 128
REFINEMENTS = 3
REFINED_FROM = 1e9
"""Condition of A, as its pivots tell it, from which the solve is corrected by its residual."""
LIMIT = 2**62
"""Where sums of integers end, with a bit to spare."""
EXACT = 2**53
"""Up to here float64 counts one by one."""


class NotContained(Exception):
    """The rows to be taken out cannot be in the sums; nothing was changed."""


class StateCorrupt(Exception):
    """Rows that are known to be in the sums cannot be taken out: the numbers are no longer what they were."""


def check_rows(x: Array, y: Array, d: int) -> None:
    """``ValueError`` unless x is finite float64[m, d] and y finite [m, C]."""
    if x.ndim != 2 or x.shape[1] != d:
        raise ValueError(f"features have shape {x.shape}, expected (m, {d})")
    if y.ndim != 2 or len(y) != len(x):
        raise ValueError(f"targets have shape {y.shape} for {len(x)} rows")
    if x.dtype != np.float64:
        raise ValueError(f"features are {x.dtype}, expected float64")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("features or targets hold NaN or infinity")


def add_outer(total: Array, x: Array, sign: float) -> None:
    """total += sign x^T x in place, upper triangle only. total: float64[d, d] in C order; x: float64[m, d]."""
    lower = total.T
    if len(x) == 1:
        blas.dsyr(sign, x[0], lower=1, a=lower, overwrite_a=1)
    elif len(x):
        blas.dsyrk(sign, np.ascontiguousarray(x).T, 1.0, lower, lower=1, overwrite_c=1)


def half_times(half: Array, columns: Array) -> Array:
    """The symmetric matrix whose upper triangle is given, times float64[d, k]."""
    found: Array = blas.dsymm(1.0, half.T, np.asfortranarray(columns), lower=1)
    return found


def factor(half: Array) -> tuple[Array, bool]:
    """The Cholesky factor L, float64[d, d] in Fortran order, and whether there is one. Overwrites ``half``."""
    lower, fault = lapack.dpotrf(half.T, lower=1, overwrite_a=1, clean=0)
    return lower, fault == 0


def smallest_pivot(lower: Array) -> float:
    """The smallest squared entry of the factor's diagonal."""
    return float((np.diagonal(lower) ** 2).min())


class Statistics:
    """The sums and the head that follows from them.

    d: features. classes: targets known so far; more may come. gamma: of the ridge. bits: rows are rounded to multiples
    of 2^-bits and the sums are integers (None: float64, as they come). weighted: every class counts alike, whatever
    its number of rows (memory classes * d^2).

    Memory: 8 d^2 bytes for A and, once the head was asked for, as much again for its factor: 128 MB each at d = 4096.

    >>> head = Statistics(1, 1, gamma=1.0)
    >>> head.learn(np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [2.0], [2.0]]))
    >>> head.forget(np.array([[3.0]]), np.array([[2.0]]))
    >>> round(float(head.weights()[0, 0]), 6)
    0.833333
    """

    def __init__(
        self, d: int, classes: int = 0, gamma: float = 0.1, *, bits: int | None = None, weighted: bool = False
    ) -> None:
        if d < 1 or classes < 0 or not 0 < gamma < np.inf:
            raise ValueError("d is at least 1, classes are at least 0, gamma is above 0")
        self.d, self.gamma, self.bits, self.weighted = d, gamma, bits, weighted
        kind = np.float64 if bits is None else np.int64
        self.gram: Array = np.zeros((classes, d, d) if weighted else (d, d), kind)
        """Sum of x x^T (of each class where weighted), upper triangle; gamma is not in it."""
        self.cross: Array = np.zeros((d, classes), kind)
        self.counts = np.zeros(classes, np.int64)
        self.n = 0
        self.largest = 0
        """The largest integer that ever stood in a row, for the bound on sums."""
        self.pivot = float("nan")
        """The smallest pivot of the last factor, or of the last check of a request."""
        self._lower: Array | None = None
        self._place: Array | None = None
        self._weights: Array | None = None

    @property
    def classes(self) -> int:
        return int(self.cross.shape[1])

    def grow(self, classes: int) -> None:
        """Zero columns for classes not met before."""
        more = classes - self.classes
        if more > 0:
            self.cross = np.pad(self.cross, ((0, 0), (0, more)))
            self.counts = np.pad(self.counts, (0, more))
            if self.weighted:
                self.gram = np.concatenate([self.gram, np.zeros((more, self.d, self.d), self.gram.dtype)])
            self.touched()

    # --- requests -----------------------------------------------------------------------------------------------

    def learn(self, x: Array, y: Array) -> None:
        """x: float64[m, d], y: float64[m, C], one column a target; fewer columns than there are count as zeros."""
        check_rows(x, y, self.d)
        rows = self._rounded(x)
        self._check_budget(rows)
        self._add(rows, y, 1)

    def forget(self, x: Array, y: Array, *, sure: bool = False) -> None:
        """Take out rows that were learnt, exactly as they were learnt.

        sure: a list of what was learnt vouches for them. Otherwise a sum that would no longer be one of x x^T is
        refused; that finds rows outside the span of the data, but by no means every row that was never learnt.
        Raises ``NotContained``; nothing is changed then.
        """
        check_rows(x, y, self.d)
        if not len(x):
            return
        fewer = np.count_nonzero(y, axis=0)
        if len(x) > self.n or y.shape[1] > self.classes or (fewer > self.counts[: y.shape[1]]).any():
            raise NotContained("the model holds fewer rows of that class than are to be forgotten")
        rows = self._rounded(x)
        if not sure:
            self._check_remainder(rows, y)
        self._add(rows, y, -1)

    def forget_class(self, c: int) -> None:
        """Take out a whole class without its rows; only where the sums are kept for each class."""
        if not self.weighted:
            raise NotContained("the sums are not kept for each class: its rows are needed")
        self.n -= int(self.counts[c])
        self.gram[c], self.cross[:, c], self.counts[c] = 0, 0, 0
        self.touched()

    def subtract(self, rows: Array, cross: Array, counts: Array) -> None:
        """Take out a group by its record: rows^T rows is its part of A, cross of B, counts its rows of each class."""
        short = np.pad(counts, (0, max(0, self.classes - len(counts))))
        if len(short) > self.classes or (short > self.counts).any() or self.weighted or self.bits is not None:
            raise NotContained("the record does not fit the model")
        add_outer(self.gram, rows, -1.0)
        self.cross[:, : cross.shape[1]] -= cross
        self.counts = self.counts - short
        self.n -= int(counts.sum())
        self._clean()

    def _rounded(self, x: Array) -> Array:
        if self.bits is None:
            return x
        edge = 2.0**15
        return np.clip(np.rint(x * 2.0**self.bits), -edge, edge)

    def _check_budget(self, rows: Array) -> None:
        if self.bits is None or not len(rows):
            return
        largest = max(self.largest, int(np.abs(rows).max()), 1)
        if (self.n + len(rows)) * largest**2 >= LIMIT:
            raise OverflowError(f"sums of integers are full after {self.n:,} rows: use fewer bits than {self.bits}")
        self.largest = largest

    def _add(self, rows: Array, y: Array, sign: int) -> None:
        width = y.shape[1]
        self.grow(width)
        for c, part in self._parts(y):
            gram = self.gram[c] if self.weighted else self.gram
            if self.bits is None:
                add_outer(gram, rows[part], float(sign))
            else:
                self._add_integers(gram, rows[part], sign)
        change = rows.T @ y
        self.cross[:, :width] += sign * (change if self.bits is None else np.rint(change).astype(np.int64))
        self.counts[:width] += sign * np.count_nonzero(y, axis=0)
        self.n += sign * len(rows)
        self._clean() if sign < 0 else self.touched()

    def _parts(self, y: Array) -> list[tuple[int, Any]]:
        """Classes and their rows where sums are kept for each, all rows as one part elsewhere."""
        if not self.weighted:
            return [(0, slice(None))]
        of = y.argmax(axis=1)
        return [(int(c), of == c) for c in np.unique(of)]

    def _add_integers(self, gram: Array, rows: Array, sign: int) -> None:
        """As many rows at once as float64 can multiply and sum without rounding."""
        most = max(1, (EXACT - 1) // max(1, int(np.abs(rows).max(initial=0))) ** 2)
        for at in range(0, len(rows), most):
            part = np.zeros((self.d, self.d))
            add_outer(part, rows[at : at + most], 1.0)
            gram += sign * part.astype(np.int64)

    def _clean(self) -> None:
        """After forgetting: what must be zero is zero, however sums were rounded."""
        gone = self.counts == 0
        self.cross[:, gone] = 0
        if self.weighted:
            self.gram[gone] = 0
        if self.n == 0:
            self.gram[...] = 0
            self.cross[...] = 0
            self.largest = 0
        self.touched()

    def touched(self) -> None:
        """Say that the sums were written to from outside: factor and head are made anew when next asked for."""
        self._lower = self._weights = None

    def _check_remainder(self, rows: Array, y: Array) -> None:
        """``NotContained`` where what would remain is no sum of x x^T: its smallest eigenvalue is below zero."""
        scale = 1.0 if self.bits is None else 4.0**-self.bits
        for c, part in self._parts(y):
            half = (self.gram[c] if self.weighted else self.gram) * scale
            add_outer(half, rows[part], -scale)
            half.flat[:: self.d + 1] += SLACK * self.gamma
            lower, definite = factor(half)
            if not definite:
                raise NotContained("these rows are not contained in the model: what would remain is no sum of rows")
            self.pivot = smallest_pivot(lower)

    # --- the head -----------------------------------------------------------------------------------------------

    def sums(self) -> tuple[Array, Array]:
        """The upper triangle of A without gamma, and B; float64[d, d] and float64[d, C], not to be written to."""
        scale = 1.0 if self.bits is None else 2.0**-self.bits
        if self.weighted:
            w = self.class_weights()
            half = np.tensordot(w, self.gram, 1) * scale**2 if self.classes else np.zeros((self.d, self.d))
            return half, self.cross * (w * scale)
        if self.bits is None:
            return self.gram, self.cross
        return self.gram * scale**2, self.cross * scale

    def class_weights(self) -> Array:
        """w_c = (1 / n_c) k / sum 1 / n_c over the k classes that have rows (AIR); 0 for the others."""
        there = self.counts > 0
        w = np.zeros(self.classes)
        w[there] = 1 / self.counts[there]
        return w * (there.sum() / w.sum()) if there.any() else w

    def weights(self) -> Array:
        """W, float64[d, C]: made when first asked for after a change. Columns of classes without rows are zero."""
        if self._weights is None:
            half, right = self.sums()
            lower, definite = factor(self._copied(half))
            if not definite:
                raise StateCorrupt("A is not positive definite")
            self.pivot = smallest_pivot(lower)
            self._weights = self._solved(half, right, lower)
            self._lower = lower
        return self._weights

    def factor(self) -> Array:
        """The Cholesky factor of A, lower triangle, in Fortran order."""
        self.weights()
        assert self._lower is not None
        return self._lower

    def bound(self, weights: Array | None = None) -> float:
        """||A W - B||_F / gamma, which ||W - W'||_F cannot exceed, W' being the exact head of these sums."""
        w = self.weights() if weights is None else weights
        half, right = self.sums()
        return float(np.linalg.norm(self._rest(half, right, w))) / self.gamma

    def _rest(self, half: Array, right: Array, weights: Array) -> Array:
        """B - A W."""
        return right - (half_times(half, weights) + self.gamma * weights) if right.size else right

    def _copied(self, half: Array) -> Array:
        """The upper triangle with gamma on its diagonal, in the place that the last factor had."""
        if self._place is None:
            self._place = np.zeros((self.d, self.d))
        for i in range(0, self.d, STRIP):
            self._place[i : i + STRIP, i:] = half[i : i + STRIP, i:]
        self._place.flat[:: self.d + 1] += self.gamma
        return self._place

    def _solved(self, half: Array, right: Array, lower: Array) -> Array:
        """A^-1 B by the factor; where A is badly conditioned, corrected by its residual for as long as that falls."""
        if not right.size:
            return np.zeros(right.shape)
        found, _ = lapack.dpotrs(lower, right, lower=1)
        pivots = np.diagonal(lower)
        if (pivots.max() / pivots.min()) ** 2 < REFINED_FROM:
            return np.ascontiguousarray(found)
        rest = self._rest(half, right, found)
        size = float(np.linalg.norm(rest))
        for _ in range(REFINEMENTS):
            step, _ = lapack.dpotrs(lower, rest, lower=1)
            better = found + step
            rest = self._rest(half, right, better)
            norm = float(np.linalg.norm(rest))
            if not norm < 0.5 * size:
                break
            found, size = better, norm
        return np.ascontiguousarray(found)

    # --- state --------------------------------------------------------------------------------------------------

    def digest(self) -> str:
        """sha256 of the sums and counts: of all that predictions follow from."""
        return digest_of(self.gram, self.cross, self.counts)

    def state(self) -> dict[str, Any]:
        return {"gram": self.gram, "cross": self.cross, "counts": self.counts, "n": self.n, "largest": self.largest}

    def load(self, state: dict[str, Any]) -> None:
        self.gram, self.cross = np.array(state["gram"], order="C"), np.array(state["cross"], order="C")
        self.counts = np.array(state["counts"])
        self.n, self.largest = int(state["n"]), int(state["largest"])
        self.pivot = float("nan")
        self.touched()


def digest_of(*arrays: Array) -> str:
    """sha256 (hex) of dtypes, shapes and bytes."""
    sha = hashlib.sha256()
    for array in arrays:
        plain = np.ascontiguousarray(array)
        sha.update(f"{plain.dtype.str} {plain.shape};".encode())
        sha.update(plain.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


class Record:
    """What one group of rows (a client, a task) added to the sums, so that it can be forgotten without its rows.

    A triangular factor T with T^T T = X^T X, at most d rows of d numbers, the group's part of B and its counts. It is
    enough to forget the group and it is derived from its rows: personal data, to be erased with the request.
    """

    def __init__(self, d: int) -> None:
        self.rows: Array = np.zeros((0, d))
        self.cross: Array = np.zeros((d, 0))
        self.counts: Array = np.zeros(0, np.int64)

    def add(self, x: Array, y: Array) -> None:
        """x: float64[m, d], y: float64[m, C]."""
        check_rows(x, y, self.rows.shape[1])
        self.rows = np.asarray(np.linalg.qr(np.concatenate([self.rows, x]), mode="r"))
        more = max(0, y.shape[1] - len(self.counts))
        self.cross = np.pad(self.cross, ((0, 0), (0, more)))
        self.counts = np.pad(self.counts, (0, more))
        self.cross[:, : y.shape[1]] += x.T @ y
        self.counts[: y.shape[1]] += np.count_nonzero(y, axis=0)

    def remove(self, x: Array, y: Array) -> None:
        """Take single rows out of the record again; T is then the square root of what is left of T^T T."""
        gram = self.rows.T @ self.rows - x.T @ x
        values, vectors = np.linalg.eigh(gram)
        there = values > values[-1] * len(gram) * 2.3e-16
        self.rows = np.sqrt(values[there])[:, None] * vectors[:, there].T
        self.cross[:, : y.shape[1]] -= x.T @ y
        self.counts[: y.shape[1]] -= np.count_nonzero(y, axis=0)

    def state(self) -> dict[str, Any]:
        return {"rows": self.rows, "cross": self.cross, "counts": self.counts}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Record:
        made = cls(state["rows"].shape[1])
        made.rows, made.cross = np.array(state["rows"]), np.array(state["cross"])
        made.counts = np.array(state["counts"])
        return made
