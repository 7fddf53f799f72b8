"""Latency percentiles against NumPy's; what a batch costs, by hand."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from driftway.evaluation import cost
from driftway.evaluation.cost import RECENT, BatchCost


@pytest.mark.parametrize("q", [0.01, 0.5, 0.9, 0.99, 0.999, 1.0])
def test_quantiles_are_within_one_per_cent(q: float) -> None:
    seconds = np.random.default_rng(3).lognormal(-9.0, 1.5, 20_000)
    latency = cost.LatencyHistogram()
    for value in seconds:
        latency.add(float(value))
    assert latency.quantile(q) == pytest.approx(np.quantile(seconds, q, method="inverted_cdf"), rel=0.0101)


def test_rows_of_a_block_weigh_as_many() -> None:
    one, many = cost.LatencyHistogram(), cost.LatencyHistogram()
    one.add(1e-3, 99)
    one.add(5.0)
    for _ in range(99):
        many.add(1e-3)
    many.add(5.0)
    assert [one.quantile(q) for q in (0.5, 0.99, 0.995)] == [many.quantile(q) for q in (0.5, 0.99, 0.995)]
    assert one.rows == many.rows == 100
    assert one.quantile(0.99) < 2e-3 < 4.9 < one.quantile(0.995)


@pytest.mark.parametrize("seconds", [0.0, -1.0, 1e-12, 1e9, float("inf")])
def test_extreme_durations_are_held_at_the_edges(seconds: float) -> None:
    latency = cost.LatencyHistogram()
    latency.add(seconds)
    edge = cost.FLOOR if seconds < 1 else cost.CEILING
    assert latency.quantile(0.5) == pytest.approx(edge, rel=0.03)


def test_nothing_yet_and_nonsense() -> None:
    latency = cost.LatencyHistogram()
    assert latency.quantile(0.5) == 0.0
    latency.add(1e-3)
    with pytest.raises(ValueError, match="fraction"):
        latency.quantile(1.5)


def test_the_example() -> None:
    assert doctest.testmod(cost).failed == 0


def test_medians_and_a_mean_without_the_batches_that_compile() -> None:
    """20 batches of 1 s for each phase, then 30 of 2 ms + 1 ms + 0.5 ms, of which every third takes 3 ms to adapt."""
    spent, seconds = BatchCost(), {"predict": 0.0, "adapt": 0.0, "learn": 0.0, "io": 0.0}
    assert spent.figures() == {
        "batches": 0, "predict": None, "adapt": None, "learn": None, "total": None, "mean": None,
    }  # fmt: skip
    for k in range(50):
        more = (2e-3, 3e-3 if k % 3 == 2 else 1e-3, 5e-4, 9.0)
        seconds = {p: s + (1.0 if k < 20 else m) for (p, s), m in zip(seconds.items(), more)}
        spent.count(1, seconds)
        if k == 38:
            assert spent.figures()["mean"] == pytest.approx((60 + 19 * 3.5e-3 + 7 * 2e-3) / 39 * 1e3)
            assert spent.figures()["total"] == pytest.approx(1e3 * 3), "most of them compiled"
    found = spent.figures()
    assert found["batches"] == 50
    assert [found[p] for p in ("predict", "adapt", "learn", "total")] == pytest.approx([2.0, 3.0, 0.5, 5.5])
    assert found["mean"] == pytest.approx(3.5 + 2 * 10 / 30)


def test_medians_are_of_the_latest_batches() -> None:
    spent, total = BatchCost(), 0.0
    for k in range(3 * RECENT):
        total += 1.0 if k < 2 * RECENT else 1e-3
        spent.count(1, {"predict": total, "adapt": 0.0, "learn": 0.0})
    assert spent.figures()["predict"] == pytest.approx(1.0)


def test_rows_in_one_compiled_call_are_all_learning() -> None:
    spent = BatchCost()
    spent.count(100, {"predict": 0.0, "adapt": 0.0, "learn": 1.0})
    spent.count(100, {"predict": 0.0, "adapt": 0.0, "learn": 1.2})
    spent.count(100, {"predict": 0.0, "adapt": 0.0, "learn": 1.4})
    found = spent.figures()
    assert (found["predict"], found["adapt"]) == (None, None)
    assert found["learn"] == found["total"] == found["mean"] == pytest.approx(2.0)
