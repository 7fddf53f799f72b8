"""What every composition is made of: reading a stream row by row from a stored place, and chance that is a pure
function.

Randomness here is a hash of (seed, row, lane). So a row meets the same fate wherever batches are cut, and no
generator state has to be stored in a cursor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .events import Array, Batch, Event
from .spec import Stream, StreamSpec


class Feed:
    """Reads a stream in pieces of any number of rows. Its place is ``{"s": cursor, "skip": rows taken since}``.

    Several feeds may read from one stream (or from streams that share a source): each puts it back to its own place
    before it reads on.
    """

    def __init__(self, source: Stream) -> None:
        self.source = source
        self._events: Iterator[Event] = iter(source)
        self._before = self._next = source.cursor()
        self._rest: Event | None = None
        self._skip = 0

    def peek(self) -> Event | None:
        """The next event (of a batch: the rows not yet taken), or None at the end."""
        while self._rest is None:
            if self.source.cursor() != self._next:
                self.source.seek(self._next)
                self._events = iter(self.source)
            self._before = self._next
            self._rest = next(self._events, None)
            self._next = self.source.cursor()
            if not self._skip or not isinstance(self._rest, Batch):
                break
            if self._skip < len(self._rest):
                self._rest = self._rest.rows(slice(self._skip, None))
            else:  # all of it is taken
                self.drop()
        return self._rest

    def take(self, rows: int) -> Batch:
        """The next rows of the batch that ``peek`` showed; at most as many as it has."""
        rest = self._rest
        assert isinstance(rest, Batch)
        if rows >= len(rest):
            self._rest, self._skip = None, 0
            return rest
        self._rest = rest.rows(slice(rows, None))
        self._skip += rows
        return rest.rows(slice(0, rows))

    def drop(self) -> None:
        """Go past the event that ``peek`` showed."""
        self._rest, self._skip = None, 0

    def place(self) -> dict[str, Any]:
        if self._rest is None:
            return {"s": self._next, "skip": self._skip}
        return {"s": self._before, "skip": self._skip}

    def seek(self, place: dict[str, Any]) -> None:
        self._next = place.get("s", {})
        self._skip = place.get("skip", 0)
        self._rest = None
        self.source.seek(self._next)
        self._events = iter(self.source)


class Mapped:
    """A stream whose events are those of another, each changed (or left out: None) by a pure function."""

    def __init__(self, spec: StreamSpec, source: Stream, function: Callable[[Event], Event | None]) -> None:
        self.spec = spec
        self._source = source
        self._function = function

    def __iter__(self) -> Iterator[Event]:
        for event in self._source:
            changed = self._function(event)
            if changed is not None:
                yield changed

    def cursor(self) -> dict[str, Any]:
        return self._source.cursor()

    def seek(self, cursor: dict[str, Any]) -> None:
        self._source.seek(cursor)


def uniform(seed: int, rows: Array, lane: int | Array = 0) -> Array:
    """Numbers in [0, 1), one per row (int64[B]) and lane, by SplitMix64 (Steele, Lea, Flood 2014).

    A lane array of shape [d] gives float64[B, d].
    """
    rows = np.asarray(rows).astype(np.uint64)
    lanes = np.asarray(lane).astype(np.uint64)
    with np.errstate(over="ignore"):
        key = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15))
        z = _mix(rows * np.uint64(0x9E3779B97F4A7C15) + key)
        if lanes.ndim:
            z = z[:, None]
        z = _mix(z ^ _mix(lanes * np.uint64(0xD1B54A32D192ED03) + np.uint64(1)))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: Array) -> Array:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def normal(seed: int, rows: Array, lane: int | Array = 0) -> Array:
    """Standard normal numbers, one per row and lane, by Box and Muller's formula."""
    lanes = 2 * np.asarray(lane)
    radius = np.sqrt(-2.0 * np.log1p(-uniform(seed, rows, lanes)))
    return radius * np.cos(2.0 * np.pi * uniform(seed, rows, lanes + 1))


@dataclass(frozen=True, slots=True)
class Chance:
    """Numbers for rows with these ids (int64[B]), as many per row as a shape holds; other lanes, other numbers."""

    seed: int
    rows: Array

    def uniform(self, *shape: int, lane: int = 0) -> Array:
        """float64[B, *shape] in [0, 1)."""
        lanes = np.arange(lane, lane + int(np.prod(shape)))
        return uniform(self.seed, self.rows, lanes).reshape(len(self.rows), *shape)

    def normal(self, *shape: int, lane: int = 0) -> Array:
        """float64[B, *shape], standard normal."""
        lanes = np.arange(lane, lane + int(np.prod(shape)))
        return normal(self.seed, self.rows, lanes).reshape(len(self.rows), *shape)


def permutation(seed: int, rows: Array) -> Array:
    """An order of the rows (int64[B] ids), by their hashes."""
    return np.argsort(uniform(seed, rows), kind="stable")


def same_columns(specs: Sequence[StreamSpec]) -> bool:
    """Whether the rows of several streams fit under one spec."""
    return len({(s.columns, s.target, s.shape, s.text and s.text.tokenizer) for s in specs}) == 1
