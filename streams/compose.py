"""Streams made from streams: fewer rows, other batches, later or fewer labels, one group of classes after the other.

Each function returns a new stream and leaves the events' ids as they are. A composed stream starts where its source
stands, can be seeked to any event, and its cursor is small JSON that holds the source's. ``seek({})`` goes to the
beginning.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .events import NO_LABEL, Array, Batch, Boundary, Event, Labels, Rejected, concatenate
from .feed import Feed, Mapped, permutation, uniform
from .spec import InputError, Stream, StreamSpec


def _whole(value: Any, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(f"{name} must be a whole number from {least} on, not {value!r}")
    return int(value)


def take(stream: Stream, n: int) -> Stream:
    """The first ``n`` rows, and what else arrives before the last of them. Rejected rows are not counted.

    Labels that come later than the n-th row are cut off too: take first, then delay.
    """
    return _Take(stream, _whole(n, "take: n", 0))


class _Take:
    def __init__(self, source: Stream, n: int) -> None:
        length = source.spec.length
        drifts = tuple(d for d in source.spec.drifts if d < n)
        self.spec = replace(source.spec, length=n if length is None else min(n, length), drifts=drifts)
        self._source, self._n, self._left = source, n, n

    def __iter__(self) -> Iterator[Event]:
        if self._left == 0:
            return
        for event in self._source:
            if isinstance(event, Batch):
                event = event if len(event) <= self._left else event.rows(slice(0, self._left))
                self._left -= len(event)
            yield event
            if self._left == 0:
                return

    def cursor(self) -> dict[str, Any]:
        return {"s": self._source.cursor(), "left": self._left}

    def seek(self, cursor: dict[str, Any]) -> None:
        self._source.seek(cursor.get("s", {}))
        self._left = cursor.get("left", self._n)


def rebatch(stream: Stream, n: int) -> Stream:
    """Batches of exactly ``n`` rows, cut and joined across the source's.

    Boundary, Labels and Forget events keep their exact place among the rows, so the batch before one may be smaller; so
    may the last. A rejected row is passed on at once and does not end a batch.
    """
    return _Rebatch(stream, _whole(n, "rebatch: n", 1))


class _Rebatch:
    """Cursor: the feed's place at the first row that is still held back, and the rejections passed on since."""

    def __init__(self, source: Stream, n: int) -> None:
        self.spec = source.spec
        self._feed, self._n = Feed(source), n
        self._place, self._passed = self._feed.place(), 0

    def __iter__(self) -> Iterator[Event]:
        feed, n = self._feed, self._n
        feed.seek(self._place)
        muted, self._passed = self._passed, 0
        held: list[Batch] = []
        count = 0
        while (event := feed.peek()) is not None:
            if isinstance(event, Batch):
                part = feed.take(n - count)
                count += len(part)
                held.append(part)
                if count < n:
                    continue
            elif isinstance(event, Rejected):
                feed.drop()
                self._passed += bool(held)
                if not held:
                    self._place = feed.place()
                if muted:
                    muted -= 1
                else:
                    yield event
                continue
            if held:
                batch = concatenate(held)
                held, count, muted = [], 0, 0
                self._place, self._passed = feed.place(), 0
                yield batch
            if not isinstance(event, Batch):
                feed.drop()
                self._place = feed.place()
                yield event
        self._place, self._passed = feed.place(), 0
        if held:
            yield concatenate(held)

    def cursor(self) -> dict[str, Any]:
        return {"s": self._place, "passed": self._passed}

    def seek(self, cursor: dict[str, Any]) -> None:
        self._place, self._passed = cursor.get("s", {}), cursor.get("passed", 0)


def shuffle_within(stream: Stream, window: int, seed: int = 0) -> Stream:
    """The rows of every ``window`` in random order, as one batch (``rebatch`` it as you like).

    Windows end early at Boundary, Labels and Forget events. Rows keep their ids. The window is held in memory.
    """

    def shuffled(event: Event) -> Event:
        return event.rows(permutation(seed, event.ids)) if isinstance(event, Batch) else event

    source = rebatch(stream, _whole(window, "shuffle_within: window", 1))
    return Mapped(source.spec, source, shuffled)


def drop_labels(stream: Stream, rate: float, seed: int = 0) -> Stream:
    """Each row loses its label with probability ``rate``, by a hash of (seed, id); later Labels lose it too."""
    if not 0.0 <= rate <= 1.0:
        raise InputError(f"drop_labels: rate must lie in 0..1, not {rate}")
    unknown = np.nan if stream.spec.target == "regression" else NO_LABEL

    def dropped(event: Event) -> Event | None:
        if isinstance(event, Batch) and event.y is not None:
            y = np.where(uniform(seed, event.ids) < rate, unknown, event.y)
            return Batch(event.ids, event.x, event.time, y.astype(event.y.dtype))
        if isinstance(event, Labels):
            kept = uniform(seed, event.ids) >= rate
            return Labels(event.ids[kept], event.y[kept], event.time) if kept.any() else None
        return event

    return Mapped(stream.spec, stream, dropped)


Delay = int | Callable[[Batch], "int | Array"]


def delay_labels(stream: Stream, delay: Delay) -> Stream:
    """Labels come ``delay`` rows later, as Labels events of their own; 0 leaves the stream as it is.

    The label of the g-th row comes right behind the batch that holds row g + delay, so the delay is exact to the row
    for batches of one row and rounded up to the batch otherwise. ``delay`` may be a pure function of the batch that
    returns rows (one number, or int[B]). At the end of the stream all labels still outstanding come at once.
    """
    if callable(delay):
        return _Delayed(stream, delay)
    rows = _whole(delay, "delay_labels: delay", 0)
    return stream if rows == 0 else _Delayed(stream, lambda _: rows)


class _Delayed:
    """Cursor: the source's place before the oldest batch that still waits, and how far reading has gone since.

    ``entries``: batch number -> (source cursor before it, rows seen before it). ``late``: the labels due behind the
    last event are still to come.
    """

    def __init__(self, source: Stream, delay: Callable[[Batch], int | Array]) -> None:
        self.spec: StreamSpec = source.spec
        self._source, self._delay = source, delay
        self.seek({"s": source.cursor()})

    def _reset(self) -> None:
        self._waiting: list[tuple[int, int, Array, Array, Array]] = []  # heap: (next due, number, due, ids, y)
        self._entries: dict[int, tuple[dict[str, Any], int]] = {}

    def __iter__(self) -> Iterator[Event]:
        cursor = self.cursor()
        self._source.seek(cursor["s"])
        self._reset()
        self._seen, self._read, self._late = cursor["seen"], 0, False
        before = self._source.cursor()
        events = iter(self._source)
        for k in range(cursor["read"]):
            event = self._admit(next(events), before)
            before = self._source.cursor()
            if k < cursor["read"] - 1 or not cursor["late"]:
                self._due(self._seen - 1, event.time)
        if cursor["late"]:
            yield from self._deliver(event)
        for event in events:
            event = self._admit(event, before)
            before = self._source.cursor()
            self._late = isinstance(event, Batch)
            yield event
            if self._late:
                yield from self._deliver(event)
        rest = self._due(np.iinfo(np.int64).max, float(self._seen))
        if rest is not None:
            yield rest

    def _admit(self, event: Event, before: dict[str, Any]) -> Event:
        """Read one event: a batch's labels are put aside, and it goes on without them."""
        self._read += 1
        if not isinstance(event, Batch):
            return event
        due = np.broadcast_to(self._delay(event), event.ids.shape) + np.arange(self._seen, self._seen + len(event))
        if event.y is not None and len(event):
            known = ~np.isnan(event.y) if event.y.dtype.kind == "f" else event.y != NO_LABEL
            if known.any():
                due = due[known]
                item = (int(due.min()), self._read - 1, due, event.ids[known], event.y[known])
                heapq.heappush(self._waiting, item)
                self._entries[self._read - 1] = (before, self._seen)
        self._seen += len(event)
        return Batch(event.ids, event.x, event.time)

    def _deliver(self, event: Event) -> Iterator[Event]:
        self._late = False
        labels = self._due(self._seen - 1, event.time)
        if labels is not None:
            yield labels

    def _due(self, newest: int, time: float) -> Labels | None:
        """The labels due once row number ``newest`` has come, in the order of their rows."""
        parts = []
        while self._waiting and self._waiting[0][0] <= newest:
            _, number, due, ids, y = heapq.heappop(self._waiting)
            now = due <= newest
            parts.append((number, ids[now], y[now]))
            if now.all():
                del self._entries[number]
            else:
                later = due[~now]
                heapq.heappush(self._waiting, (int(later.min()), number, later, ids[~now], y[~now]))
        if not parts:
            return None
        parts.sort(key=lambda part: part[0])
        return Labels(np.concatenate([p[1] for p in parts]), np.concatenate([p[2] for p in parts]), time)

    def cursor(self) -> dict[str, Any]:
        if self._entries:
            number, (source, seen) = next(iter(self._entries.items()))
            return {"s": source, "seen": seen, "read": self._read - number, "late": self._late}
        return {"s": self._source.cursor(), "seen": self._seen, "read": 0, "late": False}

    def seek(self, cursor: dict[str, Any]) -> None:
        """Entries are rebuilt by the next ``iter``; until then one stands for the place."""
        self._reset()
        self._source.seek(cursor.get("s", {}))
        self._seen, self._read, self._late = cursor.get("seen", 0), cursor.get("read", 0), cursor.get("late", False)
        if self._read:
            self._entries[0] = (cursor["s"], self._seen)


def split_classes(stream: Stream, per_task: int = 2, order: Sequence[int] | None = None) -> Stream:
    """Class-incremental tasks: first all rows of the first ``per_task`` classes, then of the next, and so on.

    A Boundary stands between tasks. The stream is read once per task. order: class codes in the order they come
    (default: 0, 1, ...). Rows without labels, and the source's own boundaries, are left out; rejected rows are passed
    on in the first task.
    """
    return _SplitClasses(stream, _whole(per_task, "split_classes: per_task", 1), order)


class _SplitClasses:
    def __init__(self, source: Stream, per_task: int, order: Sequence[int] | None) -> None:
        classes = source.spec.classes
        if classes is None:
            raise InputError(f"split_classes: the classes of {source.spec.name} are not known beforehand")
        codes = list(range(len(classes))) if order is None else [int(k) for k in order]
        if sorted(codes) != list(range(len(classes))):
            raise InputError(f"split_classes: order must name each of the {len(classes)} class codes once")
        self.spec = replace(source.spec, drifts=())
        self._tasks = [codes[k : k + per_task] for k in range(0, len(codes), per_task)]
        self._source = source
        self.seek({})

    def __iter__(self) -> Iterator[Event]:
        classes = self.spec.classes or ()
        while self._task < len(self._tasks):
            if self._task and not self._marked:
                self._marked = True
                yield Boundary("classes " + ", ".join(classes[k] for k in self._tasks[self._task]), self._time)
            for event in self._source:
                mine = self._mine(event)
                if mine is not None:
                    self._time = mine.time
                    yield mine
            self._task, self._marked = self._task + 1, False
            self._source.seek({})

    def _mine(self, event: Event) -> Event | None:
        """What this task shows of an event: the rows of its classes."""
        if isinstance(event, Batch) and event.y is not None:
            rows = np.isin(event.y, self._tasks[self._task])
            return event.rows(rows) if rows.any() else None
        return event if isinstance(event, Rejected) and self._task == 0 else None

    def cursor(self) -> dict[str, Any]:
        return {"task": self._task, "marked": self._marked, "time": self._time, "s": self._source.cursor()}

    def seek(self, cursor: dict[str, Any]) -> None:
        self._task, self._marked = cursor.get("task", 0), cursor.get("marked", False)
        self._time = cursor.get("time", 0.0)
        self._source.seek(cursor.get("s", {}))
