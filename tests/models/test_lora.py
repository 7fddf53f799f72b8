"""LoRA layers: the formula, growth, dropout, folding, company."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from driftway.models.lora import LoRALinear, fold
from torch import Tensor, nn
from torch.testing import assert_close


def layer_for(d_in: int = 6, d_out: int = 5, tasks: int = 1, **settings: Any) -> LoRALinear:
    """A layer whose adapters all do something."""
    torch.manual_seed(1)
    layer = LoRALinear(nn.Linear(d_in, d_out), 2, 8.0, **settings)
    generator = torch.Generator().manual_seed(2)
    for task in range(tasks):
        if task:
            layer.grow(task)
        with torch.no_grad():
            layer.lora_B.weight.normal_(generator=generator)
    return layer


def by_hand(layer: LoRALinear, x: Tensor) -> Tensor:
    """A loop over adapters."""
    y = layer.base(x)
    pairs = list(zip(layer.old_A.split(layer.rank), layer.old_B.split(layer.rank, 1)))
    for a, b in [*pairs, (layer.lora_A.weight, layer.lora_B.weight)]:
        y = y + layer.scale * (x @ a.t()) @ b.t()
    return y


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_the_sum_is_that_of_a_loop_over_adapters(tasks: int) -> None:
    layer, x = layer_for(tasks=tasks), torch.randn(3, 4, 6)
    assert layer.old_A.shape == (2 * (tasks - 1), 6)
    assert_close(layer(x), by_hand(layer, x))


def test_a_new_adapter_changes_nothing_and_the_old_ones_keep_every_bit() -> None:
    layer, x = layer_for(tasks=3), torch.randn(4, 6)
    before, a, b = layer(x), layer.old_A.clone(), layer.old_B.clone()
    layer.grow(7)
    assert_close(layer(x), before)
    assert torch.equal(layer.old_A[: len(a)], a)
    assert torch.equal(layer.old_B[:, : b.shape[1]], b)
    assert not layer.lora_B.weight.any()
    assert layer.lora_A.weight.abs().max() <= 6**-0.5


def test_only_the_last_adapter_has_gradients() -> None:
    layer = layer_for(tasks=3)
    layer(torch.randn(4, 6)).sum().backward()
    assert {name for name, weight in layer.named_parameters() if weight.grad is not None} == {
        "lora_A.weight",
        "lora_B.weight",
    }


@pytest.mark.parametrize("kind", ["linear", "transposed", "bfloat16"])
def test_folding_is_exact(kind: str) -> None:
    layer = layer_for(32, 24, tasks=3)
    if kind == "transposed":
        base = pytest.importorskip("transformers.pytorch_utils").Conv1D(24, 32)
        layer.base = base.requires_grad_(False)
    if kind == "bfloat16":
        layer = layer.bfloat16()
    net = nn.Sequential(layer, nn.ReLU())
    x = torch.randn(16, 32, dtype=torch.bfloat16 if kind == "bfloat16" else torch.float32)
    before = net(x).float()
    assert fold(net) == 1
    assert net[0] is layer.base
    assert (net(x).float() - before).abs().max() <= (0.05 if kind == "bfloat16" else 1e-5) * before.abs().max()
    assert fold(net) == 0


def test_dropout_is_a_function_of_its_key() -> None:
    layer, x = layer_for(dropout=0.5), torch.ones(200, 6)
    before = torch.get_rng_state()
    layer.key = 3
    first, again = layer(x), layer(x)
    layer.key = 4
    other = layer(x)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    layer.key = 5
    inputs = layer._dropped(x)
    assert set(inputs.unique().tolist()) == {0.0, 2.0}
    assert 0.4 < (inputs == 0).float().mean() < 0.6
    layer.eval()
    assert_close(layer(x), by_hand(layer, x))


def test_a_copy_and_a_saved_state_are_the_same_function() -> None:
    layer, x = layer_for(tasks=3), torch.randn(4, 6)
    twin = copy.deepcopy(layer)
    fresh = layer_for()
    fresh.load_state_dict(layer.state_dict())
    for other in (twin, fresh):
        assert torch.equal(other(x), layer(x))
