"""What a section of a page is made of: plain values, which ``section.html.jinja`` sets into HTML and escapes.

A section is one function in a file of its own. It is given a run (``report.SECTIONS``) or several on one stream
(``comparison.SECTIONS``) and returns a ``Section``, or None where there is nothing to show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from . import figures as show
from .plots import Plot
from .run_data import RunData


@dataclass(frozen=True, slots=True)
class Words:
    """One paragraph. quiet: said in passing, such as why there is nothing to draw."""

    kind: ClassVar[str] = "words"
    text: str
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Heading:
    """The title of what follows."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure in a table. kind: "best", "fall" (it went wrong) or none. colour: of a dot before it."""

    text: str
    kind: str = ""
    colour: str = ""


def marked(figures: Sequence[list[float]], sign: int) -> list[Cell]:
    """Mean ± sd of each list of shares, per cent, the best in bold where they differ; sign: 1 where more is better."""
    texts = [show.spread(values, show.hundredths) for values in figures]
    means = [sign * math.fsum(values) / len(values) if values else -math.inf for values in figures]
    best = texts[means.index(max(means))] if len(set(texts)) > 1 else None
    return [Cell(text, "best" if text == best else "") for text in texts]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under heads. wordy: columns that hold words rather than figures (the first is always to the left)."""

    kind: ClassVar[str] = "table"
    heads: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    wordy: frozenset[int] = frozenset()

    def cells(self) -> list[list[Cell]]:
        """The rows with every figure as a ``Cell``."""
        return [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in self.rows]


@dataclass(frozen=True, slots=True)
class Bar:
    """A share from 0 to 1 drawn as a bar, with its name before and its figure behind it."""

    name: str
    share: float
    text: str
    colour: str


@dataclass(frozen=True, slots=True)
class Bars:
    """A bar chart whose names may be any words."""

    kind: ClassVar[str] = "bars"
    bars: Sequence[Bar]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A plot with its caption; label: what it shows, for those who cannot see it."""

    kind: ClassVar[str] = "drawing"
    plot: Plot
    caption: str
    label: str


Part: TypeAlias = Words | Heading | Table | Bars | Drawing


@dataclass(frozen=True, slots=True)
class Section:
    """One section of a page. long: it may be broken over two sheets when it is printed."""

    title: str
    parts: Sequence[Part]
    long: bool = False


@dataclass(frozen=True, slots=True)
class Compared:
    """Several runs on one stream. groups: places in ``runs`` of each learner. colours: of the learners, best first."""

    runs: list[RunData]
    groups: dict[str, list[int]]
    colours: dict[str, str]

    @property
    def summaries(self) -> list[dict[str, Any]]:
        return [run.summary for run in self.runs]

    def values(self, learner: str, *key: str | int) -> list[float]:
        """The number at a path of the summaries of a learner, of those that have it."""
        found = (show.look_up(self.runs[i].summary, key) for i in self.groups[learner])
        return [value for value in found if value is not None]

    def name(self, learner: str) -> Cell:
        """A learner's name behind a dot of its colour."""
        return Cell(learner, "", self.colours[learner])
