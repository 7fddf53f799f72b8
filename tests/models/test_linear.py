"""Softmax regression steps against a plain softmax and the gradient of cross-entropy by torch in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from driftway.models.compiled import compiled
from driftway.models.linear import softmax_scores, softmax_step
from numpy.testing import assert_allclose, assert_array_equal


@compiled
def scores_of(weights: Any, x: Any, n_classes: int, out: Any) -> None:
    softmax_scores(weights, x, n_classes, out)


@compiled
def stepped(weights: Any, x: Any, y: int, scores: Any, n_classes: int, rate: float, decay: float) -> None:
    softmax_step(weights, x, y, scores, n_classes, rate, decay)


def model(seed: int = 0, classes: int = 4, width: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(classes, width + 1)), rng.normal(size=width)


def test_scores_are_a_softmax() -> None:
    weights, x = model()
    out = np.empty(4)
    scores_of(weights, x, 4, out)
    expected = np.exp(weights[:, :-1] @ x + weights[:, -1])
    assert_allclose(out, expected / expected.sum())


def test_classes_not_met_get_nothing_and_large_scores_do_not_overflow() -> None:
    weights, x = model()
    out = np.full(4, 7.0)
    scores_of(weights, x, 3, out)
    assert_allclose(out.sum(), 1.0)
    assert out[3] == 0
    scores_of(weights * 1e6, x, 4, out)
    assert np.isfinite(out).all()
    assert_allclose(out.max(), 1.0)


def test_a_step_follows_the_gradient_of_cross_entropy() -> None:
    weights, x = model(1)
    scores = np.empty(4)
    scores_of(weights, x, 4, scores)
    leaf = torch.tensor(weights, requires_grad=True)
    inputs = torch.tensor(np.append(x, 1.0))
    torch.nn.functional.cross_entropy((leaf @ inputs)[None], torch.tensor([2])).backward()
    expected = weights - 0.3 * leaf.grad.numpy()  # type: ignore[union-attr]
    stepped(weights, x, 2, scores, 4, 0.3, 0.0)
    assert_allclose(weights, expected, atol=1e-12)


def test_decay_shrinks_all_but_the_bias() -> None:
    weights, x = model(2)
    before, scores = weights.copy(), np.zeros(4)
    scores[1] = 1.0  # right and sure: nothing to learn
    stepped(weights, x, 1, scores, 4, 0.5, 0.1)
    assert_allclose(weights[:, :-1], 0.95 * before[:, :-1])
    assert_array_equal(weights[:, -1], before[:, -1])
