"""The benchmarks of forgetting run from end to end on little data, and say what they should."""

from __future__ import annotations

from dataclasses import replace

import driftway as dw
import pytest
from driftway.adapt.benchmarks import acu, acu_baselines
from driftway.models.approximate_unlearning import METHODS


def test_requests_beside_training_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acu, "REQUESTS", {1: 2, 10: 2, 100: 1})
    monkeypatch.setattr(acu, "SINGLE", 70)
    try:
        rows = acu.measure(d=64, rows=600)
    except dw.InputError as missing:
        pytest.skip(str(missing))
    assert [row["unit"] for row in rows] == ["ms"] * 7 + ["relative"]
    assert rows[-1]["ours"] < 1e-10


def test_gaps_of_gradient_methods() -> None:
    found = acu_baselines.curves(0, requests=2, training=replace(acu_baselines.TRAINING, epochs=8))
    assert set(found) == {*METHODS, "acu", acu_baselines.OTHER}
    assert max(found["acu"]) < 1e-9
    assert all(gap > 0 for name in METHODS for gap in found[name])
