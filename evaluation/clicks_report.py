"""Sections on clicks: how well they are ranked and foretold, slot by slot of the stream's time."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import figures as show
from . import plots
from .plots import Curve, Plot
from .run_data import RunData
from .section import Compared, Drawing, Heading, Part, Section, Table, Words

Array = NDArray[Any]

MEANING = "AUC is the share of pairs of a click and a non-click that are ranked rightly (0.5 is chance)."
USERS = "gAUC is the same among each user’s rows, averaged by rows; users with one class only are left out."
TRUTH = (
    "Log loss is in nats; that of the click rate is what always answering with the share of clicks would have cost. "
    "Calibration is clicks foretold over clicks that came: above 1 the model promises too much."
)
LATE = "A row counts for the slot in which it came, with the probability given then, whenever its label came."
RATE = "of the click rate"
"""What the log loss is held against."""
SCORES = {"auc": "AUC", "gauc": "gAUC", "logloss": "Log loss", "calibration": "Calibration"}
REFERENCES: dict[str, tuple[str, float | None]] = {
    "auc": ("chance", 0.5),
    "gauc": ("chance", 0.5),
    "logloss": (f"{RATE} of the slot", None),
    "calibration": ("as many came as were foretold", 1.0),
}
"""What a score is to be held against; None: the entropy of the slot."""
MOST_LINES = 50
HORIZONTAL = "Horizontal: slots, of equal length in the stream’s time. A line is broken where a slot has no such score."


def entropy(rate: float) -> float:
    """Log loss of always answering with the share of clicks itself: ``r log 1/r + (1 - r) log 1/(1 - r)``.

    >>> round(entropy(0.5), 4), entropy(0.0)
    (0.6931, 0.0)
    """
    return sum(p * math.log(1 / p) for p in (rate, 1 - rate) if p > 0)


def click_figures(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and a note of what a run on clicks is judged by; nothing for other runs."""
    found = summary.get("clicks")
    if not isinstance(found, dict):
        return []
    gauc, rate = show.score(found["gauc"]), show.score(_entropy_of(found))
    return [
        ("AUC", show.score(found["auc"]), "0.5 is chance" if found["gauc"] is None else f"gAUC {gauc}"),
        ("log loss", show.score(found["logloss"]), f"{rate} {RATE} alone"),
        ("calibration", show.number(found["calibration"]), "clicks foretold over clicks that came"),
    ]


def click_verdict(summary: Mapping[str, Any]) -> tuple[str, str] | None:
    """Whether the probabilities of clicks were worth it, as ``report.verdict``; None where the stream has none."""
    found = summary.get("clicks")
    if not isinstance(found, dict) or found["auc"] is None:
        return None
    gain = _entropy_of(found) - found["logloss"]
    words = f"{summary.get('learner') or 'the learner'} ranks clicks with an AUC of {show.score(found['auc'])}"
    beside = f"{show.score(abs(gain))} {'below' if gain > 0 else 'above'} that of always answering with the click rate"
    return "good" if gain > 0 else "bad", f"{words}; its log loss, {show.score(found['logloss'])}, is {beside}."


def clicks_section(run: RunData) -> Section | None:
    """The scores of one run, of all rows and of every slot; None where its stream is none of clicks."""
    found = run.summary.get("clicks")
    if not isinstance(found, dict):
        return None
    parts: list[Part] = [_meaning(found["gauc"] is not None), _table(found), *_exactness(found)]
    if sum(slot["rows"] > 0 for slot in found["slots"]) > 1:
        auc, gauc, logloss, calibration = (
            Curve(name, *slot_curve(run, key), plots.PALETTE[key == "gauc"], width=1.8) for key, name in SCORES.items()
        )
        both = [auc] if found["gauc"] is None else [gauc, auc]
        parts += _drawings(run, {"auc": both, "logloss": [logloss], "calibration": [calibration]})
    return Section("Clicks", parts, long=True)


def clicks_compared(runs: Compared) -> Section | None:
    """The scores of every learner slot by slot, mean ± sd over seeds."""
    told = {n: [runs.runs[i] for i in runs.groups[n] if runs.summaries[i].get("clicks")] for n in runs.colours}
    told = {n: members for n, members in told.items() if members}
    if not told:
        return None
    curves = {
        key: [_mean(n, [slot_curve(run, key) for run in told[n]], runs.colours[n]) for n in reversed(told)]
        for key in SCORES
    }
    known = {key: found for key, found in curves.items() if not all(np.isnan(curve.y).all() for curve in found)}
    first = next(iter(told.values()))[0]
    return Section("Clicks", [_meaning("gauc" in known), *_drawings(first, known)], long=True)


# --- words ----------------------------------------------------------------------------------------------------------


def _meaning(users: bool) -> Words:
    return Words(" ".join([MEANING, *[USERS] * users, TRUTH, LATE]))


def _table(found: dict[str, Any]) -> Table:
    """A line for every slot, and one for all rows."""
    heads = ["slot", "begins", "rows", "clicks", "AUC", "gAUC", "log loss", RATE, "calibration"]
    slots = found["slots"][:MOST_LINES]
    lines = [[str(s), _moment(slot["from"], found["clock"]), *_cells(slot)] for s, slot in enumerate(slots, 1)]
    lines.append(["all", "", *_cells(found)])
    users = found["gauc"] is not None
    return Table([*heads[:5], *heads[5 + (not users) :]], [[*line[:5], *line[5 + (not users) :]] for line in lines])


def _cells(scores: Mapping[str, Any]) -> list[str]:
    scored = [show.score(scores[key]) for key in ("auc", "gauc", "logloss")]
    return [
        show.number(scores["rows"]),
        show.percent(scores["clicks"] / scores["rows"] if scores["rows"] else None),
        *scored,
        show.score(_entropy_of(scores)),
        show.number(scores["calibration"]),
    ]


def _entropy_of(scores: Mapping[str, Any]) -> float:
    """Of the click rate of a slot; NaN without rows."""
    return entropy(scores["clicks"] / scores["rows"]) if scores["rows"] else math.nan


def _exactness(found: Mapping[str, Any]) -> list[Part]:
    """What is not told or not exact; nothing where all is."""
    left = len(found["slots"]) - MOST_LINES
    words = [f"{show.count(left, 'more slot')} in summary.json."] * (left > 0)
    if found["auc_margin"]:
        words.append(f"AUC is taken from scores in bins and at most {found['auc_margin']:.1g} off.")
    if found["users_share"] not in (None, 1.0):
        words.append(f"gAUC is that of one user in {round(1 / found['users_share']):,}, drawn by hash.")
    return [Words(" ".join(words), quiet=True)] if words else []


def _moment(bound: float, clock: str) -> str:
    """When a slot begins: the moment (UTC), or the number of its first row."""
    if clock == "rows":
        return f"row {math.ceil(bound):,}"
    return f"{datetime.datetime.fromtimestamp(bound, datetime.UTC):%Y-%m-%d %H:%M}"


# --- drawings -------------------------------------------------------------------------------------------------------


def slot_curve(run: RunData, key: str) -> tuple[Array, Array]:
    """Numbers of the slots from 1 (float64[S]) and a score of each, NaN where it has none."""
    slots = run.summary["clicks"]["slots"]
    y = [np.nan if slot[key] is None else slot[key] for slot in slots]
    return np.arange(1.0, len(slots) + 1), np.array(y, np.float64)


def _mean(name: str, found: Sequence[tuple[Array, Array]], colour: str) -> Curve:
    """Mean and sample sd over seeds; NaN where a seed has none."""
    y = np.stack([values for _, values in found])
    sd = y.std(axis=0, ddof=1) if len(y) > 1 else None
    return Curve(name, found[0][0], y.mean(axis=0), colour, width=1.8, sd=sd)


def _reference(slots: Sequence[Mapping[str, Any]], key: str) -> Curve:
    """What a score is to be held against in every slot."""
    name, value = REFERENCES[key]
    y = [value if value is not None else _entropy_of(slot) for slot in slots]
    return Curve(name, np.arange(1.0, len(slots) + 1), np.array(y, np.float64), plots.NO_CHANGE, "dashed", 1.2)


def _drifts(run: RunData) -> list[float]:
    """Where the known drifts lie among the slots; none where the slots do not go by rows."""
    found = run.summary["clicks"]
    if found["clock"] != "rows":
        return []
    return [0.5 + len(found["slots"]) * r["step"] / found["slots"][-1]["to"] for r in run.marked("boundary")]


def _drawings(run: RunData, panels: Mapping[str, Sequence[Curve]]) -> list[Part]:
    """A plot over slots for each score, under its heading; run: one whose slots and drifts are those of all."""
    parts: list[Part] = []
    for key, curves in panels.items():
        plot = slot_plot([*curves, _reference(run.summary["clicks"]["slots"], key)], _drifts(run), f"clicks-{key}")
        label = f"{SCORES[key]} by slot of time"
        parts += [Heading(label), Drawing(plot, "" if parts else HORIZONTAL, label)]
    return parts


def slot_plot(curves: Sequence[Curve], drifts: Sequence[float], prefix: str) -> Plot:
    """A point per slot and curve, joined by lines; the last curve, a reference, has no points."""
    figure, axes = plots.new_axes(2.6)
    slots = len(curves[-1].x)
    for curve in curves:
        plots.draw(axes, curve)
    for curve in curves[:-1]:
        axes.plot(curve.x, curve.y, "o", color=curve.colour, markersize=4.5 if slots <= 40 else 2, zorder=4)
    for at in drifts:
        axes.axvline(at, color=plots.DRIFT, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1)
    low, high = plots.limits(curves, percent=False)
    axes.set_ylim(low, high)
    axes.set_xlim(0.5, slots + 0.5)
    step = max(1, math.ceil(slots / 20))
    axes.set_xticks(range(step, slots + 1, step))
    plots.tidy(axes, percent=False)
    legend = [(c.colour, c.style, c.name) for c in (*reversed(curves[:-1]), curves[-1])]
    return Plot(plots.to_svg(figure, prefix), legend + [(plots.DRIFT, "drift", "known drift")] * bool(drifts))
