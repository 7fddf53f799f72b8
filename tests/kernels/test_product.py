"""Products by the faster library: the same numbers, and the same gradient for the input of a frozen layer."""

from __future__ import annotations

import pytest
import torch
from driftway.models.kernels import product as module
from driftway.models.kernels.product import frozen_linear, product
from torch.nn import functional as F


@pytest.fixture(params=[True, False], ids=["large", "small"], autouse=True)
def worth_it(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both libraries, where the processor has a choice."""
    monkeypatch.setattr(module, "ENOUGH", 1 if request.param else 1 << 60)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
def test_products_of_factors_turned_either_way(dtype: torch.dtype, turned: tuple[bool, bool]) -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(9, 13, generator=draw).to(dtype), torch.randn(13, 5, generator=draw).to(dtype)
    first = a.t().contiguous().t() if turned[0] else a
    second = b.t().contiguous().t() if turned[1] else b
    with torch.no_grad():
        torch.testing.assert_close(product(first, second), a @ b)
        torch.testing.assert_close(product(first[2:, 3:], second[3:, :2]), a[2:, 3:] @ b[3:, :2])
        assert product(first[:0], second).shape == (0, 5)
        assert product(first[:, :0], second[:0]).abs().sum() == 0


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6, 8), (2, 3, 8), (0, 8)])
def test_a_frozen_layer_says_and_passes_back_the_same(bias: bool, shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(shape, generator=draw), torch.randn(5, 8, generator=draw)
    b = torch.randn(5, generator=draw) if bias else None
    found = []
    for ours in (frozen_linear, F.linear):
        given = x.clone().requires_grad_()
        y = ours(given, weight, b)
        found.append((y, torch.autograd.grad(y.square().sum(), given)[0]))
    for mine, theirs in zip(*found):
        torch.testing.assert_close(mine, theirs)
    with torch.inference_mode():
        torch.testing.assert_close(frozen_linear(x, weight, b), F.linear(x, weight, b))
