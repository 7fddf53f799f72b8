"""The terminal: silent where there is none, cut to its width, plain where it must be, honest about what it shows."""

import io
import re
from itertools import pairwise

import driftway as dw
import numpy as np
import pytest
from driftway.adapt import console
from driftway.adapt.console import LiveBar, print_comparison, print_summary
from driftway.adapt.record import Record
from driftway.adapt.terminal_plot import draw


class Screen(io.TextIOWrapper):
    """Memory as a terminal (or a pipe) with an encoding."""

    def __init__(self, encoding="utf-8", terminal=True):
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)
        self.terminal = terminal

    def isatty(self):
        return self.terminal

    @property
    def raw_text(self):
        return self.buffer.getvalue().decode(self.encoding)

    @property
    def text(self):
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw_text)


@pytest.fixture(autouse=True)
def _terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def records(rows=1000, every=100, **values):
    scores = {"accuracy": 0.8, "accuracy_window": 0.9, "no_change_window": 0.7} | values
    out = [Record(s, "progress", scores) for s in range(every, rows + 1, every)]
    out[2:2] = [Record(250, "alarm", {"note": "ADWIN at row 233"}), Record(300, "rollback", {"note": "back"})]
    return [*out, Record(rows, "quarantine", {"row": 3, "reason": "x"}), Record(rows, "end", scores)]


SUMMARY = {
    "stream": "electricity", "learner": "driftmoe", "seed": 0, "status": "done", "examples": 45312,
    "labelled": 45312, "accuracy": 0.921, "accuracy_window": 0.934, "kappa_m": 0.81, "kappa_t": 0.462,
    "baseline": {"majority": 0.575, "no_change": 0.853}, "examples_per_second": 61234.5,
    "latency_ms": {"p50": 0.0142, "p99": 0.0311}, "peak_rss_mb": 214.3, "state_mb": 1.87,
    "quarantined": 7, "dropped_labels": 0, "rollbacks": 1, "drift_alarms": 3,
}  # fmt: skip
CURVE = [(100.0 * i, 0.9 if i < 50 else 0.7, 0.8) for i in range(1, 101)]


def test_bar_is_silent_without_a_terminal_and_hands_everything_on():
    screen = Screen(terminal=False)
    given = records()
    assert list(LiveBar("tree", total=1000, file=screen).watch(given)) == given
    assert screen.text == ""


def test_bar_shows_where_the_run_stands():
    screen = Screen()
    list(LiveBar("tree", total=1000, file=screen).watch(records()))
    last = screen.text.split("\r")[-1]
    for words in (
        "tree",
        "1,000/1,000",
        "/s",
        "now 90.0 %",
        "mean 80.0 %",
        "no-change 70.0 %",
        "1 alarm",
        "1 rollback",
    ):
        assert words in last, words
    assert "━" in last


def test_bar_without_a_known_end_counts_rows():
    screen = Screen()
    list(LiveBar("tree", file=screen).watch(records()))
    assert "1,000 rows" in screen.text
    assert "━" not in screen.text


def test_bar_holds_several_learners_side_by_side():
    screen = Screen()
    with LiveBar(total=1000, file=screen) as bar:
        for name in ("ours", "frozen:ours"):
            for record in bar.watch(records(), name):
                assert record.step <= 1000
    frame = screen.text.split("\r")[-1]
    assert "frozen:ours" in frame
    assert "ours" in screen.text.split("frozen:ours")[-2]


@pytest.mark.parametrize("width", [20, 60, 80, 100, 200])
def test_bar_never_breaks_its_line(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    screen = Screen()
    list(LiveBar("a-learner-with-a-name-that-is-far-too-long", total=10**7, file=screen).watch(records()))
    assert max(len(line) for line in re.split(r"[\r\n]", screen.text)) <= width


def test_bar_draws_at_most_eight_frames_a_second(monkeypatch):
    clock = iter(i / 1000 for i in range(10_000))
    monkeypatch.setattr(console, "perf_counter", lambda: next(clock))
    drawn = []
    monkeypatch.setattr(LiveBar, "_draw", lambda bar: drawn.append(bar))
    with LiveBar("tree", file=Screen()) as bar:
        for record in records(rows=200_000):
            bar.update(record)
    assert 16 <= len(drawn) <= 18


def test_rate_leaves_out_what_came_before_the_first_record(monkeypatch):
    times = iter([10.0, 11.0, 12.0])
    monkeypatch.setattr(console, "perf_counter", lambda: next(times))
    screen = Screen(terminal=False)
    bar = LiveBar("tree", file=screen)
    for step in (5_000, 6_000, 7_000):
        bar.update(Record(step, "progress", {}))
    assert bar._rows["tree"].rate == 1000


def test_bar_keeps_an_evenly_thinned_curve():
    bar = LiveBar("tree", file=Screen(terminal=False))
    for step in range(1, 20_001):
        bar.update(Record(step, "progress", {"accuracy_window": 0.5, "no_change_window": None}))
    curve = bar.curve()
    assert 1000 <= len(curve) <= console.MOST_POINTS
    assert {b[0] - a[0] for a, b in pairwise(curve)} == {16}
    assert curve[0] == (1, 0.5, None)
    assert bar.curve("nobody") == []


def test_regression_bar_shows_errors():
    screen = Screen()
    values = {"mae": 1.25, "mae_window": 0.75, "no_change_window": 2.5}
    list(LiveBar("tree", file=screen).watch([Record(100, "progress", values)]))
    for words in ("MAE now  0.750", "mean  1.250", "no-change 2.500"):
        assert words in screen.text


def test_summary_tells_the_figures_the_verdict_and_where_the_report_is(tmp_path):
    screen = Screen()
    print_summary(SUMMARY, tmp_path, curve=CURVE, file=screen)
    for words in (
        "driftmoe on electricity · 45,312 rows · seed 0", "92.1 %", "93.4 % in the last window", "85.3 %",
        "6.8 points behind the learner", "κ temporal", "0.462", "61,200", "14.2 µs median", "214 MB", "learner 1.9 MB",
        "1 rolled back · 7 quarantined", "does better than both baselines", f"report: {tmp_path / 'report.html'}",
    ):  # fmt: skip
        assert words in screen.text, words
    assert re.search(r"[⠁-⣿]", screen.text)
    assert "\x1b[" in screen.raw_text


def test_no_colour_without_a_terminal_or_with_no_color(monkeypatch):
    pipe = Screen(terminal=False)
    print_summary(SUMMARY, curve=CURVE, file=pipe)
    print_comparison([SUMMARY], file=pipe)
    assert "\x1b" not in pipe.raw_text
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Screen()
    print_summary(SUMMARY, curve=CURVE, file=screen)
    assert not re.search(r"\x1b\[[\d;]*3\dm", screen.raw_text)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_plain_characters_where_the_terminal_has_no_others(encoding):
    screen = Screen(encoding)
    odd = SUMMARY | {"learner": "tree-漢字-\x1b[2J"}
    print_summary(odd, curve=CURVE, file=screen)
    print_comparison([odd, odd | {"seed": 1}], file=screen)
    list(LiveBar("tree-漢字", total=1000, file=screen).watch(records()))
    assert "tree-??-?[2J" in screen.text
    assert "kappa temporal" in screen.text
    assert "92.1 +/- 0.0 %" in screen.text
    assert "*" in screen.text


def test_summary_of_an_interrupted_run_says_so():
    screen = Screen()
    print_summary(SUMMARY | {"status": "interrupted", "accuracy": 0.8}, file=screen)
    assert "not at the end of the stream: interrupted" in screen.text
    assert "No-change beats driftmoe by 5.3 points" in screen.text


def test_summary_with_nothing_measured():
    screen = Screen(terminal=False)
    print_summary({"learner": "x", "stream": "s"}, file=screen)
    assert "nothing was measured" in screen.text


def test_summary_reads_the_curve_from_the_run_folder(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    rows = "".join(f"{s},progress,0.9,0.8\n" for s in range(100, 2100, 100))
    (tmp_path / "records.csv").write_text("step,kind,accuracy_window,no_change_window\n" + rows)
    screen = Screen()
    print_summary(SUMMARY, tmp_path, file=screen)
    assert "2,000 rows" in screen.text


def test_comparison_lines_up_and_shows_the_spread():
    screen = Screen(terminal=False)
    runs = [SUMMARY | {"seed": s, "accuracy": a} for s, a in enumerate((0.80, 0.82))]
    runs += [SUMMARY | {"learner": "tree", "accuracy": 0.7}]
    print_comparison(runs, file=screen)
    lines = [line for line in screen.text.splitlines() if line.strip()]
    assert lines[0] == "electricity · mean ± sd over seeds"
    assert lines[1].split()[:4] == ["learner", "seeds", "accuracy", "window"]
    assert re.match(r" +driftmoe +2 +81.0 ± 1.4 % ", lines[2])
    assert re.match(r" +tree +1 +70.0 % ", lines[3])
    assert re.match(r" +no-change +85.3 %", lines[4])
    assert len({line.index("%") for line in lines[2:6]}) == 1
    assert "It does not beat no-change." in lines[-1]
    print_comparison([], file=screen)


def test_comparison_drops_columns_that_do_not_fit(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    screen = Screen()
    print_comparison([SUMMARY, SUMMARY | {"learner": "tree"}], file=screen)
    table = [line for line in screen.text.splitlines() if "%" in line and "ahead" not in line]
    assert table
    assert max(map(len, table)) <= 50
    assert "rollbacks" not in screen.text


# --- runs whose experiences were evaluated -------------------------------------------------------------------------

SCORES = {"experience": 2, "acc": 0.831, "min_acc": 0.5, "wc_acc": 0.6}
FOUND = {
    "acc": 0.654, "min_acc": 0.585, "wc_acc": 0.572, "forgetting": 0.203, "gap_depth": 0.218, "experiences": 3,
    "every": 1, "acc_margin": None,
}  # fmt: skip


def experiences(k):
    rows = np.zeros((2, 1), np.float32)
    each = [dw.Experience(f"e{i}", rows, np.arange(2), 5, (0, 1)) for i in range(k)]
    return dw.StreamSpec("s", (dw.Column("x"),), classes=("a", "b"), length=1000, experiences=tuple(each))


def curve_file(folder, each=40):
    """Three experiences of which the earlier ones drop to half for one update after each switch."""
    lines = ["update,step,experience,a of 100,b of 100,c of 100"]
    for update in range(1, 3 * each + 1):
        at, since = divmod(update - 1, each)
        right = [40 if since == 5 and i < at else 90 for i in range(at + 1)]
        lines.append(",".join(map(str, [update, 10 * update, at, *right])) + "," * (2 - at))
    (folder / "continual.csv").write_text("\n".join(lines) + "\n")


def test_bar_shows_the_experience_and_acc():
    screen = Screen()
    list(LiveBar("er", experiences(5), file=screen).watch(records(**SCORES)))
    last = screen.text.split("\r")[-1]
    for words in ("1,000/1,000", "3/5", "ACC 83.1 %", "now 90.0 %"):
        assert words in last, words
    screen = Screen()
    list(LiveBar("er", file=screen).watch(records(**SCORES | {"acc": None})))
    assert " 3 " in screen.text
    assert "ACC" not in screen.text
    bar = LiveBar("er", file=screen)
    bar.expect(experiences(4))
    assert bar.total == 1000


@pytest.mark.parametrize("width", [20, 50, 80, 120])
def test_bar_with_experiences_never_breaks_its_line(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    screen = Screen()
    list(LiveBar("er+adab2n+sparcl", experiences(20), file=screen).watch(records(**SCORES)))
    assert max(len(line) for line in re.split(r"[\r\n]", screen.text)) <= width


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_summary_of_an_evaluated_run_draws_its_drops(tmp_path, encoding):
    (tmp_path / "summary.json").write_text("{}")
    curve_file(tmp_path)
    screen = Screen(encoding)
    print_summary(SUMMARY | {"continual": FOUND}, tmp_path, curve=CURVE, file=screen)
    for words in (
        "ACC", "65.4 %   3 experiences, at the end", "58.5 %", "57.2 %", "20.3 points", "21.8 points", "prequential",
        "over 120 updates", "worst of the experiences before", "driftmoe ends with 65.4 % over 3 experiences",
    ):  # fmt: skip
        assert words in screen.text, words
    assert "no-change in the last window" not in screen.text
    assert re.search(r"\n +1 +2 +3 *\n", screen.text)
    assert " 40.0 % " in screen.text
    assert " 90.0 % " in screen.text


def test_summary_without_a_curve_file_draws_the_scores():
    screen = Screen()
    alone = FOUND | {"experiences": 1, "min_acc": None, "forgetting": None, "gap_depth": None}
    print_summary(SUMMARY | {"continual": alone}, curve=CURVE, file=screen)
    assert "needs a second experience" in screen.text
    assert "learner  no-change in the last window" in screen.text


def test_comparison_of_evaluated_runs_puts_acc_first(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    screen = Screen()
    runs = [SUMMARY | {"learner": "er", "seed": s, "continual": FOUND | {"acc": a}} for s, a in enumerate((0.6, 0.7))]
    runs += [SUMMARY | {"learner": "finetune", "continual": FOUND | {"acc": 0.2, "wc_acc": 0.1}}]
    print_comparison(runs, file=screen)
    lines = [line for line in screen.text.splitlines() if line.strip()]
    assert lines[0] == "electricity · mean ± sd over seeds · in %"
    assert lines[1].split()[:7] == ["learner", "seeds", "ACC", "min-ACC", "WC-ACC", "forgetting", "gap"]
    assert re.match(r" +er +2 +65.0 ± 7.1 +58.5 ± 0.0 ", lines[2])
    assert max(map(len, lines[:6])) <= 80
    assert "er leads with ACC 65.0 %, 45.0 points ahead of finetune." in " ".join(lines[-2:])
    wide = Screen(terminal=False)
    print_comparison(runs, file=wide)
    table = [line for line in wide.text.splitlines() if line.strip()][1:6]
    end = table[0].index("prequential") + len("prequential")
    assert [line[:end].split()[-1] for line in table[1:]] == ["0.0", "92.1", "85.3", "57.5"]


def test_drawing_by_hand():
    cells, low, high = draw([[0.0, 1.0], [1.0, 1.0]], 2, 3, fine=False)
    assert (low, high) == (0.0, 1.0)
    assert ["".join(c for c, _ in line) for line in cells] == ["-*", " *", "* "]
    fine, _, _ = draw([[0.0, 1.0]], 1, 1)
    assert fine == [[(chr(0x2800 + 0x40 + 0x08 + 0x10 + 0x20), 0)]]
    flat, low, high = draw([[2.0, None, 2.0]], 3, 1, fine=False)
    assert ["".join(c for c, _ in line) for line in flat] == ["* *"]
    assert low == high == 2.0
