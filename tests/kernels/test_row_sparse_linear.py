"""Layers whose weight gradient is that of chosen rows, against the plain layers they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from driftway.models.kernels.row_choice import Choice, RowSlot
from driftway.models.kernels.row_sparse_linear import row_sparse_conv, row_sparse_linear
from driftway.models.optimisers import SGD, RowSet
from torch import Tensor
from torch.nn import functional as F

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel": (3,), "stride": (1,), "padding": (1,), "dilation": (1,)},
    {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)},
    {"kernel": (3, 2), "stride": (2, 1), "padding": (0, 1), "dilation": (1, 2)},
    {"kernel": (1, 1), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1)},
    {"kernel": (2, 2, 2), "stride": (1, 1, 1), "padding": (0, 1, 0), "dilation": (1, 1, 1)},
]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_(grad)


def gradients(y: Tensor, wanted: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Of a loss that weighs outputs differently."""
    weights = random(*y.shape, seed=9, dtype=y.dtype)
    return torch.autograd.grad((y * weights).sum(), wanted, allow_unused=True)


def compact(slot: RowSlot) -> tuple[Tensor, Tensor]:
    """The rows and their gradient."""
    index, given = slot.take()
    assert index is not None
    assert given is not None
    return index, given[0].t() @ given[1] if isinstance(given, tuple) else given


@pytest.mark.parametrize("shape", [(1, 3), (5, 7), (4, 6, 7), (2, 3, 4, 5)])
@pytest.mark.parametrize("d_out", [1, 10, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factors", [0, 100])
@pytest.mark.parametrize("biased", [True, False])
def test_linear_is_the_plain_layer(
    shape: tuple[int, ...], d_out: int, dtype: torch.dtype, factors: int, biased: bool
) -> None:
    x, weight = random(*shape, dtype=dtype, grad=True), random(d_out, shape[-1], seed=1, dtype=dtype, grad=True)
    bias = random(d_out, seed=2, dtype=dtype, grad=True) if biased else None
    others = [x] if bias is None else [x, bias]
    slot, whole = RowSlot(Choice(0.7), factors=factors), RowSlot(Choice(0.7))
    y = row_sparse_linear(x, weight, bias, slot)
    plain = row_sparse_linear(x, weight, bias, whole, "dense")
    close: Any = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(y, F.linear(x, weight, bias), **close)
    torch.testing.assert_close(y, plain, **close)
    nothing, *found = gradients(y, [weight, *others])
    dense, *expected = gradients(plain, [weight, *others])
    assert nothing is None
    assert dense is not None
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b, **close)
    index, rows = compact(slot)
    assert index.tolist() == whole.rows().tolist()
    torch.testing.assert_close(rows, dense[index], **close)


@pytest.mark.parametrize("geometry", CONVOLUTIONS, ids=lambda g: "x".join(map(str, g["kernel"])))
@pytest.mark.parametrize("biased", [True, False])
def test_convolution_is_the_plain_layer(geometry: dict[str, Any], biased: bool) -> None:
    kernel, way = geometry["kernel"], {k: v for k, v in geometry.items() if k != "kernel"}
    x = random(3, 4, *[7] * len(kernel), dtype=torch.float64, grad=True)
    weight = random(10, 4, *kernel, seed=1, dtype=torch.float64, grad=True)
    bias = random(10, seed=2, dtype=torch.float64, grad=True) if biased else None
    others = [x] if bias is None else [x, bias]
    slot, whole = RowSlot(Choice(0.7)), RowSlot(Choice(0.7))
    y = row_sparse_conv(x, weight, bias, slot, **way)
    plain = row_sparse_conv(x, weight, bias, whole, **way, path="dense")
    expected_y = getattr(F, f"conv{len(kernel)}d")(x, weight, bias, **way)
    torch.testing.assert_close(y, expected_y)
    torch.testing.assert_close(plain, expected_y)
    nothing, *found = gradients(y, [weight, *others])
    dense, *expected = gradients(plain, [weight, *others])
    assert nothing is None
    assert dense is not None
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)
    index, rows = compact(slot)
    assert index.tolist() == whole.rows().tolist()
    assert len(index) == 3
    torch.testing.assert_close(rows, dense[index])


def test_channels_last_convolution() -> None:
    x = random(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    weight = random(16, 8, 3, 3, seed=1).contiguous(memory_format=torch.channels_last).requires_grad_()
    way: Any = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    slot = RowSlot(Choice(0.5))
    gradients(row_sparse_conv(x, weight, None, slot, **way), [weight])
    (dense,) = gradients(F.conv2d(x, weight, padding=1), [weight])
    index, rows = compact(slot)
    assert dense is not None
    torch.testing.assert_close(rows, dense[index], rtol=1e-4, atol=1e-5)


def test_a_step_by_hand() -> None:
    """Loss = sum of outputs, every row's gradient is (4, 1); SGD with rate 0.1 moves rows 2 and 3 and no other."""
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-2.0, 0.0]], requires_grad=True)
    slot = RowSlot(Choice(0.5))
    loss = row_sparse_linear(torch.tensor([[1.0, 2.0], [3.0, -1.0]]), weight, None, slot).sum()
    torch.autograd.grad(loss, weight, allow_unused=True)
    index, rows = compact(slot)
    assert index.tolist() == [2, 3]
    assert rows.tolist() == [[4.0, 1.0]] * 2
    SGD(0.1).step({"w": weight}, {"w": rows}, {"w": RowSet(index, compact=True)})
    torch.testing.assert_close(weight.detach(), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.9], [-2.4, -0.1]]))


def test_a_layer_used_twice_adds_scores_and_gradients() -> None:
    """All passes seen before the first backward pass: the rows are those of the concatenated batch."""
    weight, slot, together = random(20, 6, grad=True), RowSlot(Choice(0.7), factors=10), RowSlot(Choice(0.7))
    a, b = random(4, 6, seed=1), random(3, 6, seed=2) * 3
    loss = (
        row_sparse_linear(a, weight, None, slot).square().sum()
        + row_sparse_linear(b, weight, None, slot).square().sum()
    )
    torch.autograd.grad(loss, weight, allow_unused=True)
    torch.autograd.grad(
        row_sparse_linear(torch.cat([a, b]), weight, None, together).square().sum(), weight, allow_unused=True
    )
    (index, rows), (index_b, rows_b) = compact(slot), compact(together)
    assert index.tolist() == index_b.tolist()
    torch.testing.assert_close(rows, rows_b, rtol=1e-5, atol=1e-5)


def test_accumulated_batches_keep_the_rows_of_the_first() -> None:
    weight, slot = random(20, 6, grad=True), RowSlot(Choice(0.7))
    a, b = random(4, 6, seed=1), random(3, 6, seed=2)
    dense = []
    for x in (a, b):
        torch.autograd.grad(row_sparse_linear(x, weight, None, slot).square().sum(), weight, allow_unused=True)
        dense.append(torch.autograd.grad(F.linear(x, weight).square().sum(), weight)[0])
    index, rows = compact(slot)
    assert index.tolist() == Choice(0.7).rows((a @ weight.t()).detach().abs().sum(0).numpy()).tolist()
    torch.testing.assert_close(rows, (dense[0] + dense[1])[index], rtol=1e-5, atol=1e-5)


def test_a_slot_starts_anew() -> None:
    weight, slot = random(4, 3, grad=True), RowSlot(Choice(0.5))
    assert slot.take() == (None, None)
    row_sparse_linear(random(2, 3), weight, None, slot)
    index, given = slot.take()
    assert index is not None
    assert given is None, "a pass without a backward pass has rows and no gradient"
    assert slot.take() == (None, None)


def test_rows_do_not_depend_on_the_loss() -> None:
    weight, x = random(20, 6, grad=True), random(4, 6, seed=1)
    chosen = []
    for scale in (1.0, -100.0):
        slot = RowSlot(Choice(0.7))
        torch.autograd.grad((row_sparse_linear(x, weight, None, slot) * scale).sum(), weight, allow_unused=True)
        chosen.append(compact(slot)[0].tolist())
    assert chosen[0] == chosen[1]
