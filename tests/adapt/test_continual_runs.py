"""Runs that are evaluated as they go: what stands in the folder, and that stopping and resuming changes none of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from driftway.adapt.config import RunConfig, read_toml, resolve, to_toml
from driftway.adapt.runs import CLOCKS, Run, make_continual
from driftway.evaluation.continual_scores import Scores
from driftway.evaluation.curves import read_curve
from driftway.streams import InputError

FILES = ("records.csv", "continual.csv", "config.toml")


def configured(**given: Any) -> RunConfig:
    settings = given.pop("settings", [])
    return resolve({"stream": "split-digits", "learner": "logistic", "batch": "10", **given}, settings=settings)


def run_whole(config: RunConfig, out: Path | None = None, **how: Any) -> dict[str, Any]:
    run = Run(config, out, **how)
    for _ in run.steps():
        pass
    return {k: v for k, v in run.summary().items() if k not in CLOCKS}


def test_the_folder_holds_the_whole_curve(tmp_path: Path) -> None:
    found = run_whole(configured(evaluate_every="1"), tmp_path)["continual"]
    curve = read_curve(tmp_path / "continual.csv")
    assert curve.update.tolist() == list(range(1, 129))
    assert curve.step[-1] == 1257
    assert len(curve.switches) == 4
    assert (curve.right >= 0).sum(1).tolist() == (curve.experience + 1).tolist()
    scores = Scores(curve.sizes)
    for right in curve.right.tolist():
        scores.add([count for count in right if count >= 0])
    figures = scores.figures()
    assert {k: found[k] for k in figures} == figures
    counts = {"evaluations": 128, "missed": 0, "every": 1, "rows": sum(curve.sizes), "experiences": 5}
    assert found == figures | {"acc_margin": None} | counts
    assert found["min_acc"] < found["acc"]
    with (tmp_path / "records.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["kind"] in ("progress", "end")]
    assert [r["experience"] for r in rows[:3]] == ["0", "0", "0" if curve.experience[29] == 0 else "1"]
    assert float(rows[-1]["acc"]) == found["acc"]
    assert float(rows[-1]["wc_acc"]) == found["wc_acc"]
    assert rows[0]["min_acc"] == ""


@pytest.mark.parametrize(
    ("given", "evaluations"),
    [({}, 5), ({"evaluate_every": "auto"}, 5), ({"evaluate_every": "10"}, 17), ({"batch": "1"}, 5)],
    ids=str,
)
def test_when_it_is_evaluated(given: dict[str, str], evaluations: int, tmp_path: Path) -> None:
    config = configured(**given)
    found = run_whole(config, tmp_path)["continual"]
    assert found["evaluations"] == evaluations
    assert found["every"] == (None if config.evaluate_every == "auto" else config.evaluate_every)
    assert len(read_curve(tmp_path / "continual.csv").update) == evaluations


def test_evaluation_does_not_touch_the_model(tmp_path: Path) -> None:
    watched = run_whole(configured(evaluate_every="1"))
    alone = run_whole(configured(evaluate_every="0"), tmp_path)
    assert watched["state_sha256"] == alone["state_sha256"]
    assert alone["continual"] is None
    assert not (tmp_path / "continual.csv").exists()


def test_a_run_that_ends_early_is_judged_where_it_ends() -> None:
    found = run_whole(configured(limit="300"))["continual"]
    assert (found["experiences"], found["evaluations"]) == (2, 2)
    assert found["min_acc"] is not None
    assert run_whole(configured(limit="30"))["continual"]["min_acc"] is None


def test_streams_without_held_out_rows() -> None:
    with pytest.raises(InputError, match="evaluate-every: stream digits has no held-out rows"):
        Run(configured(stream="digits", evaluate_every="1"))
    for every in ("auto", "0"):
        assert Run(configured(stream="digits", evaluate_every=every)).continual is None


def test_settings() -> None:
    with pytest.raises(InputError, match=r"evaluate-every: .*choose from a number, auto"):
        configured(evaluate_every="often")
    with pytest.raises(InputError, match="evaluate-every: must be at least 0"):
        configured(evaluate_every="-1")
    with pytest.raises(InputError, match="evaluate-rows: must be at least 1"):
        configured(evaluate_rows="0")
    config = configured(evaluate_rows="20", wp_reference="true", settings=["scenario=task"])
    watch = make_continual(config, Run(config).stream.spec)
    assert watch is not None
    assert set(watch.answers.sizes) == {20}
    found = run_whole(config)["continual"]
    assert 0 < found["acc_margin"] < 0.1
    assert found["rows"] == 100


@pytest.mark.parametrize("every", ["auto", "3"])
def test_the_setting_survives_its_file(every: str, tmp_path: Path) -> None:
    config = configured(evaluate_every=every)
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config))
    assert read_toml(path)["evaluate_every"] == config.evaluate_every
    assert resolve({}, config=path) == config


@pytest.mark.parametrize("given", [{"evaluate_every": "1"}, {"evaluate_every": "7", "batch": "1"}, {}], ids=str)
def test_stopped_and_resumed_equals_undisturbed(tmp_path: Path, given: dict[str, str]) -> None:
    config = configured(**given)
    whole = run_whole(config, tmp_path / "whole")
    out = tmp_path / "stopped"
    for stop_after in (2, 5, 11):
        run = Run(config, out, resume=True)
        for number, _ in enumerate(run.steps()):
            if number == stop_after:
                run.stop()
    assert run_whole(config, out, resume=True) == whole
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_what_was_written_after_the_last_checkpoint_is_cut(tmp_path: Path) -> None:
    config = configured(evaluate_every="1")
    run_whole(config, tmp_path)
    before = (tmp_path / "continual.csv").read_bytes()
    with (tmp_path / "continual.csv").open("ab") as file:
        file.write(b"129,1267,4,1,1,1,1,1\n130,12")
    (tmp_path / "summary.json").unlink()
    run_whole(config, tmp_path, resume=True)
    assert (tmp_path / "continual.csv").read_bytes() == before
    assert json.loads((tmp_path / "summary.json").read_text())["continual"]["evaluations"] == 128
