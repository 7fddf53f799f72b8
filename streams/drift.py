"""Drift as composition: one concept after another (abrupt, gradual, recurring), or one sliding into the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from .events import Array, Batch, Boundary, Event, Forget, Labels, Rejected
from .feed import Feed, same_columns, uniform
from .sources import BLOCK
from .spec import Impressions, InputError, Stream, StreamSpec

Ramp = Literal["sigmoid", "linear"]


@dataclass(frozen=True)
class Switch:
    """One change of concept. Rows from ``start`` to ``stop`` mix both; without a position it comes where the old part
    ends.

    mark: the row before which the Boundary stands. drain: leftover rows of the old part still come before the mix
    ends.
    """

    position: float | None
    width: int
    ramp: Ramp
    drain: bool

    @property
    def reach(self) -> float:
        return float(self.width) if self.ramp == "sigmoid" else self.width / 2

    @property
    def start(self) -> float:
        return np.inf if self.position is None else max(0.0, np.ceil(self.position - self.reach))

    @property
    def stop(self) -> float:
        return np.inf if self.position is None else np.ceil(self.position + self.reach)

    @property
    def mark(self) -> float:
        return np.inf if self.position is None else max(self.start, np.ceil(self.position - self.width / 2))

    def share(self, rows: Array) -> Array:
        """Probability that each row (its number) is of the new concept."""
        if not self.width or self.position is None:
            return np.ones(len(rows))
        z = (rows - self.position) / self.width
        return 1.0 / (1.0 + np.exp(-4.0 * z)) if self.ramp == "sigmoid" else np.clip(z + 0.5, 0.0, 1.0)


def concat(
    *streams: Stream,
    width: int | Sequence[int] = 0,
    ramp: Ramp = "sigmoid",
    position: int | Sequence[int] | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> Stream:
    """One stream after the other, as one stream with a Boundary at every change.

    width 0: abrupt. width > 0: gradual; row t is of the new concept with probability 1 / (1 + exp(-4 (t - position) /
    width)) (``ramp="sigmoid"``, within one width on either side of the position, as MOA and CapyMOA have it) or
    rising in a straight line over ``width`` rows (``"linear"``). width and position may be given per change.
    position: row number of each change (its centre); default: where the old part ends, so that every row of every
    part comes exactly once. With a position, rows of a part that are not yet used by then are left out.

    Recurring: give a part again. It goes on where it stopped, or starts again if it had ended. The Boundary, and the
    entry in ``spec.drifts``, stand at ``position - width / 2``, where the change sets in. Where every part has
    ``spec.experiences``, the whole has them one after the other (unless a position may cut one of several off). Rows
    are numbered anew from 0 (rejected rows are counted), which is their id and time. Parts must have the same columns
    and hold no Labels or Forget events: delay labels after joining. Raises InputError otherwise.
    """
    if not streams:
        raise InputError("concat: no stream given")
    if not same_columns([s.spec for s in streams]):
        raise InputError("concat: the streams differ in columns, target, shape or tokenizer")
    widths = _per_change(width, len(streams) - 1, "width")
    starts = (
        _default_positions(streams, widths) if position is None else _per_change(position, len(streams) - 1, "position")
    )
    switches = [Switch(p, w, ramp, position is None) for p, w in zip(starts, widths, strict=True)]
    for a, b in pairwise(switches):
        if a.position is not None and b.position is not None and a.stop > b.start:
            raise InputError(
                f"concat: the changes at rows {a.position:g} and {b.position:g} overlap; make width smaller"
            )
    return _Concat(streams, switches, seed, list(names) if names else [s.spec.name for s in streams])


def _per_change(value: Any, n: int, name: str) -> list[Any]:
    values: list[Any] = (
        [value] * n if np.isscalar(value) and (n <= 1 or name == "width") else list(np.atleast_1d(value).tolist())
    )
    if len(values) != n or any(v < 0 for v in values) or (name == "position" and values != sorted(values)):
        raise InputError(f"concat: {name} must be {n} rising numbers from 0 on, one for each change, not {value}")
    return values


def _default_positions(streams: Sequence[Stream], widths: Sequence[int]) -> list[float | None]:
    """Where each part but the last ends; unknown lengths are fine for abrupt changes only."""
    ends: list[float | None] = []
    total: int | None = 0
    for stream, width in zip(streams, widths, strict=False):
        length = stream.spec.length
        total = None if total is None or length is None else total + length
        if total is None and width:
            raise InputError(f"concat: {stream.spec.name} has no known length: a gradual change needs a position")
        ends.append(float(total) if width and total is not None else None)
    return ends


class _Concat:
    """Cursor: rows out, the change that is next, whether its Boundary is out, and the place in each distinct part."""

    def __init__(self, parts: Sequence[Stream], switches: list[Switch], seed: int, names: list[str]) -> None:
        self._switches, self._seed, self._names = switches, seed, names
        distinct = {id(s): s for s in parts}
        feeds = {key: Feed(s) for key, s in distinct.items()}
        self._feeds = list(feeds.values())
        self._parts = [feeds[id(s)] for s in parts]
        self.spec = _joined_spec(parts, switches)
        self._t, self._i, self._marked = 0, 0, False

    def __iter__(self) -> Iterator[Event]:
        while True:
            event = self._step()
            if event is None:
                return
            yield event

    def _step(self) -> Event | None:
        """The next event; None at the end. Everything it depends on is in the cursor."""
        while True:
            old = self._parts[self._i]
            if self._i == len(self._switches):
                return None if old.peek() is None else self._pass(old, BLOCK)
            switch, new = self._switches[self._i], self._parts[self._i + 1]
            ended = old.peek() is None
            if not self._marked and (ended or self._t >= switch.mark):
                self._marked = True
                if new is not old and new.peek() is None:
                    new.seek({})
                return Boundary(self._names[self._i + 1], float(self._t))
            if ended or (self._t >= switch.stop and not switch.drain):
                if new is old and ended:
                    new.seek({})
                self._i, self._marked = self._i + 1, False
                continue
            if self._t < switch.start:
                return self._pass(old, switch.start - self._t)
            if not self._marked and new is not old and new.peek() is None:
                new.seek({})
            return self._mix(old, new, switch)

    def _pass(self, feed: Feed, rows: float) -> Event:
        """What one part has next, at most ``rows`` rows of it, under its new number."""
        event = feed.peek()
        if isinstance(event, Batch):
            batch = feed.take(int(min(rows, len(event))))
            ids = np.arange(self._t, self._t + len(batch), dtype=np.int64)
            self._t += len(batch)
            return Batch(ids, batch.x, float(ids[0]), batch.y)
        feed.drop()
        if isinstance(event, Rejected):
            self._t += 1
            return Rejected(self._t - 1, f"{event.reason} (row {event.row} of {feed.source.spec.name})", self._t - 1.0)
        if isinstance(event, Labels | Forget):
            raise InputError(
                f"concat: {feed.source.spec.name} holds {type(event).__name__} events; delay labels after joining"
            )
        assert isinstance(event, Boundary)
        return Boundary(event.name, float(self._t))

    def _mix(self, old: Feed, new: Feed, switch: Switch) -> Event:
        """Rows of both parts by lot, as far as both have rows at hand."""
        a, b = old.peek(), new.peek()
        if not isinstance(a, Batch):
            return self._pass(old, 0)
        if b is None or new is old:
            return self._pass(old, len(a))
        if not isinstance(b, Batch):
            return self._pass(new, 0)
        end = switch.mark if self._t < switch.mark else switch.stop if self._t < switch.stop else np.inf
        t = np.arange(self._t, self._t + int(min(len(a) + len(b), end - self._t)), dtype=np.int64)
        share = switch.share(t) if self._t < switch.stop else np.zeros(len(t))
        late = uniform(self._seed + self._i, t) < share
        fits = (np.cumsum(late) <= len(b)) & (np.cumsum(~late) <= len(a))
        late = late[: len(t) if fits.all() else int(np.argmin(fits))]
        x, y = _interleave(late, old, new)
        ids = t[: len(late)]
        self._t += len(ids)
        return Batch(ids, x, float(ids[0]), y)

    def cursor(self) -> dict[str, Any]:
        return {"t": self._t, "i": self._i, "marked": self._marked, "feeds": [f.place() for f in self._feeds]}

    def seek(self, cursor: dict[str, Any]) -> None:
        self._t, self._i, self._marked = cursor.get("t", 0), cursor.get("i", 0), cursor.get("marked", False)
        for feed, place in zip(self._feeds, cursor.get("feeds", [{}] * len(self._feeds)), strict=True):
            feed.seek(place)


def _interleave(late: Array, old: Feed, new: Feed) -> tuple[Any, Array | None]:
    """x and y of the next rows: from ``new`` where ``late``, else from ``old``."""
    count = int(late.sum())
    parts = [(rows, feed.take(n)) for rows, feed, n in ((~late, old, len(late) - count), (late, new, count)) if n]
    first = parts[0][1]
    labelled = all(batch.y is not None for _, batch in parts)
    y = np.empty(len(late), first.y.dtype) if labelled and first.y is not None else None
    if not isinstance(first.x, np.ndarray):
        raise InputError("concat: a gradual change needs rows that are arrays, not mappings")
    x = np.empty((len(late), *first.x.shape[1:]), first.x.dtype)
    for rows, batch in parts:
        x[rows] = batch.x
        if y is not None:
            y[rows] = batch.y
    return x, y


def _joined_spec(parts: Sequence[Stream], switches: list[Switch]) -> StreamSpec:
    """Classes: the longest list. Drifts: where known beforehand, the parts' own included if all rows are used."""
    specs = [p.spec for p in parts]
    listed = [s.classes for s in specs]
    classes = None if None in listed else max(listed, key=lambda c: len(c or ()))
    if any(c != (classes or ())[: len(c or ())] for c in listed if c is not None and classes is not None):
        raise InputError("concat: the streams name their classes differently")
    lengths = [s.length for s in specs]
    whole = all(s.position is None or s.drain for s in switches)
    drifts: list[int] = []
    ends = np.cumsum([0, *(n for n in lengths[:-1])]) if whole and None not in lengths[:-1] else None
    for i, spec in enumerate(specs):
        if ends is not None:
            mark = switches[i - 1].mark if i and switches[i - 1].position is not None else float(ends[i])
            drifts += [int(mark)] * bool(i) + [int(ends[i]) + d for d in spec.drifts]
        elif i and switches[i - 1].position is not None:
            drifts.append(int(switches[i - 1].mark))
    length = sum(lengths) if whole and None not in lengths else None  # type: ignore[arg-type]
    held = [s.experiences for s in specs]
    known = all(held) and (whole or all(len(h) == 1 for h in held))
    return replace(
        specs[0],
        name="+".join(s.name for s in specs),
        classes=classes,
        length=length,
        drifts=tuple(sorted(drifts)),
        experiences=tuple(e for h in held for e in h) if known else (),
        impressions=_numbered_anew(parts),
        mixed=None,
    )


def _numbered_anew(parts: Sequence[Stream]) -> Impressions | None:
    """Of rows with new ids: users and time stamps of clicks are not known any more."""
    return Impressions() if all(p.spec.impressions for p in parts) else None


def incremental(*streams: Stream, start: int = 0, span: int | None = None, seed: int = 0) -> Stream:
    """One concept slides into the next: row t is ``a_t + w (b_t - a_t)`` with w rising from 0 to 1 over ``span`` rows.

    The t-th rows of all streams are paired. Numeric columns are interpolated; nominal columns and the label are those
    of b with probability w. More than two streams are passed through at even distances. start: the row at which the
    slide begins (a Boundary stands there if it is not 0); span defaults to what is left of the shortest stream. It
    ends with the shortest stream; ids are the row numbers. Good with pairs that share their rows: ``incremental(s,
    corrupt(s, "scaling"))``. Raises InputError where columns differ or the span is not known.
    """
    if len(streams) < 2 or not same_columns([s.spec for s in streams]) or streams[0].spec.n_features == 0:
        raise InputError("incremental: two or more streams with the same columns, target and shape are needed")
    lengths = [s.spec.length for s in streams if s.spec.length is not None]
    if span is None and not lengths:
        raise InputError("incremental: span is needed, since no stream has a known length")
    span = min(lengths) - start if span is None else span
    if start < 0 or span <= 0:
        raise InputError(f"incremental: start {start} and span {span} leave no rows for the change")
    return _Incremental(streams, start, span, seed)


class _Incremental:
    def __init__(self, parts: Sequence[Stream], start: int, span: int, seed: int) -> None:
        lengths = [p.spec.length for p in parts if p.spec.length is not None]
        self.spec = replace(
            parts[0].spec,
            name="~".join(p.spec.name for p in parts),
            length=min(lengths, default=None),
            drifts=(start,) if start else (),
            experiences=(),  # held-out rows of either concept would judge neither stretch
            impressions=_numbered_anew(parts),
            mixed=None,
        )
        self._feeds = [Feed(p) for p in parts]
        self._start, self._span, self._seed = start, span, seed
        self._nominal = np.array([c.categories is not None for c in self.spec.columns])
        self._t, self._marked = 0, start == 0

    def __iter__(self) -> Iterator[Event]:
        while True:
            heads = [feed.peek() for feed in self._feeds]
            aside = next((i for i, e in enumerate(heads) if e is not None and not isinstance(e, Batch)), None)
            if aside is not None:
                self._feeds[aside].drop()
                if isinstance(heads[aside], Labels | Forget):
                    raise InputError("incremental: delay labels after composing")
                yield heads[aside]  # type: ignore[misc]
            elif None in heads:
                return
            elif not self._marked and self._t >= self._start:
                self._marked = True
                yield Boundary("incremental drift", float(self._t))
            else:
                rows = min(len(e) for e in heads if isinstance(e, Batch))
                yield self._blend(rows if self._marked else min(rows, self._start - self._t))

    def _blend(self, rows: int) -> Batch:
        parts = [feed.take(rows) for feed in self._feeds]
        t = np.arange(self._t, self._t + rows, dtype=np.int64)
        self._t += rows
        way = np.clip((t - self._start) / self._span, 0.0, 1.0) * (len(parts) - 1)
        low = np.minimum(way.astype(np.int64), len(parts) - 2)
        weight = way - low
        late = uniform(self._seed, t) < weight
        x = np.stack([np.asarray(p.x) for p in parts])
        here = np.arange(rows)
        a, b, w = x[low, here], x[low + 1, here], weight[:, None]
        chosen = np.where(late[:, None], b, a)
        mixed = np.where(w == 0.0, a, np.where(w == 1.0, b, a + w * (b - a)))
        labels = [p.y for p in parts if p.y is not None]
        y = np.stack(labels)[low + late, here] if len(labels) == len(parts) else None
        return Batch(t, np.where(self._nominal, chosen, mixed), float(t[0]), y)

    def cursor(self) -> dict[str, Any]:
        return {"t": self._t, "marked": self._marked, "feeds": [f.place() for f in self._feeds]}

    def seek(self, cursor: dict[str, Any]) -> None:
        self._t, self._marked = cursor.get("t", 0), cursor.get("marked", self._start == 0)
        for feed, place in zip(self._feeds, cursor.get("feeds", [{}] * len(self._feeds)), strict=True):
            feed.seek(place)
