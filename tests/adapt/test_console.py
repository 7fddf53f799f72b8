"""The terminal: silent where there is none, cut to its width, plain where it must be, honest about what it shows."""

import io
import re
from itertools import pairwise

import pytest
from driftway.adapt import console
from driftway.adapt.console import LiveBar, print_comparison, print_summary
from driftway.adapt.loop import Record


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


def test_drawing_by_hand():
    cells, low, high = console.draw([[0.0, 1.0], [1.0, 1.0]], 2, 3, fine=False)
    assert (low, high) == (0.0, 1.0)
    assert ["".join(c for c, _ in line) for line in cells] == ["-*", " *", "* "]
    fine, _, _ = console.draw([[0.0, 1.0]], 1, 1)
    assert fine == [[(chr(0x2800 + 0x40 + 0x08 + 0x10 + 0x20), 0)]]
    flat, low, high = console.draw([[2.0, None, 2.0]], 3, 1, fine=False)
    assert ["".join(c for c, _ in line) for line in flat] == ["* *"]
    assert low == high == 2.0
