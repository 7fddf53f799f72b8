"""Latency percentiles against NumPy's; what a batch costs, by hand."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from driftway.evaluation import cost
from driftway.evaluation.cost import BatchCost, LatencyHistogram


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


def test_a_batch_without_those_that_compile() -> None:
    """20 batches of 1 s each, then 30 of 2 ms + 1 ms + 0.5 ms; the median row takes 0.1 ms and there are 25 a batch."""
    spent, latency, seconds = BatchCost(), LatencyHistogram(), {"predict": 0.0, "adapt": 0.0, "learn": 0.0, "io": 0.0}
    assert spent.figures(seconds, latency) == {
        "batches": 0, "predict": None, "adapt": None, "learn": None, "total": None, "median": None,
    }  # fmt: skip
    for k in range(50):
        seconds = {p: s + (1.0 if k < 20 else more) for (p, s), more in zip(seconds.items(), (2e-3, 1e-3, 5e-4, 9.0))}
        spent.count(1, seconds)
        latency.add(1e-4, 25)
        if k == 38:
            assert spent.figures(seconds, latency)["predict"] == pytest.approx((20 + 19 * 2e-3) / 39 * 1e3)
    found = spent.figures(seconds, latency)
    assert found["batches"] == 50
    assert [found[p] for p in ("predict", "adapt", "learn", "total")] == pytest.approx([2.0, 1.0, 0.5, 3.5])
    assert found["median"] == pytest.approx(2.5, rel=0.02)


def test_rows_in_one_compiled_call_are_all_learning() -> None:
    spent = BatchCost()
    spent.count(100, {"predict": 0.0, "adapt": 0.0, "learn": 1.0})
    spent.count(100, {"predict": 0.0, "adapt": 0.0, "learn": 1.2})
    found = spent.figures({"predict": 0.0, "adapt": 0.0, "learn": 1.2}, LatencyHistogram())
    assert (found["predict"], found["adapt"]) == (None, None)
    assert found["learn"] == found["total"] == pytest.approx(2.0)
