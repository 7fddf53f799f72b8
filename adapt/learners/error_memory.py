"""The memories behind ReLoop2: the sketch of the paper, and rows kept one by one, its exact control.

Both are addressed by vectors, keep labels y and what the model had answered, and give local means of both. An address
is made when a row is predicted and kept until its label comes, so that nothing has to be computed twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from ...models.kernels import sketch
from ...streams import Array
from ..learner import State

Address = Mapping[str, Array]
Keep = Literal["cumulative", "decay", "ring"]
RESCALED = 1e12


@dataclass(frozen=True, slots=True)
class Found:
    """Local means: y and said float64[B, V]; n float64[B], the rows behind them, 0 where there are none."""

    y: Array
    said: Array
    n: Array


class ErrorMemory(Protocol):
    """What ReLoop2 needs of a memory."""

    values: int

    @property
    def rows(self) -> float:
        """The weight of what is in it."""
        ...

    def address(self, h: Array) -> dict[str, Array]:
        """Where rows with these vectors (float32[B, d]) lie: arrays with leading axis B."""
        ...

    def read(self, at: Address, said: Array) -> Found: ...
    def write(self, at: Address, y: Array, said: Array, weight: Array | None = None) -> None: ...
    def fit(self, values: int) -> None: ...
    def reset(self) -> None: ...
    def state(self) -> State: ...
    def load(self, state: State) -> None: ...
    def size(self) -> int: ...


class SketchMemory:
    """K arrays of 2^L buckets (``models/kernels/sketch.py``), and what leaves them with time.

    keep: cumulative (nothing leaves, as in the paper), ring (rows go into a slot of time; there are ``slots``, and the
    oldest is emptied for a new one), decay (everything is faded by ``rho`` with every slot). slot: rows to a slot.
    Two memories of equal settings and seed add up (``merge``).
    """

    def __init__(
        self,
        arrays: int,
        bits: int,
        *,
        values: int = 1,
        seed: int = 0,
        tau: float = 0.1,
        prior: float = 0.0,
        uniform: bool = False,
        keep: Keep = "cumulative",
        slot: int = 500,
        slots: int = 4,
        rho: float = 0.8,
        dtype: str = "float64",
    ) -> None:
        self.arrays, self.bits, self.values, self.seed = arrays, bits, values, seed
        self.tau, self.prior, self.uniform = tau, prior, uniform
        self.keep, self.slot, self.slots, self.rho = keep, slot, slots if keep == "ring" else 1, rho
        self._dtype = torch.float32 if dtype == "float32" else torch.float64
        self._planes: dict[int, torch.Tensor] = {}
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.table = sketch.new_table(self.arrays, self.bits, self.values, self.slots, self._dtype)
        self._now, self._filled, self._scale = 0, 0, 1.0
        self._weights = np.zeros(self.slots)

    @property
    def rows(self) -> float:
        """N, the weight of what is in the memory, newest rows counting 1."""
        return float(self._weights.sum()) / self._scale

    def size(self) -> int:
        """Bytes."""
        return self.table.numel() * self.table.element_size()

    def address(self, h: Array) -> dict[str, Array]:
        d = h.shape[1]
        if d not in self._planes:
            self._planes[d] = sketch.new_planes(d, self.arrays, self.bits, self.seed)
        rows = torch.from_numpy(np.ascontiguousarray(h, np.float32))
        return {"bucket": sketch.hash_rows(rows, self._planes[d], self.bits).numpy()}

    def read(self, at: Address, said: Array) -> Found:
        found = sketch.read(
            self.table,
            torch.from_numpy(np.ascontiguousarray(at["bucket"])),
            torch.from_numpy(np.ascontiguousarray(said)),
            total=float(self._weights.sum()),
            tau=self.tau,
            prior=self.prior * self._scale,
            uniform=self.uniform,
        )
        y, base, n = (t.double().numpy() for t in found)
        return Found(y, base, n / self._scale)

    def write(self, at: Address, y: Array, said: Array, weight: Array | None = None) -> None:
        """Rows in order; a slot that is full makes way for the next within the call. y, said: float64[B, V]."""
        weights = np.ones(len(y)) if weight is None else weight
        done = 0
        while done < len(y):
            end = len(y) if self.keep == "cumulative" else min(len(y), done + self.slot - self._filled)
            part = slice(done, end)
            self._write(at["bucket"][part], y[part], said[part], weights[part] * self._scale)
            self._filled += end - done
            done = end
            if self.keep != "cumulative" and self._filled == self.slot:
                self._next()

    def _write(self, buckets: Array, y: Array, said: Array, weight: Array) -> None:
        at, labels, answers, weights = (torch.from_numpy(np.ascontiguousarray(a)) for a in (buckets, y, said, weight))
        sketch.write(self.table, self._now, at, labels, answers, weights)
        self._weights[self._now] += weight.sum()

    def _next(self) -> None:
        """A new slot begins. Instead of fading all that is there, rows to come weigh more."""
        self._filled = 0
        if self.keep == "ring":
            self._now = (self._now + 1) % self.slots
            self.table[self._now] = 0
            self._weights[self._now] = 0
            return
        self._scale /= self.rho
        if self._scale > RESCALED:
            self.table /= self._scale
            self._weights /= self._scale
            self._scale = 1.0

    def fit(self, values: int) -> None:
        """Make room for rows of so many values (classes that came later)."""
        had = self.values
        if values > had:
            table = sketch.new_table(self.arrays, self.bits, values, self.slots, self._dtype)
            table[..., : 1 + had] = self.table[..., : 1 + had]
            table[..., 1 + values : 1 + values + had] = self.table[..., 1 + had :]
            self.table, self.values = table, values

    def merge(self, other: SketchMemory) -> None:
        """Add what another memory holds, slot by slot; both must have the same settings, seed and number of slots."""
        mine, its = ((m.arrays, m.bits, m.values, m.seed, m.keep, m.slots) for m in (self, other))
        if mine != its:
            raise ValueError(f"memories that differ do not add up: {mine} and {its}")
        ratio = self._scale / other._scale
        for back in range(self.slots):
            to, of = ((m._now - back) % self.slots for m in (self, other))
            self.table[to] += other.table[of] * ratio
            self._weights[to] += other._weights[of] * ratio

    def state(self) -> State:
        return {
            "table": self.table,
            "weights": self._weights,
            "now": self._now,
            "filled": self._filled,
            "scale": self._scale,
        }

    def load(self, state: State) -> None:
        self.table = torch.as_tensor(state["table"]).clone()
        self.values = (self.table.shape[3] - 1) // 2
        self._weights = np.array(state["weights"])
        self._now, self._filled, self._scale = int(state["now"]), int(state["filled"]), float(state["scale"])


class NeighbourMemory:
    """The last ``capacity`` rows themselves; a row reads its ``neighbours`` nearest by the cosine, softmax(cos / tau).

    The alternative that the paper names and does not use; here the sketch's control. It costs one product with all
    rows a read, and d numbers a row.
    """

    def __init__(self, capacity: int, neighbours: int, *, values: int = 1, tau: float = 0.1) -> None:
        self.capacity, self.neighbours, self.values, self.tau = capacity, neighbours, values, tau
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._written = 0
        self._vectors = np.zeros((0, 0), np.float32)
        self._pairs = np.zeros((0, 2, self.values))
        self._weight = np.zeros(0)

    @property
    def rows(self) -> float:
        """The weight of what is in the memory."""
        return float(self._weight.sum())

    def size(self) -> int:
        """Bytes."""
        return self._vectors.nbytes + self._pairs.nbytes + self._weight.nbytes

    def address(self, h: Array) -> dict[str, Array]:
        length = np.linalg.norm(h, axis=1, keepdims=True)
        return {"place": (h / np.where(length > 0, length, 1.0)).astype(np.float32)}

    def nearest(self, place: Array) -> tuple[Array, Array]:
        """(rows int64[B, k], cosines float64[B, k]) of the nearest in the memory, nearest first, earlier rows first."""
        k = min(self.neighbours, len(self._weight))
        cosine = np.round(place.astype(np.float64) @ self._vectors.T.astype(np.float64), 9)  # alike in any company
        near = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        near.sort(axis=1)
        order = np.argsort(-np.take_along_axis(cosine, near, 1), axis=1, kind="stable")
        near = np.take_along_axis(near, order, 1)
        return near, np.take_along_axis(cosine, near, 1)

    def read(self, at: Address, said: Array) -> Found:
        if not len(self._weight):
            return Found(said, said, np.zeros(len(said)))
        near, cosine = self.nearest(at["place"])
        a = np.exp((cosine - cosine[:, :1]) / self.tau) * self._weight[near]
        a /= a.sum(1, keepdims=True)
        y, its = np.einsum("bk,bkpv->pbv", a, self._pairs[near])
        return Found(y, its, self._weight[near].sum(1))

    def write(self, at: Address, y: Array, said: Array, weight: Array | None = None) -> None:
        place = at["place"][-self.capacity :]
        pairs = np.stack([y, said], 1)[-self.capacity :]
        weights = (np.ones(len(y)) if weight is None else weight)[-self.capacity :]
        room = min(self.capacity - len(self._weight), len(place))
        self._vectors = np.concatenate([self._vectors.reshape(-1, place.shape[1]), place[:room]])
        self._pairs = np.concatenate([self._pairs, pairs[:room]])
        self._weight = np.concatenate([self._weight, weights[:room]])
        self._written += len(y)
        if room < len(place):
            to = np.arange(self._written - len(place) + room, self._written) % self.capacity
            self._vectors[to], self._pairs[to], self._weight[to] = place[room:], pairs[room:], weights[room:]

    def fit(self, values: int) -> None:
        """Make room for rows of so many values."""
        if values > self.values:
            self._pairs = np.pad(self._pairs, ((0, 0), (0, 0), (0, values - self.values)))
            self.values = values

    def state(self) -> State:
        return {
            "vectors": self._vectors,
            "pairs": self._pairs,
            "weight": self._weight,
            "written": self._written,
        }

    def load(self, state: State) -> None:
        self._vectors, self._pairs = np.array(state["vectors"]), np.array(state["pairs"])
        self._weight, self._written = np.array(state["weight"]), int(state["written"])
        self.values = self._pairs.shape[2]


def make_memory(params: Any, values: int, seed: int) -> ErrorMemory:
    """The memory that the parameters of ``reloop2`` ask for."""
    if params.memory == "exact":
        return NeighbourMemory(params.capacity, params.neighbours, values=values, tau=params.tau)
    return SketchMemory(
        params.arrays,
        params.bits,
        values=values,
        seed=seed,
        tau=params.tau,
        prior=params.thin,
        uniform=params.uniform,
        keep=params.keep,
        slot=params.slot,
        slots=params.slots,
        rho=params.rho,
        dtype=params.precision,
    )
