"""The linear layer of evaluation against PyTorch's, over odd shapes; training untouched."""

from __future__ import annotations

import pytest
import torch
from driftway.models.kernels import inference_linear
from driftway.models.kernels.inference_linear import Linear, onednn_is_better, worthwhile
from torch.nn import functional as F
from torch.testing import assert_close


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 5), (1000, 65, 401), (513, 784, 33), (64, 3, 400, 70)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_a_linear_layer(shape: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    *rows, d_in, d_out = shape
    layer = Linear(d_in, d_out, bias=bias, dtype=dtype)
    x = torch.randn(*rows, d_in, dtype=dtype)
    with torch.no_grad():
        expected = F.linear(x, layer.weight, layer.bias)
        assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
        assert_close(layer(x.transpose(0, -1).contiguous().transpose(0, -1)), expected, rtol=1e-4, atol=1e-5)


def test_training_takes_pytorchs_own_path_bit_for_bit() -> None:
    layer, x = Linear(400, 400), torch.randn(200, 400)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_the_same_rows_give_the_same_bits() -> None:
    layer, x = Linear(400, 400), torch.randn(300, 400)
    with torch.inference_mode():
        assert torch.equal(layer(x), layer(x.clone()))


def test_small_products_and_other_kinds_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_linear, "onednn_is_better", lambda: True)
    large, weight = torch.zeros(1000, 400), torch.zeros(400, 400)
    assert worthwhile(large, weight)
    assert not worthwhile(large[:5], weight)
    assert not worthwhile(large.double(), weight.double())
    assert not worthwhile(large, torch.zeros(400, 800)[:, ::2])


@pytest.mark.parametrize("maker", ["GenuineIntel", ""])
def test_other_processors_keep_pytorchs_choice(maker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_linear, "maker", lambda: maker)
    onednn_is_better.cache_clear()
    try:
        assert not onednn_is_better()
    finally:
        onednn_is_better.cache_clear()
