"""How sure a mean difference is: intervals by drawing the compared cases anew."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

DRAWS = 2000


def paired_interval(
    differences: Array, *, share: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> tuple[Array, Array]:
    """Bounds [...] within which the mean over cases lies, by percentiles of the bootstrap.

    differences: float[n, ...], of two methods on the same n cases, which are drawn with replacement (Efron, Annals of
    Statistics 7(1), 1979). NaN where there is no case.

    >>> low, high = paired_interval(np.array([0.1, 0.2, 0.1, 0.2]))
    >>> bool(0.1 <= low < 0.15 < high <= 0.2)
    True
    """
    n = len(differences)
    if not n:
        empty = np.full(differences.shape[1:], np.nan)
        return empty, empty
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=draws) / n
    means = np.tensordot(weights, np.asarray(differences, np.float64), 1)
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2], axis=0)
    return low, high
