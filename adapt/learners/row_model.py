"""Trees and networks as arrays, and the compiled loop that takes rows through them.

Shared by the learners whose algorithm is a loop over rows (``driftmoe_data.py``, ``driftmoe_task.py``,
``hoeffding_rows.py``); it knows nothing of batches and streams, for it goes into edge bundles as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...models.hoeffding import most_leaves, with_room

Array = NDArray[Any]


class RowModel:
    """The arrays of a model; leaves are made for its forest before a row could run out of them.

    loop: ``pass_rows(handle, x, y, *noted, answers, out, start, stop, test, train, room)``, which returns where it
    stopped. handle: makes one of a pool. pool: a NamedTuple with a ``forest``, all that is learnt. classes: with
    scores. room: leaves that one row may take. max_bytes: of the forest; there it stops growing.
    """

    def __init__(
        self,
        loop: Callable[..., int],
        handle: Callable[[Any], Any],
        pool: Any,
        *,
        classes: int,
        room: int,
        max_bytes: int,
    ) -> None:
        self._loop, self._make_handle, self.room, self.max_bytes = loop, handle, room, max_bytes
        self.work_on(pool, classes)

    def work_on(self, pool: Any, classes: int) -> None:
        """Take these arrays from now on."""
        self.pool, self.classes = pool, classes
        self._handle = self._make_handle(pool)
        self.most_leaves = most_leaves(pool.forest, self.max_bytes)

    def predict(self, x: Array, noted: Sequence[Array] = ()) -> tuple[Array, Array]:
        """Answers int64[n] and scores float64[n, C] of rows x[n, d]; noted: what learning wants back, filled."""
        return self._pass(x, np.empty(0, np.int64), noted, None, train=False)

    def learn(self, x: Array, y: Array, noted: Sequence[Array], answers: Array) -> None:
        """Learn rows that were answered before, with what was noted then."""
        self._pass(x, y, noted, answers, train=True)

    def test_then_train(self, x: Array, y: Array, noted: Sequence[Array] = ()) -> tuple[Array, Array]:
        """Row after row: ``predict``, then ``learn``."""
        return self._pass(x, y, noted, None, train=True)

    def _pass(
        self, x: Array, y: Array, noted: Sequence[Array], known: Array | None, *, train: bool
    ) -> tuple[Array, Array]:
        answers = np.empty(len(x), np.int64) if known is None else known
        out, at = np.empty((len(x), self.classes)), 0
        while at < len(x):
            room = self._make_room() if train else 0
            at = self._loop(self._handle, x, y, *noted, answers, out, at, len(x), known is None, train, room)
        return answers, out

    def _make_room(self) -> int:
        """Leaves that one row may take at most, after enlarging the forest where needed; 0 at the memory bound."""
        forest, room = with_room(self.pool.forest, self.room, self.most_leaves)
        if forest is not self.pool.forest:
            self.work_on(self.pool._replace(forest=forest), self.classes)
        return room
