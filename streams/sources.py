"""Where events come from: blocks of rows read at a position, with a cursor that is one small JSON value.

Every source reads a ``Block``: the events at a position and the position that follows. ``BlockStream`` turns that into
a stream which can be seeked to any event, so a source need only be a pure function of the position it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np

from .events import NO_LABEL, Array, Batch, Boundary, Event, Rejected
from .spec import MAX_CLASSES, Column, InputError, StreamSpec

BLOCK = 512
"""Rows that a source hands out at once; block edges lie at fixed row numbers."""

Position = dict[str, Any]
MissingLabel = Literal["reject", "keep"]


class Block(NamedTuple):
    """The events at one position, and where the next block starts (None at the end)."""

    events: list[Event]
    following: Position | None


class Blocks(Protocol):
    """Reads blocks. ``read`` must return the same events whenever it is given the same position."""

    @property
    def start(self) -> Position: ...

    def read(self, at: Position) -> Block: ...


class BlockStream:
    """A stream over ``Blocks``. Its cursor is ``{"at": position, "done": events of that block already seen}``.

    ``seek({})`` goes back to the first event. One stream has one cursor: iterating moves it, and a second ``iter``
    goes on where the first one stopped.
    """

    def __init__(self, spec: StreamSpec, blocks: Blocks) -> None:
        self.spec = spec
        self._blocks = blocks
        self._at: Position | None = blocks.start
        self._done = 0

    def __iter__(self) -> Iterator[Event]:
        while self._at is not None:
            events, following = self._blocks.read(self._at)
            for k in range(self._done, len(events) - 1):
                self._done = k + 1
                yield events[k]
            last = events[-1] if self._done < len(events) else None
            self._at, self._done = following, 0
            if last is not None:
                yield last

    def cursor(self) -> dict[str, Any]:
        return {"at": self._at, "done": self._done}

    def seek(self, cursor: dict[str, Any]) -> None:
        self._at, self._done = cursor.get("at", self._blocks.start), cursor.get("done", 0)


class Screen:
    """Sorts rows into good and bad: the last check before a row becomes part of a batch.

    A row is rejected for an infinite value, for a missing value in a column that allows none, for a code that a closed
    nominal column does not have, and for a label that is missing, infinite or out of range. With
    ``missing_label="keep"`` rows without a label pass.
    """

    def __init__(self, spec: StreamSpec, missing_label: MissingLabel = "reject") -> None:
        self.spec = spec
        self.keep = missing_label == "keep"
        self.limits = np.array([np.inf if c.categories is None or c.open else len(c.categories) for c in spec.columns])
        self.required = np.array([not c.missing for c in spec.columns], dtype=bool)
        self.nominal = np.flatnonzero([c.categories is not None for c in spec.columns])
        self.strict = bool(self.required.any())
        self.classes = MAX_CLASSES if spec.classes is None else len(spec.classes)

    def __call__(self, ids: Array, x: Array, y: Array | None, bad: Mapping[int, str]) -> list[Event]:
        """A ``Rejected`` for every bad row of the block, then one batch of the good ones.

        ids: int64[B]; x: float64[B, d]; y: int64[B] or float64[B]; bad: reasons by row id that are known already
        (rows that could not be parsed need not be in ``ids``).
        """
        reasons = dict(bad)
        for row, reason in self._faults(x, y):
            reasons.setdefault(int(ids[row]), reason)
        events: list[Event] = [Rejected(row, reasons[row], float(row)) for row in sorted(reasons)]
        if reasons:
            good = ~np.isin(ids, np.fromiter(reasons, dtype=np.int64))
            ids, x, y = ids[good], x[good], None if y is None else y[good]
        if len(ids):
            events.append(Batch(ids, x, float(ids[0]), y))
        return events

    def _faults(self, x: Array, y: Array | None) -> Iterator[tuple[int, str]]:
        """(row of the block, reason), the label's fault last."""
        columns = self.spec.columns
        if not np.isfinite(x).all():
            for row, j in np.argwhere(np.isinf(x)):
                yield int(row), f"column {columns[j].name!r}: the value is infinite"
            if self.strict:
                for row, j in np.argwhere(np.isnan(x) & self.required):
                    yield int(row), f"column {columns[j].name!r}: the value is missing"
        if len(self.nominal):
            codes = x[:, self.nominal]
            with np.errstate(invalid="ignore"):
                wrong = (codes < 0) | (codes >= self.limits[self.nominal]) | (codes != np.floor(codes))
            for row, k in np.argwhere(wrong & np.isfinite(codes)):
                yield int(row), f"column {columns[self.nominal[k]].name!r}: {codes[row, k]:g} is no category code"
        if y is not None:
            yield from self._label_faults(y)

    def _label_faults(self, y: Array) -> Iterator[tuple[int, str]]:
        name = f"label {self.spec.target_name!r}"
        if self.spec.target == "regression":
            unknown = np.isnan(y)
            for row in np.flatnonzero(np.isinf(y)):
                yield int(row), f"{name}: the value is infinite"
        else:
            unknown = y == NO_LABEL
            for row in np.flatnonzero(((y < 0) & ~unknown) | (y >= self.classes)):
                yield int(row), f"{name}: class code {y[row]} is out of range 0..{self.classes - 1}"
        if not self.keep:
            for row in np.flatnonzero(unknown):
                yield int(row), f"{name}: the value is missing"


class ArrayBlocks:
    """Blocks of an in-memory table, cut at multiples of ``BLOCK`` and at the boundaries."""

    start: ClassVar[Position] = {"row": 0}

    def __init__(self, x: Array, y: Array | None, screen: Screen, boundaries: Mapping[int, str]) -> None:
        self.x, self.y, self.screen = x, y, screen
        self.boundaries = dict(boundaries)
        self.cuts = np.array(sorted(self.boundaries), dtype=np.int64)

    def read(self, at: Position) -> Block:
        row, n = int(at["row"]), len(self.x)
        if row >= n:
            return Block([], None)
        stop = min((row // BLOCK + 1) * BLOCK, n)
        later = np.searchsorted(self.cuts, row, side="right")
        if later < len(self.cuts):
            stop = min(stop, int(self.cuts[later]))
        y = None if self.y is None else self.y[row:stop]
        events: list[Event] = [Boundary(self.boundaries[row], float(row))] if row in self.boundaries else []
        x = np.asarray(self.x[row:stop], dtype=np.float64).reshape(stop - row, -1)
        events += self.screen(np.arange(row, stop, dtype=np.int64), x, y, {})
        return Block(events, {"row": stop} if stop < n else None)


def from_arrays(
    x: Array,
    y: Array | None,
    *,
    spec: StreamSpec | None = None,
    name: str = "arrays",
    columns: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    target: Literal["auto", "classification", "regression"] = "auto",
    boundaries: Mapping[int, str] | None = None,
    missing_label: MissingLabel = "reject",
) -> BlockStream:
    """A table in memory as a stream; the row number is the id and the time.

    x: numbers[N, d] (or [N, ...], images: flattened, with the shape kept in the spec); any numeric dtype, turned into
    float64 block by block. y: [N] class codes (integers from 0; -1 unknown), or numbers for regression (NaN unknown),
    or None for rows without labels. ``target="auto"``: fractional numbers mean regression, everything else
    classification. boundaries: row number -> name of a known change just before that row.
    Raises ``InputError`` when lengths or widths do not fit.

    >>> import driftway as dw, numpy as np
    >>> stream = dw.from_arrays(np.eye(3), np.array([0, 1, 1]))
    >>> [len(batch) for batch in stream], stream.spec.classes
    ([3], ('0', '1'))
    """
    x = np.asarray(x)
    y = None if y is None else np.asarray(y)
    boundaries = {} if boundaries is None else {int(r): str(v) for r, v in boundaries.items()}
    if x.ndim < 2 or x.dtype.kind not in "biuf":
        raise InputError(f"{name}: x must be numbers of shape [rows, columns], not {x.dtype}{list(x.shape)}")
    if y is not None and (y.shape != (len(x),) or y.dtype.kind not in "biuf"):
        raise InputError(f"{name}: x has {len(x)} rows but y is {y.dtype}{list(y.shape)}")
    if y is not None and target == "auto" and spec is None:
        target = "regression" if y.dtype.kind == "f" and np.any(y[np.isfinite(y)] % 1) else "classification"
    regression = (target if spec is None else spec.target) == "regression"
    if y is not None:
        y = y.astype(np.float64) if regression else _codes(y)
    if spec is None:
        if classes is None and y is not None and not regression:
            classes = [str(k) for k in range(int(y.max(initial=-1)) + 1)]
        spec = StreamSpec(
            name,
            _named_columns(x, columns, name),
            target="regression" if regression else "classification",
            classes=None if classes is None else tuple(classes),
            length=len(x),
            drifts=tuple(sorted(r for r in boundaries if 0 < r < len(x))),
            shape=x.shape[1:] if x.ndim > 2 else None,
        )
    elif spec.n_features != int(np.prod(x.shape[1:])):
        raise InputError(f"{name}: x has {int(np.prod(x.shape[1:]))} columns but its spec has {spec.n_features}")
    return BlockStream(spec, ArrayBlocks(x, y, Screen(spec, missing_label), boundaries))


def _named_columns(x: Array, names: Sequence[str] | None, source: str) -> tuple[Column, ...]:
    width = int(np.prod(x.shape[1:]))
    names = [f"x{j}" for j in range(width)] if names is None else list(names)
    if len(names) != width:
        raise InputError(f"{source}: {len(names)} column names for {width} columns")
    return tuple(Column(str(n)) for n in names)


def _codes(y: Array) -> Array:
    """Class codes as int64; NaN and fractions become codes that the screen rejects."""
    if y.dtype.kind != "f":
        return y.astype(np.int64)
    whole = np.where(np.isnan(y), NO_LABEL, np.where(y % 1 == 0, y, -2))
    return np.clip(whole, -2, MAX_CLASSES * 2).astype(np.int64)
