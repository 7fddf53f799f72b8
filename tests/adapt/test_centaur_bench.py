"""The study and the latency of centaur, on so little that it says nothing but that it runs and counts rightly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from driftway.adapt import benchmarks
from driftway.adapt.benchmarks import centaur, centaur_study
from driftway.streams import open_stream


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    values = {"SEEDS": 2, "VALIDATION": 4, "TEST": 5, "GRID": (1e-3, 0.1), "QUANTILES": (0.5,), "SHARES": (0.4,)}
    for name, value in values.items():
        monkeypatch.setattr(centaur_study, name, value)
    monkeypatch.setattr(centaur_study, "METHODS", ("cluster6", "ascent", "random", "cluster"))
    monkeypatch.setattr(
        centaur_study, "open_stream", lambda name, severity: open_stream(name, severity=severity, plans=16, training=16)
    )
    params = centaur_study.Centaur.Params
    monkeypatch.setattr(
        centaur_study.Centaur, "Params", lambda **given: params(**given, steps=3, width=16), raising=True
    )


@pytest.mark.usefixtures("tiny")
def test_study_reports_every_method_with_intervals_and_the_whole_grid() -> None:
    rows = centaur_study.measure()
    cases = {row["case"]: row for row in rows}
    assert len(cases) == len(rows)
    none = cases["test, none, pdms"]["ours"]
    for method in centaur_study.METHODS:
        assert sum(case.startswith(f"validation, {method}, delta") for case in cases) == 2
        (tuned,) = (row for case, row in cases.items() if case.startswith(f"test, {method}, tuned") and "pdms" in case)
        low, high = tuned["interval"]
        assert low <= tuned["difference"] <= high
        assert tuned["ours"] - none == pytest.approx(tuned["difference"], abs=2e-3)
        assert np.mean(tuned["each_planner"]) == pytest.approx(tuned["difference"], abs=0.01)
        assert 0 <= tuned["helped"] + tuned["harmed"] <= tuned["changed"] <= 100
    assert any(case.startswith("test, fallback") for case in cases)
    pair = cases["test, cluster6 beside cluster, tuned"]
    assert pair["difference"] == pytest.approx(pair["ours"] - pair["peer"], abs=2e-3)
    assert all(np.isfinite(row["ratio"]) for row in rows)


def test_area_under_the_curve_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    failed, doubt = rng.random(60) < 0.3, rng.integers(0, 9, 60) / 8
    assert centaur_study.area(failed, doubt) == pytest.approx(roc_auc_score(failed, doubt))


def test_equal_shares_are_read_between_points_of_the_grid() -> None:
    delta = centaur_study._at_share([0.1] * 5 + [0.3] * (len(centaur_study.GRID) - 5), 0.2)
    assert delta == pytest.approx(np.sqrt(centaur_study.GRID[4] * centaur_study.GRID[5]))
    assert centaur_study._at_share([0.0] * len(centaur_study.GRID), 0.2) == pytest.approx(centaur_study.GRID[-1])


def test_latencies_come_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PLANS": 8, "FRAMES": 10, "EVERY": 0.0, "OVERLAP": 0.0}.items():
        monkeypatch.setattr(centaur, name, value)
    rows = benchmarks.measure("centaur")
    assert {row["case"].split(", ")[-1] for row in rows} == {"median", "p99"}
    for row in rows:
        assert row["ratio"] == pytest.approx(row["peer"] / row["ours"])
