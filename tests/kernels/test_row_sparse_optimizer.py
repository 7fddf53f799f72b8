"""Updates of single rows: against PyTorch's optimisers, both paths against one another, and what may not move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from driftway.models.kernels.row_sparse_optimizer import Path, path_for, row_adamw, row_sgd
from torch import Tensor

RATES: Any = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
SHAPES = [(7, 5), (1, 1), (33, 17), (9,), (16, 3, 3, 3), (4, 2, 3, 3, 3)]
PATHS: list[Path] = ["torch", "compiled"]


def bits(tensor: Tensor) -> Tensor:
    """What lies in memory, so that -0 is not 0."""
    return tensor.detach().view(torch.int32 if tensor.dtype is torch.float32 else torch.int64)


def adam_state(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """weight, m, v, t."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return [weight, torch.zeros_like(weight), torch.zeros_like(weight), torch.zeros(shape[0])]


@pytest.mark.parametrize("path", PATHS)
def test_all_rows_are_pytorchs_adamw(path: Path) -> None:
    state, generator = adam_state((6, 10), 0), torch.Generator().manual_seed(1)
    peer = torch.nn.Parameter(state[0].clone())
    optimiser = torch.optim.AdamW([peer], lr=0.01, weight_decay=0.1, fused=True)
    for _ in range(20):
        grad = torch.randn(6, 10, generator=generator)
        peer.grad = grad.clone()
        optimiser.step()
        row_adamw(*state, torch.arange(6), grad, **RATES, path=path)
    torch.testing.assert_close(state[0], peer.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_all_rows_are_pytorchs_sgd(path: Path, momentum: float) -> None:
    weight, generator = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    peer = torch.nn.Parameter(weight.clone())
    optimiser = torch.optim.SGD([peer], lr=0.01, momentum=momentum, weight_decay=0.1)
    velocity = torch.zeros_like(weight) if momentum else None
    for _ in range(20):
        grad = torch.randn(6, 10, generator=generator)
        peer.grad = grad.clone()
        optimiser.step()
        rates = {"lr": 0.01, "momentum": momentum, "weight_decay": 0.1}
        row_sgd(weight, velocity, torch.arange(6), grad, **rates, path=path)
    torch.testing.assert_close(weight, peer.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["compact", "dense", "factors"])
def test_paths_agree(shape: tuple[int, ...], dtype: torch.dtype, form: str) -> None:
    """float32 to 1e-6, float64 to 1e-14 after ten updates of rows drawn anew, in all three forms of a gradient."""
    generator = torch.Generator().manual_seed(2)
    k, tolerance = max(1, shape[0] // 3), 1e-6 if dtype is torch.float32 else 1e-14
    states = [adam_state(shape, 0, dtype) for _ in PATHS]
    speeds = [[s[0].clone(), torch.zeros_like(s[0])] for s in states]
    for n in range(10):
        index = torch.randperm(shape[0], generator=generator)[:k].sort().values
        inputs = None
        if form == "factors":
            grad = torch.randn(n + 1, k, generator=generator, dtype=dtype)
            inputs = torch.randn(n + 1, *shape[1:], generator=generator, dtype=dtype)
        else:
            grad = torch.randn(k if form == "compact" else shape[0], *shape[1:], generator=generator, dtype=dtype)
        for state, speed, path in zip(states, speeds, PATHS):
            row_adamw(*state, index, grad, **RATES, inputs=inputs, path=path)
            row_sgd(*speed, index, grad, lr=0.01, momentum=0.9, weight_decay=0.1, inputs=inputs, path=path)
    for a, b in zip(states[0] + speeds[0], states[1] + speeds[1]):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_other_rows_keep_every_bit(path: Path, momentum: float) -> None:
    generator = torch.Generator().manual_seed(3)
    state = adam_state((8, 5), 0)
    state[1], state[2] = torch.randn(8, 5, generator=generator), torch.rand(8, 5, generator=generator)
    speed = [state[0].clone(), torch.randn(8, 5, generator=generator)]
    before = [bits(t).clone() for t in state + speed]
    index = torch.tensor([1, 2, 6])
    rest = torch.tensor([0, 3, 4, 5, 7])
    for _ in range(5):
        grad = torch.randn(3, 5, generator=generator)
        row_adamw(*state, index, grad, **RATES, path=path)
        velocity = speed[1] if momentum else None
        row_sgd(speed[0], velocity, index, grad, lr=0.01, momentum=momentum, weight_decay=0.1, path=path)
    for old, new in zip(before, state + speed):
        assert torch.equal(old[rest], bits(new)[rest])
    assert not torch.equal(before[0][index], bits(state[0])[index])
    assert state[3].tolist() == [0, 5, 5, 0, 0, 0, 5, 0]


@pytest.mark.parametrize("path", PATHS)
def test_a_row_that_wakes_late_takes_a_first_step(path: Path) -> None:
    """A count of its own: the first step of every row is lr times the sign of its gradient, however late."""
    state = adam_state((2, 3), 0)
    rates = RATES | {"weight_decay": 0.0}
    for _ in range(50):
        row_adamw(*state, torch.tensor([0]), torch.ones(1, 3), **rates, path=path)
    before = state[0][1].clone()
    row_adamw(*state, torch.tensor([1]), torch.tensor([[1.0, -2.0, 0.5]]), **rates, path=path)
    torch.testing.assert_close(state[0][1] - before, torch.tensor([-0.01, 0.01, -0.01]), rtol=1e-4, atol=1e-7)


def test_channels_last_and_foreign_layouts() -> None:
    plain, last = adam_state((8, 4, 3, 3), 0), adam_state((8, 4, 3, 3), 0)
    foreign = adam_state((8, 4, 3, 3), 0)
    last[:3] = [t.contiguous(memory_format=torch.channels_last) for t in last[:3]]
    foreign[1] = foreign[1].contiguous(memory_format=torch.channels_last)
    index, grad = torch.tensor([0, 5]), torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    assert path_for(None, *last[:3]) == path_for(None, *plain[:3]) == "compiled"
    assert path_for(None, *foreign[:3]) == path_for(None, plain[0].transpose(2, 3)) == "torch"
    for state in (plain, last, foreign):
        row_adamw(*state, index, grad, **RATES)
    for state in (last, foreign):
        for a, b in zip(plain, state):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_half_precision_takes_the_reference() -> None:
    weight = torch.ones(4, 3, dtype=torch.bfloat16)
    assert path_for(None, weight) == "torch"
    row_sgd(
        weight, None, torch.tensor([2]), torch.ones(1, 3, dtype=torch.bfloat16), lr=0.5, momentum=0.0, weight_decay=0.0
    )
    assert weight.sum(1).tolist() == [3.0, 3.0, 1.5, 3.0]
