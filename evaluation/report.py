"""``report.html``: one run, or several beside one another, as one page that opens anywhere and needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import figures as show
from . import plots
from .calibration_report import calibration_section
from .clicks_report import click_figures, click_verdict, clicks_section
from .comparison import compared
from .continual_report import continual_part
from .cost_report import cost_section
from .driving_report import driving_figures, driving_section, driving_verdict
from .few_shot_report import few_shot_section
from .paired_report import paired_section, paired_verdict
from .plots import Curve, Marks, Plot
from .run_data import RunData, read_run
from .section import Section
from .shifts_report import shift_figure, shifts_section
from .source_report import source_section
from .telemetry_plots import telemetry_plots
from .token_report import overlap_section, token_section
from .unlearning_report import forget_section

__all__ = ["RunData", "baselines", "read_run", "render_comparison", "render_run", "standing", "verdict"]

PHASES = ("predict", "adapt", "learn", "evaluate", "io")
PACKAGES = ("driftway", "numpy", "numba", "river", "scikit-learn", "torch", "matplotlib")
MOST_REASONS, MOST_DRIFTS = 20, 100
KAPPA_FLOOR = -1.0
"""Where the drawing of κ temporal ends: it has no lower bound, and what lies below says only "much worse"."""
DETECTORS = {"adwin": "ADWIN", "page_hinkley": "Page-Hinkley"}
SCORES = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "kappa": "κ", "kappa_m": "κ majority",
    "kappa_t": "κ temporal", "logloss": "log loss", "mae": "MAE", "rmse": "RMSE", "auc": "AUC",
}  # fmt: skip
"""Columns of the records that are scores, and how they are written."""
SECTIONS: tuple[Callable[[RunData], Section | None], ...] = (
    driving_section,
    clicks_section,
    shifts_section,
    few_shot_section,
    paired_section,
    source_section,
    calibration_section,
    forget_section,
    token_section,
    overlap_section,
    cost_section,
)
"""Sections that stand behind the scores over time, in the order of the page; one that gives None is left out."""
_EXPERT = re.compile(r"expert_(\d+)(?:_share)?")
_ALARM = re.compile(r"(.*) at row (\d+)")


def render_run(run: RunData) -> str:
    """The page of one run: the same bytes for the same files and the same installed versions."""
    measure = show.measure_of(run.summary)
    marks, continual = marks_of(run), continual_part(run)
    return _page(
        "report.html.jinja",
        title=f"{_name(run, 'learner')} on {_name(run, 'stream')}",
        run=run,
        digest=str(run.summary.get("state_sha256") or ""),
        facts=_facts(run),
        verdict=verdict(run) if continual is None else continual["verdict"],
        beside_baselines=verdict(run)[1],
        remarks=_remarks(run),
        cards=_cards(run),
        measure=measure,
        scores=_score_plot(run, measure, marks),
        kappa=_kappa_plot(run, marks),
        scores_table=_scores_table(run),
        sections=[found for section in SECTIONS if (found := section(run)) is not None],
        drifts=drift_table(run),
        usage=_usage_plot(run, marks),
        telemetry=telemetry_plots(run, marks),
        phases=_phases(run),
        speed=_timing_plots(run),
        continual=continual,
        reasons=run.quarantine[:MOST_REASONS],
        more_reasons=max(0, len(run.quarantine) - MOST_REASONS),
        environment=environment(run),
    )


def render_comparison(runs: list[RunData]) -> str:
    """The page of several runs on one stream: learners overlaid, mean ± sd over their seeds.

    Raises ``InputError`` where there is nothing to compare: no runs, or runs on different streams.
    """
    facts = compared(runs)
    return _page("comparison.html.jinja", environment=environment(runs[0]), runs=runs, **facts)


def _page(template: str, **facts: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {
        name: getattr(show, name) for name in ("percent", "hundredths", "number", "rate", "duration", "count")
    }
    pages.filters["drawing"] = Markup  # our own SVG, in which no word of a user occurs
    return pages.get_template(template).render(**facts) + "\n"


def _name(run: RunData, key: str) -> str:
    return str(run.summary.get(key) or f"unknown {key}")


# --- words and figures --------------------------------------------------------------------------------------------


def _facts(run: RunData) -> list[str]:
    s = run.summary
    facts = [show.count(s["examples"], "row")] if show.is_number(s.get("examples")) else []
    if show.is_number(s.get("labelled")) and s["labelled"] != s.get("examples"):
        facts.append(f"{s['labelled']:,} with labels")
    delay, batch = run.config.get("delay"), run.config.get("batch")
    if show.is_number(delay):
        facts.append(f"labels {show.count(delay, 'row')} late" if delay else "labels at once")
    if show.is_number(batch):
        facts.append("row by row" if batch == 1 else f"in batches of {batch}")
    return [*facts, f"seed {s.get('seed', 'unknown')}", f"driftway {s.get('driftway', 'of unknown version')}"]


def baselines(summary: Mapping[str, Any]) -> dict[str, float]:
    """The baselines that were measured, by their written names."""
    found = summary.get("baseline") or {}
    rivals = {show.baseline_name(key, show.measure_of(summary)): found.get(key) for key in ("no_change", "majority")}
    return {name: float(value) for name, value in rivals.items() if show.is_number(value)}


def verdict(run: RunData) -> tuple[str, str]:
    """Whether the run was worth it: ("good" | "bad" | "plain", one sentence).

    A learner that adapts a source is measured against that, others against the baselines.
    """
    special = driving_verdict(run.summary) or click_verdict(run.summary) or paired_verdict(run.summary)
    if special is not None:
        return special
    measure, name = show.measure_of(run.summary), _name(run, "learner")
    score, rivals = run.summary.get(measure.key), baselines(run.summary)
    if not show.is_number(score) or not rivals:
        return "plain", "No row with a label was seen, so nothing was measured."
    best = max(rivals, key=lambda r: measure.gain(rivals[r], score))
    gap = measure.show_gain(score, rivals[best])
    means = {"no-change": "repeating the last label", "majority": "always answering with the commonest label"}
    if measure is show.MAE:
        means = {"no-change": "repeating the last value", "running mean": "always answering with the mean so far"}
    if measure.gain(score, rivals[best]) > 0:
        return "good", f"{name} does better than both baselines: {gap} ahead of {best} ({means[best]})."
    if score == rivals[best]:
        return "bad", f"{name} does no better than {best}: {means[best]} scores the same."
    return "bad", f"{best.capitalize()} beats {name} by {gap}: {means[best]} would have been the better choice."


def standing(measure: show.Measure, score: Any, rival: Any) -> str:
    """Where a baseline stands beside the learner's score, in words; empty where either is unknown."""
    if not show.is_number(score) or not show.is_number(rival):
        return ""
    if score == rival:
        return "as good as the learner"
    side = "behind" if measure.gain(score, rival) > 0 else "ahead of"
    return f"{measure.show_gain(score, rival)} {side} the learner"


def _remarks(run: RunData) -> list[str]:
    """What a reader must know before trusting the figures."""
    s, remarks = run.summary, []
    if s.get("status") not in ("done", None):
        remarks.append(f"The run did not reach the end of the stream (status: {s['status']}).")
    if s.get("quarantined"):
        remarks.append(f"{show.count(s['quarantined'], 'row')} could not be used and went into quarantine.")
    if s.get("dropped_labels"):
        remarks.append(f"{show.count(s['dropped_labels'], 'row')} waited for a label too long and were dropped.")
    if s.get("rollbacks"):
        remarks.append(f"The guard rolled the learner back {show.count(s['rollbacks'], 'time')}.")
    return remarks


def _cards(run: RunData) -> list[dict[str, str]]:
    s, measure = run.summary, show.measure_of(run.summary)
    score, rivals = s.get(measure.key), baselines(s)
    latency, recent = s.get("latency_ms") or {}, f"last {run.window:,} rows"

    def card(name: str, value: str, note: str = "", kind: str = "") -> dict[str, str]:
        head = name[0].upper() if name[0].isascii() else name[0]
        return {"name": head + name[1:], "value": value, "note": note, "kind": kind}

    kappa = ("κ temporal", show.number(s.get("kappa_t")), "0 is no-change, 1 is perfect")
    judged = [*driving_figures(s), *click_figures(s)]
    cards = [card(name, value, note, "main") for name, value, note in judged if value]
    cards += [
        card(measure.name, measure.show(score), "since the start", "main"),
        card(measure.name, measure.show(s.get(f"{measure.key}_window")), recent, "main"),
    ]
    if measure is show.MAE:
        cards.append(card("RMSE", show.number(s.get("rmse")), "since the start"))
    else:
        cards.append(card(*(shift_figure(s) or kappa)))
    names = [show.baseline_name(key, measure) for key in ("no_change", "majority")]
    cards += [card(n, measure.show(rivals.get(n)), standing(measure, score, rivals.get(n))) for n in names]
    cards.append(card("rows a second", show.rate(s.get("examples_per_second")), "through the whole loop"))
    p50, p99 = show.milliseconds(latency.get("p50")), show.milliseconds(latency.get("p99"))
    cards.append(card("latency", p50, f"median; p99 {p99}"))
    note = f"learner {show.megabytes(s.get('state_mb'))}" if show.is_number(s.get("state_mb")) else "peak"
    cards.append(card("peak memory", show.megabytes(s.get("peak_rss_mb")), note))
    return cards


def _scores_table(run: RunData) -> list[tuple[str, list[str]]]:
    """Every score of the last record: its name, then since the start, in the window, with fading factor."""
    rows = run.progress()
    last = rows[-1]["values"] if rows else {}
    shares = ("accuracy", "balanced_accuracy", "majority", "no_change") if "accuracy" in last else ()
    names = SCORES | {k: show.baseline_name(k, show.measure_of(run.summary)) for k in ("majority", "no_change")}
    table: list[tuple[str, list[str]]] = []
    for stem in dict.fromkeys(c.removesuffix("_window").removesuffix("_fading") for c in last):
        if stem not in names:
            continue
        form = show.percent if stem in shares else show.number
        cells = [form(last.get(f"{stem}{end}")) for end in ("", "_window", "_fading")]
        table.append((names[stem], cells))
    return table


def environment(run: RunData) -> dict[str, Any]:
    """Versions: those in the summary, else of what is installed where the page is made (``own`` is then False)."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    if isinstance(run.summary.get("environment"), dict):
        return {"own": True, "versions": {str(k): str(v) for k, v in run.summary["environment"].items()}}
    versions = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"own": False, "versions": versions}


# --- drawings -----------------------------------------------------------------------------------------------------


def marks_of(run: RunData) -> Marks:
    """Where the run's records say that something happened, in rows."""
    kinds = {k: [float(r["step"]) for r in run.marked(k)] for k in ("boundary", "rollback", "forget")}
    return Marks(kinds["boundary"], [a for a, _ in alarms_of(run)], kinds["rollback"], kinds["forget"])


def alarms_of(run: RunData) -> list[tuple[float, str]]:
    """Every drift alarm: its row and the detector's name.

    A record is written at the end of its stretch of rows; the exact row in its note counts labelled rows, so it is
    taken only where it falls into that stretch.
    """
    every, alarms = int(run.config.get("every", 100)), []
    for record in run.marked("alarm"):
        note = str(record["values"].get("note", ""))
        found, step = _ALARM.fullmatch(note), float(record["step"])
        exact = float(found[2]) if found else step
        name = found[1] if found else note or "alarm"
        alarms.append((exact if step - every <= exact <= step else step, DETECTORS.get(name, name)))
    return alarms


def _score_plot(run: RunData, measure: show.Measure, marks: Marks) -> Plot | None:
    """The score in its window and since the start, with both baselines."""
    if len(run.progress()) < 2:
        return None
    has, recent = set(run.columns()), f"last {run.window:,} rows"
    wanted = [
        ("majority", show.baseline_name("majority", measure), plots.MAJORITY, "dotted", 1.4),
        ("no_change", "no-change", plots.NO_CHANGE, "dashed", 1.3),
        (measure.key, _name(run, "learner"), plots.LEARNER, "solid", 2.0),
    ]
    curves = []
    if measure.key in has and f"{measure.key}_window" in has:
        x, y = run.curve(measure.key)
        curves.append(Curve(f"{_name(run, 'learner')}, since the start", x, y[:, 0], plots.CUMULATIVE, width=1.4))
    for key, name, colour, style, width in wanted:
        windowed = f"{key}_window" in has
        if windowed or key in has:
            x, y = run.curve(f"{key}_window" if windowed else key)
            words = f"{name}, {recent}" if windowed else f"{name}, since the start"
            curves.append(Curve(words, x, y[:, 0], colour, style, width))
    if not curves:
        return None
    drawn = plots.line_plot(curves, prefix="score", percent=measure.unit == "%", marks=marks, height=3.7)
    lines = len(curves)
    return Plot(drawn.svg, drawn.legend[:lines][::-1] + drawn.legend[lines:])


def _kappa_plot(run: RunData, marks: Marks) -> Plot | None:
    """κ temporal over time: above 0 the learner is worth more than repeating the last label."""
    key = "kappa_t_window" if "kappa_t_window" in run.columns() else "kappa_t"
    x, y = run.curve(key)
    if len(x) < 2 or np.isnan(y).all():
        return None
    words = "κ temporal, " + (f"last {run.window:,} rows" if key.endswith("window") else "since the start")
    zero = Curve("no-change is 0", x, np.zeros(len(x)), plots.NO_CHANGE, "dashed", 1.1)
    curve = Curve(words, x, y[:, 0], plots.LEARNER, width=1.8)
    return plots.line_plot(
        [curve, zero],
        prefix="kappa",
        percent=False,
        marks=Marks(drifts=marks.drifts),
        height=2.2,
        bottom=KAPPA_FLOOR if np.nanmin(y) < KAPPA_FLOOR else None,
    )


def _usage_plot(run: RunData, marks: Marks) -> Plot | None:
    """Which experts the learner relied on, where it tells."""
    found = sorted((int(m[1]), c) for c in run.columns() if (m := _EXPERT.fullmatch(c)))
    if not found:
        return None
    x, y = run.curve(*(c for _, c in found))
    y = np.nan_to_num(np.maximum(y, 0.0))
    total = y.sum(axis=1, keepdims=True)
    if len(x) < 2 or not total.any():
        return None
    shares = np.divide(y, total, out=np.zeros_like(y), where=total > 0)
    return plots.area_plot(x, shares, [f"expert {n}" for n, _ in found], prefix="usage", marks=marks)


def _phases(run: RunData) -> list[dict[str, Any]]:
    """Seconds and share of every phase that was timed."""
    seconds = run.summary.get("seconds") or {}
    known = {p: float(seconds[p]) for p in PHASES if show.is_number(seconds.get(p)) and seconds[p] > 0}
    total = sum(known.values())
    return [
        {"name": p, "seconds": s, "share": s / total if total else 0.0, "colour": plots.AREAS[2 * PHASES.index(p)]}
        for p, s in known.items()
    ]


def _timing_plots(run: RunData) -> list[tuple[str, Plot]]:
    """Speed and resident memory over the run, where timings.csv has enough rows."""
    rows = [t for t in run.timings if {"step", "seconds"} <= t.keys()]
    drawn, kept = [], rows[:1]
    least = max(0.1, rows[-1]["seconds"] / 200) if rows else 0.0
    for row in rows[1:]:
        if row["seconds"] - kept[-1]["seconds"] >= least and row["step"] > kept[-1]["step"]:
            kept.append(row)
    draw = partial(plots.line_plot, percent=False, height=1.9, bottom=0.0)
    if len(kept) > 4:
        steps, seconds = np.diff([(t["step"], t["seconds"]) for t in kept], axis=0).T
        speed = Curve("", np.array([t["step"] for t in kept[1:]]), steps / seconds, plots.LEARNER)
        drawn.append(("Rows a second", draw([speed], prefix="speed")))
    memory = [(t["step"], t["rss_mb"]) for t in rows if "rss_mb" in t]
    if len(memory) > 4:
        x, y = np.array(memory).T
        drawn.append(("Resident memory of the process, MB", draw([Curve("", x, y, plots.AREAS[6])], prefix="memory")))
    return drawn


# --- drifts -------------------------------------------------------------------------------------------------------


def drift_table(run: RunData) -> dict[str, Any]:
    """What became of every known drift and of every alarm, as the summary tells it.

    ``rows``: number, row, name, delay per detector (None: missed), score before, worst score after, recovery in words.
    ``detectors``: name, alarms, false ones (None where no drift is known). ``alarms``: row and name of every alarm.
    """
    from .recovery import HOLD, STRETCH

    measure, found = show.measure_of(run.summary), run.summary.get("detection") or {}
    drifts = [d for d in run.summary.get("drifts") or [] if isinstance(d, dict)]
    known = run.marked("boundary")
    rows = []
    for number, drift in enumerate(drifts, start=1 + max(0, len(known) - len(drifts))):
        before, depth = drift.get("before"), drift.get("depth")
        after = None
        if show.is_number(before) and show.is_number(depth):
            after = before - depth if measure.higher_is_better else before + depth
        rows.append(
            {
                "number": number,
                "step": drift.get("step"),
                "name": drift.get("name", ""),
                "delays": [(drift.get("delay") or {}).get(d) for d in found],
                "before": measure.show(before),
                "worst": measure.show(after),
                "recovered": _recovered(drift),
            }
        )
    return {
        "rows": rows[:MOST_DRIFTS],
        "left_out": max(0, len(known) - min(len(rows), MOST_DRIFTS)),
        "detectors": [(DETECTORS.get(d, d), f.get("alarms", 0), f.get("false_alarms")) for d, f in found.items()],
        "alarms": alarms_of(run),
        "stretch": STRETCH,
        "hold": HOLD,
    }


def _recovered(drift: dict[str, Any]) -> str:
    """The recovery time in words; a drop that was not over is said to be so."""
    rows, watched = drift.get("recovery_rows"), drift.get("watched")
    if show.is_number(rows):
        return "no drop" if rows <= 1 else f"after {show.count(rows, 'row')}"
    return f"not within {show.count(watched, 'row')}" if watched else show.DASH
