"""The benchmark of a layer of experts: what is compared computes the same, rows have the promised keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from driftway.adapt import benchmarks
from driftway.adapt.benchmarks import dymoe, dymoe_toy, floors
from driftway.streams import InputError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dymoe, "WIDTHS", (32,))
    monkeypatch.setattr(dymoe, "TOKENS", {"cpu": (24,)})
    monkeypatch.setattr(dymoe, "TASKS", (1, 3))
    monkeypatch.setattr(dymoe, "ROUNDS", 1)
    monkeypatch.setattr(dymoe, "SIDE", {"cpu": 16})
    for name, value in {"ROUNDS": 1, "ROUND_SECONDS": 0.0, "SIDE": {"cpu": 16}, "COPIED": {"cpu": 1024}}.items():
        monkeypatch.setattr(floors, name, value)
    floors.floors.cache_clear()


@pytest.mark.parametrize("tasks", [1, 3])
def test_what_is_compared_computes_the_same(tasks: int) -> None:
    case = dymoe.Case.of(32, 24, tasks, "cpu")
    loop = dymoe.LoopOverExperts(case.ours)
    assert 0 < case.new <= 1
    torch.testing.assert_close(case.asked(case.ours)(), case.asked(loop)(), rtol=1e-4, atol=1e-4)
    ours: Any = case.trained(case.ours)()
    peer: Any = case.trained(loop)()
    of_x, of_router = peer[0], peer[-1]
    names = [n for n, w in loop.named_parameters() if w.requires_grad]
    of_a = torch.cat([g for n, g in zip(names, peer[1:]) if n.startswith("a.")])
    of_b = torch.cat([g.t() for n, g in zip(names, peer[1:]) if n.startswith("b.")])
    of_router = peer[1 + names.index("router")]
    for mine, theirs in zip(ours, (of_x, of_a, of_b, of_router)):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
    if tasks > 1:
        masked: Any = case.masked()()
        for mine, other in zip(ours, masked):
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_rows_of_the_table() -> None:
    rows = benchmarks.measure("dymoe")
    assert len({(row["case"], row["peer_name"]) for row in rows}) == len(rows) == 2 + 3
    for row in rows:
        assert row.keys() == {"bench", "case", "unit", "ours", "peer", "peer_name", "ratio", "floor"}
        assert row["ratio"] == pytest.approx(row["peer"] / row["ours"])
        assert row["floor"] > 0


def test_a_device_that_is_not_there_is_one_line() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device cuda is not there"):
            benchmarks.measure("dymoe", "cuda")


def test_guidance_forgets_less_on_the_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate of the method's notes, shrunk: a third of the steps, two seeds; nothing is asked of regularisation."""
    for name, value in {"STEPS": 50, "SEEDS": (0, 1), "HELD": 128}.items():
        monkeypatch.setattr(dymoe_toy, name, value)
    variants = {name: dymoe_toy.VARIANTS[name] for name in ("growth alone", "+ TAG")}
    monkeypatch.setattr(dymoe_toy, "VARIANTS", variants)
    rows = {row["case"].partition(",")[0]: row for row in benchmarks.measure("dymoe-toy")}
    assert set(rows) == {"BWT", "final accuracy", "accuracy just after learning"}
    assert rows["BWT"]["ours"] > rows["BWT"]["peer"] + 0.03
    assert rows["BWT"]["ratio"] == pytest.approx(rows["BWT"]["ours"] - rows["BWT"]["peer"])
    assert rows["accuracy just after learning"]["ours"] > 0.5


def test_regularisation_acts_in_the_second_half_of_the_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = []
    for steps, weight in ((2, 100.0), (8, 0.0), (8, 100.0)):
        monkeypatch.setattr(dymoe_toy, "STEPS", steps)
        tables.append(dymoe_toy.accuracies(0, dymoe_toy.Guidance(), weight))
    assert not torch.equal(tables[1], tables[2])
    monkeypatch.setattr(dymoe_toy, "STEPS", 2)
    assert torch.equal(tables[0], dymoe_toy.accuracies(0, dymoe_toy.Guidance(), 0.0))
