"""The controls of SparCL: fixed masks that stay, exchanging ones that exchange by their rule."""

from __future__ import annotations

import json
from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.learners.importance import gradient_of
from driftway.adapt.state import digest, join, split
from driftway.models.masks import best, keep_count

EPOCHS, ROWS, BATCH, N = 16, 30, 10, 64 * 64
FIXED = ("random-mask", "magnitude-mask", "snip")
SETTINGS: dict[str, Any] = {"model": "mlp:64-64", "memory": 20, "replay_batch": 5, "sparsity": 0.8, "seed": 4}


def stream(epochs: int = EPOCHS) -> dw.Stream:
    rng = np.random.default_rng(3)

    def images(task: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(0, 2, n) + 2 * task
        x = rng.random((n, 1, 8, 8)) * 0.5
        x[np.arange(n), 0, y, 2 * (y % 2)] += 0.5
        return x, y

    train = [(f"task {k}", *images(k, ROWS)) for k in range(2)]
    return dw.from_experiences(train, [images(k, 10) for k in range(2)], epochs=epochs)


def learner(name: str, **settings: Any) -> Any:
    return dw.learner(f"er+{name}", stream().spec, **SETTINGS, **settings)


def tell(made: Any, event: Any) -> None:
    if not isinstance(event, dw.Boundary):
        made.learn(event, None)
    elif "boundaries" in made.needs:
        made.boundary(event)


def events(epochs: int = EPOCHS) -> list[Any]:
    return list(dw.rebatch(stream(epochs), BATCH))


def masks(made: Any) -> dict[str, torch.Tensor]:
    return {name: mask.active.clone() for name, mask in made.techniques[0].sparse.masks.items()}


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("granularity", ["element", "row", "block"])
def test_a_fixed_mask_stays(name: str, granularity: str) -> None:
    made = learner(name, granularity=granularity, block="8x8")
    some = events(2)
    tell(made, some[0])
    first = masks(made)
    for event in some[1:]:
        tell(made, event)
    n = {"element": N, "row": 64, "block": 64}[granularity]
    for key, active in masks(made).items():
        assert torch.equal(active, first[key])
        assert int(active.sum()) == keep_count(n, 0.8)
    assert made.telemetry()["sparsity"] == pytest.approx(0.8, abs=0.01) or granularity == "row"
    if granularity == "element":
        for key, active in first.items():
            assert not made.weights[key].detach().flatten()[~active].any()


def test_how_each_is_chosen() -> None:
    dense = dw.learner("er", stream().spec, **{k: v for k, v in SETTINGS.items() if k != "sparsity"})
    everything, count = torch.ones(N, dtype=torch.bool), keep_count(N, 0.8)
    largest = {n: best(dense.weights[n].detach().abs().flatten(), everything, count) for n in masks(learner("snip"))}
    by_size, drawn, again = (masks(learner(name)) for name in ("magnitude-mask", "random-mask", "random-mask"))
    for name, expected in largest.items():
        assert (by_size[name] == expected).float().mean() > 0.99  # but for rows that would have nothing left
        assert torch.equal(drawn[name], again[name])
        assert 0.1 < float(drawn[name][expected].float().mean()) < 0.3
    made, first = learner("snip"), events()[0]
    rows = made._rows(first)
    slope = gradient_of(made, rows, own_classes=False)
    expected = {n: (made.weights[n].detach() * slope[n]).abs().flatten() for n in masks(made)}
    assert all(m.all() for m in masks(made).values())
    made.learn(first, None)
    for name, active in masks(made).items():
        assert (active == best(expected[name], everything, count)).float().mean() > 0.99


@pytest.mark.parametrize(("name", "shares"), [("set", [0.3, 0.3, 0.3]), ("rigl", [0.225, 0.075, 0.0])])
def test_exchanges_between_stages(name: str, shares: list[float]) -> None:
    made, found = learner(name), []
    count = keep_count(N, 0.8)
    for event in events():
        before = masks(made)
        sizes = {n: made.weights[n].detach().abs().flatten().clone() for n in before}
        tell(made, event)
        if any(not torch.equal(active, before[n]) for n, active in masks(made).items()):
            found.append((before, sizes, masks(made)))
    exchanges = [share for _ in range(2) for share in shares if share]
    for (before, sizes, after), share in zip(found, exchanges, strict=True):
        leaving = round(share * count)
        for key, active in after.items():
            assert int(active.sum()) == count
            left = before[key] & ~active  # less than what leaves: it may come back at once
            assert 0.3 * leaving < int(left.sum()) <= leaving
            assert sizes[key][left].max() <= sizes[key][before[key]].sort().values[leaving - 1]


def test_rigl_takes_the_largest_gradients() -> None:
    made, checked = learner("rigl"), 0
    technique = made.techniques[0]
    exchange = technique._exchange

    def watched(share: float, grads: Any) -> None:
        nonlocal checked
        before = masks(made)
        exchange(share, grads)
        for name, active in masks(made).items():
            new, never = active & ~before[name], ~active & ~before[name]
            size = grads[name].abs().flatten()
            assert size[new].min() >= size[never].max()
            checked += 1

    technique._exchange = watched
    for event in events():
        tell(made, event)
    assert checked == 2 * 2 * 2


@pytest.mark.parametrize("name", [*FIXED, "set", "rigl"])
@pytest.mark.parametrize("settings", [{"optimizer": "adamw", "lr": 0.01}, {"granularity": "row", "momentum": 0.9}])
def test_saved_and_continued_equals_uninterrupted(name: str, settings: dict[str, Any]) -> None:
    if name == "rigl" and "granularity" in settings:
        return  # looks at gradients of weights that are not there, so it has single weights only
    some = events(8)
    straight, other = learner(name, **settings), learner(name, **settings)
    for i, event in enumerate(some):
        if i == 14:
            skeleton, arrays = split(straight.state())
            other.load(join(json.loads(json.dumps(skeleton)), {k: np.array(v) for k, v in arrays.items()}))
        if i >= 14:
            tell(other, event)
        tell(straight, event)
    assert digest(other.state()) == digest(straight.state())


def test_wrong_values_are_one_line() -> None:
    for name, wrong in (("snip", {"sparsity": -1}), ("set", {"zeta": 1.0}), ("rigl", {"delta": 0})):
        with pytest.raises(dw.InputError, match=r"must lie in|at least 1"):
            dw.learner(f"er+{name}", stream().spec, model="mlp:64-64", **wrong)
    with pytest.raises(dw.InputError, match="one of them only"):
        dw.learner("snip+set", stream().spec)
