"""The part of a run's page that tells of its continual evaluation: words, figures, what each switch cost, drawings."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import figures as show
from .continual_plots import CLOSE, close_up, gap_plot, heat_plot
from .curves import Curve
from .gaps import Switch, switches
from .metrics import METRICS
from .run_data import RunData

NAMES = {
    "acc": "ACC", "min_acc": "min-ACC", "wc_acc": "WC-ACC", "aaa": "AAA", "mfn": "MFN", "maa": "MAA",
    "learning_accuracy": "learning accuracy", "forgetting": "forgetting",
    "forgetting_max": "forgetting, from the best", "bwt": "BWT", "gap_depth": "gap depth",
    "gap_depth_relative": "gap depth, relative", "wf10": "WF10", "wf100": "WF100", "wp10": "WP10", "wp100": "WP100",
}  # fmt: skip
"""How the figures of a continual evaluation are written, in the order of the table."""
LEVELS = ("acc", "min_acc", "wc_acc", "aaa", "mfn", "maa", "learning_accuracy", "gap_depth_relative")
"""Those that are shares; the others are differences, in points."""
SMALL_GAP = 0.005
MOST_SWITCHES = 100
SCENARIOS = {"class": "the answer is the best of all classes", "task": "the answer is the best of its own classes"}


def continual_part(run: RunData) -> dict[str, Any] | None:
    """What the page shows of a run's continual evaluation; None where there was none."""
    found = figures_of(run.summary)
    if not found:
        return None
    curve = run.evaluations
    drawn = curve if curve is not None and len(curve.update) > 1 else None
    costs = [] if drawn is None else switches(drawn)
    ends_only = found.get("every") is None
    return {
        "verdict": continual_verdict(run.summary),
        "cards": _cards(run, found),
        "facts": _facts(run, found),
        "figures": [(name, shown(key, found[key]), *_meaning(key)) for key, name in NAMES.items() if key in found],
        "gap": None if drawn is None else gap_plot(drawn, prefix="gap"),
        "heat": None if drawn is None else heat_plot(drawn, prefix="heat", ends_only=ends_only),
        "close_up": None if drawn is None else close_up(drawn, prefix="close"),
        "missing": curve is None,
        "ends_only": ends_only,
        "close": CLOSE,
        "switches": [_row(run.evaluations, s) for s in costs[:MOST_SWITCHES]],
        "left_out": max(0, len(costs) - MOST_SWITCHES),
        "names": [] if drawn is None else _experiences(drawn),
    }


def figures_of(summary: dict[str, Any]) -> dict[str, Any]:
    """The continual figures of a summary; empty where nothing was evaluated."""
    found = summary.get("continual")
    return found if isinstance(found, dict) and show.is_number(found.get("acc")) else {}


def shown(key: str, value: Any) -> str:
    """A continual figure as it is written: a share per cent, a difference in points."""
    return show.percent(value) if key in LEVELS else show.points(value)


def continual_verdict(summary: dict[str, Any]) -> tuple[str, str] | None:
    """Where the learner ended and what it lost on the way: ("plain", one or two sentences); None where nothing was
    evaluated."""
    found, name = figures_of(summary), summary.get("learner") or "the learner"
    if not found:
        return None
    seen, gap = int(found.get("experiences") or 1), found.get("gap_depth")
    stands = "ends with" if summary.get("status") in ("done", None) else "had reached"
    words = f"{name} {stands} {show.percent(found['acc'])} over {show.count(seen, 'experience')}"
    if not show.is_number(gap):
        return "plain", f"{words}; what learning another one would cost, a single one cannot tell."
    if found.get("every") is None:
        lost = show.points(found.get("forgetting"))
        return "plain", f"{words}, {lost} lost since each was learnt. What happened between their ends is not known."
    if gap < SMALL_GAP:
        return "plain", f"{words}, with hardly a stability gap: a switch costs the ones before {show.points(gap)}."
    lowest = show.percent(found.get("min_acc"))
    return "plain", (
        f"{words}. On the way the ones already learnt fell to {lowest}: "
        f"after a switch they lose {show.points(gap)} on average."
    )


def notes_on(found: dict[str, Any], status: Any = "done") -> dict[str, str]:
    """A few words on the figures that come first, by key, in order."""
    seen = int(found.get("experiences") or 1)
    margin = f", ± {show.points(found['acc_margin'])}" if show.is_number(found.get("acc_margin")) else ""
    rare = " (at ends only)" if found.get("every") is None else ""
    notes = {
        "acc": f"{show.count(seen, 'experience')}, {'at the end' if status == 'done' else 'so far'}{margin}",
        "min_acc": f"lowest of the earlier ones{rare}",
        "wc_acc": f"worst case: now, and min-ACC{rare}",
        "gap_depth": f"lost after a switch, mean{rare}",
        "forgetting": "lost since each one’s own end",
        "learning_accuracy": "of each one at its own end",
        "aaa": "ACC, mean over all evaluations",
        "wf100": "largest drop in 100 evaluations",
    }
    return {k: note if show.is_number(found.get(k)) else "needs a second experience" for k, note in notes.items()}


def _cards(run: RunData, found: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "name": NAMES[key] if key == "min_acc" else NAMES[key][0].upper() + NAMES[key][1:],
            "value": shown(key, found.get(key)),
            "note": note,
            "kind": "main" if key in ("acc", "min_acc", "wc_acc", "gap_depth") else "",
        }
        for key, note in notes_on(found, run.summary.get("status")).items()
    ]


def _meaning(key: str) -> tuple[str, str]:
    metric = METRICS[key]
    return metric.meaning, {"higher": "more", "lower": "less"}.get(metric.direction, "")


def _facts(run: RunData, found: dict[str, Any]) -> list[str]:
    """When and on what it was evaluated, a sentence each."""
    every, curve = found.get("every"), run.evaluations
    often = "at the ends of experiences" if every is None else "after every update"
    if show.is_number(every) and every > 1:
        often = f"every {every:,} updates and at the ends of experiences"
    if found.get("missed"):
        often += " for which the worker had time"
    facts = [f"Evaluated {often}: {show.count(found.get('evaluations') or 0, 'time')}."]
    if curve is not None and len(curve.update):
        least, most = min(curve.sizes), max(curve.sizes)
        rows = show.count(most, "row") if least == most else f"{least:,} to {most:,} rows"
        subset = ", a fixed part of them" if show.is_number(run.config.get("evaluate_rows")) else ""
        facts.append(f"Each experience is judged by {rows} that were never learnt{subset}.")
        facts += _left_out(curve, found.get("missed"))
    scenario = (run.config.get("stream_params") or {}).get("scenario")
    if scenario in SCENARIOS:
        facts.append(f"Scenario “{scenario}-incremental”: {SCENARIOS[scenario]}.")
    if run.config.get("wp_reference"):
        facts.append("WP is that of the authors’ code, which is not as they define it.")
    return facts


def _left_out(curve: Curve, missed: Any) -> list[str]:
    """What a worker that could not keep up passed over."""
    if not show.is_number(missed) or not missed:
        return []
    longest = int(np.diff(np.unique(curve.update), prepend=0).max())
    return [
        f"{show.count(missed, 'evaluation')} fell due while the evaluation worker was busy and were missed, at most "
        f"{longest - 1:,} in a row; continual.csv says which updates were evaluated."
    ]


def _row(curve: Curve | None, switch: Switch) -> dict[str, Any]:
    """One line of the table of switches."""
    fall = switch.deepest
    return {
        "begins": switch.begins + 1,
        "name": "" if curve is None else curve.names[switch.begins],
        "update": switch.update,
        "mean": show.points(switch.mean) if switch.mean >= 0 else f"rose {show.points(-switch.mean)}",
        "experience": fall.experience + 1,
        "before": show.percent(fall.before),
        "lowest": show.percent(fall.lowest),
        "after": show.count(fall.updates, "update"),
        "end": show.percent(fall.end),
        "fell": fall.depth >= SMALL_GAP,
    }


def _experiences(curve: Curve) -> list[tuple[int, str, int]]:
    """Number, name and held-out rows of every experience seen."""
    seen = int(curve.experience[-1]) + 1
    return [(i + 1, curve.names[i], curve.sizes[i]) for i in range(seen)]
