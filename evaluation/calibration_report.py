"""Sections on calibration: how far confidence may be believed, with a reliability plot."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import figures as show
from . import plots
from .calibration import CONFIDENCE, HITS, ROWS, pooled
from .plots import Curve, Plot
from .run_data import RunData
from .section import Cell, Compared, Drawing, Part, Section, Table, Words, marked

MEANING = (
    "The ECE (expected calibration error) is how far confidence, the probability of the answer that was thought "
    "likeliest, and accuracy lie apart on average over 15 bins of confidence."
)
FEWEST = 20
"""Rows of a bin below which its accuracy is drawn pale, and left out of a comparison."""


def calibration_section(run: RunData) -> Section | None:
    """The calibration of one run; None where its learner gave no probabilities."""
    found, ece = run.summary.get("calibration"), run.summary.get("ece")
    if not isinstance(found, dict) or not show.is_number(ece):
        return None
    bins = pooled([found["bins"]])
    caption = (
        "Horizontal: confidence. Bars: accuracy of the rows answered with that confidence, pale where they are fewer "
        f"than {FEWEST}; the dashed line is perfect calibration, and a bar below it means too sure. Lower drawing: "
        "share of all rows."
    )
    words = f"{MEANING} It is {show.percent(ece)}: {_tendency(found['gap'])}."
    return Section("Calibration", [Words(words), Drawing(reliability(bins), caption, "accuracy by confidence")])


def _tendency(gap: float) -> str:
    """The signed gap in words."""
    if abs(gap) < 0.0005:
        return "confidence is on average as high as accuracy"
    kind = "overconfident" if gap > 0 else "underconfident"
    return f"{kind}, on average confidence is {show.points(abs(gap))} {'above' if gap > 0 else 'below'} accuracy"


def reliability(bins: Any) -> Plot:
    """Accuracy by confidence as bars, with the share of rows below. bins: float64[M, 3]."""
    figure, axes = plots.new_axes(4.0, right=0.36)
    m = len(bins)
    rows, known = bins[:, ROWS], bins[:, ROWS] > 0
    left = np.arange(m) / m
    accuracy = np.divide(bins[:, HITS], rows, out=np.zeros(m), where=known)
    for few, alpha in ((False, 1.0), (True, 0.3)):
        part = known & ((rows < FEWEST) == few)
        axes.bar(
            left[part], accuracy[part], 1 / m, align="edge", color=plots.LEARNER, alpha=alpha, edgecolor="white",
            zorder=2,
        )  # fmt: skip
    axes.plot([0, 1], [0, 1], color=plots.INK, linewidth=1.2, linestyle=plots.DASHES["dashed"], zorder=3)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    box = axes.get_position()
    axes.set_position((box.x0, box.y0 + 0.3 * box.height, box.width, 0.7 * box.height))
    below = figure.add_axes((box.x0, box.y0, box.width, 0.2 * box.height))
    below.bar(left, rows / rows.sum(), 1 / m, align="edge", color=plots.CUMULATIVE, edgecolor="white", zorder=2)
    below.set_xlim(0, 1)
    below.set_ylim(0, 1)
    below.set_yticks([0, 1])
    for each in (axes, below):
        plots.tidy(each, percent=True)
        each.xaxis.set_major_formatter(lambda v, _: f"{100 * v:g} %")
    axes.set_xticklabels([])
    shares = (plots.CUMULATIVE, "area", "share of rows")
    perfect = (plots.INK, "dashed", "perfect calibration")
    return Plot(plots.to_svg(figure, "reliability"), [(plots.LEARNER, "area", "accuracy"), perfect, shares])


def calibration_compared(runs: Compared) -> Section | None:
    """ECE and signed gap of every learner, and their reliability curves."""
    learners = {
        n: told
        for n in runs.colours
        if (
            told := [
                runs.summaries[i] for i in runs.groups[n] if isinstance(runs.summaries[i].get("calibration"), dict)
            ]
        )
    }
    if not learners:
        return None
    gaps = [show.spread(runs.values(n, "calibration", "gap"), show.hundredths) for n in learners]
    eces = marked([runs.values(n, "ece") for n in learners], -1)
    rows: list[list[str | Cell]] = [[runs.name(n), ece, gap] for n, ece, gap in zip(learners, eces, gaps, strict=True)]
    parts: list[Part] = [
        Words(f"{MEANING} The gap is mean confidence minus accuracy: above 0 is overconfident. Both in per cent."),
        Table(["learner", "ECE", "gap"], rows),
    ]
    curves = []
    for n, told in learners.items():
        bins = pooled([s["calibration"]["bins"] for s in told])
        bins = bins[bins[:, ROWS] >= FEWEST]
        if len(bins):
            x, y = bins[:, CONFIDENCE] / bins[:, ROWS], bins[:, HITS] / bins[:, ROWS]
            curves.append(Curve(n, x, y, runs.colours[n], width=1.8))
    if curves:
        caption = (
            "Horizontal: mean confidence of a bin, all seeds together; vertical: accuracy of its rows. Bins with fewer "
            f"than {FEWEST} rows are left out. Below the dashed line a learner is too sure."
        )
        parts.append(Drawing(_curves(curves), caption, "accuracy by confidence of every learner"))
    return Section("Calibration", parts)


def _curves(curves: list[Curve]) -> Plot:
    figure, axes = plots.new_axes(3.6, right=0.36)
    axes.plot([0, 1], [0, 1], color=plots.FAINT, linewidth=1.1, linestyle=plots.DASHES["dashed"], zorder=1)
    for curve in curves:
        plots.draw(axes, curve)
        axes.plot(curve.x, curve.y, "o", color=curve.colour, markersize=4, zorder=4)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.01)
    plots.tidy(axes, percent=True)
    axes.xaxis.set_major_formatter(lambda v, _: f"{100 * v:g} %")
    legend = [(c.colour, "solid", c.name) for c in curves]
    return Plot(plots.to_svg(figure, "reliability"), [*legend, (plots.FAINT, "dashed", "perfect calibration")])
