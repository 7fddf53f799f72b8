"""The replay buffer: rows kept for later, in arrays that are allocated once.

Three ways to choose who stays, all O(1) for a row:
reservoir: every row ever offered is kept with the same probability (Vitter, ACM TOMS 1985);
ring: every class has an equal share, its oldest row goes (GEM; Lopez-Paz, Ranzato, NIPS 2017);
balanced: a full memory drops a random row of the class that has most (the greedy sampler of GDumb; Prabhu et al., ECCV
2020).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..learner import State
from .parts import Rows

Kind = Literal["reservoir", "ring", "balanced"]


class Memory:
    """At most ``capacity`` rows. Bytes: capacity * (4 * size of a row + 16 + 4 * classes where logits are kept).

    kind: who stays. logits: whether outputs of the network are kept too. generator: private, part of the state.
    """

    def __init__(
        self, capacity: int, kind: Kind, shape: Sequence[int], classes: int, *, logits: bool = False, seed: int = 0
    ) -> None:
        if capacity < 1:
            raise ValueError(f"a memory holds at least one row, not {capacity}")
        self.capacity, self.kind = capacity, kind
        self.x = torch.zeros((capacity, *shape))
        self.y = torch.zeros(capacity, dtype=torch.int64)
        self.task = torch.zeros(capacity, dtype=torch.int64)
        self.logits = torch.zeros((capacity, classes)) if logits else None
        self.size = 0
        self.offered = 0
        self._rng = np.random.default_rng([seed, 77])
        self._places: list[deque[int]] = []
        """Of each class, the places of its rows, the oldest first."""

    def insert(self, rows: Rows, logits: Tensor | None = None) -> None:
        """Offer rows, one after the other. logits: float[B, C] where they are kept, in single precision."""
        taken = [(self._place(label), i) for i, label in enumerate(rows.y.tolist())]
        last = {place: i for place, i in taken if place is not None}
        if not last:
            return
        to, which = torch.tensor(list(last)), torch.tensor(list(last.values()))
        self.x[to] = rows.x.detach().cpu()[which]
        self.y[to] = rows.y.cpu()[which]
        self.task[to] = rows.task.cpu()[which]
        if self.logits is not None and logits is not None:
            self._widen(logits.shape[1])
            self.logits[to] = logits.detach().float().cpu()[which]

    def draw(self, n: int, device: torch.device | str = "cpu") -> Rows | None:
        """n rows without repetition (all, where there are fewer), None out of an empty memory."""
        if not self.size:
            return None
        index = torch.from_numpy(self._rng.choice(self.size, min(n, self.size), replace=False, shuffle=False))
        logits = None if self.logits is None else self.logits[index].to(device)
        return Rows(self.x[index].to(device), self.y[index].to(device), self.task[index].to(device), logits)

    def enlarge(self, capacity: int) -> None:
        """More room; what is kept stays where it is."""
        more = capacity - self.capacity
        arrays = (self.x, self.y, self.task)
        self.x, self.y, self.task = (torch.cat([a, a.new_zeros((more, *a.shape[1:]))]) for a in arrays)
        self.capacity = capacity

    def _place(self, label: int) -> int | None:
        """Where a row of this class goes; None: nowhere."""
        self.offered += 1
        if self.kind == "reservoir":
            place = self.size if self.size < self.capacity else int(self._rng.integers(self.offered))
            self.size = min(self.size + 1, self.capacity)
            return place if place < self.capacity else None
        while len(self._places) <= label:
            self._places.append(deque())
        mine = self._places[label]
        if self.kind == "ring" and self._full_share(mine):
            mine.rotate(-1)
            return mine[-1]
        if self.size < self.capacity:
            place, self.size = self.size, self.size + 1
        else:
            most = max(self._places, key=len)
            if self.kind == "balanced" and most is mine and self._rng.random() > len(mine) / (len(mine) + 1):
                return None
            if self.kind == "balanced":
                at = int(self._rng.integers(len(most)))
                most[0], most[at] = most[at], most[0]
            place = most.popleft()
        mine.append(place)
        return place

    def _full_share(self, mine: deque[int]) -> bool:
        """Whether a class has its share of a full memory."""
        present = sum(1 for places in self._places if places) + (not mine)
        return self.size == self.capacity and len(mine) >= max(1, self.capacity // present)

    def _widen(self, classes: int) -> None:
        """Room for logits of classes that came later; what was stored counts as 0 for them."""
        assert self.logits is not None
        if self.logits.shape[1] < classes:
            wide = torch.zeros((self.capacity, classes))
            wide[:, : self.logits.shape[1]] = self.logits
            self.logits = wide

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        arrays = [self.x, self.y, self.task, *([] if self.logits is None else [self.logits])]
        return sum(a.nbytes for a in arrays)

    def state(self) -> State:
        generator: Any = self._rng.bit_generator.state
        kept: dict[str, Any] = {"x": self.x, "y": self.y, "task": self.task, "size": self.size}
        kept |= {"offered": self.offered, "generator": generator, "places": [list(p) for p in self._places]}
        return kept if self.logits is None else kept | {"logits": self.logits}

    def load(self, state: State) -> None:
        self.x, self.y, self.task = state["x"].clone(), state["y"].clone(), state["task"].clone()
        self.capacity = len(self.y)
        self.logits = state["logits"].clone() if "logits" in state else None
        self.size, self.offered = int(state["size"]), int(state["offered"])
        self._rng.bit_generator.state = state["generator"]
        self._places = [deque(int(i) for i in places) for places in state["places"]]
