"""The sketch memory's path for one batch of 256 rows, K = 70 arrays of 2^16 buckets, d = 128, beside a loop over rows.

The peer hashes, reads and compensates row by row in NumPy, in whole arrays over K. The floor of answering is the one
matrix product that the hashes need and one random read of each bucket, timed alone; that of writing is one read and one
write of each bucket. Every run has other rows.
Medians of processor time, which other programs disturb less than they do the clock on the wall.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import process_time
from typing import Any

import numpy as np
import torch

from ...models.compiled import compiled
from ...models.kernels import sketch
from ...streams import Array
from . import Row

ROWS, WIDTH, ARRAYS, BITS, RUNS = 256, 128, 70, 16, 70
TAU, LAMBDA = 0.1, 0.4
APART = 10
"""So many batches lie between those of two ways, so that none finds its buckets in a cache because of another."""


@compiled
def _touch(table: Array, buckets: Array) -> float:
    """The sum of one number of every bucket looked up: the loads alone."""
    total = 0.0
    for i in range(buckets.shape[0]):
        for k in range(buckets.shape[1]):
            total += table[k, buckets[i, k], 0]
    return total


@compiled
def _touch_and_add(table: Array, buckets: Array) -> None:
    """A load and a store of one number of every bucket."""
    for i in range(buckets.shape[0]):
        for k in range(buckets.shape[1]):
            table[k, buckets[i, k], 0] += 1.0


class _Peer:
    """The same in NumPy, row by row."""

    def __init__(self, table: Array, planes: Array, total: float) -> None:
        self.table, self.planes, self.total = table, planes, total
        self.powers, self.arrays = 1 << np.arange(BITS), np.arange(ARRAYS)

    def buckets(self, h: Array) -> Array:
        return ((self.planes @ h).reshape(ARRAYS, BITS) > 0) @ self.powers

    def answer(self, h: Array, base: Array) -> Array:
        found = np.empty(len(h), np.float32)
        for i in range(len(h)):
            n, y, _ = self.table[self.arrays, self.buckets(h[i])].T
            known = n > 0
            if not known.any():
                found[i] = base[i, 0]
                continue
            a = np.exp((n[known] - n[known].max()) / (self.total * TAU))
            mean = (a / a.sum()) @ (y[known] / n[known])
            found[i] = min(max(base[i, 0] + LAMBDA * (mean - base[i, 0]), 0.0), 1.0)
        return found

    def write(self, buckets: Array, y: Array, base: Array) -> None:
        for i in range(len(buckets)):
            self.table[self.arrays, buckets[i]] += np.array([1.0, y[i, 0], base[i, 0]], np.float32)


def _answer(table: Any, planes: Any, h: Any, base: Any, total: float) -> Any:
    found = sketch.read(table, sketch.hash_rows(h, planes, BITS), base, total=total, tau=TAU)
    return sketch.compensate(base, sketch.estimated_error(base, found, 1.0), LAMBDA)


def _alternate(ways: dict[str, Callable[[int], Any]]) -> dict[str, float]:
    """Median milliseconds of each way; every run plays all of them in turn."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(-3, RUNS):
        for place, (name, way) in enumerate(ways.items()):
            start = process_time()
            way((run + APART * place) % RUNS)
            if run >= 0:
                took[name].append(1e3 * (process_time() - start))
    return {name: median(times) for name, times in took.items()}


def measure() -> list[Row]:
    """Answering, writing, and the bytes of the memory. On one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure()
    finally:
        torch.set_num_threads(threads)


def _measure() -> list[Row]:
    rng = np.random.default_rng(0)
    table = sketch.new_table(ARRAYS, BITS, dtype=torch.float32)
    counts = rng.integers(0, 5, table.shape[:-1])
    table[..., 0] = torch.from_numpy(counts)
    table[..., 1:] = torch.from_numpy(rng.random((*counts.shape, 2)) * counts[..., None])
    total, planes = float(counts[0, 0].sum()), sketch.new_planes(WIDTH, ARRAYS, BITS, 0)
    h = [torch.from_numpy(rng.normal(size=(ROWS, WIDTH)).astype(np.float32)) for _ in range(RUNS)]
    base = torch.from_numpy(rng.random((ROWS, 1)).astype(np.float32))
    y = (base > 0.5).float()
    buckets = [sketch.hash_rows(rows, planes, BITS) for rows in h]
    one, cells = torch.ones(ROWS), table[0].numpy()
    peer = _Peer(cells, planes.numpy(), total)
    ours = _answer(table, planes, h[0], base, total)[:, 0].numpy()
    np.testing.assert_allclose(ours, peer.answer(h[0].numpy(), base.numpy()), rtol=1e-4, atol=1e-5)
    took = _alternate(
        {
            "answer": lambda i: _answer(table, planes, h[i], base, total),
            "answer peer": lambda i: peer.answer(h[i].numpy(), base.numpy()),
            "product": lambda i: torch.mm(h[i], planes.t()),
            "reads": lambda i: _touch(cells, buckets[i].numpy()),
            "write": lambda i: sketch.write(table, 0, buckets[i], y, base, one),
            "write peer": lambda i: peer.write(buckets[i].numpy(), y.numpy(), base.numpy()),
            "writes": lambda i: _touch_and_add(cells, buckets[i].numpy()),
        }
    )
    size, computed = table.numel() * table.element_size(), ARRAYS * 3 * 4 << BITS
    shape = f"{ROWS} rows, K {ARRAYS}, L {BITS}, d {WIDTH}"
    return [
        _row(f"hash, read, compensate: {shape}", "ms", took["answer"], took["answer peer"], "NumPy, row by row")
        | {"floor": took["answer"] / (took["product"] + took["reads"])},
        _row(f"write: {shape}", "ms", took["write"], took["write peer"], "NumPy, row by row")
        | {"floor": took["write"] / took["writes"]},
        _row(f"memory: {shape}", "bytes", size, computed, "as computed") | {"floor": size / computed},
    ]


def _row(case: str, unit: str, ours: float, peer: float, peer_name: str) -> Row:
    return {
        "bench": "reloop2",
        "case": case,
        "unit": unit,
        "ours": ours,
        "peer": peer,
        "peer_name": peer_name,
        "ratio": peer / ours,
        "floor": None,
    }
