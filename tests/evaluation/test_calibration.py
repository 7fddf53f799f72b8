"""Calibration: numbers worked by hand, a plain second implementation, and the same bits however rows are cut."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.evaluation.calibration import BINS, Calibration, confidence_gap, ece, figures, pooled
from hypothesis import given, settings
from hypothesis import strategies as st

SPEC = dw.StreamSpec("made-up", (dw.Column("x"),), classes=("a", "b", "c"))


def sure(*confidences: float) -> Any:
    """Scores whose first class has this probability; the rest is shared by the others."""
    p = np.array(confidences)
    return np.column_stack([p, (1 - p) / 2, (1 - p) / 2])


def seen(y: Any, scores: Any, output: Any = None) -> Calibration:
    watch, y = Calibration(SPEC), np.array(y)
    watch.update(y, scores.argmax(1) if output is None else np.array(output), scores, watch.baseline(len(y)))
    return watch


def answers(seed: int, rows: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet(np.full(3, 0.5), rows)
    return rng.integers(0, 3, rows), scores.argmax(1), scores


def test_by_hand() -> None:
    """Four rows near 0.62 (bin 10), three of them right; two near 0.98 (bin 15), one right.

    |3/4 - 0.62| 4/6 + |1/2 - 0.98| 2/6 = 0.246667; mean confidence 0.74, accuracy 4/6.
    """
    watch = seen([0, 0, 0, 1, 0, 2], sure(0.61, 0.62, 0.62, 0.63, 0.97, 0.99))
    summary = watch.summary()
    assert summary["ece"] == pytest.approx(0.13 * 4 / 6 + 0.48 * 2 / 6)
    assert summary["calibration"]["gap"] == pytest.approx(0.74 - 4 / 6)
    told = summary["calibration"]["bins"]
    assert [row[0] for row in told] == [0] * 9 + [4] + [0] * 4 + [2]
    assert told[9] == [4, pytest.approx(0.62), 0.75]
    assert told[0] == [0, None, None]


def test_opposite_errors_count_in_the_ece_and_cancel_in_the_gap() -> None:
    watch = seen([0, 0, 1, 1], sure(0.5, 0.5, 0.9, 0.9))
    assert watch.summary()["ece"] == pytest.approx(0.5 * 0.5 + 0.5 * 0.9)
    assert watch.summary()["calibration"]["gap"] == pytest.approx(0.7 - 0.5)


def test_edges_belong_to_the_bin_below() -> None:
    scores = np.array([[0.0, 0.0, 0.0], [3 / 15, 0.0, 0.0], [0.6, 0.0, 0.0], [1.0, 0.0, 0.0], [1.5, 0.0, 0.0]])
    watch = seen([0] * 5, scores)
    assert np.flatnonzero(watch.bins[:, 0]).tolist() == [0, 2, 8, 14]
    assert watch.bins[14].tolist() == [2.0, 2.0, 2.0]


def test_the_answer_decides_what_is_right_and_the_scores_how_sure_it_was() -> None:
    watch = seen([1, 1], sure(0.9, 0.9), output=[1, 0])
    assert watch.bins[13].tolist() == [2.0, 1.8, 1.0]


@pytest.mark.parametrize("seed", range(3))
def test_a_plain_implementation_agrees(seed: int) -> None:
    """By masks over bins, as the published code does it."""
    y, output, scores = answers(seed, 500)
    top, hit = scores.max(1), y == output
    edges, total = np.linspace(0, 1, BINS + 1), 0.0
    for low, high in pairwise(edges.tolist()):
        inside = (top > low) & (top <= high)
        if inside.any():
            total += abs(top[inside].mean() - hit[inside].mean()) * inside.mean()
    watch = seen(y, scores)
    assert watch.summary()["ece"] == pytest.approx(total)
    assert watch.summary()["calibration"]["gap"] == pytest.approx(top.mean() - hit.mean())


def test_rows_without_label_or_finite_score_are_passed_over() -> None:
    scores = np.array([[0.9, 0.1, 0.0], [np.nan, np.nan, np.nan], [np.nan, 0.7, 0.1], [0.8, 0.1, 0.1]])
    watch = seen([0, 0, 1, dw.NO_LABEL], scores, output=[0, 0, 1, 0])
    assert watch.bins[:, 0].sum() == 2
    assert watch.summary()["ece"] == pytest.approx((0.1 + 0.3) / 2)


def test_without_scores_there_is_nothing_to_tell() -> None:
    watch = Calibration(SPEC)
    watch.update(np.array([0, 1]), np.array([0, 1]), None, watch.baseline(2))
    watch.update(np.array([], int), np.array([], int), np.zeros((0, 3)), watch.baseline(0))
    assert watch.summary() == {"ece": None, "calibration": None}
    assert ece(np.zeros((BINS, 3))) is confidence_gap(np.zeros((BINS, 3))) is None
    assert watch.row() == {}
    assert watch.alarms() == []
    with pytest.raises(ValueError, match="probabilities of classes"):
        Calibration(dw.StreamSpec("numbers", (dw.Column("x"),), target="regression"))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_cuts_and_a_restart_make_no_difference(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 300), label="rows")
    cuts = sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=6), label="cuts")})
    restart = data.draw(st.sampled_from(cuts), label="restart")
    y, output, scores = answers(data.draw(st.integers(0, 99), label="seed"), n)
    whole, cut = Calibration(SPEC), Calibration(SPEC)
    whole.update_rows(y, output, scores)
    for a, b in pairwise(cuts):
        if a == restart:
            again = Calibration(SPEC)
            again.load(cut.state())
            cut.update_rows(y[::-1].copy(), output, scores)  # what it counts from now on is not shared
            cut = again
        cut.update(y[a:b], output[a:b], scores[a:b], cut.baseline(b - a))
    assert np.array_equal(whole.bins, cut.bins)
    assert whole.summary() == cut.summary()


def test_bins_of_several_runs_add_up() -> None:
    first, second = (seen(*(lambda y, _, s: (y, s))(*answers(seed, 80))) for seed in (1, 2))
    told = [figures(watch.bins)["bins"] for watch in (first, second)]
    np.testing.assert_allclose(pooled(told), first.bins + second.bins)
