"""Linear models learnt by one SGD step per row, several at once at different rates.

Legend: M models, C classes, D inputs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .compiled import inner

Floats = NDArray[np.float64]


@inner
def softmax_scores(weights: Floats, x: Floats, n_classes: int, out: Floats) -> None:
    """Class probabilities out[:n_classes] = softmax(W x + b) of one model weights[C, D + 1]; later entries are 0."""
    d = x.shape[0]
    best = -np.inf
    for c in range(n_classes):
        total = weights[c, d]
        for j in range(d):
            total += weights[c, j] * x[j]
        out[c] = total
        best = max(best, total)
    total = 0.0
    for c in range(n_classes):
        out[c] = np.exp(out[c] - best)
        total += out[c]
    for c in range(n_classes):
        out[c] /= total
    out[n_classes:] = 0.0


@inner
def softmax_step(weights: Floats, x: Floats, y: int, scores: Floats, n_classes: int, rate: float, decay: float) -> None:
    """One SGD step on cross-entropy: W_c <- (1 - rate decay) W_c - rate (p_c - [c = y]) x, p = scores[C] given."""
    d = x.shape[0]
    keep = 1.0 - rate * decay
    for c in range(n_classes):
        step = rate * (scores[c] - (1.0 if c == y else 0.0))
        if keep != 1.0:
            weights[c, :d] *= keep
        for j in range(d):
            weights[c, j] -= step * x[j]
        weights[c, d] -= step
