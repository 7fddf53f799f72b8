"""Streams of shifted images: settings, names of stretches, the clean source, and their seeks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.streams import CIFAR_C, weathered
from driftway.streams.image_shifts import in_runs

FEW = {"kinds": "fog,pixelate,shot_noise", "rows": 90}


def boundaries(stream: Any) -> list[tuple[str, float]]:
    return [(e.name, e.time) for e in stream if isinstance(e, dw.Boundary)]


def test_continual(table: Any) -> None:
    stream = dw.stream("digits-c", seed=1, **FEW)
    spec = stream.spec
    assert (spec.length, spec.drifts, spec.shape) == (270, (90, 180), (1, 8, 8))
    marks = [["fog 5", 0], ["pixelate 5", 90], ["shot_noise 5", 180]]
    assert spec.notes["stretches"] == marks
    assert boundaries(stream) == [(name, float(row)) for name, row in marks]
    stream.seek({})
    ids, x, y = table(stream)
    assert ids.tolist() == list(range(270))
    assert len(x) == len(y) == 270
    clean, labels = spec.source.test()
    for k, kind in enumerate(("fog", "pixelate")):
        part = slice(90 * k, 90 * k + 90)
        assert np.bincount(y[part], minlength=10).tolist() == np.bincount(y[:90], minlength=10).tolist()
        far = np.abs(x[part][:, None] - candidates(kind, clean, ids[part])).max(-1)
        assert far.min(1).max() < 1e-6, "a row is a clean test image, corrupted by its own row number"
        assert len(set(far.argmin(1).tolist())) == 90
        assert (labels[far.argmin(1)] == y[part]).all()
    assert len(labels) == 540


def candidates(kind: str, clean: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Every test image under the draws of every row: float64[rows, images, 64]."""
    images = clean.reshape(-1, 1, 8, 8).astype(np.float64)
    return np.stack([weathered(images, kind, 5, np.full(len(images), i), 1).reshape(len(images), -1) for i in ids])


def test_source_is_clean_and_apart(table: Any) -> None:
    stream = dw.stream("digits-c", **FEW)
    source = stream.spec.source
    x, y = source.train()
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((1257, 64), np.float32, (1257,), np.int64)
    assert source.classes == tuple(range(10))
    held, _ = source.test()
    assert not {r.tobytes() for r in x} & {r.tobytes() for r in held}
    assert 0 <= x.min() < x.max() <= 1
    for composed in (dw.take(stream, 50), dw.rebatch(stream, 16), dw.corrupt(stream, "offset", 2)):
        assert composed.spec.source is source
    assert stream.spec == dw.stream("digits-c", **FEW).spec
    _, shown, _ = table(stream)
    assert not {r.astype(np.float32).tobytes() for r in shown} & {r.tobytes() for r in x}


def test_settings(table: Any) -> None:
    continual = dw.stream("digits-c", **FEW)
    reset = dw.stream("digits-c", setting="reset-each-shift", **FEW)
    assert table(continual)[1].tobytes() == table(reset)[1].tobytes()
    assert "reset" not in continual.spec.notes
    assert reset.spec.notes["reset"] == "boundary"
    mixed = dw.stream("digits-c", setting="mixed", **FEW)
    assert (mixed.spec.length, mixed.spec.drifts, boundaries(mixed)) == (270, (), [("mixed", 0.0)])
    mixed.seek({})
    labels = np.bincount(table(mixed)[2], minlength=10)
    continual.seek({})
    assert labels.tolist() == np.bincount(table(continual)[2], minlength=10).tolist()
    gradual = dw.stream("digits-c", setting="gradual", severity=3, **{**FEW, "kinds": "contrast"})
    assert boundaries(gradual) == [("contrast 1 to 3 to 1", 0.0)]
    gradual.seek({})
    spread = table(gradual)[1].std(axis=1).reshape(5, 18).mean(1)
    assert spread[2] < spread[1] < spread[0]
    assert spread[2] < spread[3] < spread[4]


def test_rows_of_mixed_shifts_have_their_own(table: Any) -> None:
    stream = dw.stream("digits-c", setting="mixed", seed=1, **FEW)
    mixed = stream.spec.mixed
    assert mixed.names == ("fog 5", "pixelate 5", "shot_noise 5")
    assert np.bincount(mixed.shift).tolist() == [90, 90, 90]
    clean, x = stream.spec.source.test()[0], table(stream)[1]
    for k, kind in enumerate(("fog", "pixelate", "shot_noise")):
        ids = np.flatnonzero(mixed.shift == k)[:8]
        assert np.abs(x[ids][:, None] - candidates(kind, clean, ids)).max(-1).min(1).max() < 1e-6
    assert mixed.of(np.array([269, 270, -1])).tolist() == [mixed.shift[269], -1, -1]
    assert dw.stream("digits-c", setting="gradual", **{**FEW, "kinds": "contrast"}).spec.mixed is None
    assert dw.concat(stream, stream).spec.mixed is None


def test_correlated_labels_come_in_runs(table: Any) -> None:
    def changes(**params: Any) -> float:
        _, _, y = table(dw.stream("digits-c", kinds="contrast", rows=0, **params))
        assert len(y) == 540
        return float((np.diff(y) != 0).mean())

    loose, tight = changes(setting="correlated", concentration=10.0), changes(setting="correlated")
    assert tight < loose < changes()
    assert tight < 0.1
    y = np.arange(100) % 10
    order = in_runs(y, 0.1, 10, np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(100))


@pytest.mark.parametrize("setting", ["continual", "gradual", "mixed", "correlated"])
def test_seek(setting: str, check_seek: Any) -> None:
    kinds = "glass_blur,snow,jpeg_compression"
    check_seek(lambda: dw.rebatch(dw.stream("digits-c", setting=setting, kinds=kinds, rows=60, seed=4), 16))
    check_seek(lambda: dw.stream("digits-c", setting=setting, kinds=kinds, rows=0), [1, 3])


def test_all_kinds_by_default() -> None:
    spec = dw.stream("digits-c").spec
    assert spec.notes["kinds"] == list(CIFAR_C)
    assert spec.length == 15 * 540


def test_real_images(data: Path, table: Any) -> None:  # noqa: ARG001
    for name, shape in (("mnist-c", (1, 28, 28)), ("fashion-c", (1, 28, 28)), ("cifar10-c", (3, 32, 32))):
        stream = dw.stream(name, rows=20)
        assert stream.spec.shape == shape
        assert stream.spec.length == 300
        _, x, y = table(stream)
        assert 0 <= x.min() < x.max() <= 1
        assert len(set(y.tolist())) == 10
        held, labels = stream.spec.source.test()
        assert held.shape == (len(labels), np.prod(shape))


def test_what_is_refused() -> None:
    for params, message in [
        ({"kinds": "rain"}, "some of gaussian_noise"),
        ({"kinds": "fog,fog"}, "each once"),
        ({"severity": 6}, "1 to 5"),
        ({"rows": -1}, "at least 0"),
        ({"concentration": 0}, "greater than 0"),
        ({"setting": "random"}, "setting"),
    ]:
        with pytest.raises(dw.InputError, match=message):
            dw.stream("digits-c", **params)
