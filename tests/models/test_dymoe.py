"""The layer of experts: growth, freezing, fold, guidance, equality with the loop over experts, checkpointing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from driftway.models.dymoe import ExpertLinear, Guidance, Pass, Routing
from driftway.models.token_groups import best, guided, routing_score_terms, token_groups
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

SIZES: dict[str, Any] = {"experts": 4, "rank": 2, "alpha": 16.0}


def layer_of(
    banks: int = 1, *, k: int = 4, guidance: Guidance | None = None, shared: Pass | None = None, **more: Any
) -> ExpertLinear:
    """A layer 12 -> 7 whose banks, the new one too, have learnt something."""
    torch.manual_seed(0)
    base = nn.Linear(12, 7)
    made = ExpertLinear(base, routing=Routing(k), guidance=guidance, shared=shared, **(SIZES | more))
    for bank in range(banks):
        if bank:
            made.grow()
        with torch.no_grad():
            made.new_b.normal_(0, 0.2)
    return made


def tokens(n: int = 40, seed: int = 1) -> Tensor:
    return torch.randn(n, 12, generator=torch.Generator().manual_seed(seed))


def by_loop(layer: ExpertLinear, x: Tensor, rules: Guidance | None) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """(y, new weights with graph, RSR): the published form, every expert by itself on every token."""
    old, r = len(layer.old_router), layer.rank
    new = {n: getattr(layer, n).detach().clone().requires_grad_() for n in ("new_a", "new_b", "new_router")}
    a, b = torch.cat([layer.old_a, new["new_a"]]), torch.cat([layer.old_b, new["new_b"]])
    router = torch.cat([layer.old_router, new["new_router"]])
    raw = F.normalize(x, dim=1) @ F.normalize(router, dim=1).t()
    scores = raw
    if rules is not None and old:
        groups = token_groups(raw[:, :old].amax(1), raw[:, old:].amax(1), rules.tau)
        scores = guided(raw, old, groups.new, exclusive=rules.exclusive)
    chosen = best(scores, layer.routing.top_k)
    kept = scores if chosen is None else scores.masked_fill(~chosen, -torch.inf)
    w = torch.softmax(kept / layer.routing.temperature, 1)
    y = layer.base(x)
    for j in range(len(router)):
        rows = slice(j * r, (j + 1) * r)
        y = y + w[:, j : j + 1] * layer.scale * ((x @ a[rows].t()) @ b[rows])
    terms = routing_score_terms(raw, old, layer.routing.top_k, 0.1) if old else (torch.zeros(1), torch.zeros(1))
    return y, new, (terms[0] + terms[1]).mean()


RULES = {"tag": Guidance(), "tag, not exclusive": Guidance(exclusive=False), "none": Guidance(tag=False)}


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("banks", [1, 2, 4])
@pytest.mark.parametrize("k", [1, 4, 0])
def test_it_equals_the_loop_over_experts_with_all_gradients(rules: str, banks: int, k: int) -> None:
    """Grouped by bank, masked, or neither: to 1e-5, the regularisers' gradient included."""
    guidance, shared = RULES[rules], Pass(regularised=True, recording=True)
    layer = layer_of(banks, k=k, guidance=guidance, shared=shared).train()
    weight = torch.randn(40, 7, generator=torch.Generator().manual_seed(2))
    x, other = tokens().requires_grad_(), tokens().requires_grad_()
    mine = layer(x)
    (found,) = shared.found[0]
    loss = (mine * weight).sum() + (0 if found.rsr is None else 50 * found.rsr)
    theirs, new, rsr = by_loop(layer, other, guidance if guidance.tag else None)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    own = torch.autograd.grad(loss, [x, layer.new_a, layer.new_b, layer.new_router])
    peer = torch.autograd.grad((theirs * weight).sum() + (50 * rsr if banks > 1 else 0), [other, *new.values()])
    for a, b in zip(own, peer):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max() + 1e-3))
    if banks > 1:
        assert 0 < float(found.shares[0]) < 1, "the case has tokens of both groups"


def test_the_first_bank_changes_nothing_before_it_learns() -> None:
    torch.manual_seed(0)
    base = nn.Linear(12, 7)
    layer = ExpertLinear(base, **SIZES).train()
    assert torch.equal(layer(tokens()), base(tokens()))
    assert not any(p.requires_grad for p in base.parameters())


def test_task_one_is_plain_training_of_its_bank() -> None:
    """Guidance and regularisation wait for old experts: same loss, same steps as without them, to the bit."""
    runs = []
    for guidance, shared in ((Guidance(), Pass(regularised=True, recording=True)), (None, None)):
        layer = layer_of(guidance=guidance, shared=shared).train()
        learning = [p for p in layer.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(learning, lr=0.01)
        for step in range(5):
            optimiser.zero_grad()
            loss = layer(tokens(seed=step)).square().mean()
            loss.backward()
            optimiser.step()
        runs.append([loss, *learning])
        if shared is not None:
            assert all(found.rsr is None for found in shared.found[0])
    for a, b in zip(*runs):
        assert torch.equal(a, b)


def test_growing_folds_bit_for_bit_and_in_order() -> None:
    layer = layer_of(2, guidance=RULES["none"]).train()
    x = tokens()
    trained = layer(x)
    before = [t.detach().clone() for t in (layer.old_a, layer.new_a, layer.old_router, layer.new_router)]
    layer.grow()
    assert torch.equal(layer.old_a, torch.cat(before[:2]))
    assert torch.equal(layer.old_router, torch.cat(before[2:]))
    assert layer.banks == 3
    assert bool((layer.new_b == 0).all())
    assert not torch.equal(layer.new_a, before[1]), "the next bank begins elsewhere"
    old_only = by_slices(layer, x, 8)
    assert torch.equal(trained, old_only)


def by_slices(layer: ExpertLinear, x: Tensor, experts: int) -> Tensor:
    """Answers of the first so many experts alone: what evaluation after a fold, without any new bank, gives."""
    twin = ExpertLinear(layer.base, routing=layer.routing, **SIZES).eval()
    twin.resize(experts // 4 - 1)
    state = {n: getattr(layer, f"old_{n}") for n in ("a", "b", "router")}
    with torch.no_grad():
        for name, values in state.items():
            edge = (experts - 4) * (1 if name == "router" else 2)
            getattr(twin, f"old_{name}").copy_(values[:edge])
            getattr(twin, f"new_{name}").copy_(values[edge : edge + 4 * (1 if name == "router" else 2)])
        twin._norm()
        return twin(x)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_asked_it_uses_all_experts_with_and_without_a_graph(mode: Any) -> None:
    layer = layer_of(3, guidance=RULES["none"])
    wanted = layer.train()(tokens()).detach()
    with mode():
        assert torch.equal(layer.eval()(tokens()), wanted)
    fused = torch.optim.AdamW([layer.new_a, layer.new_b], lr=0.1, fused=True)
    layer.train()(tokens()).sum().backward()
    fused.step()
    layer.eval()
    with mode():
        torch.testing.assert_close(layer(tokens()), by_loop(layer, tokens(), None)[0], rtol=1e-5, atol=1e-4)


def test_answers_ignore_what_holds_in_training_only() -> None:
    plain, loud = layer_of(3), layer_of(3, guidance=Guidance(tau=0.9), shared=Pass(regularised=True, recording=True))
    with torch.inference_mode():
        assert torch.equal(plain.eval()(tokens()), loud.eval()(tokens()))
    assert not loud.shared.found


def test_at_the_first_step_old_tokens_answer_as_before_and_new_ones_as_the_base() -> None:
    layer = layer_of(2, guidance=Guidance()).eval()
    x = tokens()
    with torch.no_grad():
        before = layer(x)
        layer.grow()
        after = layer.train()(x)
    scores = layer.scores(x)
    new = token_groups(scores[:, :8].amax(1), scores[:, 8:].amax(1), 0.2).new
    assert 0 < int(new.sum()) < len(x)
    torch.testing.assert_close(after[~new], before[~new], rtol=1e-5, atol=1e-5)
    assert torch.equal(after[new], layer.base(x)[new])


def test_no_new_token_no_gradient_for_the_new_bank() -> None:
    layer = layer_of(3, guidance=Guidance(tau=2.5)).train()
    layer(tokens()).sum().backward()
    for weight in (layer.new_a, layer.new_b, layer.new_router):
        assert weight.grad is not None
        assert bool((weight.grad == 0).all())


@pytest.mark.parametrize("rules", RULES)
def test_old_banks_and_base_want_no_gradient(rules: str) -> None:
    layer = layer_of(3, guidance=RULES[rules]).train()
    assert {n for n, _ in layer.named_parameters()} == {
        "base.weight", "base.bias", "new_a", "new_b", "new_router"
    }  # fmt: skip
    kept = {n: t.clone() for n, t in layer.named_buffers()}
    x = tokens().requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.abs().sum(1).gt(0).all()), "the way to the input goes through old experts too"
    assert layer.base.weight.grad is None
    assert all(torch.equal(t, kept[n]) for n, t in layer.named_buffers())


@pytest.mark.parametrize("rules", RULES)
def test_padding_changes_no_term_and_no_gradient(rules: str) -> None:
    """Two rows of 20 tokens, with and without 5 places of padding after them."""

    class Context:
        again = False

        def valid(self, batch: int, length: int) -> Tensor | None:
            return None if length == 20 else (torch.arange(length) < 20).expand(batch, length)

    grads, seen = [], []
    for padded in (False, True):
        shared = Pass(regularised=True, balanced=True, watched=True, recording=True, context=Context())
        layer = layer_of(2, guidance=RULES[rules], shared=shared).train()
        x = tokens().view(2, 20, 12)
        x = torch.cat([x, torch.ones(2, 5, 12)], 1) if padded else x
        y = layer(x)[:, :20]
        (found,) = shared.found[0]
        assert found.rsr is not None
        assert found.balance is not None
        assert found.mass is not None
        loss = y.square().mean() + found.rsr + found.balance
        grads.append([loss, *torch.autograd.grad(loss, [layer.new_a, layer.new_b, layer.new_router])])
        seen.append([found.shares, found.mass])
    for a, b in zip(*(g + s for g, s in zip(grads, seen))):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rules", RULES)
def test_checkpointing_gives_the_same_gradient_and_counts_once(rules: str) -> None:
    grads = []
    for kept in (True, False):
        shared = Pass(regularised=True, recording=True, step=7)
        layers = [layer_of(2, guidance=RULES[rules], shared=shared, number=i, dropout=0.3).train() for i in range(2)]
        widen = torch.ones(7, 12) / 7

        def block(x: Tensor, layers: list[ExpertLinear] = layers, widen: Tensor = widen) -> Tensor:
            return layers[1](layers[0](x).relu() @ widen)

        x = tokens().requires_grad_()
        y = block(x) if kept else checkpoint(block, x, use_reentrant=False)
        terms = [found.rsr for each in shared.found.values() for found in each]
        shared.recording = False
        assert len(terms) == 2
        (y.square().mean() + 10 * torch.stack(terms).sum()).backward()
        assert [len(each) for each in shared.found.values()] == [1, 1]
        grads.append([x.grad, *(p.grad for layer in layers for p in layer.parameters() if p.requires_grad)])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_shares_and_mass_add_up() -> None:
    for rules in RULES.values():
        shared = Pass(watched=True, recording=True)
        layer = layer_of(3, guidance=rules, shared=shared).train()
        layer(tokens())
        (found,) = shared.found[0]
        assert found.mass is not None
        assert found.mass.shape == (3,)
        assert found.mass.sum().item() == pytest.approx(1, abs=1e-5)
        assert found.shares.sum().item() == pytest.approx(1, abs=1e-5)
        if rules == Guidance():
            assert found.mass[2].item() == pytest.approx(found.shares[0].item(), abs=1e-5)


def test_dropout_is_drawn_from_the_update_and_spares_the_router() -> None:
    shared = Pass(step=3)
    layer = layer_of(2, dropout=0.5, shared=shared, guidance=RULES["none"]).train()
    state = torch.get_rng_state()
    first, again = layer(tokens()), layer(tokens())
    shared.step = 4
    assert torch.equal(first, again)
    assert not torch.equal(first, layer(tokens()))
    assert torch.equal(state, torch.get_rng_state())


def test_half_precision_keeps_scores_in_single_and_masked_gradients_alike() -> None:
    layer = layer_of(3, guidance=Guidance()).train()
    half = layer_of(3, guidance=Guidance()).bfloat16().train()
    x = tokens().bfloat16()
    assert half.scores(x).dtype == torch.float32
    assert half(x).dtype == torch.bfloat16
    torch.testing.assert_close(half(x).float(), layer(x.float()), rtol=0.05, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x.float())
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.new_a.grad is not None
    assert layer.new_a.grad.dtype == torch.float32


def test_a_linear_router_is_dense_and_plain() -> None:
    layer = layer_of(1)
    layer.routing = replace(layer.routing, top_k=0, temperature=1.0, kind="linear")
    x = tokens()
    w = torch.softmax(x @ layer.new_router.t(), 1)
    wanted = layer.base(x) + layer.scale * ((x @ layer.new_a.t()) * w.repeat_interleave(2, 1)) @ layer.new_b
    torch.testing.assert_close(layer.train()(x), wanted)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), wanted)


def test_one_bank_of_k_experts_is_a_dense_cosine_mixture() -> None:
    few, all_of_them = layer_of(1, k=4), layer_of(1, k=0)
    assert torch.equal(few.train()(tokens()), all_of_them.train()(tokens()))
