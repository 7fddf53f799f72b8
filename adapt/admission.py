"""The door of the loop: which rows may pass, and why the others may not.

A batch that is sound in every row costs one compiled call. Only a batch with a fault in it is looked at row by row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..models.compiled import compiled
from ..streams import MAX_CLASSES, NO_LABEL, Array, Batch, StreamSpec

_NO_CODES = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Fault:
    """One refused row: its id, or its position in the batch where there is no usable id, and the reason."""

    row: int
    reason: str


@compiled
def _all_sound(ids: Array, highest: int, x: Array, rules: Array, codes: Array, n_classes: int) -> bool:
    """Whether ids rise above ``highest``, every cell obeys its column's rule and every code is a class or unknown.

    rules: int64[d, 2], per column the number of categories (0: numeric, -1: open nominal) and whether NaN is allowed.
    """
    for i in range(ids.shape[0]):
        if ids[i] <= highest:
            return False
        highest = ids[i]
    for code in codes:
        if code < -1 or code >= n_classes:
            return False
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            value = x[i, j]
            if np.isnan(value):
                if rules[j, 1] == 0:
                    return False
            elif np.isinf(value) or (
                rules[j, 0] != 0
                and (value < 0 or value != np.floor(value) or (rules[j, 0] > 0 and value >= rules[j, 0]))
            ):
                return False
    return True


class Admission:
    """Checks batches and labels against a stream's spec. Keeps nothing but the spec's rules."""

    def __init__(self, spec: StreamSpec) -> None:
        self.spec = spec
        self.classification = spec.target == "classification"
        self.n_classes = spec.n_classes if spec.n_classes is not None else MAX_CLASSES
        sizes = [0 if c.categories is None else -1 if c.open else len(c.categories) for c in spec.columns]
        if spec.text is not None:
            sizes = spec.text.limits().tolist()
        missing = [c.missing for c in spec.columns]
        self.rules = np.array([sizes, missing], np.int64).T.reshape(len(spec.columns), 2).copy()

    def sound(self, batch: Batch, highest: int) -> bool:
        """The quick answer: every row may pass as it is, and every id is new because it is above ``highest``."""
        ids, x, y = batch.ids, batch.x, batch.y
        if (
            type(x) is not np.ndarray
            or x.dtype != np.float64
            or x.ndim != 2
            or x.shape[1] != len(self.rules)
            or not 0 < len(ids) == x.shape[0]
            or ids.dtype != np.int64
        ):
            return False
        if y is None:
            codes = _NO_CODES
        elif len(y) != len(ids):
            return False
        elif self.classification:
            if y.dtype != np.int64:
                return False
            codes = y
        elif y.dtype != np.float64 or np.isinf(y).any():
            return False
        else:
            codes = _NO_CODES
        return bool(_all_sound(ids, highest, x, self.rules, codes, self.n_classes))

    def sift(self, batch: Batch, known: Array) -> tuple[Batch, Array, list[Fault]]:
        """The sound rows (as float64 and int64), their positions, and a fault for every other one.

        known: bool[B], whether the id of the row was met before.
        """
        ids, fault = _integers(batch.ids)
        if fault or ids.ndim != 1:
            return _nothing(batch), _NO_CODES, [Fault(i, "id: not an integer") for i in range(_length(batch.ids))]
        reasons: list[str | None] = [None] * len(ids)
        x = self._sift_features(batch.x, reasons)
        y = None if batch.y is None else self.sift_labels(batch.y, reasons)
        seen: set[int] = set()
        for i, row in enumerate(ids.tolist()):
            if row in seen or (i < len(known) and known[i]):
                reasons[i] = "duplicate id"
            seen.add(row)
        keep = np.array([i for i, reason in enumerate(reasons) if reason is None], np.int64)
        faults = [Fault(int(ids[i]), reason) for i, reason in enumerate(reasons) if reason is not None]
        return Batch(ids, x, batch.time, y).rows(keep) if len(keep) else _nothing(batch), keep, faults

    def _sift_features(self, x: object, reasons: list[str | None]) -> Array | Mapping[str, Array]:
        if isinstance(x, Mapping):
            for name, part in x.items():
                _refuse_unless_length(len(part), name, reasons)
                if len(part) == len(reasons) and np.asarray(part).dtype.kind == "f":
                    finite = np.isfinite(part).reshape(len(part), -1).all(axis=1)
                    _note(~finite, f"feature {name}: not finite", reasons)
            return x
        try:
            table = np.asarray(x, np.float64)
        except (TypeError, ValueError):
            _note(np.ones(len(reasons), bool), f"features: not numbers (dtype {np.asarray(x).dtype})", reasons)
            return np.zeros((len(reasons), len(self.rules)))
        if table.ndim != 2 or table.shape[1] != len(self.rules):
            got = table.shape[1] if table.ndim == 2 else f"shape {table.shape}"
            _note(np.ones(len(reasons), bool), f"wrong width: {got} features, expected {len(self.rules)}", reasons)
            return np.zeros((len(reasons), len(self.rules)))
        _refuse_unless_length(len(table), "features", reasons)
        if len(table) != len(reasons):
            return np.zeros((len(reasons), len(self.rules)))
        for j, column in enumerate(self.spec.columns):
            cells, (size, missing_allowed) = table[:, j], self.rules[j]
            _note(np.isinf(cells), f"column {column.name}: infinite", reasons)
            if not missing_allowed:
                _note(np.isnan(cells), f"column {column.name}: missing value", reasons)
            if size:
                code = (cells >= 0) & (cells == np.floor(cells)) & ((size < 0) | (cells < size))
                what = "unknown category" if self.spec.text is None else f"no whole number below {size}"
                _note(np.isfinite(cells) & ~code, f"column {column.name}: {what}", reasons)
        return table

    def sift_labels(self, y: Array, reasons: list[str | None]) -> Array:
        """Labels in their proper dtype; writes the reason beside each that cannot be one."""
        raw = np.asarray(y)
        unknown: Array = np.full(len(reasons), NO_LABEL if self.classification else np.nan)
        _refuse_unless_length(len(raw) if raw.ndim == 1 else -1, "label", reasons)
        if raw.ndim != 1 or len(raw) != len(reasons):
            return unknown
        try:
            values = raw.astype(np.float64)
        except (TypeError, ValueError):
            _note(np.ones(len(raw), bool), f"label: not a number (dtype {raw.dtype})", reasons)
            return unknown
        _note(np.isinf(values), "label: infinite", reasons)
        if not self.classification:
            return values
        codes = np.where(np.isfinite(values), values, NO_LABEL)
        _note(codes != np.floor(codes), "label: not a class code", reasons)
        outside = (codes < NO_LABEL) | (codes >= self.n_classes)
        _note(outside, f"label out of range: expected 0 to {self.n_classes - 1}", reasons)
        return codes.astype(np.int64)


def _note(bad: Array, reason: str, reasons: list[str | None]) -> None:
    """Write the reason beside every bad row that has none yet."""
    for i in np.flatnonzero(bad):
        reasons[i] = reasons[i] or reason


def _refuse_unless_length(length: int, what: str, reasons: list[str | None]) -> None:
    if length != len(reasons):
        _note(np.ones(len(reasons), bool), f"{what}: {length} rows for {len(reasons)} ids", reasons)


def _integers(ids: object) -> tuple[Array, bool]:
    array = np.asarray(ids)
    if array.dtype.kind in "iu":
        return array.astype(np.int64), False
    return _NO_CODES, True


def _length(ids: object) -> int:
    array = np.asarray(ids)
    return array.shape[0] if array.ndim else 1


def _nothing(batch: Batch) -> Batch:
    return Batch(_NO_CODES, np.empty((0, 0)), batch.time, None)
