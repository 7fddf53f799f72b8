"""Runs on clicks: the scores are those of the predictions made then, however late labels come and however often a run
is resumed; other streams have none."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt import runs
from driftway.adapt.cli import main
from driftway.adapt.config import RunConfig, resolve
from driftway.adapt.console import print_summary
from driftway.adapt.learner import State
from driftway.adapt.runs import CLOCKS, Run, watches
from driftway.evaluation.clicks import ClickScores, by_slot, click_scores
from driftway.evaluation.run_data import read_run
from driftway.streams.feed import uniform

SCORES = ("auc", "gauc", "logloss", "calibration")
ROWS, HOUR = 2000, 3600.0


class ByLot(dw.Learner):
    """The probability of every row is drawn by its id; after any label it would be another."""

    learnt = 0

    def predict(self, batch: dw.Batch) -> dw.Prediction:
        p = uniform(self.learnt // 10, batch.ids)
        return dw.Prediction((p > 0.5).astype(np.int64), np.column_stack([1 - p, p]))

    def learn(self, batch: dw.Batch, prediction: dw.Prediction) -> None:  # noqa: ARG002
        self.learnt += len(batch)

    def state(self) -> State:
        return {}

    def load(self, state: State) -> None:
        """There is nothing to load."""


def configured(stream: str, *settings: str, **given: Any) -> RunConfig:
    return resolve({"stream": stream, "learner": "logistic", **given}, settings=settings)


def whole(config: RunConfig, out: Path | None = None, **how: Any) -> dict[str, Any]:
    run = Run(config, out, **how)
    for _ in run.steps():
        pass
    return run.summary()


def without_clocks(summary: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in summary.items() if k not in CLOCKS}


@pytest.fixture(scope="module")
def singles() -> list[dw.Batch]:
    """The first rows of movielens one by one, each with its own time stamp."""
    return [e for e in dw.take(dw.stream("movielens", conversion=1.0), ROWS) if isinstance(e, dw.Batch)]


@pytest.mark.parametrize(
    ("late", "batch", "row_by_row"),
    [({}, 100, False), ({}, 100, True), ({"conversion": 2 * HOUR, "window": 24 * HOUR}, 1, False)],
)
def test_a_row_counts_where_it_came_with_the_answer_of_then(
    singles: list[dw.Batch], late: dict[str, float], batch: int, row_by_row: bool
) -> None:
    stream = dw.rebatch(dw.take(dw.stream("movielens", **late), ROWS), batch)
    events = list(stream)
    stream.seek({})
    watch = ClickScores(stream.spec, 5)
    loop = dw.Loop(ByLot(stream.spec), evaluators=[watch], row_by_row=row_by_row)
    for _ in loop.steps(stream):
        pass
    times, users = np.array([e.time for e in singles]), np.array([int(e.x[0, 0]) for e in singles])
    y, p, learnt = np.full(ROWS, -1), np.zeros(ROWS), 0
    for event in events:
        if isinstance(event, dw.Batch):
            for part in np.split(event.ids, len(event)) if row_by_row else [event.ids]:
                p[part] = uniform(learnt // 10, part)
                learnt += 0 if event.y is None else len(part)
        else:
            learnt += len(event.ids)
        if event.y is not None:
            y[event.ids] = event.y
    came = y >= 0
    assert came.all() == (not late)
    slot = np.minimum((times - times[0]) * 5 // (times[-1] - times[0]), 4)
    expected = by_slot(y[came], p[came], slot[came], users[came])
    told = watch.summary()["clicks"]
    for s, found in enumerate(told["slots"]):
        assert {k: found[k] for k in SCORES} == pytest.approx(expected[s])
    assert {k: told[k] for k in SCORES} == pytest.approx(click_scores(y[came], p[came], users[came]))
    assert told["clock"] == "seconds"


def test_the_summary_of_an_ordinary_run(tmp_path: Path) -> None:
    config = configured("ctr-drift", "train=0", batch="20", time_slots="10", limit="2500")
    summary = whole(config, tmp_path)
    found = summary["clicks"]
    assert summary["auc"] == found["auc"] > 0.5
    assert summary["gauc"] is None
    assert found["logloss"] == pytest.approx(summary["logloss"])
    assert found["clock"] == "rows"
    assert [(s["from"], s["rows"]) for s in found["slots"]] == [(250.0 * k, 250) for k in range(10)]
    records = [r for r in read_run(tmp_path).progress() if "slot" in r["values"]]
    last = {r["values"]["slot"]: r["values"] for r in records}
    assert list(last) == list(range(1, 11))
    for number, values in last.items():
        assert values["slot_auc"] == found["slots"][number - 1]["auc"]
        assert values["slot_calibration"] == found["slots"][number - 1]["calibration"]
    assert records[-1]["values"]["auc"] == pytest.approx(summary["auc"], abs=1e-3)
    assert json.loads((tmp_path / "summary.json").read_text())["clicks"] == found
    file = io.StringIO()
    print_summary(summary, tmp_path, file=file)
    for words in (f"AUC {summary['auc']:>23.4f}", "of the click rate alone", "clicks foretold", "ranks clicks with an"):
        assert words in file.getvalue(), words


@pytest.mark.parametrize(
    "given", [{"stream": "ctr-drift", "batch": "1"}, {"stream": "movielens", "batch": "16", "delay": "50"}]
)
def test_killed_and_resumed_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    """Records behind the last checkpoint are done again, as after a kill."""
    config = configured(limit="1500", **given)
    expected = whole(config, tmp_path / "whole")
    monkeypatch.setattr(runs, "Checkpointer", functools.partial(runs.Checkpointer, every=200))
    for stop in (300, 900):
        steps = Run(config, tmp_path / "cut", resume=True).steps()
        next(record for record in steps if record.step >= stop and record.kind == "progress")
        steps.close()
    resumed = whole(config, tmp_path / "cut", resume=True)
    assert without_clocks(resumed) == without_clocks(expected)
    assert (expected["gauc"] is None) == (given["stream"] == "ctr-drift")
    one, other = ((tmp_path / name / "records.csv").read_text() for name in ("whole", "cut"))
    assert one == other


def test_only_streams_of_clicks_have_the_scores() -> None:
    def kinds(spec: dw.StreamSpec) -> list[str]:
        return [type(watch).__name__ for watch in watches(spec, 10)]

    ctr, digits = dw.stream("ctr-drift", slot=50, train=0), dw.stream("digits")
    assert kinds(ctr.spec) == ["Calibration", "ClickScores"]
    assert kinds(dw.delay_labels(dw.rebatch(dw.take(ctr, 100), 2), 5).spec) == ["Calibration", "ClickScores"]
    assert kinds(digits.spec) == ["Calibration"]
    summary = whole(configured("digits", limit="300"))
    assert {summary[key] for key in ("auc", "gauc", "clicks")} == {None}


def test_comparison_puts_auc_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["compare", "ctr-drift", "--learners", "majority,logistic", "--seeds", "0,1", "--batch", "50"]
    limits = ["--limit", "3000", "--time-slots", "4", "--set", "train=0", "--out", str(tmp_path / "c")]
    assert main([*given, *limits]) == 0
    text = capsys.readouterr().out
    head, first, second = [line.split() for line in text.splitlines() if line.strip()][1:4]
    assert head[:6] == ["learner", "seeds", "AUC", "log", "loss", "calibration"]
    assert (first[0], second[0]) == ("logistic", "majority")
    assert "logistic leads with AUC 0." in text
    page = (tmp_path / "c" / "report.html").read_text()
    for words in ("AUC by slot of time", "Log loss by slot of time", "Calibration by slot of time", "ordered by AUC"):
        assert words in page, words
    assert "gAUC" not in page


@pytest.mark.parametrize("slots", ["0", "201", "many"])
def test_a_number_of_slots_that_cannot_be_ends_in_one_line(slots: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "ctr-drift", "--learner", "majority", "--limit", "20", "--time-slots", slots]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert "time-slots" in told[0]
