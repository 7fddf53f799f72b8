"""Our optimisers against PyTorch's, and what they must leave alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from driftway.models.optimisers import SGD, AdamW, Entries, RowSet, grow_slots
from torch.testing import assert_close

RULES = {
    "sgd": (lambda: SGD(0.1), lambda w: torch.optim.SGD(w, 0.1)),
    "decay": (lambda: SGD(0.1, 0.0, 0.1), lambda w: torch.optim.SGD(w, 0.1, weight_decay=0.1)),
    "momentum": (lambda: SGD(0.1, 0.9, 0.1), lambda w: torch.optim.SGD(w, 0.1, momentum=0.9, weight_decay=0.1)),
    "adamw": (lambda: AdamW(0.1, weight_decay=0.1), lambda w: torch.optim.AdamW(w, 0.1, weight_decay=0.1)),
}
SHAPES = {"matrix": (6, 5), "kernel": (4, 3, 3, 3), "vector": (7,)}


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("rule", RULES)
def test_dense_updates_equal_pytorchs(rule: str) -> None:
    ours, theirs = weights(), {n: w.requires_grad_() for n, w in weights().items()}
    optimiser, peer = RULES[rule][0](), RULES[rule][1](theirs.values())
    for step in range(20):
        grads: Any = weights(seed=step + 1)
        optimiser.step(ours, grads, {})
        for name, w in theirs.items():
            w.grad = grads[name]
        peer.step()
    for name, w in ours.items():
        assert_close(w, theirs[name].detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("held", ["entries", "rows", "compact rows"])
def test_what_an_update_may_not_touch_keeps_every_bit(rule: str, held: str) -> None:
    ours, optimiser = weights(), RULES[rule][0]()
    optimiser.step(ours, weights(seed=50), {})
    mask = torch.zeros(6, 5, dtype=torch.bool)
    mask[[1, 4]] = True
    only: Any = Entries.where(mask) if held == "entries" else RowSet(torch.tensor([1, 4]), held == "compact rows")
    before, slots = ours["matrix"].clone(), {k: t.clone() for k, t in optimiser.slots.get("matrix", {}).items()}
    for step in range(3):
        grads: Any = weights(seed=step)
        if held == "compact rows":
            grads["matrix"] = grads["matrix"][[1, 4]]
        optimiser.step(ours, grads, {"matrix": only})
    assert torch.equal(ours["matrix"][~mask].view(torch.int32), before[~mask].view(torch.int32))
    assert (ours["matrix"][mask] != before[mask]).all()
    for key, tensor in slots.items():
        if tensor.dim() == 2:
            assert torch.equal(optimiser.slots["matrix"][key][~mask], tensor[~mask])


@pytest.mark.parametrize("rule", RULES)
def test_all_entries_and_all_rows_are_the_dense_update(rule: str) -> None:
    dense, entries, rows = (weights() for _ in range(3))
    optimisers = [RULES[rule][0]() for _ in range(3)]
    every: Any = {n: Entries.where(torch.ones_like(w, dtype=torch.bool)) for n, w in dense.items()}
    index: Any = {n: RowSet(torch.arange(len(w))) for n, w in dense.items()}
    for step in range(5):
        grads: Any = weights(seed=step + 1)
        for optimiser, params, only in zip(optimisers, (dense, entries, rows), ({}, every, index), strict=True):
            optimiser.step(params, {n: g.clone() for n, g in grads.items()}, only)
    for name in SHAPES:
        assert_close(entries[name], dense[name], rtol=1e-4, atol=1e-5)
        assert_close(rows[name], dense[name], rtol=1e-4, atol=1e-5)


def test_rows_of_adamw_count_their_own_updates_and_may_become_dense_again() -> None:
    params = {"w": torch.ones(3, 2)}
    optimiser = AdamW(0.1)
    optimiser.step(params, {"w": torch.ones(3, 2)}, {})
    optimiser.step(params, {"w": torch.ones(1, 2)}, {"w": RowSet(torch.tensor([1]), compact=True)})
    assert optimiser.slots["w"]["t"].tolist() == [1, 2, 1]
    optimiser.step(params, {"w": torch.ones(3, 2)}, {})
    assert optimiser.slots["w"]["t"].tolist() == [2, 3, 2]


def test_undecayed_parameters_are_left_out_of_decay() -> None:
    for optimiser in (SGD(0.1, 0.0, 0.5), AdamW(0.1, weight_decay=0.5)):
        optimiser.undecayed.add("a")
        params = {"a": torch.ones(2), "b": torch.ones(2)}
        optimiser.step(params, {"a": torch.zeros(2), "b": torch.zeros(2)}, {})
        assert params["a"].tolist() == [1, 1]
        assert params["b"].tolist() == pytest.approx([0.95, 0.95])


def test_a_parameter_without_gradient_is_left_alone() -> None:
    params = {"a": torch.ones(2), "b": torch.ones(2)}
    for optimiser in (SGD(0.1, 0.9), AdamW(0.1)):
        optimiser.step(params, {"a": None}, {})
        assert not optimiser.slots
    assert params["a"].tolist() == [1, 1]


def test_state_goes_round_and_grows() -> None:
    params = weights()
    optimiser, other = AdamW(0.1), AdamW(0.1)
    optimiser.step(params, weights(1), {})  # type: ignore[arg-type]
    other.load(optimiser.state())
    twin = {n: w.clone() for n, w in params.items()}
    optimiser.step(params, weights(2), {})  # type: ignore[arg-type]
    other.step(twin, weights(2), {})  # type: ignore[arg-type]
    assert all(torch.equal(params[n], twin[n]) for n in params)
    grow_slots(optimiser.slots, ["matrix"], 9)
    assert optimiser.slots["matrix"]["m"].shape == (9, 5)
    assert optimiser.slots["matrix"]["t"].dim() == 0
