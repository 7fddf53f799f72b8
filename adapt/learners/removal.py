"""SparCL's dynamic data removal: rows of the experience at hand that are always answered rightly are left out.

In every stage the wrong answers to each row are counted; at its end those with the fewest leave, and do not come back
within the experience. Of equals it is a matter of a seeded lot. ``score="forgetting"`` counts changes from right to
wrong instead, as the authors' code does, rows never right having the highest count.

A row is recognised by its numbers (another epoch gives it another id), so equal rows share their fate. Rows of a memory
are never removed.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...streams import Array
from ..learner import State

Score = Literal["misclassified", "forgetting"]
NEVER_RIGHT = 1 << 30


class Removal:
    """share: of an experience's rows, in all. cutoff: stages over which it is spread evenly."""

    def __init__(self, share: float, cutoff: int, score: Score, seed: int) -> None:
        self.share, self.cutoff, self.score = share, cutoff, score
        self._rng = np.random.default_rng([seed, 79])
        self._weights: NDArray[np.int64] = np.empty(0, np.int64)
        self._at: NDArray[np.int64] = np.empty(0, np.int64)
        self._ids: Array | None = None
        self.begin()

    @property
    def removed(self) -> int:
        """Rows that have left."""
        return int(self._gone.sum())

    def begin(self) -> None:
        """A new experience: all rows are back, nothing is known of any."""
        self._places: dict[int, int] = {}
        self._gone = np.zeros(0, np.bool_)
        self.stage = 0
        self._forget()

    def _forget(self) -> None:
        """A new stage: statistics begin anew."""
        n = len(self._gone)
        self._counts, self._shown = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self._right = np.zeros(n, np.bool_)
        self._ever = np.zeros(n, np.bool_)

    def keep(self, x: Tensor, ids: Array | None = None) -> Tensor | None:
        """bool[B]: which of the rows are still there; None for all. ids: of this batch, by which ``observe`` may know
        its rows again without looking at them."""
        at = self._find(x)
        gone = self._gone[at]
        there = ~gone if gone.any() else None
        self._at, self._ids = at, ids
        if there is None:
            return None
        self._at = at[there]
        self._ids = None if ids is None else ids[there]
        return torch.from_numpy(there).to(x.device)

    def observe(self, x: Tensor, right: Tensor, ids: Array | None = None) -> None:
        """The rows were answered, rightly where bool[B] says so."""
        known = ids is not None and self._ids is not None and np.array_equal(ids, self._ids)
        at, ok = self._at if known else self._find(x), right.numpy(force=True)
        np.add.at(self._shown, at, 1)
        lost = ~ok & self._right[at] if self.score == "forgetting" else ~ok
        np.add.at(self._counts, at[lost], 1)
        self._right[at] = ok
        self._ever[at] |= ok

    def end_stage(self, stage: int) -> None:
        """Stage ``stage`` (from 1) is over: its part of the rows leaves. Nothing if it was over before."""
        if stage <= self.stage:
            return
        self.stage = stage
        if stage <= self.cutoff:
            there = np.flatnonzero(~self._gone & (self._shown > 0))
            goal = round(self.share * len(self._gone) * stage / self.cutoff)
            n = min(goal - self.removed, len(there))
            if n > 0:
                counts = self._counts.copy()
                if self.score == "forgetting":
                    counts[~self._ever] = NEVER_RIGHT
                order = np.lexsort((self._rng.random(len(there)), counts[there]))
                self._gone[there[order[:n]]] = True
        self._forget()

    def _find(self, x: Tensor) -> NDArray[np.int64]:
        """The places of rows; new rows get new ones."""
        places = self._places
        at = np.array([places.setdefault(key, len(places)) for key in self._digests(x)], np.int64)
        grown = len(places) - len(self._gone)
        if grown:
            for name in ("_gone", "_counts", "_shown", "_right", "_ever"):
                setattr(self, name, np.pad(getattr(self, name), (0, grown)))
        return at

    def _digests(self, x: Tensor) -> list[int]:
        """A number for each row: its bits, each word times a fixed odd number, added up modulo 2^64."""
        rows = x.detach().cpu().contiguous().numpy().reshape(len(x), -1)
        words = (rows if rows.shape[1] % 2 == 0 else np.pad(rows, ((0, 0), (0, 1)))).view(np.int64)
        if len(self._weights) != words.shape[1]:
            drawn = np.random.default_rng(words.shape[1]).integers(-(2**62), 2**62, words.shape[1])
            self._weights = np.asarray(2 * drawn + 1, np.int64)
        found: list[int] = (words @ self._weights).tolist()
        return found

    def state(self) -> State:
        return {
            "keys": np.array(list(self._places), np.int64),
            "gone": self._gone,
            "counts": self._counts,
            "shown": self._shown,
            "right": self._right,
            "ever": self._ever,
            "stage": self.stage,
            "generator": self._rng.bit_generator.state,
        }

    def load(self, state: State) -> None:
        self._places = {int(key): place for place, key in enumerate(state["keys"])}
        for name in ("gone", "counts", "shown", "right", "ever"):
            setattr(self, f"_{name}", np.array(state[name]))
        self.stage = int(state["stage"])
        self._rng.bit_generator.state = state["generator"]
