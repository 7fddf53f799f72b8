"""Benchmarks: every line of the table leads to a function, and rows have the promised keys. No time is asserted."""

from __future__ import annotations

import importlib

import pytest
from driftway.adapt import benchmarks
from driftway.adapt.benchmarks import loop, row_sparse
from driftway.adapt.listing import show_bench
from driftway.streams import InputError

KEYS = {"bench", "case", "unit", "ours", "peer", "peer_name", "ratio", "floor"}


@pytest.mark.parametrize("name", benchmarks.BENCHMARKS)
def test_every_line_leads_to_a_function(name: str) -> None:
    module, _, function = benchmarks.BENCHMARKS[name][0].partition(":")
    assert callable(getattr(importlib.import_module(f"driftway.adapt.benchmarks.{module}"), function))


def test_the_loop_is_measured_beside_its_peers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "ROWS", 600)
    monkeypatch.setattr(loop, "REPEATS", 1)
    rows = benchmarks.measure("loop")
    assert len({row["case"] for row in rows}) == len(rows) == 4
    for row in rows:
        assert row.keys() == KEYS
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
    show_bench(rows)
    assert "river's objects" in capsys.readouterr().out


def test_row_sparse_steps_have_two_peers_and_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LAYERS": ((32, 16),), "BATCHES": (4, 20), "RATIOS": (0.3,), "ROUNDS": 2}.items():
        monkeypatch.setattr(row_sparse, name, value)
    monkeypatch.setattr(row_sparse, "ROUND_SECONDS", 0.0)
    rows = benchmarks.measure("row-sparse")
    assert len({(row["case"], row["peer_name"]) for row in rows}) == len(rows) == 2 * 2 * 2
    for row in rows:
        assert row.keys() == KEYS
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
        assert isinstance(row["floor"], float)


def test_an_unknown_benchmark_is_refused() -> None:
    with pytest.raises(InputError, match="unknown benchmark 'lop'"):
        benchmarks.measure("lop")
