"""The benchmarks of forgetting run from end to end on little data, and say what they should."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.benchmarks import acu, acu_baselines
from driftway.models.approximate_unlearning import METHODS, Rows, Steps
from torch import nn


def test_requests_beside_training_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acu, "REQUESTS", {1: 2, 10: 2, 100: 1})
    monkeypatch.setattr(acu, "SINGLE", 70)
    try:
        rows = acu.measure(d=64, rows=600)
    except dw.InputError as missing:
        pytest.skip(str(missing))
    assert [row["unit"] for row in rows] == ["ms"] * 7 + ["relative"]
    assert rows[-1]["ours"] < 1e-10


SHORT = replace(acu_baselines.TRAINING, epochs=8)
FIRST = {name: settings[0] for name, settings in acu_baselines.GRID.items()}


@pytest.mark.parametrize("kind", [acu_baselines.Kind("random rows", 2, 25, 1), acu_baselines.Kind("class", 2, 0, 1)])
def test_gaps_of_gradient_methods(kind: acu_baselines.Kind) -> None:
    data = acu_baselines._Data(0, kind)
    found = acu_baselines.curves(data, 0, FIRST, SHORT)
    assert set(found) == {*METHODS, "acu", acu_baselines.OTHER}
    assert all(len(curve) == 2 for curve in found.values())
    assert np.abs(found["acu"]).max() < 1e-9
    assert all(gap > 0 for name in METHODS for gap, _ in found[name])
    if not kind.size:
        assert [set(data.y[a:b].tolist()) for a, b in pairwise(data.gone)] == [{3}, {8}]


def test_the_best_setting_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method whose second setting is training anew itself gets that one; every request has its two rows."""
    ruin, right = Steps(epochs=1), Steps(epochs=2)

    def method(net: nn.Module, retained: Rows, _forgotten: Rows, steps: Steps, _generator: torch.Generator) -> None:
        if steps is right:
            net.load_state_dict(acu_baselines._network(retained, 10, SHORT).state_dict())

    monkeypatch.setattr(acu_baselines, "TRAINING", SHORT)
    monkeypatch.setattr(acu_baselines, "METHODS", {"finetune": method})
    monkeypatch.setattr(acu_baselines, "GRID", {"finetune": (ruin, right)})
    kind = acu_baselines.Kind("class", 2, 0, 2)
    assert acu_baselines.tuned(kind, [10]) == {"finetune": right}
    monkeypatch.setattr(acu_baselines, "SEEDS", (10,))
    monkeypatch.setattr(acu_baselines, "TUNED_ON", (10,))
    rows = acu_baselines._measure(kind)
    assert [row["unit"] for row in rows] == ["gap", "membership difference"] * 4
    assert rows[0]["peer"] == 0.0
