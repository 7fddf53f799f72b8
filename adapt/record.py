"""What a loop has to say while it runs, and the files that it is written to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Record:
    """Something worth writing down: ``kind`` is progress, alarm, boundary, rollback, frozen, warning, forget,
    quarantine, evaluation, worth (of one answer) or end. An evaluation holds ``update``, ``experience`` and ``right``,
    right answers of each experience seen.

    A record of kind checkpoint comes just before a checkpoint is saved: whoever writes records to a file brings the
    file to disk then, and writes nothing about it (when checkpoints fall due depends on the clock, records never do).
    """

    step: int
    kind: str
    values: dict[str, Any] = field(default_factory=dict)


FILES = {"quarantine": "quarantine", "evaluation": "continual"}
"""Kinds of record that are written to a file of their own."""
