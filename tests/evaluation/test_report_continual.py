"""The page of a run, and of several, whose experiences were evaluated: complete, honest about what was not measured."""

import json
import re
from html.parser import HTMLParser

import driftway as dw
import numpy as np
import pytest
from driftway.evaluation import comparison, report
from driftway.evaluation.continual_report import continual_verdict
from driftway.evaluation.continual_scores import Scores
from driftway.evaluation.curves import curve_header

CONFIG = 'stream = "split-digits"\nlearner = "er"\nwindow = 1000\n[stream_params]\nscenario = "class"\n'


def make_run(
    folder, learner="er", seed=0, k=4, each=30, every=1, level=0.9, dip=0.5, noise=3, status="done", **telemetry
):
    """A made-up run in the shape a real one leaves: each switch costs the experiences before ``dip`` for one update."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng([seed, k])
    sizes, names = [100 + 10 * i for i in range(k)], [f"classes {2 * i}, {2 * i + 1}" for i in range(k)]
    scores, lines = Scores(sizes), [",".join(f'"{t}"' for t in curve_header(names, sizes))]
    for update in range(1, k * each + 1):
        at, since = divmod(update - 1, each)
        if (every is None or update % every) and since != each - 1:
            continue
        share = [level - (dip if since == 3 and i < at else 0) for i in range(at + 1)]
        right = [int(s * n - rng.integers(0, noise)) for s, n in zip(share, sizes)]
        scores.add(right)
        lines.append(",".join([str(update), str(10 * update), str(at), *map(str, right), *[""] * (k - 1 - at)]))
    (folder / "continual.csv").write_text("\n".join(lines) + "\n")
    margin = {"acc_margin": None, "missed": 0, "evaluations": scores.evaluations, "every": every}
    summary = {
        "driftway": "0.1.0", "stream": "split-digits", "learner": learner, "seed": seed, "status": status,
        "examples": 10 * k * each, "labelled": 10 * k * each, "accuracy": 0.8, "accuracy_window": 0.81, "kappa_t": 0.5,
        "continual": {**scores.figures(), **margin, "rows": sum(sizes), "experiences": scores.seen},
        "baseline": {"majority": 0.1, "no_change": 0.5}, "examples_per_second": 900.0,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.toml").write_text(CONFIG)
    columns = ["accuracy", "accuracy_window", *telemetry]
    rows = [f"{s},progress,0.8,0.81,{','.join(str(v) for v in telemetry.values())}" for s in range(100, 1001, 100)]
    rows = [row.rstrip(",") for row in rows]
    (folder / "records.csv").write_text("\n".join([f"step,kind,{','.join(columns)}", *rows]) + "\n")
    return folder


def edit(folder, **changes):
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    summary["continual"] |= changes
    path.write_text(json.dumps(summary))


def page_of(folder):
    return report.render_run(report.read_run(folder))


def test_the_continual_part_comes_first_and_is_complete(tmp_path):
    folder = make_run(tmp_path / "run")
    page = page_of(folder)
    assert page == page_of(folder)
    for words in (
        "er ends with 89", "over 4 experiences", "after a switch they lose", "min-ACC", "WC-ACC", "WF10", "WP100",
        "BWT", "Gap depth", "largest drop of accuracy within 100 consecutive evaluations", "What each switch cost",
        "Evaluated after every update: 120 times.", "100 to 130 rows that were never learnt", "class-incremental",
        "1 · classes 0, 1", "deepest drop after it", "points</text>", "data:image/png;base64,", "4 experiences by name",
    ):  # fmt: skip
        assert words in page, words
    assert page.index("Every experience at every evaluation") < page.index("Accuracy over time")
    assert "er does better than both baselines" in page
    assert page.index("er ends with") < page.index("er does better than both baselines")


def test_page_needs_nothing_from_outside(tmp_path):
    runs = [report.read_run(make_run(tmp_path / str(s), seed=s)) for s in (0, 1)]
    for page in (report.render_run(runs[0]), report.render_comparison(runs)):
        assert "http" not in page
        assert not re.findall(r"<(?:link|script|img|iframe|object|embed|base)\b", page)
        assert all(target.startswith(("#", "data:image/png;base64,")) for target in re.findall(r'href="([^"]*)"', page))
        ids = re.findall(r'\bid="([^"]+)"', page)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


class Nesting(HTMLParser):
    """Every element closed where it was opened."""

    def __init__(self, page):
        super().__init__()
        self.open = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, _attrs):
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_startendtag(self, tag, _attrs):
        pass


@pytest.mark.parametrize("every", [1, None])
def test_elements_are_nested(tmp_path, every):
    runs = [report.read_run(make_run(tmp_path / str(s), seed=s, every=every, sparsity=0.5)) for s in (0, 1)]
    Nesting(report.render_run(runs[0]))
    Nesting(report.render_comparison(runs))


def test_switches_are_told_with_their_deepest_drop(tmp_path):
    page = page_of(make_run(tmp_path / "run", dip=0.4))
    table = page[page.index("What each switch cost") : page.index("All figures of")]
    rows = re.findall(r"<tr><td>(\d+)</td><td class=\"words\">([^<]*)</td><td>([\d,]+)</td>", table)
    assert rows == [("2", "classes 2, 3", "30"), ("3", "classes 4, 5", "60"), ("4", "classes 6, 7", "90")]
    assert table.count("4 updates") == 3
    flat = page_of(make_run(tmp_path / "flat", dip=-0.1, noise=1, level=0.5))
    assert flat.count("none fell") == 3


def test_evaluation_at_ends_only_says_what_it_cannot_see(tmp_path):
    page = page_of(make_run(tmp_path / "run", every=None))
    for words in (
        "What happened between their ends is not known",
        "a stability gap cannot be seen here",
        "Evaluated at the ends of experiences: 4 times.",
        "after 4</text>",
        "(at ends only)",
    ):
        assert words in page, words


@pytest.mark.parametrize("k", [1, 2, 20])
def test_few_and_many_experiences(tmp_path, k):
    page = page_of(make_run(tmp_path / "run", k=k))
    assert len(page) < 260_000
    assert ("needs a second experience" in page) == (k == 1)
    assert ("What each switch cost" in page) == (k > 1)
    assert ("experience 20" in page) == (k == 20)
    assert "nan" not in page.lower().replace("provenance", "")


def test_interrupted_run(tmp_path):
    folder = make_run(tmp_path / "run", status="interrupted")
    lines = (folder / "continual.csv").read_text().split("\n")
    (folder / "continual.csv").write_text("\n".join(lines[:71]) + "\n70,70")
    edit(folder, experiences=3)
    page = page_of(folder)
    assert "3 experiences, so far" in page
    assert "er had reached" in page
    assert "did not reach the end" in page
    assert "3 experiences by name" in page
    (folder / "continual.csv").write_text("\n".join(lines[:2]) + "\n")
    assert "fewer than two evaluations" in page_of(folder)
    (folder / "continual.csv").unlink()
    page = page_of(folder)
    assert "There is no continual.csv" in page
    assert "WC-ACC" in page


def test_without_continual_evaluation_the_page_is_as_ever(tmp_path):
    folder = make_run(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text()) | {"continual": None}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "continual.csv").unlink()
    page = page_of(folder)
    assert "er does better than both baselines" in page[page.index("<header>") : page.index("<section>")]
    assert "ACC" not in page
    assert continual_verdict(summary) is None


def test_what_was_not_evaluated_is_said(tmp_path):
    folder = make_run(tmp_path / "run")
    assert "were missed" not in page_of(folder)
    lines = (folder / "continual.csv").read_text().split("\n")
    (folder / "continual.csv").write_text("\n".join([*lines[:11], *lines[18:]]))
    edit(folder, missed=7, acc_margin=0.0123)
    page = page_of(folder)
    assert "7 evaluations fell due while the evaluation worker was busy and were missed, at most 7 in a row" in page
    assert "± 1.2 points" in page
    (folder / "config.toml").write_text("evaluate_rows = 50\nwp_reference = true\n" + CONFIG)
    page = page_of(folder)
    assert "a fixed part of them" in page
    assert "WP is that of the authors’ code" in page


def test_broken_curve_is_one_line(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "continual.csv").write_text("a,b\n1,2\n")
    with pytest.raises(dw.InputError, match=r"continual\.csv: not the curve"):
        report.read_run(folder)


def test_hostile_names_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>'& of 7"
    folder = make_run(tmp_path / "run", learner=evil)
    text = (folder / "continual.csv").read_text()
    (folder / "continual.csv").write_text(text.replace("classes 2, 3", evil))
    run = report.read_run(folder)
    for page in (report.render_run(run), report.render_comparison([run, run])):
        assert "<script" not in page
        assert "&lt;script&gt;alert(1)" in page
    assert run.evaluations.names[1] == evil


def test_what_the_learner_tells_of_itself_is_drawn(tmp_path):
    told = {"sparsity": 0.75, "gradient_density": 0.2, "memory_rows": 200, "gradient_cosine": -0.5, "projected": 0}
    page = page_of(make_run(tmp_path / "run", **told))
    for words in (
        "Sparsity and active rows",
        "weights that are not there",
        "Rows in memory",
        "Do the two parts agree?",
    ):
        assert words in page, words
    assert "projected, so far" not in page
    assert "What the learner tells" not in page_of(make_run(tmp_path / "plain"))


def runs_of(tmp_path, **levels):
    return [
        report.read_run(make_run(tmp_path / f"{name}{seed}", name, seed, each=30 + seed, level=level, dip=dip))
        for name, (level, dip) in levels.items()
        for seed in (0, 1)
    ]


def test_comparison_is_led_by_acc(tmp_path):
    runs = runs_of(tmp_path, er=(0.8, 0.1), derpp=(0.9, 0.6))
    page = report.render_comparison(runs)
    assert page == report.render_comparison(runs)
    for words in ("derpp leads with ACC 89", "At the worst moments er holds up best", "ACC at every evaluation",
                  "from WC-ACC to ACC", "Prequential accuracy over time", "Speed against ACC"):  # fmt: skip
        assert words in page, words
    table = comparison.table([run.summary for run in runs])
    assert table["columns"] == [
        "ACC", "min-ACC", "WC-ACC", "MAA", "forgetting", "gap depth", "prequential", "rows/s",
    ]  # fmt: skip
    assert table["costs"] == 1
    assert table["baseline_at"] == 6
    assert [row["name"] for row in table["rows"]] == ["derpp", "er"]
    best = {c: [best for _, best in (row["cells"][i] for row in table["rows"])] for i, c in enumerate(table["columns"])}
    assert (best["ACC"], best["gap depth"]) == ([True, False], [False, True])
    assert [row["text"] for row in table["baselines"]] == ["50.0", "10.0"]


def test_comparison_where_one_was_not_evaluated(tmp_path):
    runs = runs_of(tmp_path, er=(0.8, 0.1))
    other = report.RunData(runs[0].summary | {"learner": "x", "continual": None}, runs[0].records)
    page = report.render_comparison([*runs, other])
    assert "er leads with ACC 79" in page
    table = comparison.table([run.summary for run in (*runs, other)])
    assert table["rows"][1]["cells"][0] == ("–", False)
    assert table["rows"][1]["range"] is None


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            {"acc": 0.9, "experiences": 1, "gap_depth": None},
            "ends with 90.0 % over 1 experience; what",
        ),
        ({"acc": 0.9, "experiences": 3, "gap_depth": 0.002, "every": 1}, "with hardly a stability gap"),
        ({"acc": 0.9, "experiences": 3, "gap_depth": 0.2, "every": None, "forgetting": 0.1}, "10.0 points lost since"),
        (
            {"acc": 0.9, "experiences": 3, "gap_depth": 0.2, "every": 5, "min_acc": 0.6},
            "fell to 60.0 %: after",
        ),
    ],
)
def test_verdicts(found, words):
    mood, sentence = continual_verdict({"learner": "er", "continual": found})
    assert mood == "plain"
    assert words in sentence
    assert continual_verdict({"learner": "er", "continual": {"acc": None}}) is None
