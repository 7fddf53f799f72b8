"""What a stream promises about its rows, and the one exception for input that is no stream at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from .events import Array, Event

MAX_CLASSES = 4096
"""Labels at or above this are refused as out of range when a stream does not list its classes."""


class InputError(Exception):
    """Input or usage that cannot work, in one line for a person. The command line prints it and exits with 2."""


@dataclass(frozen=True, slots=True)
class Column:
    """One feature. ``categories`` names the codes 0..n-1 of a nominal column; None means the column is numeric.

    An open nominal column (``open=True``) may meet categories that are not in the list; a closed one rejects them.
    """

    name: str
    categories: tuple[str, ...] | None = None
    open: bool = False
    missing: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Experience:
    """One stretch of a stream (a task) and the rows that are held out to judge it by.

    x: float32[n, d], rows that never come in the stream, in the units of its batches. y: int64[n], class codes. rows:
    training rows of the stretch in one epoch, 0 where not known. classes: codes that its rows may have.
    """

    name: str
    x: Array
    y: Array
    rows: int
    classes: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """The clean rows that a source model is trained on before the stream begins, and those to judge it by.

    train, test: give (x float32[n, d], y int64[n]), in the units of the batches; each call reads them anew. No row of
    ``train`` comes in the stream; those of ``test`` may, but changed. classes: codes that they have.
    """

    name: str
    classes: tuple[int, ...]
    train: Callable[[], tuple[Array, Array]]
    test: Callable[[], tuple[Array, Array]]


@dataclass(frozen=True, slots=True, eq=False)
class Worth:
    """What each answer would have been worth by the truth, where answers are plans of a fixed vocabulary.

    names: of k figures in 0..1, more is better; the first is the whole score. vocabulary: float64[M, ...], what each
    class code stands for. layout: the groups of tokens in a row, (how many, numbers in each). of: float64[n, k] of
    answers (int64[n]) to rows with these ids (int64[n]); NaN for rows that are not judged. train(n): the first n rows
    of ``spec.source.train()``, all for None, and what every answer to them is worth: float32[n, d], float32[n, M, k],
    and the best one, int64[n]. training: how many there are. scene: the truth about one row's moment.
    """

    names: tuple[str, ...]
    vocabulary: Array
    layout: tuple[tuple[int, int], ...]
    of: Callable[[Array, Array], Array]
    train: Callable[[int | None], tuple[Array, Array, Array]]
    training: int
    scene: Callable[[int], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Impressions:
    """Whose rows those of a click stream are and when they came, so that its scores can be told by user and by time.

    users: int64[n], of the rows with the ids 0..n-1, -1 where not known; None where nobody's. times: float64[n],
    rising, seconds since 1970 (UTC); None where there are no time stamps: the row number stands for the time.
    """

    users: Array | None = None
    times: Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """How rows of a language stream are laid out, and what its class codes spell.

    A row is ``length`` token ids (the prompt, ``pad`` after its end), then the pixels of ``image`` where there is one
    (channels first, 0..255), all whole numbers. vocabulary: how many token ids there are. answers: int32[classes, A],
    the tokens of each answer, ``eos`` behind them, then ``pad``; the last class of ``spec.classes`` has no row here: it
    stands for any other text. tokenizer: JSON of a ``tokenizers.Tokenizer``. patch: side of the square patches that an
    image is cut into, row by row, each standing for one token in front of the prompt. kinds: what each token of a row
    is to its experience, int8[n, patches + length] of SHARED, OWN, AMBIGUOUS or PADDING, of (x float[n, d], the
    experience's number); None where nobody knows.
    """

    length: int
    vocabulary: int
    pad: int
    eos: int
    answers: Array
    tokenizer: str
    image: tuple[int, int, int] | None = None
    patch: int = 0
    kinds: Callable[[Array, int], Array] | None = None

    def limits(self) -> Array:
        """int64[d]: how many values each number of a row has: token ids, then the 256 of a pixel."""
        pixels = int(np.prod(self.image)) if self.image else 0
        return np.r_[np.full(self.length, self.vocabulary), np.full(pixels, 256)]


PADDING, SHARED, OWN, AMBIGUOUS = -1, 0, 1, 2
"""Kinds of tokens: no token at all; one that every experience has; one that tells the experience; one that another
experience has too."""


@dataclass(frozen=True, slots=True, eq=False)
class Mixed:
    """Which shift each row is under, where rows of several come in no order.

    names: of the shifts. shift: int64[n], places in names, of the rows with the ids 0..n-1.

    >>> Mixed(("fog 5", "snow 5"), np.array([1, 0, 1])).of(np.array([2, 1, 3])).tolist()
    [1, 0, -1]
    """

    names: tuple[str, ...]
    shift: Array

    def of(self, ids: Array) -> Array:
        """int64[B]: places in names of the rows with these ids, -1 where not known."""
        place = np.clip(ids, 0, len(self.shift) - 1)
        return np.where(ids == place, self.shift[place], -1)


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """Names, kinds and sizes, known before the first row.

    classes: the class names in code order, or None where they are not known beforehand (classes may then grow up to
    ``MAX_CLASSES``). length: rows in all, None for an endless stream. drifts: ids of rows where a concept
    is known to change. shape: the shape of one row where it is not a flat table row (an image; channels first).
    experiences: where held-out rows are known: the first begins with the stream, the next at each Boundary.
    source: where a model is meant to be trained before the stream begins. Compositions keep it as it is, clean.
    worth: where answers are worth more than right or wrong. impressions: where class 1 of two is a click.
    mixed: where shifts do not come one after the other. text: where rows are prompts and classes are answers to them.
    """

    name: str
    columns: tuple[Column, ...]
    target: Literal["classification", "regression"] = "classification"
    target_name: str = "y"
    classes: tuple[str, ...] | None = None
    length: int | None = None
    drifts: tuple[int, ...] = ()
    shape: tuple[int, ...] | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    experiences: tuple[Experience, ...] = field(default=(), compare=False, repr=False)
    source: Source | None = field(default=None, compare=False, repr=False)
    worth: Worth | None = field(default=None, compare=False, repr=False)
    impressions: Impressions | None = field(default=None, compare=False, repr=False)
    mixed: Mixed | None = field(default=None, compare=False, repr=False)
    text: Text | None = field(default=None, compare=False, repr=False)

    @property
    def n_features(self) -> int:
        return len(self.columns)

    @property
    def n_classes(self) -> int | None:
        return None if self.classes is None else len(self.classes)


@runtime_checkable
class Stream(Protocol):
    """Events from a cursor on.

    ``cursor()`` is JSON and says where the next event starts (generator state included), as seen by whoever holds the
    last event yielded; after ``seek(cursor)`` iteration goes on with exactly the events that would have followed.
    """

    spec: StreamSpec

    def __iter__(self) -> Iterator[Event]: ...

    def cursor(self) -> dict[str, Any]: ...

    def seek(self, cursor: dict[str, Any]) -> None: ...
