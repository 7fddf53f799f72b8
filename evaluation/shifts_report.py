"""Sections on shifts: the error under each, and how it went over time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import figures as show
from . import plots
from .plots import Curve, Marks, Plot, mean_curve
from .run_data import RunData
from .section import Bar, Bars, Cell, Compared, Drawing, Heading, Part, Section, Table, Words, marked

Array = NDArray[Any]

MOST_BARS = 100
PARTS = 5
"""The error over time is that of a fifth of a stretch."""
WEIGHT = "every shift of the same weight"
OVER_TIME = "Error among the last {rows:,} rows. Horizontal: rows seen."
NUMBERS = " The numbers above say which shift begins."


def shift_figure(summary: dict[str, Any]) -> tuple[str, str, str] | None:
    """The figure that a run on shifts or sessions is best told by: name, value, note; None on other streams."""
    if summary.get("few_shot"):
        found = summary["few_shot"]
        base, new = (show.percent(found[f"{part}_accuracy"]) for part in ("base", "new"))
        return "harmonic mean", show.percent(found["harmonic_mean"]), f"base {base}, new {new}"
    if summary.get("shifts"):
        worst = max(summary["shifts"].values())
        note = f"{show.count(len(summary['shifts']), 'shift')}, worst {show.percent(worst)}"
        return "mean error", show.percent(summary["shift_error"]), note
    return None


def shifts_section(run: RunData) -> Section | None:
    """The error under each shift of one run; None where its stream has none."""
    errors, mean = run.summary.get("shifts"), run.summary.get("shift_error")
    if not isinstance(errors, dict) or not show.is_number(mean):
        return None
    worst = max(errors, key=lambda name: errors[name])
    bars = [
        Bar(f"{number} {name}", error, show.percent(error), plots.LEARNER)
        for number, (name, error) in enumerate(errors.items(), start=1)
    ]
    words = (
        "Error is the share of wrong answers; a row counts for the shift under which it was answered. The mean error "
        f"is {show.percent(mean)}, {WEIGHT}"
    )
    if len(errors) > 1:
        words += f"; the worst is {show.percent(errors[worst])} under {worst}"
    parts: list[Part] = [Words(f"{words}."), Bars(bars[:MOST_BARS])]
    if len(bars) > MOST_BARS:
        parts.append(Words(f"{show.count(len(bars) - MOST_BARS, 'more shift')} not shown.", quiet=True))
    drawn = _over_time(run, errors)
    if drawn is not None:
        plot, rows = drawn
        caption = OVER_TIME.format(rows=rows) + NUMBERS * bool(_boundaries(run).drifts)
        parts += [Heading("Error over time"), Drawing(plot, caption, "error over time")]
    return Section("Shifts", parts)


def shifts_compared(runs: Compared) -> Section | None:
    """The error under each shift of every learner, mean ± sd over seeds, and over time."""
    found = [s["shifts"] for s in runs.summaries if isinstance(s.get("shifts"), dict)]
    names = list(dict.fromkeys(name for errors in found for name in errors))
    learners = [n for n in runs.colours if runs.values(n, "shift_error")]
    if not names or not learners:
        return None
    table = [[runs.values(n, "shifts", name) for n in learners] for name in names]
    rows: list[Sequence[str | Cell]] = [
        [f"{k} {name}", *marked(cells, -1)] for k, (name, cells) in enumerate(zip(names, table, strict=True), start=1)
    ]
    rows.append(["mean", *marked([runs.values(n, "shift_error") for n in learners], -1)])
    parts: list[Part] = [
        Words(
            "Share of wrong answers under each shift, in per cent: mean ± standard deviation over seeds where there "
            f"are several. The lowest of each line is in bold. The last line is their mean, {WEIGHT}."
        ),
        Table(["shift", *learners], rows),
    ]
    if len(names) > 1:
        caption = (
            "Vertical: error; bars are ± one standard deviation over seeds. Horizontal: the number of the shift in the "
            "table."
        )
        parts.append(Drawing(_dots(table, learners, runs.colours), caption, "error under each shift"))
    drawn = _all_over_time(runs, learners)
    if drawn is not None:
        plot, width = drawn
        caption = OVER_TIME.format(rows=width) + NUMBERS * bool(_boundaries(runs.runs[0]).drifts)
        caption += " Mean over seeds; bands are ± one standard deviation."
        parts += [Heading("Error over time"), Drawing(plot, caption, "error over time of every learner")]
    return Section("Error under each shift", parts, long=True)


def error_curve(run: RunData, rows: int) -> tuple[Array, Array]:
    """Steps (float64[n]) and the error among the last ``rows`` labelled rows, or a few more: records do not come after
    every row. Taken from the accuracy since the start, so that it is exact."""
    step, values = run.curve("labelled", "accuracy")
    known = ~np.isnan(values).any(axis=1)
    step = np.concatenate([[0.0], step[known]])
    seen = np.concatenate([[0.0], values[known, 0]])
    wrong = np.concatenate([[0.0], np.rint(values[known, 0] * (1.0 - values[known, 1]))])
    before = np.searchsorted(seen, seen - rows, side="right") - 1
    at = np.flatnonzero((before >= 0) & (seen > seen[before]))
    return step[at], (wrong[at] - wrong[before[at]]) / (seen[at] - seen[before[at]])


def rows_of_error(run: RunData) -> int:
    """Rows that an error over time is taken from: a fifth of a usual stretch, in whole records."""
    every = int(run.config.get("every", 100))
    ends = [float(r["step"]) for r in run.marked("boundary")] + [float(run.summary.get("examples") or 0)]
    lengths = [b - a for a, b in pairwise(ends) if b > a]
    return max(every, round(float(np.median(lengths)) / PARTS / every) * every) if lengths else every


def _over_time(run: RunData, errors: dict[str, float]) -> tuple[Plot, int] | None:
    rows = rows_of_error(run)
    x, y = error_curve(run, rows)
    if len(x) < 2:
        return None
    curves = [Curve(str(run.summary.get("learner")), x, y, plots.LEARNER)]
    levels = _levels(run, errors)
    if levels is not None:
        curves.insert(0, Curve("mean of the shift", *levels, plots.CUMULATIVE, width=1.4))
    return plots.line_plot(curves, prefix="errors", marks=_boundaries(run), bottom=0.0), rows


def _levels(run: RunData, errors: dict[str, float]) -> tuple[Array, Array] | None:
    """The error of each stretch as a line of steps, where every stretch begins at a boundary."""
    starts = [float(r["step"]) for r in run.marked("boundary")]
    ends = [*starts[1:], float(run.summary.get("examples") or 0)]
    stretches = [(a, b) for a, b in zip(starts, ends, strict=True) if b > a]
    if len(stretches) != len(errors):
        return None
    return np.array(stretches).ravel(), np.repeat(list(errors.values()), 2)


def _boundaries(run: RunData) -> Marks:
    """Where each shift of the table begins; nowhere where they come mixed."""
    starts = [float(r["step"]) for r in run.marked("boundary")]
    return Marks(drifts=starts if len(starts) == len(run.summary.get("shifts") or ()) else [])


def _all_over_time(runs: Compared, learners: list[str]) -> tuple[Plot, int] | None:
    rows, curves = rows_of_error(runs.runs[0]), []
    for name in reversed(learners):
        found = [error_curve(runs.runs[i], rows) for i in runs.groups[name]]
        found = [curve for curve in found if len(curve[0]) > 1]
        if found:
            x, mean, sd = mean_curve(found)
            curves.append(Curve(name, x, mean, runs.colours[name], width=1.8, sd=sd if len(found) > 1 else None))
    if not curves:
        return None
    drawn = plots.line_plot(curves, prefix="errors", marks=_boundaries(runs.runs[0]), height=4.2, bottom=0.0)
    lines = len(curves)
    return Plot(drawn.svg, drawn.legend[:lines][::-1] + drawn.legend[lines:]), rows


def _dots(table: list[list[list[float]]], learners: list[str], colours: dict[str, str]) -> Plot:
    """A point per shift and learner, side by side, with its standard deviation."""
    figure, axes = plots.new_axes(3.4)
    width = 0.64 / len(learners)
    for j, name in enumerate(learners):
        at = [(k + (j + 0.5) * width - 0.32, cells[j]) for k, cells in enumerate(table, start=1) if cells[j]]
        means, sds = zip(*(show.mean_sd(values) for _, values in at), strict=True)
        axes.errorbar(
            [x for x, _ in at], means, yerr=sds if any(sds) else None, fmt="o", color=colours[name], markersize=5.5,
            linewidth=1.2, markeredgecolor="white", markeredgewidth=0.6, zorder=3,
        )  # fmt: skip
    for k in range(1, len(table)):
        axes.axvline(k + 0.5, color=plots.GRID, linewidth=0.8, zorder=1)
    axes.set_xlim(0.5, len(table) + 0.5)
    axes.set_xticks(range(1, len(table) + 1, max(1, len(table) // 25)))
    axes.set_ylim(bottom=0.0)
    plots.tidy(axes, percent=True)
    return Plot(plots.to_svg(figure, "shifts"), [(colours[name], "dot", name) for name in learners])
