"""Several runs on one stream: who is best, by how much, and how much of it is the seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..streams import InputError
from . import figures as show
from . import plots
from .calibration_report import calibration_compared
from .clicks_report import clicks_compared
from .continual_plots import mean_plot
from .cost_report import SOURCE, cost_compared, with_ratios
from .driving_report import SUB_METRICS, driving_compared
from .few_shot_report import few_shot_compared
from .figures import look_up
from .gaps import aligned, mean_accuracy
from .paired_report import paired_compared
from .plots import Curve, Marks, Plot, mean_curve
from .run_data import RunData
from .section import Compared, Section
from .shifts_report import shifts_compared
from .source_report import source_compared
from .token_report import token_compared
from .unlearning_report import forget_compared

Array = NDArray[Any]

SECTIONS: tuple[Callable[[Compared], Section | None], ...] = (
    driving_compared,
    clicks_compared,
    shifts_compared,
    few_shot_compared,
    paired_compared,
    source_compared,
    calibration_compared,
    forget_compared,
    token_compared,
    cost_compared,
)
"""Sections that stand behind the table of results, in the order of the page; one that gives None is left out."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table. key: path into a summary. best: 1 where more is better, -1 less, 0 where neither."""

    name: str
    key: tuple[str, ...]
    show: Any
    best: int


CLASSIFICATION = (
    Column("accuracy", ("accuracy",), show.percent, 1),
    Column("window", ("accuracy_window",), show.percent, 1),
    Column("κ majority", ("kappa_m",), show.number, 1),
    Column("κ temporal", ("kappa_t",), show.number, 1),
)
REGRESSION = (
    Column("MAE", ("mae",), show.number, -1),
    Column("window", ("mae_window",), show.number, -1),
    Column("RMSE", ("rmse",), show.number, -1),
)
CONTINUAL = (
    Column("ACC", ("continual", "acc"), show.hundredths, 1),
    Column("min-ACC", ("continual", "min_acc"), show.hundredths, 1),
    Column("WC-ACC", ("continual", "wc_acc"), show.hundredths, 1),
    Column("MAA", ("continual", "maa"), show.hundredths, 1),
    Column("forgetting", ("continual", "forgetting"), show.hundredths, -1),
    Column("gap depth", ("continual", "gap_depth"), show.hundredths, -1),
    Column("drift", ("facts", "tokens", "drifted"), show.hundredths, -1),
    Column("prequential", ("accuracy",), show.hundredths, 1),
)
SHIFTED = (
    Column("mean error", ("shift_error",), show.hundredths, -1),
    Column("accuracy", ("accuracy",), show.hundredths, 1),
    Column("minus source", ("source", "gain"), show.hundredths, 1),
    Column("ECE", ("ece",), show.hundredths, -1),
    Column("forgotten", ("source_domain", "forgotten"), show.hundredths, -1),
)
FEW_SHOT = (
    Column("HM", ("few_shot", "harmonic_mean"), show.hundredths, 1),
    Column("base", ("few_shot", "base_accuracy"), show.hundredths, 1),
    Column("new", ("few_shot", "new_accuracy"), show.hundredths, 1),
    Column("all classes", ("few_shot", "accuracy"), show.hundredths, 1),
    Column("drop", ("few_shot", "drop"), show.hundredths, -1),
    SHIFTED[1],
)
CLICKS = (
    Column("AUC", ("auc",), show.score, 1),
    Column("gAUC", ("gauc",), show.score, 1),
    Column("log loss", ("logloss",), show.score, -1),
    Column("calibration", ("clicks", "calibration"), show.number, 0),
    CLASSIFICATION[0],
)
DRIVING = (*(Column(name.upper(), ("worth", name), show.hundredths, 1) for name in SUB_METRICS),)
COST = (
    Column("rows/s", ("examples_per_second",), show.rate, 1),
    Column("p99", ("latency_ms", "p99"), show.milliseconds, -1),
    Column("learner size", ("state_mb",), show.megabytes, -1),
    Column("alarms", ("drift_alarms",), show.tally, 0),
    Column("rollbacks", ("rollbacks",), show.tally, 0),
)
BATCH_COST = (
    Column("median batch", ("ms_per_batch", "total"), show.milliseconds, -1),
    Column("× source", ("ms_per_batch", "times_source"), show.ratio, 0),
    COST[2],
    COST[4],
)
"""Of learners that adapt: the source's time for the same batch is the measure."""

LEADS = (
    (("worth", "pdms"), show.PDMS),
    (("continual", "acc"), show.ACCURACY),
    (("few_shot", "harmonic_mean"), show.HARMONIC_MEAN),
    (("few_shot", "accuracy"), show.OVER_SESSIONS),
    (("shift_error",), show.SHIFT_ERROR),
    (("auc",), show.AUC),
)
SETS = {"worth": DRIVING, "continual": CONTINUAL, "few_shot": FEW_SHOT, "shift_error": SHIFTED, "auc": CLICKS}
"""The scores of a table, by the first word of what the learners are ordered by."""
MEANINGS = {
    "continual": "MAA is the mean of ACC over the ends of experiences. At the end ACC is also known as MFN; BWT is "
    "minus forgetting.",
    "shift_error": "Mean error is the share of wrong answers under a shift, mean over shifts; accuracy is that over "
    "all rows. Minus source is the accuracy above the source’s on the batches, one in eight, that both answered: fewer "
    "rows, so a rougher figure. ECE is how far confidence and accuracy lie apart. Forgotten is the accuracy lost on "
    "clean source rows.",
    "auc": "The learners are ordered by AUC; log loss is in nats, and calibration is clicks foretold over clicks that "
    "came.",
    "few_shot": "Base and new are the accuracies on rows of old and of new classes, HM their harmonic mean and “all "
    "classes” the accuracy on both: means over sessions. Drop is what the last session has less than the first. "
    "Accuracy is that over all rows, labelled ones too.",
}
"""What the columns of such a table mean."""


def by_learner(summaries: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Positions of the summaries of each learner, in the order in which the learners appear.

    A seed that comes twice for one learner is another configuration of it, not another draw: ``name (2)``.
    """
    seen: Counter[tuple[str, Any]] = Counter()
    groups: dict[str, list[int]] = {}
    for i, summary in enumerate(summaries):
        name = str(summary.get("learner") or "unknown learner")
        seen[name, str(summary.get("seed"))] += 1
        turn = seen[name, str(summary.get("seed"))]
        groups.setdefault(name if turn == 1 else f"{name} ({turn})", []).append(i)
    return groups


def lead(summaries: list[dict[str, Any]]) -> tuple[tuple[str, ...], show.Measure]:
    """What the learners are ordered by, a path into a summary: ACC where experiences were evaluated, HM where there are
    new classes (the accuracy over sessions where every HM is 0), the mean error where there are shifts, else the score.
    """
    for path, measure in LEADS:
        found = [look_up(s, path) for s in summaries]
        if any(found) or (measure is not show.HARMONIC_MEAN and found.count(None) < len(found)):
            return path, measure
    measure = show.measure_of(summaries[0])
    return (measure.key,), measure


def means(summaries: list[dict[str, Any]], key: tuple[str, ...]) -> dict[str, float]:
    """A figure of every learner that has it, mean over seeds."""
    found = {}
    for name, members in by_learner(summaries).items():
        values = [v for i in members if (v := look_up(summaries[i], key)) is not None]
        if values:
            found[name] = float(np.mean(values))
    return found


def table(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean ± sd over seeds for every learner, then the baselines.

    ``columns``: names, of which the last ``costs`` tell what it cost. ``rows``: learner, number of seeds, cells
    ``(text, is the best)`` and, where experiences were evaluated, the ``range`` from WC-ACC to ACC; best score first.
    ``baselines``: name and text, of the column with the number ``baseline_at``. A column without any value is left out.
    ``bare``: all scores are per cent and say no unit; so they are where experiences, shifts or sessions were judged.
    """
    summaries = with_ratios(summaries)
    measure = show.measure_of(summaries[0])
    first_key, judged = lead(summaries)
    scores = SETS.get(first_key[0], REGRESSION if measure is show.MAE else CLASSIFICATION)
    costs_of = BATCH_COST if first_key[0] in ("few_shot", "shift_error") else COST
    columns = [c for c in scores + costs_of if any(look_up(s, c.key) is not None for s in summaries)]
    rows: list[dict[str, Any]] = []
    for name, members in by_learner(summaries).items():
        found = [[v for i in members if (v := look_up(summaries[i], c.key)) is not None] for c in columns]
        rows.append({"name": name, "seeds": len(members), "found": found})
    first = next((i for i, c in enumerate(columns) if c.key == first_key), None)
    if first is not None:
        sign = 1 if judged.higher_is_better else -1
        rows.sort(key=lambda r: -sign * float(np.mean(r["found"][first])) if r["found"][first] else np.inf)
    best = [_best([r["found"][j] for r in rows], c) for j, c in enumerate(columns)]
    low, high = (means(summaries, ("continual", key)) for key in ("wc_acc", "acc"))
    for row in rows:
        row["range"] = (low[row["name"]], high[row["name"]]) if row["name"] in low else None
        cells = [show.spread(v, c.show) for v, c in zip(row["found"], columns, strict=True)]
        row["cells"] = [(text, text == top) for text, top in zip(cells, best, strict=True)]
    costs, bare = sum(c in costs_of for c in columns), first_key[0] in SETS and first_key[0] != "auc"
    return {
        "columns": [c.name for c in columns],
        "costs": costs,
        "rows": rows,
        "continual": first_key[0] == "continual",
        "bare": bare,
        "meaning": MEANINGS.get(first_key[0], ""),
        "baseline_at": next((i for i, c in enumerate(columns) if c.key == (measure.key,)), 0),
        "baselines": _baselines(summaries, measure, show.hundredths if bare else measure.show),
    }


def _best(found: list[list[float]], column: Column) -> str | None:
    """The text of the best cell of a column; None where no cell can be the best."""
    known = [v for v in found if v]
    if not column.best or len({show.spread(v, column.show) for v in known}) < 2:
        return None
    return show.spread(max(known, key=lambda v: column.best * float(np.mean(v))), column.show)


def _baselines(summaries: list[dict[str, Any]], measure: show.Measure, form: Any) -> list[dict[str, Any]]:
    if lead(summaries)[0][0] == "worth":
        return []  # what a repeated or the commonest plan is worth is not known
    rows = []
    for key in ("no_change", "majority"):
        name = show.baseline_name(key, measure)
        values = [v for s in summaries if (v := look_up(s, ("baseline", key))) is not None]
        if values:
            same = values[:1] if len(set(values)) == 1 else values
            rows.append({"name": name, "mean": float(np.mean(values)), "text": show.spread(same, form)})
    return rows


def verdict(summaries: list[dict[str, Any]]) -> tuple[str, str]:
    """Who leads and by how much: ("good" | "bad" | "plain", one or two sentences)."""
    key, measure = lead(summaries)
    found = means(summaries, key)
    if not found:
        return "plain", "No row with a label was seen, so nothing was measured."
    order = sorted(found, key=lambda n: measure.gain(0.0, found[n]))
    top = order[0]
    named = "ACC " if key[0] == "continual" else f"{measure.name} " * (key[0] in SETS)
    words = f"{top} leads with {named}{measure.show(found[top])}"
    if len(order) > 1:
        gain = measure.show_gain(found[top], found[order[1]])
        words += f", level with {order[1]}" if gain in ("0.0 points", "0.0000") else f", {gain} ahead of {order[1]}"
    if key[0] == "continual":
        return "plain", f"{words}.{_at_the_worst(summaries, top)}"
    if key[0] == "auc":
        return ("plain", f"{words}.") if found[top] > 0.5 else ("bad", f"{words}. Chance is 0.5.")
    if key[0] in SETS:
        return _beside_source(words, found, order, measure)
    rivals = _baselines(summaries, measure, measure.show)
    ahead = [r["name"] for r in rivals if measure.gain(r["mean"], found[top]) >= 0]
    if ahead:
        return "bad", f"{words}. It does not beat {' or '.join(ahead)}."
    itself = {"no-change", "majority"}
    behind = [n for n in order if n not in itself and any(measure.gain(r["mean"], found[n]) >= 0 for r in rivals)]
    return "good", f"{words}." + (f" No better than a baseline: {', '.join(behind)}." if behind else "")


def _beside_source(words: str, found: dict[str, float], order: list[str], measure: show.Measure) -> tuple[str, str]:
    """The verdict where models adapt: who is no better than the source model that does not."""
    if SOURCE not in found:
        return "plain", f"{words}."
    nothing = measure is show.HARMONIC_MEAN and not found[SOURCE]  # it knows no new class, others may not either
    behind = [n for n in order if n != SOURCE and measure.gain(found[n], found[SOURCE]) <= 0 and not nothing]
    if order[0] == SOURCE:
        return "bad", f"{words}. No adaptation did better than none."
    gain = measure.show_gain(found[order[0]], found[SOURCE])
    words += "." if order[1] == SOURCE else f" and {gain} ahead of the source without adaptation."
    return "good", words + (f" No better than the source: {', '.join(behind)}." if behind else "")


def _at_the_worst(summaries: list[dict[str, Any]], top: str) -> str:
    """Who holds up best at the worst moments, which the figure at the end does not tell."""
    worst = means(summaries, ("continual", "wc_acc"))
    if len(worst) < 2 or top not in worst:
        return f" At its worst moments it stood at WC-ACC {show.percent(worst[top])}." if top in worst else ""
    firmest = max(worst, key=lambda n: worst[n])
    if firmest == top:
        return f" It also holds up best at the worst moments: WC-ACC {show.percent(worst[top])}."
    held, fell = show.percent(worst[firmest]), show.percent(worst[top])
    return f" At the worst moments {firmest} holds up best: WC-ACC {held}, {top} {fell}."


def compared(runs: list[RunData]) -> dict[str, Any]:
    """Everything the comparison page shows. Raises ``InputError`` for no runs, or runs on different streams."""
    if not runs:
        raise InputError("there are no runs to compare")
    streams = list(dict.fromkeys(str(r.summary.get("stream")) for r in runs))
    if len(streams) > 1:
        raise InputError(f"these runs are on different streams: {', '.join(streams)}")
    summaries = [r.summary for r in runs]
    if len({show.measure_of(s).key for s in summaries if s.get("labelled")}) > 1:
        raise InputError("these runs have different kinds of target")
    groups = by_learner(summaries)
    rows = table(summaries)
    colours = {r["name"]: plots.PALETTE[i % len(plots.PALETTE)] for i, r in enumerate(rows["rows"])}
    side_by_side = Compared(runs, groups, colours)
    return {
        "title": f"{show.count(len(groups), 'learner')} on {streams[0]}",
        "facts": _facts(runs, groups),
        "verdict": verdict(summaries),
        "table": rows,
        "colours": colours,
        "measure": show.measure_of(summaries[0]),
        "judged": "ACC" if rows["continual"] else lead(summaries)[1].name,
        "higher": lead(summaries)[1].higher_is_better,
        "sections": [found for section in SECTIONS if (found := section(side_by_side)) is not None],
        "continual": _overlaid_means(runs, groups, colours),
        "scores": _overlay(runs, groups, colours),
        "trade": _trade(summaries, groups, colours),
        "unfinished": [_label(r) for r in runs if r.summary.get("status") not in ("done", None)],
    }


def _label(run: RunData) -> str:
    return f"{run.summary.get('learner')}, seed {run.summary.get('seed')}"


def _facts(runs: list[RunData], groups: dict[str, list[int]]) -> list[str]:
    seeds = sorted({str(r.summary.get("seed")) for r in runs})
    rows = {r.summary.get("examples") for r in runs}
    facts = [show.count(n, "row") for n in rows if len(rows) == 1 and isinstance(n, int)]
    delays = {r.config.get("delay") for r in runs if show.is_number(r.config.get("delay"))}
    if len(delays) == 1:
        delay = delays.pop()
        facts.append(f"labels {show.count(delay, 'row')} late" if delay else "labels at once")
    words = f"seeds {', '.join(seeds)}" if len(seeds) > 1 else f"seed {seeds[0]}"
    return [*facts, words, show.count(sum(map(len, groups.values())), "run")]


def _overlay(runs: list[RunData], groups: dict[str, list[int]], colours: dict[str, str]) -> Plot | None:
    """The windowed score of every learner, mean ± sd over seeds, over the baselines of the first learner's runs."""
    measure = show.measure_of(runs[0].summary)
    key = f"{measure.key}_window"
    usable = [i for i, run in enumerate(runs) if key in run.columns() and len(run.progress()) > 1]
    curves: list[Curve] = []
    for column, name, colour, style in (
        ("majority_window", show.baseline_name("majority", measure), plots.MAJORITY, "dotted"),
        ("no_change_window", "no-change", plots.NO_CHANGE, "dashed"),
    ):
        first = next((m for m in groups.values() if any(column in runs[i].columns() for i in m)), [])
        known = [runs[i] for i in first if column in runs[i].columns() and len(runs[i].progress()) > 1]
        if known:
            x, mean, _ = mean_curve([_one(run, column) for run in known])
            curves.append(Curve(name, x, mean, colour, style, 1.2))
    for name in reversed(colours):
        members = [i for i in groups[name] if i in usable]
        if members:
            x, mean, sd = mean_curve([_one(runs[i], key) for i in members])
            curves.append(Curve(name, x, mean, colours[name], width=1.8, sd=sd if len(members) > 1 else None))
    if not curves:
        return None
    drifts = [float(r["step"]) for r in runs[0].marked("boundary")]
    percent = key == "accuracy_window"
    drawn = plots.line_plot(curves, prefix="score", percent=percent, marks=Marks(drifts=drifts), height=4.2)
    lines = len(curves)
    return Plot(drawn.svg, drawn.legend[:lines][::-1] + drawn.legend[lines:])


def _overlaid_means(runs: list[RunData], groups: dict[str, list[int]], colours: dict[str, str]) -> Plot | None:
    """ACC of every learner at every evaluation, mean ± sd over seeds, switch on switch."""
    known = {i: run.evaluations for i, run in enumerate(runs) if run.evaluations and len(run.evaluations.update) > 1}
    if not known:
        return None
    like = max(known.values(), key=lambda curve: int(curve.update[-1]))
    curves = []
    for name in reversed(colours):
        members = [known[i] for i in groups[name] if i in known]
        if members:
            x, mean, sd = mean_curve([(aligned(curve, like), mean_accuracy(curve)) for curve in members])
            curves.append(Curve(name, x, mean, colours[name], width=1.8, sd=sd if len(members) > 1 else None))
    return mean_plot(curves, like, prefix="acc")


def _one(run: RunData, column: str) -> tuple[Array, Array]:
    """One column as a curve without the records in which it is unknown."""
    x, y = run.curve(column)
    known = ~np.isnan(y[:, 0])
    return x[known], y[known, 0]


def _trade(summaries: list[dict[str, Any]], groups: dict[str, list[int]], colours: dict[str, str]) -> Plot | None:
    """Speed against score, one point per learner."""
    (key, measure), points, legend = lead(summaries), [], []
    for name, colour in colours.items():
        speeds = [v for i in groups[name] if (v := look_up(summaries[i], ("examples_per_second",)))]
        scores = [v for i in groups[name] if (v := look_up(summaries[i], key)) is not None]
        if speeds and scores:
            mean, sd = show.mean_sd(scores)
            points.append((colour, float(np.mean(speeds)), mean, sd))
            legend.append((colour, "dot", name))
    if len(points) < 2:
        return None
    return Plot(plots.scatter_plot(points, prefix="trade", percent=measure.unit == "%").svg, legend)
