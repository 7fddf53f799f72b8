"""The task families of ``vl-instruct``: scenes, and questions that neither the scene nor the words alone answer.

Every scene admits several questions whose answers are spread evenly, so that the best constant answer to one picture,
or to one wording, is right as seldom as the answers are many.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

from .events import Array
from .vl_pictures import CELLS, COLOURS, GRID, KINDS, NOTHING, SHAPES, Ink

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COUNTED, COMPARED = ("circle", "square", "triangle"), ("circle", "frame", "bar")
COLOURED, PLACED = ("diamond", "cross", "ring", "hourglass"), ("heart", "moon", "arrow", "stripes")
"""Shapes that are counted, that are compared in number, whose colour is asked for, whose place is."""
CORNERS = ("top left", "top right", "bottom left", "bottom right")
PAIRS = {"at the top": (0, 1), "at the bottom": (2, 3), "on the left": (0, 2), "on the right": (1, 3)}
"""Two of the four quarters of a picture."""
CLUTTER = 3
"""Objects in a scene that its family does not ask for."""
QUARTER = GRID // 2

Slots = tuple[str, ...]


def quarter(k: int) -> Array:
    """int64[4]: the cells of quarter k, row by row."""
    down, right = divmod(k, 2)
    cells = np.arange(CELLS).reshape(GRID, GRID)
    return cells[down * QUARTER :, right * QUARTER :][:QUARTER, :QUARTER].ravel()


class Scene:
    """A picture in the making. marks, colours: int64[16], as ``paint`` takes them. plain: with as little in it as its
    question allows."""

    def __init__(self, pen: Ink, held: bool, generator: np.random.Generator, *, plain: bool = False) -> None:
        self.pen, self.held, self.generator, self.plain = pen, int(held), generator, plain
        self.marks = np.full(CELLS, NOTHING, np.int64)
        self.colours = np.zeros(CELLS, np.int64)

    @property
    def kinds(self) -> Array:
        """int8[16]: what each cell shows, ``NOTHING`` for the ground."""
        return np.where(self.marks == NOTHING, NOTHING, self.pen.kind[self.marks])

    def some(self, of: Sequence[str], n: int) -> list[str]:
        """``n`` different ones in random order."""
        return [of[i] for i in self.generator.permutation(len(of))[:n]]

    def put(self, kind: str, colour: str, within: Array | None = None) -> None:
        """One more object in a free cell; a number's name stands for a digit."""
        free = np.flatnonzero(self.marks == NOTHING) if within is None else within[self.marks[within] == NOTHING]
        digit = kind in NUMBERS
        drawings = self.pen.digits[self.held][NUMBERS.index(kind)] if digit else self.pen.shapes[kind]
        cell, drawing = self.generator.integers((len(free), len(drawings)))
        self.marks[free[cell]], self.colours[free[cell]] = drawings[drawing], list(COLOURS).index(colour)

    def write(self, character: int, where: int) -> None:
        """A character in a quarter, in a drawing and a colour by lot."""
        drawings = self.pen.characters[self.held][character]
        self.marks[quarter(where)] = drawings[self.generator.integers(len(drawings))]
        self.colours[quarter(where)] = self.generator.integers(len(COLOURS))

    def leave(self, asked: Slots, kinds: Sequence[str]) -> None:
        """Take away all but the objects of these kinds that words of a question mean: by colour, by shape, by both."""
        shapes = [k for k in kinds if k in asked] or kinds
        colours = [c for c, colour in enumerate(COLOURS) if colour in asked] or range(len(COLOURS))
        meant = np.isin(self.kinds, [KINDS.index(k) for k in shapes]) & np.isin(self.colours, list(colours))
        self.marks[~meant] = NOTHING

    def clutter(self, but: Sequence[str]) -> None:
        """Objects of other kinds, in colours by lot."""
        kinds = [k for k in (*SHAPES, *NUMBERS) if k not in but]
        for kind in self.some(kinds, CLUTTER):
            self.put(kind, self.some(list(COLOURS), 1)[0])


def _counted(scene: Scene) -> dict[Slots, str]:
    """Two shapes in two colours: none of one such pair, one, two and three of the others."""
    pairs = list(product(scene.some(list(COLOURS), 2), scene.some(COUNTED, 2)))
    counts = scene.generator.permutation(len(pairs)).tolist()
    for (colour, shape), count in zip(pairs, counts, strict=True):
        for _ in range(count):
            scene.put(shape, colour)
    scene.clutter(COUNTED)
    return {pair: NUMBERS[count] for pair, count in zip(pairs, counts, strict=True)}


def _coloured(scene: Scene) -> dict[Slots, str]:
    """Four shapes, each in a colour of its own."""
    colours = scene.some(list(COLOURS), len(COLOURED))
    for shape, colour in zip(COLOURED, colours, strict=True):
        scene.put(shape, colour)
    scene.clutter(COLOURED)
    return {(shape,): colour for shape, colour in zip(COLOURED, colours, strict=True)}


def _placed(scene: Scene) -> dict[Slots, str]:
    """Four shapes, each in a quarter of its own."""
    shapes = scene.some(PLACED, len(CORNERS))
    for k, shape in enumerate(shapes):
        scene.put(shape, scene.some(list(COLOURS), 1)[0], quarter(k))
    scene.clutter(PLACED)
    return {(shape,): corner for shape, corner in zip(shapes, CORNERS, strict=True)}


def _read(scene: Scene) -> dict[Slots, str]:
    """Four different digits, each in a colour of its own."""
    colours, digits = scene.some(list(COLOURS), 4), scene.some(NUMBERS, 4)
    for digit, colour in zip(digits, colours, strict=True):
        scene.put(digit, colour)
    scene.clutter(NUMBERS)
    return {(colour,): digit for digit, colour in zip(digits, colours, strict=True)}


def _compared(scene: Scene) -> dict[Slots, str]:
    """One, two and three of three shapes, in colours by lot."""
    counts = dict(zip(COMPARED, scene.generator.permutation((1, 2, 3)).tolist(), strict=True))
    for shape, count in counts.items():
        for _ in range(count):
            scene.put(shape, scene.some(list(COLOURS), 1)[0])
    scene.clutter(COMPARED)
    return {(a, b): "yes" if counts[a] > counts[b] else "no" for a, b in permutations(COMPARED, 2)}


def _matched(scene: Scene) -> dict[Slots, str]:
    """Four drawings of two characters, so that two neighbouring pairs are equal and two are not."""
    a, b = scene.generator.permutation(len(scene.pen.characters[0]))[:2].tolist()
    layouts = [(a, a, b, b), (a, b, a, b), (a, a, a, b), (a, a, b, a), (a, b, a, a), (b, a, a, a)]
    shown = layouts[scene.generator.integers(len(layouts))]
    for k, character in enumerate(shown):
        scene.write(character, k)
    return {(words,): "yes" if shown[i] == shown[j] else "no" for words, (i, j) in PAIRS.items()}


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of task. asks: kinds of objects (``KINDS``) that its questions are about. wordings: of a question, with
    a place for each slot. slots: all ways to fill them. answers: all there are. scene: puts objects there and tells
    the answer to every question that the scene admits.
    """

    asks: tuple[str, ...]
    wordings: tuple[str, ...]
    slots: tuple[Slots, ...]
    answers: tuple[str, ...]
    scene: Callable[[Scene], dict[Slots, str]]

    @property
    def questions(self) -> list[str]:
        """Every question that it can ask."""
        return [self.question(i, slots) for i in range(len(self.wordings)) for slots in self.slots]

    def question(self, wording: int, slots: Slots) -> str:
        return framed(self.wordings[wording].format(*slots))


def framed(question: str) -> str:
    """A question in the words that all questions share."""
    return f"look at the picture. {question} answer:"


def words(text: str) -> list[tuple[int, str]]:
    """Where each word or mark begins, and what it is.

    >>> words("look. is it?")
    [(0, 'look'), (4, '.'), (6, 'is'), (9, 'it'), (11, '?')]
    """
    return [(found.start(), found[0]) for found in re.finditer(r"\w+|[^\w\s]", text)]


FAMILIES: dict[str, Family] = {
    "count": Family(
        COUNTED,
        ("how many {} {}s are there?", "count the {} {}s.", "what is the number of {} {}s?"),
        tuple(product(COLOURS, COUNTED)),
        NUMBERS[:4],
        _counted,
    ),
    "colour": Family(
        COLOURED,
        ("what colour is the {}?", "name the paint of the {}.", "the {} was painted in which colour?"),
        tuple((shape,) for shape in COLOURED),
        tuple(COLOURS),
        _coloured,
    ),
    "position": Family(
        PLACED,
        ("where is the {}?", "find the {}.", "in which corner do you see the {}?"),
        tuple((shape,) for shape in PLACED),
        CORNERS,
        _placed,
    ),
    "read": Family(
        ("digit",),
        ("which digit is {}?", "read the {} digit.", "what does the {} handwriting say?"),
        tuple((colour,) for colour in COLOURS),
        NUMBERS,
        _read,
    ),
    "compare": Family(
        COMPARED,
        ("are there more {}s than {}s?", "do {}s outnumber {}s?", "is it true that {}s are more frequent than {}s?"),
        tuple(permutations(COMPARED, 2)),
        ("yes", "no"),
        _compared,
    ),
    "match": Family(
        ("character",),
        ("are both characters {} the same?", "do the two letters {} match?", "is one sign drawn twice {}?"),
        tuple((pair,) for pair in PAIRS),
        ("yes", "no"),
        _matched,
    ),
}
"""By name, in the usual order. ``match`` needs Omniglot."""

NEEDS_OMNIGLOT = "match"
ALONE = ("what is here?", "describe the picture.", "name the only thing in the picture.")
AT = ("what is in row {}, column {}?", "describe row {}, column {}.", "name the thing in row {}, column {}.")
TONE = ("the tone of the {}?", "say the {} one's tone.")
CELL = ("row and column of the {}?", "say the {} one's row and column.")
SHAPED = ("the {} thing's shape?", "say which shape the {} one has.")
NUMERAL = ("which numeral is in row {}, column {}?", "say the numeral of row {}, column {}.")
EMPTY = "nothing"
_ROWS = NUMBERS[1 : GRID + 1]
PLACES = tuple(f"row {row}, column {column}" for row, column in product(_ROWS, repeat=2))
DESCRIBED = (EMPTY, *(f"{colour} {kind}" for kind in KINDS for colour in COLOURS), *COLOURS, *SHAPES, *NUMBERS, *PLACES)
"""Answers of the broad mix."""
TONED = tuple(shape for shape in SHAPES if shape not in COLOURED)
FOUND = tuple(shape for shape in SHAPES if shape not in PLACED)
"""Shapes whose colour, and whose place, the broad mix asks for: not those of the families with that question."""


def descriptions() -> list[str]:
    """Every question of the broad mix that a model is trained on before the stream."""
    cells = [wording.format(*place) for wording in (*AT, *NUMERAL) for place in product(_ROWS, repeat=2)]
    named = [
        wording.format(word)
        for wordings, there in ((TONE, TONED), (CELL, FOUND), (SHAPED, COLOURS))
        for wording in wordings
        for word in there
    ]
    return [framed(question) for question in (*ALONE, *cells, *named)]


def described(scene: Scene) -> tuple[str, str]:
    """A question of the broad mix and its answer.

    A model that is worth teaching has learnt to look: what is there, what a row and column show, and, in scenes of
    things of different shapes and colours, the tone, the shape or the place of one of them, the numeral of a digit. All
    in other words than the families have, of shapes that they do not ask this of, and nothing is counted or compared.
    """
    kind = int(scene.generator.integers(8))
    return _thing(scene, alone=scene.plain or kind < 3) if kind < 4 else _feature(scene, kind - 4)


def _thing(scene: Scene, *, alone: bool) -> tuple[str, str]:
    """One object alone, or what a row and column of a fuller scene shows."""
    generator, colours = scene.generator, list(COLOURS)
    characters = len(scene.pen.characters[0])
    if characters and generator.random() < 0.25:
        for where in generator.permutation(4)[: 1 if alone else 3].tolist():
            scene.write(int(generator.integers(characters)), where)
    else:
        for _ in range(1 if alone else int(generator.integers(2, 9))):
            kind = scene.some((*SHAPES, "digit"), 1)[0]
            scene.put(scene.some(NUMBERS, 1)[0] if kind == "digit" else kind, scene.some(colours, 1)[0])
    kinds = scene.kinds
    empty = not alone and generator.random() < 0.1
    cell = int(generator.choice(np.flatnonzero((kinds == NOTHING) == empty)))
    wording = (ALONE if alone else AT)[generator.integers(len(ALONE))]
    question = framed(wording.format(*_place(cell)))
    return question, EMPTY if empty else f"{colours[scene.colours[cell]]} {KINDS[kinds[cell]]}"


def _feature(scene: Scene, which: int) -> tuple[str, str]:
    """The tone, the place or the shape of one of some things, or the numeral of a digit among them."""
    pool = (TONED, FOUND, SHAPES, NUMBERS)[which]
    things = 1 if scene.plain else int(scene.generator.integers(1, len(COLOURS) + 1))
    kinds, colours = scene.some(pool, things), scene.some(list(COLOURS), things)
    for kind, colour in zip(kinds, colours, strict=True):
        scene.put(kind, colour)
    if which == 3:
        cell = int(scene.generator.choice(np.flatnonzero(scene.marks != NOTHING)))
        numeral = kinds[colours.index(list(COLOURS)[scene.colours[cell]])]
        return framed(NUMERAL[scene.generator.integers(len(NUMERAL))].format(*_place(cell))), numeral
    asked = int(scene.generator.integers(len(kinds)))
    wordings = (TONE, CELL, SHAPED)[which]
    wording = wordings[scene.generator.integers(len(wordings))]
    if which == 2:
        return framed(wording.format(colours[asked])), kinds[asked]
    if which == 0:
        return framed(wording.format(kinds[asked])), colours[asked]
    there = int(np.flatnonzero(scene.kinds == KINDS.index(kinds[asked]))[0])
    return framed(wording.format(kinds[asked])), "row {}, column {}".format(*_place(there))


def _place(cell: int) -> tuple[str, str]:
    """The words for its row and its column."""
    row, column = divmod(cell, GRID)
    return NUMBERS[1 + row], NUMBERS[1 + column]
