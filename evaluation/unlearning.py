"""How near a model that was made to forget is to one trained anew on what remains.

What a forgotten row's accuracy should be is what it is for the model trained anew, not 0: forgotten rows can be
answered by what other rows taught. So every figure is a difference to that model, after every request.

Source: the average gap over retained, forgotten and test accuracy and membership inference as SalUn reports it (Fan et
al., ICLR 2024; recalled, not re-read).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def relative_distance(w: Floats, reference: Floats) -> float:
    """||W - W_r||_F / ||W_r||_F, and ||W||_F where W_r is zero.

    >>> relative_distance(np.array([[1.0, 2.0]]), np.array([[1.0, 0.0]]))
    2.0
    """
    size = float(np.linalg.norm(reference))
    return float(np.linalg.norm(w - reference)) / (size or 1.0)


def agreement(scores: Floats, reference: Floats) -> tuple[float, float]:
    """Share of rows with the same answer, and the largest difference of a score; both float64[n, C]."""
    if not len(scores):
        return 1.0, 0.0
    same = scores.argmax(axis=1) == reference.argmax(axis=1)
    return float(same.mean()), float(np.abs(scores - reference).max())


def membership_auc(forgotten: Floats, unseen: Floats) -> float:
    """How well the loss tells forgotten rows from rows that were never seen: P(loss of a forgotten row is smaller).

    Ties count half. 0.5: not at all. What counts is its difference to that of the model trained anew. NaN where one
    of the two is empty.

    >>> membership_auc(np.array([0.1, 0.2]), np.array([0.2, 0.9]))
    0.875
    """
    if not (len(forgotten) and len(unseen)):
        return float("nan")
    order = np.sort(unseen)
    below = np.searchsorted(order, forgotten, side="left")
    up_to = np.searchsorted(order, forgotten, side="right")
    greater = len(unseen) - (below + up_to) / 2
    return float(greater.mean() / len(unseen))


@dataclass(frozen=True, slots=True)
class Standing:
    """A model's accuracies on the rows it keeps, those it forgot and held-out ones, and its membership AUC."""

    retained: float
    forgotten: float
    test: float
    membership: float

    @classmethod
    def of(cls, retained: Floats, forgotten: Floats, test: Floats, labels: Sequence[NDArray[np.int64]]) -> Standing:
        """From class probabilities of three sets of rows (float64[n, C]) and their labels, in the same order."""
        parts = (retained, forgotten, test)
        right = [float((p.argmax(1) == y).mean()) if len(y) else float("nan") for p, y in zip(parts, labels)]
        membership = membership_auc(_losses(forgotten, labels[1]), _losses(test, labels[2]))
        return cls(right[0], right[1], right[2], membership)


def _losses(probabilities: Floats, labels: NDArray[np.int64]) -> Floats:
    chosen = probabilities[np.arange(len(labels)), labels]
    found: Floats = -np.log(np.maximum(chosen, 1e-300))
    return found


def average_gap(one: Standing, reference: Standing) -> float:
    """Mean absolute difference over the four figures; those that are NaN in either are left out.

    >>> average_gap(Standing(1, 0.5, 0.9, 0.5), Standing(1, 0.9, 0.9, 0.5))
    0.1
    """
    names = ("retained", "forgotten", "test", "membership")
    gaps = np.abs([getattr(one, n) - getattr(reference, n) for n in names])
    return float(np.nanmean(gaps))
