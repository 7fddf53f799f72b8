"""Triton kernels of the sketch memory: bits to bucket numbers and reading, one program a row; writing.

The contract is in ``sketch.py``. Importing this module needs Triton; under ``TRITON_INTERPRET=1`` it runs on a CPU.
Writes are deterministic: rows are sorted by bucket, and the first of each bucket's rows adds all of them to it, in the
order in which they were given, as the compiled loop does. No atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SORTED = 128
"""Sorted rows a program looks at."""


@triton.jit
def _pack_kernel(sides: tl.tensor, found: tl.tensor, arrays: tl.tensor, bits: tl.tensor, LANES: tl.constexpr) -> None:
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, LANES)
    inside = lane < arrays
    code = tl.zeros((LANES,), tl.int32)
    for j in range(bits):
        side = tl.load(sides + row * arrays * bits + lane * bits + j, mask=inside, other=0.0)
        code = code | ((side > 0).to(tl.int32) << j)
    tl.store(found + row * arrays + lane, code, mask=inside)


def pack(sides: Tensor, bits: int) -> Tensor:
    """int32[B, K] from float32[B, K L]."""
    rows, arrays = len(sides), sides.shape[1] // bits
    found = torch.empty((rows, arrays), dtype=torch.int32, device=sides.device)
    if rows:
        with torch.cuda.device_of(sides):
            _pack_kernel[(rows,)](sides.contiguous(), found, arrays, bits, LANES=triton.next_power_of_2(arrays))
    return found


@triton.jit
def _read_kernel(
    table: tl.tensor, buckets: tl.tensor, base: tl.tensor, inverse: tl.tensor, prior: tl.tensor,
    y: tl.tensor, said: tl.tensor, n: tl.tensor,
    slots: tl.tensor, step: tl.tensor, arrays: tl.tensor, size: tl.tensor, values: tl.tensor, LANES: tl.constexpr,
) -> None:  # fmt: skip
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, LANES)
    inside = lane < arrays
    wide = 1 + 2 * values
    at = tl.load(buckets + row * arrays + lane, mask=inside, other=0).to(tl.int64)
    cell = table + (lane.to(tl.int64) * size + at) * wide
    counts = tl.load(cell, mask=inside, other=0.0)
    for r in range(1, slots):
        counts += tl.load(cell + tl.cast(r, tl.int64) * step, mask=inside, other=0.0)
    known = counts > 0
    top = tl.max(counts, 0)
    a = tl.where(known, tl.exp((counts - top) * inverse), 0.0)
    weight = tl.sum(a, 0)
    a = a / tl.where(weight > 0, weight, 1.0)
    each = a / tl.where(known, counts + prior, 1.0)
    tl.store(n + row, tl.sum(a * counts, 0))
    for v in range(values):
        own = tl.load(base + row * values + v)
        labels = tl.zeros((LANES,), counts.dtype)
        answers = tl.zeros((LANES,), counts.dtype)
        for r in range(slots):
            labels += tl.load(cell + tl.cast(r, tl.int64) * step + 1 + v, mask=inside, other=0.0)
            answers += tl.load(cell + tl.cast(r, tl.int64) * step + 1 + values + v, mask=inside, other=0.0)
        heard = tl.sum(each * (labels + prior * own), 0)
        told = tl.sum(each * (answers + prior * own), 0)
        tl.store(y + row * values + v, tl.where(weight > 0, heard, own))
        tl.store(said + row * values + v, tl.where(weight > 0, told, own))


def read(table: Tensor, buckets: Tensor, base: Tensor, inverse: float, prior: float) -> tuple[Tensor, Tensor, Tensor]:
    """y, base, n of the contract."""
    slots, arrays, size, _ = table.shape
    base = base.to(table.dtype).contiguous()
    y, said, n = torch.empty_like(base), torch.empty_like(base), torch.empty_like(base[:, 0])
    if len(base):
        with torch.cuda.device_of(table):
            _read_kernel[(len(base),)](
                table, buckets.contiguous(), base, inverse, prior, y, said, n,
                slots, table.stride(0), arrays, size, base.shape[1], LANES=triton.next_power_of_2(arrays),
            )  # fmt: skip
    return y, said, n


@triton.jit
def _write_kernel(
    cells: tl.tensor, ordered: tl.tensor, order: tl.tensor, rows: tl.tensor, count: tl.tensor, size: tl.tensor,
    wide: tl.tensor, LANES: tl.constexpr,
) -> None:  # fmt: skip
    array, place = tl.program_id(0).to(tl.int64), tl.program_id(1) * LANES + tl.arange(0, LANES)
    ordered += array * count
    order += array * count
    inside = place < count
    bucket = tl.load(ordered + place, mask=inside, other=-1)
    former = tl.load(ordered + place - 1, mask=inside & (place > 0), other=-1)
    first = inside & (bucket != former)
    cell = cells + (array * size + bucket) * wide
    for j in range(wide):
        total = tl.load(cell + j, mask=first, other=0.0)
        at, active = place, first
        while tl.max(active.to(tl.int32), 0) > 0:
            row = tl.load(order + at, mask=active, other=0)
            total += tl.load(rows + row * wide + j, mask=active, other=0.0)
            at += 1
            active = active & (at < count) & (tl.load(ordered + at, mask=at < count, other=-1) == bucket)
        tl.store(cell + j, total, mask=first)


def write(cells: Tensor, buckets: Tensor, rows: Tensor) -> None:
    """Add rows (float[B, 1 + 2 V], already weighted) to the buckets of one slot, in place."""
    arrays, size, wide = cells.shape
    if len(rows):
        ordered, order = torch.sort(buckets.t().contiguous(), dim=1, stable=True)
        with torch.cuda.device_of(cells):
            _write_kernel[(arrays, triton.cdiv(len(rows), SORTED))](
                cells, ordered, order, rows.contiguous(), len(rows), size, wide, LANES=SORTED
            )


def probe(device: torch.device) -> None:
    """Raises where the kernels and the contract differ on a tiny memory."""
    from . import sketch

    draws = torch.Generator().manual_seed(0)
    h, planes = (torch.randn(shape, generator=draws).to(device) for shape in ((5, 3), (4, 3)))
    tables = [sketch.new_table(2, 2, dtype=torch.float32).to(device) for _ in range(2)]
    buckets = [sketch.hash_rows(h, planes, 2, path) for path in ("triton", "torch")]
    torch.testing.assert_close(*buckets)
    paths: tuple[sketch.Path, ...] = ("triton", "torch")
    for table, path in zip(tables, paths):
        sketch.write(table, 0, buckets[1], h[:, :1], h[:, 1:2], torch.ones(5, device=device), path)
    torch.testing.assert_close(*tables)
    found = [tuple(sketch.read(tables[0], buckets[1], h[:, :1], total=5.0, path=p)) for p in paths]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
