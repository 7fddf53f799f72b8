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


SHORT = {name: RULES[name] for name in ("sgd", "momentum", "adamw")}


def short(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


@pytest.mark.parametrize("rule", SHORT)
def test_bfloat16_weights_have_moments_of_float32_and_follow_the_long_ones(rule: str) -> None:
    long, ours = weights(), short(weights())
    exact, optimiser = RULES[rule][0](), RULES[rule][0]()
    for step in range(5):
        grads: Any = short(weights(seed=step + 1))
        optimiser.step(ours, grads, {})
        exact.step(long, {n: g.float() for n, g in grads.items()}, {})
    for name, w in ours.items():
        assert w.dtype is torch.bfloat16
        assert_close(w.float(), long[name], rtol=0.02, atol=0.02)
    for slot in optimiser.slots.values():
        assert all(tensor.dtype is torch.float32 for tensor in slot.values())


@pytest.mark.parametrize("rule", SHORT)
@pytest.mark.parametrize("held", ["entries", "rows"])
def test_what_an_update_may_not_touch_keeps_every_bit_of_bfloat16(rule: str, held: str) -> None:
    """After dense updates too, whose counts are kept by rows."""
    ours, optimiser = short(weights()), RULES[rule][0]()
    mask = torch.zeros(6, 5, dtype=torch.bool)
    mask[[1, 4]] = True
    optimiser.step(ours, short(weights(seed=50)), {})  # type: ignore[arg-type]
    before, slots = ours["matrix"].clone(), {k: t.clone() for k, t in optimiser.slots.get("matrix", {}).items()}
    only: Any = Entries.where(mask) if held == "entries" else RowSet(torch.tensor([1, 4]))
    for step in range(3):
        optimiser.step(ours, short(weights(seed=step)), {"matrix": only})  # type: ignore[arg-type]
    assert torch.equal(ours["matrix"][~mask].view(torch.int16), before[~mask].view(torch.int16))
    assert (ours["matrix"][mask] != before[mask]).any()
    for key in ("m", "v", "momentum"):
        if key in slots:
            assert torch.equal(optimiser.slots["matrix"][key][~mask], slots[key][~mask])


@pytest.mark.parametrize("rule", [SGD, AdamW])
@pytest.mark.parametrize("held", [None, "rows"])
def test_small_steps_of_bfloat16_are_not_lost_on_the_mean(rule: Any, held: str | None) -> None:
    """From 1 downwards bfloat16 has steps of 2^-8; 64 steps of 2^-12 are 2^-6, and rounded to nearest would be 0."""
    params = {"w": torch.ones(256, 16, dtype=torch.bfloat16)}
    optimiser = rule(2.0**-12, seed=1)
    only: Any = {} if held is None else {"w": RowSet(torch.arange(0, 256, 2))}
    for _ in range(64):
        optimiser.step(params, {"w": torch.ones(256, 16, dtype=torch.bfloat16)}, only)
    moved = 1 - params["w"].float()
    if held:
        assert not moved[1::2].any()
    assert moved[::2].mean().item() == pytest.approx(2.0**-6, rel=0.05)
    assert moved[::2].std() > 0


def test_rounding_is_of_the_seed_the_name_and_the_update_alone() -> None:
    found = []
    for seed, name in ((1, "w"), (1, "w"), (2, "w"), (1, "v")):
        params = {name: torch.ones(64, 8, dtype=torch.bfloat16)}
        SGD(2.0**-10, seed=seed).step(params, {name: torch.ones(64, 8, dtype=torch.bfloat16)}, {})
        found.append(params[name])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[3])


def test_bfloat16_numbers_without_axes_are_rows_of_their_own() -> None:
    params = {"w": torch.ones((), dtype=torch.bfloat16)}
    AdamW(0.25).step(params, {"w": torch.ones((), dtype=torch.bfloat16)}, {})
    assert params["w"].item() == pytest.approx(0.75, abs=0.01)


def test_every_update_raises_the_version_of_its_weights() -> None:
    weight = torch.zeros(3, requires_grad=True)
    for optimiser in (SGD(0.1), SGD(0.1, 0.9), AdamW(0.1)):
        before = weight._version
        optimiser.step({"w": weight}, {"w": torch.ones(3)}, {})
        assert weight._version > before, "packed copies of weights are made anew where it has risen"
