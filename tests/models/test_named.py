"""Layers by name patterns."""

from __future__ import annotations

import pytest
from driftway.models.named import BLOCKS, is_transposed, linears, matches, replace, shortened, sizes
from driftway.models.networks import build
from torch import nn


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2)


class Model(nn.Module):
    """Two blocks, a tower for images, a projector, a head tied to the embedding."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.layers = nn.ModuleList([Block() for _ in range(blocks)])
        self.vision_tower = nn.Sequential(nn.Linear(4, 4))
        self.projector = nn.Sequential(nn.Linear(4, 4))
        self.lm_head = nn.Linear(4, 7, bias=False)
        self.lm_head.weight = self.embedding.weight


def test_the_default_is_the_blocks_of_a_transformer_and_the_body_of_a_network() -> None:
    assert list(linears(Model())) == ["layers.0.q", "layers.1.q"]
    assert list(linears(build("mlp:8-4", (16,), 3))) == ["body.1", "body.3"]
    assert list(linears(build("convnet:4", (1, 8, 8), 3), convolutions=True)) == ["body.0"]
    assert not matches("model.vision_tower.layers.0.q", BLOCKS)


def test_patterns_take_and_take_away() -> None:
    assert list(linears(Model(), "*, !layers.*")) == ["vision_tower.0", "projector.0", "lm_head"]
    assert list(linears(Model(), "layers.1.*,lm_head")) == ["layers.1.q", "lm_head"]


def test_what_names_nothing_is_one_line_that_says_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"^'encoder.\*' names no linear layer: there are body.1, body.3, head$"):
        linears(build("mlp:8-4", (16,), 3), "encoder.*")
    with pytest.raises(ValueError, match=r"there are layers\.\*\.q, vision_tower\.\*, projector\.\*, lm_head$"):
        linears(Model(300), "x")
    with pytest.raises(ValueError, match="there are none"):
        linears(nn.ReLU(), "x")
    assert shortened(f"{chr(97 + n)}.q" for n in range(20)).endswith("l.q and 8 more")


def test_both_kinds_of_linear_layers_have_sizes() -> None:
    assert sizes(nn.Linear(3, 5)) == (3, 5)
    transposed = pytest.importorskip("transformers.pytorch_utils").Conv1D(5, 3)
    assert is_transposed(transposed)
    assert sizes(transposed) == (3, 5)
    assert not is_transposed(nn.Conv1d(3, 5, 1))


def test_a_layer_that_two_places_share_is_replaced_in_both() -> None:
    shared = nn.Linear(2, 2)
    net = nn.Sequential(shared, nn.Sequential(shared, nn.ReLU()))
    other = nn.Linear(2, 2)
    assert list(linears(net, "*")) == ["0"]
    replace(net, {shared: other})
    assert net[0] is other
    assert net[1][0] is other
