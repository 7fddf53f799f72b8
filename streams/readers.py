"""Readers of text tables, line by line in constant memory: delimited text and JSON lines, plain or gzipped."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import weakref
import zlib
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from .cells import number
from .sources import BLOCK, Position
from .spec import InputError
from .table import Raw

LONGEST = 1 << 24
"""Bytes in the longest line that is still taken for a row."""


class Lines:
    """Blocks of lines of a text file. One line is one row; a position is the byte (after decompression) and the row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = self.bom = 0  # bytes of the first line, and of the byte order mark in it
        self._handle: IO[bytes] | None = None
        self._byte = 0

    def first(self) -> str:
        """The first line, which decides the layout. Raises InputError for an empty or binary file."""
        line = self._guarded(lambda handle: handle.readline(LONGEST), {"byte": 0, "row": 0})
        if not line:
            raise InputError(f"{self.path}: the file is empty")
        try:
            text = line.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text or len(line) >= LONGEST:
            raise InputError(f"{self.path}: this is not a text table (binary data in line 1)")
        self.header, self.bom = len(line), 3 if line.startswith(codecs.BOM_UTF8) else 0
        return text.rstrip("\r\n")

    def block(self, at: Position) -> tuple[list[str | None], Position | None]:
        """Up to ``BLOCK`` lines (None where one is not UTF-8 text) and the position behind them.

        A block never ends on a blank line, so that blank lines at the end of the file are no rows.
        """
        lines: list[bytes] = self._guarded(_read_block, at)
        size = sum(map(len, lines))
        self._byte = at["byte"] + size
        following = {"byte": self._byte, "row": at["row"] + len(lines)} if lines else None
        if lines and max(map(len, lines)) >= LONGEST:
            raise InputError(f"{self.path}: a line behind row {at['row']} is longer than {LONGEST >> 20} MiB")
        while lines and lines[-1].isspace():  # only at the end of the file
            lines.pop()
        try:
            text = b"".join(lines).decode("utf-8")
        except UnicodeDecodeError:
            return [_decoded(line) for line in lines], following
        out: list[str | None] = list(text.replace("\r\n", "\n").split("\n"))
        if out[-1] == "":
            out.pop()
        return out, following

    def _guarded(self, read: Any, at: Position) -> Any:
        """Run ``read(handle)`` at a position and turn what goes wrong below into one line."""
        try:
            if self._handle is None:
                raw = gzip.open(self.path, "rb") if self.path.suffix == ".gz" else open(self.path, "rb")  # noqa: SIM115
                self._handle, self._byte = io.BufferedReader(raw, 1 << 16), 0
                weakref.finalize(self, self._handle.close)
            if self._byte != at["byte"]:
                self._handle.seek(at["byte"])
                self._byte = at["byte"]
            result = read(self._handle)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            where = f" in the block from row {at['row']} on" if at["row"] else ""
            raise InputError(f"{self.path}: the gzip data is damaged or ends early{where} ({error})") from None
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error})") from None
        self._byte = -1  # unknown until the caller has counted
        return result


def _read_block(handle: IO[bytes]) -> list[bytes]:
    """BLOCK lines, and more for as long as the last one is blank."""
    lines = list(islice(iter(partial(handle.readline, LONGEST), b""), BLOCK))
    while lines and lines[-1].isspace():
        more = handle.readline(LONGEST)
        if not more:
            break
        lines.append(more)
    return lines


def _decoded(line: bytes) -> str | None:
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        return None


class Delimited:
    """csv, tsv and their kin. A quoted field must end on its own line; rows of another width are bad rows."""

    length: int | None = None

    def __init__(self, path: Path, delimiter: str = "auto", header: Literal["auto", "yes", "no"] = "auto") -> None:
        self.name = path.name
        self._lines = Lines(path)
        first = self._lines.first()
        self._delimiter = _guess_delimiter(first, path) if delimiter == "auto" else delimiter
        cells = self._split(first)
        if isinstance(cells, str):
            raise InputError(f"{path}: line 1: {cells}")
        has_header = header == "yes" or (header == "auto" and _looks_like_header(cells))
        names = [(c.strip() if has_header else "") or f"c{j}" for j, c in enumerate(cells)]
        if len(set(names)) < len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise InputError(f"{path}: the header names column {twice!r} twice (header=no if line 1 is a row)")
        self.names = tuple(names)
        self.start: Position = {"byte": self._lines.header if has_header else self._lines.bom, "row": 0}
        if not self._lines.block(self.start)[0]:
            raise InputError(f"{path}: the file has a header and no rows")

    def read(self, at: Position) -> Raw:
        lines, following = self._lines.block(at)
        width, delimiter = len(self.names), self._delimiter
        whole = None if None in lines else "\n".join(lines)  # type: ignore[arg-type]
        if whole is not None and '"' not in whole and "\0" not in whole:
            rows: list[list[str] | str] = [line.split(delimiter) for line in lines]  # type: ignore[union-attr]
        else:
            rows = ["it is not UTF-8 text" if line is None else self._split(line) for line in lines]
        plain = whole is not None and "_" not in whole
        first = at["row"]
        if rows and set(map(type, rows)) == {list} and set(map(len, rows)) == {width}:
            return Raw(np.arange(first, first + len(rows)), list(zip(*rows, strict=True)), {}, following, plain)
        bad = {}
        for i, row in enumerate(rows):
            if isinstance(row, str):
                bad[first + i] = row
            elif len(row) != width:
                blank = not (lines[i] or "").strip()
                bad[first + i] = "the line is blank" if blank else f"{len(row)} fields instead of {width}"
        good = [i for i in range(len(rows)) if first + i not in bad]
        columns = list(zip(*(rows[i] for i in good), strict=True)) if good else [()] * width
        return Raw(np.array(good, dtype=np.int64) + first, columns, bad, following, plain)

    def _split(self, line: str) -> list[str] | str:
        """The fields of a line, or what is wrong with it."""
        if "\0" in line:
            return "it holds binary data"
        if '"' not in line:
            return line.split(self._delimiter)
        try:
            return next(csv.reader([line], delimiter=self._delimiter, strict=True))
        except csv.Error as error:
            return f"quotes do not match ({error})"


def _guess_delimiter(line: str, path: Path) -> str:
    """By suffix and, for csv, by what the first line holds: comma, else semicolon, tab or bar."""
    if ".tsv" in path.suffixes:
        return "\t"
    return next((d for d in ",;\t|" if d in line), ",")


def _looks_like_header(cells: Sequence[str]) -> bool:
    """None of the cells is a number, and none (but perhaps the first) a missing value."""
    return not any(_is_number(c) for c in cells[not cells[0].strip() :])


def _is_number(cell: str) -> bool:
    """Whether a cell reads as a number or as no value at all."""
    try:
        number(cell)
    except ValueError:
        return False
    return True


class JsonLines:
    """One JSON object a line. Columns are the keys of the first ``prefix`` objects, in order of appearance."""

    length: int | None = None

    def __init__(self, path: Path, prefix: int = 1000) -> None:
        self.name = path.name
        self._lines = Lines(path)
        first = self._lines.first()
        self.start: Position = {"byte": self._lines.bom, "row": 0}
        names: dict[str, None] = {}
        at: Position | None = self.start
        while at is not None and at["row"] < prefix:
            lines, at = self._lines.block(at)
            for line in lines[:prefix]:
                row = _object(line)
                names.update(dict.fromkeys(row) if isinstance(row, dict) else {})
        if not names:
            raise InputError(f"{path}: no JSON object in the first {prefix} lines (line 1: {first[:40]!r})")
        self.names = tuple(names)

    def read(self, at: Position) -> Raw:
        lines, following = self._lines.block(at)
        known, first = set(self.names), at["row"]
        rows, good, bad = [], [], {}
        for i, line in enumerate(lines):
            row = _object(line)
            if isinstance(row, dict) and known.issuperset(row):
                rows.append(row)
                good.append(first + i)
            else:
                extra = [k for k in row if k not in known] if isinstance(row, dict) else []
                bad[first + i] = f"unknown key {extra[0]!r}" if extra else str(row)
        columns = [[row.get(name) for row in rows] for name in self.names]
        return Raw(np.array(good, dtype=np.int64), columns, bad, following)


def _object(line: str | None) -> dict[str, Any] | str:
    """A line's object, or what is wrong with it."""
    import msgspec

    if line is None:
        return "it is not UTF-8 text"
    if not line.strip():
        return "the line is blank"
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError) as error:
        return f"no JSON object ({error})"
