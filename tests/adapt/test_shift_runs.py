"""Runs on shifts and sessions: what the summary says is true, the same after a stop, and watching changes nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt.cli import main
from driftway.adapt.config import RunConfig, resolve
from driftway.adapt.console import print_comparison, print_summary
from driftway.adapt.folder import TIMING_COLUMNS
from driftway.adapt.runs import CLOCKS, Run, watches

SHIFTS = ("kinds=gaussian_noise,fog", "rows=60")
SMALL = ("epochs=4", "source_batch=64", "model=convnet:4", "cache=false")


def configured(stream: str = "digits-c", learner: str = "tent", settings: Any = SHIFTS, **given: Any) -> RunConfig:
    small = SMALL if learner in ("tent", "source", "bn-adapt") else ()
    return resolve({"stream": stream, "learner": learner, "batch": "16", **given}, settings=[*settings, *small])


def whole(config: RunConfig, out: Path | None = None, **how: Any) -> dict[str, Any]:
    run = Run(config, out, **how)
    for _ in run.steps():
        pass
    return run.summary()


def without_clocks(summary: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in summary.items() if k not in CLOCKS}


@pytest.mark.parametrize("given", [{}, {"delay": "37"}, {"batch": "1"}, {"batch": "1", "delay": "5"}])
def test_the_summary_is_what_a_plain_loop_counts(given: dict[str, str]) -> None:
    """Answers of the same learner on the same rows, compared with the labels by hand."""
    config = configured(**given)
    summary = whole(config)
    run = Run(config)
    wrong: dict[str, list[bool]] = {}
    sure, name = [], ""
    for event in dw.rebatch(dw.stream("digits-c", kinds=("gaussian_noise", "fog"), rows=60), config.batch):
        if isinstance(event, dw.Boundary):
            name = event.name
            continue
        assert isinstance(event, dw.Batch)
        prediction = run.learner.predict(event)
        run.learner.adapt(event, prediction)
        wrong.setdefault(name, []).extend((prediction.output != event.y).tolist())
        sure += prediction.scores.max(1).tolist()
    assert summary["shifts"] == {name: np.mean(rows) for name, rows in wrong.items()}
    assert list(summary["shifts"]) == ["gaussian_noise 5", "fog 5"]
    assert summary["shift_error"] == pytest.approx(np.mean(list(summary["shifts"].values())))
    assert summary["calibration"]["rows"] == 120
    assert summary["calibration"]["gap"] == pytest.approx(np.mean(sure) - summary["accuracy"])
    assert summary["ms_per_batch"]["batches"] == (120 if config.batch == 1 else 2 * 4)
    x, y = run.stream.spec.source.test()
    order = np.random.default_rng(0).permutation(len(y))
    asked = [run.learner.probe(x[part])().argmax(1) == y[part] for part in np.split(order, range(200, len(y), 200))]
    assert summary["source_domain"]["after"] == np.mean(np.concatenate(asked))
    assert summary["source_domain"]["rows"] == len(y)


def test_the_source_forgets_nothing_and_others_have_none() -> None:
    told = whole(configured(learner="source"))["source_domain"]
    assert told["forgotten"] == 0.0
    assert told["before"] == told["after"] > 0.05
    summary = whole(configured(learner="majority"))
    assert summary["source_domain"] is None
    assert summary["ece"] is not None
    assert set(summary["shifts"]) == {"gaussian_noise 5", "fog 5"}


@pytest.mark.parametrize("given", [{}, {"delay": "37"}, {"batch": "1"}])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, given: dict[str, str]) -> None:
    config = configured(**given, every="10")
    expected = whole(config, tmp_path / "whole")
    out = tmp_path / "stopped"
    for stop_after in (1, 3, 4):
        run = Run(config, out, resume=True)
        for number, _ in enumerate(run.steps()):
            if number == stop_after:
                run.stop()
        assert json.loads((out / "summary.json").read_text())["source_domain"]["before"] is not None
    resumed = whole(config, out, resume=True)
    assert without_clocks(resumed) == without_clocks(expected)
    assert (out / "records.csv").read_bytes() == (tmp_path / "whole" / "records.csv").read_bytes()


def test_watching_changes_nothing() -> None:
    """The learner ends in the same state with every evaluator and with none."""
    config = configured()
    run = Run(config)
    plain = Run(config)
    plain.source_domain = None
    plain.loop.evaluators = plain.loop.evaluators[:1]
    for one in (run, plain):
        for _ in one.steps():
            pass
    assert run.summary()["source_domain"] is not None
    assert run.summary()["state_sha256"] == plain.summary()["state_sha256"]


def test_sessions_count_queries_only(tmp_path: Path) -> None:
    config = configured("digits-gilcd", "bn-adapt", ("rows=40", "passes=1"))
    summary = whole(config, tmp_path)
    found = summary["few_shot"]
    assert summary["shifts"] is None
    assert [s["rows"] for s in found["sessions"]] == [40, 40, 40]
    assert summary["labelled"] == 120 + 2 * 2 * 5
    assert found["sessions"][0]["new_accuracy"] is None
    assert found["sessions"][2]["new_accuracy"] == found["new_accuracy"] == found["harmonic_mean"] == 0.0
    assert json.loads((tmp_path / "summary.json").read_text())["few_shot"] == found


def test_what_watches_depends_on_the_stream() -> None:
    def kinds(spec: dw.StreamSpec) -> list[str]:
        return [type(watch).__name__ for watch in watches(spec)]

    assert kinds(dw.stream("digits-c").spec) == ["Calibration", "Shifts"]
    assert kinds(dw.stream("digits-gilcd").spec) == ["Calibration", "Sessions"]
    assert kinds(dw.stream("digits").spec) == ["Calibration"]
    assert kinds(dw.StreamSpec("numbers", (dw.Column("x"),), target="regression")) == []


def test_the_terminal_tells_the_figures(tmp_path: Path) -> None:
    summary = whole(configured(), tmp_path)
    file = io.StringIO()
    print_summary(summary, tmp_path, file=file)
    text = file.getvalue()
    for words in ("mean error", "2 shifts, worst", "ECE", "source domain", "before the first row", "a batch takes"):
        assert words in text, words
    timings = (tmp_path / "timings.csv").read_text().splitlines()
    assert timings[0] == ",".join(TIMING_COLUMNS)
    assert timings[-1].split(",")[-1] == "8"


def test_compare_writes_one_page_and_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [flag for s in (*SHIFTS, *SMALL) for flag in ("--set", s)]
    given = ["compare", "digits-c", "--learners", "source,bn-adapt", "--seeds", "0,1", "--batch", "16"]
    assert main([*given, *settings, "--out", str(tmp_path / "c")]) == 0
    text = capsys.readouterr().out
    header = next(line for line in text.splitlines() if "mean error" in line)
    assert header.split() == [
        *("learner", "seeds", "mean", "error", "accuracy", "minus", "source", "ECE", "forgotten"),
        *("median", "batch", "×", "source"),
        *("learner", "size", "rollbacks"),
    ]
    page = (tmp_path / "c" / "report.html").read_text()
    assert all(
        words in page for words in ("Error under each shift", "1 gaussian_noise 5", "2 fog 5", "Cost of a batch")
    )
    summaries = json.loads((tmp_path / "c" / "summaries.json").read_text())
    file = io.StringIO()
    print_comparison(summaries, file=file)
    names = ("source", "bn-adapt")
    means = {n: float(np.mean([s["shift_error"] for s in summaries if s["learner"] == n])) for n in names}
    lines = [line.split() for line in file.getvalue().splitlines() if "±" in line and line.split()[1] == "2"]
    assert [line[0] for line in lines] == sorted(names, key=means.__getitem__)
    assert [line[2] for line in lines] == [f"{100 * error:.1f}" for error in sorted(means.values())]
