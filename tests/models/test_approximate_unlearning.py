"""The rivals of exact forgetting: each does what its name says, from its generator alone."""

from __future__ import annotations

import copy

import pytest
import torch
from driftway.models.approximate_unlearning import METHODS, Rows, Steps, train
from torch import nn
from torch.nn import functional as F

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(120, 6, generator=GENERATOR)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0.8).long()
RETAINED, FORGOTTEN = Rows(X[:100], Y[:100]), Rows(X[100:], Y[100:])


@pytest.fixture(scope="module")
def taught() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
    train(net, Rows(X, Y), Steps(epochs=60, rate=0.05), torch.Generator().manual_seed(1))
    return net


def loss(net: nn.Module, rows: Rows) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(net(rows.x), rows.y))


def after(net: nn.Module, name: str, steps: Steps | None = None) -> nn.Module:
    made = copy.deepcopy(net)
    METHODS[name](made, RETAINED, FORGOTTEN, steps or Steps(climb=0.05), torch.Generator().manual_seed(2))
    return made


@pytest.mark.parametrize("name", ["neg-grad", "neg-grad+", "scrub", "salun"])
def test_the_forgotten_rows_get_worse(taught: nn.Module, name: str) -> None:
    steps = Steps(epochs=10, climb=0.3) if name == "scrub" else Steps(climb=0.05, alpha=0.6)
    assert loss(after(taught, name, steps), FORGOTTEN) > loss(taught, FORGOTTEN) + 0.01


@pytest.mark.parametrize("name", ["finetune", "scrub"])
def test_the_retained_rows_stay_good(taught: nn.Module, name: str) -> None:
    assert loss(after(taught, name, Steps()), RETAINED) < loss(taught, RETAINED) + 0.05


def test_negative_gradient_alone_ruins_the_rest(taught: nn.Module) -> None:
    steps = Steps(epochs=20, climb=0.1)
    assert loss(after(taught, "neg-grad", steps), RETAINED) > 3 * loss(after(taught, "finetune", steps), RETAINED)


def test_salun_moves_only_its_share_of_the_weights(taught: nn.Module) -> None:
    made = after(taught, "salun", Steps(share=0.25))
    pairs = list(zip(taught.parameters(), made.parameters()))
    moved = sum(int((a != b).sum()) for a, b in pairs)
    assert 0 < moved <= 0.26 * sum(a.numel() for a, _ in pairs) + 1


@pytest.mark.parametrize("name", METHODS)
def test_the_generator_decides_everything(taught: nn.Module, name: str) -> None:
    one, other = after(taught, name), after(taught, name)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))
