"""The report page: complete, self-contained, deterministic, and safe with hostile names and broken folders."""

import json
from html.parser import HTMLParser

import driftway as dw
import numpy as np
import pytest
from driftway.evaluation import comparison, figures, plots, report
from driftway.evaluation.run_data import group_reasons

CONFIG = """# driftway run electricity --learner {learner} --seed {seed} --out runs/first
stream = "electricity"
learner = "{learner}"
batch = 1
delay = 0
seed = {seed}
every = 100
window = 1000

[stream_params]

[learner_params]
variant = "data"
"""
TIMINGS = "step,seconds,predict,adapt,learn,evaluate,io,p50_ms,p99_ms,rss_mb"


def make_run(folder, learner="driftmoe", seed=0, level=0.9, rows=20_000, experts=6, regression=False):
    """A made-up run folder in the shape that a real run leaves: two drifts, three alarms, one rollback."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng([seed, len(learner)])
    step = np.arange(100, rows + 1, 100)
    dip = sum(0.25 * np.exp(-np.maximum(step - d, 0) / 900) * (step > d) for d in (rows * 0.4, rows * 0.7))
    score = level - dip + rng.normal(0, 0.004, len(step))
    rest = 0.85 + 0.02 * np.sin(step / 2500), 0.58 + 0.05 * np.sin(step / 4000)
    keys = ["mae", "rmse"] if regression else ["accuracy", "kappa_t"]
    columns = ["labelled", keys[0], f"{keys[0]}_window", f"{keys[0]}_fading", keys[1]]
    columns += ["majority", "majority_window", "no_change", "no_change_window"]
    columns += [f"expert_{i}" for i in range(experts)] + (["resets"] if experts else [])
    usage = rng.dirichlet(np.ones(max(experts, 1)), 4)
    lines = [",".join(["step", "kind", *columns, "note"])]
    for i, s in enumerate(step.tolist()):
        mix = usage[min(3, 4 * i // len(step))] * (1 + 0.2 * np.sin(i / 9 + np.arange(max(experts, 1))))
        kappa = 1 - (1 - score[: i + 1].mean()) / 0.15
        cells = [s, score[: i + 1].mean(), score[i], score[i], kappa, rest[1][: i + 1].mean(), rest[1][i]]
        cells += [rest[0][: i + 1].mean(), rest[0][i]]
        cells += [*mix.tolist(), i // 50] if experts else []
        shown = ",".join(repr(float(c)) if isinstance(c, float) else str(c) for c in cells)
        lines.append(f"{s},progress,{shown},")
        for at, kind, note in (
            (0.4, "boundary", "prices are coupled"),
            (0.415, "alarm", f"adwin at row {round(rows * 0.415) - 11}"),
            (0.55, "alarm", f"adwin at row {round(rows * 0.55) - 5}"),
            (0.7, "boundary", "holiday"),
            (0.71, "alarm", f"page_hinkley at row {round(rows * 0.71) - 77}"),
            (0.85, "rollback", f"back to row {round(rows * 0.8)}: accuracy 0.412 after a reset"),
        ):
            if s == round(rows * at / 100) * 100:
                lines.append(f"{s},{kind}{',' * len(columns)},{note}")
    last = lines[-1].split(",")
    lines.append(",".join([last[0], "end", *last[2:]]))
    (folder / "records.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    mean = float(score.mean())
    summary = {
        "driftway": "0.1.0", "stream": "electricity", "learner": learner, "seed": seed, "status": "done",
        "examples": rows, "labelled": rows, "accuracy": mean, "accuracy_window": float(score[-1]),
        "kappa": 0.7, "kappa_m": 0.76, "kappa_t": 1 - (1 - mean) / 0.15, "logloss": 0.31, "continual": None,
        "baseline": {"majority": 0.58, "no_change": 0.853}, "examples_per_second": 61234.5 / (1 + seed / 20),
        "seconds": {"predict": None, "adapt": None, "learn": 0.29, "evaluate": 0.021, "io": 0.044},
        "latency_ms": {"p50": 0.0142, "p99": 0.0311}, "peak_rss_mb": 214.3, "state_mb": 1.87,
        "quarantined": 7, "dropped_labels": 0, "rollbacks": 1, "drift_alarms": 3, "state_sha256": "ab" * 32,
    }  # fmt: skip
    delays = ({"adwin": 289, "page_hinkley": None}, {"adwin": None, "page_hinkley": 123})
    summary["drifts"] = [
        {"name": n, "step": int(rows * at), "labelled": int(rows * at), "before": level, "delay": delay, "depth": 0.23,
         "recovered": False, "recovery_rows": None, "lost": 90.0, "watched": 5801}
        for n, at, delay in zip(("prices are coupled", "holiday"), (0.4, 0.7), delays, strict=True)
    ]  # fmt: skip
    summary["detection"] = {"adwin": {"alarms": 2, "false_alarms": 1}, "page_hinkley": {"alarms": 1, "false_alarms": 0}}
    if regression:
        summary |= {"accuracy": None, "accuracy_window": None, "kappa": None, "kappa_t": None, "mae": mean, "rmse": 1.2}
        summary |= {"mae_window": float(score[-1]), "baseline": {"majority": 1.9, "no_change": 1.31}}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
    (folder / "config.toml").write_text(CONFIG.format(learner=learner, seed=seed), encoding="utf-8")
    bad = [{"row": 12 + 1000 * i, "reason": f"column price: 'n/a{i}' is no number", "step": 9} for i in range(5)]
    bad += [{"row": 77 * i, "reason": "duplicate id", "step": 400} for i in (1, 2)]
    (folder / "quarantine.jsonl").write_text("".join(json.dumps(b) + "\n" for b in bad), encoding="utf-8")
    times = [f"{s},{s / 60000 + 0.002 * (i % 3)},,,,,,0.0142,0.0311,{210 + i / 60}" for i, s in enumerate(step[::5])]
    (folder / "timings.csv").write_text("\n".join([TIMINGS, *times]) + "\n", encoding="utf-8")
    return folder


def edit_summary(folder, **changes):
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def page_of(folder):
    return report.render_run(report.read_run(folder))


class Elements(HTMLParser):
    """Every tag with its attributes, all ids, and the text outside of tags."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.ids, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [v for k, v in attrs if k == "id"]

    def handle_data(self, data):
        self.text += data


def test_page_of_a_run_is_complete_and_deterministic(tmp_path):
    folder = make_run(tmp_path / "run")
    page = page_of(folder)
    assert page == page_of(folder)
    for words in (
        "driftmoe on electricity", "20,000 rows", "seed 0", "prices are coupled", "ADWIN: 2 alarms, 1 of them false.",
        "Page-Hinkley: 1 alarm, 0 of them false.", "289 rows", "duplicate id", "known drift", "rollback", "no-change",
        "driftway run electricity --learner driftmoe --seed 0 --out runs/first", "variant = &#34;data&#34;", "expert 5",
        "14.2 µs", "214 MB", "61,200", "The guard rolled the learner back 1 time.",
    ):  # fmt: skip
        assert words in page, words


@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_page_needs_nothing_from_outside(tmp_path, kind):
    runs = [report.read_run(make_run(tmp_path / str(i), name, i)) for i, name in enumerate(("a", "b"))]
    page = report.render_run(runs[0]) if kind == "run" else report.render_comparison(runs)
    found = Elements(page)
    assert "http://" not in page
    assert "https://" not in page
    assert not {t for t, _ in found.tags} & {"link", "script", "img", "iframe", "object", "embed", "base"}
    for _, attrs in found.tags:
        assert "src" not in attrs
        assert (attrs.get("href") or "#").startswith("#")
    assert "@import" not in page
    assert len(found.ids) == len(set(found.ids))
    clips = set(plots.re.findall(r"url\(#([^)]+)\)", page))
    assert clips
    assert clips <= set(found.ids)
    assert any(t == "svg" and "viewbox" in a for t, a in found.tags)


def test_marks_are_drawn_and_numbered():
    line = [plots.Curve("a", np.arange(1, 101.0), np.linspace(0.4, 0.6, 100), plots.LEARNER)]
    bare = plots.line_plot(line, prefix="p")
    marked = plots.line_plot(line, prefix="p", marks=plots.Marks([20, 60, 900], [25], [70], [80]))
    assert [kind for _, kind, _ in marked.legend] == ["solid", "drift", "alarm", "rollback", "forget"]
    assert bare.svg.count("<use") == 0
    assert marked.svg.count("<use") == 3
    texts = plots.re.findall(r"<text[^>]*>([^<]*)<", marked.svg)
    assert texts[-2:] == ["1", "2"]


def test_what_is_cut_off_is_said():
    line = [plots.Curve("a", np.arange(1, 4.0), np.array([-5.0, 0.2, 0.4]), plots.LEARNER)]
    assert plots.line_plot(line, prefix="p", bottom=-1.0).note == "What lies below -1 is not drawn."
    assert plots.line_plot(line, prefix="p", bottom=-9.0).note == ""


def test_speed_is_not_read_off_a_moment_too_short(tmp_path):
    folder = make_run(tmp_path / "run")
    steps = [(i * 1000, i * 0.5) for i in range(8)] + [(7001, 3.500001)]
    lines = [f"{s},{t},,,,,,,,200" for s, t in steps]
    (folder / "timings.csv").write_text("\n".join([TIMINGS, *lines]) + "\n")
    page = page_of(folder)
    assert "Rows a second" in page
    assert "1M" not in page


def test_hostile_names_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>\"'&$\\frac{"
    folder = make_run(tmp_path / "run", experts=0)
    drift = {"name": evil, "step": evil, "delay": {evil: 3}, "watched": 4}
    edit_summary(folder, drifts=[drift], detection={evil: {"alarms": 3, "false_alarms": 1}})
    edit_summary(folder, learner=evil, stream=evil, seed=evil, status=evil, state_sha256=evil, driftway=evil)
    (folder / "quarantine.jsonl").write_text(json.dumps({"row": evil, "reason": evil}) + "\n")
    (folder / "config.toml").write_text(f"# driftway run {evil}\nx = 1\n")
    records = (folder / "records.csv").read_text()
    records = records.replace("holiday", evil.replace('"', "")).replace("adwin", "<script>x</script>")
    (folder / "records.csv").write_text(records)
    run = report.read_run(folder)
    for page in (report.render_run(run), report.render_comparison([run, run])):
        assert "<script" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert evil in Elements(page).text


def test_losing_to_no_change_is_said_first(tmp_path):
    folder = make_run(tmp_path / "run", level=0.8)
    page = page_of(folder)
    words = "No-change beats driftmoe by"
    assert words in page
    assert page.index(words) < page.index('<dl class="cards">')
    assert "does better than both" in page_of(make_run(tmp_path / "good", level=0.95))


def test_no_change_that_scores_the_same_is_no_win(tmp_path):
    folder = make_run(tmp_path / "run")
    edit_summary(folder, accuracy=0.853)
    kind, words = report.verdict(report.read_run(folder))
    assert kind == "bad"
    assert words == "driftmoe does no better than no-change: repeating the last label scores the same."


def test_regression_run_is_judged_by_its_error(tmp_path):
    folder = make_run(tmp_path / "run", regression=True, experts=0)
    run = report.read_run(folder)
    page = report.render_run(run)
    kind, words = report.verdict(run)
    assert kind == "good"
    assert "ahead of no-change (repeating the last value)" in words
    assert "Mean absolute error over time" in page
    assert "RMSE" in page
    assert "κ temporal" not in page
    assert "running mean" in page
    assert "majority" not in page.replace("majority_window", "")
    worse = report.RunData(run.summary | {"mae": 1.5}, run.records)
    assert report.verdict(worse) == (
        "bad",
        "No-change beats driftmoe by 0.190: repeating the last value would have been the better choice.",
    )


def test_each_missing_file_is_named_and_the_page_still_made(tmp_path):
    folder = make_run(tmp_path / "run")
    said = {
        "quarantine.jsonl": "There is no quarantine.jsonl",
        "timings.csv": "too few lines in timings.csv",
        "config.toml": "There is no config.toml",
        "records.csv": "so there is no curve to draw",
    }
    for name, words in said.items():
        assert words not in page_of(folder)
        (folder / name).unlink()
        assert words in page_of(folder)


def test_summary_with_nothing_measured_still_makes_a_page(tmp_path):
    tmp_path.joinpath("summary.json").write_text('{"stream": "s", "accuracy": null, "baseline": {"majority": null}}')
    run = report.read_run(tmp_path)
    assert "nothing was measured" in report.render_run(run)
    assert "nothing was measured" in report.render_comparison([run])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("summary.json", "{", "not a summary"),
        ("summary.json", "[1]", "a list where an object is expected"),
        ("records.csv", "a,b\n1,2\n", "line 1: no column step"),
        ("records.csv", "step,kind\nx,progress\n", "line 2: column step: 'x' is not a row number"),
        ("records.csv", "step,kind\n1\n", "line 2: 1 cells under 2 columns"),
        ("quarantine.jsonl", "{}\nnonsense\n", "line 2: not JSON"),
    ],
)
def test_broken_folder_is_one_line(tmp_path, name, text, words):
    folder = make_run(tmp_path / "run")
    (folder / name).write_text(text)
    with pytest.raises(dw.InputError) as fault:
        report.read_run(folder)
    assert words in str(fault.value)
    assert name in str(fault.value)
    assert "\n" not in str(fault.value)


def test_missing_folder_and_folder_without_a_run(tmp_path):
    with pytest.raises(dw.InputError, match="no such folder"):
        report.read_run(tmp_path / "nowhere")
    with pytest.raises(dw.InputError, match=r"holds no run \(there is no summary.json\)"):
        report.read_run(tmp_path)
    (tmp_path / "records.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(dw.InputError, match="cannot be read"):
        report.read_run(tmp_path)


def test_line_cut_by_a_kill_is_left_out(tmp_path):
    folder = make_run(tmp_path / "run")
    whole = report.read_run(folder)
    for name in ("records.csv", "quarantine.jsonl", "timings.csv"):
        with (folder / name).open("a") as file:
            file.write('2000,"prog')
    torn = report.read_run(folder)
    assert (torn.records, torn.quarantined, torn.timings) == (whole.records, whole.quarantined, whole.timings)


def test_records_may_be_parquet(tmp_path):
    csv = pytest.importorskip("pyarrow.csv")
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = make_run(tmp_path / "run")
    before = report.read_run(folder)
    parquet.write_table(csv.read_csv(folder / "records.csv"), folder / "records.parquet")
    (folder / "records.csv").unlink()
    after = report.read_run(folder)
    np.testing.assert_array_equal(after.curve("accuracy", "expert_3")[1], before.curve("accuracy", "expert_3")[1])
    assert report.drift_table(after) == report.drift_table(before)
    (folder / "records.parquet").write_text("no parquet")
    with pytest.raises(dw.InputError, match="cannot be read"):
        report.read_run(folder)


def test_thin_keeps_ends_dips_and_spikes():
    y = np.zeros(100_000)
    y[[31_007, 77_777]] = -1, 2
    y[500] = np.nan
    kept = plots.thin(y, 1000)
    assert len(kept) <= 1000
    assert {0, 31_007, 77_777, 99_999} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()
    assert plots.thin(y[:1000], 1000).tolist() == list(range(1000))
    assert len(plots.thin(y[:1001], 1000)) <= 1000


def test_long_run_makes_a_small_page():
    rows = [
        {"step": s, "kind": "progress", "values": {"accuracy": 0.5, "accuracy_window": 0.2 + (s * 7919 % 1000) / 2000}}
        for s in range(1, 50_001)
    ]
    summary = {"accuracy": 0.5, "baseline": {"majority": 0.4, "no_change": None}}
    page = report.render_run(report.RunData(summary, rows))
    longest = max(
        len(set(plots.re.findall(r"[ML] [\d.]+ [\d.]+", path))) for path in plots.re.findall(r' d="([^"]*)"', page)
    )
    assert 500 < longest <= plots.LIMIT
    assert len(page) < 120_000


def test_expert_shares_add_up_and_small_ones_are_joined():
    x = np.arange(1, 501.0)
    shares = np.tile(np.array([0.08] * 10 + [0.02] * 10), (500, 1))
    drawn = plots.area_plot(x, shares, [f"e{i}" for i in range(20)], prefix="p")
    assert len(drawn.legend) == len(plots.AREAS)
    assert drawn.legend[0][2] == "e0 · 8 %"
    assert drawn.legend[-1][2] == "others · 18 %"
    means = plots.bucket_means(np.arange(10.0)[:, None], 4)
    assert means[:, 0].tolist() == [0.5, 3.0, 5.5, 8.0]


def drifting(**changes):
    drift = {"name": "x", "step": 500, "labelled": 400, "before": 0.9, "delay": {"adwin": 40, "page_hinkley": None}}
    drift |= {"depth": 0.25, "recovered": True, "recovery_rows": 310, "lost": 9.0, "watched": 359}
    detection = {"adwin": {"alarms": 3, "false_alarms": 2}, "page_hinkley": {"alarms": 0, "false_alarms": 0}}
    return {"accuracy": 0.9, "drifts": [drift | changes], "detection": detection}


def test_drift_table_tells_what_the_summary_knows():
    table = report.drift_table(report.RunData(drifting()))
    row = table["rows"][0]
    assert (row["number"], row["step"], row["delays"]) == (1, 500, [40, None])
    assert (row["before"], row["worst"], row["recovered"]) == ("90.0 %", "65.0 %", "after 310 rows")
    assert table["detectors"] == [("ADWIN", 3, 2), ("Page-Hinkley", 0, 0)]
    page = report.render_run(report.RunData(drifting()))
    for words in ("ADWIN: 3 alarms, 2 of them false.", "missed", "40 rows"):
        assert words in page


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recovery_rows": 1}, "no drop"),
        ({"recovery_rows": None, "watched": 1200}, "not within 1,200 rows"),
        ({"recovery_rows": None, "watched": 0, "depth": None, "before": None}, "–"),
    ],
)
def test_recovery_in_words(changes, words):
    assert report.drift_table(report.RunData(drifting(**changes)))["rows"][0]["recovered"] == words


def test_a_rise_of_the_error_is_the_worst_after_a_drift_of_a_regression():
    summary = drifting(before=2.0, depth=0.5) | {"accuracy": None, "mae": 1.0}
    assert report.drift_table(report.RunData(summary))["rows"][0]["worst"] == "2.500"


def test_alarm_rows_are_exact_only_where_labels_come_at_once():
    alarms = [{"step": 400, "kind": "alarm", "values": {"note": f"adwin at row {row}"}} for row in (340, 90)]
    assert report.alarms_of(report.RunData({}, alarms)) == [(340, "ADWIN"), (400, "ADWIN")]


def test_alarms_without_known_drifts_are_listed():
    alarms = [{"step": 400, "kind": "alarm", "values": {"note": "adwin at row 340"}}]
    summary = {"accuracy": 0.9, "drifts": [], "detection": {"adwin": {"alarms": 1, "false_alarms": None}}}
    page = report.render_run(report.RunData(summary, alarms))
    assert "ADWIN raised 1 alarm." in page
    assert "340 (ADWIN)" in page
    assert "no detector raised an alarm" in report.render_run(report.RunData(summary | {"detection": {}}))


def test_means_and_deviations_by_hand():
    assert figures.mean_sd([0.8, 0.82, 0.9]) == pytest.approx((0.84, np.std([0.8, 0.82, 0.9], ddof=1)))
    assert figures.spread([0.80, 0.82], figures.percent) == "81.0 ± 1.4 %"
    assert figures.spread([0.8], figures.percent) == "80.0 %"
    assert figures.spread([], figures.percent) == "–"
    assert figures.spread([40.0, 60.0], figures.number) == "50.00 ± 14.14"
    assert figures.spread([214.3, 214.3, 214.3], figures.megabytes) == "214 ± 0 MB"
    assert figures.spread([3, 4], figures.tally) == "3.5 ± 0.7"
    x, mean, sd = comparison.mean_curve(
        [(np.array([1.0, 2, 3]), np.array([1.0, 2, 3])), (np.array([1.0, 3, 5]), np.array([3.0, 5, 5]))]
    )
    assert x.tolist() == [1, 2, 3]
    assert mean.tolist() == [2, 3, 4]
    np.testing.assert_allclose(sd, np.sqrt(2))


def summary_of(learner, seed, accuracy, speed=1000.0):
    baseline = {"no_change": 0.85, "majority": 0.6}
    return {"learner": learner, "seed": seed, "stream": "s", "labelled": 9, "accuracy": accuracy, "baseline": baseline,
            "examples_per_second": speed}  # fmt: skip


def test_comparison_table_by_hand():
    runs = [
        summary_of("a", 0, 0.80),
        summary_of("a", 1, 0.82),
        summary_of("b", 0, 0.9, 50.0),
        summary_of("b", 1, 0.9, 50.0),
    ]
    table = comparison.table(runs)
    assert table["columns"] == ["accuracy", "rows/s"]
    assert [(r["name"], r["seeds"], r["cells"]) for r in table["rows"]] == [
        ("b", 2, [("90.0 ± 0.0 %", True), ("50 ± 0", False)]),
        ("a", 2, [("81.0 ± 1.4 %", False), ("1,000 ± 0", True)]),
    ]
    assert [(r["name"], r["text"]) for r in table["baselines"]] == [("no-change", "85.0 %"), ("majority", "60.0 %")]
    assert comparison.verdict(runs) == (
        "good",
        "b leads with 90.0 %, 9.0 points ahead of a. No better than a baseline: a.",
    )
    assert comparison.verdict(runs[:2]) == ("bad", "a leads with 81.0 %. It does not beat no-change.")


def test_the_same_seed_twice_is_another_configuration():
    groups = comparison.by_learner([summary_of("a", 0, 0.8), summary_of("a", 0, 0.9), summary_of("a", 1, 0.8)])
    assert groups == {"a": [0, 2], "a (2)": [1]}


def test_comparison_page(tmp_path):
    runs = [
        report.read_run(make_run(tmp_path / f"{name}{seed}", name, seed, level))
        for name, level in (("driftmoe", 0.93), ("hoeffding-tree", 0.88))
        for seed in (0, 1, 2)
    ]
    page = report.render_comparison(runs)
    assert page == report.render_comparison(runs)
    for words in (
        "2 learners on electricity",
        "driftmoe leads with",
        "seeds 0, 1, 2",
        "mean over seeds",
        "Speed against",
    ):
        assert words in page, words


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(dw.InputError, match="no runs"):
        report.render_comparison([])
    other = summary_of("a", 0, 0.8) | {"stream": "t"}
    with pytest.raises(dw.InputError, match="different streams: s, t"):
        report.render_comparison([report.RunData(summary_of("a", 0, 0.8)), report.RunData(other)])


def test_reasons_with_different_particulars_are_one_kind():
    rows = [{"row": i, "reason": f"column v2: '{i}' is no number"} for i in range(4)] + [{"row": 9}]
    groups, total = group_reasons(rows)
    assert total == 5
    assert [(g["reason"], g["count"], len(g["rows"])) for g in groups] == [
        ("column v2: … is no number", 4, 3),
        ("no reason given", 1, 1),
    ]
