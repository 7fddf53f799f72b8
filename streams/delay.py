"""Labels that come later than their rows."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from .events import NO_LABEL, Array, Batch, Event, Labels
from .spec import InputError, Stream, StreamSpec

Delay = int | Callable[[Batch], "int | Array"]


def delay_labels(stream: Stream, delay: Delay) -> Stream:
    """Labels come ``delay`` rows later, as Labels events of their own; 0 leaves the stream as it is.

    The label of the g-th row comes right behind the batch that holds row g + delay, so the delay is exact to the row
    for batches of one row and rounded up to the batch otherwise. ``delay`` may be a pure function of the batch that
    returns rows (one number, or int[B]). At the end of the stream all labels still outstanding come at once.
    Raises InputError for a negative delay.

    >>> import driftway as dw, numpy as np
    >>> rows = dw.rebatch(dw.from_arrays(np.zeros((3, 1)), np.array([0, 1, 0])), 1)
    >>> [(type(e).__name__, e.ids.tolist()) for e in dw.delay_labels(rows, 1)]
    [('Batch', [0]), ('Batch', [1]), ('Labels', [0]), ('Batch', [2]), ('Labels', [1]), ('Labels', [2])]
    """
    if callable(delay):
        return _Delayed(stream, delay)
    if isinstance(delay, bool) or not isinstance(delay, int | np.integer) or delay < 0:
        raise InputError(f"delay_labels: delay must be a whole number from 0 on, or a function, not {delay!r}")
    return _Delayed(stream, int(delay)) if delay else stream


class Entry(NamedTuple):
    """A batch that waits for its labels' time: its number, the rows seen and the source's cursor before it."""

    number: int
    seen: int
    before: dict[str, Any]
    ids: Array
    y: Array


Part = tuple[int, Array, Array]
"""Batch number, ids, labels."""


class Waiting(Protocol):
    """Batches whose labels are still to come."""

    def put(self, entry: Entry, batch: Batch) -> None: ...

    def pop(self, newest: int) -> list[Part]:
        """The rows due once row number ``newest`` has come."""
        ...

    def oldest(self) -> Entry | None: ...


class InTurn:
    """One delay for all: labels come in the order of their rows."""

    def __init__(self, delay: int) -> None:
        self._delay = delay
        self._entries: deque[Entry] = deque()
        self._taken = 0

    def put(self, entry: Entry, batch: Batch) -> None:  # noqa: ARG002
        self._entries.append(entry)

    def pop(self, newest: int) -> list[Part]:
        parts: list[Part] = []
        while self._entries:
            number, seen, _, ids, y = self._entries[0]
            stop = min(len(ids), newest - self._delay - seen + 1)
            if stop <= self._taken:
                break
            parts.append((number, ids[self._taken : stop], y[self._taken : stop]))
            self._taken = stop
            if stop < len(ids):
                break
            self._entries.popleft()
            self._taken = 0
        return parts

    def oldest(self) -> Entry | None:
        return self._entries[0] if self._entries else None


class ByLot:
    """A delay for each row, by a function of its batch."""

    def __init__(self, delay: Callable[[Batch], int | Array]) -> None:
        self._delay = delay
        self._entries: dict[int, Entry] = {}
        self._heap: list[tuple[int, int, Array]] = []  # next row number that is due, batch number, due of each row

    def put(self, entry: Entry, batch: Batch) -> None:
        wait = np.broadcast_to(np.asarray(self._delay(batch), dtype=np.int64), entry.ids.shape)
        if (wait < 0).any():
            raise InputError(f"delay_labels: the function gives {int(wait.min())} rows for a batch")
        due = np.arange(entry.seen, entry.seen + len(entry.ids)) + wait
        self._entries[entry.number] = entry
        heapq.heappush(self._heap, (int(due.min()), entry.number, due))

    def pop(self, newest: int) -> list[Part]:
        parts: list[Part] = []
        while self._heap and self._heap[0][0] <= newest:
            first, number, due = heapq.heappop(self._heap)
            entry = self._entries[number]
            now = (due >= first) & (due <= newest)
            parts.append((number, entry.ids[now], entry.y[now]))
            later = due[due > newest]
            if len(later):
                heapq.heappush(self._heap, (int(later.min()), number, due))
            else:
                del self._entries[number]
        return sorted(parts, key=lambda part: part[0])

    def oldest(self) -> Entry | None:
        return next(iter(self._entries.values()), None)


class _Delayed:
    """Cursor: the source's place before the oldest batch that still waits, and how many events were read since.

    ``late``: the labels due behind the last batch are still to come.
    """

    def __init__(self, source: Stream, delay: int | Callable[[Batch], int | Array]) -> None:
        self.spec: StreamSpec = source.spec
        self._source, self._delay = source, delay
        self._anchor: dict[str, Any] | None = None
        self.seek({"s": source.cursor()})

    def __iter__(self) -> Iterator[Event]:
        cursor = self.cursor()
        self._source.seek(cursor["s"])
        self._anchor = None
        self._waiting: Waiting = InTurn(self._delay) if isinstance(self._delay, int) else ByLot(self._delay)
        self._seen, self._read, self._late = cursor["seen"], 0, False
        before = self._source.cursor()
        events = iter(self._source)
        for left in range(cursor["read"] - 1, -1, -1):
            event = self._admit(next(events), before)
            before = self._source.cursor()
            if left or not cursor["late"]:
                self._waiting.pop(self._seen - 1)
        if cursor["late"]:
            yield from self._deliver(self._seen - 1, event.time)
        for event in events:
            shown = self._admit(event, before)
            before = self._source.cursor()
            self._late = shown is not event
            yield shown
            if self._late:
                yield from self._deliver(self._seen - 1, event.time)
        yield from self._deliver(np.iinfo(np.int64).max, float(self._seen))

    def _admit(self, event: Event, before: dict[str, Any]) -> Event:
        """Read one event: a batch's labels are put aside, and it goes on without them."""
        self._read += 1
        if not isinstance(event, Batch):
            return event
        if event.y is not None and len(event.ids):
            self._waiting.put(Entry(self._read - 1, self._seen, before, event.ids, event.y), event)
        self._seen += len(event.ids)
        return Batch(event.ids, event.x, event.time)

    def _deliver(self, newest: int, time: float) -> Iterator[Event]:
        """One Labels event with all that is due and known."""
        self._late = False
        parts = self._waiting.pop(newest)
        if parts:
            ids = parts[0][1] if len(parts) == 1 else np.concatenate([p[1] for p in parts])
            y = parts[0][2] if len(parts) == 1 else np.concatenate([p[2] for p in parts])
            known = ~np.isnan(y) if self.spec.target == "regression" else y != NO_LABEL
            if known.all():
                yield Labels(ids, y, time)
            elif known.any():
                yield Labels(ids[known], y[known], time)

    def cursor(self) -> dict[str, Any]:
        if self._anchor is not None:  # sought, and not yet iterated
            return self._anchor
        oldest = self._waiting.oldest()
        if oldest is None:
            return {"s": self._source.cursor(), "seen": self._seen, "read": 0, "late": False}
        return {"s": oldest.before, "seen": oldest.seen, "read": self._read - oldest.number, "late": self._late}

    def seek(self, cursor: dict[str, Any]) -> None:
        self._anchor = {
            "s": cursor.get("s", {}),
            "seen": cursor.get("seen", 0),
            "read": cursor.get("read", 0),
            "late": cursor.get("late", False),
        }
