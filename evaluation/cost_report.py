"""Sections on what a batch costs: milliseconds to predict, to adapt, to learn."""

from __future__ import annotations

from typing import Any

from . import figures as show
from .run_data import RunData
from .section import Cell, Compared, Section, Table, Words

PHASES = ("predict", "adapt", "learn", "total", "mean")
HOW = (
    "Predict, adapt, learn and total are medians, each for itself. The mean is that of the total and has what only "
    "some batches pay for; where there are 40 it leaves out the first 20, in which things are compiled and chosen. The "
    "clock is this machine’s."
)
TOTAL = ("ms_per_batch", "total")
SOURCE = "source"
"""The learner that never adapts: what every other one is measured against."""


def cost_section(run: RunData) -> Section | None:
    """What a batch of one run cost; None where rows came one by one, or nothing was timed."""
    found, batch = run.summary.get("ms_per_batch"), run.config.get("batch")
    in_batches = show.is_number(batch) and batch > 1
    if not (in_batches or run.summary.get("shifts") or run.summary.get("few_shot")):
        return None
    if not isinstance(found, dict) or not found.get("batches"):
        return None
    rows = f" of {show.count(batch, 'row')}" if show.is_number(batch) else ""
    count = show.count(found["batches"], "batch", "batches")
    words = f"Time that one batch{rows} took, over {count}. {HOW}"
    return Section(
        "Cost of a batch", [Words(words), Table(PHASES, [[show.milliseconds(found.get(p)) for p in PHASES]])]
    )


def cost_compared(runs: Compared) -> Section | None:
    """What a batch cost every learner, and how many times what it cost the source model alone."""
    if not any(s.get("shifts") or s.get("few_shot") for s in runs.summaries):
        return None
    summaries = with_ratios(runs.summaries)
    times = {
        n: [r for i in members if (r := show.look_up(summaries[i], ("ms_per_batch", "times_source"))) is not None]
        for n, members in runs.groups.items()
    }
    known = any(times.values())
    rows: list[list[str | Cell]] = []
    for n in runs.colours:
        cells = [show.spread(runs.values(n, "ms_per_batch", p), show.milliseconds) for p in PHASES]
        rows.append([runs.name(n), *cells, *[show.spread(times[n], show.ratio)] * known])
    words = f"Time that one batch took to be predicted, adapted to and learnt from. {HOW}"
    if known:
        words += " “× source” is the total as a multiple of that of the source model without adaptation, seed by seed."
    return Section("Cost of a batch", [Words(words), Table(["learner", *PHASES, *["× source"] * known], rows)])


def with_ratios(summaries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The summaries, each with ``ms_per_batch.times_source`` where the source learner ran under the same seed."""
    totals = {s.get("seed"): show.look_up(s, TOTAL) for s in summaries if s.get("learner") == SOURCE}
    found = []
    for summary in summaries:
        own, source = show.look_up(summary, TOTAL), totals.get(summary.get("seed"))
        if own is not None and source:
            summary = summary | {"ms_per_batch": summary["ms_per_batch"] | {"times_source": own / source}}
        found.append(summary)
    return found
