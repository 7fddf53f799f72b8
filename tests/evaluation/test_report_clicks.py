"""Pages of runs on clicks: every figure where it belongs, none where there is none."""

from __future__ import annotations

import re

import driftway as dw
import numpy as np
import pytest
from driftway.evaluation import comparison, report
from driftway.evaluation.clicks import ClickScores
from driftway.evaluation.clicks_report import click_figures, click_verdict, entropy, slot_curve
from driftway.evaluation.run_data import RunData
from driftway.evaluation.section import Table


def clicked(
    learner: str = "deepfm",
    seed: int = 0,
    *,
    users: bool = True,
    times: bool = True,
    slots: int = 4,
    noise: float = 1.0,
) -> RunData:
    """A run of 400 rows in the shape a real one leaves; the third of four slots is empty where there are times."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(size=400)
    y, p = (rng.random(400) < 1 / (1 + np.exp(-logit))).astype(int), 1 / (1 + np.exp(-logit * noise))
    stamps = 1e9 + np.concatenate([np.arange(200.0), np.arange(300.0, 500.0)]) * 86400 if times else None
    impressions = dw.Impressions(rng.integers(0, 9, 400) if users else None, stamps)
    spec = dw.StreamSpec("shop", (), classes=("no", "click"), length=400, impressions=impressions)
    watch = ClickScores(spec, slots)
    watch.rows(np.arange(400), y, np.column_stack([1 - p, p]))
    summary = {
        "driftway": "0.1.0", "stream": "shop", "learner": learner, "seed": seed, "status": "done", "examples": 400,
        "labelled": 400, "accuracy": 0.7, "accuracy_window": 0.7, "kappa_t": 0.3, "examples_per_second": 900.0,
        "baseline": {"majority": 0.5, "no_change": 0.5}, "logloss": watch.summary()["clicks"]["logloss"],
    }  # fmt: skip
    records = [{"step": 100, "kind": "boundary", "values": {"note": "drift"}}]
    records += [
        {"step": s, "kind": "progress", "values": {"labelled": s, "accuracy": 0.7, "accuracy_window": 0.7, "auc": 0.6}}
        for s in (200, 400)
    ]
    return RunData(summary | watch.summary(), records, config_toml="every = 100\n")


def rows_of(run: RunData) -> list[list[str]]:
    """The table of the section on clicks, with its heads."""
    section = report.clicks_section(run)
    assert section is not None
    table = next(part for part in section.parts if isinstance(part, Table))
    return [list(table.heads), *([cell.text for cell in row] for row in table.cells())]


def test_the_table_tells_every_slot_and_all_rows() -> None:
    run = clicked()
    heads, first, _, third, _, whole = rows_of(run)
    found = run.summary["clicks"]
    assert heads[:6] == ["slot", "begins", "rows", "clicks", "AUC", "gAUC"]
    assert first[:3] == ["1", "2001-09-09 01:46", "125"]
    assert first[4:7] == [f"{found['slots'][0][key]:.4f}" for key in ("auc", "gauc", "logloss")]
    assert third[2] == "75"
    assert whole[:3] == ["all", "", "400"]
    assert whole[4] == f"{run.summary['auc']:.4f}"
    assert whole[7] == f"{entropy(found['clicks'] / 400):.4f}"
    assert whole[8] == f"{found['calibration']:.3f}"


def test_a_slot_without_rows_is_dashes_and_a_gap() -> None:
    run = clicked(slots=10)
    line = rows_of(run)[5]
    assert line == ["5", "2002-03-27 16:10", "0", *["–"] * 6]
    x, y = slot_curve(run, "auc")
    assert np.isnan(y).tolist() == [at in (5, 6) for at in x]
    assert "AUC by slot of time" in report.render_run(run)


def test_without_users_nothing_is_said_of_them() -> None:
    run = clicked(users=False, times=False)
    assert "gAUC" not in rows_of(run)[0]
    assert [row[1] for row in rows_of(run)[1:]] == ["row 0", "row 100", "row 200", "row 300", ""]
    page = report.render_run(run)
    assert "gAUC" not in page
    assert "known drift" in page
    assert "gAUC is the same among each user’s rows" in report.render_run(clicked())


@pytest.mark.parametrize(("slots", "drawn"), [(1, False), (2, True), (200, True)])
def test_drawings_from_two_slots_on(slots: int, drawn: bool) -> None:
    page = report.render_run(clicked(slots=slots, times=False))
    assert ("Calibration by slot of time" in page) == drawn
    assert ("150 more slots in summary.json." in page) == (slots == 200)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_what_is_not_exact_is_said() -> None:
    run = clicked()
    assert "taken from scores in bins" not in report.render_run(run)
    run.summary["clicks"] |= {"auc_margin": 0.00067, "users_share": 0.125}
    page = report.render_run(run)
    assert "AUC is taken from scores in bins and at most 0.0007 off." in page
    assert "gAUC is that of one user in 8, drawn by hash." in page


def test_the_verdict_is_by_the_log_loss_of_the_click_rate() -> None:
    good, bad = clicked(), clicked(noise=-1.0)
    mood, words = click_verdict(good.summary) or ("", "")
    assert mood == "good"
    assert f"AUC of {good.summary['auc']:.4f}; its log loss, {good.summary['logloss']:.4f}" in words
    assert " below that of always answering with the click rate." in words
    assert (click_verdict(bad.summary) or ("",))[0] == "bad"
    assert report.verdict(bad)[0] == "bad"
    assert click_verdict({"clicks": None}) is None
    assert [name for name, *_ in click_figures(good.summary)] == ["AUC", "log loss", "calibration"]
    assert click_figures({"clicks": None}) == []


def test_other_runs_have_no_such_section() -> None:
    run = clicked()
    run.summary.update(auc=None, gauc=None, clicks=None)
    assert report.clicks_section(run) is None
    assert "by slot of time" not in report.render_run(run)


def test_learners_side_by_side() -> None:
    runs = [clicked("good", s) for s in (0, 1)] + [clicked("<poor>", s, noise=-1.0) for s in (0, 1)]
    silent = clicked("silent")
    silent.summary.update(auc=None, gauc=None, clicks=None, logloss=None)
    facts = comparison.compared([*runs, silent])
    assert facts["table"]["columns"][:5] == ["AUC", "gAUC", "log loss", "calibration", "accuracy"]
    assert [row["name"] for row in facts["table"]["rows"]] == ["good", "<poor>", "silent"]
    assert facts["table"]["rows"][0]["cells"][0][1]
    assert facts["table"]["rows"][2]["cells"][:4] == [("–", False)] * 4
    assert facts["verdict"][1].startswith("good leads with AUC 0.7")
    page = report.render_comparison([*runs, silent])
    for words in ("AUC by slot of time", "gAUC by slot of time", "&lt;poor&gt;", "The learners are ordered by AUC"):
        assert words in page, words
    assert comparison.verdict([r.summary for r in runs[2:]])[0] == "bad"
