"""Requests to forget, put among the events of a stream at known places: for simulations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .events import Array, Batch, Event, Forget, Labels
from .spec import InputError, Stream

CANDIDATES = 1000


def ask_to_forget(stream: Stream, requests: Mapping[int, Array], reason: str = "") -> Stream:
    """The same stream with requests in it. requests: after so many rows (the batch at hand is not cut), these ids.

    >>> from driftway.streams import from_arrays, rebatch
    >>> four = from_arrays(np.zeros((4, 1)), np.array([0, 1, 0, 1]))
    >>> [type(event).__name__ for event in ask_to_forget(rebatch(four, 2), {2: np.array([0])})]
    ['Batch', 'Forget', 'Batch']
    """
    if any(after < 0 for after in requests):
        raise InputError("requests to forget come after 0 rows or more")
    return _Asked(stream, dict(sorted(requests.items())), reason)


def keep_asking(stream: Stream, every: int, rows: int, seed: int = 0) -> Stream:
    """The same stream with a request after every so many rows, for so many of the rows that came with a label.

    A thousand ids at most are candidates at any time, drawn evenly from all that came; no row is asked for twice.

    >>> from driftway.streams import from_arrays, rebatch
    >>> four = from_arrays(np.zeros((4, 1)), np.array([0, 1, 0, 1]))
    >>> [len(event.ids) for event in keep_asking(rebatch(four, 2), 4, 3) if isinstance(event, Forget)]
    [3]
    """
    if every < 1 or rows < 1:
        raise InputError("requests to forget come after 1 row or more, for 1 row or more")
    return _Asking(stream, every, rows, seed)


class _Asked:
    def __init__(self, source: Stream, requests: dict[int, Array], reason: str) -> None:
        self.spec = source.spec
        self._source, self._reason = source, reason
        self._after = list(requests)
        self._ids = [np.asarray(ids, np.int64) for ids in requests.values()]
        self._rows = self._asked = 0
        self._time = 0.0

    def __iter__(self) -> Iterator[Event]:
        yield from self._due()
        for event in self._source:
            if isinstance(event, Batch):
                self._rows += len(event)
                self._time = event.time
            yield event
            yield from self._due()

    def _due(self) -> Iterator[Event]:
        while self._asked < len(self._after) and self._after[self._asked] <= self._rows:
            self._asked += 1
            yield Forget(self._ids[self._asked - 1], self._time, self._reason)

    def cursor(self) -> dict[str, Any]:
        return {"s": self._source.cursor(), "rows": self._rows, "asked": self._asked, "time": self._time}

    def seek(self, cursor: dict[str, Any]) -> None:
        self._source.seek(cursor.get("s", {}))
        self._rows, self._asked = cursor.get("rows", 0), cursor.get("asked", 0)
        self._time = cursor.get("time", 0.0)


class _Asking:
    """Candidates by reservoir sampling; draws are those of a generator whose state is part of the cursor."""

    def __init__(self, source: Stream, every: int, rows: int, seed: int) -> None:
        self.spec = source.spec
        self._source, self._every, self._wanted = source, every, rows
        self._rng = np.random.default_rng([seed, every, rows])
        self._candidates: list[int] = []
        self._met = self._rows = self._asked = 0
        self._time = 0.0

    def __iter__(self) -> Iterator[Event]:
        yield from self._due()
        for event in self._source:
            self._time = event.time
            if isinstance(event, Batch):
                self._rows += len(event)
                if event.y is not None:
                    self._consider(event.ids)
            elif isinstance(event, Labels) and event.learn:
                self._consider(event.ids)
            yield event
            yield from self._due()

    def _due(self) -> Iterator[Event]:
        if self._rows // self._every > self._asked and self._candidates:
            self._asked = self._rows // self._every
            yield Forget(self._drawn(), self._time, "simulated")

    def _consider(self, ids: Array) -> None:
        for row in ids.tolist():
            self._met += 1
            if len(self._candidates) < CANDIDATES:
                self._candidates.append(row)
            elif (at := int(self._rng.integers(self._met))) < CANDIDATES:
                self._candidates[at] = row

    def _drawn(self) -> Array:
        n = min(self._wanted, len(self._candidates))
        places = np.sort(self._rng.choice(len(self._candidates), n, replace=False))
        ids = np.array([self._candidates[at] for at in places], np.int64)
        self._candidates = [row for at, row in enumerate(self._candidates) if at not in set(places.tolist())]
        return ids

    def cursor(self) -> dict[str, Any]:
        return {
            "s": self._source.cursor(),
            "candidates": list(self._candidates),
            "counts": [self._met, self._rows, self._asked],
            "time": self._time,
            "generator": self._rng.bit_generator.state,
        }

    def seek(self, cursor: dict[str, Any]) -> None:
        self._source.seek(cursor.get("s", {}))
        if "counts" in cursor:
            self._candidates = list(cursor["candidates"])
            self._met, self._rows, self._asked = cursor["counts"]
            self._time = cursor["time"]
            self._rng.bit_generator.state = cursor["generator"]
