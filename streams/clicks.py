"""Click streams: a synthetic one whose drifts are known, and logs in the order of their time stamps.

A log's batches carry the time of their first row in seconds. Labels may come late by the log's own clock: a click
becomes known ``conversion`` seconds after its row on the average (exponential, as in Chapelle, Modeling delayed
feedback in display advertising, KDD 2014), that there was none once the ``window`` is over; such streams come row by
row, so that delays are exact.
The column of the user, by whom ``gauc`` groups, is ``spec.notes["user"]``; that of the item ``spec.notes["item"]``.
``spec.impressions`` hands users and time stamps of all rows to the evaluator.
"""

from __future__ import annotations

import csv
import datetime
import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from .compose import rebatch
from .datasets import data_path
from .delay import delay_labels
from .events import Array, Batch, Event
from .npz import read_arrays
from .sources import from_arrays
from .spec import Column, Impressions, InputError, Source, Stream, StreamSpec

CLASSES = ("no click", "click")


# --- synthetic ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CtrDrift:
    """concepts: none (nothing drifts), drift (in slot 5), second (another in slot 21), return (the first concept in
    slot 21). slots: of them there are so many; 0: 20, and 40 where there are two drifts. slot: rows of each.
    train: rows of the first concept for the base model, before the stream begins."""

    concepts: Literal["none", "drift", "second", "return"] = "drift"
    slots: int = 0
    slot: int = 500
    train: int = 6000


TESTED = 1000
FIRST_DRIFT, SECOND_DRIFT = 5, 21


def ctr_drift(params: CtrDrift, seed: int) -> Stream:
    """Clicks with logit w.x + 0.8 x0 x1 + b, x 16 normal numbers, w normal of deviation 0.5, b = -0.5.

    From slot 5 on (slots count from 1) the first six weights have the other sign and b is 0.3; in a second drift the
    next six as well, b -0.5 again. A Boundary stands at each.
    """
    p = params
    if min(p.slot, p.train + 1) < 1 or p.slots < 0:
        raise InputError("ctr-drift: slot must be above 0, slots and train not negative")
    slots = p.slots or (40 if p.concepts in ("second", "return") else 20)
    n = slots * p.slot
    rng = np.random.default_rng(seed)
    w = rng.normal(0.0, 0.5, 16)
    turned = np.where(np.arange(16) < 6, -w, w)
    second = np.where(np.arange(16) < 12, -w, w)
    concepts = {
        "drift": [(turned, 0.3)],
        "second": [(turned, 0.3), (second, -0.5)],
        "return": [(turned, 0.3), (w, -0.5)],
    }
    changes = zip((FIRST_DRIFT, SECOND_DRIFT), concepts.get(p.concepts, []))
    starts = {0: (w, -0.5)} | {(at - 1) * p.slot: concept for at, concept in changes if (at - 1) * p.slot < n}
    before = [_drawn(rng, rows, *starts[0]) for rows in (p.train, TESTED)]
    x, y = _drawn(rng, n, *starts[0])
    for start, concept in list(starts.items())[1:]:
        y[start:] = _labels(np.random.default_rng([seed, start]), x[start:], *concept)
    boundaries = {row: f"concept {k}" for k, row in enumerate(starts) if row}
    spec = StreamSpec(
        "ctr-drift",
        tuple(Column(f"x{j}", missing=False) for j in range(16)),
        target_name="click",
        classes=CLASSES,
        length=n,
        drifts=tuple(boundaries),
        source=_source("the first concept", *before[0], *before[1]) if p.train else None,
        impressions=Impressions(),
    )
    return from_arrays(x, y, spec=spec, boundaries=boundaries)


def _drawn(rng: np.random.Generator, n: int, w: Array, b: float) -> tuple[Array, Array]:
    x = rng.normal(size=(n, 16))
    return x, _labels(rng, x, w, b)


def _labels(rng: np.random.Generator, x: Array, w: Array, b: float) -> Array:
    logit = x @ w + 0.8 * x[:, 0] * x[:, 1] + b
    return (rng.random(len(x)) < 1 / (1 + np.exp(-logit))).astype(np.int64)


def _source(name: str, x: Array, y: Array, x_test: Array, y_test: Array) -> Source:
    return Source(name, (0, 1), lambda: (x.astype(np.float32), y), lambda: (x_test.astype(np.float32), y_test))


# --- logs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clicks:
    """conversion: mean seconds until a click is known; 0: at once. window: seconds after which no click is taken as
    none; a later click is not waited for. source: share of the rows that the base model is trained on (the first), so
    that they do not come in the stream."""

    conversion: float = 0.0
    window: float = 0.0
    source: float = 0.0


@dataclass(frozen=True)
class OpenBandit:
    """conversion: mean seconds until a click is known; 0: at once. window: seconds after which no click is taken as
    none; a later click is not waited for. source: share of the rows that the base model is trained on (the first), so
    that they do not come in the stream. policy: who chose the items, random or bts (Bernoulli Thompson sampling)."""

    conversion: float = 0.0
    window: float = 0.0
    source: float = 0.0
    policy: Literal["random", "bts"] = "random"


class _Timed:
    """A stream whose row number stands for a time stamp: events with the stamps themselves."""

    def __init__(self, source: Stream, times: Array) -> None:
        self.spec, self._source, self._times = source.spec, source, times

    def __iter__(self) -> Iterator[Event]:
        for event in self._source:
            if isinstance(event, Batch):
                yield replace(event, time=float(self._times[event.ids[0]]))
            else:
                yield replace(event, time=float(self._times[int(event.time)]))

    def cursor(self) -> dict[str, Any]:
        return self._source.cursor()

    def seek(self, cursor: dict[str, Any]) -> None:
        self._source.seek(cursor)


def waits(times: Array, y: Array, conversion: float, window: float, seed: int) -> Array:
    """int64[n]: how many rows pass until each row's label is known."""
    late = np.random.default_rng([seed, 11]).exponential(1.0, len(y)) * conversion
    late = np.where(y == 1, np.minimum(late, window or np.inf), window)
    due = np.searchsorted(times, times + late, side="left")
    return np.maximum(0, due - np.arange(len(y)))


def _log(
    name: str,
    columns: Sequence[tuple[Column, Array]],
    y: Array,
    times: Array,
    params: Clicks | OpenBandit,
    seed: int,
    *,
    notes: dict[str, Any] | None = None,
    sorted_by: str = "time",
) -> Stream:
    """Rows in order of time as a stream, with late labels and a part kept back for the base model."""
    if not (0 <= params.source < 1 and params.conversion >= 0 and params.window >= 0):
        raise InputError(f"{name}: source must be in [0, 1), conversion and window not negative")
    if sorted_by == "row" and params.conversion + params.window > 0:
        raise InputError(f"{name} has no time stamps: no conversion, no window; use --delay ROWS")
    x = np.column_stack([values.astype(np.float64) for _, values in columns])
    start = int(params.source * len(y))
    user = next((j for j, (column, _) in enumerate(columns) if column.name == (notes or {}).get("user")), None)
    users = None if user is None else np.nan_to_num(x[start:, user], nan=-1).astype(np.int64)
    times = times.astype(np.float64)
    spec = StreamSpec(
        name,
        tuple(column for column, _ in columns),
        target_name="click",
        classes=CLASSES,
        length=len(y) - start,
        notes=dict(notes or {}),
        impressions=Impressions(users, None if sorted_by == "row" else times[start:]),
    )
    if start:
        held = max(1, start // 10)
        parts = (x[: start - held], y[: start - held], x[start - held : start], y[start - held : start])
        spec = replace(spec, source=_source(f"the first {start} rows", *parts))
    x, y, times = x[start:], y[start:].astype(np.int64), times[start:]
    stream: Stream = from_arrays(x, y, spec=spec)
    if not params.conversion and not params.window:
        return _Timed(stream, times)
    wait = waits(times, y, params.conversion, params.window, seed)
    return delay_labels(_Timed(rebatch(stream, 1), times), lambda batch: wait[batch.ids])


def _nominal(name: str, values: Sequence[Any] | Array, *, open: bool = False) -> tuple[Column, Array]:
    """A nominal column over the values that occur, in their order, '' for a missing one."""
    cells = np.asarray([str(v) for v in values])
    known, codes = np.unique(cells, return_inverse=True)
    codes = codes.astype(np.float64)
    if known[0] == "":
        known, codes = known[1:], np.where(codes == 0, np.nan, codes - 1)
    return Column(name, tuple(known.tolist()), open=open), codes


def _number(name: str, cells: Sequence[str], *, logarithm: bool = False) -> tuple[Column, Array]:
    values = np.array([float(c) if c else np.nan for c in cells])
    return Column(name), np.sign(values) * np.log1p(np.abs(values)) if logarithm else values


def _cells(name: str, delimiter: str) -> list[list[str]]:
    """The rows of a gzipped text table."""
    with gzip.open(data_path(name), "rt", encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE))


def movielens(params: Clicks, seed: int) -> Stream:
    """100,000 film ratings of 943 users, 1997-98, by time; a rating of 4 or 5 is a click.

    User, item, age, gender, occupation, decade of the film and its first two genres.
    """
    path = data_path("movielens")
    log = read_arrays(path, ("user_id", "item_id", "rating", "timestamp"))
    users = {int(r[0]): r for r in _cells("movielens-users", "\t")[1:]}
    items = {int(r[0]): r for r in _cells("movielens-items", "\t")[1:]}
    who = [users[int(u)] for u in log["user_id"]]
    what = [items[int(i)] for i in log["item_id"]]
    genres = [row[3].split() for row in what]
    columns = [
        _nominal("user", log["user_id"]),
        _nominal("item", log["item_id"]),
        _number("age", [r[1] for r in who]),
        _nominal("gender", [r[2] for r in who]),
        _nominal("occupation", [r[3] for r in who]),
        _nominal("decade", [r[2][:3] + "0s" if r[2][:3].isdecimal() else "" for r in what]),
        _nominal("genre", [g[0] if g else "" for g in genres]),
        _nominal("second genre", [g[1] if len(g) > 1 else "" for g in genres]),
    ]
    y = (log["rating"] >= 4).astype(np.int64)
    notes = {"user": "user", "item": "item"}
    return _log("movielens", columns, y, log["timestamp"], params, seed, notes=notes)


def criteo(params: Clicks, seed: int) -> Stream:
    """7,200 display ads: 13 counts (by their logarithm) and 26 hashed categories; in file order, no time stamps."""
    rows = _cells("criteo", "\t")
    columns = [_number(f"I{j}", [r[j] for r in rows], logarithm=True) for j in range(1, 14)]
    columns += [_nominal(f"C{j}", [r[13 + j] for r in rows], open=True) for j in range(1, 27)]
    y = np.array([int(r[0]) for r in rows])
    return _log("criteo", columns, y, np.arange(len(y)), params, seed, sorted_by="row")


def avazu(params: Clicks, seed: int) -> Stream:
    """8,087 mobile ads of one hour, 21 nominal columns; no time stamps within the hour: nothing is known to drift."""
    head, *rows = _cells("avazu", ",")
    names = [n for n in head if n not in ("id", "click", "hour")]
    columns = [_nominal(n, [r[head.index(n)] for r in rows], open=True) for n in names]
    y = np.array([int(r[head.index("click")]) for r in rows])
    notes = {"user": "device_ip", "item": "site_id"}
    return _log("avazu", columns, y, np.arange(len(y)), params, seed, notes=notes, sorted_by="row")


FRAPPE = ("user", "item", "daytime", "weekday", "weekend", "home or work", "cost", "weather", "country", "city")


def frappe(params: Clicks, seed: int) -> Stream:
    """86,582 uses of phone apps (one) and drawn apps (two of three), ten nominal columns; in the publisher's random
    order: validation rows, then test rows."""
    log = read_arrays(data_path("frappe"), ("x_validation", "y_validation", "x_test", "y_test"))
    x = np.concatenate([log["x_validation"], log["x_test"]])
    y = np.concatenate([log["y_validation"], log["y_test"]])
    columns = [_nominal(name, x[:, j]) for j, name in enumerate(FRAPPE)]
    notes = {"user": "user", "item": "item"}
    return _log("frappe", columns, y, np.arange(len(y)), params, seed, notes=notes, sorted_by="row")


def diginetica(params: Clicks, seed: int) -> Stream:
    """12,391 views of goods in 2,986 sessions, January to June 2016, by time, each followed by a row with an item drawn
    from those seen so far: was this item viewed? Columns: item, the item viewed before it in the session, and its place
    there. The log has views only; the drawn items are ours."""
    head, *rows = _cells("diginetica", ";")
    at = {name: head.index(name) for name in head}
    days = [datetime.date.fromisoformat(r[at["eventdate"]]).toordinal() - 719_163 for r in rows]
    stamps = [day * 86_400 + int(r[at["timeframe"]]) / 1000 for day, r in zip(days, rows, strict=True)]
    sessions = [int(r[at["session_id"]]) for r in rows]
    order = sorted(range(len(rows)), key=lambda i: (days[i], sessions[i], stamps[i]))
    rng = np.random.default_rng([seed, 5])
    seen: list[str] = []
    last: dict[int, tuple[str, int]] = {}
    found: list[tuple[int, str, str, int, int, float]] = []
    for i in order:
        item, (before, place) = rows[i][at["item_id"]], last.get(sessions[i], ("", 0))
        other = seen[int(rng.integers(len(seen)))] if seen else item
        found.append((sessions[i], item, before, place, 1, stamps[i]))
        if other != item:
            found.append((sessions[i], other, before, place, 0, stamps[i]))
        seen.append(item)
        last[sessions[i]] = (item, place + 1)
    times = np.maximum.accumulate([f[5] for f in found])
    columns = [
        _nominal("session", [f[0] for f in found]),
        _nominal("item", [f[1] for f in found], open=True),
        _nominal("item before", [f[2] for f in found], open=True),
        (Column("place", missing=False), np.array([f[3] for f in found], np.float64)),
    ]
    notes = {"user": "session", "item": "item"}
    return _log("diginetica", columns, np.array([f[4] for f in found]), times, params, seed, notes=notes)


def open_bandit(params: OpenBandit, seed: int) -> Stream:
    """10,000 impressions in a fashion shop in a week of November 2019, 46 clicks (bts: 69): item, position, four hashed
    features of the user, and the user's affinity to the item shown. ``spec.notes["propensity"]``: the policy's
    probability of each row's item, for off-policy checks."""
    head, *rows = _cells("open-bandit" if params.policy == "random" else "open-bandit-bts", ",")
    at = {name: j for j, name in enumerate(head)}
    stamps = np.array([datetime.datetime.fromisoformat(r[at["timestamp"]]).timestamp() for r in rows])
    order = np.argsort(stamps, kind="stable")
    rows, stamps = [rows[i] for i in order], stamps[order]
    items = [r[at["item_id"]] for r in rows]
    affinity = [r[at[f"user-item_affinity_{i}"]] for r, i in zip(rows, items, strict=True)]
    columns = [
        _nominal("item", items),
        _nominal("position", [r[at["position"]] for r in rows]),
        *(_nominal(f"user feature {j}", [r[at[f"user_feature_{j}"]] for r in rows]) for j in range(4)),
        _number("affinity", affinity),
    ]
    y = np.array([int(r[at["click"]]) for r in rows])
    start = int(params.source * len(y)) if 0 <= params.source < 1 else 0
    propensity = [float(r[at["propensity_score"]]) for r in rows[start:]]
    notes = {"item": "item", "propensity": propensity}
    return _log("open-bandit", columns, y, stamps, params, seed, notes=notes)
