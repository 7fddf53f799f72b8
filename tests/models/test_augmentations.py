"""Views of rows: within bounds, from the generator alone, no mirror where a mirror changes the meaning."""

from __future__ import annotations

import pytest
import torch
from driftway.models.augmentations import Augmentation
from torch import Tensor


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(channels: int, side: int) -> Tensor:
    """Smooth, brighter on the left, in 0..1."""
    across = torch.linspace(0.8, 0.2, side)
    return across.expand(2, channels, side, side).clone()


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32), (1, 28)])
def test_views_follow_from_the_generator_and_stay_within_the_pixels(channels: int, side: int) -> None:
    augment = Augmentation((0.3,) * channels, (0.4,) * channels)
    x = (picture(channels, side) - 0.3) / 0.4
    state = torch.random.get_rng_state()
    views = augment(x, 5, draw())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert views.shape == (5, *x.shape)
    assert torch.equal(views, augment(x, 5, draw()))
    assert not torch.equal(views, augment(x, 5, draw(1)))
    pixels = views * 0.4 + 0.3
    assert float(pixels.min()) >= -1e-6
    assert float(pixels.max()) <= 1 + 1e-6
    assert float((views[0] - views[1]).abs().max()) > 0.1
    rows = (views[:, 0] - views[:, 1]).abs()
    assert 0 < float(rows.max()) < 0.15, "rows of a view differ by their noise only"


def test_a_view_is_mostly_the_row() -> None:
    x = (picture(1, 16) - 0.5) / 0.25
    views = Augmentation((0.5,), (0.25,))(x, 64, draw()).flatten(1)
    likeness = torch.nn.functional.cosine_similarity(views - views.mean(1, keepdim=True), x.flatten()[None], dim=1)
    assert float(likeness.min()) > 0.8


@pytest.mark.parametrize(("channels", "mirrored"), [(1, False), (3, True)])
def test_only_coloured_images_are_mirrored(channels: int, mirrored: bool) -> None:
    x = (picture(channels, 16) - 0.5) / 0.25
    views = Augmentation((0.5,) * channels, (0.25,) * channels)(x, 100, draw())
    leftwards = (views[..., :8] - views[..., 8:]).mean((1, 2, 3, 4)) > 0
    assert (0.3 < float(leftwards.float().mean()) < 0.7) if mirrored else bool(leftwards.all())


def test_rows_that_are_no_images_get_noise() -> None:
    x = torch.zeros(200, 30)
    views = Augmentation()(x, 10, draw())
    assert float(views.std()) == pytest.approx(0.05, rel=0.05)
    assert abs(float(views.mean())) < 1e-3
