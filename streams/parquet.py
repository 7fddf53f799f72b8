"""Parquet as a table reader: one row group at a time, in record batches. Needs pyarrow (the extra ``tabular``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .sources import BLOCK, Position
from .spec import InputError
from .table import Raw


class Parquet:
    """Rows of a parquet file in file order. A position is the row group, the rows to skip in it, and the row number."""

    start: ClassVar[Position] = {"group": 0, "skip": 0, "row": 0}

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise InputError(f'{path}: parquet needs pyarrow: pip install "driftway[tabular]"') from None
        self.name, self.path = path.name, path
        self._broken = (pa.ArrowException, OSError)
        try:
            with pq.ParquetFile(path) as file:
                schema, self.length = file.schema_arrow, file.metadata.num_rows
                self._groups = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
        except self._broken as error:
            raise InputError(f"{path}: not a readable parquet file ({_one_line(error)})") from None
        for column in schema:
            if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
                raise InputError(
                    f"{path}: column {column.name!r} holds {column.type}; cells must be numbers, text or dates"
                )
        if self.length == 0:
            raise InputError(f"{path}: the file has no rows")
        self.names = tuple(schema.names)
        self._batches: Iterator[Any] | None = None
        self._at: tuple[int, int] | None = None

    def read(self, at: Position) -> Raw:
        group, skip = at["group"], at["skip"]
        try:
            if self._batches is None or self._at != (group, skip):
                self._batches = self._open(group, skip)
            batch = next(self._batches)
        except self._broken as error:
            raise InputError(f"{self.path}: damaged behind row {at['row']} ({_one_line(error)})") from None
        taken = skip + batch.num_rows
        position = (group, taken) if taken < self._groups[group] else (group + 1, 0)
        self._at = position if position[1] else None
        rows = np.arange(at["row"], at["row"] + batch.num_rows)
        more = at["row"] + batch.num_rows < (self.length or 0)
        following = {"group": position[0], "skip": position[1], "row": int(rows[-1]) + 1} if more else None
        return Raw(rows, [_cells(column) for column in batch.columns], {}, following)

    def _open(self, group: int, skip: int) -> Iterator[Any]:
        """The record batches of one row group, from a row on that is a multiple of BLOCK."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path) as file:
            for k, batch in enumerate(file.iter_batches(BLOCK, row_groups=[group], use_threads=False)):
                if k * BLOCK >= skip:
                    yield batch


def _cells(column: Any) -> Sequence[Any]:
    """Numbers without nulls as an array, everything else as Python values."""
    import pyarrow as pa

    if column.null_count == 0 and (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return column.to_numpy(zero_copy_only=False)
    return column.to_pylist()


def _one_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:120]
