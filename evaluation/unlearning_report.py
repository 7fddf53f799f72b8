"""Sections on requests to forget: which there were, and how far the learner then was from one trained anew."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import figures as show
from . import plots
from .plots import Curve, Plot, mean_curve
from .run_data import RunData
from .section import Compared, Drawing, Heading, Part, Section, Table, Words, marked

Floats = NDArray[np.float64]

GAP, MEMBERSHIP = "gap", "gap_membership"
"""Columns of the records of kind forget."""
DIFFERENCES = {
    "gap_retained": "rows that remain", "gap_forgotten": "forgotten rows", "gap_test": "held-out rows",
    MEMBERSHIP: "membership AUC",
}  # fmt: skip
MOST = 60
MEANING = (
    "After each request an equal learner was trained anew on the rows that remain. The gap is the mean absolute "
    "difference between the two in four figures: accuracy on the rows that remain, on the rows forgotten so far and on "
    "held-out rows, and how well their loss tells forgotten rows from rows never seen (membership AUC). At 0 nothing "
    "is left of the forgotten rows that these figures could show; to be above the learner trained anew is no merit."
)
UNKNOWN = "Where the stream has no held-out rows, the gap is that of the other figures."


def forget_section(run: RunData) -> Section | None:
    """The requests of one run, and the gap after each where it was measured; None where there was no request."""
    requests = run.marked("forget")
    if not requests:
        return None
    notes = [str(r["values"].get("note", "")) for r in requests]
    done = [note.partition(": ") for note in notes if not note.startswith("refused")]
    words = f"{show.count(len(done), 'request')} to forget carried out, {len(requests) - len(done):,} refused."
    parts: list[Part] = [
        Words(words),
        *(Words(f"What the receipts say: “{said}”.") for said in sorted({words for *_, words in done})),
    ]
    measured = [r for r in requests if GAP in r["values"]]
    if measured:
        parts.append(Words(f"{MEANING} {UNKNOWN}" if "gap_test" not in measured[0]["values"] else MEANING))
    if len(measured) > 1:
        beside = "membership AUC minus that of training anew"
        curves = [
            Curve("gap to training anew", *_line(run, GAP), plots.LEARNER, width=1.8),
            Curve(beside, *_line(run, MEMBERSHIP), plots.NO_CHANGE, "dashed", 1.6),
        ]
        parts.append(_drawing([c for c in curves if len(c.x)], "gap of this learner"))
    figures = [GAP, *DIFFERENCES] if measured else []
    if measured:
        parts.append(Words("The gap, and the learner’s figures minus those of the one trained anew, in points:"))
    heads = ["row", "outcome", *(["gap", *DIFFERENCES.values()] if measured else [])]
    rows = [
        [show.number(r["step"]), _outcome(note), *(_points(r["values"].get(key), sign=key != GAP) for key in figures)]
        for r, note in zip(requests[:MOST], notes)
    ]
    parts.append(Table(heads, rows, frozenset({1})))
    if len(requests) > MOST:
        parts.append(Words(f"{show.count(len(requests) - MOST, 'more')} not shown.", quiet=True))
    return Section("Requests to forget", parts, long=len(requests) > 10)


def forget_compared(runs: Compared) -> Section | None:
    """The gap of every learner after every request, mean ± sd over seeds."""
    found = {n: [run for i in runs.groups[n] if len(_line(run := runs.runs[i], GAP)[0])] for n in runs.colours}
    learners = [n for n, some in found.items() if some]
    if not learners:
        return None
    parts: list[Part] = [Words(MEANING)]
    for key, title in ((GAP, "Gap to training anew"), (MEMBERSHIP, "Membership AUC minus that of training anew")):
        curves = []
        for name in reversed(learners):
            lines = [line for run in found[name] if len((line := _line(run, key))[0])]
            if lines:
                x, mean, sd = mean_curve(lines)
                curves.append(Curve(name, x, mean, runs.colours[name], width=1.8, sd=sd if len(lines) > 1 else None))
        if any(len(curve.x) > 1 for curve in curves):
            parts += [Heading(title), _drawing(curves, f"{title}, every learner")]
    ends = {n: [_line(run, GAP)[1] for run in found[n]] for n in learners}
    columns = [
        marked([[float(y[0]) for y in ends[n]] for n in learners], -1),
        marked([[float(y.mean()) for y in ends[n]] for n in learners], -1),
        marked([[float(y[-1]) for y in ends[n]] for n in learners], -1),
        marked([[float(y.max()) for y in ends[n]] for n in learners], -1),
        marked([_membership(found[n]) for n in learners], -1),
    ]
    heads = ["learner", "first gap", "mean gap", "last gap", "largest gap", "mean membership difference"]
    rows = [[runs.name(n), *cells] for n, cells in zip(learners, zip(*columns))]
    parts += [Words("In points; the lowest of each column is in bold."), Table(heads, rows)]
    return Section("Requests to forget", parts, long=True)


def _line(run: RunData, key: str) -> tuple[Floats, Floats]:
    """Rows seen and the figure, of the requests after which it is known."""
    known = [(r["step"], r["values"][key]) for r in run.marked("forget") if show.is_number(r["values"].get(key))]
    found = np.array(known, np.float64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _membership(runs: list[RunData]) -> list[float]:
    """Mean size of the membership difference of each run that has one."""
    lines = [_line(run, MEMBERSHIP)[1] for run in runs]
    return [float(np.abs(y).mean()) for y in lines if len(y)]


def _drawing(curves: list[Curve], label: str) -> Drawing:
    """Curves with a dot at every request."""
    figure, axes = plots.new_axes(3.0)
    for curve in curves:
        plots.draw(axes, curve)
        axes.plot(curve.x, curve.y, "o", color=curve.colour, markersize=3.5, zorder=4)
    axes.axhline(0.0, color=plots.GRID, linewidth=1.0, zorder=1)
    axes.set_xlim(left=0.0)
    plots.tidy(axes, percent=True)
    legend = [(curve.colour, curve.style, curve.name) for curve in curves][::-1]
    bands = any(curve.sd is not None for curve in curves)
    caption = "A dot for every request. Horizontal: rows seen." + " Bands are ± one standard deviation." * bands
    return Drawing(Plot(plots.to_svg(figure, "".join(c for c in label if c.isalpha())), legend), caption, label)


def _outcome(note: str) -> str:
    """The reason of a refusal, or how many rows were forgotten."""
    return note if note.startswith("refused") else note.partition(":")[0]


def _points(value: object, *, sign: bool) -> str:
    """A difference of two shares in hundredths, with its sign, if asked for, unless it is zero."""
    if not show.is_number(value):
        return show.DASH
    words = f"{100 * value:.1f}".replace("-", "−")
    if words in ("0.0", "−0.0"):
        return "0.0"
    return "+" + words if sign and value > 0 else words
