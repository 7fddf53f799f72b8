"""Networks read as units: the list computes what the network does, and unknown networks have none."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from driftway.models.adaptive_norm import adaptive_norms
from driftway.models.networks import build
from driftway.models.units import Conv, Dense, Flatten, MaxPool, MeanPool, Norm, units_of
from torch import Tensor, nn


def ready(name: str, shape: tuple[int, ...], norm: str = "batch") -> nn.Module:
    net = build(name, shape, 5, norm=norm).eval()
    adaptive_norms(net)
    return net


def test_a_convnet_is_its_layers_in_order() -> None:
    units = units_of(ready("convnet:4-6", (1, 8, 8)))
    assert units is not None
    assert [type(u) for u in units] == [Conv, Norm, MaxPool, Conv, Norm, MeanPool, Dense]
    assert [u.source for u in units] == list(range(7))
    assert units[1] == Norm(1, "body.1", None, True)


def test_a_residual_block_joins_its_shortcut_in_its_last_norm() -> None:
    units = units_of(ready("resnet18:4", (3, 8, 8)))
    assert units is not None
    joined = [u for u in units if isinstance(u, Norm) and u.join is not None]
    assert len(joined) == 8
    assert all(u.relu for u in joined)
    assert joined[0] == Norm(5, "body.blocks.0.norm2", 2, True)
    plain = [u.at for u in units if isinstance(u, Norm) and not u.relu]
    assert plain == [f"body.blocks.{i}.shortcut.1" for i in (2, 4, 6)]
    for i, unit in enumerate(units):
        assert unit.source <= i
        assert getattr(unit, "join", None) is None or unit.join <= i  # type: ignore[union-attr, operator]


needs_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="needs the extra vision")


@needs_torchvision
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_torchvision_resnets_are_units(name: str) -> None:
    units = units_of(ready(f"torchvision:{name}", (3, 32, 32)))
    assert units is not None
    assert sum(isinstance(u, MaxPool) for u in units) == 1
    assert isinstance(units[-1], Dense)


def test_a_network_for_table_rows_is_units_too() -> None:
    units = units_of(ready("mlp-norm:6-4", (7,)))
    assert units is not None
    assert [type(u) for u in units] == [Flatten, Dense, Norm, Dense, Norm, Dense]


class Odd(nn.Module):
    """A body of one convolution and norm, and something unusual."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.conv, self.norm, self.what = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), what

    def forward(self, x: Tensor) -> Tensor:
        return self.what(self.norm(self.conv(x))).mean((2, 3))


def branching(h: Tensor) -> Tensor:
    return h if h.sum() > 0 else -h


ODD = {
    "gelu": nn.GELU(),
    "two uses": lambda h: torch.relu(h) + h,
    "its own double": lambda h: h + h,
    "branching": branching,
    "scaled": lambda h: 2 * h,
    "sum of three": lambda h: torch.relu(h + 1),
    "mean then convolution": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 2, 1)),
    "reflecting": nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
    "padded by name": nn.Conv2d(2, 2, 3, padding="same"),
    "windows with gaps": nn.MaxPool2d(2, dilation=2),
    "raises": lambda h: [][h],
}


@pytest.mark.parametrize("what", ODD.values(), ids=ODD)
def test_anything_unusual_has_no_units(what: Any) -> None:
    net = Odd(what).eval()
    adaptive_norms(net)
    assert units_of(net) is None


def test_norms_that_are_not_adaptive_have_no_units() -> None:
    assert units_of(build("convnet:4", (1, 8, 8), 3).eval()) is None
    assert units_of(ready("convnet:4", (1, 8, 8), "group")) is None


@needs_torchvision
def test_networks_without_plain_blocks_have_no_units() -> None:
    assert units_of(ready("torchvision:mobilenet_v2", (3, 32, 32))) is None
