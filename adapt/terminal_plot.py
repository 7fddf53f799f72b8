"""Curves in a terminal, out of characters."""

from __future__ import annotations

from collections.abc import Sequence

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a braille character by row and column of its dots."""


def draw(
    curves: Sequence[Sequence[float | None]], width: int, height: int, *, fine: bool = True
) -> tuple[list[list[tuple[str, int]]], float, float]:
    """Curves as characters: height lines of width cells ``(character, number of the curve, -1 for none)``.

    Points are spread over the width and averaged where several meet. Of two curves in one cell the first is seen.
    fine: braille, eight dots a cell; else one ``*`` or ``-`` a cell. Also returns the values of the lowest and the
    highest line.
    """
    columns, rows = (2 * width, 4 * height) if fine else (width, height)
    spread = [_spread(curve, columns) for curve in curves]
    known = [v for curve in spread for v in curve if v is not None]
    low, high = min(known), max(known)
    cells = [[(" ", -1)] * width for _ in range(height)]
    for layer in reversed(range(len(curves))):
        bits: dict[tuple[int, int], int] = {}
        last: int | None = None
        for column, value in enumerate(spread[layer]):
            if value is None:
                last = None
                continue
            row = round((high - value) / (high - low or 1.0) * (rows - 1))
            ends = (row,) if last is None or last == row else (row, last + (1 if row > last else -1))
            for dot in range(min(ends), max(ends) + 1):
                cell = (dot // 4, column // 2) if fine else (dot, column)
                bits[cell] = bits.get(cell, 0) | (_DOTS[dot % 4][column % 2] if fine else 1)
            last = row
        for (row, column), mask in bits.items():
            cells[row][column] = (chr(0x2800 + mask) if fine else "*-"[min(layer, 1)], layer)
    return cells, low, high


def _spread(values: Sequence[float | None], columns: int) -> list[float | None]:
    """Values as one per column: averaged where there are more of them, repeated where there are fewer."""
    n, spread = len(values), []
    for column in range(columns):
        start = column * n // columns
        part = [v for v in values[start : max(start + 1, (column + 1) * n // columns)] if v is not None]
        spread.append(sum(part) / len(part) if part else None)
    return spread
