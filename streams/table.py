"""Tables whose cells are text or mixed values: what each column is, settled once, and rows read to that plan.

A ``Reader`` (one per format) hands out raw blocks of cells; ``settle`` decides from a prefix of them (or from a given
spec) what the columns mean; ``TableBlocks`` turns raw blocks into events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from .cells import MISSING, category, is_missing, moment, number, numeral, to_codes, to_moments, to_numbers
from .events import NO_LABEL, Array
from .sources import Block, MissingLabel, Position, Screen
from .spec import MAX_CLASSES, Column, InputError, StreamSpec

CLEAR = 0.9
"""A prefix column is numeric (or a date) when at least this share of its cells can be read as such."""

MANY = 100
"""Numeric labels with more distinct values than this in the prefix are a regression target."""

Kind = Literal["number", "moment", "nominal"]


class Raw(NamedTuple):
    """Rows of cells as a format gives them.

    rows: int64[B] row numbers from 0, blank and broken rows counted. columns: one sequence of B cells per column of the
    reader. bad: row number -> reason, for rows that are not among ``rows``. following: where the next block starts.
    plain: no text cell holds an underscore (so that ``float`` may be trusted).
    """

    rows: Array
    columns: Sequence[Sequence[Any]]
    bad: dict[int, str]
    following: Position | None
    plain: bool = False


class Reader(Protocol):
    """One format: the column names, and raw blocks by position."""

    name: str
    names: tuple[str, ...]
    length: int | None

    @property
    def start(self) -> Position: ...

    def read(self, at: Position) -> Raw: ...


@dataclass(frozen=True)
class Rules:
    """How the columns of a table are settled when no spec says it. See ``FileParams`` for the meaning of each."""

    target: Literal["auto", "classification", "regression"] = "auto"
    prefix: int = 1000
    nominal: tuple[str, ...] = ()
    open: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    missing: bool = True
    missing_label: MissingLabel = "reject"


@dataclass
class Plan:
    """Where each feature is found and how its cells are read; classes may grow where ``growing``."""

    spec: StreamSpec
    sources: list[int]
    kinds: list[Kind]
    codes: list[dict[str, int]]
    label: int
    classes: dict[str, int] = field(default_factory=dict)
    growing: bool = False
    missing_label: MissingLabel = "reject"


def find_column(label: str | int | None, names: Sequence[str], source: str) -> int:
    """The label's column: by name, by number (from 0, or from the end if negative), or the last. Raises InputError."""
    if label is None:
        return len(names) - 1
    if label in names:
        return list(names).index(str(label))
    try:
        j = int(label)
    except ValueError:
        j = len(names)
    if -len(names) <= j < len(names):
        return j % len(names)
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    raise InputError(f"{source}: no column {label!r}; the columns are {shown}")


def _grew_late(cells: Sequence[Any]) -> bool:
    """Whether the second half of the prefix brought a category that the first half had not."""
    half = len(cells) // 2
    first = {category(c) for c in cells[:half] if not is_missing(c)}
    return any(not is_missing(c) and category(c) not in first for c in cells[half:])


def settle(reader: Reader, label: str | int | None, rules: Rules) -> Plan:
    """Decide from the first ``rules.prefix`` rows what every column is. Raises InputError where no row can be read."""
    cells = _prefix(reader, rules.prefix)
    target = find_column(label, reader.names, reader.name)
    for wanted in (*rules.nominal, *rules.open, *rules.drop):
        find_column(wanted, reader.names, reader.name)
    if len(reader.names) < 2:
        raise InputError(
            f"{reader.name}: only one column ({reader.names[0]}); a label and at least one feature are needed"
        )
    columns, sources, kinds, codes = [], [], [], []
    for j, name in enumerate(reader.names):
        if j == target or name in rules.drop:
            continue
        empty = all(map(is_missing, cells[j]))  # then any text may come: no category is known
        kind: Kind = "nominal" if empty or name in rules.nominal else _kind_of(cells[j])
        names = _ordered({category(c) for c in cells[j] if not is_missing(c)}) if kind == "nominal" else None
        still_growing = names is not None and (name in rules.open or empty or _grew_late(cells[j]))
        columns.append(Column(name, names, open=still_growing, missing=rules.missing))
        sources.append(j)
        kinds.append(kind)
        codes.append({n: k for k, n in enumerate(names or ())})
    regression = is_regression(cells[target], rules)
    classes, growing = ((), False) if regression else classes_of(cells[target], rules, reader.name)
    spec = StreamSpec(
        reader.name,
        tuple(columns),
        target="regression" if regression else "classification",
        target_name=reader.names[target],
        classes=None if regression or growing else classes,
        length=reader.length,
        notes={"class_names": list(classes)} if growing else {},
    )
    known = {n: k for k, n in enumerate(classes)}
    return Plan(spec, sources, kinds, codes, target, known, growing, rules.missing_label)


def follow(reader: Reader, spec: StreamSpec, missing_label: MissingLabel = "reject") -> Plan:
    """The plan that a given spec asks for; columns are found by name. Raises InputError for one that is not there."""
    sources = [find_column(c.name, reader.names, reader.name) for c in spec.columns]
    label = find_column(spec.target_name, reader.names, reader.name)
    kinds: list[Kind] = ["number" if c.categories is None else "nominal" for c in spec.columns]
    codes = [{n: k for k, n in enumerate(c.categories or ())} for c in spec.columns]
    growing = spec.target == "classification" and spec.classes is None
    known = {n: k for k, n in enumerate(spec.classes or ())}
    if growing:
        spec = replace(spec, notes={**spec.notes, "class_names": []})
    return Plan(spec, sources, kinds, codes, label, known, growing, missing_label)


def _prefix(reader: Reader, rows: int) -> list[list[Any]]:
    """The cells of the first rows that can be read, by column."""
    cells: list[list[Any]] = [[] for _ in reader.names]
    at: Position | None = reader.start
    seen, reason = 0, "it has no rows"
    while at is not None and seen < rows:
        raw = reader.read(at)
        for column, more in zip(cells, raw.columns, strict=True):
            column.extend(np.asarray(more).tolist() if isinstance(more, np.ndarray) else more)
        seen += len(raw.rows) + len(raw.bad)
        for row, text in list(raw.bad.items())[:1]:
            reason = f"row {row}: {text}"
        at = raw.following
    if not cells[0]:
        raise InputError(f"{reader.name}: no readable row ({reason})")
    return [column[:rows] for column in cells]


def _kind_of(cells: Sequence[Any]) -> Kind:
    present = [c for c in cells if not is_missing(c)]
    if _readable(present, number) >= CLEAR * len(present):
        return "number"
    return "moment" if _readable(present, moment) >= CLEAR * len(present) else "nominal"


def _readable(cells: Sequence[Any], read: Any) -> int:
    count = 0
    for cell in cells:
        try:
            read(cell)
            count += 1
        except (ValueError, TypeError, OverflowError):
            continue
    return count


def is_regression(labels: Sequence[Any], rules: Rules) -> bool:
    if rules.target != "auto":
        return rules.target == "regression"
    present = [c for c in labels if not is_missing(c) and not isinstance(c, bool)]
    if rules.classes or not present or _kind_of(present) != "number":
        return False
    values = {v for v in to_numbers(present)[0].tolist() if np.isfinite(v)}
    return len(values) > MANY or (len(values) > 10 and any(v % 1 for v in values))


def classes_of(labels: Sequence[Any], rules: Rules, source: str) -> tuple[tuple[str, ...], bool]:
    """Class names in code order, and whether later ones may join."""
    if rules.classes and rules.classes != ("open",):
        return rules.classes, False
    present = [category(c) for c in labels if not is_missing(c)]
    if present and _kind_of(present) == "number":
        present = [n for n in map(numeral, present) if _readable([n], number)]
    names = _ordered(set(present))
    if len(names) > MAX_CLASSES:
        raise InputError(f"{source}: more than {MAX_CLASSES} classes in the label column")
    return names, bool(rules.classes)


def _ordered(names: set[str]) -> tuple[str, ...]:
    """Numbers in order of size, other text by alphabet."""
    numeric = _readable(list(names), number) == len(names)
    return tuple(sorted(names, key=lambda n: (float(n), n) if numeric else (0.0, n)))


class TableBlocks:
    """Events from raw blocks by a plan. Names of classes that joined on the way are part of the position."""

    def __init__(self, reader: Reader, plan: Plan) -> None:
        self.reader, self.plan = reader, plan
        self.start: Position = reader.start
        self._screen = Screen(plan.spec, plan.missing_label)
        self._first = dict(plan.classes)

    def read(self, at: Position) -> Block:
        raw = self.reader.read(at)
        if self.plan.growing:
            self._regrow(at.get("classes", []))
        faults = dict(raw.bad)
        x = self._features(raw, faults)
        y = self._labels(raw, faults)
        events = self._screen(raw.rows, x, y, faults)
        following = raw.following
        if following is not None and self.plan.growing:
            following = {**following, "classes": list(self.plan.classes)[len(self._first) :]}
        return Block(events, following)

    def _features(self, raw: Raw, faults: dict[int, str]) -> Array:
        plan = self.plan
        x = np.empty((len(raw.rows), len(plan.sources)))
        for j, (source, kind) in enumerate(zip(plan.sources, plan.kinds, strict=True)):
            column, cells = plan.spec.columns[j], raw.columns[source]
            if kind == "number":
                x[:, j], wrong = to_numbers(cells, raw.plain)
            elif kind == "moment":
                x[:, j], wrong = to_moments(cells)
            else:
                x[:, j], wrong = to_codes(cells, plan.codes[j], len(plan.codes[j]) if column.open else None)
            for i, text in wrong.items():
                faults.setdefault(int(raw.rows[i]), f"column {column.name!r}: {text}")
        return x

    def _labels(self, raw: Raw, faults: dict[int, str]) -> Array:
        plan, cells = self.plan, raw.columns[self.plan.label]
        if plan.spec.target == "regression":
            y, wrong = to_numbers(cells, raw.plain)
        else:
            y, wrong = self._class_codes(cells)
        for i, text in wrong.items():
            faults.setdefault(int(raw.rows[i]), f"label {plan.spec.target_name!r}: {text}")
        return y

    def _class_codes(self, cells: Sequence[Any]) -> tuple[Array, dict[int, str]]:
        classes = self.plan.classes
        if isinstance(cells, np.ndarray):
            cells = cells.tolist()
        try:
            return np.array([classes[c] for c in cells], dtype=np.int64), {}
        except (KeyError, TypeError):
            pass
        y, wrong = np.full(len(cells), NO_LABEL, dtype=np.int64), {}
        for i, cell in enumerate(cells):
            name = category(cell)
            if name not in classes and (is_missing(cell) or name in MISSING):
                continue
            code = classes.get(name)
            if code is None:
                code = classes.get(numeral(name))
            if code is None and self.plan.growing and len(classes) < MAX_CLASSES:
                code = classes[numeral(name)] = len(classes)
                self.plan.spec.notes["class_names"].append(numeral(name))
            if code is None:
                wrong[i] = (
                    f"{name[:40]!r} is not one of the {len(classes)} known classes (classes=open lets new ones join)"
                )
            else:
                y[i] = code
        return y, wrong

    def _regrow(self, extra: list[str]) -> None:
        """Know exactly the classes that were known at this position (a seek may go back before some joined)."""
        self.plan.classes = {**self._first, **{n: len(self._first) + k for k, n in enumerate(extra)}}
        self.plan.spec.notes["class_names"][:] = list(self.plan.classes)
