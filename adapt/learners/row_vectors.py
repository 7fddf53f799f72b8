"""Where a row lies for a memory: the base model's hidden vector, centred, with the code of a column beside it."""

from __future__ import annotations

import numpy as np

from ...models.inputs import Columns
from ...streams import Array, Batch, InputError, StreamSpec
from ..learner import Learner, Prediction, State

CODE = 16
"""Numbers in the code of a column's value."""


class RowVectors:
    """Address vectors float32[B, d] of rows.

    Hidden vectors lie in one corner of their space (ReLU), where planes through the origin part little; hence their
    mean over the last ``rows`` rows learnt is the origin, from each deployment to the next. A learner without hidden
    vectors gets its columns, standardised by the same rows, categories one-hot. code: a column whose value v stands
    there as CODE normal numbers drawn from v, as long as hidden vectors are on the average.
    """

    def __init__(self, spec: StreamSpec, code: str, rows: int, seed: int) -> None:
        names = [c.name for c in spec.columns]
        if code and code not in names:
            raise InputError(f"code: {spec.name} has no column {code!r}; it has {', '.join(names)}")
        self._code = names.index(code) if code else -1
        self._seed, self._rows = seed, rows
        fan = [0 if c.categories is None else 64 if c.open else len(c.categories) for c in spec.columns]
        self._columns = Columns(fan)
        self._fan = fan
        self._recent = np.zeros((0, len(names)))
        self._mean = np.zeros(0, np.float32)
        self._length = 1.0

    def keep(self, x: Array) -> None:
        """Rows that the base learns from; the last of them are kept."""
        self._recent = np.concatenate([self._recent, x[-self._rows :]])[-self._rows :]

    def centre_on(self, learner: Learner) -> None:
        """The base has changed: find the origin anew."""
        self._columns = Columns(self._fan)
        self._columns.observe(np.ascontiguousarray(self._recent))
        if not len(self._recent):
            self._mean, self._length = np.zeros(0, np.float32), 1.0
            return
        _, h = self._hidden(Batch(np.arange(len(self._recent)), self._recent, 0.0), learner)
        h = h[np.isfinite(h).all(1)]
        self._mean = h.mean(0).astype(np.float32) if len(h) else np.zeros(0, np.float32)
        spread = np.linalg.norm(h - self._mean, axis=1).mean() if len(h) else 0.0
        self._length = float(spread) if spread > 0 else 1.0

    def of(self, batch: Batch, learner: Learner) -> tuple[Prediction, Array]:
        """What the learner predicts, and where the rows lie."""
        answer, h = self._hidden(batch, learner)
        h = (h - self._mean if len(self._mean) == h.shape[1] else h).astype(np.float32)
        if self._code < 0:
            return answer, h
        return answer, np.concatenate(
            [h / np.float32(self._length), self._codes(np.asarray(batch.x)[:, self._code])], 1
        )

    def _hidden(self, batch: Batch, learner: Learner) -> tuple[Prediction, Array]:
        answer, h = learner.represent(batch)
        if h is None:
            h = self._columns.tensor(np.asarray(batch.x)).numpy()
        return answer, h

    def _codes(self, values: Array) -> Array:
        """float32[B, CODE] of length about 1, from the bits of each value: the same wherever and whenever it comes."""
        bits = np.ascontiguousarray(values, np.float64).view(np.uint64)
        salt = np.arange(1, 2 * CODE + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(self._seed)
        word = bits[:, None] ^ salt
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            word = (word ^ (word >> np.uint64(shift))) * np.uint64(factor)
        uniform = ((word >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
        radius, angle = np.sqrt(-2 * np.log(uniform[:, :CODE])), 2 * np.pi * uniform[:, CODE:]
        return (radius * np.cos(angle) / np.sqrt(CODE)).astype(np.float32)

    def state(self) -> State:
        return {
            "columns": self._columns.state(),
            "recent": np.nan_to_num(self._recent, nan=0.0),
            "missing": np.isnan(self._recent),
            "mean": self._mean,
            "length": self._length,
        }

    def load(self, state: State) -> None:
        self._columns = Columns(self._fan)
        self._columns.load(state["columns"])
        self._recent = np.where(state["missing"], np.nan, state["recent"])
        self._mean, self._length = np.array(state["mean"]), float(state["length"])
