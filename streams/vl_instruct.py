"""``vl-instruct``: small pictures and questions about them, one family of tasks after the other.

What is told apart in ``spec.text.kinds`` is what the generator knows, not what pixels or token ids look like:

* a word of the prompt (all its tokens) is OWN to an experience if only this family's questions have it, SHARED if
  those of every family have it, AMBIGUOUS if those of some others have it; found by the tokens of the question, of
  which there are few.
* a patch is SHARED where it shows the ground or what no family of the order asks for; AMBIGUOUS where it shows what
  another family asks for, whether this one does too or not; OWN where this family alone asks for it. What a patch
  shows is kept for every row that was drawn, and found by a signature of the row's pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .events import Array
from .experiences import TEST, TRAIN, Rows, Task, pixels, stream_of
from .gilcd import OMNIGLOT
from .spec import AMBIGUOUS, OWN, PADDING, SHARED, InputError, Source, Stream, Text
from .text_tasks import OTHER, token_columns
from .tokens import Prompt, Tokens, trained_tokens
from .vl_families import DESCRIBED, FAMILIES, NEEDS_OMNIGLOT, Family, Scene, described, descriptions, words
from .vl_pictures import KINDS, NOTHING, PATCH, SHAPE, Ink, ink, omniglot_file, paint

VOCABULARY = 512
"""Token ids at most."""
SOURCE, SIGNATURE = "descriptions", 20_260
SOURCE_TEST = 400
BROAD = 61_000
"""What the generator of the broad mix is seeded with, whatever the stream's seed: one model serves all seeds."""


@dataclass(frozen=True)
class VlInstruct:
    """order: families of tasks, of count, colour, position, read, compare, match; empty for all of them in this order
    (match only where Omniglot is). train_rows: of each experience. test_rows: held-out rows of each. epochs: passes
    over each experience. source_rows: descriptions that a model is trained on before the stream. validation: other
    rows of the same kind, to tune learning rates on. plain: pictures of nothing but what is asked for, for models too
    small to find one thing among others; within a family the picture alone then tells more.
    """

    order: tuple[str, ...] = ()
    train_rows: int = 1000
    test_rows: int = 200
    epochs: int = 1
    source_rows: int = 8000
    validation: bool = False
    plain: bool = False


class Asked(NamedTuple):
    """Rows before they are tokens and pixels. marks, colours: int64[n, 16], as ``paint`` takes them."""

    marks: Array
    colours: Array
    questions: list[str]
    answers: list[str]


def vl_instruct(params: VlInstruct, seed: int) -> Stream:
    """Questions about pictures of 32 x 32 pixels, answered in a word or two: count, colour, position, read, compare,
    match.

    Shapes and scikit-learn's digits fill a patch of 8 x 8 pixels, Omniglot characters 2 x 2 patches. Held-out rows have
    digits of the test part and characters by people who drew none of the training rows. Neither the words nor the
    picture tells the answer: the best constant answer to a picture is right for a quarter of its questions (a half
    where the answer is yes or no), to a question likewise or less. spec.source asks what is there ("red circle"), and
    for the tone, the place and the shape of one of several things, in other words and of other shapes than the
    families; nothing is counted or compared, and characters have no names. The tokenizer is trained on the questions
    and answers of the descriptions and of the first experience. Neither it nor spec.source depends on the seed, so one
    pretrained model serves all of them. A class is an answer; the last one, "(another text)", has no row.
    spec.notes["data"] tells whether characters were left out.
    """
    order, left_out = _order(params)
    _check(params)
    families = [FAMILIES[name] for name in order]
    answers = list(dict.fromkeys([*(a for family in families for a in family.answers), *DESCRIBED]))
    questions = [*descriptions(), *(q for family in families for q in family.questions)]
    tokens = trained_tokens([*descriptions(), *DESCRIBED, *families[0].questions, *families[0].answers], VOCABULARY)
    length = max(len(_encoded(tokens, question).ids) for question in questions)
    pen = ink(omniglot_file() if NEEDS_OMNIGLOT in order else None)
    rows = _Rows(
        tokens, length, {answer: k for k, answer in enumerate(answers)}, pen, seed, params.validation, params.plain
    )
    parts = [[rows.of(name, n, p) for n, p in ((params.train_rows, TRAIN), (params.test_rows, TEST))] for name in order]
    stream = stream_of(
        [Task(n, *(Rows(x, np.arange(len(x)), y) for x, y, _ in both)) for n, both in zip(order, parts, strict=True)],
        name="vl-instruct",
        classes=[*answers, OTHER],
        shape=None,
        scenario="domain",
        epochs=params.epochs,
        seed=seed,
        notes={"data": "match is left out: Omniglot is not here" if left_out else "all that the order asks for"},
    )
    pictures = np.concatenate([x[:, length:] for both in parts for x, _, _ in both])
    shown = np.concatenate([kinds for both in parts for _, _, kinds in both])
    kinds = Kinds(families, tokens, length, Lookup(pictures, shown))
    spelled = tokens.answers(answers)
    stream.spec = replace(
        stream.spec,
        columns=(*token_columns(length), *pixels(SHAPE)),
        target_name="answer",
        text=Text(length, tokens.size, tokens.pad, tokens.eos, spelled, tokens.json, SHAPE, PATCH, kinds),
        source=rows.source(params.source_rows),
    )
    return stream


def _order(params: VlInstruct) -> tuple[tuple[str, ...], bool]:
    """The families, and whether one was left out since its data is not here."""
    if not FAMILIES.keys() >= set(params.order) or len(set(params.order)) < len(params.order):
        raise InputError(f"vl-instruct: order must be some of {', '.join(FAMILIES)}, each once")
    here = omniglot_file() is not None
    if NEEDS_OMNIGLOT in params.order and not here:
        raise InputError(f"vl-instruct: {NEEDS_OMNIGLOT} needs {OMNIGLOT} in a data folder, and it is not there")
    if params.order or here:
        return params.order or tuple(FAMILIES), False
    return tuple(name for name in FAMILIES if name != NEEDS_OMNIGLOT), True


def _check(params: VlInstruct) -> None:
    if min(params.train_rows, params.test_rows, params.source_rows) < 1:
        raise InputError("vl-instruct: train_rows, test_rows and source_rows must be at least 1")


def _encoded(tokens: Tokens, question: str) -> Any:
    return tokens.tokenizer.encode(question, add_special_tokens=False)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Draws rows: those of a family by the seed and what they are for, those of the broad mix by the latter alone."""

    tokens: Tokens
    length: int
    codes: dict[str, int]
    pen: Ink
    seed: int
    validation: bool
    plain: bool

    def of(self, name: str, n: int, purpose: int) -> tuple[Array, Array, Array]:
        """x int32[n, d] and y int64[n] of a family, and what the patches show: int8[n, 16]."""
        generator = np.random.default_rng([self.seed, purpose, list(FAMILIES).index(name), int(self.validation)])
        asked = ask(FAMILIES[name], n, self.pen, purpose == TEST, generator, plain=self.plain)
        x, y = self._packed(asked, generator)
        return x, y, np.where(asked.marks == NOTHING, NOTHING, self.pen.kind[asked.marks]).astype(np.int8)

    def source(self, n: int) -> Source:
        """The broad mix, drawn when it is asked for."""
        codes = tuple(self.codes[answer] for answer in DESCRIBED)
        return Source(SOURCE, codes, partial(self.broad, n, TRAIN), partial(self.broad, SOURCE_TEST, TEST))

    def broad(self, n: int, purpose: int) -> tuple[Array, Array]:
        """x float32[n, d] and y int64[n] of the descriptions."""
        generator = np.random.default_rng([BROAD, purpose])
        scenes, asked = [], []
        for _ in range(n):
            scene = Scene(self.pen, purpose == TEST, generator, plain=self.plain)
            asked.append(described(scene))
            scenes.append(scene)
        x, y = self._packed(_gathered(scenes, asked), generator)
        return x.astype(np.float32), y

    def _packed(self, asked: Asked, generator: np.random.Generator) -> tuple[Array, Array]:
        prompts = self.tokens.rows([Prompt("", question) for question in asked.questions], self.length)
        x = np.concatenate([prompts, paint(self.pen, asked.marks, asked.colours, generator)], axis=1)
        return x, np.array([self.codes[answer] for answer in asked.answers], np.int64)


def ask(family: Family, n: int, pen: Ink, held: bool, generator: np.random.Generator, *, plain: bool = False) -> Asked:
    """Scenes of a family, and of each one of the questions that it admits in one of the wordings, all by lot."""
    scenes, asked = [], []
    for _ in range(n):
        scene = Scene(pen, held, generator, plain=plain)
        facts = list(family.scene(scene).items())
        slots, answer = facts[generator.integers(len(facts))]
        if plain:
            scene.leave(slots, family.asks)
        asked.append((family.question(int(generator.integers(len(family.wordings))), slots), answer))
        scenes.append(scene)
    return _gathered(scenes, asked)


def _gathered(scenes: Sequence[Scene], asked: Sequence[tuple[str, str]]) -> Asked:
    questions, answers = zip(*asked, strict=True)
    marks, colours = (np.stack([getattr(scene, name) for scene in scenes]) for name in ("marks", "colours"))
    return Asked(marks, colours, list(questions), list(answers))


class Lookup:
    """Finds what belongs to a row of whole numbers by 64 bits of it: a sum with odd random weights, overflow and all.

    keys: integers[n, d]. values: of any dtype [n, ...]. 24 bytes or so for each row, however wide it is.
    """

    def __init__(self, keys: Array, values: Array) -> None:
        weights = np.random.default_rng(SIGNATURE).integers(0, 1 << 63, keys.shape[1], np.int64)
        self.weights = 2 * weights + 1
        signatures = self._signatures(keys)
        order = np.argsort(signatures, kind="stable")
        self.signatures, self.values = signatures[order], values[order]

    def of(self, keys: Array) -> Array:
        """The values of rows (numbers[B, d]) that are known; raises InputError for any other."""
        signatures = self._signatures(keys)
        place = np.minimum(np.searchsorted(self.signatures, signatures), len(self.signatures) - 1)
        if not np.array_equal(self.signatures[place], signatures):
            raise InputError("vl-instruct: only rows of this stream, as they are, have kinds of tokens")
        return self.values[place]

    def _signatures(self, keys: Array) -> Array:
        with np.errstate(over="ignore"):
            return np.asarray(keys).astype(np.int64) @ self.weights


class Kinds:
    """What each token of a row is to its experience (see the top of this file).

    families: in the order of the stream. shown: what each patch of a row's picture shows, by the row's pixels.
    """

    def __init__(self, families: Sequence[Family], tokens: Tokens, length: int, shown: Lookup) -> None:
        self.length, self.shown = length, shown
        known = [{word for q in family.questions for _, word in words(q)} for family in families]
        self.prompts = [_prompts(tokens, length, family.questions, known, k) for k, family in enumerate(families)]
        asks = np.array([[kind in family.asks for family in families] for kind in KINDS])
        self.patches = np.array([[_kind(of, k) for of in asks] for k in range(len(families))], np.int8)

    def __call__(self, x: Array, experience: int) -> Array:
        """int8[n, 16 + length] of (float[n, d], the number of their experience); raises InputError for other rows."""
        shown = self.shown.of(x[:, self.length :])
        patches = np.where(shown == NOTHING, SHARED, self.patches[experience][shown])
        return np.concatenate([patches, self.prompts[experience].of(x[:, : self.length])], axis=1, dtype=np.int8)


def _prompts(tokens: Tokens, length: int, questions: list[str], known: Sequence[set[str]], k: int) -> Lookup:
    """The kinds of the tokens of every question of family k, where it is known which words each family has."""
    kinds = np.full((len(questions), length), PADDING, np.int8)
    for row, question in zip(kinds, questions, strict=True):
        starts, found = zip(*words(question), strict=True)
        for i, (start, end) in enumerate(_encoded(tokens, question).offsets):
            word = found[np.searchsorted(starts, max(start, end - 1), side="right") - 1]
            row[i] = _kind([word in vocabulary for vocabulary in known], k)
    return Lookup(tokens.rows([Prompt("", question) for question in questions], length), kinds)


def _kind(has: Sequence[bool] | Array, k: int) -> int:
    """What something is to family k, where each family has it or not."""
    count = int(np.sum(has))
    if count == 1 and has[k]:
        return OWN
    return SHARED if count in (0, len(has)) else AMBIGUOUS
