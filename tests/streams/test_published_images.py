"""Image sets that come by way of torchvision; here a stand-in takes its place, so nothing is downloaded."""

from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt.cli import main
from driftway.streams import DATASETS, fetch, locate
from driftway.streams.convert import content_digest


def stand_in(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], fault: Exception | None = None) -> None:
    """A module ``torchvision`` whose data sets are made up."""

    class Published:
        classes = [f"class {k}" for k in range(10)]  # noqa: RUF012

        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert download
            if fault is not None:
                raise fault
            (Path(root) / "raw").mkdir(exist_ok=True)
            n = 50 if train else 20
            self.data = np.random.default_rng(n).integers(0, 256, (n, *shape)).astype(np.uint8)
            self.targets = [k % 10 for k in range(n)]

    kinds: Any = types.ModuleType("torchvision.datasets")
    kinds.MNIST = kinds.FashionMNIST = kinds.CIFAR10 = Published
    package: Any = types.ModuleType("torchvision")
    package.datasets = kinds
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", kinds)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and no other."""
    monkeypatch.delenv("DRIFTWAY_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "driftway"


@pytest.mark.parametrize(("name", "shape", "stream"), [("fashion", (28, 28), "split-fashion"),
                                                       ("cifar10", (32, 32, 3), "split-cifar10")])  # fmt: skip
def test_fetched_images_make_a_stream(
    name: str, shape: tuple[int, ...], stream: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, shape)
    assert fetch(DATASETS[name]) == cache / DATASETS[name].file == locate(DATASETS[name], complete=True)
    assert [p.name for p in cache.iterdir()] == [DATASETS[name].file], "nothing else is left behind"
    spec = dw.stream(stream).spec
    assert (spec.length, spec.classes) == (50, tuple(f"class {k}" for k in range(10)))


def test_mnist_is_checked_against_its_content(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, (28, 28))
    with pytest.raises(dw.InputError, match="mnist: the converted content has sha256"):
        fetch(DATASETS["mnist"])
    assert list(cache.iterdir()) == []
    known = dataclasses.replace(DATASETS["mnist"], content="")
    assert set(np.load(fetch(known)).files) == {"x_train", "y_train", "x_test", "y_test"}


def test_the_staged_mnist_has_that_content(data: Path) -> None:
    if not (data / "mnist.npz").exists():
        pytest.skip("mnist.npz is not in DRIFTWAY_DATA")
    assert content_digest(data / "mnist.npz") == DATASETS["mnist"].content


def test_what_goes_wrong_is_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, (28, 28), RuntimeError("Error downloading images.gz:\n\nTried https://a, got:\nno route"))
    with pytest.raises(dw.InputError, match="torchvision could not get it: no route"):
        fetch(DATASETS["fashion"])
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(dw.InputError, match=r'pip install "driftway\[vision\]"'):
        fetch(DATASETS["fashion"])
    assert list(cache.iterdir()) == []


def test_the_command_gets_the_whole_where_a_part_is_here(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, (28, 28))
    cache.mkdir()
    (cache / "fashion_mnist.npz").write_bytes(b"")
    assert main(["data"]) == 0
    assert "fashion_mnist.npz a part" in " ".join(capsys.readouterr().out.split())
    assert main(["data", "fashion"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "a part: 2,000 of the 6,000 training images" in shown
    assert main(["data", "fashion", "--fetch"]) == 0
    assert (cache / "fashion_mnist_complete.npz").exists()
    assert locate(DATASETS["fashion"]) == cache / "fashion_mnist_complete.npz"
