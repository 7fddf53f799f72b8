"""A memory of rows without labels whose classes are held in balance: that of RoTTA (CSTU).

Source: Yuan, Xie, Li: Robust test-time adaptation in dynamic scenarios, CVPR 2023, in the form of its code. Every
pseudo-class has the quota capacity / C (a real number: with 64 rows and 10 classes a class stops growing at 7). A row's
score is 1 / (1 + exp(-age / capacity)) + H / ln C, high for what is old and uncertain. Ours: rows whose answer is not
finite, or whose values no image and no standardised column comes near, are not offered at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ...streams import Array
from ..learner import State
from .test_time_parts import entropy

SANE = 100.0
"""No pixel and no standardised column is farther from its mean, in deviations."""


class BalancedMemory:
    """Up to ``capacity`` rows float[...] with pseudo-class, uncertainty (nats) and age (offers since).

    A new row enters where its class is below quota and there is room. Without room the row of the highest score leaves
    for it: among those of the largest classes where its class is below quota, else of its own class; but if that score
    is not above its own, the new row is dropped. Every offer ages all rows by one, the new one included.

    >>> memory = BalancedMemory(2, 2)
    >>> for value, kind, doubt in ((0.0, 0, 0.1), (1.0, 1, 0.6), (2.0, 1, 0.2)):
    ...     memory.offer(torch.tensor([value]), kind, doubt)
    >>> memory.rows().tolist(), memory.age.tolist()
    ([[0.0], [2.0]], [3, 1])
    """

    def __init__(self, capacity: int, classes: int) -> None:
        self.capacity, self.classes = capacity, classes
        self.came = 0
        self.clear()

    def clear(self) -> None:
        """Forget every row; rows go on being counted."""
        self._rows: list[Tensor] = []
        self.kind = np.empty(0, np.int64)
        self.doubt = np.empty(0)
        self.age = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self) -> Tensor:
        """float[n, ...], in the order in which they entered."""
        return torch.stack(self._rows)

    def weights(self) -> Tensor:
        """float32[n]: exp(-a) / (1 + exp(-a)) with a = age / capacity, half at most."""
        a = torch.from_numpy(self.age / self.capacity)
        return torch.sigmoid(-a).float()

    def offer(self, row: Tensor, kind: int, doubt: float) -> None:
        """One row float[...], the class that was answered, and that answer's entropy."""
        leaves = self._leaves(kind, self._score(np.zeros(1), np.array([doubt]))[0])
        if leaves is not None:
            if leaves < len(self):
                del self._rows[leaves]
                self.kind, self.age = np.delete(self.kind, leaves), np.delete(self.age, leaves)
                self.doubt = np.delete(self.doubt, leaves)
            self._rows.append(row.clone())
            self.kind, self.doubt = np.append(self.kind, kind), np.append(self.doubt, doubt)
            self.age = np.append(self.age, 0)
        self.age = self.age + 1

    def take(self, x: Tensor, z: Tensor, every: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Offer rows float[B, ...] with logits float[B, C], one after the other.

        Gives rows and weights of the memory each time ``every`` rows have come, those that were not offered included.
        """
        self.classes = z.shape[1]
        good = (z.isfinite().all(1) & (x.flatten(1).abs() <= SANE).all(1)).tolist()
        kinds, doubts = z.argmax(1).tolist(), entropy(z).tolist()
        for i, row in enumerate(x):
            if good[i]:
                self.offer(row, kinds[i], doubts[i])
            self.came += 1
            if self.came % every == 0 and len(self):
                yield self.rows(), self.weights().to(x.device)

    def _score(self, age: Array, doubt: Array) -> Array:
        found: Array = 1 / (1 + np.exp(-age / self.capacity)) + doubt / math.log(self.classes)
        return found

    def _leaves(self, kind: int, score: float) -> int | None:
        """The place of the row that makes room, the number of rows where none has to, None where the new one goes."""
        held = np.bincount(self.kind, minlength=self.classes)
        if held[kind] < self.capacity / self.classes:
            if len(self) < self.capacity:
                return len(self)
            among = np.isin(self.kind, np.flatnonzero(held == held.max()))
        else:
            among = self.kind == kind
        places = np.flatnonzero(among)
        scores = self._score(self.age[places], self.doubt[places])
        worst = len(scores) - 1 - int(scores[::-1].argmax())  # the last of equals
        return int(places[worst]) if scores[worst] > score else None

    def state(self) -> State:
        return {
            "rows": self.rows() if self._rows else None,
            "kind": self.kind,
            "doubt": self.doubt,
            "age": self.age,
            "came": self.came,
        }

    def load(self, state: State) -> None:
        self._rows = [] if state["rows"] is None else list(torch.as_tensor(state["rows"]).clone())
        self.kind, self.age = (np.array(state[k], np.int64) for k in ("kind", "age"))
        self.doubt = np.array(state["doubt"], np.float64)
        self.came = int(state["came"])
