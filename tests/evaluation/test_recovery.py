"""Depth, recovery time and loss after a drift: by hand, and the streaming tracker against the stored curve."""

from __future__ import annotations

import doctest

import driftway as dw
import numpy as np
import pytest
from driftway.evaluation import recovery as rc
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

CLASSES = dw.StreamSpec("made", (dw.Column("x"),), classes=("0", "1"))
NUMBERS = dw.StreamSpec("made", (dw.Column("x"),), target="regression")


def test_the_worked_example_of_the_note() -> None:
    curve = [0.4, 0.6, 0.8, 0.9]
    assert rc.recovery(curve, 0.9, 0.1) == rc.Recovery(3, 0.5, pytest.approx(0.9), 3)
    assert rc.recovery(curve, 0.9, 0.05) == rc.Recovery(4, 0.5, pytest.approx(0.9), 4)
    assert doctest.testmod(rc).failed == 0


def test_censored_held_and_empty_curves() -> None:
    assert rc.recovery([0.4, 0.6], 0.9) == rc.Recovery(None, 0.5, pytest.approx(0.8), 2)
    assert rc.recovery([], 0.9) == rc.Recovery(None, None, None, 0)
    spike = [0.4, 0.9, 0.4, 0.9, 0.9]
    assert rc.recovery(spike, 0.9).rows == 2
    assert rc.recovery(spike, 0.9, hold=2) == rc.Recovery(4, 0.5, pytest.approx(1.0), 5)
    assert rc.recovery(spike[:4], 0.9, hold=2).rows is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 1_500), st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.booleans())
def test_row_by_row_is_the_stored_curve(seed: int, rows: int, low: float, before: float, numbers: bool) -> None:
    """The tracker finds in fixed memory what the definition finds on the whole curve of sliding means."""
    rng = np.random.default_rng(seed)
    chance = np.linspace(low, 1.0, rows)
    scores = (rng.random(rows) < chance).astype(float) - (rng.normal(size=rows) if numbers else 0.0)
    track, stretch = rc.new_track(), np.zeros(rc.STRETCH)
    rc.begin(track, before, rc.TOLERANCE)
    for score in scores:
        rc.follow(track, stretch, score)
    curve = sliding_window_view(scores, rc.STRETCH).mean(axis=1) if rows >= rc.STRETCH else np.zeros(0)
    curve = np.round(curve * rc.STRETCH) / rc.STRETCH if not numbers else curve
    wanted, found = rc.recovery(curve, before, rc.TOLERANCE, rc.HOLD), rc.read(track)
    assert found.rows == wanted.rows
    assert found.watched == wanted.watched
    if wanted.depth is not None:
        assert found.depth == pytest.approx(wanted.depth, abs=1e-9)
        assert found.lost == pytest.approx(wanted.lost, abs=1e-6)


def test_a_huge_score_leaves_no_trace_in_later_stretches() -> None:
    track, stretch = rc.new_track(), np.zeros(4)
    rc.begin(track, -0.5, 0.01)
    for score in [-1e100, -1e100, *[-1.0] * 6]:
        rc.follow(track, stretch, score)
    worst = track[rc.DEPTH]
    track[rc.DEPTH] = -1.0
    rc.follow(track, stretch, -1.0)
    assert worst == pytest.approx(5e99)
    assert track[rc.DEPTH] == pytest.approx(0.5)


def accuracies(watch: dw.Prequential, hits: np.ndarray) -> None:
    y = np.zeros(len(hits), dtype=np.int64)
    watch.update_rows(y, np.where(hits, 0, 1), None)


def test_a_drop_and_a_recovery_as_summary_tells_them() -> None:
    """Right always; after the drift wrong 300 times, then right again."""
    watch = dw.Prequential(CLASSES)
    accuracies(watch, np.ones(1500, bool))
    watch.boundary("flip", 1500)
    accuracies(watch, np.repeat([False, True], [300, 1200]))
    (drift,) = watch.summary()["drifts"]
    assert (drift["name"], drift["step"], drift["labelled"], drift["before"]) == ("flip", 1500, 1500, 1.0)
    assert drift["recovered"] is True
    assert drift["depth"] == 1.0
    wrong_in_stretch = [max(0, min(200, 300 - n)) for n in range(400)]
    first = next(n for n, wrong in enumerate(wrong_in_stretch) if wrong / 200 <= rc.TOLERANCE + 1e-12) + 1
    assert drift["recovery_rows"] == first
    assert drift["lost"] == pytest.approx(sum(wrong_in_stretch[:first]) / 200)


def test_a_drift_that_does_no_harm_and_one_that_stays() -> None:
    watch = dw.Prequential(CLASSES)
    accuracies(watch, np.ones(500, bool))
    watch.boundary("harmless", 500)
    accuracies(watch, np.ones(500, bool))
    watch.boundary("lasting", 1000)
    accuracies(watch, np.zeros(700, bool))
    watch.boundary("at the end", 1700)
    harmless, lasting, last = watch.summary()["drifts"]
    assert (harmless["recovery_rows"], harmless["depth"], harmless["lost"]) == (1, 0.0, 0.0)
    assert (lasting["recovered"], lasting["recovery_rows"], lasting["depth"]) == (False, None, 1.0)
    assert lasting["watched"] == 501
    assert (last["recovered"], last["depth"], last["watched"]) == (False, None, 0)


def test_no_row_before_the_drift() -> None:
    watch = dw.Prequential(CLASSES)
    watch.boundary("start", 0)
    accuracies(watch, np.ones(900, bool))
    (drift,) = watch.summary()["drifts"]
    assert drift["before"] is drift["depth"] is drift["recovery_rows"] is None


def test_late_labels_of_the_old_concept_do_not_count_for_the_new() -> None:
    """With labels 400 rows late, the first rows scored after the drift still belong to the world before."""
    late, prompt = dw.Prequential(CLASSES), dw.Prequential(CLASSES)
    hits = np.repeat([True, False, True], [1500, 300, 1200])
    kept = []
    for i in range(len(hits) + 400):
        if i == 1500:
            late.boundary("flip", i)
        if i < len(hits):
            kept.append(late.baseline(1))
        if i >= 400:
            late.update(np.array([0]), np.array([0 if hits[i - 400] else 1]), None, kept[i - 400])
    accuracies(prompt, hits[:1500])
    prompt.boundary("flip", 1500)
    accuracies(prompt, hits[1500:])
    (one,), (other,) = late.summary()["drifts"], prompt.summary()["drifts"]
    for key in ("depth", "recovery_rows", "lost", "watched"):
        assert one[key] == other[key]
    assert one["labelled"] == 1100
    assert one["delay"]["page_hinkley"] == other["delay"]["page_hinkley"] + 400


def test_recovery_of_a_regression() -> None:
    """Error 1 before, 5 for 300 rows after the drift, then 1 again; a tenth above the error before is back."""
    watch = dw.Prequential(NUMBERS)
    zeros = np.zeros(1000)
    watch.update_rows(zeros, zeros + 1.0, None)
    watch.boundary("shift", 1000)
    watch.update_rows(zeros[:300], zeros[:300] + 5.0, None)
    watch.update_rows(zeros, zeros + 1.0, None)
    (drift,) = watch.summary()["drifts"]
    assert drift["before"] == pytest.approx(1.0)
    assert drift["depth"] == pytest.approx(4.0)
    assert drift["recovery_rows"] == 300 - 5 + 1
