"""Runs: the same bits every time, also when stopped and resumed; folders that say what happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt.config import RunConfig, resolve
from driftway.adapt.runs import CLOCKS, Run, finished
from driftway.adapt.state import digest
from driftway.streams import InputError

FIXED_KEYS = {
    *("driftway", "stream", "learner", "seed", "status", "examples", "labelled", "accuracy", "accuracy_window"),
    *("kappa", "kappa_m", "kappa_t", "logloss", "continual", "baseline", "examples_per_second", "seconds"),
    *("latency_ms", "peak_rss_mb", "state_mb", "quarantined", "dropped_labels", "rollbacks", "drift_alarms"),
    "state_sha256",
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 rows that drift half-way; every 500th has a cell that cannot be read."""
    rng = np.random.default_rng(0)
    lines = ["a,b,colour,y"]
    for i in range(3000):
        a, b = rng.normal(size=2)
        y = a + b > 0 if i < 1500 else a - b > 0
        cell = "oops" if i % 500 == 250 else f"{a:.6f}"
        lines.append(f"{cell},{b:.6f},{rng.choice(['red', 'blue'])},{'yes' if y else 'no'}")
    path = tmp_path_factory.mktemp("data") / "table.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def configured(table: Path, **given: Any) -> RunConfig:
    return resolve({"stream": str(table), "learner": "logistic", **given})


def run_whole(config: RunConfig, out: Path | None = None, **how: Any) -> dict[str, Any]:
    run = Run(config, out, **how)
    for _ in run.steps():
        pass
    return run.summary()


def without_clocks(summary: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in summary.items() if k not in CLOCKS}


def test_a_run_folder_is_whole(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary = run_whole(configured(table), out)
    written = json.loads((out / "summary.json").read_text())
    assert without_clocks(written) == without_clocks(summary)
    assert set(written) >= FIXED_KEYS
    assert (written["status"], written["examples"], written["quarantined"]) == ("done", 2994, 6)
    assert written["continual"] is None
    assert set(written["baseline"]) == {"majority", "no_change"}
    assert len(written["state_sha256"]) == 64
    refused = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [r["row"] for r in refused] == [250, 750, 1250, 1750, 2250, 2750]
    assert all("'a'" in r["reason"] for r in refused)
    header, *rows = (out / "records.csv").read_text().splitlines()
    assert header.startswith("step,kind,labelled,accuracy,")
    assert [int(r.split(",")[0]) for r in rows if ",progress," in r] == list(range(100, 3000, 100))
    assert rows[-1].startswith("2994,end,")
    assert (out / "timings.csv").read_text().startswith("step,seconds,")


def test_the_same_run_gives_the_same_bytes(table: Path, tmp_path: Path) -> None:
    config = configured(table, delay="7", batch="1")
    first = run_whole(config, tmp_path / "one")
    again = resolve({}, config=tmp_path / "one" / "config.toml")
    second = run_whole(again, tmp_path / "two")
    assert without_clocks(first) == without_clocks(second)
    for name in ("records.csv", "quarantine.jsonl", "config.toml"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("given", [{}, {"delay": "7"}, {"batch": "32"}, {"batch": "8", "delay": "20"}])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(table: Path, tmp_path: Path, given: dict[str, str]) -> None:
    config = configured(table, **given)
    whole = run_whole(config, tmp_path / "whole")
    out = tmp_path / "stopped"
    for stop_after in (1, 6, 11):
        run = Run(config, out, resume=True)
        for number, _ in enumerate(run.steps()):
            if number == stop_after:
                run.stop()
                run.stop()
        assert run.status == "interrupted"
        assert json.loads((out / "summary.json").read_text())["status"] == "interrupted"
        assert finished(out, config) is None
    resumed = run_whole(config, out, resume=True)
    assert without_clocks(resumed) == without_clocks(whole)
    for name in ("records.csv", "quarantine.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    done = finished(out, config)
    assert done is not None
    assert done["state_sha256"] == whole["state_sha256"]


def test_a_resume_after_the_last_checkpoint_repeats_no_record(table: Path, tmp_path: Path) -> None:
    """Killed between the last checkpoint and the summary."""
    config = configured(table)
    run_whole(config, tmp_path)
    before = (tmp_path / "records.csv").read_bytes()
    (tmp_path / "summary.json").unlink()
    assert run_whole(config, tmp_path, resume=True)["status"] == "done"
    assert (tmp_path / "records.csv").read_bytes() == before


def test_row_by_row_equals_events_of_one_row(table: Path) -> None:
    config = configured(table)
    run = Run(config)
    ours = [(r.step, r.kind, r.values) for r in run.steps()]
    stream = dw.rebatch(dw.stream(str(table)), 1)
    loop = dw.Loop(dw.learner("logistic", stream.spec), evaluators=[dw.Prequential(stream.spec)], guard=dw.Guard())
    assert ours == [(r.step, r.kind, r.values) for r in loop.steps(stream)]


BAD_LINES = (
    "oops,1,red,yes", "1,2,red", "1,2,red,yes,9", "1,inf,red,yes", "1,2,red,", "1,2,red,maybe", '"1,2,red,yes', "",
    "1e999,2,red,no", "1,2,r\udcffd,yes",
)  # fmt: skip


def test_bad_rows_leave_no_trace_in_the_model(tmp_path: Path) -> None:
    """Ten kinds of bad rows among good ones: all quarantined, by number; the model is that of the good rows alone."""
    rng = np.random.default_rng(1)
    bad = dict(zip(rng.choice(np.arange(1100, 6000), 100, replace=False).tolist(), BAD_LINES * 10))
    lines = [
        f"{a:.5f},{b:.5f},{'red' if a > 1 else 'blue'},{'yes' if a > b else 'no'}"
        for a, b in rng.normal(size=(6000, 2))
    ]
    header = "a,b,colour,y\n"
    files = {
        "good.csv": [line for i, line in enumerate(lines) if i not in bad],
        "both.csv": [bad.get(i, line) for i, line in enumerate(lines)],
    }
    for name, rows in files.items():
        text = header + "\n".join(rows) + "\n"
        (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    clean = run_whole(configured(tmp_path / "good.csv"))
    mixed = run_whole(configured(tmp_path / "both.csv"), tmp_path / "run")
    assert (mixed["status"], mixed["examples"], mixed["quarantined"]) == ("done", 5900, 100)
    assert mixed["state_sha256"] == clean["state_sha256"]
    refused = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(r["row"] for r in refused) == sorted(bad)
    assert all(r["reason"] for r in refused)


def test_limit_and_delay(table: Path) -> None:
    summary = run_whole(configured(table, limit="400", delay="50"))
    assert (summary["examples"], summary["labelled"], summary["waiting"]) == (400, 400, 0)


def test_a_folder_is_not_overwritten(table: Path, tmp_path: Path) -> None:
    config = configured(table, limit="200")
    run_whole(config, tmp_path / "run")
    with pytest.raises(InputError, match="holds a run already; --resume continues it"):
        Run(config, tmp_path / "run")
    with pytest.raises(InputError, match="limit is 200 there, 300 was asked for"):
        Run(configured(table, limit="300"), tmp_path / "run", resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="this is a file"):
        Run(config, tmp_path / "file")


def test_a_learner_without_state_runs_but_keeps_no_checkpoint(table: Path, tmp_path: Path) -> None:
    config = configured(table, learner="river:tree.HoeffdingTreeClassifier", limit="200")
    run = Run(config, tmp_path / "run")
    assert "no checkpoint" in run.notes[0]
    for _ in run.steps():
        pass
    summary = run.summary()
    assert (summary["state_sha256"], summary["state_mb"], summary["status"]) == (None, None, "done")
    assert not (tmp_path / "run" / "checkpoint").exists()
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(InputError, match="cannot be resumed"):
        Run(config, tmp_path / "run", resume=True)


def test_the_device_is_checked(table: Path) -> None:
    with pytest.raises(InputError, match="runs on the cpu only"):
        Run(configured(table, device="cuda"))


def test_the_guard_changes_nothing_while_all_is_well(table: Path) -> None:
    watched, free = run_whole(configured(table)), run_whole(configured(table, guard="false"))
    assert watched["state_sha256"] == free["state_sha256"]


@pytest.mark.parametrize("row_by_row", [True, False])
def test_labels_for_judging_only_are_judged_and_never_learnt(row_by_row: bool) -> None:
    x, y = np.random.default_rng(0).random((6, 2)), np.array([0, 1, 0, 1, 0, 1])
    spec = dw.StreamSpec("s", (dw.Column("a"), dw.Column("b")), classes=("n", "y"))
    learner, seen = dw.learner("logistic", spec), dw.Prequential(spec)
    loop = dw.Loop(learner, evaluators=[seen], row_by_row=row_by_row)
    loop.predict(dw.Batch(np.arange(6), x, 0.0))
    untouched = digest(learner.state())
    loop.label(dw.Labels(np.arange(4), y[:4], 0.0, learn=False))
    assert (loop.labelled, loop.updates, digest(learner.state())) == (4, 0, untouched)
    loop.label(dw.Labels(np.array([4, 5]), y[4:], 0.0))
    assert (loop.labelled, loop.updates) == (6, 2 if row_by_row else 1)
    assert digest(learner.state()) != untouched
