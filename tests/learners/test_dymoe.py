"""Experts as techniques: growth at boundaries, isolation, state, guidance in a stream, layers, refusals."""

from __future__ import annotations

import json
from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.learners.token_series import MOST, TokenSeries
from driftway.adapt.state import digest, join, split
from driftway.models.dymoe import ExpertLinear
from torch import Tensor

SMALL: dict[str, Any] = {"experts": 3, "expert_rank": 2, "top_k": 3}
GROWING = ("inc-moe-lora", "dymoe-tag", "dymoe")


def made(name: str, stream: dw.Stream, **settings: Any) -> Any:
    given = {"model": "mlp:24-16", "optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1, "expert_alpha": 12.0}
    small = {k: v for k, v in SMALL.items() if k != "top_k" or name != "moe-lora"}
    return dw.learner(name, stream.spec, seed=3, **(given | small | settings))


def layers(learner: Any) -> list[ExpertLinear]:
    return [m for m in learner.net.modules() if isinstance(m, ExpertLinear)]


def by_experience(stream: dw.Stream, rows: int = 10) -> list[list[Any]]:
    """The stream's events, each boundary with the batches after it."""
    parts: list[list[Any]] = [[]]
    for event in dw.rebatch(stream, rows):
        if isinstance(event, dw.Boundary):
            parts.append([])
        parts[-1].append(event)
    return parts


def saved_and_loaded(learner: Any, name: str, stream: dw.Stream, **settings: Any) -> Any:
    skeleton, arrays = split(learner.state())
    fresh = made(name, stream, **settings)
    fresh.load(join(json.loads(json.dumps(skeleton)), {k: np.array(v) for k, v in arrays.items()}))
    return fresh


@pytest.mark.parametrize("name", GROWING)
def test_old_experts_and_router_rows_keep_every_bit(small_tasks: Any, teach: Any, name: str) -> None:
    """Weight decay is on, and every experience is saved and loaded in its midst."""
    stream = small_tasks(4, 40)
    learner = made(name, stream)
    kept: list[dict[str, Tensor]] = []
    for part in by_experience(stream):
        teach(learner, part[:2])
        learner = saved_and_loaded(learner, name, stream)
        teach(learner, part[2:])
        for k, layer in enumerate(layers(learner)):
            here = {
                n: torch.cat([getattr(layer, f"old_{n}"), getattr(layer, f"new_{n}")]) for n in ("a", "b", "router")
            }
            if k < len(kept):
                for n, before in kept[k].items():
                    assert torch.equal(getattr(layer, f"old_{n}"), before.detach()), "the old part is what it was"
                kept[k] = here
            else:
                kept.append(here)
    assert all(layer.banks == 4 for layer in layers(learner))


def test_the_network_beneath_never_moves(small_tasks: Any, teach: Any) -> None:
    stream = small_tasks(3, 40)
    learner = made("dymoe", stream)
    before = {n: w.detach().clone() for n, w in learner.weights.items() if ".base." in n}
    head = learner.net.head.weight.detach().clone()
    teach(learner, dw.rebatch(stream, 10))
    assert len(before) == 4
    assert all(torch.equal(w, learner.weights[n]) for n, w in before.items())
    assert not torch.equal(head, learner.net.head.weight)
    assert set(learner.optimiser.slots) == {
        f"body.{i}.{part}" for i in (1, 3) for part in ("new_a", "new_b", "new_router")
    } | {"head.weight", "head.bias"}
    frozen = made("dymoe", stream, train_also="")
    teach(frozen, dw.rebatch(small_tasks(2, 40), 10))
    assert torch.equal(frozen.net.head.weight.detach(), head)


def test_new_banks_begin_without_moments(small_tasks: Any, teach: Any) -> None:
    stream = small_tasks(2, 40)
    learner = made("dymoe-tag", stream)
    first, second = by_experience(stream)
    teach(learner, first)
    assert learner.optimiser.slots["body.1.new_a"]["t"] == 4
    teach(learner, second[:2])
    assert learner.optimiser.slots["body.1.new_a"]["t"] == 1
    assert learner.optimiser.slots["head.weight"]["t"] == 5


def test_the_first_experience_is_alike_for_all_that_grow(small_tasks: Any, teach: Any) -> None:
    stream = small_tasks(1, 60)
    events = list(dw.rebatch(stream, 10))
    states = [teach(made(name, stream), events).state() for name in GROWING]
    assert len({digest([state["net"], state["optimiser"]]) for state in states}) == 1


def test_inc_moe_lora_is_dymoe_without_its_two_parts(small_tasks: Any, teach: Any) -> None:
    stream = small_tasks(3, 40)
    events = list(dw.rebatch(stream, 10))
    one = teach(made("inc-moe-lora", stream), events)
    other = teach(made("dymoe", stream, tag=False, rsr=0.0), events)
    assert digest(one.state()) == digest(other.state())
    assert digest(one.state()) != digest(teach(made("dymoe-tag", stream), events).state())


@pytest.mark.parametrize("stop", [0, 1, 5, 6], ids=["fresh", "first", "boundary", "second"])
def test_rows_that_begin_at_tokens_begin_there_once_also_where_a_run_was_resumed(
    small_tasks: Any, teach: Any, stop: int
) -> None:
    """stop: events of 4 batches, a boundary and 4 batches more, after which it is saved and loaded."""
    stream = small_tasks(2, 40)
    events = list(dw.rebatch(stream, 10))
    whole = teach(made("dymoe", stream, router_start="tokens"), events)
    begun = teach(made("dymoe", stream, router_start="tokens"), events[:stop])
    resumed = teach(saved_and_loaded(begun, "dymoe", stream, router_start="tokens"), events[stop:])
    assert digest(resumed.state()) == digest(whole.state())
    assert digest(whole.state()) != digest(teach(made("dymoe", stream), events).state())


def test_regularisation_waits_for_the_second_half(small_tasks: Any, teach: Any) -> None:
    """8 batches of 10: 40 rows are half of it, the ramp begins behind them; the first experience has no old experts."""
    stream = small_tasks(2, 80)
    learner = made("dymoe", stream)
    seen = []
    for event in dw.rebatch(stream, 10):
        teach(learner, [event])
        if isinstance(event, dw.Batch):
            seen.append(learner.telemetry()["rsr_terms"])
    assert seen[:12] == [0.0] * 12
    assert min(seen[12:]) > 0
    part = learner.techniques[0]
    assert part._ramp() == 1.0
    learner.seen = 60
    assert part._ramp() == pytest.approx(0.5)
    epochs = made("dymoe", small_tasks(2, 80, epochs=2))
    epochs.seen = 120
    assert epochs.techniques[0]._ramp() == pytest.approx(0.5)
    unknown = dw.learner("dymoe", dw.StreamSpec("s", stream.spec.columns, classes=("a", "b")), model="mlp:8", **SMALL)
    assert unknown.techniques[0]._ramp() == 1.0


def test_a_fixed_bank_never_grows_and_learns_all_the_time(small_tasks: Any, teach: Any) -> None:
    stream = small_tasks(3, 40)
    learner = made("moe-lora", stream)
    (first, *later) = by_experience(stream)
    teach(learner, first)
    before = {n: w.detach().clone() for n, w in learner.weights.items() if ".new_" in n}
    for part in later:
        teach(learner, part)
    assert all(layer.banks == 1 for layer in layers(learner))
    assert not any(torch.equal(w, learner.weights[n]) for n, w in before.items())
    assert "boundaries" not in learner.needs


def test_the_series_of_tokens_is_bounded_and_has_every_layer(small_tasks: Any, teach: Any) -> None:
    stream = small_tasks(3, 40)
    learner = made("dymoe", stream)
    teach(learner, dw.rebatch(stream, 10))
    found = learner.facts()["tokens"]
    assert found["layers"] == ["body.1", "body.3"]
    assert found["updates"] == list(range(12))
    assert found["experience"] == [0] * 4 + [1] * 4 + [2] * 4
    assert [len(mass) for mass in found["mass"]] == [1] * 4 + [2] * 4 + [3] * 4
    for i in range(12):
        for j in range(2):
            assert sum(found[kind][i][j] for kind in ("new", "old", "ambiguous")) == pytest.approx(1, abs=1e-3)
        assert sum(found["mass"][i]) == pytest.approx(1, abs=1e-3)
    assert json.loads(json.dumps(found)) == found


def test_a_long_series_is_thinned_evenly() -> None:
    series = TokenSeries(1)
    shares, mass = torch.ones(1, 3), torch.ones(2)
    for experience in range(2):
        for update in range(experience * 1000, experience * 1000 + 1000):
            if series.due(update):
                series.add(update, experience, shares, mass)
        series.begin()
    for experience in range(2):
        updates = [u for u, e in zip(series.updates, series.experience) if e == experience]
        assert MOST / 2 <= len(updates) <= MOST
        assert set(np.diff(updates)) == {8}
    again = TokenSeries(1)
    again.load(series.state())
    assert again.facts(["a"]) == series.facts(["a"])


def test_guidance_says_so_where_it_is_on(small_tasks: Any, teach: Any) -> None:
    stream = small_tasks(2, 40)
    events = list(dw.rebatch(stream, 10))
    keys = {"share_new", "share_old", "share_ambiguous", "newest_mass", "rsr_terms"}
    for name in ("moe-lora", *GROWING):
        learner = teach(made(name, stream), events)
        assert set(learner.telemetry()) == keys
    guided = teach(made("dymoe-tag", stream, tau=2.5), events).telemetry()
    assert guided["share_ambiguous"] == 1.0
    assert guided["newest_mass"] == 0.0


def test_a_guarded_base_is_a_bank_of_its_own(small_tasks: Any, teach: Any) -> None:
    stream = small_tasks(2, 40)
    learner = made("dymoe-tag", stream, base_expert=True)
    assert all(layer.banks == 2 for layer in layers(learner))
    x = torch.rand(5, 1, 4, 4)
    plain = made("dymoe-tag", stream)
    torch.testing.assert_close(learner.net(x), plain.net(x))
    first, _ = by_experience(stream)
    teach(learner, first)
    assert learner.telemetry()["share_new"] < 1.0
    assert bool((layers(learner)[0].old_b == 0).all())


def test_load_balancing_counts(small_tasks: Any, teach: Any) -> None:
    stream = small_tasks(1, 40)
    events = list(dw.rebatch(stream, 10))
    plain, balanced = (teach(made("dymoe", stream, balance=b), events) for b in (0.0, 1.0))
    assert digest(plain.state()["net"]) != digest(balanced.state()["net"])


def test_layers_by_pattern_and_plain_lines_for_what_cannot_be(small_tasks: Any) -> None:
    stream = small_tasks(2, 20)
    assert [layer.number for layer in layers(made("dymoe", stream, expert_layers="body.3"))] == [0]
    for settings, line in (
        ({"expert_layers": "encoder.*"}, "expert_layers: 'encoder.*' names no linear layer"),
        ({"head_only": True}, "head_only trains the head alone"),
        ({"max_experts": 5}, "2 banks of 3 experts are 6 a layer, max_experts is 5"),
        ({"tau": -1.0}, "tau, rsr, balance"),
        ({"experts": 0}, "experts, expert_rank must be at least 1"),
        ({"routing_temperature": 0.0}, "must be above 0"),
    ):
        with pytest.raises(dw.InputError) as caught:
            made("dymoe", stream, **settings)
        assert line in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(dw.InputError, match="DyMoE"):
        dw.learner("lora+dymoe", stream.spec)
    with pytest.raises(dw.InputError, match="experts leave all weights beneath them as they are"):
        dw.learner("dymoe+migu", stream.spec)


def test_max_experts_holds_where_the_stream_tells_no_experiences() -> None:
    spec = dw.StreamSpec("s", (dw.Column("a"), dw.Column("b")), classes=("n", "y"))
    learner = dw.learner("dymoe", spec, model="mlp:8", max_experts=6, **SMALL)
    learner.boundary(dw.Boundary("second", 0.0))
    with pytest.raises(dw.InputError, match="3 banks of 3 experts are 9 a layer, max_experts is 6"):
        learner.boundary(dw.Boundary("third", 0.0))
