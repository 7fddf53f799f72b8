"""What a person sees in the terminal: a live bar while a run goes on, a summary or a table when it is over.

Everything is cut to the terminal's width, without colour where there is no terminal or NO_COLOR is set, and in plain
ASCII where the terminal cannot show more.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from ..evaluation import figures as show
from ..streams import StreamSpec
from .folder import CURVE
from .terminal_plot import draw

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from .record import Record

BETWEEN_FRAMES = 1 / 8
"""Seconds between two frames of the live bar."""
MOST_POINTS = 2000
"""Points of a curve that are kept for the plot in the terminal; past that every second one is dropped."""

FEWEST_POINTS = 8
"""Points below which no curve is drawn."""

GOOD, BAD, QUIET, STRONG, ACCENT = "green", "yellow", "dim", "bold", "bold cyan"
_ASCII = str.maketrans(
    {"κ": "kappa", "±": "+/-", "–": "-", "·": "|", "…": "...", "µ": "u", "━": "=", "’": "'", "−": "-", "×": "x"}
)

Point = tuple[float, float | None, float | None]
"""Step, windowed score, windowed score of the no-change baseline."""


def can_show(file: TextIO, text: str = "κ±–·µ━⣿") -> bool:
    """Whether the file's encoding knows these characters."""
    try:
        text.encode(file.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _console(file: TextIO) -> Console:
    from rich.console import Console

    return Console(file=file, highlight=False, markup=False, emoji=False, soft_wrap=False)


class _Words:
    """Makes styled text that a file can show, whatever names occur in it."""

    def __init__(self, file: TextIO) -> None:
        self.rich = can_show(file)
        self._encoding = file.encoding or "utf-8"

    def plain(self, text: str) -> str:
        """The text without control characters, in characters that the file knows."""
        if not self.rich:
            text = text.translate(_ASCII)
        text = text.encode(self._encoding, "replace").decode(self._encoding)
        return "".join(c if c.isprintable() else "?" for c in text)

    def __call__(self, *parts: str | tuple[str, str]) -> Text:
        """One line out of words, each with or without a style."""
        from rich.text import Text

        line = Text(no_wrap=True, overflow="ellipsis" if self.rich else "crop")
        for part in parts:
            words, style = part if isinstance(part, tuple) else (part, "")
            line.append(self.plain(words), style)
        return line


# --- while it runs ------------------------------------------------------------------------------------------------


@dataclass
class _Row:
    """What the bar knows of one learner."""

    name: str
    begun: tuple[int, float] | None = None
    step: int = 0
    rate: float | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: {"alarm": 0, "rollback": 0, "quarantine": 0})
    curve: list[Point] = field(default_factory=list)
    stride: int = 1
    seen: int = 0

    def take(self, record: Record, now: float) -> None:
        """Note a record; nothing but a few assignments, for it happens hundreds of times a second."""
        self.step = record.step
        if record.kind in self.counts:
            self.counts[record.kind] += 1
        elif record.kind in ("progress", "end") and record.values:
            self.values = record.values
            if self.seen % self.stride == 0:
                self.curve.append((record.step, *_recent(record.values)))
                if len(self.curve) > MOST_POINTS:
                    del self.curve[1::2]
                    self.stride *= 2
            self.seen += 1
        if self.begun is None:
            self.begun = (record.step, now)
        elif now > self.begun[1] and record.step > self.begun[0]:
            self.rate = (record.step - self.begun[0]) / (now - self.begun[1])


class LiveBar:
    """A line per learner on stderr: rows done, rate, experience and ACC where there is continual evaluation, score now
    and since the start, no-change, alarms, rollbacks.

    name: the learner, for records that come without one. spec: the stream's, which may come later (``expect``).
    total: rows to come (default: the spec's length). file: where to draw (default stderr); where that is no terminal
    nothing is drawn. The rate leaves out what happened before the first record. ``curve`` gives what ``print_summary``
    draws.

    Use it around ``update``, or let it hand the records through: ``for record in LiveBar(name, spec).watch(records)``.
    """

    def __init__(
        self, name: str = "", spec: StreamSpec | None = None, *, total: int | None = None, file: TextIO | None = None
    ) -> None:
        self._name = name
        self.total: int | None = None
        self._experiences = 0
        if spec is not None:
            self.expect(spec)
        self.total = self.total if total is None else total
        self._file = sys.stderr if file is None else file
        self._rows: dict[str, _Row] = {}
        self._next_frame = 0.0
        self._words = _Words(self._file)
        self._live: Any = None

    def __enter__(self) -> LiveBar:
        if self._file.isatty():
            from rich.live import Live

            self._live = Live(console=_console(self._file), auto_refresh=False, redirect_stdout=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._draw()
            self._live.stop()
            self._live = None

    def expect(self, spec: StreamSpec) -> None:
        """Records of this stream come next: how many rows and experiences it has."""
        self.total, self._experiences = spec.length, len(spec.experiences)

    def update(self, record: Record, name: str | None = None) -> None:
        """Take one record of the learner called ``name``; draw if a frame is due."""
        now = perf_counter()
        name = self._name if name is None else name
        row = self._rows.get(name)
        if row is None:
            row = self._rows[name] = _Row(name)
        row.take(record, now)
        if self._live is not None and now >= self._next_frame:
            self._next_frame = now + BETWEEN_FRAMES
            self._draw()

    def watch(self, records: Iterable[Record], name: str | None = None) -> Iterator[Record]:
        """Hand the records through, showing them; opens the bar and closes it where it is not open yet."""
        if self._live is None and not self._rows:
            with self:
                for record in records:
                    self.update(record, name)
                    yield record
            return
        for record in records:
            self.update(record, name)
            yield record

    def curve(self, name: str | None = None) -> list[Point]:
        """The learner's windowed score over time, thinned."""
        row = self._rows.get(self._name if name is None else name)
        return [] if row is None else list(row.curve)

    def _draw(self) -> None:
        from rich.console import Group

        room = self._live.console.width
        self._live.update(Group(*(self._line(row, room) for row in self._rows.values())), refresh=True)

    def _line(self, row: _Row, room: int) -> Text:
        """One learner's line; what matters least is left out where the terminal is narrow."""
        wide = max(14, *(len(name) for name in self._rows)) if self._rows else 14
        done = f"{row.step:,}/{self.total:,}" if self.total else f"{row.step:,} rows"
        parts = [(f"{row.name:{min(wide, 28)}.28}", STRONG), (f"{done:>{2 * len(f'{self.total or 0:,}') + 1}}", "")]
        parts.append((f"{show.rate(row.rate):>8}/s", QUIET))
        parts += self._scores(row)
        for kind, words in (("alarm", "alarm"), ("rollback", "rollback"), ("quarantine", "quarantined")):
            n = row.counts[kind]
            if n:
                plural = "" if kind == "quarantine" or n == 1 else "s"
                parts.append((f"{n:,} {words}{plural}", QUIET if kind == "alarm" else BAD))
        kept: list[tuple[str, str]] = []
        left = room - 1
        for words, style in parts:
            if len(words) + 2 > left:
                break
            left -= len(words) + 2
            kept += [(words, style), ("  ", "")]
        if self.total and left >= 8:
            kept[2:2] = self._bar(row.step / self.total, min(24, left - 2))
        return self._words(*kept)

    def _scores(self, row: _Row) -> list[tuple[str, str]]:
        exact = "accuracy" in row.values
        form, now, mean = (show.percent, "now", "accuracy") if exact else (show.number, "MAE now", "mae")
        score, rest = _recent(row.values)
        parts = [
            *self._standing(row),
            (f"{now} {form(score):>6}", ACCENT),
            (f"mean {form(row.values.get(mean)):>6}", ""),
        ]
        return [*parts, (f"no-change {form(rest)}", QUIET)]

    def _standing(self, row: _Row) -> list[tuple[str, str]]:
        """Which experience is being learnt, and ACC over those seen; nothing without continual evaluation."""
        number, acc = row.values.get("experience"), row.values.get("acc")
        if number is None:
            return []
        of = f"/{self._experiences}" if self._experiences else ""
        return [(f"{number + 1}{of}", STRONG)] + [(f"ACC {show.percent(acc):>6}", ACCENT)] * show.is_number(acc)

    def _bar(self, share: float, size: int) -> list[tuple[str, str]]:
        filled = round(min(1.0, share) * size)
        empty = "━" if self._words.rich else "."
        return [("━" * filled, "cyan"), (empty * (size - filled), "bright_black"), ("  ", "")]


def _recent(values: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The windowed score of the learner and of no-change in one record, None where there is none."""
    found = (values.get("accuracy_window", values.get("mae_window")), values.get("no_change_window"))
    score, rest = (float(v) if show.is_number(v) else None for v in found)
    return score, rest


# --- when it is over ----------------------------------------------------------------------------------------------


def print_summary(
    summary: Mapping[str, Any], out: Path | None = None, *, curve: Sequence[Point] = (), file: TextIO | None = None
) -> None:
    """One run: key figures beside the baselines, the score over time, what happened, where the report is.

    out: the run's folder, from which the curve is read where none is given.
    """
    from ..evaluation.continual_report import continual_verdict
    from ..evaluation.report import RunData, read_run, verdict

    file = sys.stdout if file is None else file
    run = read_run(out) if out is not None and not curve else RunData(dict(summary))
    points = list(curve) or [(r["step"], *_recent(r["values"])) for r in run.progress()]
    console, words = _console(file), _Words(file)
    rows = show.count(summary["examples"], "row") if show.is_number(summary.get("examples")) else ""
    console.print()
    console.print(
        words(
            (str(summary.get("learner")), STRONG),
            f" on {summary.get('stream')}",
            (f" · {rows} · seed {summary.get('seed')}", QUIET),
        )
    )
    if summary.get("status") not in ("done", None):
        console.print(words((f"not at the end of the stream: {summary['status']}", BAD)))
    console.print()
    _print_figures(console, words, list(_key_figures(summary)))
    if not _print_evaluations(console, words, out):
        _print_scores(console, words, points, show.measure_of(summary))
    mood, sentence = continual_verdict(dict(summary)) or verdict(RunData(dict(summary)))
    console.print()
    _print_closing(console, words, sentence, mood, out)


def _print_figures(console: Console, words: _Words, figures: Sequence[tuple[str, str, str]]) -> None:
    """Names, values and notes in columns; the first is what the run is judged by."""
    wide = max(9, *(len(value) for _, value, _ in figures))
    for i, (name, value, note) in enumerate(figures):
        parts = (f"{value:>{wide}}", "" if i else ACCENT), (f"   {note}" if note else "", QUIET)
        console.print(words(f"  {words.plain(name):<18}", *parts))


def _key_figures(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, value and a note, line by line; lines that do not apply are left out."""
    from ..evaluation.clicks_report import click_figures
    from ..evaluation.continual_report import NAMES, figures_of, notes_on, shown
    from ..evaluation.driving_report import driving_figures
    from ..evaluation.paired_report import signed
    from ..evaluation.report import baselines, standing

    measure, found = show.measure_of(summary), figures_of(dict(summary))
    score, latency = summary.get(measure.key), summary.get("latency_ms") or {}
    for key in ("acc", "min_acc", "wc_acc", "forgetting", "gap_depth"):
        if found:
            yield NAMES[key], shown(key, found.get(key)), notes_on(found, summary.get("status"))[key]
    yield from driving_figures(dict(summary))
    yield from click_figures(summary)
    recent = measure.show(summary.get(f"{measure.key}_window"))
    yield "prequential" if found else measure.name, measure.show(score), f"{recent} in the last window"
    yield from _shift_figures(summary)
    pair = summary.get("source") or {}
    if show.is_number(pair.get("gain")):
        note = f"adapted {signed(pair['gain'])} on {show.count(pair['judged_rows'], 'row')} that both answered"
        yield "source, unadapted", show.percent(pair["source"]), note
    for name, value in baselines(dict(summary)).items():
        yield name, measure.show(value), standing(measure, score, value)
    if show.is_number(summary.get("kappa_t")):
        yield "κ temporal", show.number(summary["kappa_t"]), "0 is no-change, 1 is perfect"
    p50, p99 = show.milliseconds(latency.get("p50")), show.milliseconds(latency.get("p99"))
    yield "rows a second", show.rate(summary.get("examples_per_second")), f"latency {p50} median, {p99} p99"
    size = show.megabytes(summary.get("state_mb"))
    yield "peak memory", show.megabytes(summary.get("peak_rss_mb")), f"learner {size}" if size != show.DASH else ""
    counts = [("rollbacks", "rolled back"), ("quarantined", "quarantined"), ("dropped_labels", "dropped unlabelled")]
    notes = [f"{summary[key]:,} {words}" for key, words in counts if summary.get(key)]
    if show.is_number(summary.get("drift_alarms")):
        yield "drift alarms", show.tally(summary["drift_alarms"]), " · ".join(notes)
    elif notes:
        yield "also", "", " · ".join(notes)


def _shift_figures(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Lines of a run on shifts or sessions: error or harmonic mean, calibration, what is still known of the source."""
    from ..evaluation.shifts_report import shift_figure

    found = shift_figure(dict(summary))
    if found is None:
        return
    yield found
    gap = (summary.get("calibration") or {}).get("gap")
    if show.is_number(summary.get("ece")) and show.is_number(gap):
        yield "ECE", show.percent(summary["ece"]), "overconfident" if gap > 0 else "underconfident"
    source, cost = summary.get("source_domain"), summary.get("ms_per_batch") or {}
    if source:
        yield "source domain", show.percent(source["after"]), f"{show.percent(source['before'])} before the first row"
    if show.is_number(cost.get("total")):
        told = {p: cost.get(p) for p in ("predict", "adapt", "learn", "mean")}
        worth = {p: ms for p, ms in told.items() if show.is_number(ms) and ms > cost["total"] / 100}
        parts = [f"{p} {show.milliseconds(ms)}" for p, ms in worth.items()]
        yield "a batch takes", show.milliseconds(cost["total"]), f"median; {', '.join(parts)}"


def _print_closing(console: Console, words: _Words, sentence: str, mood: str, out: Path | None) -> None:
    from rich.text import Text

    style = {"good": GOOD, "bad": BAD}.get(mood, "")
    console.print(Text(words.plain(sentence), style))
    if out is not None:
        console.print(Text(words.plain(f"report: {out / 'report.html'}"), QUIET, no_wrap=True), soft_wrap=True)
    console.print()


def print_comparison(
    summaries: Sequence[Mapping[str, Any]], out: Path | None = None, *, file: TextIO | None = None
) -> None:
    """Several runs: one line per learner, mean ± sd over its seeds, the baselines below."""
    from ..evaluation.comparison import table, verdict

    if not summaries:
        return
    file = sys.stdout if file is None else file
    console, words = _console(file), _Words(file)
    found = table([dict(s) for s in summaries])
    lines = [[("learner", QUIET), ("seeds", QUIET), *((name, QUIET) for name in found["columns"])]]
    for row in found["rows"]:
        cells = [(text, ACCENT if best else "") for text, best in row["cells"]]
        lines.append([(row["name"], STRONG), (str(row["seeds"]), ""), *cells])
    blank = [("", "")] * (1 + found["baseline_at"])
    lines += [[(row["name"], QUIET), *blank, (row["text"], QUIET)] for row in found["baselines"]]
    console.print()
    how = " · mean ± sd over seeds" * any(row["seeds"] > 1 for row in found["rows"]) + " · in %" * found["bare"]
    console.print(words((f"{summaries[0].get('stream')}", STRONG), (how, QUIET)))
    console.print()
    for line in _aligned(lines, words, console.width if file.isatty() else None):
        console.print(line, soft_wrap=True)
    console.print()
    mood, sentence = verdict([dict(s) for s in summaries])
    _print_closing(console, words, sentence, mood, out)


def _aligned(lines: Sequence[Sequence[tuple[str, str]]], words: _Words, room: int | None) -> Iterator[Text]:
    """Cells (text, style) in columns: the first to the left, the others to the right.

    room: characters a line may have; columns that do not fit are left out from the right, all but the first three.
    """
    shown = [[(words.plain(text)[:40], style) for text, style in line] for line in lines]
    widths = [max(len(line[j][0]) for line in shown if j < len(line)) for j in range(max(map(len, shown)))]
    while room is not None and len(widths) > 3 and sum(widths) + 2 * len(widths) > room:
        widths.pop()
    for line in shown:
        cells = [
            (f"{text:{'<' if j == 0 else '>'}{widths[j]}}", style)
            for j, (text, style) in enumerate(line[: len(widths)])
        ]
        yield words(*(part for cell in cells for part in ("  ", cell)))


# --- small plots --------------------------------------------------------------------------------------------------


def _print_scores(console: Console, words: _Words, points: Sequence[Point], measure: show.Measure) -> None:
    """The windowed score over time with no-change behind it; nothing where there are too few points."""
    curves = [[p[1] for p in points], [p[2] for p in points]]
    if sum(y is not None for y in curves[0]) < FEWEST_POINTS:
        return
    width = _print_plot(console, words, curves, measure)
    end = f"{points[-1][0]:,.0f} rows"
    console.print(words((f"{'':12}0{end:>{width - 1}}", QUIET)))
    names = [("learner", "cyan")] + [("  no-change", "yellow")] * any(y is not None for y in curves[1])
    console.print(words(" " * 12, *names, (" in the last window", QUIET)))


def _print_evaluations(console: Console, words: _Words, out: Path | None) -> bool:
    """ACC and the worst of the experiences before, the lowest of what meets in a column; whether there was a curve."""
    import numpy as np

    from ..evaluation.curves import read_curve
    from ..evaluation.gaps import lowest_grid, mean_accuracy, worst_before

    if out is None or not (out / CURVE).exists():
        return False
    curve = read_curve(out / CURVE)
    if len(curve.update) < FEWEST_POINTS:
        return False
    both = np.column_stack([mean_accuracy(curve), worst_before(curve)])
    lows = lowest_grid(curve, both, _plot_width(console) * (2 if words.rich else 1)).tolist()
    width = _print_plot(console, words, [[v if v == v else None for v in y] for y in lows], show.ACCURACY)
    starts = [0, *curve.update[curve.switches].tolist()]
    console.print(words((" " * 12 + _ruler([start / curve.update[-1] for start in starts], width), QUIET)))
    several = [(" · worst of the experiences before", "yellow")] * (len(starts) > 1)
    console.print(words(" " * 12, ("ACC", "cyan"), *several, (f" over {curve.update[-1]:,} updates", QUIET)))
    return True


def _ruler(starts: Sequence[float], width: int) -> str:
    """A line with the number of each experience where it starts, a share of the width, as far as there is room."""
    line = ""
    for number, start in enumerate(starts, start=1):
        at = int(start * width)
        if len(line) <= at <= width - len(str(number)):
            line = f"{line:<{at}}{number} "
    return line[:width]


def _plot_width(console: Console) -> int:
    return max(16, min(64, console.width - 14))


def _print_plot(
    console: Console, words: _Words, curves: Sequence[Sequence[float | None]], measure: show.Measure
) -> int:
    """Two curves, the first in front, between the values of the highest and lowest line; returns the width."""
    width, height = _plot_width(console), 6
    grid, low, high = draw(curves, width, height, fine=words.rich)
    console.print()
    for i, line in enumerate(grid):
        label = measure.show(high if i == 0 else low) if i in (0, height - 1) else ""
        parts = [(c, ("cyan", "yellow")[layer]) if layer >= 0 else c for c, layer in line]
        console.print(words((f"{label:>10}  ", QUIET), *parts))
    return width
