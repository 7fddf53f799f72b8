"""Linear layers made of blocks, against the dense layer that they stand for."""

from __future__ import annotations

import pytest
import torch
from driftway.models.kernels.block_sparse_linear import BlockLinear, assemble, block_sparse_linear, cut_out
from torch import Tensor


def some_blocks(shape: tuple[int, int], block: tuple[int, int], share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks of a random weight, and where they lie."""
    generator = torch.Generator().manual_seed(0)
    down, across = -(-shape[0] // block[0]), -(-shape[1] // block[1])
    at = (torch.rand(down * across, generator=generator) < share).nonzero().flatten()
    rows, cols = torch.div(at, across, rounding_mode="floor"), at % across
    return cut_out(torch.randn(shape, generator=generator), rows, cols, block), rows, cols


@pytest.mark.parametrize("shape", [(64, 96), (65, 97), (10, 33), (32, 32)])
@pytest.mark.parametrize("block", [(32, 32), (16, 8), (1, 32)])
@pytest.mark.parametrize("batch", [1, 7])
def test_paths_agree(shape: tuple[int, int], block: tuple[int, int], batch: int) -> None:
    blocks, rows, cols = some_blocks(shape, block, 0.4)
    generator = torch.Generator().manual_seed(1)
    x, bias, aim = (torch.randn(n, generator=generator) for n in ((batch, shape[1]), shape[0], (batch, shape[0])))
    inputs = [t.requires_grad_() for t in (x, blocks, bias)]
    dense, gathered = (block_sparse_linear(x, blocks, rows, cols, bias, shape, path) for path in ("dense", "gathered"))
    torch.testing.assert_close(dense, gathered, rtol=1e-4, atol=1e-4)
    grads = [torch.autograd.grad((y * aim).sum(), inputs) for y in (dense, gathered)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_cutting_out_and_assembling_are_inverse() -> None:
    weight = torch.randn(10, 33, generator=torch.Generator().manual_seed(0))
    rows, cols = torch.arange(4).repeat_interleave(3), torch.arange(3).repeat(4)
    assert torch.equal(assemble(cut_out(weight, rows, cols, (3, 16)), rows, cols, (10, 33)), weight)
    one = cut_out(weight, rows[:1], cols[:1], (3, 16))
    alone = assemble(one, rows[:1], cols[:1], (10, 33))
    assert torch.equal(alone[:3, :16], weight[:3, :16])
    assert not alone[3:].any()


def test_a_layer_without_any_block_says_its_bias() -> None:
    layer = BlockLinear((6, 5), torch.nn.Parameter(torch.arange(6.0)))
    layer.place(torch.zeros(0, 2, 2), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert torch.equal(layer(torch.randn(3, 5)), torch.arange(6.0).expand(3, 6))
    assert set(layer.state_dict()) == {"weight", "bias"}
