"""The bench of deviations: what it takes for double precision, and that no answer slips past it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from driftway.adapt.benchmarks import edge_deviation
from driftway.adapt.benchmarks.edge_deviation import Doubled, cases, deviations
from driftway.adapt.benchmarks.tta import Differs
from driftway.adapt.edge.runner import Runner


def test_every_operation_is_in_double_precision() -> None:
    x, weight = torch.rand(4, 3, dtype=torch.float64), torch.rand(2, 3)
    with Doubled():
        found = torch.nn.functional.linear(x, weight).float() / 3 + torch.zeros(2)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, x.numpy() @ weight.double().numpy().T / 3, rtol=1e-15)


@pytest.mark.parametrize(("name", "limit"), [("tent, SGD", 1e-6), ("migu", 1e-6), ("platt", 1e-13)])
def test_a_few_steps(monkeypatch: pytest.MonkeyPatch, name: str, limit: float) -> None:
    monkeypatch.setattr(edge_deviation, "STEPS", (3, 6))
    (early, _), (ours, eager) = deviations(cases()[name], 0)
    assert edge_deviation.LEAST <= early <= ours < limit
    assert eager < limit


def test_an_answer_that_is_no_number_is_no_small_deviation(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: Any, x: Any) -> Any:
        return np.full((len(x), 6), np.nan)

    monkeypatch.setattr(edge_deviation, "STEPS", (2, 3))
    monkeypatch.setattr(Runner, "adapt", nothing)
    with pytest.raises(Differs, match="step 0 is no number"):
        deviations(cases()["bn-adapt"], 0)
