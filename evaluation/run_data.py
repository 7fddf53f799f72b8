"""What a finished or paused run left in its folder, read back for a report."""

from __future__ import annotations

import csv
import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..streams import InputError
from .curves import Curve, read_curve

Array = NDArray[Any]

FIRST_ROWS = 3
"""Quarantined rows kept of each reason."""
MOST_REASONS = 1000
"""Different reasons kept; the rows of any further ones are counted together."""


@dataclass(frozen=True, slots=True)
class RunData:
    """One run.

    summary: summary.json. records: the rows of records.csv as ``{"step": int, "kind": str, "values": {...}}``, empty
    cells left out. quarantine: one ``{"reason", "count", "rows"}`` per reason, commonest first, with its first rows;
    quarantined: rows in all, None where there is no such file. timings: rows of timings.csv. folder: where it was.
    evaluations: the curve of its continual evaluation, None where there is no continual.csv.
    """

    summary: dict[str, Any]
    records: list[dict[str, Any]] = field(default_factory=list)
    quarantine: list[dict[str, Any]] = field(default_factory=list)
    quarantined: int | None = None
    config_toml: str = ""
    command: str = ""
    timings: list[dict[str, float]] = field(default_factory=list)
    folder: str = ""
    evaluations: Curve | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as a tree; empty where it cannot be read."""
        try:
            return tomllib.loads(self.config_toml)
        except tomllib.TOMLDecodeError:
            return {}

    @property
    def window(self) -> int:
        """Rows of the sliding window."""
        return int(self.config.get("window", 1000))

    def progress(self) -> list[dict[str, Any]]:
        """The records that hold scores, one per step."""
        rows = {r["step"]: r for r in self.records if r["kind"] in ("progress", "end") and r["values"]}
        return list(rows.values())

    def curve(self, *columns: str) -> tuple[Array, Array]:
        """Steps (float64[n]) and values (float64[n, k], NaN where unknown) of some columns of the records."""
        rows = self.progress()
        y = np.array([[_float(r["values"].get(c)) for c in columns] for r in rows], dtype=np.float64)
        return np.array([r["step"] for r in rows], dtype=np.float64), y.reshape(len(rows), len(columns))

    def columns(self) -> list[str]:
        """Names of the columns that hold a value anywhere, in order."""
        return list(dict.fromkeys(c for r in self.progress() for c in r["values"]))

    def marked(self, kind: str) -> list[dict[str, Any]]:
        """The records of one kind, in order."""
        return [r for r in self.records if r["kind"] == kind]


def _float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def read_run(folder: str | Path, *, command: str | None = None) -> RunData:
    """Read a run folder. Only summary.json must be there; ``InputError`` in one line for what cannot be read.

    command: what started the run; by default the comment on the first line of config.toml, or the command that
    repeats the run from that file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    config = _text(folder / "config.toml") or ""
    reasons, count = _quarantine(folder / "quarantine.jsonl")
    return RunData(
        summary=_summary(folder / "summary.json"),
        records=_records(folder),
        quarantine=reasons,
        quarantined=count,
        config_toml=config,
        command=command or _command(config, folder),
        timings=_timings(folder / "timings.csv"),
        folder=str(folder),
        evaluations=_evaluations(folder / "continual.csv"),
    )


def _command(config: str, folder: Path) -> str:
    first = config.partition("\n")[0]
    if first.startswith("# ") and "driftway" in first:
        return first[2:].strip()
    return f"driftway run {folder / 'config.toml'}" if config else ""


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as fault:
        raise InputError(f"{path}: cannot be read ({fault})") from fault


def _summary(path: Path) -> dict[str, Any]:
    text = _text(path)
    if text is None:
        raise InputError(f"{path.parent}: holds no run (there is no {path.name})")
    try:
        summary = json.loads(text)
    except ValueError as fault:
        raise InputError(f"{path}: not a summary ({fault})") from fault
    if not isinstance(summary, dict):
        raise InputError(f"{path}: not a summary (a {type(summary).__name__} where an object is expected)")
    return summary


def _records(folder: Path) -> list[dict[str, Any]]:
    """The rows of records.csv, or of records.parquet where there is no such file."""
    path = folder / "records.csv"
    if not path.exists() and (folder / "records.parquet").exists():
        return _parquet(folder / "records.parquet")
    return [_record(row, path, number) for number, row in _csv(path)]


def _record(row: dict[str, str], path: Path, number: int) -> dict[str, Any]:
    if "step" not in row or "kind" not in row:
        raise InputError(f"{path}: line 1: no column {'step' if 'step' not in row else 'kind'}")
    if not row["step"].isdigit():
        raise InputError(f"{path}: line {number}: column step: {row['step']!r} is not a row number")
    values = {k: _value(v) for k, v in row.items() if v and k not in ("step", "kind")}
    if "note" in values:
        values["note"] = row["note"]
    return {"step": int(row["step"]), "kind": row["kind"], "values": values}


def _value(cell: str) -> float | int | str:
    """A cell as the number it shows, else as it is."""
    try:
        return int(cell) if cell.lstrip("-").isdigit() else float(cell)
    except ValueError:
        return cell


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as fault:
        raise InputError(f"{path}: reading parquet needs pyarrow: pip install 'driftway[tabular]'") from fault
    try:
        rows = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as fault:
        raise InputError(f"{path}: cannot be read ({str(fault).splitlines()[0]})") from fault
    if rows and not {"step", "kind"} <= rows[0].keys():
        raise InputError(f"{path}: no columns step and kind")
    return [{"step": r.pop("step"), "kind": r.pop("kind"), "values": _present(r)} for r in rows]


def _present(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if v is not None and v != "" and v == v}


def _csv(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The whole rows of a csv with their line numbers; the last one is left out where a kill cut it short."""
    text = _text(path)
    if not text:
        return
    reader = csv.reader(text.split("\n")[:-1])
    header = next(reader, [])
    try:
        for cells in reader:
            if len(cells) != len(header):
                raise InputError(f"{path}: line {reader.line_num}: {len(cells)} cells under {len(header)} columns")
            yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as fault:
        raise InputError(f"{path}: line {reader.line_num}: {fault}") from fault


def _timings(path: Path) -> list[dict[str, float]]:
    """The rows of timings.csv; cells that are no numbers are left out."""
    rows = []
    for _, row in _csv(path):
        values = {k: _value(v) for k, v in row.items()}
        rows.append({k: float(v) for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)})
    return rows


def _evaluations(path: Path) -> Curve | None:
    return read_curve(path) if path.exists() else None


def _quarantine(path: Path) -> tuple[list[dict[str, Any]], int | None]:
    """Reasons with counts and their first rows, and the number of rows; the file is read line by line."""
    if not path.exists():
        return [], None
    try:
        with path.open(encoding="utf-8") as lines:
            return group_reasons(_lines(lines, path))
    except (OSError, UnicodeDecodeError) as fault:
        raise InputError(f"{path}: cannot be read ({fault})") from fault


def _lines(lines: Iterable[str], path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            return
        try:
            row = json.loads(line)
        except ValueError as fault:
            raise InputError(f"{path}: line {number}: not JSON ({fault})") from fault
        yield row if isinstance(row, dict) else {"reason": str(row)}


_PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|(?<![\w.])[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w.])")


def group_reasons(rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Rows by reason, commonest first, what differs from row to row (numbers, quoted values) shown as an ellipsis.

    >>> groups, total = group_reasons([{"reason": "price: 'x' is no number"}, {"reason": "price: '?' is no number"}])
    >>> groups[0]["reason"], groups[0]["count"], total
    ('price: … is no number', 2, 2)
    """
    groups: dict[str, dict[str, Any]] = {}
    total = 0
    for row in rows:
        total += 1
        reason = _PARTICULARS.sub("…", str(row.get("reason", "no reason given")))
        if reason not in groups and len(groups) >= MOST_REASONS:
            reason = "other reasons"
        group = groups.setdefault(reason, {"reason": reason, "count": 0, "rows": []})
        group["count"] += 1
        if len(group["rows"]) < FIRST_ROWS:
            group["rows"].append(row)
    return sorted(groups.values(), key=lambda g: -g["count"]), total
