"""Networks by name: shapes, seeds, errors."""

from __future__ import annotations

import pytest
import torch
from driftway.models.inputs import Columns, Pixels
from driftway.models.networks import build


@pytest.mark.parametrize(
    ("name", "shape", "features"),
    [
        ("mlp", (64,), 400),
        ("mlp:30-20", (1, 8, 8), 20),
        ("convnet", (1, 8, 8), 32),
        ("convnet:4-6-8-10", (3, 4, 4), 10),
        ("resnet18:4", (3, 16, 16), 32),
        ("resnet18:4", (1, 8, 8), 32),
    ],
)
@pytest.mark.parametrize("norm", ["batch", "group", "continual", "none"])
def test_every_network_takes_its_shape(name: str, shape: tuple[int, ...], features: int, norm: str) -> None:
    net = build(name, shape, 7, norm=norm)
    assert net.body(torch.randn(3, *shape)).shape == (3, features)
    assert net(torch.randn(3, *shape)).shape == (3, 7)


@pytest.mark.parametrize(("name", "params"), [("resnet18:64", 11_173_962), ("resnet18:20", 1_094_750)])
def test_resnets_have_the_size_that_is_known(name: str, params: int) -> None:
    """11,173,962 of the method's note; 1,094,750 of the slim one is counted by hand (widths 20, 40, 80, 160)."""
    assert sum(p.numel() for p in build(name, (3, 32, 32), 10).parameters()) == params


def test_a_seed_decides_the_weights() -> None:
    one, same, other = (build("convnet", (1, 8, 8), 10, seed=s) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.head.weight, other.head.weight)


@pytest.mark.parametrize(
    ("name", "shape", "line"),
    [
        ("mlq", (4,), "unknown model 'mlq': there are mlp"),
        ("mlp:3x4", (4,), "sizes are whole numbers"),
        ("mlp:0", (4,), "sizes are whole numbers"),
        ("convnet", (4,), r"needs images of shape \(channels, height, width\), rows here have \[4\]"),
    ],
)
def test_a_name_that_does_not_fit_is_one_line(name: str, shape: tuple[int, ...], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        build(name, shape, 2)


@pytest.mark.parametrize("norm", ["batch", "group", "continual"])
def test_one_row_alone_can_be_learnt_from(norm: str) -> None:
    """Where the map is one pixel, one row has no variance to speak of."""
    net = build("resnet18:4", (1, 8, 8), 3, norm=norm).train()
    assert torch.isfinite(net(torch.randn(1, 1, 8, 8))).all()


def test_pixels_are_shifted_and_scaled_per_channel() -> None:
    inputs = Pixels((2, 1, 2), [0.5, 0.25], [0.5, 0.25])
    x = torch.tensor([[0.5, 1.0, 0.25, 0.5]]).double().numpy()
    assert inputs.tensor(x).tolist() == [[[[0.0, 1.0]], [[0.0, 1.0]]]]
    assert inputs.tensor(x).dtype == torch.float32


def test_columns_are_standardised_by_what_was_seen() -> None:
    inputs = Columns([0, 3])
    x = torch.tensor([[1.0, 0.0], [3.0, 2.0], [float("nan"), float("nan")]]).double().numpy()
    inputs.observe(x)
    assert inputs.tensor(x).tolist() == [[-1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
    again = Columns([0, 3])
    again.load(inputs.state())
    assert torch.equal(again.tensor(x), inputs.tensor(x))
