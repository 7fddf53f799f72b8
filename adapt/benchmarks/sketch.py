"""The sketch memory of ReLoop2 beside its formulas in PyTorch: 70 arrays of 2^16 buckets, vectors of 128 numbers.

"answer" is hash and read, "write" adds rows to the memory. The floor is one read of every bucket that is looked up
(three numbers, and the planes once), for writing a read and a write. Every call has other rows, so that the buckets do
not lie in a cache.
"""

from __future__ import annotations

from itertools import cycle

import torch
from torch import Tensor

from ...models.kernels import sketch
from . import Row
from .floors import Step, floors, kernel_row, medians

ROWS = {"cpu": (256,), "cuda": (256, 4096)}
PATHS: tuple[sketch.Path | None, ...] = ("torch", None)
WIDTH, ARRAYS, BITS, TURNS = 128, 70, 16, 40


def _steps(rows: int, device: str) -> list[Step]:
    """Answer by the formulas and by ours, write by the formulas and by ours; each on rows of its own."""
    draw = torch.Generator().manual_seed(0)
    table = sketch.new_table(ARRAYS, BITS, dtype=torch.float32)
    table[..., 0] = torch.randint(0, 5, table.shape[:-1], generator=draw)
    table, planes = table.to(device), sketch.new_planes(WIDTH, ARRAYS, BITS, 0).to(device)
    base, one = torch.rand(rows, 1, generator=draw).to(device), torch.ones(rows, device=device)

    def answer(path: sketch.Path | None, given: list[Tensor]) -> Step:
        turns = cycle(given)
        return lambda: sketch.read(
            table, sketch.hash_rows(next(turns), planes, BITS, path), base, total=4.0 * rows, path=path
        )

    def write(path: sketch.Path | None, given: list[Tensor]) -> Step:
        turns = cycle([sketch.hash_rows(h, planes, BITS, path) for h in given])
        return lambda: sketch.write(table, 0, next(turns), base, base, one, path)

    def other() -> list[Tensor]:
        return [torch.randn(rows, WIDTH, generator=draw).to(device) for _ in range(TURNS)]

    return [way(path, other()) for way in (answer, write) for path in PATHS]


def _cases(rows: int, device: str) -> list[Row]:
    answer_peer, answer, write_peer, write = medians(_steps(rows, device), device)
    touched = 12.0 * rows * ARRAYS
    hashing = 4.0 * WIDTH * (ARRAYS * BITS + rows)
    best = floors(device)
    shape = f"{rows} rows, K {ARRAYS}, L {BITS}, d {WIDTH}"
    least = best.seconds(touched + hashing, 2.0 * rows * WIDTH * ARRAYS * BITS)
    return [
        kernel_row(f"sketch, answer: {shape}", answer, answer_peer, "formulas in torch", least, times=1.0),
        kernel_row(
            f"sketch, write: {shape}", write, write_peer, "formulas in torch", best.seconds(2 * touched), times=1.0
        ),
    ]


def measure(device: str = "cpu") -> list[Row]:
    """Answering and writing."""
    return [row for rows in ROWS[torch.device(device).type] for row in _cases(rows, device)]
