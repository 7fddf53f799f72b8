"""The router beside torch in float64: logits, gradient with and without dropout, Adam; and the note's hand example."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from driftway.models.router import (
    FILLED,
    ROWS,
    STEPS,
    Router,
    adam_step,
    collect,
    gradient,
    layout,
    loss,
    new_router,
    route,
    with_outputs,
)
from numpy.testing import assert_allclose, assert_array_equal

NONE = np.empty(0, np.float32)


def made(inputs: int = 7, hidden: int = 16, outputs: int = 5, batch: int = 8, seed: int = 0) -> Router:
    return new_router(inputs, (hidden, hidden // 2), outputs, batch, np.random.default_rng(seed))


def with_batch(router: Router, seed: int = 1) -> Router:
    """The router with a full mini-batch of random rows, masks and weights."""
    rng = np.random.default_rng(seed)
    router.x[:] = rng.normal(size=router.x.shape)
    router.x[:, 0] = 0  # zeros are skipped when a single row is pushed through
    router.mask[:] = rng.random(router.mask.shape) < 0.4
    router.weight[:] = rng.uniform(0.2, 5, router.weight.shape)
    return router


def torch_logits(router: Router, theta: Any, x: Any, keep: Any) -> Any:
    """The same network on torch tensors; theta a flat vector."""
    at, h = 0, x
    for k, (n, m) in enumerate(layout(router.size)):
        h = h @ theta[at : at + n * m].reshape(n, m) + theta[at + n * m : at + n * m + m]
        at += n * m + m
        if k < 2:
            h = torch.relu(h)
        if k == 0 and len(keep):
            h = h * torch.tensor(keep, dtype=h.dtype)
    return h


def torch_loss(router: Router, theta: Any, keep: Any) -> Any:
    x, mask, weight = (torch.tensor(a, dtype=torch.float64) for a in (router.x, router.mask, router.weight))
    z = torch_logits(router, theta, x, keep)
    return torch.nn.functional.binary_cross_entropy_with_logits(z, mask, weight)


def dropped(units: int) -> np.ndarray:
    return np.where(np.random.default_rng(3).random(units) < 0.2, 0, 1.25).astype(np.float32)


def logits(router: Router, x: Any, keep: Any = NONE) -> np.ndarray:
    _, h, k, e = router.size
    z = np.empty(e, np.float32)
    route(router, keep, x.astype(np.float32), np.empty(h, np.float32), np.empty(k, np.float32), z)
    return z


@pytest.mark.parametrize("keep", [NONE, dropped(16)], ids=["plain", "dropout"])
def test_logits_are_torchs(keep: np.ndarray) -> None:
    router = with_batch(made())
    theta = torch.tensor(router.theta, dtype=torch.float64)
    expected = torch_logits(router, theta, torch.tensor(router.x, dtype=torch.float64), keep).numpy()
    assert_allclose([logits(router, row, keep) for row in router.x], expected, atol=1e-5)


@pytest.mark.parametrize("keep", [NONE, dropped(16)], ids=["plain", "dropout"])
@pytest.mark.parametrize("batch", [1, 8, 70])
def test_gradient_is_torchs(keep: np.ndarray, batch: int) -> None:
    router = with_batch(made(batch=batch))
    theta = torch.tensor(router.theta, dtype=torch.float64, requires_grad=True)
    torch_loss(router, theta, keep).backward()
    assert_allclose(gradient(router, keep), theta.grad.numpy(), atol=1e-6)  # type: ignore[union-attr]


def test_gradient_in_wide_layers_is_torchs() -> None:
    router = with_batch(made(inputs=300, hidden=256, outputs=12, batch=40))
    theta = torch.tensor(router.theta, dtype=torch.float64, requires_grad=True)
    torch_loss(router, theta, NONE).backward()
    assert_allclose(gradient(router, NONE), theta.grad.numpy(), atol=1e-6)  # type: ignore[union-attr]


def test_adam_is_torchs() -> None:
    router = with_batch(made())
    theta = torch.tensor(router.theta, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([theta], lr=2e-3)
    for _ in range(25):
        adam.zero_grad()
        torch_loss(router, theta, NONE).backward()
        adam.step()
        adam_step(router, gradient(router, NONE), 2e-3)
    assert_allclose(router.theta, theta.detach().numpy(), atol=2e-5)
    assert router.counter[STEPS] == 25


def test_loss_and_its_gradient_by_hand() -> None:
    """Z = [[0, 0]], M = [[1, 0]]: L = ln 2 and dL/dZ = [[-1/4, 1/4]], which is also the gradient of the last bias."""
    z, mask = np.zeros((1, 2), np.float32), np.array([[1, 0]], np.float32)
    assert_allclose(loss(z, mask), math.log(2))
    router = made(outputs=2, batch=1)
    router.theta[:] = 0
    router.mask[:] = mask
    assert_allclose(gradient(router, NONE)[-2:], [-0.25, 0.25])
    assert_allclose(loss(np.array([[200, -200]], np.float32), mask), 0, atol=1e-12)


def test_parameters_move_only_when_the_mini_batch_is_full() -> None:
    router, rng = made(batch=8), np.random.default_rng(0)
    weight = np.ones(5, np.float32)
    for t in range(1, 41):
        before = router.theta.copy()
        x, mask = rng.normal(size=7).astype(np.float32), (rng.random(5) < 0.5).astype(np.float32)
        trained = collect(router, NONE, x, mask, weight, 2e-3, 3)
        assert trained == (t % 8 == 0) == (not np.array_equal(before, router.theta))
        assert (router.counter[FILLED], router.counter[ROWS], router.counter[STEPS]) == (t % 8, t, 3 * (t // 8))


def test_new_outputs_leave_the_old_ones_as_they_were() -> None:
    router = with_batch(made())
    adam_step(router, gradient(router, NONE), 2e-3)
    wide = with_outputs(router, 8, np.random.default_rng(9))
    for row in router.x:
        assert_array_equal(logits(wide, row)[:5], logits(router, row))
    assert len(wide.theta) == sum(n * m + m for n, m in layout(wide.size))
    last = wide.theta[-8 * 8 - 8 :]
    assert (np.abs(last[:-8].reshape(8, 8)[:, 5:]) <= math.sqrt(6 / 16)).all()
    assert not last[-3:].any()
    for moment in (wide.moment1, wide.moment2):
        assert not moment[-8 * 8 - 8 : -8].reshape(8, 8)[:, 5:].any()
        assert moment[-8:-3].any()
    collect(wide, NONE, np.ones(7, np.float32), np.ones(8, np.float32), np.ones(8, np.float32), 2e-3, 1)


def test_weights_start_xavier_uniform_and_biases_zero() -> None:
    router = made(inputs=50, hidden=64, outputs=12)
    at = 0
    for n, m in layout(router.size):
        weights, bound = router.theta[at : at + n * m], math.sqrt(6 / (n + m))
        assert np.abs(weights).max() <= np.float32(bound)
        assert_allclose(weights.std(), bound / math.sqrt(3), rtol=0.1)
        assert not router.theta[at + n * m : at + n * m + m].any()
        at += n * m + m
    assert at == len(router.theta)
