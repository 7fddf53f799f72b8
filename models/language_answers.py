"""What a model wrote, as one of a closed set of answers."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_STRIPPED = re.compile(r"(?!(?<!\w)-(?=\.?\d))(?!(?<=\d)\.(?=\d))[\s!-/:-@\[-`{-~]")
"""White space and ASCII punctuation, but for the sign and the point of a number."""


def normalised(text: str) -> str:
    """Lower case, without white space and ASCII punctuation (but for a number's own).

    >>> normalised(" Very  Positive. ")
    'verypositive'
    >>> normalised("-1.5.")
    '-1.5'
    """
    return _STRIPPED.sub("", text.lower())


def answer_lengths(answers: Array, eos: int) -> Array:
    """int64[n]: tokens of each row up to its first ``eos``, that included; all of them where it has none."""
    ends = answers == eos
    return np.where(ends.any(1), ends.argmax(1) + 1, answers.shape[1])


class Matcher:
    """Finds the class of written tokens: token by token first, as text where that fails.

    answers: int[n, A] as in ``Layout``. tokenizer: JSON, read when it is first needed.
    """

    def __init__(self, answers: Array, tokenizer: str, pad: int, eos: int) -> None:
        self.pad, self.eos = pad, eos
        self._json = tokenizer
        self._answers = self._cut(np.asarray(answers, np.int64))
        self._texts: dict[str, int] = {}
        self._tokenizer: Any = None

    def classes(self, written: Array) -> Array:
        """int64[n]: the answer that each row of int[n, A] spells, ``len(answers)`` where it is none of them."""
        rows, back = np.unique(self._cut(written), axis=0, return_inverse=True)
        width = self._answers.shape[1]
        rows = np.pad(rows, ((0, 0), (0, max(0, width - rows.shape[1]))), constant_values=self.pad)[:, :width]
        same = (rows[:, None] == self._answers).all(2)
        found = np.where(same.any(1), same.argmax(1), -1)
        for i in np.flatnonzero(found < 0):
            found[i] = self._by_text(rows[i])
        return found[back.reshape(-1)]

    def _cut(self, tokens: Array) -> Array:
        """The same with ``pad`` from the first ``eos`` on."""
        return np.where(np.maximum.accumulate(tokens == self.eos, axis=1), self.pad, tokens)

    def _by_text(self, tokens: Array) -> int:
        if self._tokenizer is None:
            self._tokenizer = _tokenizer(self._json)
            self._texts = {}
            for code, answer in enumerate(self._answers):
                self._texts.setdefault(self._spelt(answer), code)
        return self._texts.get(self._spelt(tokens), len(self._answers))

    def _spelt(self, tokens: Array) -> str:
        text: str = self._tokenizer.decode(tokens[tokens != self.pad].tolist())
        return normalised(text)


def _tokenizer(json: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json)
