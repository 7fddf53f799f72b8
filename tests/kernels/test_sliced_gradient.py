"""Layers whose weight gradient is that of some rows: outputs, gradients, and the plain layers they stand for."""

from __future__ import annotations

import pytest
import torch
from driftway.models.kernels.sliced_gradient import conv_geometry, sliceable, sliced_conv, sliced_linear
from torch import Tensor, nn


def same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [[0], [1, 4, 6], list(range(7)), []])
@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3)])
def test_linear(rows: list[int], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, layer, which = torch.randn(shape, requires_grad=True), nn.Linear(3, 7), torch.tensor(rows, dtype=torch.int64)
    out = [sliced_linear(x, layer.weight, layer.bias, which, path) for path in ("dense", "sliced")]
    torch.testing.assert_close(*out)
    plain = nn.functional.linear(x, layer.weight, layer.bias)
    inputs = (x, layer.weight, layer.bias)
    dense, sliced, whole = (torch.autograd.grad(y.square().sum(), inputs) for y in (*out, plain))
    same(dense, sliced)
    torch.testing.assert_close(sliced[1][rows], whole[1][rows])
    others = [r for r in range(7) if r not in rows]
    assert not sliced[1][others].any()
    same((sliced[0], sliced[2]), (whole[0], whole[2]))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("last", [False, True])
def test_convolution(stride: int, last: bool) -> None:
    torch.manual_seed(0)
    conv, rows = nn.Conv2d(3, 8, 3, stride, 1), torch.tensor([2, 3, 7])
    x = torch.randn(4, 3, 9, 7)
    if last:
        conv, x = conv.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    x.requires_grad_()
    geometry = conv_geometry(conv)
    out = [sliced_conv(x, conv.weight, conv.bias, rows, geometry, path) for path in ("dense", "sliced")]
    inputs = (x, conv.weight, conv.bias)
    same(*(torch.autograd.grad(y.square().sum(), inputs) for y in out))


def test_a_layer_takes_the_place_of_another_and_obeys() -> None:
    torch.manual_seed(0)
    drawn = torch.get_rng_state()
    for plain, x in ((nn.Linear(4, 6), torch.randn(3, 4)), (nn.Conv2d(2, 6, 3, 2, 1), torch.randn(3, 2, 5, 5))):
        before = torch.get_rng_state()
        layer = sliceable(plain)
        assert torch.equal(torch.get_rng_state(), before), "nothing is drawn"
        assert layer.weight is plain.weight
        assert torch.equal(layer(x), plain(x))
        layer.moving = torch.tensor([1, 5])
        (grad,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
        assert grad.flatten(1).any(1).nonzero().flatten().tolist() == [1, 5]
        layer.moving = None
        (grad,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
        assert grad.flatten(1).any(1).all()
    torch.set_rng_state(drawn)


def test_layers_that_cannot_be_sliced_are_left_alone() -> None:
    for layer in (nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding="same")):
        assert sliceable(layer) is layer
    with pytest.raises(ValueError, match="without groups"):
        conv_geometry(nn.Conv2d(4, 4, 3, groups=2))
