"""Each corruption of CIFAR-C against its published description; all of them small, repeatable and in range."""

from __future__ import annotations

import io
import sys
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.streams import CIFAR_C, weathered
from driftway.streams.feed import Chance
from driftway.streams.image_blur import DEFOCUS, GLASS, disk
from driftway.streams.image_digital import displaced, pixelate
from driftway.streams.image_weather import FROST, luma, pane, plasma
from PIL import Image
from scipy import ndimage, stats

SHAPES = ((3, 32, 32), (1, 28, 28), (1, 8, 8))
UNEVEN = ("glass_blur", "frost", "elastic_transform")
"""By their published parameters the distance to the clean image does not rise at every step of severity."""


def pictures(n: int = 40, shape: tuple[int, ...] = (3, 32, 32)) -> np.ndarray:
    """Smooth shapes with edges: what blur and noise both can damage."""
    rng = np.random.default_rng(1)
    x = ndimage.gaussian_filter(rng.normal(size=(n, *shape)), (0, 0, shape[1] / 12, shape[1] / 12))
    x = 0.5 + 0.25 * x / x.std() + 0.2 * np.sign(np.roll(x, 3, axis=0))
    return np.clip(x, 0.0, 1.0)


def flat(value: float, n: int = 40, shape: tuple[int, ...] = (3, 32, 32)) -> np.ndarray:
    return np.full((n, *shape), value)


def damage(kind: str, x: np.ndarray) -> list[float]:
    ids = np.arange(len(x))
    return [float(np.sqrt(np.square(weathered(x, kind, s, ids) - x).mean())) for s in range(1, 6)]


@pytest.mark.parametrize("kind", CIFAR_C)
def test_every_kind_on_every_shape(kind: str) -> None:
    for shape in SHAPES:
        x = pictures(12, shape)
        before = x.copy()
        whole = weathered(x, kind, 5, np.arange(12), seed=3)
        assert whole.shape == x.shape
        assert whole.dtype == np.float64
        assert whole.min() >= 0.0
        assert whole.max() <= 1.0
        assert x.tobytes() == before.tobytes()
        parts = [weathered(x[k : k + 1], kind, 5, np.array([k]), seed=3) for k in (0, 7, 11)]
        np.testing.assert_array_equal(np.concatenate(parts), whole[[0, 7, 11]], "a row's fate hangs on its company")
        assert np.abs(whole - x).mean() > 0.003, shape
        assert np.corrcoef(whole.ravel(), x.ravel())[0, 1] > 0.2, "the image is gone"


@pytest.mark.parametrize("kind", CIFAR_C)
def test_severity(kind: str) -> None:
    for shape in SHAPES:
        steps = damage(kind, pictures(40, shape))
        if kind in UNEVEN:
            continue
        assert np.diff(steps).min() > -0.02 * steps[4], shape  # a little is chance
        assert steps[4] > 1.2 * steps[0] > 0


def test_other_seeds_other_draws() -> None:
    x, ids = pictures(4), np.arange(4)
    fixed = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
    for kind in CIFAR_C:
        same = np.array_equal(weathered(x, kind, 4, ids, seed=0), weathered(x, kind, 4, ids, seed=1))
        assert same == (kind in fixed), kind


def test_noise_has_the_published_size() -> None:
    ids = np.arange(40)
    for severity, sigma in enumerate((0.04, 0.06, 0.08, 0.09, 0.10), 1):
        noise = weathered(flat(0.5), "gaussian_noise", severity, ids) - 0.5
        assert abs(noise.mean()) < 4 * sigma / np.sqrt(noise.size)
        assert noise.std() == pytest.approx(sigma, rel=0.02)
        assert stats.kstest(noise[:5].ravel() / sigma, "norm").pvalue > 1e-3
    for severity, photons in enumerate((500, 250, 100, 75, 50), 1):
        for light in (51 / 255, 102 / 255):
            counts = weathered(flat(light), "shot_noise", severity, ids) * photons
            np.testing.assert_allclose(counts, np.rint(counts), atol=1e-9)
            assert counts.mean() == pytest.approx(photons * light, rel=0.01)
            assert counts.var() == pytest.approx(photons * light, rel=0.03)
        assert (weathered(flat(0.0), "shot_noise", severity, ids) == 0).all()
    for severity, share in enumerate((0.01, 0.02, 0.03, 0.05, 0.07), 1):
        salt = weathered(flat(0.5), "impulse_noise", severity, ids)
        assert set(np.unique(salt)) == {0.0, 0.5, 1.0}
        assert (salt != 0.5).mean() == pytest.approx(share, rel=0.05)
        assert (salt == 1).sum() / (salt != 0.5).sum() == pytest.approx(0.5, abs=0.03)


def test_shot_noise_is_poisson() -> None:
    counts = np.rint(weathered(flat(51 / 255, 10), "shot_noise", 5, np.arange(10)) * 50).astype(int).ravel()
    seen = np.bincount(counts, minlength=30)[:30]
    wanted = stats.poisson(10).pmf(np.arange(30)) * len(counts)
    often = wanted > 20
    assert stats.chisquare(seen[often], wanted[often] * seen[often].sum() / wanted[often].sum()).pvalue > 1e-3


def test_blur_keeps_what_it_spreads() -> None:
    ids = np.arange(3)
    point = np.zeros((3, 1, 32, 32))
    point[:, :, 16, 16] = 1.0
    for kind in ("defocus_blur", "motion_blur"):
        peaks = []
        for severity in range(1, 6):
            spread = weathered(point, kind, severity, ids)
            assert spread.sum(axis=(1, 2, 3)) == pytest.approx(1.0)
            peaks.append(spread.max(axis=(1, 2, 3)).mean())
        assert peaks == sorted(peaks, reverse=True)
    for kind in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"):
        np.testing.assert_allclose(weathered(flat(0.3, 3), kind, 5, ids), 0.3, atol=1e-12)
    assert all(disk(*c).sum() == pytest.approx(1.0) for c in DEFOCUS)
    energies = [np.square(disk(*c)).sum() for c in DEFOCUS]
    assert energies == sorted(energies, reverse=True)
    np.testing.assert_allclose(disk(1.5, 0.1)[1:4, 1:4], 1 / 9, atol=1e-12)


def test_motion_runs_one_way() -> None:
    point = np.zeros((30, 1, 32, 32))
    point[:, :, 16, 16] = 1.0
    spread = weathered(point, "motion_blur", 5, np.arange(30))[:, 0]
    away = np.stack([spread.sum(1) @ np.arange(32) - 16, spread.sum(2) @ np.arange(32) - 16], 1)
    assert (away[:, 0] < -0.8).all(), "the trail lies on one side"
    angles = np.rad2deg(np.arctan2(away[:, 1], away[:, 0] * -1))
    assert np.abs(angles).max() < 50
    assert angles.std() > 15


def test_glass_shows_a_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("driftway.streams.image_blur._smoothed", lambda x, _: x)
    x = np.random.default_rng(0).uniform(size=(20, 3, 32, 32))
    for severity, (_, rounds) in enumerate(GLASS, 1):
        seen = weathered(x, "glass_blur", severity, np.arange(20))
        shares = np.zeros((rounds + 1, rounds + 1))
        for i in range(rounds + 1):
            for j in range(rounds + 1):
                same = seen[:, :, 4:, 4:] == np.roll(x, (i, j), (2, 3))[:, :, 4:, 4:]
                shares[i, j] = same.mean()
                assert (same.all(1) == same.any(1)).all(), "the channels go together"
        one = np.array([0.5, 0.5]) if rounds == 1 else np.array([0.25, 0.5, 0.25])
        np.testing.assert_allclose(shares, np.outer(one, one), atol=0.01)
        assert (seen[:, :, :2] == x[:, :, :2]).all()


def test_zoom_draws_away_from_the_centre() -> None:
    ring = np.zeros((1, 1, 32, 32))
    ring[0, 0, :, 26] = 1.0
    zoomed = weathered(ring, "zoom_blur", 5, np.array([0]))[0, 0]
    assert zoomed[16, 27:30].sum() > 0.2
    assert zoomed[16, :25].max() == 0


def test_weather() -> None:
    ids = np.arange(40)
    lifts = [weathered(flat(0.3), "snow", s, ids).mean() for s in range(1, 6)]
    assert lifts[0] > 0.3
    assert lifts[4] > lifts[0] + 0.1
    grey = pictures(40)
    for severity, (image, ice) in enumerate(FROST, 1):
        made = pane(Chance(9, ids), 32, 32)
        assert 0.2 <= made.min() < 0.3 < 0.9 < made.max() <= 1.0
        dark = weathered(flat(0.0), "frost", severity, ids)
        assert dark.max() <= ice + 1e-12
        assert dark.mean() == pytest.approx(ice * made.mean() * 0.9633, rel=0.05)
        assert dark[:, 2].mean() > dark[:, 0].mean(), "ice is a little blue"
        lit = weathered(flat(0.1), "frost", severity, ids)
        np.testing.assert_allclose(lit - dark, 0.1 * image, atol=1e-12)
    hidden = [ice / image for image, ice in FROST]
    assert hidden == sorted(hidden)
    contrasts = [weathered(grey, "fog", s, ids).std() for s in range(1, 6)]
    assert contrasts[4] < contrasts[0]
    brightest = grey.max(axis=(1, 2, 3))
    assert (weathered(grey, "fog", 5, ids).max(axis=(1, 2, 3)) <= brightest + 1e-12).all()


def test_plasma_is_rougher_with_less_decay() -> None:
    chance = Chance(0, np.arange(60))
    rough = []
    for decay in (3.0, 2.5, 2.0, 1.75):
        clouds = plasma(chance, 32, 32, decay)
        assert (clouds.min(axis=(1, 2)) == 0).all()
        assert (clouds.max(axis=(1, 2)) == 1).all()
        rough.append(np.abs(np.diff(clouds, axis=2)).mean())
    assert rough == sorted(rough)
    assert plasma(chance, 8, 8, 2.0).shape == (60, 8, 8)
    assert plasma(chance, 28, 28, 2.0).shape == (60, 28, 28)


def test_brightness_is_of_the_value_alone() -> None:
    x, ids = pictures(10) * 0.6 + 0.05, np.arange(10)
    for severity, c in enumerate((0.05, 0.1, 0.15, 0.2, 0.3), 1):
        bright = weathered(x, "brightness", severity, ids)
        np.testing.assert_allclose(bright.max(1), np.minimum(x.max(1) + c, 1.0), atol=1e-12)
        ratio = bright / bright.max(1, keepdims=True)
        np.testing.assert_allclose(ratio, x / x.max(1, keepdims=True), atol=1e-9)
        dark = weathered(flat(0.0, 2, (1, 8, 8)), "brightness", severity, np.arange(2))
        np.testing.assert_allclose(dark, c)


def test_contrast_shrinks_to_the_mean_of_each_channel() -> None:
    x, ids = pictures(10), np.arange(10)
    for severity, c in enumerate((0.75, 0.5, 0.4, 0.3, 0.15), 1):
        pale = weathered(x, "contrast", severity, ids)
        np.testing.assert_allclose(pale.mean((2, 3)), x.mean((2, 3)), atol=1e-12)
        np.testing.assert_allclose(pale.std((2, 3)), c * x.std((2, 3)), rtol=1e-9)


def test_elastic_is_rougher_and_turns_less_with_severity() -> None:
    chance = Chance(0, np.arange(60))
    rough, moved = [], []
    for k in range(5):
        rows, columns = displaced(k, 32, 32, chance)
        rough.append(np.abs(np.diff(rows, n=2, axis=1)).mean() + np.abs(np.diff(columns, n=2, axis=2)).mean())
        moved.append(np.abs(rows.mean((1, 2)) - 15.5).mean())
    assert rough == sorted(rough)
    assert rough[0] < 1e-9, "severity 1 is an affine map"
    assert moved[4] < moved[0]


def test_pixelate_is_pillows_box() -> None:
    x = np.rint(pictures(3) * 255) / 255
    for k, c in enumerate((0.95, 0.9, 0.85, 0.75, 0.65)):
        ours = pixelate(x, k, Chance(0, np.arange(3)))
        for image, seen in zip(x, ours, strict=True):
            pil = Image.fromarray(np.rint(image.transpose(1, 2, 0) * 255).astype(np.uint8))
            pil = pil.resize((int(32 * c),) * 2, Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
            np.testing.assert_allclose(seen.transpose(1, 2, 0), np.asarray(pil) / 255, atol=2 / 255)
        again = pixelate(ours, k, Chance(0, np.arange(3)))
        np.testing.assert_allclose(again, ours, atol=1e-12)
        blocks = int(32 * c)
        assert len(np.unique(ours[0, 0].round(9), axis=0)) == blocks


def test_jpeg_is_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    x = pictures(2)
    made = weathered(x, "jpeg_compression", 5, np.arange(2)) * 255
    np.testing.assert_allclose(made, np.rint(made), atol=1e-9)
    file = io.BytesIO()
    Image.fromarray(np.rint(x[1].transpose(1, 2, 0) * 255).astype(np.uint8)).save(file, "JPEG", quality=40)
    with Image.open(file) as decoded:
        np.testing.assert_array_equal(made[1].transpose(1, 2, 0).round(), np.asarray(decoded))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(dw.InputError, match=r"pip install .driftway\[vision\]"):
        weathered(x, "jpeg_compression", 5, np.arange(2))


def test_luma_of_grey_is_grey() -> None:
    np.testing.assert_allclose(luma(flat(0.4, 2)), 0.4)


def test_as_kinds_of_corrupt(table: Any) -> None:
    def images(top: float) -> Any:
        x = np.random.default_rng(0).uniform(0, top, (300, 8, 8))
        return dw.from_arrays(x, np.arange(300) % 10)

    for kind in ("fog", "motion_blur", "gaussian_noise"):
        _, unit, _ = table(dw.corrupt(images(1.0), f"cifar-c:{kind}", 4))
        ids, clean, _ = table(images(1.0))
        wanted = weathered(clean.reshape(-1, 1, 8, 8), kind, 4, ids).reshape(-1, 64)
        np.testing.assert_array_equal(unit, wanted)
        _, wide, _ = table(dw.corrupt(images(16.0), f"cifar-c:{kind}", 4))
        assert wide.max() > 5
        assert wide.min() >= 0
    with pytest.raises(dw.InputError, match="needs images"):
        dw.corrupt(dw.from_arrays(np.zeros((3, 4)), np.zeros(3, int)), "cifar-c:fog")
