"""Files as streams: csv, tsv, jsonl, parquet and npz, each row an example, row order as time.

Rows are numbered from 0; the header is no row, blank and broken rows are. That number is the row's id and its time.
Everything but npz is read block by block, so memory does not depend on the length of the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .sources import BlockStream, MissingLabel
from .spec import InputError, StreamSpec
from .table import Rules, TableBlocks, follow, settle

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet", ".npz")


@dataclass(frozen=True)
class FileParams:
    """header: is the first line a header (auto: yes if none of its cells is a number).
    delimiter: field separator of delimited text (auto: the first of , ; tab | that is in line 1). target: kind of
    label (auto: numeric labels with over 100 distinct values in the prefix, or over 10 if any is fractional, are
    regression). prefix: rows that settle the columns' types, their categories and the classes. nominal: columns
    that are nominal though they look like numbers. open: nominal columns that may meet new categories (a column is
    open by itself if the second half of the prefix still brought new ones). drop: columns left out. classes: class
    names in code order (open: those of the prefix, and later ones join; default: those of the prefix, and rows with
    others are rejected). missing: may feature values be missing. missing_label: what to do with a row without a
    label, reject or keep (it is then only predicted).
    """

    header: Literal["auto", "yes", "no"] = "auto"
    delimiter: str = "auto"
    target: Literal["auto", "classification", "regression"] = "auto"
    prefix: int = 1000
    nominal: tuple[str, ...] = ()
    open: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    missing: bool = True
    missing_label: MissingLabel = "reject"


def suffix_of(path: Path) -> str:
    """The suffix that tells the format (``.csv.gz``), lower case."""
    last = path.suffix.lower()
    return Path(path.stem).suffix.lower() + last if last == ".gz" else last


def open_file(
    path: str | Path,
    *,
    label: str | int | None = None,
    params: FileParams | None = None,
    spec: StreamSpec | None = None,
) -> BlockStream:
    """A file as a stream that can be seeked to any event.

    label: name or number of the label's column (default: the last one; in npz the array ``y``). With ``spec`` the
    columns, categories and classes are those of the spec, found by name; without it they are settled from the first
    ``params.prefix`` rows: a column is numeric if 90 % of its cells there are numbers or missing, else a date or time
    (ISO; seconds since 1970) by the same rule, else nominal.

    Missing cells are empty, ``?``, ``NA``, ``N/A``, ``NaN``, ``null``. A nominal column is closed, and a row with a
    category that was not in the prefix is ``Rejected``, unless the column is open: then every such category gets the
    code ``len(categories)``, one code for all. Class codes follow the sorted names (by number where they are
    numbers) of the prefix; a label outside them makes a ``Rejected`` row, unless ``classes=("open",)``.

    Rows that cannot be read (wrong width, a cell that is no number, an infinite value, a missing label, broken
    quotes, a blank line, not UTF-8) become ``Rejected`` events with row number and reason. Raises ``InputError``, in
    one line, for a file that cannot be a stream at all, and while iterating where a damaged end is only met then.
    """
    path, params = Path(path), params or FileParams()
    suffix = suffix_of(path)
    if path.is_dir():
        raise InputError(f"{path}: this is a directory; a stream is one file")
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: unknown suffix {suffix or '(none)'!r}; known are {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    rules = Rules(
        params.target,
        params.prefix,
        params.nominal,
        params.open,
        params.drop,
        params.classes,
        params.missing,
        params.missing_label,
    )
    if suffix == ".npz":
        from .npz import open_npz

        return open_npz(path, label, rules)
    reader = _reader(path, suffix, params)
    plan = settle(reader, label, rules) if spec is None else follow(reader, spec, params.missing_label)
    return BlockStream(plan.spec, TableBlocks(reader, plan))


def _reader(path: Path, suffix: str, params: FileParams) -> Any:
    if suffix == ".parquet":
        from .parquet import Parquet

        return Parquet(path)
    from .readers import Delimited, JsonLines

    if suffix.startswith(".jsonl"):
        return JsonLines(path, params.prefix)
    return Delimited(path, params.delimiter, params.header)
