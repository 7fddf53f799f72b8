"""The rules of ``update_rules`` as Triton functions that kernels of several ops share."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}


@triton.jit
def row_at(address: tl.tensor, first: tl.tensor, TYPE: tl.constexpr, EVEN: tl.constexpr) -> tl.tensor:
    """Pointer to entry ``first`` of the tensor whose address stands at ``address``. EVEN: a multiple of 16 bytes."""
    pointer = tl.load(address).to(tl.pointer_type(TYPE)) + first
    if EVEN:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def mixed(x: tl.tensor) -> tl.tensor:
    """The hash of ``update_rules.mixed``, of uint32."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def row_key(seed: tl.tensor, row: tl.tensor, count: tl.tensor) -> tl.tensor:
    key = mixed(seed.to(tl.uint32))
    key = mixed(key + row.to(tl.uint32))
    return mixed(key + count.to(tl.int32).to(tl.uint32))


@triton.jit
def rounded(w: tl.tensor, key: tl.tensor, column: tl.tensor, RANDOM: tl.constexpr) -> tl.tensor:
    """float32 in bfloat16: to nearest, ties to even, or stochastically."""
    bits = w.to(tl.uint32, bitcast=True)
    noise = mixed(key + column.to(tl.uint32)) >> 16 if RANDOM else 0x7FFF + ((bits >> 16) & 1)
    cut = ((bits + noise) >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return tl.where((bits & 0x7FFFFFFF) < 0x7F800000, cut, w.to(tl.bfloat16))


@triton.jit
def correction(beta: tl.tensor, count: tl.tensor) -> tl.tensor:
    """1 - beta^count, in float64."""
    return 1.0 - tl.exp(tl.log(beta) * count.to(tl.float64))


@triton.jit
def bias_corrected(rate: tl.tensor, count: tl.tensor, MOMENTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """lr / (1 - b1^count) and 1 / sqrt(1 - b2^count), once a program, as the powers are in float64; 0 but for AdamW."""
    size, scale = tl.full((), 0.0, tl.float32), tl.full((), 0.0, tl.float32)
    if MOMENTS == 2:
        size = (tl.load(rate) / correction(tl.load(rate + 1), count)).to(tl.float32)
        scale = (1.0 / tl.sqrt(correction(tl.load(rate + 2), count))).to(tl.float32)
    return size, scale


@triton.jit
def update(
    w: tl.tensor, first: tl.tensor, second: tl.tensor, g: tl.tensor, at: tl.tensor, inside: tl.tensor,
    rate: tl.tensor, size: tl.tensor, scale: tl.tensor, key: tl.tensor, column: tl.tensor,
    MOMENTS: tl.constexpr, RANDOM: tl.constexpr,
) -> None:  # fmt: skip
    """Update what lies ``at`` pointers w, first, second where ``inside`` holds; g: their gradient, float32.

    rate: pointer to float64[5]. size, scale: as ``bias_corrected`` gives them. key, column: of the random bits.
    """
    lr, decay = tl.load(rate), tl.load(rate + 4)
    b1 = tl.load(rate + 1)
    old = tl.load(w + at, mask=inside, other=0.0).to(tl.float32)
    if MOMENTS == 2:
        b2 = tl.load(rate + 2)
        floor, keep = tl.load(rate + 3).to(tl.float32), (1.0 - lr * decay).to(tl.float32)
        mean = b1.to(tl.float32) * tl.load(first + at, mask=inside, other=0.0) + (1.0 - b1).to(tl.float32) * g
        square = tl.load(second + at, mask=inside, other=0.0)
        square = b2.to(tl.float32) * square + (1.0 - b2).to(tl.float32) * g * g
        tl.store(first + at, mean, mask=inside)
        tl.store(second + at, square, mask=inside)
        new = old * keep - size * mean / (tl.sqrt(square) * scale + floor)
    else:
        step = g + decay.to(tl.float32) * old
        if MOMENTS == 1:
            step += b1.to(tl.float32) * tl.load(first + at, mask=inside, other=0.0)
            tl.store(first + at, step, mask=inside)
        new = old - lr.to(tl.float32) * step
    if w.dtype.element_ty == tl.bfloat16:
        tl.store(w + at, rounded(new, key, column, RANDOM), mask=inside)
    else:
        tl.store(w + at, new, mask=inside)
