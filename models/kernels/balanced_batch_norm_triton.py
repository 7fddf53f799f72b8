"""Triton kernels of ``balanced_batch_norm``: one launch forward and one back for a whole layer.

A program has one channel, or a few neighbours where channels come last, and goes over them twice: sums, then outputs.
What needs all channels (the loss; the gradient of psi) is summed in a fixed order by the program that finishes last, so
the outcome does not depend on which one that is. Sums are in float32, about one value of the channel.

Importing this module needs Triton; under ``TRITON_INTERPRET=1`` it runs on a CPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096
"""Numbers a program holds at a time."""
BLOCKS = 256
"""Programs' shares that the last program sums at a time."""


class Kept(NamedTuple):
    """What the backward pass needs: m, q float32[C, N], of each sample about the origin; table float32[5, C]: mean,
    1 / deviation, how far mean and variance lie from the running ones, mean - origin; damping float32[]: by how
    much the gradient of the loss is held back."""

    m: Tensor
    q: Tensor
    table: Tensor
    damping: Tensor


@triton.jit
def _balance(psi: tl.tensor, counts: tl.tensor, seen: tl.tensor, REFERENCE: tl.constexpr, GROUPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """pi, phi / Z, N [GROUPS], and 1 - the sum of the samples' weights."""
    lane = tl.arange(0, GROUPS)
    n = tl.load(counts + lane, mask=lane < seen, other=0).to(tl.float32)
    counted = lane < seen if REFERENCE else n > 0
    value = tl.load(psi + lane, mask=counted, other=0.0).to(tl.float32)
    top = tl.max(tl.where(counted, value, 0.0), 0)
    phi = tl.where(counted, tl.exp(tl.where(counted, value, 0.0) - top), 0.0)
    total = phi + tl.exp(-top) * n
    z = tl.sum(total, 0)
    absent = tl.sum(tl.where(n > 0, 0.0, total / z), 0)
    return total / z, phi / z, n, absent


@triton.jit
def _weights(ids: tl.tensor, each: tl.tensor, inside: tl.tensor, GROUPS: tl.constexpr) -> tl.tensor:
    """w of the samples at ``ids``, 0 outside."""
    number = tl.load(ids, mask=inside, other=0)
    mine = (number[:, None] == tl.arange(0, GROUPS)[None, :]) & inside[:, None]
    return tl.sum(tl.where(mine, each[None, :], 0.0), 1)


@triton.jit
def _is_last(counter: tl.tensor, programs: tl.tensor) -> tl.tensor:
    """Whether all others have finished; what they stored can be read then."""
    tl.debug_barrier()
    return tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == programs - 1


@triton.jit
def _forward_kernel(
    a: tl.tensor, gamma: tl.tensor, beta: tl.tensor, psi: tl.tensor, ids: tl.tensor, counts: tl.tensor,
    running_mean: tl.tensor, running_var: tl.tensor, rates: tl.tensor, y: tl.tensor, m: tl.tensor, q: tl.tensor,
    table: tl.tensor, shares: tl.tensor, losses: tl.tensor, dampings: tl.tensor, counter: tl.tensor, rate: tl.tensor,
    eps: tl.tensor, clip: tl.tensor, samples: tl.tensor, channels: tl.tensor, positions: tl.tensor, seen: tl.tensor,
    by_sample: tl.tensor, by_channel: tl.tensor, by_position: tl.tensor,
    GROUPED: tl.constexpr, RATE_GIVEN: tl.constexpr, REFERENCE: tl.constexpr, GROUPS: tl.constexpr,
    TS: tl.constexpr, TP: tl.constexpr, TC: tl.constexpr, TB: tl.constexpr,
) -> None:  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    channel = program * TC + tl.arange(0, TC)
    real = channel < channels
    at_c = channel.to(tl.int64) * by_channel
    rest = 0.0
    if GROUPED:
        pi, _, n, rest = _balance(psi, counts, seen, REFERENCE, GROUPS)
        each = pi / tl.where(n > 0, n, 1.0)
    origin = tl.load(a + at_c, mask=real, other=0.0).to(tl.float32)
    first, second = tl.zeros((TC,), tl.float32), tl.zeros((TC,), tl.float32)
    for start in range(0, samples, TS):
        i = start + tl.arange(0, TS)
        inside = i < samples
        one, two = tl.zeros((TS, TP, TC), tl.float32), tl.zeros((TS, TP, TC), tl.float32)
        for begin in range(0, positions, TP):
            p = begin + tl.arange(0, TP)
            at = i.to(tl.int64)[:, None, None] * by_sample + p.to(tl.int64)[None, :, None] * by_position
            there = inside[:, None, None] & (p < positions)[None, :, None] & real[None, None, :]
            value = tl.load(a + at + at_c[None, None, :], mask=there, other=0.0).to(tl.float32)
            off = tl.where(there, value - origin[None, None, :], 0.0)
            one += off
            two += off * off
        m_SC, q_SC = tl.sum(one, 1) / positions, tl.sum(two, 1) / positions
        w = _weights(ids + i, each, inside, GROUPS) if GROUPED else tl.where(inside, 1.0 / samples, 0.0)
        first += tl.sum(w[:, None] * m_SC, 0)
        second += tl.sum(w[:, None] * q_SC, 0)
        to = channel.to(tl.int64)[None, :] * samples + i[:, None]
        tl.store(m + to, m_SC, mask=inside[:, None] & real[None, :])
        tl.store(q + to, q_SC, mask=inside[:, None] & real[None, :])
    shift = first - rest * origin
    mean = origin + shift
    var = second + shift * (shift * (1.0 - rest) - 2.0 * first)
    var = tl.where(var < 0.0, 0.0, var)
    inverse = 1.0 / tl.sqrt(var + eps)
    if RATE_GIVEN:
        rate = tl.load(rates).to(tl.float32)
    held_mean = tl.load(running_mean + channel, mask=real, other=0.0).to(tl.float32)
    held_var = tl.load(running_var + channel, mask=real, other=0.0).to(tl.float32)
    held_mean = held_mean + rate * (mean - held_mean)
    held_var = held_var + rate * (var - held_var)
    tl.store(running_mean + channel, held_mean.to(running_mean.dtype.element_ty), mask=real)
    tl.store(running_var + channel, held_var.to(running_var.dtype.element_ty), mask=real)
    tl.store(table + channel, mean, mask=real)
    tl.store(table + channels + channel, inverse, mask=real)
    tl.store(table + 2 * channels + channel, mean - held_mean, mask=real)
    tl.store(table + 3 * channels + channel, var - held_var, mask=real)
    tl.store(table + 4 * channels + channel, shift, mask=real)
    apart = (mean - held_mean) * (mean - held_mean) + (var - held_var) * (var - held_var)
    tl.store(shares + program, tl.sum(tl.where(real, apart, 0.0), 0))

    k = tl.load(gamma + channel, mask=real, other=0.0).to(tl.float32) * inverse
    b = tl.load(beta + channel, mask=real, other=0.0).to(tl.float32)
    for start in range(0, samples, TS):
        i = start + tl.arange(0, TS)
        for begin in range(0, positions, TP):
            p = begin + tl.arange(0, TP)
            at = i.to(tl.int64)[:, None, None] * by_sample + p.to(tl.int64)[None, :, None] * by_position
            there = (i < samples)[:, None, None] & (p < positions)[None, :, None] & real[None, None, :]
            value = tl.load(a + at + at_c[None, None, :], mask=there, other=0.0).to(tl.float32)
            out = (value - mean[None, None, :]) * k[None, None, :] + b[None, None, :]
            tl.store(y + at + at_c[None, None, :], out.to(y.dtype.element_ty), mask=there)

    if _is_last(counter, programs):
        total = tl.zeros((TB,), tl.float32)
        for start in range(0, programs, TB):
            at_b = start + tl.arange(0, TB)
            total += tl.load(shares + at_b, mask=at_b < programs, other=0.0, cache_modifier=".cg")
        loss = tl.sum(total, 0) / channels
        damping = tl.where(loss > clip, clip / loss, 1.0)
        tl.store(losses, loss * damping)
        tl.store(dampings, damping)


@triton.jit
def _backward_kernel(
    a: tl.tensor, dy: tl.tensor, gamma: tl.tensor, psi: tl.tensor, ids: tl.tensor, counts: tl.tensor, m: tl.tensor,
    q: tl.tensor, table: tl.tensor, dampings: tl.tensor, dloss: tl.tensor, da: tl.tensor, dgamma: tl.tensor,
    dbeta: tl.tensor, dpsi: tl.tensor, shares: tl.tensor, counter: tl.tensor,
    samples: tl.tensor, channels: tl.tensor, positions: tl.tensor, seen: tl.tensor, known: tl.tensor,
    by_sample: tl.tensor, by_channel: tl.tensor, by_position: tl.tensor,
    GROUPED: tl.constexpr, LOSS: tl.constexpr, REFERENCE: tl.constexpr, GROUPS: tl.constexpr,
    TS: tl.constexpr, TP: tl.constexpr, TC: tl.constexpr,
) -> None:  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    channel = program * TC + tl.arange(0, TC)
    real = channel < channels
    at_c = channel.to(tl.int64) * by_channel
    mean = tl.load(table + channel, mask=real, other=0.0)
    inverse = tl.load(table + channels + channel, mask=real, other=0.0)
    shift = tl.load(table + 4 * channels + channel, mask=real, other=0.0)
    one, two = tl.zeros((TS, TP, TC), tl.float32), tl.zeros((TS, TP, TC), tl.float32)
    for start in range(0, samples, TS):
        i = start + tl.arange(0, TS)
        for begin in range(0, positions, TP):
            p = begin + tl.arange(0, TP)
            at = i.to(tl.int64)[:, None, None] * by_sample + p.to(tl.int64)[None, :, None] * by_position
            there = (i < samples)[:, None, None] & (p < positions)[None, :, None] & real[None, None, :]
            value = tl.load(a + at + at_c[None, None, :], mask=there, other=0.0).to(tl.float32)
            slope = tl.load(dy + at + at_c[None, None, :], mask=there, other=0.0).to(tl.float32)
            one += slope
            two += slope * (value - mean[None, None, :])
    first, second = tl.sum(tl.sum(one, 1), 0), tl.sum(tl.sum(two, 1), 0)
    tl.store(dbeta + channel, first.to(dbeta.dtype.element_ty), mask=real)
    tl.store(dgamma + channel, (second * inverse).to(dgamma.dtype.element_ty), mask=real)
    k = tl.load(gamma + channel, mask=real, other=0.0).to(tl.float32) * inverse
    dvar, dmean = -0.5 * k * second * inverse * inverse, -k * first
    rest = 0.0
    if GROUPED:
        pi, slope_phi, n, rest = _balance(psi, counts, seen, REFERENCE, GROUPS)
        each = pi / tl.where(n > 0, n, 1.0)
    if LOSS:
        pull = tl.load(dloss).to(tl.float32) * tl.load(dampings) * 2.0 / channels
        dmean += pull * tl.load(table + 2 * channels + channel, mask=real, other=0.0)
        dvar += pull * tl.load(table + 3 * channels + channel, mask=real, other=0.0)
    dmean = tl.where(real, dmean - 2.0 * dvar * mean * rest, 0.0)
    dvar = tl.where(real, dvar, 0.0)

    lane, h = tl.arange(0, GROUPS), tl.zeros((GROUPS,), tl.float32)
    for start in range(0, samples, TS):
        i = start + tl.arange(0, TS)
        inside = i < samples
        if GROUPED:
            w = _weights(ids + i, each, inside, GROUPS)
            to = channel.to(tl.int64)[None, :] * samples + i[:, None]
            m_SC = tl.load(m + to, mask=inside[:, None] & real[None, :], other=0.0)
            q_SC = tl.load(q + to, mask=inside[:, None] & real[None, :], other=0.0)
            q_SC = q_SC + shift[None, :] * (shift[None, :] - 2.0 * m_SC)
            q_SC = tl.where(q_SC < 0.0, 0.0, q_SC)
            dw = tl.sum(dmean[None, :] * (m_SC - shift[None, :] + mean[None, :]) + dvar[None, :] * q_SC, 1)
            number = tl.load(ids + i, mask=inside, other=0)
            mine = (number[:, None] == lane[None, :]) & inside[:, None]
            h += tl.sum(tl.where(mine, dw[:, None], 0.0), 0)
        else:
            w = tl.where(inside, 1.0 / samples, 0.0)
        flat, steep = w[:, None] / positions * dmean[None, :], w[:, None] / positions * 2.0 * dvar[None, :]
        for begin in range(0, positions, TP):
            p = begin + tl.arange(0, TP)
            at = i.to(tl.int64)[:, None, None] * by_sample + p.to(tl.int64)[None, :, None] * by_position
            there = inside[:, None, None] & (p < positions)[None, :, None] & real[None, None, :]
            value = tl.load(a + at + at_c[None, None, :], mask=there, other=0.0).to(tl.float32)
            slope = tl.load(dy + at + at_c[None, None, :], mask=there, other=0.0).to(tl.float32)
            out = k[None, None, :] * slope + flat[:, None, :] + steep[:, None, :] * (value - mean[None, None, :])
            tl.store(da + at + at_c[None, None, :], out.to(da.dtype.element_ty), mask=there)

    if GROUPED:
        tl.store(shares + program * GROUPS + lane, h)
        if _is_last(counter, programs):
            h = tl.zeros((GROUPS,), tl.float32)
            for other in range(0, programs):
                h += tl.load(shares + other * GROUPS + lane, cache_modifier=".cg")
            h = h / tl.where(n > 0, n, 1.0)
            out_psi = slope_phi * (h - tl.sum(pi * h, 0))
            tl.store(dpsi + lane, out_psi.to(dpsi.dtype.element_ty), mask=lane < known)


def forward(
    a: Tensor, gamma: Tensor, beta: Tensor, psi: Tensor, ids: Tensor | None, counts: Tensor | None,
    running_mean: Tensor, running_var: Tensor, rates: Tensor | None, rate: float, eps: float, clip: float,
    reference: bool, by_pixel: bool,
) -> tuple[Tensor, Tensor, Kept]:  # fmt: skip
    """y, the loss, and what the backward pass needs; moves the running statistics. a: packed, by pixel or by plane."""
    n, channels = a.shape[:2]
    tiles, strides = _tiles(a, by_pixel), _strides(a, by_pixel)
    programs = triton.cdiv(channels, tiles["TC"])
    y, m, table = torch.empty_like(a), _single(a, channels, n), _single(a, 5, channels)
    q, shares, loss, damping = torch.empty_like(m), _single(a, programs), _single(a), _single(a)
    with torch.cuda.device_of(a):
        _forward_kernel[(programs,)](
            a, gamma, beta, psi, ids, counts, running_mean, running_var, rates, y, m, q, table, shares, loss,
            damping, torch.zeros(1, dtype=torch.int32, device=a.device), rate, eps, clip,
            n, channels, a.numel() // (n * channels), 0 if counts is None else len(counts), *strides,
            GROUPED=ids is not None, RATE_GIVEN=rates is not None, REFERENCE=reference, GROUPS=_lanes(psi),
            TB=BLOCKS, num_warps=8, **tiles,
        )  # fmt: skip
    return y, loss, Kept(m, q, table, damping)


def backward(
    a: Tensor, dy: Tensor, gamma: Tensor, psi: Tensor, ids: Tensor | None, counts: Tensor | None, kept: Kept,
    dloss: Tensor | None, reference: bool, by_pixel: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """da, dgamma, dbeta, dpsi (zeros without groups). dy: packed as a."""
    n, channels = a.shape[:2]
    tiles, strides, lanes = _tiles(a, by_pixel), _strides(a, by_pixel), _lanes(psi)
    programs = triton.cdiv(channels, tiles["TC"])
    da, dgamma, dbeta = torch.empty_like(a), torch.empty_like(gamma), torch.empty_like(gamma)
    dpsi = torch.zeros_like(psi) if ids is None else torch.empty_like(psi)
    with torch.cuda.device_of(a):
        _backward_kernel[(programs,)](
            a, dy, gamma, psi, ids, counts, kept.m, kept.q, kept.table, kept.damping, dloss, da, dgamma, dbeta, dpsi,
            _single(a, programs, lanes), torch.zeros(1, dtype=torch.int32, device=a.device),
            n, channels, a.numel() // (n * channels), 0 if counts is None else len(counts), len(psi), *strides,
            GROUPED=ids is not None, LOSS=dloss is not None, REFERENCE=reference, GROUPS=lanes,
            num_warps=8, **tiles,
        )  # fmt: skip
    return da, dgamma, dbeta, dpsi


def _single(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _lanes(psi: Tensor) -> int:
    return max(2, triton.next_power_of_2(len(psi)))


def _strides(a: Tensor, by_pixel: bool) -> tuple[int, int, int]:
    """Of samples, channels, positions in memory."""
    n, channels = a.shape[:2]
    positions = a.numel() // (n * channels)
    return channels * positions, 1 if by_pixel else positions, channels if by_pixel else 1


def _tiles(a: Tensor, by_pixel: bool) -> dict[str, int]:
    """Samples, positions and channels of a program's tile: powers of two. Channels that come last are taken together
    where there are many, so that a program reads more than one number at an address."""
    n, channels = a.shape[:2]
    together = min(16, max(4, triton.next_power_of_2(channels) // 64)) if by_pixel else 1
    together = min(together, triton.next_power_of_2(channels))
    across = min(triton.next_power_of_2(a.numel() // (n * channels)), max(1, TILE // together))
    down = min(triton.next_power_of_2(n), max(1, TILE // (together * across)), 256)
    return {"TS": down, "TP": across, "TC": together}


def probe(device: torch.device) -> None:
    """Raises where the kernels and the contract differ on a tiny map, with groups and without."""
    from .balanced_batch_norm import Groups, Running, balanced_batch_norm

    draw = torch.Generator().manual_seed(0)
    shapes = ((4, 3, 2, 2), (3,), (3,), (3,))
    a, gamma, beta, psi = (torch.randn(shape, generator=draw).to(device).requires_grad_() for shape in shapes)
    some, rate = Groups.of([0, 2, 2, 0], 3, device), torch.tensor(0.3, device=device)
    cases: tuple[tuple[Groups | None, float | Tensor, bool], ...] = ((None, 0.3, False), (some, rate, True))
    for groups, by, reference in cases:
        found = []
        for path in ("plain", "triton"):
            running = Running(torch.zeros(3, device=device), torch.ones(3, device=device), by)
            y, loss = balanced_batch_norm(a, gamma, beta, psi, groups, running, reference=reference, path=path)
            slopes = torch.autograd.grad(y.square().sum() * y.sum() + loss, [a, gamma, beta])
            found.append((y, loss, running.mean, running.var, *slopes))
        torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)
