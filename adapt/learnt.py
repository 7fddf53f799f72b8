"""What was learnt, row by row: which ids, with which label, how often, and what is kept to take a row out again.

A request to forget is first of all a question to this list: of a row that was never learnt, was learnt with another
label, or is forgotten already, no algebra can tell that reliably.

Kept for each row: id, label, group, a keyed digest of features and label (16 bytes), and, where ``width`` is given,
the base features as float32: 40 + 4 width bytes, and about 300 bytes of Python for the tables. A forgotten row is
overwritten with zeros; of it only the id stays, so that a second request can be told apart.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from heapq import heapify, heappop, heappush

import numpy as np

from ..streams import Array
from .learner import CannotForget, State

FREE = np.iinfo(np.int64).min
"""The id of a place that holds no row."""


class Learnt:
    """The multiset of learnt rows.

    width: base features of a row that are kept, None for none. key: of the digests; without it equal rows could be
    looked for by guessing.
    """

    def __init__(self, width: int | None, key: bytes) -> None:
        self.width = width
        self._key = hashlib.blake2b(key).digest()
        self.forgotten: dict[int, int] = {}
        """Ids forgotten, and how many rows under each."""
        self.barred: set[int] = set()
        """Ids that must not be learnt: a ledger says that they were forgotten after this state was written."""
        self._empty(0)
        self._index()

    def _empty(self, places: int) -> None:
        self._ids = np.full(places, FREE)
        self._labels = np.zeros(places, np.int64)
        self._groups = np.zeros(places, np.int64)
        self._digests = np.zeros((places, 2), np.int64)
        self._rows = np.zeros((places, self.width or 0), np.float32)
        self._used = 0

    def __len__(self) -> int:
        return self._used - len(self._free)

    def digests(self, z: Array, labels: Array) -> Array:
        """int64[m, 2]: keyed digests of base features (float32 numbers) and label."""
        rows = np.ascontiguousarray(z, np.float32)
        found = [
            hashlib.blake2b(row.tobytes() + int(y).to_bytes(8, "little", signed=True), key=self._key, digest_size=16)
            for row, y in zip(rows, labels.tolist())
        ]
        return np.array([np.frombuffer(d.digest(), "<i8") for d in found], np.int64).reshape(len(rows), 2)

    # --- learning -----------------------------------------------------------------------------------------------

    def add(self, ids: Array, z: Array, labels: Array, group: int) -> None:
        """Note rows that are being learnt."""
        digests = self.digests(z, labels)
        for i, row in enumerate(ids.tolist()):
            at = self._place()
            self._ids[at], self._labels[at], self._groups[at] = row, labels[i], group
            self._digests[at] = digests[i]
            if self.width is not None:
                self._rows[at] = z[i]
            self._places.setdefault(row, []).append(at)
            self._copies[digests[i].tobytes()] += 1
        self._total += digests.sum(axis=0)

    def _place(self) -> int:
        if self._free:
            return heappop(self._free)
        if self._used == len(self._ids):
            more = max(64, self._used)
            self._ids = np.concatenate([self._ids, np.full(more, FREE)])
            for name in ("_labels", "_groups", "_digests", "_rows"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros((more, *old.shape[1:]), old.dtype)]))
        self._used += 1
        return self._used - 1

    # --- forgetting ---------------------------------------------------------------------------------------------

    def find(self, ids: Array) -> Array:
        """Places of all rows under these ids, in order; ``CannotForget`` unless every id was learnt and still is."""
        places: list[int] = []
        seen: set[int] = set()
        for row in np.asarray(ids).tolist():
            if row in seen:
                raise CannotForget(f"row {row} is named twice in the request")
            seen.add(row)
            there = self._places.get(row)
            if there is None:
                again = row in self.forgotten or row in self.barred
                raise CannotForget(f"row {row} was {'forgotten already' if again else 'never learnt'}")
            places += sorted(there)
        return np.array(places, np.int64)

    def check(self, places: Array, z: Array, labels: Array) -> None:
        """``CannotForget`` unless the rows handed over are those that were learnt at these places."""
        wrong = np.flatnonzero(self._labels[places] != labels)
        if len(wrong):
            at = places[wrong[0]]
            raise CannotForget(
                f"row {self._ids[at]} was learnt with label {self._labels[at]}, not {int(labels[wrong[0]])}"
            )
        other = np.flatnonzero((self.digests(z, labels) != self._digests[places]).any(axis=1))
        if len(other):
            raise CannotForget(
                f"row {self._ids[places[other[0]]]} has other features than those learnt:"
                " the row, its preprocessing or the backbone has changed"
            )

    def erase(self, places: Array) -> int:
        """Overwrite these rows; returns how many equal rows are still there under other ids."""
        digests = [self._digests[at].tobytes() for at in places]
        for at, digest in zip(places.tolist(), digests):
            row = int(self._ids[at])
            there = self._places[row]
            there.remove(at)
            if not there:
                del self._places[row]
            self.forgotten[row] = self.forgotten.get(row, 0) + 1
            self._copies[digest] -= 1
            if not self._copies[digest]:
                del self._copies[digest]
            heappush(self._free, at)
        self._total -= self._digests[places].sum(axis=0)
        self._ids[places] = FREE
        for array in (self._labels, self._groups, self._digests, self._rows):
            array[places] = 0
        return sum(self._copies[digest] for digest in set(digests))

    def rows(self, places: Array) -> tuple[Array, Array]:
        """Base features float64[m, width] and labels int64[m] of these places."""
        if self.width is None:
            raise CannotForget("rows are not kept, so ids do not suffice: hand the rows over (forget_rows)")
        return self._rows[places].astype(np.float64), self._labels[places].copy()

    def labels(self, places: Array) -> Array:
        return self._labels[places].copy()

    def ids(self, places: Array) -> Array:
        return self._ids[places].copy()

    def groups(self, places: Array) -> Array:
        return self._groups[places].copy()

    def hex_digests(self, places: Array) -> list[str]:
        """The keyed digests of these rows, for a certificate."""
        return [self._digests[at].tobytes().hex() for at in places.tolist()]

    def digest(self) -> str:
        """sha256 over the multiset of learnt rows: of their number and the sum of their keyed digests mod 2^64.

        Whatever the order in which rows were learnt and forgotten; kept up to date with every row.
        """
        return hashlib.sha256(self._total.tobytes() + len(self).to_bytes(8, "little")).hexdigest()

    def everywhere(self, *, label: int | None = None, group: int | None = None) -> Array:
        """Places of all rows, of a class, or of a group, in the order of places."""
        there = self._ids[: self._used] != FREE
        if label is not None:
            there &= self._labels[: self._used] == label
        if group is not None:
            there &= self._groups[: self._used] == group
        return np.flatnonzero(there)

    def known(self, ids: Array) -> Array:
        """The ones of these ids that are learnt at present."""
        return np.array([row for row in np.asarray(ids).tolist() if row in self._places], np.int64)

    # --- state --------------------------------------------------------------------------------------------------

    def state(self) -> State:
        n = self._used
        return {
            "ids": self._ids[:n],
            "labels": self._labels[:n],
            "groups": self._groups[:n],
            "digests": self._digests[:n],
            "rows": self._rows[:n],
            "forgotten": np.array(list(self.forgotten.items()), np.int64).reshape(-1, 2),
            "barred": np.array(sorted(self.barred), np.int64),
        }

    def load(self, state: State) -> None:
        for name in ("ids", "labels", "groups", "digests", "rows"):
            setattr(self, f"_{name}", np.array(state[name], order="C"))
        self._used = len(self._ids)
        self.forgotten = {int(row): int(times) for row, times in state["forgotten"]}
        self.barred = {int(row) for row in state["barred"]}
        self._index()

    def _index(self) -> None:
        """The tables that are made from the arrays: places by id, places that are free, copies of each digest."""
        self._places: dict[int, list[int]] = {}
        self._free: list[int] = []
        self._copies: Counter[bytes] = Counter()
        for at, row in enumerate(self._ids[: self._used].tolist()):
            if row == FREE:
                self._free.append(at)
            else:
                self._places.setdefault(row, []).append(at)
                self._copies[self._digests[at].tobytes()] += 1
        heapify(self._free)
        self._total = self._digests[: self._used].sum(axis=0)
