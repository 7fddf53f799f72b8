"""Sections on tokens: which of them were new to the router, where they went, and which rows of weights tasks share.

What learners tell of themselves (``summary["facts"]``): ``tokens`` has ``layers`` (names), ``updates`` and
``experience`` (of each moment), ``new``, ``old``, ``ambiguous`` (of each moment a share for each layer), ``mass`` (of
each moment the mean mass of each bank there was) and ``drift`` (see ``token_drift``). ``rows`` has ``layers``,
``overlap`` (tasks by tasks, mean over layers) and ``expected``, that of rows drawn independently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import figures as show
from . import plots
from .plots import Marks, Plot
from .run_data import RunData
from .section import Cell, Compared, Drawing, Heading, Part, Section, Table, Words, marked
from .token_drift import TOKENS, Drift, last_drift
from .token_plots import drift_plot, overlap_plot, share_maps

Floats = NDArray[np.float64]

GROUPS = ("new", "old", "ambiguous")
OLDER = (
    "A token is new or old where one of the two best cosines, to a router row of the new bank or of an old one, is "
    "clearly the greater (relative difference above τ), and ambiguous otherwise. Means over the rows of an update, "
    "padding left out; above each map the mean since the second experience began. White lines: another one begins."
)
MASSES = (
    "The sum of a token’s routing weights within each bank, mean over tokens and layers, on the rows being learnt. "
    "In the legend: mean over the run. Dashed lines: another experience begins."
)
DRIFT = (
    "On held-out rows of each experience, what routing gives to banks that came after its own: drift, where tokens are "
    "its own. Tokens that all experiences share may rightly move. The stream knows which is which; learners do not."
)
OVERLAP = (
    "Of the rows of weights that were active most often in one task, the share that is among those of the other too, "
    "mean over layers."
)
SIDE_BY_SIDE = (
    "In per cent. Own, ambiguous, shared: what routing gives, for such tokens of held-out rows of old experiences, to "
    "banks that came after their own, at the end; drift, where tokens are their own. New in training: tokens "
    "that the router took for new, from the second experience on. Rows in common: active rows of weights, of two tasks."
)


def token_section(run: RunData) -> Section | None:
    """New, old and ambiguous tokens, the banks' masses and drift; None where the learner does not tell."""
    found = _facts(run, "tokens")
    if not found:
        return None
    parts: list[Part] = []
    updates, begins = _moments(found)
    if len(updates) > 1 and found.get("layers"):
        parts += _shares(found, updates, begins)
        parts += _masses(found, updates, begins)
    parts += _drift(run, found.get("drift") or {})
    return Section("Tokens", parts, long=True) if parts else None


def overlap_section(run: RunData) -> Section | None:
    """Which rows of weights the tasks share; None where the learner does not tell, or knows one task only."""
    expected, overlap = _facts(run, "rows").get("expected"), _overlap(run)
    apart = _apart(overlap)
    if apart is None:
        return None
    drawn = overlap_plot(overlap, names_of(run, len(overlap)), prefix="overlap")
    words = f"Two tasks have {show.percent(apart)} of their active rows in common"
    words += f"; rows drawn independently would have {show.percent(expected)}." if show.is_number(expected) else "."
    label = "share of active rows in common, task by task"
    return Section("Active rows of the tasks", [Words(words), Drawing(drawn, OVERLAP, label)])


def token_compared(runs: Compared) -> Section | None:
    """Drift and shares of every learner that tells, mean ± sd over seeds."""
    found = {name: [runs.runs[i] for i in members] for name, members in runs.groups.items()}
    columns: dict[str, tuple[int, list[list[float]]]] = {}
    learners = list(runs.colours)
    for name, sign in (("own", -1), ("ambiguous", 0), ("shared", 0)):
        values = [[v for r in found[n] if (v := _last(r, name)) is not None] for n in learners]
        columns[name] = (sign, values)
    columns["new in training"] = (
        0,
        [[v for r in found[n] if (v := _share_new(r)) is not None] for n in learners],
    )
    shared = [[v for r in found[n] if (v := _apart(_overlap(r))) is not None] for n in learners]
    columns["rows in common"] = (-1, shared)
    columns = {head: (sign, values) for head, (sign, values) in columns.items() if any(values)}
    if not columns:
        return None
    told = [k for k in range(len(learners)) if any(values[k] for _, values in columns.values())]
    cells = [_cells([values[k] for k in told], sign) for sign, values in columns.values()]
    rows = [[runs.name(learners[k]), *row] for k, row in zip(told, zip(*cells))]
    return Section("Tokens", [Words(SIDE_BY_SIDE), Table(["learner", *columns], rows)])


def names_of(run: RunData, n: int) -> list[str]:
    """Names of the first ``n`` experiences, numbers where they are not known."""
    names = [] if run.evaluations is None else list(run.evaluations.names)
    return [names[k] if k < len(names) else f"experience {k + 1}" for k in range(n)]


def _facts(run: RunData, key: str) -> dict[str, Any]:
    facts = run.summary.get("facts")
    found = facts.get(key) if isinstance(facts, dict) else None
    return found if isinstance(found, dict) else {}


def _matrix(rows: Sequence[Sequence[float | None]]) -> Floats:
    """float64[n, widest], NaN where a row is shorter."""
    made = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for line, row in zip(made, rows):
        line[: len(row)] = [np.nan if value is None else value for value in row]
    return made


def _moments(found: dict[str, Any]) -> tuple[Floats, list[float]]:
    """Updates, and those at which another experience begins."""
    updates = np.asarray(found.get("updates") or [], np.float64)
    changes = np.flatnonzero(np.diff(np.asarray(found.get("experience") or [], np.float64))) + 1
    return updates, updates[changes].tolist()


def _shares(found: dict[str, Any], updates: Floats, begins: list[float]) -> list[Part]:
    shares = {name: _matrix(found[name]) for name in GROUPS if found.get(name)}
    if not begins or not shares:
        return []
    drawn = share_maps(updates, shares, found["layers"], begins, prefix="shares")
    label = "share of new, old and ambiguous tokens by layer and update"
    return [Heading("What the router takes tokens for"), Drawing(drawn, OLDER, label)]


def _masses(found: dict[str, Any], updates: Floats, begins: list[float]) -> list[Part]:
    mass = np.nan_to_num(_matrix(found.get("mass") or []))
    if mass.shape[1] < 2 or len(mass) != len(updates):
        return []
    names = [f"bank {k + 1}" for k in range(mass.shape[1])]
    drawn = plots.area_plot(updates, mass, names, prefix="mass", marks=Marks(drifts=begins))
    plot = Plot(drawn.svg, [entry for entry in drawn.legend if entry[1] != "drift"])
    return [Heading("Routing mass of each bank"), Drawing(plot, MASSES, "routing mass of each bank over updates")]


def _drift(run: RunData, drift: Drift) -> list[Part]:
    """The lines, and a table of what they end at."""
    own = drift.get("own") or []
    if len(own) < 2:
        return []
    names = names_of(run, len(own))
    means = {f"{name} tokens, mean": [_mean(row[:-1]) for row in drift[name]] for name in ("ambiguous", "shared")}
    drawn = drift_plot(own, means, names, prefix="drift")
    heads = ["experience", *(f"{name} tokens" for name in TOKENS)]
    rows: list[list[str | Cell]] = [
        [name, *(show.percent(drift[kind][-1][e]) for kind in TOKENS)] for e, name in enumerate(names[:-1])
    ]
    rows.append(["mean", *(show.percent(last_drift(drift, kind)) for kind in TOKENS)])
    caption = "Horizontal: the ends of experiences; a line for the own tokens of each."
    return [
        Heading("Drift: tokens of old experiences on newer banks"),
        Words(DRIFT),
        Drawing(drawn, caption, "mass of own tokens on newer banks"),
        Words("At the end, on banks that came after the experience’s own:"),
        Table(heads, rows),
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _last(run: RunData, name: str) -> float | None:
    drift = _facts(run, "tokens").get("drift")
    return last_drift(drift, name) if drift else None


def _share_new(run: RunData) -> float | None:
    """Mean share of new tokens while experiences after the first were learnt."""
    found = _facts(run, "tokens")
    later = np.asarray(found.get("experience") or [], np.float64) > 0
    new = _matrix(found.get("new") or [])
    return float(new[later].mean()) if len(new) == len(later) and later.any() else None


def _overlap(run: RunData) -> Floats:
    return _matrix(_facts(run, "rows").get("overlap") or [])


def _apart(overlap: Floats) -> float | None:
    """Mean over pairs of different tasks; None where none is known."""
    pairs = overlap[~np.eye(len(overlap), dtype=bool)]
    return float(np.nanmean(pairs)) if np.isfinite(pairs).any() else None


def _cells(values: Sequence[list[float]], sign: int) -> list[Cell]:
    """Per cent, the best in bold where there is a best."""
    return marked(values, sign) if sign else [Cell(show.spread(v, show.hundredths)) for v in values]
