"""Random views of rows: small images are jittered, shifted and blurred a little; other rows get Gaussian noise.

The list is that of Wang et al. (CoTTA), CVPR 2022, which Yuan et al. (RoTTA), CVPR 2023 use as well: brightness 0.6 to
1.4, contrast 0.7 to 1.3, saturation 0.5 to 1.5, gamma 0.7 to 1.3; rotation by at most 15 degrees, shifts by at most an
eighth of the side, scale 0.9 to 1.1 over padded edges; blur; a flip; noise of deviation 0.005; every row of a view
under the same draw but for the noise. Written anew on tensors. Ours: no turn of the hue; the blur's deviation is at
most a 64th of the side (the published 0.5 pixels at 32 x 32), so that 8 x 8 digits keep their strokes; only images of
three channels are flipped, since a mirrored digit or letter is another one or none. Rows that are no images get noise
of deviation 0.05 in standardised columns, for which there is no published list.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

PIXEL_NOISE, COLUMN_NOISE = 0.005, 0.05
LUMA = (0.299, 0.587, 0.114)
AT_ONCE = 1 << 17
"""Numbers of so many views are worked on together as stay near the processor."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Draws views of rows as a network gets them.

    mean, std: of each channel, by which pixels of 0..1 were shifted and scaled; None for rows that are no images.

    >>> augment = Augmentation((0.5,), (0.5,))
    >>> augment(torch.zeros(2, 1, 8, 8), 3, torch.Generator().manual_seed(0)).shape
    torch.Size([3, 2, 1, 8, 8])
    """

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def __call__(self, x: Tensor, views: int, generator: torch.Generator) -> Tensor:
        """float[views, B, ...] of x float[B, ...]; what is random comes from ``generator`` (on the CPU) alone."""
        if self.mean is None or self.std is None or x.dim() != 4:
            return x + COLUMN_NOISE * _normal((views, *x.shape), x, generator)
        some = max(1, AT_ONCE // max(1, x.numel()))
        parts = [self._images(x, min(some, views - at), generator) for at in range(0, views, some)]
        return torch.cat(parts) if parts else x.new_empty((0, *x.shape))

    def _images(self, x: Tensor, views: int, generator: torch.Generator) -> Tensor:
        assert self.mean is not None
        assert self.std is not None
        mean, std = (
            torch.tensor(v, dtype=x.dtype, device=x.device).view(1, 1, -1, 1, 1) for v in (self.mean, self.std)
        )
        seen = (x * std + mean).clamp(0, 1).expand(views, *x.shape)
        seen = _jitter(seen, generator)
        seen = _blur(_warp(seen, generator), generator)
        seen = (seen + PIXEL_NOISE * _normal(seen.shape, x, generator)).clamp(0, 1)
        return (seen - mean) / std


def _normal(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, dtype=like.dtype).to(like.device)


def _between(low: float, high: float, like: Tensor, generator: torch.Generator) -> Tensor:
    """float[views]."""
    drawn = torch.rand(len(like), generator=generator, dtype=like.dtype)
    return (low + (high - low) * drawn).to(like.device)


def _jitter(x: Tensor, generator: torch.Generator) -> Tensor:
    """Light and colour of x float[V, B, C, H, W] in 0..1."""
    light, contrast, gamma, colour = (
        _between(low, high, x, generator).view(-1, 1, 1, 1, 1)
        for low, high in ((0.6, 1.4), (0.7, 1.3), (0.7, 1.3), (0.5, 1.5))
    )
    x = (x * light).clamp(0, 1)
    middle = _grey(x).mean((2, 3, 4), keepdim=True)
    x = (middle + contrast * (x - middle)).clamp(0, 1)
    if x.shape[2] == 3:
        grey = _grey(x)
        x = (grey + colour * (x - grey)).clamp(0, 1)
    return x**gamma


def _grey(x: Tensor) -> Tensor:
    """[V, B, 1, H, W]."""
    if x.shape[2] != 3:
        return x.mean(2, keepdim=True)
    return (x * torch.tensor(LUMA, dtype=x.dtype, device=x.device).view(1, 1, 3, 1, 1)).sum(2, keepdim=True)


def _warp(x: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, shift, scale and mirror, bilinear, edges repeated."""
    views, rows, channels, height, width = x.shape
    angle = _between(-math.pi / 12, math.pi / 12, x, generator)
    scale = _between(0.9, 1.1, x, generator)
    across, down = (_between(-0.25, 0.25, x, generator) for _ in range(2))  # the grid's side is 2
    mirrored = _between(0, 1, x, generator) < 0.5
    sign = torch.where(mirrored & (channels == 3), -1.0, 1.0).to(x.dtype)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    lines = [torch.stack([sign * cos, -sin, across], 1), torch.stack([sign * sin, cos, down], 1)]
    grid = F.affine_grid(torch.stack(lines, 1), [views, 1, height, width], align_corners=False)
    flat = x.reshape(views, rows * channels, height, width)
    return F.grid_sample(flat, grid, padding_mode="border", align_corners=False).view(x.shape)


def _blur(x: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian, over the nearest neighbours on either side, edges repeated."""
    most = max(min(x.shape[-2:]) / 64, 2e-3)
    deviation = _between(1e-3, most, x, generator)
    side = torch.exp(-0.5 / deviation.square()).view(-1, 1, 1, 1, 1)
    for axis in (-1, -2):
        last = x.shape[axis] - 1
        before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, last)], axis)
        after = torch.cat([x.narrow(axis, 1, last), x.narrow(axis, last, 1)], axis)
        x = (x + side * (before + after)) / (1 + 2 * side)
    return x
