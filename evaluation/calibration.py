"""Calibration: whether an answer given with 80 % is right 80 times in 100.

C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017: expected
calibration error over bins of equal width (section 2) and the reliability diagram (figure 1). Fifteen bins are theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..models.compiled import compiled
from ..streams import Array, StreamSpec
from .watch import Watch, plain

BINS = 15
ROWS, CONFIDENCE, HITS = range(3)
_INT, _FLOAT = np.dtype(np.int64), np.dtype(np.float64)


@compiled
def count_confidence(y: Array, output: Array, scores: Array, bins: Array) -> None:
    """Enter rows one by one. y, output: int64[B]. scores: float64[B, C]. bins: float64[M, 3], rows, sum of
    confidences, hits. Rows without a label, and rows without a finite probability, are passed over."""
    m = bins.shape[0]
    for i in range(y.shape[0]):
        top = -1.0
        for c in range(scores.shape[1]):
            p = scores[i, c]
            if np.isfinite(p) and p > top:
                top = p
        if y[i] < 0 or top < 0.0:
            continue
        top = min(top, 1.0)
        at = min(max(int(np.ceil(top * m)) - 1, 0), m - 1)
        bins[at, 0] += 1.0
        bins[at, 1] += top
        if output[i] == y[i]:
            bins[at, 2] += 1.0


def ece(bins: Array) -> float | None:
    """Expected calibration error: ``sum_m n_m / n |acc(m) - conf(m)|``, n_m rows of bin m; None without rows.

    bins: float64[M, 3], of each bin the rows, the sum of their confidences (the top probability) and the hits.

    >>> round(ece(np.array([[2, 1.3, 1], [2, 1.8, 2]])), 3)
    0.125
    """
    n = float(bins[:, ROWS].sum())
    return float(np.abs(bins[:, HITS] - bins[:, CONFIDENCE]).sum()) / n if n else None


def confidence_gap(bins: Array) -> float | None:
    """Mean confidence minus accuracy: above 0 is overconfident, below 0 underconfident; None without rows.

    Its size is at most the ECE, and the ECE where all bins err to the same side.

    >>> round(confidence_gap(np.array([[2, 1.3, 1], [2, 1.8, 2]])), 3)
    0.025
    """
    n = float(bins[:, ROWS].sum())
    return float((bins[:, CONFIDENCE] - bins[:, HITS]).sum()) / n if n else None


class Calibration(Watch):
    """Counts every scored row in one of 15 bins by the probability of the class it was most sure of.

    Bin m holds confidences in ((m - 1) / 15, m / 15]; the first one 0 too. A hit is an answer that is the label. The
    same bits however the rows are cut into calls.

    >>> watch = Calibration(StreamSpec("example", (), classes=("no", "yes")))
    >>> sure = np.array([[0.4, 0.6], [0.3, 0.7], [0.1, 0.9], [0.1, 0.9]])
    >>> watch.update(np.array([1, 0, 1, 1]), np.array([1, 1, 1, 1]), sure, watch.baseline(4))
    >>> round(watch.summary()["ece"], 3)
    0.325
    """

    def __init__(self, spec: StreamSpec) -> None:
        super().__init__()
        if spec.target != "classification":
            raise ValueError("only probabilities of classes can be calibrated")
        self.bins = np.zeros((BINS, 3))

    def update(self, y: Array, output: Array, scores: Array | None, baseline: Array) -> None:  # noqa: ARG002
        if scores is not None and len(y):
            count_confidence(plain(y, _INT), plain(output, _INT), plain(scores, _FLOAT), self.bins)

    def summary(self) -> dict[str, Any]:
        """ece, and under ``calibration``: rows, signed gap, and of each bin its rows, mean confidence and accuracy."""
        return {"ece": ece(self.bins), "calibration": figures(self.bins) if self.bins.any() else None}

    def state(self) -> dict[str, Any]:
        return {"bins": self.bins, "stretch": self.stretch}

    def load(self, state: dict[str, Any]) -> None:
        self.bins = np.array(state["bins"], np.float64)
        self.stretch = int(state["stretch"])


def figures(bins: Array) -> dict[str, Any]:
    """What a summary tells of the bins; the mean confidence and accuracy of an empty bin are None."""
    told = [[int(n), s / n if n else None, h / n if n else None] for n, s, h in bins.tolist()]
    return {"rows": int(bins[:, ROWS].sum()), "gap": confidence_gap(bins), "bins": told}


def pooled(told: Sequence[Sequence[Sequence[Any]]]) -> Array:
    """float64[M, 3]: the bins of several summaries added up."""
    every = [[[n, n * (sure or 0.0), n * (right or 0.0)] for n, sure, right in bins] for bins in told]
    return np.array(every, np.float64).sum(axis=0)
