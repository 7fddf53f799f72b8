"""The built-in streams of experiences, over made-up image files and, where they are there, the real ones."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.streams.image_tasks import Turned
from PIL import Image
from scipy import ndimage

NAMES = ("split-digits", "split-mnist", "permuted-mnist", "rotated-mnist", "split-fashion", "split-cifar10",
         "mnist-fashion")  # fmt: skip


def image_set(rows: int, held: int, shape: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = {}
    for part, n in (("train", rows), ("test", held)):
        made[f"x_{part}"] = rng.integers(0, 256, (n, *shape)).astype(np.uint8)
        made[f"y_{part}"] = (np.arange(n) % 10).astype(np.uint8)
    return made


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with small files of the right make."""
    np.savez(tmp_path / "mnist.npz", **image_set(600, 100, (28, 28), 0))
    names = np.array([f"class {k}" for k in range(10)])
    np.savez(tmp_path / "fashion_mnist.npz", **image_set(300, 100, (28, 28), 1), class_names=names)
    np.savez(tmp_path / "cifar10_subset.npz", **image_set(200, 60, (32, 32, 3), 2), class_names=names)
    monkeypatch.setenv("DRIFTWAY_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_every_stream(name: str, small: Path, table: Any, check_seek: Any) -> None:  # noqa: ARG001
    def make() -> Any:
        return dw.rebatch(dw.stream(name, seed=2, epochs=2, blur=0.1, test_rows=10, train_rows=40), 16)

    spec = make().spec
    assert spec.name == name
    assert spec.shape in ((1, 8, 8), (1, 28, 28), (3, 32, 32))
    assert spec.n_features == np.prod(spec.shape)
    assert spec.notes.keys() == {"mean", "std", "epochs", "scenario", "per_task", "data"}
    assert len(spec.notes["mean"]) == len(spec.notes["std"]) == spec.shape[0]
    assert spec.length == 80 * len(spec.experiences)
    assert all(len(e.y) == 10 and e.x.shape == (10, spec.n_features) for e in spec.experiences)
    ids, x, y = table(make())
    assert ids.tolist() == list(range(spec.length))
    assert x.min() >= 0
    assert x.max() <= 1 + 1e-9
    assert set(y.tolist()) == set(range(10))
    check_seek(make, range(0, 60, 7))


def test_the_order_of_the_classes(small: Path) -> None:  # noqa: ARG001
    for seed, order in ((0, "seed"), (3, "given")):
        spec = dw.stream("split-fashion", seed=seed, order=order).spec
        assert spec.classes == tuple(f"class {k}" for k in range(10))
        assert spec.experiences[0].name == "classes class 0, class 1"
    spec = dw.stream("split-fashion", seed=3).spec
    arrival = np.random.default_rng(45).permutation(10)
    assert spec.classes == tuple(f"class {k}" for k in arrival)
    assert [e.classes for e in spec.experiences] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    with np.load(small_file("fashion_mnist.npz")) as made:
        x, y = made["x_test"], made["y_test"]
    for e in spec.experiences:
        for code in e.classes:
            wanted = x[y == arrival[code]].reshape(-1, 784) / np.float32(255)
            np.testing.assert_array_equal(e.x[e.y == code], wanted)
    uneven = dw.stream("split-fashion", per_task=4, scenario="task").spec
    assert [len(e.classes) for e in uneven.experiences] == [4, 4, 2]
    assert (uneven.notes["per_task"], uneven.notes["scenario"]) == (4, "task")


def small_file(name: str) -> Path:
    from driftway.streams.datasets import locate_file

    found = locate_file(name)
    assert found is not None
    return found


def test_split_digits() -> None:
    from sklearn.datasets import load_digits

    parts: list[list[dw.Batch]] = [[]]
    source = dw.stream("split-digits", test_rows=0)
    for event in source:
        if isinstance(event, dw.Boundary):
            parts.append([])
        else:
            assert isinstance(event, dw.Batch)
            parts[-1].append(event)
    x = np.concatenate([np.asarray(b.x) for part in parts for b in part])
    held = np.concatenate([e.x for e in source.spec.experiences])
    assert (len(x), len(held), source.spec.length) == (1257, 540, 1257)
    images, labels = load_digits(return_X_y=True)
    order = np.lexsort(images.T)
    together = np.concatenate([x, held]) * 16
    np.testing.assert_array_equal(together[np.lexsort(together.T)], images[order])
    for k, (part, experience) in enumerate(zip(parts, source.spec.experiences, strict=True)):
        wanted = {2 * k, 2 * k + 1}
        assert {int(v) for b in part if b.y is not None for v in b.y} == wanted == set(experience.y.tolist())
        assert experience.rows == sum(len(b) for b in part)
        assert experience.rows + len(experience.y) == np.isin(labels, list(wanted)).sum()
    other = np.concatenate([e.x for e in dw.stream("split-digits", seed=4, test_rows=0).spec.experiences])
    assert {r.tobytes() for r in other} == {r.tobytes() for r in held}, "one fixed cut for all seeds"


def test_permuted(small: Path, table: Any) -> None:
    source = dw.stream("permuted-mnist", tasks=3, seed=1, test_rows=0)
    with np.load(small / "mnist.npz") as made:
        original, held = made["x_train"].reshape(-1, 784) / 255, made["x_test"].reshape(-1, 784) / np.float32(255)
    _, x, _ = table(source)
    parts = np.split(x, 3)
    first = parts[0][np.argsort(parts[0][:, 0], kind="stable")]
    np.testing.assert_array_equal(np.sort(first, axis=0), np.sort(original, axis=0))
    np.testing.assert_array_equal(source.spec.experiences[0].x, held)
    sums = np.sort(original.sum(1))
    for part, experience in zip(parts, source.spec.experiences, strict=True):
        np.testing.assert_allclose(np.sort(part.sum(1)), sums)
        # the same places in training and in what is held out: column by column the same distribution of neither
        np.testing.assert_array_equal(np.sort(experience.x, axis=1), np.sort(held, axis=1))
    assert not np.array_equal(source.spec.experiences[1].x, source.spec.experiences[2].x)


def test_train_and_held_out_see_the_same_view(small: Path) -> None:
    """A picture that is in both parts looks the same in both, in every experience."""
    made = image_set(100, 100, (28, 28), 3)
    made["x_test"], made["y_test"] = made["x_train"], made["y_train"]
    np.savez(small / "mnist.npz", **made)
    for name in ("permuted-mnist", "rotated-mnist"):
        source = dw.stream(name, tasks=3, test_rows=0)
        k = 0
        seen: list[np.ndarray] = []
        for event in source:
            k += isinstance(event, dw.Boundary)
            if isinstance(event, dw.Batch):
                seen.append(np.asarray(event.x, np.float32))
        for part, experience in zip(seen, source.spec.experiences, strict=True):
            assert {r.tobytes() for r in part} == {r.tobytes() for r in experience.x}


@pytest.mark.parametrize("degrees", [9.0, 90.0, -33.0, 171.0])
def test_turned_is_what_scipy_does(degrees: float) -> None:
    images = np.random.default_rng(0).uniform(size=(4, 9, 12))
    expected = ndimage.rotate(images, degrees, axes=(1, 2), reshape=False, order=1, mode="grid-constant")
    found = Turned(degrees, (9, 12))(images.reshape(4, -1)).reshape(4, 9, 12)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_counter_clockwise() -> None:
    image = np.zeros((5, 5))
    image[0, 2] = 1.0
    turned = Turned(90.0, (5, 5))(image.reshape(1, -1)).reshape(5, 5)
    assert np.argwhere(turned > 0.5).tolist() == [[2, 0]], "what was at the top is at the left"


def test_rotated_steps(small: Path) -> None:  # noqa: ARG001
    names = [e.name for e in dw.stream("rotated-mnist", tasks=4, step=22.5).spec.experiences]
    assert names == ["0 degrees", "22.5 degrees", "45 degrees", "67.5 degrees"]
    assert len(dw.stream("rotated-mnist", test_rows=10).spec.experiences) == 20


def jpegs(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=75)
        files.append(file.getvalue())
    return np.frombuffer(b"".join(files), np.uint8), np.cumsum([0, *map(len, files)])


def test_cifar10_more(small: Path) -> None:
    assert dw.stream("split-cifar10").spec.length == 200
    with pytest.raises(dw.InputError, match="more needs cifar10_more_jpeg"):
        dw.stream("split-cifar10", more=True)
    flat = np.broadcast_to(np.arange(0, 200, 10, dtype=np.uint8)[:, None, None, None], (20, 32, 32, 3)).copy()
    flat[..., 0] += 50
    arrays: dict[str, np.ndarray] = {}
    for part in ("train", "test"):
        arrays[f"jpeg_{part}"], arrays[f"offset_{part}"] = jpegs(flat)
        arrays[f"y_{part}"] = (np.arange(20) % 10).astype(np.uint8)
    np.savez(small / "cifar10_more_jpeg.npz", **arrays)
    spec = dw.stream("split-cifar10", more="true", test_rows=0).spec
    assert (spec.length, sum(len(e.y) for e in spec.experiences)) == (220, 80)
    assert "JPEG copies" in spec.notes["data"]
    last = spec.experiences[0].x.reshape(-1, 3, 32, 32)[-1] * 255  # of class 1, from a file of its own
    assert np.ptp(last, axis=(1, 2)).max() < 4
    assert abs(last[0].mean() - last[1].mean() - 50) < 4


def test_the_complete_set_goes_before_a_part(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = np.array([f"class {k}" for k in range(10)])
    np.savez(small / "fashion_mnist_complete.npz", **image_set(400, 100, (28, 28), 1), class_names=names)
    assert dw.stream("split-fashion").spec.length == 400
    np.savez(small / "cifar10_complete.npz", **image_set(500, 100, (32, 32, 3), 1), class_names=names)
    monkeypatch.setattr("driftway.streams.images.CIFAR_PART", (20, 4))
    spec = dw.stream("split-cifar10", test_rows=0).spec
    assert (spec.length, sum(len(e.y) for e in spec.experiences)) == (200, 40)
    assert spec.notes["data"] == "200 of 50,000 training and 40 of 10,000 test images"
    assert dw.stream("split-cifar10", more=True).spec.length == 500


def test_what_does_not_fit(small: Path) -> None:
    for name, settings, message in [
        ("split-mnist", {"per_task": 0}, "per_task must be 1 to 10"),
        ("split-mnist", {"per_task": 11}, "per_task must be 1 to 10"),
        ("split-mnist", {"scenario": "domain"}, "scenario='domain'"),
        ("split-mnist", {"order": "mine"}, "order='mine'"),
        ("split-mnist", {"per_task": 10, "blur": 0.1}, "two experiences"),
        ("split-mnist", {"epochs": 0}, "epochs"),
        ("permuted-mnist", {"tasks": 0}, "tasks must be 1 to 1000"),
        ("rotated-mnist", {"tasks": -1}, "tasks must be 1 to 1000"),
        ("mnist-fashion", {"per_task": 2}, "unknown parameter"),
    ]:
        with pytest.raises(dw.InputError, match=message):
            dw.stream(name, **settings)
    np.savez(small / "mnist.npz", x_train=np.zeros((3, 28, 28)), y_train=np.zeros(3))
    with pytest.raises(dw.InputError, match="not the arrays x_train"):
        dw.stream("split-mnist")


REAL: dict[str, tuple[int, int, Callable[[Any], bool]]] = {
    "split-mnist": (60_000, 2000, lambda n: abs(n["mean"][0] - 0.1307) < 2e-3 and abs(n["std"][0] - 0.3081) < 2e-3),
    "split-fashion": (20_000, 2000, lambda n: abs(n["mean"][0] - 0.2860) < 5e-3),
    "split-cifar10": (10_000, 400, lambda n: abs(n["mean"][2] - 0.4465) < 5e-3),
    "mnist-fashion": (80_000, 10_000, lambda n: n["scenario"] == "domain"),
}


@pytest.mark.parametrize("name", REAL)
def test_real(name: str, data: Path) -> None:
    if not all((data / f).exists() for f in ("mnist.npz", "fashion_mnist.npz", "cifar10_subset.npz")):
        pytest.skip("the image files are not in DRIFTWAY_DATA")
    if any((data / f).exists() for f in ("fashion_mnist_complete.npz", "cifar10_complete.npz")):
        pytest.skip("the complete sets are here; these figures are those of the parts")
    rows, held, sane = REAL[name]
    spec = dw.stream(name, test_rows=0).spec
    assert spec.length == rows
    assert min(len(e.y) for e in spec.experiences) >= min(held, 1800)
    assert sane(spec.notes)
    assert {d for e in spec.experiences for d in e.classes} == set(range(10))
