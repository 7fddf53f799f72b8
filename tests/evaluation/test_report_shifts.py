"""Pages of runs on shifts and on few-shot sessions: every section, the right figures, nothing that is not escaped."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driftway.evaluation import comparison, report
from driftway.evaluation.calibration import BINS
from driftway.evaluation.calibration_report import reliability
from driftway.evaluation.cost_report import with_ratios
from driftway.evaluation.run_data import RunData
from driftway.evaluation.shifts_report import error_curve, rows_of_error

NAMES = ("gaussian_noise 5", "fog 5", "snow 5")
CONFIG = 'stream = "digits-c"\nlearner = "tent"\nbatch = 64\nevery = 10\nwindow = 1000\n'


def told(sure: float, right: float, rows: int = 300) -> list[list[Any]]:
    bins: list[list[Any]] = [[0, None, None] for _ in range(BINS)]
    bins[-1] = [rows, sure, right]
    return bins


def shifted(learner: str = "tent", seed: int = 0, errors: tuple[float, ...] = (0.1, 0.3, 0.2), ms: float = 4.0) -> Any:
    """A run in the shape a real one leaves: three shifts of 100 rows, a record every ten."""
    step = np.arange(10, 301, 10)
    wrong = np.cumsum(np.repeat(10 * np.array(errors), 10))
    records = [{"step": at, "kind": "boundary", "values": {"note": n}} for at, n in zip((0, 100, 200), NAMES)]
    for s, w in zip(step.tolist(), wrong.tolist()):
        values = {"labelled": s, "accuracy": 1 - w / s, "accuracy_window": 1 - w / s, "no_change_window": 0.1}
        records.append({"step": s, "kind": "progress", "values": values})
    mean = sum(errors) / 3
    summary = {
        "driftway": "0.1.0", "stream": "digits-c", "learner": learner, "seed": seed, "status": "done", "examples": 300,
        "labelled": 300, "accuracy": 1 - mean, "accuracy_window": 1 - mean, "kappa_t": 0.5,
        "baseline": {"majority": 0.1, "no_change": 0.1}, "examples_per_second": 900.0,
        "shifts": dict(zip(NAMES, errors, strict=True)), "shift_error": mean, "few_shot": None,
        "ece": 0.9 - (1 - mean), "calibration": {"rows": 300, "gap": 0.9 - (1 - mean), "bins": told(0.9, 1 - mean)},
        "source_domain": {"before": 0.99, "after": 0.94, "forgotten": 0.05, "rows": 540},
        "ms_per_batch": {"batches": 5, "predict": 0.5 * ms, "adapt": 0.5 * ms, "learn": 0.0, "total": ms, "mean": ms},
    }  # fmt: skip
    return RunData(summary, sorted(records, key=lambda r: r["step"]), config_toml=CONFIG)


def few_shot(learner: str = "csfa", seed: int = 0, new: float = 0.6) -> Any:
    run = shifted(learner, seed)
    hm = 2 * 0.9 * new / (0.9 + new)
    empty = {"new_accuracy": None, "harmonic_mean": None}
    sessions = [
        {"name": "session 0: base classes", "rows": 100, "accuracy": 0.95, "base_accuracy": 0.95} | empty,
        {"name": "session 1: classes <6>", "rows": 100, "accuracy": 0.8, "base_accuracy": 0.9, "new_accuracy": new,
         "harmonic_mean": hm},
    ]  # fmt: skip
    means = {"accuracy": 0.875, "base_accuracy": 0.925, "new_accuracy": new, "harmonic_mean": hm, "drop": 0.15}
    run.summary.update(stream="digits-gilcd", shifts=None, shift_error=None, few_shot={**means, "sessions": sessions})
    return run


class Nesting(HTMLParser):
    """Fails on an element that is closed in the wrong order or left open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:  # noqa: ARG002
        if tag not in ("meta", "path", "rect", "circle", "use", "br", "image"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "rect", "circle", "use", "image"):
            assert self.open.pop() == tag


def sections(page: str) -> dict[str, str]:
    """The text of every section by its title."""
    parts = re.findall(r"<section[^>]*>\s*<h2>(.*?)</h2>(.*?)</section>", page, re.DOTALL)
    return {title: " ".join(re.sub(r"<[^>]+>", " ", body).split()) for title, body in parts}


def test_the_page_of_a_run_on_shifts() -> None:
    page = report.render_run(shifted())
    Nesting(page)
    assert page == report.render_run(shifted())
    found = sections(page)
    assert "The mean error is 20.0 %" in found["Shifts"]
    assert "the worst is 30.0 % under fog 5" in found["Shifts"]
    assert "1 gaussian_noise 5 10.0 % 2 fog 5 30.0 % 3 snow 5 20.0 %" in found["Shifts"]
    assert "Error among the last 20 rows" in found["Shifts"]
    assert "99.0 % 94.0 % 5.0 points 540" in found["Source domain"]
    assert "5.0 points were forgotten" in found["Source domain"]
    assert "It is 10.0 %: overconfident, on average confidence is 10.0 points above accuracy" in found["Calibration"]
    assert "one batch of 64 rows took, over 5 batches" in found["Cost of a batch"]
    assert "2.00 ms 2.00 ms 0.0 µs 4.00 ms 4.00 ms" in found["Cost of a batch"]
    assert "Mean error" in page
    assert "3 shifts, worst 30.0 %" in page
    assert "Sessions" not in found


def test_the_page_of_a_run_with_sessions() -> None:
    page = report.render_run(few_shot())
    Nesting(page)
    found = sections(page)
    assert "session 0: base classes 100 95.0 % 95.0 % – –" in found["Sessions"]
    assert "session 1: classes &lt;6&gt; 100 80.0 % 90.0 % 60.0 % 72.0 %" in found["Sessions"]
    assert "mean 87.5 % 92.5 % 60.0 % 72.0 %" in found["Sessions"]
    assert "the accuracy over all classes went from 95.0 % to 80.0 %" in found["Sessions"]
    assert "Shifts" not in found
    assert "base 92.5 %, new 60.0 %" in page


def test_a_run_on_another_stream_has_none_of_it() -> None:
    run = shifted()
    for key in ("shifts", "shift_error", "few_shot", "ece", "calibration", "source_domain", "ms_per_batch"):
        run.summary[key] = None
    assert {"Shifts", "Sessions", "Calibration", "Source domain", "Cost of a batch"}.isdisjoint(
        sections(report.render_run(run))
    )


@pytest.mark.parametrize("gap", [0.1, -0.1, 0.0])
def test_the_tendency_in_words(gap: float) -> None:
    run = shifted()
    run.summary["calibration"]["gap"] = gap
    words = {0.1: ": overconfident", -0.1: ": underconfident", 0.0: ": confidence is on average as high"}
    assert words[gap] in sections(report.render_run(run))["Calibration"]


def test_hostile_names_are_escaped() -> None:
    run = shifted()
    run.summary["shifts"] = {"<script>alert(1)</script>": 0.5}
    run.summary["learner"] = "<img src=x>"
    for page in (report.render_run(run), report.render_comparison([run])):
        assert "<script" not in page
        assert "<img" not in page
        Nesting(page)


def test_the_error_over_time_by_hand() -> None:
    """Records every ten rows, the error of the last twenty: half of the new shift's at its first record."""
    run = shifted()
    assert rows_of_error(run) == 20
    x, y = error_curve(run, 20)
    assert x.tolist() == list(range(20, 301, 10))
    np.testing.assert_allclose(y[:9], 0.1)
    np.testing.assert_allclose(y[9:12], [0.2, 0.3, 0.3])
    np.testing.assert_allclose(y[-2:], 0.2)


def test_the_error_over_time_where_labels_are_late() -> None:
    """A record in which no label has come since the one before adds no point of its own making."""
    run = shifted()
    for record in run.progress():
        record["values"]["labelled"] = max(0, record["values"]["labelled"] - 30)
    for record in run.progress()[:3]:
        record["values"]["accuracy"] = None
    x, y = error_curve(run, 20)
    assert x[0] == 50
    assert np.isfinite(y).all()


def test_a_run_that_stopped_under_its_first_shift() -> None:
    run = shifted()
    run.records[:] = [r for r in run.records if r["step"] < 20]
    run.summary.update(shifts={NAMES[0]: 0.1}, shift_error=0.1, status="interrupted", examples=10)
    assert "The mean error is 10.0 %" in sections(report.render_run(run))["Shifts"]


def test_reliability_draws_a_bar_per_bin_that_has_rows() -> None:
    bins = np.zeros((BINS, 3))
    bins[3], bins[14] = (5, 1.2, 1), (100, 98.0, 90)
    drawn = reliability(bins)
    assert drawn.svg == reliability(bins).svg
    assert drawn.svg != reliability(bins[::-1]).svg
    assert [words for *_, words in drawn.legend] == ["accuracy", "perfect calibration", "share of rows"]


# --- side by side ---------------------------------------------------------------------------------------------------


def several() -> list[Any]:
    return [
        shifted("source", 0, (0.5, 0.3, 0.4), ms=2.0),
        shifted("source", 1, (0.7, 0.3, 0.4), ms=2.0),
        shifted("tent", 0, (0.1, 0.4, 0.2), ms=4.0),
        shifted("tent", 1, (0.1, 0.4, 0.2), ms=6.0),
    ]


def test_the_table_of_a_comparison_on_shifts() -> None:
    table = comparison.table([run.summary for run in several()])
    assert table["columns"] == ["mean error", "accuracy", "ECE", "forgotten", "median batch", "× source"]
    rows = {row["name"]: [text for text, _ in row["cells"]] for row in table["rows"]}
    assert list(rows) == ["tent", "source"]
    assert rows["tent"] == ["23.3 ± 0.0", "76.7 ± 0.0", "13.3 ± 0.0", "5.0 ± 0.0", "5.00 ± 1.41 ms", "2.5 ± 0.7"]
    assert rows["source"][0] == "43.3 ± 4.7"
    assert [best for _, best in table["rows"][0]["cells"]][:3] == [True, True, True]
    assert table["baseline_at"] == 1
    assert comparison.verdict([run.summary for run in several()]) == (
        "good", "tent leads with mean error 23.3 %, 20.0 points ahead of source.",
    )  # fmt: skip


def test_the_verdict_names_who_is_no_better_than_the_source() -> None:
    runs = [r.summary for r in (shifted("source"), shifted("tent", errors=(0.5, 0.5, 0.5)))]
    assert comparison.verdict(runs) == (
        "bad", "source leads with mean error 20.0 %, 30.0 points ahead of tent. No adaptation did better than none.",
    )  # fmt: skip
    runs += [shifted("sar", errors=(0.1, 0.1, 0.1)).summary, shifted("rsgs", errors=(0.2, 0.2, 0.4)).summary]
    words = "sar leads with mean error 10.0 %, 10.0 points ahead of source. No better than the source: rsgs, tent."
    assert comparison.verdict(runs) == ("good", words)
    assert comparison.verdict(runs[1:])[0] == "plain"


def test_the_page_of_a_comparison_on_shifts() -> None:
    page = report.render_comparison(several())
    Nesting(page)
    assert page == report.render_comparison(several())
    found = sections(page)
    errors = found["Error under each shift"]
    assert "shift tent source 1 gaussian_noise 5 10.0 ± 0.0 60.0 ± 14.1" in errors
    assert "2 fog 5 40.0 ± 0.0 30.0 ± 0.0" in errors
    assert "mean 23.3 ± 0.0 43.3 ± 4.7" in errors
    assert '<td class="best">30.0 ± 0.0</td>' in page
    assert "tent 99.0 ± 0.0 94.0 ± 0.0 5.0 ± 0.0" in found["Source domain"]
    assert "Below the dashed line a learner is too sure" in found["Calibration"]
    assert (
        "tent 2.50 ± 0.71 ms 2.50 ± 0.71 ms 0.0 ± 0.0 µs 5.00 ± 1.41 ms 5.00 ± 1.41 ms 2.5 ± 0.7"
        in found["Cost of a batch"]
    )
    assert "Mean error is the share of wrong answers" in found["Results"]


def test_the_comparison_of_sessions() -> None:
    runs = [few_shot("csfa", 0, 0.6), few_shot("csfa", 1, 0.7), few_shot("tent", 0, 0.2), few_shot("tent", 1, 0.3)]
    table = comparison.table([r.summary for r in runs])
    assert table["columns"][:5] == ["HM", "base", "new", "all classes", "drop"]
    assert table["rows"][0]["name"] == "csfa"
    assert table["rows"][0]["cells"][:3] == [("75.4 ± 4.8", True), ("92.5 ± 0.0", False), ("65.0 ± 7.1", True)]
    assert comparison.verdict([r.summary for r in runs])[1].startswith("csfa leads with harmonic mean 75.4 %, ")
    page = report.render_comparison(runs)
    Nesting(page)
    text = sections(page)["Base and new classes"]
    assert all(words in text for words in ("HM, session by session", "Base accuracy, session", "New accuracy, session"))


def test_sessions_where_nobody_knows_a_new_class_are_ordered_by_accuracy() -> None:
    runs = [few_shot("tent", 0, 0.0).summary, few_shot("source", 0, 0.0).summary]
    runs[1] = copy.deepcopy(runs[1])
    runs[1]["few_shot"]["accuracy"] = 0.5
    mood, words = comparison.verdict(runs)
    assert mood == "good"
    assert words == "tent leads with accuracy over sessions 87.5 %, 37.5 points ahead of source."


def test_ratios_are_taken_seed_by_seed() -> None:
    found = with_ratios([run.summary for run in several()])
    assert [s["ms_per_batch"]["times_source"] for s in found] == [1.0, 1.0, 2.0, 3.0]
    alone = [shifted("tent").summary]
    assert with_ratios(alone) == alone


def test_a_folder_of_an_older_version_is_still_a_page(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"stream": "digits-c", "learner": "tent", "accuracy": 0.5, "labelled": 9}')
    run = report.read_run(tmp_path)
    assert "Shifts" not in sections(report.render_run(run))
    assert "Error under each shift" not in sections(report.render_comparison([run]))
