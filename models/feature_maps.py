"""Frozen maps from the rows of a batch to features: what a closed-form head stands on.

A map never learns from rows, not even their mean: what it knew of a row could not be taken out of it again. Numbers of
a table are therefore squeezed by asinh instead of standardised, nominal columns are one-hot, and a missing value is 0.

``Plain`` and what ``backbones.py`` has give the base features z, float32 numbers in float64; z is all that is ever
learnt of a row. ``Expansion`` is x = relu(z P) with a drawn P. With ``exact`` both z and P are rounded to a grid, so
that every sum is one of integers and a row's features do not depend on its company, on threads or on the machine.

Source: the random expansion of ACIL, arXiv 2205.14922 (P drawn as a linear layer is, ReLU after it; no bias). The
squeezing of table columns, the constant column beside them and the grid are ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

DRAWN = "drawn"
"""Provenance of a map that was made from no data at all."""
GRID = 12
"""Base features are multiples of 2^-12 where sums are to be exact."""
FINER = 16
"""As are the entries of P, of 2^-16."""


class FeatureMap(Protocol):
    """Base features of rows.

    width: how many. provenance: drawn (from no data), public, disjoint, contains_user_data or unknown: what the map
    was trained on. digest: sha256 of all that the features follow from.
    """

    width: int
    provenance: str
    digest: str

    def __call__(self, x: Array) -> Array:
        """float64[B, width] of float32 numbers, for float64[B, d] rows."""
        ...


class Plain:
    """The rows themselves. fan: for each column 0 (a number) or so many places that its categories share.

    Where no column is nominal or squeezed (``squeeze=False``, images) the row is left as it is. Otherwise a column of
    ones comes first, numbers are asinh(v), categories one-hot by code modulo places, and missing values 0.

    >>> Plain([0, 3])(np.array([[0.0, 1.0], [np.nan, np.nan]])).tolist()
    [[1.0, 0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]]
    """

    provenance = DRAWN

    def __init__(self, fan: Sequence[int], *, squeeze: bool = True) -> None:
        self._sizes = np.array([max(1, n) for n in fan])
        self._nominal = np.array([n > 0 for n in fan], bool)
        self.squeeze = squeeze or bool(self._nominal.any())
        self.width = int(self._sizes.sum()) + 1 if self.squeeze else len(fan)
        self._at = 1 + np.cumsum(self._sizes) - self._sizes
        self.digest = _sha("plain", list(fan), self.squeeze)

    def __call__(self, x: Array) -> Array:
        rows = np.ascontiguousarray(x, np.float64)
        if not self.squeeze:
            return single(rows)
        found = np.zeros((len(rows), self.width))
        found[:, 0] = 1.0
        numbers = ~self._nominal
        found[:, self._at[numbers]] = np.arcsinh(np.nan_to_num(rows[:, numbers], posinf=0.0, neginf=0.0))
        for j in np.flatnonzero(self._nominal):
            there = np.flatnonzero(np.isfinite(rows[:, j]))
            found[there, self._at[j] + rows[there, j].astype(np.int64) % self._sizes[j]] = 1.0
        return single(found)


class Expansion:
    """relu(z P), float64[B, width]. width 0: z itself. drawn: uniform in +-1/sqrt(d0), or Gaussian of that deviation.

    exact: round z and P to a grid; the features are then the same for every bit wherever they are computed.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        drawn: Literal["uniform", "gaussian"] = "gaussian",
        seed: int = 0,
        exact: bool = False,
    ) -> None:
        self.width, self.exact = width or inputs, exact
        self._p: Array | None = None
        if width:
            rng = np.random.default_rng([seed, inputs, width])
            shape, edge = (inputs, width), inputs**-0.5
            p = rng.uniform(-edge, edge, shape) if drawn == "uniform" else rng.normal(0, edge, shape)
            self._p = np.rint(p * 2.0**FINER) if exact else p
        self.digest = _sha("expansion", inputs, width, drawn, seed, exact)

    def __call__(self, z: Array) -> Array:
        """z: base features, float64[B, d0]."""
        if self.exact:
            z = np.clip(np.rint(z * 2.0**GRID), -(2.0**15), 2.0**15)
        if self._p is None:
            return z * 2.0**-GRID if self.exact else z
        x = np.maximum(z @ self._p, 0.0)
        return x * 2.0 ** -(GRID + FINER) if self.exact else x


def single(z: Array) -> Array:
    """Rounded to float32, in float64: so that four bytes a number keep all of a row."""
    return z.astype(np.float32).astype(np.float64)


def _sha(*facts: Any) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()
