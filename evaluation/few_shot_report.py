"""Sections on few-shot class-incremental streams: base and new accuracy and their harmonic mean, always apart."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import figures as show
from . import plots
from .plots import Curve, Plot
from .run_data import RunData
from .section import Compared, Drawing, Heading, Part, Section, Table, Words

FIGURES = {
    "accuracy": "all classes", "base_accuracy": "base", "new_accuracy": "new", "harmonic_mean": "HM",
}  # fmt: skip
"""The figures of a session, and how they are titled."""
LOOKS = ((plots.FAINT, "dashed"), (plots.PALETTE[0], "solid"), (plots.PALETTE[2], "solid"), (plots.INK, "solid"))
MEANING = (
    "Base is the accuracy on rows of the classes that the source model knew, new that on rows of classes that came "
    "later with a few labelled rows each; any class may be answered. HM is their harmonic mean, at most twice the "
    "worse one. Counted are rows whose labels are for judging only, not the few that bring a class."
)


def few_shot_section(run: RunData) -> Section | None:
    """The sessions of one run; None where its stream has none."""
    found = run.summary.get("few_shot")
    if not isinstance(found, dict):
        return None
    sessions = found["sessions"]
    rows = [[s["name"], show.number(s["rows"]), *(show.percent(s[key]) for key in FIGURES)] for s in sessions]
    rows.append(["mean", "", *(show.percent(found[key]) for key in FIGURES)])
    words = "The mean is that of the sessions that have the figure."
    if show.is_number(found.get("drop")):
        first, last = (show.percent(sessions[k]["accuracy"]) for k in (0, -1))
        words += f" From the first session to the last the accuracy over all classes went from {first} to {last}."
    parts: list[Part] = [
        Words(MEANING),
        Table(["session", "rows", *FIGURES.values()], rows, frozenset({0})),
        Words(words),
    ]
    if len(sessions) > 1:
        curves = [
            Curve(name, *_line([s[key] for s in sessions]), *look)
            for (key, name), look in zip(FIGURES.items(), LOOKS, strict=True)
        ]
        caption = "Horizontal: the session, 0 with the base classes alone."
        parts.append(Drawing(_plot(curves, "sessions", len(sessions)), caption, "accuracy over sessions"))
    return Section("Sessions", parts)


def few_shot_compared(runs: Compared) -> Section | None:
    """HM, base and new accuracy of every learner, session by session; their means are in the table of results."""
    learners = [n for n in runs.colours if runs.values(n, "few_shot", "accuracy")]
    if not learners:
        return None
    count = max(len(s["few_shot"]["sessions"]) for s in runs.summaries if s.get("few_shot"))
    parts: list[Part] = [Words(MEANING)]
    for key in ("harmonic_mean", "base_accuracy", "new_accuracy"):
        curves = []
        for n in learners:
            each = [runs.values(n, "few_shot", "sessions", k, key) for k in range(count)]
            x, y = _line([float(np.mean(v)) if v else None for v in each])
            if len(x):
                sd = np.array([show.mean_sd(v)[1] for v in each if v])
                curves.append(Curve(n, x, y, runs.colours[n], width=1.8, sd=sd if sd.any() else None))
        if curves and count > 1:
            name = FIGURES[key] if key == "harmonic_mean" else f"{FIGURES[key].capitalize()} accuracy"
            caption = "Horizontal: the session. Mean over seeds; bands are ± one standard deviation."
            parts += [
                Heading(f"{name}, session by session"),
                Drawing(_plot(curves, key, count), caption, f"{name} over sessions"),
            ]
    return Section("Base and new classes", parts, long=True)


def _line(values: list[float | None]) -> tuple[Any, Any]:
    """Sessions that have the figure, and the figure."""
    known = [(k, v) for k, v in enumerate(values) if v is not None]
    x, y = np.array(known, np.float64).reshape(-1, 2).T
    return x, y


def _plot(curves: list[Curve], prefix: str, sessions: int) -> Plot:
    figure, axes = plots.new_axes(2.7)
    for curve in curves:
        plots.draw(axes, curve)
        axes.plot(curve.x, curve.y, "o", color=curve.colour, markersize=5, zorder=4)
    low, _ = plots.limits(curves, percent=True)
    axes.set_ylim(low, 1.005)
    axes.set_xlim(-0.2, sessions - 0.8)
    axes.set_xticks(range(0, sessions, max(1, sessions // 20)))
    plots.tidy(axes, percent=True)
    return Plot(plots.to_svg(figure, prefix), [(c.colour, c.style, c.name) for c in curves])
