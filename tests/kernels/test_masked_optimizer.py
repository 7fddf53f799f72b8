"""Updates of single entries: both paths against one another and against PyTorch, and what may not move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from driftway.models.kernels.masked_optimizer import Path, masked_adamw, masked_sgd, path_for
from torch import Tensor

SHAPES = [(7, 5), (1, 1), (129,), (16, 3, 3, 3)]
PATHS: list[Path] = ["torch", "compiled"]
ADAM: Any = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}


def bits(tensor: Tensor) -> Tensor:
    """What lies in memory, so that -0 is not 0."""
    return tensor.detach().contiguous().view(torch.int32)


def drawn(shape: tuple[int, ...], count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("last", [False, True])
def test_sgd_paths_agree_and_masked_entries_keep_every_bit(shape: tuple[int, ...], momentum: float, last: bool) -> None:
    layout = torch.channels_last if last and len(shape) == 4 else torch.contiguous_format
    weight, speed, grad = (t.contiguous(memory_format=layout) for t in drawn(shape, 3))
    weight.flatten()[:3] = -0.0
    mask = drawn(shape, 1, 5)[0] > 0.3
    found = []
    for path in PATHS:
        w, u = weight.clone(), speed.clone() if momentum else None
        for _ in range(3):
            masked_sgd(w, u, mask, grad, lr=0.1, momentum=momentum, weight_decay=0.01, path=path)
        assert torch.equal(bits(w)[~mask], bits(weight)[~mask])
        assert u is None or torch.equal(bits(u)[~mask], bits(speed)[~mask])
        assert (w != weight)[mask].all()
        found.append((w, u))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_adamw_paths_agree_and_masked_entries_keep_every_bit(shape: tuple[int, ...]) -> None:
    weight, m, v, grad = drawn(shape, 4)
    v = v.abs()
    mask = drawn(shape, 1, 5)[0] > 0.3
    found = []
    for path in PATHS:
        state = [weight.clone(), m.clone(), v.clone()]
        for t in (4, 5):
            masked_adamw(*state, mask, grad, t=torch.tensor(float(t)), **ADAM, path=path)
        for now, before in zip(state, (weight, m, v), strict=True):
            assert torch.equal(bits(now)[~mask], bits(before)[~mask])
        found.append(state)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_a_full_mask_is_pytorchs_optimiser(path: Path) -> None:
    weight, grad = drawn((6, 10), 2)
    mask = torch.ones(6, 10, dtype=torch.bool)
    for peer, kind, settings in (
        (torch.nn.Parameter(weight.clone()), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
        (torch.nn.Parameter(weight.clone()), torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    ):
        mine, slots = weight.clone(), [torch.zeros(6, 10), torch.zeros(6, 10)]
        optimiser: Any = kind([peer], **settings)
        for t in range(1, 6):
            peer.grad = grad * t
            optimiser.step()
            if kind is torch.optim.SGD:
                masked_sgd(mine, slots[0], mask, grad * t, **settings, path=path)
            else:
                masked_adamw(mine, *slots, mask, grad * t, t=torch.tensor(float(t)), **ADAM, path=path)
        torch.testing.assert_close(mine, peer.detach(), rtol=1e-5, atol=1e-6)


def test_a_gradient_that_is_no_number_does_not_leak_out_of_the_mask() -> None:
    (weight,) = drawn((4, 4), 1)
    grad = torch.full((4, 4), torch.nan)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    for path in PATHS:
        now, m, v = weight.clone(), torch.zeros(4, 4), torch.zeros(4, 4)
        masked_sgd(now, None, mask, grad, lr=0.1, momentum=0.0, weight_decay=0.0, path=path)
        masked_adamw(now, m, v, mask, grad, t=torch.tensor(1.0), **ADAM, path=path)
        assert torch.equal(now, weight)


def test_the_path_is_compiled_where_memory_lies_alike() -> None:
    a, b = drawn((4, 2, 3, 3), 2)
    assert path_for(None, a, b) == "compiled"
    assert path_for(None, a, b.contiguous(memory_format=torch.channels_last)) == "torch"
    assert path_for(None, a.half()) == "torch"
    assert path_for(None, a[:, ::2]) == "torch"
