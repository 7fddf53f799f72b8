"""From one image file to another: sizes, channels, what is held out, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.streams.domain_shift import fitted
from driftway.streams.images import resizing
from PIL import Image


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    rng = np.random.default_rng(0)
    parts = {f"x_{p}": rng.integers(0, 256, (n, 28, 28)).astype(np.uint8) for p, n in (("train", 60), ("test", 30))}
    np.savez(tmp_path / "ours.npz", **parts, y_train=np.arange(60) % 10, y_test=np.arange(30) % 10)
    np.savez(tmp_path / "theirs.npz", x=rng.uniform(size=(50, 16, 16, 3)), y=np.arange(50) % 7)
    return str(tmp_path / "ours.npz"), str(tmp_path / "theirs.npz")


def test_grey_source_coloured_target(files: tuple[str, str], table: Any, check_seek: Any) -> None:
    def make() -> Any:
        return dw.rebatch(dw.stream("domain-shift", source=files[0], target=files[1], seed=1), 8)

    spec = make().spec
    assert (spec.shape, spec.length, spec.n_classes) == ((1, 28, 28), 50, 10)
    assert spec.notes["stretches"] == [["theirs", 0]]
    assert [len(part()[1]) for part in (spec.source.train, spec.source.test)] == [60, 30]
    _, x, y = table(make())
    assert sorted(y.tolist()) == sorted((np.arange(50) % 7).tolist())
    assert 0 <= x.min() < x.max() <= 1
    check_seek(make)


def test_source_without_a_test_part(files: tuple[str, str], table: Any) -> None:
    stream = dw.stream("domain-shift", source=files[1], target=files[0], rows=20)
    assert stream.spec.shape == (3, 16, 16)
    (x, y), (held, labels) = stream.spec.source.train(), stream.spec.source.test()
    assert (len(y), len(labels)) == (40, 10)
    assert not {r.tobytes() for r in x} & {r.tobytes() for r in held}
    _, shown, labels = table(stream)
    assert np.bincount(labels).tolist() == [2] * 10
    grey = shown.reshape(-1, 3, 256)
    assert (grey[:, 0] == grey[:, 2]).all()


def test_resizing_is_pillows_bilinear() -> None:
    x = np.random.default_rng(0).uniform(size=(1, 1, 28, 20)).astype(np.float32)
    for shape in ((1, 16, 9), (1, 40, 33)):
        wanted = Image.fromarray(x[0, 0]).resize((shape[2], shape[1]), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(fitted(x, shape)[0, 0], np.asarray(wanted), atol=1e-5)
    np.testing.assert_allclose(resizing(7, 7), np.eye(7))


def test_what_is_refused(files: tuple[str, str], tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", x=np.full((3, 8, 8), 9.0), y=np.arange(3))
    np.savez(tmp_path / "flat.npz", x=np.zeros((3, 8)), y=np.arange(3))
    np.savez(tmp_path / "text.npz", x=np.zeros((3, 8, 8)), y=np.array(["a", "b", "c"]))
    np.savez(tmp_path / "none.npz", z=np.zeros(3))
    for source, message in [
        ("", "two files are needed"),
        (tmp_path / "no.npz", "no such file"),
        (tmp_path / "bad.npz", "numbers in 0..1"),
        (tmp_path / "flat.npz", "one or three channels"),
        (tmp_path / "text.npz", "3 class codes"),
        (tmp_path / "none.npz", "no arrays 'x' and 'y'"),
    ]:
        with pytest.raises(dw.InputError, match=message) as caught:
            dw.stream("domain-shift", source=str(source), target=files[1])
        assert "\n" not in str(caught.value)
