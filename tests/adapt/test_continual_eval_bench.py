"""The benchmark of evaluation at every update: its rows, and that it has none where answers differ."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import driftway as dw
import pytest
from driftway.adapt import benchmarks
from driftway.adapt.benchmarks import continual_eval

KEYS = {"bench", "case", "unit", "ours", "peer", "peer_name", "ratio", "floor"}
needs_avalanche = pytest.mark.skipif(find_spec("avalanche") is None, reason="needs the extra avalanche")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continual_eval, "CASES", {"mlp:8": (1, 20)})
    monkeypatch.setattr(continual_eval, "TEST_ROWS", 10)


@needs_avalanche
def test_ours_is_measured_beside_avalanche() -> None:
    rows = benchmarks.measure("continual-eval")
    assert [(row["case"].partition(", ")[2], row["peer_name"]) for row in rows] == [
        ("evaluation", "bare forward pass"),
        ("evaluation", "Avalanche's eval"),
        ("training step: learn", "Avalanche's Naive"),
        ("training step: whole loop", "Avalanche's Naive"),
        ("same weights: final ACC", "Avalanche's eval"),
        ("step with worker", "no evaluation"),
    ]
    for row in rows:
        assert row.keys() == KEYS
        assert min(row["ours"], row["peer"]) > 0
    assert rows[4]["ours"] == rows[4]["peer"]
    assert rows[0]["floor"] == pytest.approx(1 / rows[0]["ratio"])


def test_without_avalanche_there_are_our_own_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(continual_eval, "find_spec", lambda _name: None)
    monkeypatch.setattr(continual_eval, "cannot", lambda _learner: "no worker")
    rows = benchmarks.measure("continual-eval")
    assert [row["peer_name"] for row in rows] == ["bare forward pass"]
    assert "extra avalanche" in capsys.readouterr().err


@needs_avalanche
def test_answers_that_differ_are_no_result() -> None:
    stream = dw.rebatch(dw.stream("split-digits", train_rows=20, test_rows=10), 10)
    benchmark = dw.to_avalanche(stream)
    first, *others = stream.spec.experiences
    wrong = replace(stream.spec, experiences=(replace(first, y=1 - first.y), *others))
    with pytest.raises(RuntimeError, match="we say"):
        continual_eval.compare_answers(wrong, list(stream), "mlp:8", benchmark)
