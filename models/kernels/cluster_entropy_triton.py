"""Triton kernel of ``cluster_entropy``: one program a row, which reads it three times, the last two from the cache.

Importing this module needs Triton; under ``TRITON_INTERPRET=1`` it runs on a CPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 8192
"""Entries times clusters that a program compares at a time."""


@triton.jit
def _rows_kernel(
    u: tl.tensor, ids: tl.tensor, value: tl.tensor, slope: tl.tensor, entries: tl.tensor,
    within: tl.tensor, by_row: tl.tensor, by_entry: tl.tensor, CLUSTERS: tl.constexpr, LANES: tl.constexpr,
) -> None:  # fmt: skip
    row, lane, cluster = tl.program_id(0).to(tl.int64), tl.arange(0, LANES), tl.arange(0, CLUSTERS)
    u += row * by_row
    tops = tl.full((LANES,), float("-inf"), tl.float32)
    for start in range(0, entries, LANES):
        j = (start + lane).to(tl.int64)
        tops = tl.maximum(tops, tl.load(u + j * by_entry, mask=j < entries, other=float("-inf")).to(tl.float32))
    top = tl.max(tops, 0)
    top = tl.where(top == float("-inf"), 0.0, top)
    mass, mixed = tl.zeros((CLUSTERS,), tl.float32), tl.zeros((LANES,), tl.float32)
    for start in range(0, entries, LANES):
        j = (start + lane).to(tl.int64)
        x = tl.load(u + j * by_entry, mask=j < entries, other=float("-inf")).to(tl.float32) - top
        e = tl.exp(x)
        mixed += e * tl.where(e == 0.0, 0.0, x)
        here = tl.load(ids + j, mask=j < entries, other=-1)[:, None] == cluster[None, :]
        mass += tl.sum(tl.where(here, e[:, None], 0.0), 0)
    total = tl.sum(mass, 0)
    part = 1.0 / tl.where(total == 0.0, 1.0, total)
    log_total = tl.log(tl.where(total == 0.0, 1.0, total))
    q = mass * part
    log_q = tl.where(q == 0.0, 0.0, tl.log(tl.where(q == 0.0, 1.0, q)))
    coarse = -tl.sum(q * log_q, 0)
    full = log_total - tl.sum(mixed, 0) * part
    tl.store(value + row, coarse + within * (full - coarse))
    for start in range(0, entries, LANES):
        j = (start + lane).to(tl.int64)
        x = tl.load(u + j * by_entry, mask=j < entries, other=float("-inf")).to(tl.float32) - top
        e = tl.exp(x)
        here = tl.load(ids + j, mask=j < entries, other=-1)[:, None] == cluster[None, :]
        surprise = tl.sum(tl.where(here, log_q[None, :], 0.0), 1) + coarse
        own = tl.where(e == 0.0, 0.0, x) - log_total + full
        out = -e * part * (surprise + within * (own - surprise))
        tl.store(slope + row * entries + j, out.to(slope.dtype.element_ty), mask=j < entries)


def value_and_slope(u: Tensor, ids: Tensor, clusters: int, within: float) -> tuple[Tensor, Tensor]:
    """Value float32[R] and slope [R, M] of u [R, M]."""
    rows, entries = u.shape
    value = torch.empty(rows, dtype=torch.float32, device=u.device)
    slope = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    if slope.numel():
        lanes = max(2, triton.next_power_of_2(clusters))
        at_once = min(triton.next_power_of_2(entries), max(16, TILE // lanes))
        with torch.cuda.device_of(u):
            _rows_kernel[(rows,)](u, ids, value, slope, entries, within, *u.stride(), CLUSTERS=lanes, LANES=at_once)
    return value, slope


def probe(device: torch.device) -> None:
    """Raises where the kernel and the contract differ on a few rows."""
    from .cluster_entropy import Clusters
    from .cluster_entropy import value_and_slope as op

    u = torch.randn((3, 21), generator=torch.Generator().manual_seed(0)).to(device)
    clusters = Clusters.of(torch.arange(21, device=device) % 5, 5)
    for within in (0.0, 0.3):
        expected = op(u, clusters, within, "reference")
        torch.testing.assert_close(op(u, clusters, within, "triton"), expected, rtol=1e-4, atol=1e-5)
