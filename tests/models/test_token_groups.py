"""Scores, token groups, routing and its regularisers: every example that can be done by hand."""

from __future__ import annotations

import pytest
import torch
from driftway.models.token_groups import (
    balance,
    best,
    cosine_scores,
    guided,
    routing,
    routing_score_terms,
    token_groups,
    unit,
)
from torch import Tensor
from torch.nn import functional as F

HAND = [
    ([0.5, 0.1], [0.52, 0], "ambiguous"),
    ([0.2, 0.1], [0.6, 0.3], "new"),
    ([0.6, 0.3], [0.2, 0.1], "old"),
    ([0.375, 0], [0.5, 0], "ambiguous"),
    ([-0.3, -0.4], [-0.1, -0.2], "new"),
    ([0, -0.1], [0, -0.1], "ambiguous"),
    ([0, 0], [0, 0], "ambiguous"),
    ([-0.01, -1], [0.01, -1], "new"),
]


def scores_by_hand() -> Tensor:
    return torch.tensor([[*old, *new] for old, new, _ in HAND])


def test_kinds_of_tokens_by_hand() -> None:
    """tau = 1/4, exact in binary; the fourth lies on the edge, which is ambiguous."""
    scores = scores_by_hand()
    groups = token_groups(scores[:, :2].amax(1), scores[:, 2:].amax(1), 0.25)
    for kind in ("new", "old", "ambiguous"):
        assert getattr(groups, kind).tolist() == [wanted == kind for *_, wanted in HAND]


def test_a_token_that_is_not_a_number_is_ambiguous() -> None:
    groups = token_groups(torch.tensor([torch.nan, 0.1]), torch.tensor([0.5, torch.nan]), 0.2)
    assert groups.ambiguous.tolist() == [True, True]


@pytest.mark.parametrize("k", [1, 2, 3, 0])
def test_guidance_leaves_each_token_one_group(k: int) -> None:
    scores = torch.cat([scores_by_hand(), torch.randn(50, 4, generator=torch.Generator().manual_seed(0))])
    new = token_groups(scores[:, :2].amax(1), scores[:, 2:].amax(1), 0.25).new
    given = guided(scores, 2, new)
    there = given.isfinite()
    assert torch.equal(there[:, :2].all(1), ~new)
    assert torch.equal(there[:, 2:].all(1), new)
    assert torch.equal(there.sum(1), torch.full((58,), 2))
    w = routing(given, k, 0.01)
    torch.testing.assert_close(w.sum(1), torch.ones(58))
    assert bool((w[~there] == 0).all())
    open_to_both = guided(scores, 2, new, exclusive=False).isfinite()
    assert torch.equal(open_to_both[:, 2:].all(1), new)
    assert bool(open_to_both[:, :2].all())


def test_of_equal_scores_the_first_are_chosen() -> None:
    scores = torch.tensor([[1.0, 2.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [4.0, 3.0, 2.0, 1.0]])
    chosen = best(scores, 2)
    assert chosen is not None
    assert chosen.tolist() == [[True, True, False, False], [True, True, False, False], [True, True, False, False]]
    random = torch.randint(0, 3, (200, 9), generator=torch.Generator().manual_seed(1)).float()
    first = random.sort(dim=1, descending=True, stable=True).indices[:, :4]
    chosen = best(random, 4)
    assert chosen is not None
    assert torch.equal(chosen, torch.zeros_like(random, dtype=torch.bool).scatter_(1, first, True))


def test_all_experts_are_the_dense_softmax() -> None:
    scores = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    for k in (0, -1, 5, 9):
        assert best(scores, k) is None
        assert torch.equal(routing(scores, k, 0.3), torch.softmax(scores / 0.3, 1))


@pytest.mark.parametrize(
    ("z", "k", "new", "exc", "spe"),
    [
        ([0.5, 0.1, 0.52, 0.0], 2, 0.5498, 0.2475, 0.6882),
        ([0.2, 0.1, 0.6, 0.3], 2, 1.0, 0.0, 0.0),
        ([0.5, 0.4, 0.3, 0.0], 3, 0.0900, 0.0819, 0.8687),
    ],
)
def test_regularisers_by_hand(z: list[float], k: int, new: float, exc: float, spe: float) -> None:
    found = routing_score_terms(torch.tensor([z]), 2, k, 0.1)
    assert found[0].item() == pytest.approx(exc, abs=1e-4)
    assert found[1].item() == pytest.approx(spe, abs=1e-4)
    assert routing(torch.tensor([z]), k, 0.1)[0, 2:].sum().item() == pytest.approx(new, abs=1e-4)


def slope(z: list[float], k: int) -> Tensor:
    scores = torch.tensor([z], requires_grad=True)
    routing_score_terms(scores, 2, k, 0.1)[1].sum().backward()
    assert scores.grad is not None
    return scores.grad[0]


def test_specialisation_only_ever_raises_the_new_group() -> None:
    assert slope([0.5, 0.1, 0.52, 0.0], 2).abs().max().item() < 1e-5, "one old expert among the best: y = g_new"
    assert slope([0.5, 0.4, 0.3, 0.0], 3)[2].item() < -0.1, "descending it raises the new score"
    many = torch.randn(300, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    w = torch.softmax(many / 0.1, 1)
    share, y = w[:, 4:].sum(1), (1 - w[:, :4].amax(1)).detach()
    assert bool((y >= share - 1e-6).all())


def test_regularisers_where_nothing_of_a_group_is_chosen() -> None:
    for z in ([[9.0, 8.0, -9.0, -8.0]], [[-9.0, -8.0, 9.0, 8.0]]):
        scores = torch.tensor(z, requires_grad=True)
        terms = routing_score_terms(scores, 2, 2, 0.1)
        (terms[0] + terms[1]).sum().backward()
        assert scores.grad is not None
        assert bool(scores.grad.isfinite().all())


def test_cosines_are_those_of_the_library_with_their_gradients() -> None:
    draw = torch.Generator().manual_seed(0)
    x, old, new = (torch.randn(n, 7, generator=draw) for n in (5, 3, 4))
    weight = torch.randn(5, 7, generator=draw)
    grads = []
    for ours in (True, False):
        a, b = x.clone().requires_grad_(), new.clone().requires_grad_()
        rows = torch.cat([old, b])
        scores = cosine_scores(a, unit(old), b) if ours else F.normalize(a, dim=1) @ F.normalize(rows, dim=1).t()
        grads.append([scores, *torch.autograd.grad((scores * weight).sum(), [a, b])])
    for mine, theirs in zip(*grads):
        torch.testing.assert_close(mine, theirs)
    assert torch.equal(cosine_scores(x, unit(torch.cat([old, new])), None), grads[0][0])


def test_cosines_do_not_know_lengths_and_are_single_precision() -> None:
    draw = torch.Generator().manual_seed(0)
    x, old, new = (torch.randn(n, 7, generator=draw) for n in (5, 3, 4))
    for factor in (0.25, 1024.0):
        assert torch.equal(cosine_scores(x * factor, unit(old), new), cosine_scores(x, unit(old), new))
        torch.testing.assert_close(cosine_scores(x * 3, unit(old), new), cosine_scores(x, unit(old), new))
    assert cosine_scores(x.bfloat16(), unit(old), new.bfloat16()).dtype == torch.float32
    assert unit(old.bfloat16()).dtype == torch.float32


def test_a_vector_without_direction_scores_nothing_and_gets_no_gradient() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    new = torch.zeros(2, 3, requires_grad=True)
    scores = cosine_scores(x, unit(torch.eye(3)), new)
    assert bool((scores == 0).all())
    for grad in torch.autograd.grad(scores.sum(), [x, new]):
        assert bool((grad == 0).all())


def test_balance_by_hand() -> None:
    """Two experts, three counted tokens: f = (2/3, 1/3); at a high temperature p = (1/2, 1/2), so 2 (1/3 + 1/6) = 1."""
    scores = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [9.0, 0.0]])
    counted = torch.tensor([True, True, True, False])
    assert balance(scores, 1e6, counted).item() == pytest.approx(1.0, abs=1e-4)
    assert balance(scores, 1e-3, counted).item() == pytest.approx(2 * (4 / 9 + 1 / 9), abs=1e-4)
    assert balance(scores, 1.0, torch.zeros(4, dtype=torch.bool)).item() == 0.0
