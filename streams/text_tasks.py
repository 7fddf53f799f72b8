"""Tasks of text as a stream: prompts become rows of token ids, and the class codes say which answer is right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from .events import Array, Rejected
from .experiences import TEST, TRAIN, ExperienceBlocks, Rows, Task, stratified, stream_of
from .sources import Block, BlockStream, Position
from .spec import MAX_CLASSES, Column, InputError, Source, Text
from .tokens import Prompt, Tokens, read_tokens, trained_tokens

OTHER = "(another text)"
"""The last class: whatever a model says that is none of the answers."""
HELD_OUT, VALIDATION = 0.2, 70
"""Share of training rows to tune on, and the seed of their draw."""
_STRIPPED = re.compile(r"(?!(?<!\w)-(?=\.?\d))(?!(?<=\d)\.(?=\d))[\s!-/:-@\[-`{-~]")
"""White space and ASCII punctuation, but for the sign and the point of a number."""


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Prompts and the answers to them, as text."""

    prompts: list[Prompt]
    answers: list[str]

    def __len__(self) -> int:
        return len(self.prompts)

    def rows(self, index: Sequence[int] | Array) -> Examples:
        """Those with these numbers."""
        return Examples([self.prompts[i] for i in index], [self.answers[i] for i in index])

    def drawn(self, n: int, generator: np.random.Generator) -> Examples:
        """``n`` of them at most, every answer in its share, in the order they have; all for 0."""
        return self.rows(stratified(self._codes(), n, generator)) if 0 < n < len(self) else self

    def parted(self, share: float, generator: np.random.Generator) -> tuple[Examples, Examples]:
        """Two parts, the first ``share`` of them (to less than one), every answer in its share in both."""
        first = np.zeros(len(self), bool)
        if n := round(share * len(self)):
            first[stratified(self._codes(), n, generator)] = True
        return self.rows(np.flatnonzero(first)), self.rows(np.flatnonzero(~first))

    def _codes(self) -> Array:
        return np.unique(self.answers, return_inverse=True)[1]


@dataclass(frozen=True, slots=True, eq=False)
class TextTask:
    """One task: what it is learnt from, and what it is judged by (may be empty)."""

    name: str
    train: Examples
    test: Examples


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """length: tokens of a prompt. vocabulary: token ids of a tokenizer that is trained here. tokenizer: path of one
    that is there already; empty to train one.
    """

    length: int
    vocabulary: int
    tokenizer: str


def normalised(text: str) -> str:
    """Text as answers are compared: lower case, without white space and ASCII punctuation (but for a number's own).

    >>> normalised(" Science or Technology.") == normalised("science or technology")
    True
    """
    return _STRIPPED.sub("", text.lower())


def together(parts: Sequence[Examples]) -> Examples:
    """All of them, one after the other."""
    return Examples([p for part in parts for p in part.prompts], [a for part in parts for a in part.answers])


def text_stream(
    name: str,
    tasks: Sequence[TextTask],
    layout: Layout,
    *,
    mix: tuple[Examples, Examples] | None = None,
    validation: bool = False,
    epochs: int = 1,
    train_rows: int = 0,
    test_rows: int = 0,
    seed: int = 0,
    notes: dict[str, Any] | None = None,
    rejected: Sequence[Sequence[Rejected]] = (),
) -> BlockStream:
    """One task after the other; classes are the answers' texts, then ``OTHER``. Scenario "domain".

    mix: (train, test) of ``spec.source``. validation: judge by a fifth of each task's training rows, which are then not
    learnt, instead of its test rows. rejected: of each task, told as it begins. A tokenizer that is trained here
    sees the training prompts and answers of the first task, all of them whatever train_rows is, so that it does not
    depend on the seed. Answers that are the same but for case, punctuation and blanks are one class, spelled as it came
    first. Raises InputError.
    """
    if layout.length < 8:
        raise InputError(f"{name}: length must be at least 8 tokens, not {layout.length}")
    if train_rows < 0 or test_rows < 0:
        raise InputError(f"{name}: train_rows and test_rows must be at least 0")
    tokens = _tokens(tasks[0].train, layout)
    parts = [part for task in tasks for part in (task.train, task.test)]
    spelled: dict[str, str] = {}
    for answer in together([*parts, *(mix or ())]).answers:
        spelled.setdefault(normalised(answer), answer)
    codes, classes = {key: k for k, key in enumerate(spelled)}, list(spelled.values())
    if len(classes) >= MAX_CLASSES:
        raise InputError(f"{name}: {len(classes)} different answers; a stream has at most {MAX_CLASSES - 1}")

    def rows(examples: Examples) -> Rows:
        y = np.array([codes[normalised(answer)] for answer in examples.answers], np.int64)
        return Rows(tokens.rows(examples.prompts, layout.length), np.arange(len(y)), y)

    made = []
    for k, task in enumerate(map(_to_tune_on, tasks) if validation else tasks):
        train = task.train.drawn(train_rows, np.random.default_rng([seed, TRAIN, k]))
        test = task.test.drawn(test_rows, np.random.default_rng([seed, TEST, k]))
        made.append(Task(task.name, rows(train), rows(test) if len(test) else None))
    known = [*classes, OTHER]
    stream = stream_of(made, name=name, classes=known, shape=None, scenario="domain", epochs=epochs, notes=notes)
    text = Text(layout.length, tokens.size, tokens.pad, tokens.eos, tokens.answers(classes), tokens.json)
    source = None
    if mix is not None:
        train, test = mix
        theirs = tuple(sorted({codes[normalised(answer)] for answer in together(mix).answers}))
        source = Source("broad mix", theirs, lambda: _arrays(rows(train)), lambda: _arrays(rows(test)))
    columns = token_columns(layout.length)
    spec = replace(stream.spec, columns=columns, target_name="answer", text=text, source=source)
    return BlockStream(spec, _RejectedFirst(ExperienceBlocks(made, epochs, 0.0, seed), rejected))


def _to_tune_on(task: TextTask) -> TextTask:
    test, train = task.train.parted(HELD_OUT, np.random.default_rng(VALIDATION))
    return TextTask(task.name, train, test)


class _RejectedFirst:
    """Blocks of experiences; as one begins, its rejected rows come before the others."""

    start: ClassVar[Position] = ExperienceBlocks.start

    def __init__(self, blocks: ExperienceBlocks, rejected: Sequence[Sequence[Rejected]]) -> None:
        self.blocks, self.rejected = blocks, rejected

    def read(self, at: Position) -> Block:
        block = self.blocks.read(at)
        if not self.rejected or at["epoch"] or at["row"]:
            return block
        *before, batch = block.events
        refused = [replace(row, time=batch.time) for row in self.rejected[at["experience"]]]
        return Block([*before, *refused, batch], block.following)


@lru_cache(maxsize=8)
def token_columns(length: int) -> tuple[Column, ...]:
    """A column per token of a prompt; which ids there are, ``spec.text`` says."""
    return tuple(Column(f"token {j}", missing=False) for j in range(length))


def _arrays(rows: Rows) -> tuple[Array, Array]:
    return rows.x.astype(np.float32), rows.y


def _tokens(first: Examples, layout: Layout) -> Tokens:
    """The tokenizer that is given, or one that is trained on the first task."""
    if layout.tokenizer:
        return read_tokens(layout.tokenizer)
    prompts = [f"{p.head}{p.text}{p.tail}" for p in first.prompts]
    return trained_tokens([*prompts, *first.answers], layout.vocabulary)
