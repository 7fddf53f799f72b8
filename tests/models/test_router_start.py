"""Router rows at what the first tokens have that old rows do not."""

from __future__ import annotations

import pytest
import torch
from driftway.models.dymoe import ExpertLinear, Guidance, Pass, Routing
from driftway.models.language import Context
from driftway.models.router_start import LONG, router_rows
from driftway.models.token_groups import cosine_scores, unit
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def test_two_heaps_of_tokens_get_a_row_each() -> None:
    heaps = torch.tensor([[3.0, 0.1, 0.0], [2.0, -0.1, 0.0], [0.0, 0.1, 5.0], [0.0, -0.1, 4.0]])
    rows = router_rows(heaps, torch.empty(0, 3), 2)
    assert torch.linalg.vector_norm(rows, dim=1).tolist() == pytest.approx([LONG, LONG])
    assert sorted(unit(rows).round(decimals=1).tolist()) == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]


@pytest.mark.parametrize(("degrees", "new"), [(30.0, False), (60.0, True)])
def test_a_token_is_new_where_more_of_it_lies_beside_the_old_row_than_along_it(degrees: float, new: bool) -> None:
    angle = torch.deg2rad(torch.tensor([degrees]))
    token, old = torch.stack([angle.cos(), angle.sin()], 1), torch.tensor([[1.0, 0.0]])
    scores = cosine_scores(token, old, router_rows(token, old, 1))[0]
    assert scores.tolist() == pytest.approx([angle.cos().item(), angle.sin().item()], abs=1e-6)
    assert bool(scores[1] > scores[0]) is new


def test_fewer_tokens_than_rows_and_tokens_that_old_rows_cover_whole() -> None:
    tokens = torch.eye(3)[:1].repeat(2, 1)
    assert router_rows(tokens, torch.empty(0, 3), 4).allclose(torch.tensor([LONG, 0.0, 0.0]).expand(4, 3))
    covered = router_rows(tokens, torch.eye(3)[:1], 2)
    assert covered.isfinite().all()
    assert covered.any(1).all()


def test_a_layer_places_the_rows_of_each_bank_once_at_its_first_training_pass() -> None:
    layer = ExpertLinear(nn.Linear(6, 5), experts=2, rank=2, routing=Routing(2, start="tokens"), guidance=Guidance())
    x, later = (torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    drawn = layer.new_router.detach().clone()
    layer.eval()(x)
    assert torch.equal(layer.new_router, drawn), "answers place nothing"
    layer.train()(x)
    first = layer.new_router.detach().clone()
    assert torch.equal(first, router_rows(x.view(-1, 6), torch.empty(0, 6), 2))
    layer(later)
    assert torch.equal(layer.new_router, first)
    layer.grow()
    layer(later)
    assert torch.equal(layer.old_router, first), "old rows stay bit for bit"
    assert torch.equal(layer.new_router, router_rows(later.view(-1, 6), unit(first), 2))


def test_a_pass_that_is_computed_again_finds_the_rows_of_the_first_one() -> None:
    """Some of the tokens are padding; the gradient is that of a layer that keeps what is in between."""
    found: list[tuple[Tensor, ...]] = []
    for again in (False, True):
        context = Context()
        context.set(torch.arange(4) < torch.tensor([[2], [4], [3]]))
        torch.manual_seed(0)
        base, shared = nn.Linear(6, 5), Pass(context=context)
        layer = ExpertLinear(base, experts=2, rank=2, routing=Routing(2, start="tokens"), shared=shared).train()
        with torch.no_grad():
            layer.new_b.normal_()
        x = torch.randn(3, 4, 6, requires_grad=True)
        y = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
        found.append(torch.autograd.grad(y.square().sum(), [x, layer.new_a, layer.new_router]))
        assert layer.placed
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_by_default_rows_begin_at_random() -> None:
    layer = ExpertLinear(nn.Linear(6, 5), experts=2, rank=2)
    drawn = layer.new_router.detach().clone()
    layer.train()(torch.randn(4, 6))
    assert torch.equal(layer.new_router, drawn)
