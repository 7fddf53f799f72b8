"""Requests to forget, put among the events of a stream at known places: for simulations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .events import Array, Batch, Event, Forget
from .spec import InputError, Stream


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
