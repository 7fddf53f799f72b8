"""Sections on driving: the PDM score and its parts, what the step changed, and scenes that show how."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..streams import Array, InputError, Worth, open_stream
from . import figures as show
from .bootstrap import paired_interval
from .driving_picture import scene_picture
from .run_data import RunData
from .section import Cell, Compared, Drawing, Heading, Part, Section, Table, Words, marked
from .worths import BEFORE, PLAN, ROW, SWING

SUB_METRICS = ("pdms", "nc", "dac", "ttc", "ep", "c")
HEADS = ("PDMS", "NC", "DAC", "TTC", "EP", "C")
MEANING = (
    "In per cent of the most there can be: PDMS = NC × DAC × (5 TTC + 5 EP + 2 C) / 12; no collision at fault (NC), "
    "drivable area (DAC), time to collision (TTC), progress (EP), comfort (C)."
)
BETWEEN = "Brackets are 95 % intervals of the mean over scenes, by bootstrap of the same scenes under both."


def driving_section(run: RunData) -> Section | None:
    """What the plans of one run were worth; None where its stream does not tell."""
    found = run.summary.get("worth")
    if not isinstance(found, dict) or not show.is_number(found.get("pdms")):
        return None
    parts: list[Part] = [Words(f"{show.count(found['judged'], 'scene')} judged by the truth. {MEANING}")]
    heads: list[str] = ["", "plans that were driven"]
    columns: list[list[str | Cell]] = [list(HEADS), list(_figures(found))]
    records = [r["values"] for r in run.marked("worth")]
    if isinstance(found.get("before"), dict):
        heads.insert(1, "plans of the trained weights")
        columns.insert(1, list(_figures(found["before"])))
    worth = _worth_of(run) if any(BEFORE in r for r in records) else None
    if worth is not None:
        heads.append("difference")
        columns.append(list(_gains(_differences(records, worth))))
    parts.append(Table(heads, [list(row) for row in zip(*columns, strict=True)]))
    if isinstance(found.get("before"), dict):
        parts.append(Words(f"{_changes(found)} {BETWEEN if worth is not None else ''}"))
    if worth is not None:
        parts += _pictures(records, worth)
    return Section("Driving", parts, long=True)


def driving_verdict(summary: dict[str, Any]) -> tuple[str, str] | None:
    """What adaptation was worth to the plans; None where the stream does not tell."""
    found = summary.get("worth")
    if not isinstance(found, dict) or not show.is_number(found.get("pdms")):
        return None
    name, score = summary.get("learner") or "the learner", show.percent(found["pdms"])
    before = found.get("before")
    if not isinstance(before, dict):
        return "plain", f"{name} drives with a PDM score of {score}."
    gain = found["pdms"] - before["pdms"]
    words = f"{name} drives with a PDM score of {score}, {show.points(abs(gain))} "
    if gain == 0:
        return "plain", f"{name} drives with a PDM score of {score}, as it does without adaptation."
    return ("good", f"{words}more than without adaptation.") if gain > 0 else ("bad", f"{words}less than without it.")


def driving_figures(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and a note of what a run on driving scenes is judged by; nothing for other runs."""
    found = summary.get("worth")
    if not isinstance(found, dict) or not show.is_number(found.get("pdms")):
        return []
    before = found.get("before") or {}
    note = f"{show.percent(before['pdms'])} without adaptation" if before else f"{found['judged']:,} scenes"
    parts = [f"{head} {show.hundredths(found[name])}" for head, name in zip(HEADS[1:], SUB_METRICS[1:], strict=True)]
    return [("PDMS", show.percent(found["pdms"]), note), ("of which", "", ", ".join(parts))]


def driving_compared(runs: Compared) -> Section | None:
    """Paired differences of every learner's plans to those of the first one, scene by scene and seed by seed."""
    scored = {
        name: {key: row for i in members for key, row in _scored(runs.runs[i]).items()}
        for name, members in runs.groups.items()
    }
    names = [name for name in scored if scored[name]]
    if len(names) < 2:
        return None
    first = names[0]
    others = [n for n in runs.colours if n in names and n != first]
    columns: list[list[Cell]] = [[Cell(head) for head in (*HEADS, "scenes")]]
    for name in others:
        shared = [key for key in scored[first] if key in scored[name]]
        gains = np.array([scored[name][key] - scored[first][key] for key in shared]).reshape(-1, len(SUB_METRICS))
        columns.append([*_gains(gains), Cell(f"{len(shared):,}")])
    changed = {n: [runs.summaries[i].get("worth") or {} for i in runs.groups[n]] for n in names}
    shares = [
        [Cell(n, colour=runs.colours[n]), *(_share(changed[n], key) for key in ("changed", "helped", "harmed"))]
        for n in runs.colours
        if n in names
    ]
    return Section(
        f"Scene by scene beside {first}",
        [
            Words(f"Means of the differences in points, {first} subtracted. {BETWEEN} {MEANING}"),
            Table(["", *others], [list(row) for row in zip(*columns, strict=True)]),
            Heading("What adaptation changed"),
            Words(f"Shares of scenes; helped and harmed: PDMS moved by more than {SWING:g} of its range."),
            Table(["learner", "plans changed", "helped", "harmed"], shares),
        ],
        long=True,
    )


def _share(summaries: list[dict[str, Any]], key: str) -> Cell:
    return marked([[float(s[key]) for s in summaries if show.is_number(s.get(key))]], 1)[0]


def _figures(found: dict[str, Any]) -> list[str]:
    return [show.hundredths(found.get(name)) for name in SUB_METRICS]


def _gains(differences: Array) -> list[Cell]:
    """Mean and interval in points; marked where the interval leaves out 0."""
    if not len(differences):
        return [Cell(show.DASH)] * len(SUB_METRICS)
    low, high = paired_interval(differences)
    cells = []
    for mean, a, b in zip(differences.mean(0), low, high, strict=True):
        kind = "best" if a > 0 else "fall" if b < 0 else ""
        cells.append(Cell(f"{_signed(mean)} [{_signed(a)}, {_signed(b)}]", kind))
    return cells


def _signed(gain: float) -> str:
    """A difference of two shares, in points, with its sign."""
    return f"{100 * gain:+.1f}".replace("-", "−")


def _changes(found: dict[str, Any]) -> str:
    return (
        f"Adaptation changed {show.percent(found['changed'])} of the plans; PDMS rose by more than {SWING:g} in "
        f"{show.percent(found['helped'])} of the scenes and fell by more in {show.percent(found['harmed'])}."
    )


def _scored(run: RunData) -> dict[tuple[str, int], Array]:
    """Seed and row of every judged answer, and what it was worth."""
    seed = str(run.summary.get("seed"))
    rows = [r["values"] for r in run.marked("worth")]
    return {(seed, int(v[ROW])): np.array([float(v[k]) for k in SUB_METRICS]) for v in rows if ROW in v}


def _worth_of(run: RunData) -> Worth | None:
    """The truth about the run's scenes, made anew from its configuration; None where that does not work."""
    config = run.config
    params = config.get("stream_params")
    try:
        stream = open_stream(str(config.get("stream")), seed=int(config.get("seed", 0)), **(params or {}))
    except (InputError, TypeError):
        return None
    return stream.spec.worth


def _differences(records: list[dict[str, Any]], worth: Worth) -> Array:
    """float64[n, 6]: driven minus trained, of the records that know both."""
    known = [v for v in records if BEFORE in v]
    rows = np.array([int(v[ROW]) for v in known], np.int64)
    before = np.array([int(v[BEFORE]) for v in known], np.int64)
    got = np.array([[float(v[k]) for k in SUB_METRICS] for v in known]).reshape(-1, len(SUB_METRICS))
    return got - worth.of(rows, before)


def _pictures(records: list[dict[str, Any]], worth: Worth) -> list[Part]:
    """The scene that the step helped most, the one that it harmed most, and the one in the middle of the changed."""
    changed = [v for v in records if BEFORE in v and v[BEFORE] != v[PLAN]]
    if not changed:
        return [Words("The step changed no plan, so there is no scene to show.", quiet=True)]
    gains = _differences(changed, worth)[:, 0]
    order = np.argsort(gains, kind="stable")
    chosen = {
        "Most helped": int(order[-1]),
        "Most harmed": int(order[0]),
        "In the middle of the changed ones": int(order[len(order) // 2]),
    }
    if gains[order[-1]] <= 0:
        del chosen["Most helped"]
    if gains[order[0]] >= 0:
        del chosen["Most harmed"]
    parts: list[Part] = []
    for title, i in chosen.items():
        parts += _picture(title, changed[i], float(gains[i]), worth)
    return parts


def _picture(title: str, record: dict[str, Any], gain: float, worth: Worth) -> list[Part]:
    row = int(record[ROW])
    plans = np.array([int(record[BEFORE]), int(record[PLAN])])
    values = worth.of(np.array([row, row]), plans)
    scene = worth.scene(row)
    plot = scene_picture(scene, *worth.vocabulary[plans])
    arms = " Two arms are admissible and the command is weak." if len(scene.curvature) > 1 else ""
    caption = f"Seen from above; boxes are the car after 1, 2, 3 and 4 s.{arms}"
    names = ("trained weights", "after the step")
    table = [[name, *(show.hundredths(v) for v in line)] for name, line in zip(names, values.tolist(), strict=True)]
    return [
        Heading(f"{title}: scene {scene.number}, PDMS {_signed(gain)} points"),
        Drawing(plot, caption, f"{title}: both plans in scene {scene.number}"),
        Table(["", *HEADS], table),
    ]
