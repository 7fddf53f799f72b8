"""The folder of one run: records, quarantine, timings, configuration and summary, whole after any kill.

``records.csv``, ``continual.csv`` and ``quarantine.jsonl`` hold nothing that depends on the clock. A checkpoint says
how many lines of each belong to it, so a resumed run cuts the files there and goes on; ``timings.csv`` takes all that
a clock said.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO

from ..streams import InputError
from .loop import Loop
from .record import Record

CONFIG, SUMMARY, RECORDS = "config.toml", "summary.json", "records.csv"
QUARANTINE, TIMINGS, CHECKPOINT, REPORT = "quarantine.jsonl", "timings.csv", "checkpoint", "report.html"
CURVE = "continual.csv"

PHASES = ("predict", "adapt", "learn", "evaluate", "io")
TIMING_COLUMNS = ("step", "seconds", *PHASES, "p50_ms", "p99_ms", "rss_mb", "batches")
BETWEEN_TIMINGS = 0.25
"""Seconds between two lines of timings.csv."""


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader, or a kill, finds the old text or the new one and nothing between."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def to_json(value: Any) -> str:
    """Indented JSON with plain numbers; what is not finite is null."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """The same tree in Python's own types: NumPy scalars and tuples unwrapped, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def holds_run(folder: Path) -> bool:
    """Whether a run was started in this folder."""
    return (folder / CONFIG).exists() or (folder / SUMMARY).exists()


def read_summary(folder: Path) -> dict[str, Any] | None:
    """summary.json of a run, None where there is none yet."""
    path = folder / SUMMARY
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as fault:
        raise InputError(f"{path}: not a summary ({fault})") from fault


def make_folder(folder: Path) -> None:
    """Create the folder of a run, parents too."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise InputError(f"--out {folder}: {fault.strerror or fault}") from fault


class RecordWriter:
    """Writes the records of one run into its folder.

    columns: the keys of progress records, in order. curve: titles of the columns of continual.csv, empty where there
    is no continual evaluation. kept: how many lines of each file belong to the checkpoint that the run goes on from;
    anything after them is cut off. None starts the files afresh.
    """

    def __init__(
        self,
        folder: Path,
        columns: Sequence[str],
        kept: Mapping[str, int] | None = None,
        curve: Sequence[str] = (),
    ) -> None:
        self._columns = tuple(columns)
        header = _csv_line(["step", "kind", *self._columns, "note"])
        self._records = _open(folder / RECORDS, header, None if kept is None else kept["records"] + 1)
        self._quarantine = _open(folder / QUARANTINE, "", None if kept is None else kept["quarantine"])
        self._timings = _open(folder / TIMINGS, _csv_line(TIMING_COLUMNS), None if kept is None else -1)
        self._files = [self._records, self._quarantine, self._timings]
        if curve:
            self._curve = _open(folder / CURVE, _csv_line(curve), None if kept is None else kept["continual"] + 1)
            self._blanks = ["," * (len(curve) - 4 - i) for i in range(len(curve) - 3)]
            self._files.append(self._curve)
        self._next_timing = 0.0

    def write(self, record: Record, loop: Loop) -> None:
        """One record to the file it belongs to; a record of kind checkpoint brings the files to disk instead."""
        if record.kind == "checkpoint":
            self.sync()
            return
        values = record.values
        if record.kind == "evaluation":
            right = values["right"]
            numbers = ",".join(map(str, (values["update"], record.step, values["experience"], *right)))
            self._curve.write(f"{numbers}{self._blanks[len(right) - 1]}\n".encode())
            return
        if record.kind == "quarantine":
            line = {"row": values["row"], "reason": values["reason"], "step": record.step}
            self._quarantine.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
            return
        cells = [_cell(values.get(column)) for column in self._columns]
        note = " ".join(str(values.get("note", "")).split())
        self._records.write(_csv_line([record.step, record.kind, *cells, note]).encode())
        if record.kind in ("progress", "end"):
            self._time(record, loop)

    def _time(self, record: Record, loop: Loop) -> None:
        now = perf_counter()
        if now < self._next_timing and record.kind != "end":
            return
        self._next_timing = now + BETWEEN_TIMINGS
        phases = [f"{loop.seconds[p]:.6f}" for p in PHASES]
        latency = [f"{loop.latency.quantile(q) * 1e3:.6g}" for q in (0.5, 0.99)]
        total = f"{sum(loop.seconds.values()):.6f}"
        cells = [record.step, total, *phases, *latency, f"{resident_mb():.2f}", loop.cost.batches]
        self._timings.write(_csv_line(cells).encode())

    def sync(self) -> None:
        """Everything written so far is on the disk when this returns."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        for file in self._files:
            file.close()


def resident_mb() -> float:
    """Resident memory of this process now, in MB; NaN where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return math.nan


def _cell(value: Any) -> str:
    """A number exactly as Python repeats it, so that the file says all that was known; nothing for None and NaN."""
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(float(value)) if math.isfinite(value) else ""
    return str(value)


def _csv_line(cells: Iterable[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(list(cells))
    return line.getvalue()


def _open(path: Path, header: str, lines: int | None) -> BinaryIO:
    """The file, ready to append to: new with its header, or cut after so many whole lines (-1: after the last one)."""
    if lines is None or not path.exists():
        if lines is not None and lines > 1:
            raise InputError(f"{path} is gone: the run cannot be resumed")
        new = path.open("wb")
        new.write(header.encode())
        return new
    file = path.open("r+b")
    end = found = 0
    while found != lines and (line := file.readline()).endswith(b"\n"):
        end += len(line)
        found += 1
    if found < lines:
        file.close()
        raise InputError(f"{path} has {found} whole lines, its checkpoint knows {lines}: the run cannot be resumed")
    file.seek(end)
    file.truncate()
    return file
