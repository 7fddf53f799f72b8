"""Our Hoeffding tree against river's, with the same settings, over the same rows: speed, and how often they agree."""

from __future__ import annotations

from statistics import median

from ...streams import InputError
from . import Row, row
from .driftmoe import summary

PEER = "river:tree.HoeffdingTreeClassifier"
STREAMS = ("electricity", "sea", "covertype")
ROWS = 20_000
ROUNDS = 3


def measure() -> list[Row]:
    """Rows a second and accuracy of both, in turn, medians of three rounds."""
    rows: list[Row] = []
    for stream in STREAMS:
        try:
            pairs = [
                (summary(stream, "hoeffding-tree", rows=ROWS), summary(stream, PEER, rows=ROWS)) for _ in range(ROUNDS)
            ]
        except InputError as missing:
            print(f"left out {stream}: {missing}")
            continue
        for key, unit in (("examples_per_second", "rows/s"), ("accuracy", "share")):
            mine, theirs = median(a[key] for a, _ in pairs), median(b[key] for _, b in pairs)
            rows.append(row("hoeffding-tree", f"{stream}, {unit}", unit, mine, theirs, "river HoeffdingTreeClassifier"))
    return rows
