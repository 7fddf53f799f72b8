"""Sections on adapted minus source: what adaptation was worth on the same rows, and what was guessed without labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import figures as show
from . import plots
from .plots import Curve, Marks
from .run_data import RunData
from .section import Cell, Compared, Drawing, Part, Section, Table, Words, marked

TRUE, GUESSED = "source_gain", "source_gain_estimated"
"""Columns of the records."""
KINDS = ("rollback", "frozen", "warning")
MOST_EVENTS = 40
MEANING = (
    "On some batches the unadapted source answers too. The gain is the learner’s accuracy on those rows minus the "
    "source’s; estimated is what was guessed of it from the answers alone, before any label."
)
FIGURES = ("adapted", "source", "estimated_gain", "rollbacks", "stood_in")


def signed(value: object) -> str:
    """A gain in points, with its sign."""
    if not show.is_number(value):
        return show.DASH
    return ("+" if value > 0 else "") + show.points(value)


def paired_verdict(summary: Mapping[str, Any]) -> tuple[str, str] | None:
    """Whether the learner did better than its source, as ``report.verdict``; None where no label tells, or the two
    never differed."""
    found = summary.get("source")
    if not isinstance(found, Mapping) or not show.is_number(found["gain"]) or not (found["gain"] or found["gain_se"]):
        return None
    name, gain, rows = summary.get("learner"), found["gain"], show.count(found["judged_rows"], "row")
    if abs(gain) <= 2 * found["gain_se"]:
        error = show.points(found["gain_se"])
        words = f"{signed(gain)}, standard error {error}, on {rows} that both answered"
        return "plain", f"{name} cannot be told from its source without adaptation: {words}."
    side, more = ("better", "more") if gain > 0 else ("worse", "less")
    words = f"{show.points(abs(gain))} {more} on {rows} that both answered"
    return "good" if gain > 0 else "bad", f"{name} does {side} than its source without adaptation: {words}."


def paired_section(run: RunData) -> Section | None:
    """The gain over the source of one run, by labels and by estimate; None where there is no source."""
    found = run.summary.get("source")
    if not isinstance(found, dict):
        return None
    parts: list[Part] = [Words(MEANING), Words(_verdict(found))]
    rows = [
        [show.percent(found["adapted"]), show.percent(found["source"]), signed(found["gain"]),
         show.points(found["gain_se"]), signed(found["estimated_gain"]), show.number(found["judged_rows"])]
    ]  # fmt: skip
    parts.append(Table(["adapted", "source", "gain", "± standard error", "estimated gain", "rows with both"], rows))
    x, y = run.curve(TRUE, GUESSED)
    known = ~np.isnan(y).all(axis=1)
    if known.sum() > 1:
        x, y = x[known], y[known]
        curves = [
            Curve("adapted minus source", x, y[:, 0], plots.LEARNER, width=1.8),
            Curve("estimated without labels", x, y[:, 1], plots.NO_CHANGE, "dashed", 1.6),
            Curve("no gain", x, np.zeros(len(x)), plots.MAJORITY, "dotted", 1.2),
        ]
        back = [float(r["step"]) for r in run.marked("rollback")]
        drawn = plots.line_plot(curves, prefix="gain", marks=Marks(rollbacks=back), height=2.6)
        caption = "Of the last rows that both answered. Horizontal: rows seen."
        parts.append(Drawing(drawn, caption, "gain over the source over time"))
    events = [r for r in run.records if r["kind"] in KINDS]
    if events:
        lines = [[show.number(r["step"]), r["kind"], str(r["values"].get("note", ""))] for r in events[:MOST_EVENTS]]
        parts.append(Table(["row", "kind", "what happened"], lines, frozenset({1, 2})))
    if len(events) > MOST_EVENTS:
        parts.append(Words(f"{show.count(len(events) - MOST_EVENTS, 'more')} not shown.", quiet=True))
    return Section("Adapted minus source", parts, long=len(events) > 10)


def _verdict(found: dict[str, object]) -> str:
    """Whether adaptation was worth it, in words."""
    gain, error = found["gain"], found["gain_se"]
    if not show.is_number(gain) or not show.is_number(error):
        words = "No label came for these rows, so only the estimate is known."
    elif abs(gain) <= 2 * error:
        words = "Adapted and source are as good as each other, within two standard errors."
    else:
        words = f"Adaptation was worth {show.points(gain)}." if gain > 0 else f"Adaptation cost {show.points(-gain)}."
    if found["frozen_at"] is not None:
        words += f" It was ended at row {show.number(found['frozen_at'])}, after a third collapse."
    if found["stood_in"]:
        rows = show.count(int(str(found["stood_in"])), "row")
        words += (
            f" For {rows} the source’s answer was handed out in place of the learner’s; the gain is not about these."
        )
    return words


def paired_compared(runs: Compared) -> Section | None:
    """The gain over the source of every learner, mean ± sd over seeds."""
    learners = [n for n in runs.colours if runs.values(n, "source", "shadow_rows")]
    if not learners:
        return None
    gains = marked([runs.values(n, "source", "gain") for n in learners], 1)
    rows: list[list[str | Cell]] = []
    for n, gain in zip(learners, gains, strict=True):
        figures = {key: runs.values(n, "source", key) for key in FIGURES}
        cells = [show.spread(figures[key], show.hundredths) for key in ("adapted", "source")]
        guess = show.spread(figures["estimated_gain"], show.hundredths).replace("-", "−")
        counts = [show.spread(figures[key], show.tally) for key in ("rollbacks", "stood_in")]
        rows.append([runs.name(n), *cells, gain, guess, *counts])
    heads = ["learner", "adapted", "source", "gain", "estimated gain", "rollbacks", "rows the source stood in for"]
    return Section("Adapted minus source", [Words(f"{MEANING} In per cent."), Table(heads, rows)])
