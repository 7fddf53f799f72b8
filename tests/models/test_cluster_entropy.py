"""Cluster entropy against the hand examples and invariants of its method note, and against autograd."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from driftway.models.cluster_entropy import ClusterEntropy, full_entropy, semantic_entropy, uniform_divergence
from torch import Tensor

F64 = torch.float64


def value_and_gradient(objective: Any, z: Tensor) -> tuple[float, Tensor]:
    z = z.clone().requires_grad_()
    value = objective(z)
    value.backward()
    assert z.grad is not None
    return float(value.detach()), z.grad


def by_autograd(
    z: Tensor, shares: Tensor, temperature: float = 1.0, within: float = 0.0, sizes: Tensor | None = None
) -> Tensor:
    """The mean over rows of H_c + within (H_full - H_c), written plainly."""
    p = torch.softmax(z / temperature, -1)
    if sizes is not None:
        joint = p[..., None] * shares / sizes
        joint = joint / joint.sum((-1, -2), keepdim=True)
    else:
        joint = p[..., None] * shares
    q, p = joint.sum(-2), joint.sum(-1)
    cluster = -torch.special.xlogy(q, q).sum(-1)
    full = -torch.special.xlogy(p, p).sum(-1)
    return (cluster + within * (full - cluster)).mean()


def close(found: Tensor, expected: list[float], tolerance: float = 6e-8) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), atol=tolerance, rtol=0)


Z = torch.tensor([4.0, 2, 1, 1], dtype=F64).log()
PAIRS = ClusterEntropy(torch.tensor([0, 0, 1, 1]))


def test_first_hand_example() -> None:
    value, slope = value_and_gradient(PAIRS, Z)
    assert value == pytest.approx(0.5623351, abs=6e-8)
    close(slope, [-0.1373265, -0.0686633, 0.1029949, 0.1029949])
    close(PAIRS.masses(Z), [0.75, 0.25])
    full, pushed = value_and_gradient(full_entropy, Z)
    assert full == pytest.approx(1.75 * math.log(2), abs=1e-12)
    close(pushed, [-0.2599302, 0.0433217, 0.1083042, 0.1083042])
    assert value + 0.75 * 0.6365142 + 0.25 * 0.6931472 == pytest.approx(full, abs=1e-7)
    for eta, expected in ((0.5, 0.5394586), (1, 0.5157928), (2, 0.4670969)):
        assert float(PAIRS(Z - eta * slope)) == pytest.approx(expected, abs=6e-8)


def test_temperature_of_two() -> None:
    objective = ClusterEntropy(torch.tensor([0, 0, 1, 1]), temperature=2.0)
    value, slope = value_and_gradient(objective, Z)
    close(objective.masses(Z), [0.6306019, 0.3693981])
    assert value == pytest.approx(0.6586345, abs=6e-8)
    close(slope, [-0.0364880, -0.0258009, 0.0311445, 0.0311445])


def test_decision_moves_to_the_best_supported_cluster() -> None:
    z = torch.tensor([0.4, 0.2, 0.2, 0.2], dtype=F64).log()
    value, slope = value_and_gradient(ClusterEntropy(torch.tensor([0, 1, 1, 1])), z)
    assert value == pytest.approx(0.6730117, abs=6e-8)
    close(slope, [0.0973116, *[-0.0324372] * 3])
    close(value_and_gradient(full_entropy, z)[1], [-0.1663553, *[0.0554518] * 3])
    close(torch.softmax(z - 8 * slope, -1), [0.1910, *[0.2697] * 3], 6e-5)
    close(torch.softmax(z - 5 * slope, -1)[:2], [0.2584, 0.2472], 6e-5)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("within", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_closed_form_is_autograd(temperature: float, within: float, balance: bool, soft: bool) -> None:
    torch.manual_seed(1)
    z = 3 * torch.randn(5, 40, dtype=F64)
    ids = torch.randint(0, 6, (40,))
    shares = torch.softmax(2 * torch.randn(40, 6, dtype=F64), -1) if soft else torch.eye(6, dtype=F64)[ids]
    given: dict[str, Any] = {"assign": shares} if soft else {"cluster_ids": ids}
    objective = ClusterEntropy(**given, temperature=temperature, within=within, balance=balance)
    value, slope = value_and_gradient(objective, z)
    sizes = shares.sum(0) if balance else None
    expected, plain = value_and_gradient(lambda z: by_autograd(z, shares, temperature, within, sizes), z)
    assert value == pytest.approx(expected, abs=1e-10)
    torch.testing.assert_close(slope, plain, atol=1e-10, rtol=0)
    assert float(slope.sum(-1).abs().max()) < 1e-12


def test_invariants() -> None:
    torch.manual_seed(2)
    z, ids = 2 * torch.randn(7, 30, dtype=F64), torch.randint(0, 5, (30,))
    each = ClusterEntropy(ids, reduction="none")
    values = each(z)
    torch.testing.assert_close(each(z + 100), values)
    torch.testing.assert_close(ClusterEntropy(4 - ids, reduction="none")(z), values)
    assert bool((values >= 0).all())
    assert bool((values <= torch.minimum(full_entropy(z), torch.tensor(math.log(5)))).all())
    assert float(ClusterEntropy(ids, reduction="sum")(z)) == pytest.approx(float(values.sum()))
    singles = ClusterEntropy(torch.arange(30))
    torch.testing.assert_close(singles(z), full_entropy(z).mean())
    torch.testing.assert_close(
        value_and_gradient(singles, z)[1], value_and_gradient(lambda z: full_entropy(z).mean(), z)[1]
    )


def test_uniform_and_one_hot_have_no_gradient() -> None:
    value, slope = value_and_gradient(PAIRS, torch.zeros(4, dtype=F64))
    assert value == pytest.approx(math.log(2))
    assert float(slope.abs().max()) < 1e-16
    value, slope = value_and_gradient(PAIRS, torch.tensor([1e4, 0, 0, 0], dtype=torch.float32))
    assert value == 0.0
    assert slope.tolist() == [0.0] * 4


@pytest.mark.parametrize("within", [0.0, 0.5])
def test_entries_ruled_out_and_empty_clusters(within: float) -> None:
    objective = ClusterEntropy(torch.tensor([0, 0, 4, 4, 2]), within=within)
    z = torch.tensor([0.3, -torch.inf, 0.1, 0.2, -torch.inf], dtype=F64)
    value, slope = value_and_gradient(objective, z)
    kept = ClusterEntropy(torch.tensor([0, 1, 1]), within=within)
    expected, plain = value_and_gradient(kept, z[[0, 2, 3]])
    assert value == pytest.approx(expected)
    torch.testing.assert_close(slope[[0, 2, 3]], plain)
    assert slope[[1, 4]].tolist() == [0.0, 0.0]
    value, slope = value_and_gradient(objective, torch.full((5,), -torch.inf))
    assert value == 0.0
    assert slope.tolist() == [0.0] * 5


def test_first_order_descent() -> None:
    torch.manual_seed(3)
    net = torch.nn.Linear(6, 12).double()
    objective, x = ClusterEntropy(torch.arange(12) % 3), torch.randn(4, 6, dtype=F64)
    before = objective(net(x))
    slopes = torch.autograd.grad(before, list(net.parameters()))
    square = sum(float((g**2).sum()) for g in slopes)
    with torch.no_grad():
        for w, g in zip(net.parameters(), slopes):
            w -= 1e-3 * g
    assert float((objective(net(x)) - before).detach()) == pytest.approx(-1e-3 * square, rel=0.05)


def test_gradient_per_row_by_vmap() -> None:
    torch.manual_seed(4)
    z = torch.randn(6, 12, dtype=F64)
    objective = ClusterEntropy(torch.arange(12) % 3)
    rows = torch.func.vmap(torch.func.grad(objective))(z)
    torch.testing.assert_close(rows / 6, value_and_gradient(objective, z)[1])


def test_second_derivative_is_refused() -> None:
    z = Z.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(PAIRS(z), z, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.func.grad(lambda z: torch.func.grad(PAIRS)(z).square().sum())(Z)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"cluster_ids": torch.zeros(4, dtype=torch.int64)}, "one cluster"),
        ({"assign": torch.ones(4, 1)}, "one cluster"),
        ({}, "either"),
        ({"cluster_ids": torch.tensor([0, -1])}, "from 0 on"),
        ({"assign": torch.ones(4, 2)}, "summing to 1"),
        ({"cluster_ids": torch.tensor([0, 1]), "temperature": 0.0}, "temperature"),
        ({"cluster_ids": torch.tensor([0, 1]), "within": 2.0}, "within"),
        ({"cluster_ids": torch.tensor([0, 1]), "reduction": "max"}, "reduction"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ClusterEntropy(**given)


def test_clusters_are_saved_with_the_model() -> None:
    assert PAIRS.state_dict()["cluster_ids"].tolist() == [0, 0, 1, 1]


def test_uniform_divergence() -> None:
    value, slope = value_and_gradient(uniform_divergence, Z)
    assert value == pytest.approx(-math.log(4) - math.log(0.5 * 0.25 * 0.125 * 0.125) / 4)
    close(slope, [0.25, 0.0, -0.125, -0.125], 1e-12)
    masked, slope = value_and_gradient(uniform_divergence, torch.cat([Z, torch.tensor([-torch.inf])]))
    assert masked == pytest.approx(value)
    assert float(slope[-1]) == 0.0


def test_semantic_entropy() -> None:
    places = torch.tensor([0.0, 0.5, 10.0, 10.5], dtype=F64)
    apart = (places[:, None] - places).abs()
    draw = torch.Generator().manual_seed(0)
    found = float(semantic_entropy(Z, apart, draws=5_000, generator=draw))
    assert found == pytest.approx(0.5623351, abs=0.02)
    z = Z.clone().requires_grad_()
    by_mass = semantic_entropy(z, apart, by="mass", generator=draw)
    assert float(by_mass.detach()) == pytest.approx(0.5623351, abs=1e-7)
    by_mass.backward()
    assert z.grad is not None
    close(z.grad, [-0.1373265, -0.0686633, 0.1029949, 0.1029949])
    assert float(semantic_entropy(Z, apart, radius=50.0, generator=draw)) == 0.0
