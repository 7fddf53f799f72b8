"""Benchmarks: every line of the table leads to a function, and rows have the promised keys. No time is asserted."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from driftway.adapt import benchmarks
from driftway.adapt.benchmarks import floors, loop, row_sparse, row_sparse_blocks, tta
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
    for name, value in {"LAYERS": ((32, 16),), "BATCHES": (4, 20), "RATIOS": (0.3,)}.items():
        monkeypatch.setattr(row_sparse, name, value)
    small_blocks(monkeypatch)
    monkeypatch.setattr(row_sparse, "ROUNDS", 2)
    monkeypatch.setattr(floors, "ROUND_SECONDS", 0.0)
    rows = benchmarks.measure("row-sparse")
    assert len({(row["case"], row["peer_name"]) for row in rows}) == len(rows) == 2 * 2 * 2 + 2 * 4 * 2
    for row in rows:
        assert row.keys() == KEYS
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
        assert isinstance(row["floor"], float)


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"WIDTH": 20, "HEADS": 2, "LENGTH": 4, "TOKENS": {8: 1}, "BLOCKS": {"llama": 30, "t5": 40}}
    for name, value in small.items():
        monkeypatch.setattr(row_sparse_blocks, name, value)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_sparse_step_of_a_block_moves_the_active_rows_as_the_dense_step_does(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Moments are fresh, so the first step of AdamW on a row is the same in both."""
    small_blocks(monkeypatch)
    (begun, *_), made = row_sparse_blocks.case(kind, 8), row_sparse_blocks.case
    steps: list[Any] = []
    monkeypatch.setattr(row_sparse_blocks, "case", lambda *given: steps.append(made(*given)) or steps[-1])
    row_sparse_blocks.dense(kind, 8)()
    row_sparse_blocks.sparse(kind, 8, 0.7)()
    (dense, layers, *_), (sparse, *_) = steps
    for name in layers:
        before, plain, ours = (block.get_parameter(f"{name}.weight") for block in (begun, dense, sparse))
        moved = (ours != before).any(1)
        assert moved.sum() == len(before) - int(0.7 * len(before) + 1e-9)
        torch.testing.assert_close(ours[moved], plain[moved], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", tta.METHODS)
@pytest.mark.parametrize("batch", [1, 16])
def test_adaptation_steps_are_checked_and_timed(monkeypatch: pytest.MonkeyPatch, method: str, batch: int) -> None:
    for name, value in {"MODELS": ("resnet18:2",), "BATCHES": (1, 16), "ROUNDS": 1, "ROUND_SECONDS": 0.0}.items():
        monkeypatch.setattr(tta, name, value)
    monkeypatch.setattr(tta, "MATRIX", 32)
    (row,) = tta.measure(lambda c: (c.method, c.batch, c.threads) == (method, batch, 1))
    assert row.keys() == KEYS
    assert row["case"].startswith(f"resnet18:2 {method}, {'1 row' if batch == 1 else '16 rows'}, 1 thread: ")
    assert row["ratio"] == pytest.approx(row["peer"] / row["ours"])
    assert row["floor"] > 0


def test_the_compiled_step_tells_how_long_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.compile", lambda graph, _, **__: graph)
    for name, value in {"MODELS": ("resnet18:2",), "ROUNDS": 1, "ROUND_SECONDS": 0.0, "MATRIX": 32}.items():
        monkeypatch.setattr(tta, name, value)
    rows = tta.measure_compiled()
    assert len(rows) == 2
    assert all(": compiled, ready after " in row["case"] for row in rows)


@pytest.mark.parametrize("spoilt", ["logits", "parameters", "more steps"])
def test_a_step_that_answers_otherwise_is_not_timed(monkeypatch: pytest.MonkeyPatch, spoilt: str) -> None:
    case = tta.Case("resnet18:2", "tent", 16, 1)
    net = tta.network(case.model)
    tta.check(net, case, {})
    tent, steps = tta.Plain.tent, iter(range(100))

    def other(plain: tta.Plain, x: torch.Tensor) -> torch.Tensor:
        z = tent(plain, x)
        late = next(steps) >= 2
        if x.dtype == torch.float32 and spoilt == "logits":
            z = z + 1e-3
        if x.dtype == torch.float32 and spoilt == "parameters":
            next(iter(plain.params.values())).data.add_(1e-3)
        if x.dtype == torch.float64 and late and spoilt == "more steps":
            z = z + torch.linspace(0, 1, 10)
        return z

    monkeypatch.setattr(tta.Plain, "tent", other)
    if spoilt == "more steps":
        monkeypatch.setattr(tta, "WORSE", 0.5)
    with pytest.raises(tta.Differs, match="double precision" if spoilt == "more steps" else "one step"):
        tta.check(net, case, {})


def test_an_unknown_benchmark_is_refused() -> None:
    with pytest.raises(InputError, match="unknown benchmark 'lop'"):
        benchmarks.measure("lop")
