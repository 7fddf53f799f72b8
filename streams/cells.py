"""From the cells of one column (text, numbers, None) to float64 values, with a reason for every cell that cannot be
read.

The whole column is tried at once; only where that fails are the cells looked at one by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

import numpy as np

from .events import Array

MISSING = frozenset({"", "?", "NA", "N/A", "NaN", "nan", "null", "NULL"})
"""Cells that mean "no value", after blanks around them are taken away."""

Faults = dict[int, str]


def is_missing(cell: Any) -> bool:
    if cell is None:
        return True
    return cell.strip() in MISSING if isinstance(cell, str) else isinstance(cell, float) and math.isnan(cell)


def number(cell: Any) -> float:
    """A cell as a number, NaN where missing. Raises ValueError for anything else (``1_000`` too)."""
    if is_missing(cell):
        return math.nan
    if isinstance(cell, str):
        if "_" in cell:
            raise ValueError(cell)
        return float(cell)
    if isinstance(cell, (list, dict, bytes)):
        raise ValueError(cell)
    return float(cell)


def moment(cell: Any) -> float:
    """An ISO date or time as seconds since 1970 (no zone: UTC), NaN where missing. Raises ValueError."""
    if is_missing(cell):
        return math.nan
    if isinstance(cell, str):
        cell = datetime.fromisoformat(cell.strip())
    if isinstance(cell, date) and not isinstance(cell, datetime):
        cell = datetime(cell.year, cell.month, cell.day)
    if not isinstance(cell, datetime):
        raise ValueError(cell)
    return (cell if cell.tzinfo else cell.replace(tzinfo=UTC)).timestamp()


def category(cell: Any) -> str:
    """The name of a cell of a nominal column: text without blanks around it, whole numbers without a fraction."""
    if isinstance(cell, str):
        return cell.strip()
    if isinstance(cell, (float, np.floating)) and float(cell).is_integer():
        return str(int(cell))
    return str(cell)


def numeral(name: str) -> str:
    """One spelling for one number (``1``, ``1.0`` and ``01`` are the class "1"); other text as it is."""
    try:
        return category(number(name))
    except ValueError:
        return name


def to_numbers(cells: Sequence[Any], plain: bool = False) -> tuple[Array, Faults]:
    """float64[B], NaN where missing or faulty. ``plain`` promises that no text cell holds an underscore."""
    if isinstance(cells, np.ndarray):
        return cells.astype(np.float64), {}
    if plain:
        try:
            return np.array(list(map(float, cells)), dtype=np.float64), {}
        except (ValueError, TypeError):
            pass
    return _one_by_one(cells, number, "a number")


def to_moments(cells: Sequence[Any]) -> tuple[Array, Faults]:
    """float64[B] seconds since 1970, NaN where missing or faulty."""
    return _one_by_one(cells, moment, "a date or time")


def to_codes(cells: Sequence[Any], codes: Mapping[str, int], other: float | None) -> tuple[Array, Faults]:
    """float64[B] category codes, NaN where missing. An unknown category gets the code ``other``; None makes it a
    fault.
    """
    if isinstance(cells, np.ndarray):
        cells = cells.tolist()
    try:
        return np.array([codes[c] for c in cells], dtype=np.float64), {}
    except (KeyError, TypeError):
        pass
    values, faults = np.full(len(cells), np.nan), {}
    for i, cell in enumerate(cells):
        if is_missing(cell) and category(cell) not in codes:
            continue
        code = codes.get(category(cell), other)
        if code is None:
            faults[i] = f"{_short(cell)} is not one of its categories"
        else:
            values[i] = code
    return values, faults


def _one_by_one(cells: Sequence[Any], read: Any, what: str) -> tuple[Array, Faults]:
    values, faults = np.full(len(cells), np.nan), {}
    for i, cell in enumerate(cells):
        try:
            values[i] = read(cell)
        except (ValueError, TypeError, OverflowError):
            faults[i] = f"{_short(cell)} is not {what}"
    return values, faults


def _short(cell: Any) -> str:
    text = repr(cell)
    return text if len(text) <= 40 else text[:37] + "..."
