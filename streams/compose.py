"""Streams made from streams: fewer rows, other batches, later or fewer labels, one group of classes after the other.

Each function returns a new stream and leaves the events' ids as they are. A composed stream starts where its source
stands, can be seeked to any event, and its cursor is small JSON that holds the source's. ``seek({})`` goes to the
beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .events import NO_LABEL, Batch, Boundary, Event, Labels, Rejected, concatenate
from .feed import Feed, Mapped, permutation, uniform
from .spec import Experience, InputError, Stream, StreamSpec


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
    may the last, and one where rows without labels follow rows with them, or the other way round. A rejected row is
    passed on at once and does not end a batch.
    """
    return _Rebatch(stream, _whole(n, "rebatch: n", 1))


class _Rebatch:
    """Cursor: the feed's place at the first row that is still held back, and the rejections passed on since.

    While one batch of the source is cut up, the place stays before it and ``skip`` counts the rows that are out.
    """

    def __init__(self, source: Stream, n: int) -> None:
        self.spec = source.spec
        self._feed, self._n = Feed(source), n
        self._place, self._skip, self._passed = self._feed.place(), 0, 0

    def __iter__(self) -> Iterator[Event]:
        feed, n = self._feed, self._n
        feed.seek(self.cursor()["s"])
        muted, self._passed = self._passed, 0
        held: list[Batch] = []
        count = 0
        while (event := feed.peek()) is not None:
            if isinstance(event, Batch):
                if not held and len(event) >= n:
                    yield from self._cut(feed, event)
                    continue
                if not held or (held[0].y is None) == (event.y is None):
                    part = feed.take(n - count)
                    count += len(part)
                    held.append(part)
                    if count < n:
                        continue
            elif isinstance(event, Rejected):
                feed.drop()
                self._passed += bool(held)
                if not held:
                    self._place, self._skip = feed.place(), 0
                if muted:
                    muted -= 1
                else:
                    yield event
                continue
            if held:
                batch = concatenate(held)
                held, count, muted = [], 0, 0
                self._place, self._skip, self._passed = feed.place(), 0, 0
                yield batch
            if not isinstance(event, Batch):
                feed.drop()
                self._place, self._skip = feed.place(), 0
                yield event
        self._place, self._skip, self._passed = feed.place(), 0, 0
        if held:
            yield concatenate(held)

    def _cut(self, feed: Feed, event: Batch) -> Iterator[Event]:
        """As many whole batches as one batch of the source has: the path that must be quick."""
        n = self._n
        place = feed.place()
        whole = feed.take(len(event) // n * n)
        ids, x, y, time = whole.ids, whole.x, whole.y, whole.time
        self._place = place
        for skip in range(0, len(ids), n):
            self._skip = skip + n
            rows = slice(skip, skip + n)
            if type(x) is np.ndarray:
                yield Batch(ids[rows], x[rows], time, None if y is None else y[rows])
            else:
                yield whole.rows(rows)
        self._place, self._skip = feed.place(), 0

    def cursor(self) -> dict[str, Any]:
        place = self._place
        return {"s": {"s": place["s"], "skip": place["skip"] + self._skip}, "passed": self._passed}

    def seek(self, cursor: dict[str, Any]) -> None:
        self._place, self._skip = {"s": {}, "skip": 0, **cursor.get("s", {})}, 0
        self._passed = cursor.get("passed", 0)


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
            return Labels(event.ids[kept], event.y[kept], event.time, event.learn) if kept.any() else None
        return event

    return Mapped(stream.spec, stream, dropped)


def split_classes(stream: Stream, per_task: int = 2, order: Sequence[int] | None = None) -> Stream:
    """Class-incremental tasks: first all rows of the first ``per_task`` classes, then of the next, and so on.

    A Boundary stands between tasks. The stream is read once per task. order: class codes in the order they come
    (default: 0, 1, ...). Rows without labels, and the source's own boundaries, are left out; rejected rows are passed
    on in the first task. Held-out rows of ``spec.experiences`` are pooled and split in the same way.
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
        self._tasks = [codes[k : k + per_task] for k in range(0, len(codes), per_task)]
        held = tuple(_regrouped(source.spec, classes, task) for task in self._tasks) if source.spec.experiences else ()
        self.spec = replace(source.spec, drifts=(), experiences=held)
        self._source = source
        self._task, self._marked, self._time = 0, False, 0.0
        source.seek({})

    def __iter__(self) -> Iterator[Event]:
        classes = self.spec.classes or ()
        while self._task < len(self._tasks):
            if self._task and not self._marked:
                self._marked = True
                yield Boundary(_title(classes, self._tasks[self._task]), self._time)
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


def _title(classes: Sequence[str], codes: Sequence[int]) -> str:
    return "classes " + ", ".join(classes[k] for k in codes)


def _regrouped(spec: StreamSpec, classes: Sequence[str], codes: Sequence[int]) -> Experience:
    """The held-out rows of these classes, from all experiences; how many rows there are for training is not known."""
    picked = [(e, np.isin(e.y, codes)) for e in spec.experiences]
    x = np.concatenate([e.x[rows] for e, rows in picked])
    y = np.concatenate([e.y[rows] for e, rows in picked])
    return Experience(_title(classes, codes), x, y, 0, tuple(codes))
