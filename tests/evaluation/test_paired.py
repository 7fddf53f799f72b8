"""Adapted against source: counts by hand, what the estimate is made of, and the sections that show both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from driftway.evaluation.label_free import estimated_gain, histogram_entropy, information, persistence
from driftway.evaluation.paired import Paired
from driftway.evaluation.paired_report import paired_compared, paired_section, paired_verdict
from driftway.evaluation.report import verdict
from driftway.evaluation.run_data import RunData
from driftway.evaluation.section import Compared, Drawing, Table, Words


def test_counts_and_the_error_of_paired_rows() -> None:
    rng = np.random.default_rng(0)
    mine, its = rng.random(500) < 0.8, rng.random(500) < 0.6
    both = Paired(64)
    for part in np.array_split(np.arange(500), 7):
        both.judge(mine[part], its[part])
    won = mine.astype(float) - its
    found = both.summary()
    assert found["judged_rows"] == 500
    assert found["gain"] == pytest.approx(won.mean())
    assert found["gain_se"] == pytest.approx(won.std() / np.sqrt(500))
    assert both.recent_gain() == pytest.approx(won[-64:].mean())
    restarted = Paired(64)
    restarted.load(both.state())
    assert restarted.summary() == found
    assert restarted.recent_gain() == both.recent_gain()


def test_nothing_is_known_before_anything_came() -> None:
    both = Paired(10)
    assert both.recent_gain() is both.estimate is None
    assert {both.summary()[k] for k in ("adapted", "source", "gain", "gain_se", "estimated_gain")} == {None}


def test_guesses_weigh_as_the_rows_they_are_about() -> None:
    both = Paired(10)
    both.guess(0.3, 10)
    both.guess(-0.1, 30)
    assert both.summary()["estimated_gain"] == pytest.approx(0.0)
    assert both.estimate == -0.1


def test_parts_of_the_estimate_by_hand() -> None:
    assert histogram_entropy(np.array([0, 0, 1, 1]), 3) == pytest.approx(np.log(2))
    p = np.array([[0.9, 0.1], [0.1, 0.9]])
    inner = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    assert information(p) == pytest.approx(np.log(2) - inner)
    assert persistence(np.array([0, 0, 0, 1, 1, 1]), 2) == pytest.approx(4 / 5 - 1 / 2)


def test_the_estimate_by_hand() -> None:
    """Two classes, eight rows in two runs; the learner says the second class once where the source does not."""
    its = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    mine = np.array([0, 1, 0, 0, 1, 1, 1, 1])
    p, q = (np.eye(2)[a] * 0.8 + 0.1 for a in (mine, its))
    assert persistence(its, 2) - persistence(mine, 2) == pytest.approx((6 / 7 - 1 / 2) - (4 / 7 - 34 / 64))
    told = (information(p) - information(q)) / np.log(2)
    lost = (6 / 7 - 1 / 2) - (4 / 7 - 34 / 64)
    assert -0.03 < told < 0
    assert told - lost / 2 < -1 / 8
    assert estimated_gain(p, q) == pytest.approx(-1 / 8)  # no more than the share of rows that differ


SOURCE: dict[str, Any] = {
    "shadow_rows": 500, "judged_rows": 480, "adapted": 0.81, "source": 0.6, "gain": 0.21, "gain_se": 0.02,
    "estimated_gain": 0.18, "rollbacks": 1, "frozen_at": None, "stood_in": 0,
}  # fmt: skip


def a_run(**changes: Any) -> RunData:
    records = [
        {"step": s, "kind": "progress", "values": {"source_gain": 0.1 + s / 1e4, "source_gain_estimated": 0.2}}
        for s in range(100, 900, 100)
    ]
    note = {"step": 450, "kind": "rollback", "values": {"note": "back to row 400: collapsed"}}
    return RunData({"learner": "tent", "seed": 0, "source": SOURCE | changes}, [*records, note])


def words(section: Any) -> str:
    return " ".join(p.text for p in section.parts if isinstance(p, Words))


def test_section_of_a_run() -> None:
    section = paired_section(a_run())
    assert section is not None
    assert "worth 21.0 points" in words(section)
    tables = [p for p in section.parts if isinstance(p, Table)]
    assert tables[0].rows[0] == ["81.0 %", "60.0 %", "+21.0 points", "2.0 points", "+18.0 points", "480"]
    assert tables[1].rows == [["450", "rollback", "back to row 400: collapsed"]]
    drawn = next(p for p in section.parts if isinstance(p, Drawing))
    assert [name for _, _, name in drawn.plot.legend][:2] == ["adapted minus source", "estimated without labels"]
    assert "<svg" in drawn.plot.svg


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gain": -0.21}, "cost 21.0 points"),
        ({"gain": 0.01}, "as good as each other"),
        ({"gain": None, "gain_se": None, "adapted": None, "source": None}, "No label came"),
        ({"frozen_at": 1200}, "ended at row 1,200"),
        ({"stood_in": 640}, "For 640 rows the source’s answer"),
    ],
)
def test_what_a_run_says(changes: dict[str, Any], said: str) -> None:
    assert said in words(paired_section(a_run(**changes)))


def test_no_source_no_section() -> None:
    assert paired_section(RunData({"source": None})) is None
    run = RunData({"learner": "logistic"})
    assert paired_compared(Compared([run], {"logistic": [0]}, {"logistic": "#000"})) is None


def test_section_of_a_comparison() -> None:
    runs = [a_run(), a_run(gain=-0.1)]
    section = paired_compared(Compared(runs, {"tent": [0], "sar": [1]}, {"tent": "#000", "sar": "#111"}))
    assert section is not None
    table = next(p for p in section.parts if isinstance(p, Table))
    rows = [[c.text for c in row] for row in table.cells()]
    assert rows == [
        ["tent", "81.0", "60.0", "21.0", "18.0", "1", "0"],
        ["sar", "81.0", "60.0", "−10.0", "18.0", "1", "0"],
    ]
    assert table.cells()[0][3].kind == "best"


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, ("good", "tent does better than its source without adaptation: 21.0 points more")),
        ({"gain": -0.05}, ("bad", "tent does worse than its source without adaptation: 5.0 points less")),
        (
            {"gain": -0.04},
            ("plain", "cannot be told from its source without adaptation: −4.0 points, standard error 2.0"),
        ),
        ({"gain": 0.0, "gain_se": 0.0}, None),
        ({"gain": None, "gain_se": None}, None),
    ],
)
def test_the_verdict_of_a_run_is_about_its_source(changes: dict[str, Any], wanted: tuple[str, str] | None) -> None:
    summary = {"learner": "tent", "accuracy": 0.8, "baseline": {"no_change": 0.1}, "source": SOURCE | changes}
    mood, words = verdict(RunData(summary))
    if wanted is None:
        assert paired_verdict(summary) is None
        assert words.startswith("tent does better than both baselines")
    else:
        assert (mood, wanted[1] in words) == (wanted[0], True)
        assert words.endswith("on 480 rows that both answered.")
