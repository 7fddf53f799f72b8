"""Drift alarms: river's detectors, one-sided, with a refractory period, and scored against known drifts."""

from __future__ import annotations

import driftway as dw
import numpy as np
import pytest
from driftway.evaluation import alarms as al
from river import drift

CLASSES = dw.StreamSpec("made", (dw.Column("x"),), classes=("0", "1"))
NUMBERS = dw.StreamSpec("made", (dw.Column("x"),), target="regression")


def wrong(watch: dw.Prequential, errors: np.ndarray) -> None:
    """Score rows that are wrong where ``errors`` is true."""
    watch.update_rows(np.zeros(len(errors), dtype=np.int64), errors.astype(np.int64), None)


def errors_with(*parts: tuple[int, float], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.random(n) < p for n, p in parts])


@pytest.mark.parametrize("refractory", [0, 500])
def test_alarms_are_rivers_where_the_error_rose(refractory: int) -> None:
    errors = errors_with((3000, 0.1), (2000, 0.5), (2000, 0.2), (3000, 0.6), (100, 0.0))
    theirs = {"adwin": drift.ADWIN(), "page_hinkley": drift.PageHinkley(mode="up")}
    wanted, last = [], dict.fromkeys(theirs, -(10**9))
    for i, error in enumerate(errors.astype(float), 1):
        for name, detector in theirs.items():
            before = detector.estimation if name == "adwin" else 0.0
            detector.update(error)
            rose = name != "adwin" or detector.estimation > before
            if detector.drift_detected and rose and i - last[name] >= refractory:
                wanted.append({"step": i, "detector": name})
                last[name] = i
    watch = dw.Prequential(CLASSES, refractory=refractory)
    wrong(watch, errors)
    found = watch.alarms()
    assert {a["detector"] for a in found} == {"adwin", "page_hinkley"}
    assert sorted(map(str, found)) == sorted(map(str, wanted))
    assert [a["step"] for a in found] == sorted(a["step"] for a in found)
    assert watch.alarms() == []
    assert watch.row()["alarms"] == watch.summary()["drift_alarms"] == len(wanted)


def test_a_learner_that_improves_raises_no_alarm() -> None:
    watch = dw.Prequential(CLASSES)
    wrong(watch, errors_with((2000, 0.8), (2000, 0.4), (2000, 0.05)))
    assert watch.alarms() == []


def test_refractory_period_is_each_detectors_own() -> None:
    watch = dw.Prequential(CLASSES, refractory=800)
    wrong(watch, errors_with(*[(400, p) for p in (0.0, 1.0) * 10]))
    found = watch.alarms()
    for name in al.DETECTORS:
        steps = [a["step"] for a in found if a["detector"] == name]
        assert len(steps) > 2
        assert min(np.diff(steps)) >= 800


def test_delays_misses_and_false_alarms() -> None:
    """Two drifts that show, one that does not, and a rise of the error that no known drift explains."""
    watch = dw.Prequential(CLASSES, refractory=500, horizon=1000)
    wrong(watch, errors_with((2000, 0.05)))
    watch.boundary("first", 2000)
    wrong(watch, errors_with((2000, 0.5), seed=1))
    watch.boundary("unseen", 4000)
    wrong(watch, errors_with((3000, 0.5), (1000, 1.0), seed=2))
    watch.boundary("second", 8000)
    wrong(watch, errors_with((2000, 0.05), seed=3))
    summary = watch.summary()
    first, unseen, second = summary["drifts"]
    collected = watch.alarms()
    assert len(collected) == summary["drift_alarms"]
    for name in al.DETECTORS:
        steps = [a["step"] for a in collected if a["detector"] == name]
        found = summary["detection"][name]
        assert first["delay"][name] == steps[0] - 2000 < 300
        assert unseen["delay"][name] is second["delay"][name] is None
        assert (found["alarms"], found["found"], found["missed"]) == (len(steps), 1, 2)
        assert found["false_alarms"] == len(steps) - 1 >= 1
        assert found["false_alarms_per_1000"] == pytest.approx(1000 * found["false_alarms"] / 10_000)
        assert found["mean_delay"] == first["delay"][name]


def test_without_known_drifts_no_alarm_is_called_false() -> None:
    watch = dw.Prequential(CLASSES)
    wrong(watch, errors_with((2000, 0.05), (2000, 0.6)))
    found = watch.summary()["detection"]["adwin"]
    assert found["alarms"] == 1
    assert all(found[k] is None for k in ("found", "missed", "false_alarms", "false_alarms_per_1000", "mean_delay"))


def test_alarms_of_a_regression_do_not_depend_on_the_unit() -> None:
    rng = np.random.default_rng(0)
    error = np.abs(rng.normal(size=6000)) * np.where(np.arange(6000) < 3000, 1.0, 6.0)
    found = []
    for unit in (1.0, 1024.0):
        watch = dw.Prequential(NUMBERS)
        watch.update_rows(np.zeros(6000), error * unit, None)
        found.append(watch.alarms())
    assert found[0] == found[1]
    assert 3000 < found[0][0]["step"] < 3200


def test_memory_is_bounded() -> None:
    """However many drifts and alarms there are, and though nobody collects them."""
    watch = dw.Prequential(CLASSES, refractory=0)
    flips = errors_with(*[(50, p) for p in (0.0, 1.0) * 2])
    for k in range(400):
        watch.boundary(f"drift {k}", k * 200)
        wrong(watch, flips)
    summary = watch.summary()
    assert len(summary["drifts"]) == al.KEPT
    assert summary["drifts"][-1]["name"] == "drift 399"
    found = summary["detection"]["adwin"]
    assert found["found"] + found["missed"] == 400
    assert summary["drift_alarms"] > al.KEPT
    assert len(watch.alarms()) == al.KEPT
