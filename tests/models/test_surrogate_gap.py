"""Sharpness-aware directions: the method note's hand example, and what holds for any gradients."""

from __future__ import annotations

import math

import pytest
import torch
from driftway.models.surrogate_gap import all_finite, ascent, gap_direction, joint_norm


def test_the_direction_on_a_bowl() -> None:
    """L = (x^2 + 4 y^2) / 2 at (1, 1), rho 0.1, alpha 0.4."""
    steep = torch.tensor([1.0, 4.0], dtype=torch.float64)
    at = torch.ones(2, dtype=torch.float64)
    g = steep * at
    assert float(joint_norm([g])) == pytest.approx(4.1231056)
    (eps,) = ascent([g], 0.1)
    assert eps.tolist() == pytest.approx([0.0242536, 0.0970143], abs=1e-7)
    gp = steep * (at + eps)
    assert gp.tolist() == pytest.approx([1.0242536, 4.3880570], abs=1e-7)
    (d,) = gap_direction([g], [gp], 0.4)
    assert d.tolist() == pytest.approx([0.9990939, 4.3939297], abs=1e-7)
    across = (gp - d) / 0.4
    assert across.tolist() == pytest.approx([0.0628991, -0.0146818], abs=1e-7)
    assert float(across @ gp) == pytest.approx(0, abs=1e-10)
    assert float((steep * ((at + eps) ** 2 - at**2)).sum() / 2) == pytest.approx(0.4314282, abs=1e-7)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.4, 1.0])
def test_directions_in_general(alpha: float) -> None:
    draw = torch.Generator().manual_seed(0)
    g, gp = ([torch.randn(n, generator=draw, dtype=torch.float64) for n in (3, 5)] for _ in range(2))
    d = gap_direction(g, gp, alpha)
    forward = sum(float((a * b).sum()) for a, b in zip(d, gp, strict=True))
    assert forward == pytest.approx(float(joint_norm(gp)) ** 2, rel=1e-10)
    for same, plain in zip(gap_direction(g, g, alpha), g, strict=True):
        torch.testing.assert_close(same, plain, rtol=1e-12, atol=1e-12)
    if alpha == 0:
        assert all(torch.equal(a, b) for a, b in zip(d, gp, strict=True))


def test_long_and_short_parts_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    short = [torch.randn(size, generator=generator, dtype=torch.float64) for size in ((3,), (2, 4), ())]
    long = [*short, torch.randn(400, 300, generator=generator, dtype=torch.float64)]
    for parts in (short, long):
        whole = torch.cat([p.flatten() for p in parts])
        assert float(joint_norm(parts)) == pytest.approx(float(whole.norm()), rel=1e-12)
        assert all_finite(parts)
        for bad in (math.nan, math.inf, -math.inf):
            assert not all_finite([*parts[:-1], parts[-1].clone().fill_(bad)])
            spoilt = parts[0].clone()
            spoilt[1] = bad
            assert not all_finite([spoilt, *parts[1:]])
