"""The built-in streams of experiences: digits, MNIST, Fashion-MNIST and CIFAR-10, cut into tasks.

Class codes are given in the order the classes come, so that task k always has the codes from k * per_task on and a
head only ever grows at its end; ``spec.classes`` has their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from .events import Array
from .experiences import PIXELS, Rows, Task, stream_of
from .images import Images, cifar10_images, digits_images, grey_images
from .spec import InputError, Stream


@dataclass(frozen=True)
class Split:
    """per_task: classes in each experience. scenario: "class" or "task", what the evaluator is to ask: which class of
    all, or which of the experience's. order: "seed" for another order of the classes with every seed but 0 (the one of
    the AdaB2N code), "given" for 0, 1, ... always. epochs: passes over each experience. test_rows: held-out rows of
    each experience, every class in its share; 0 for all. train_rows: training rows of each experience at most; 0 for
    all. blur: share of an experience's rows that is exchanged with rows of the others.
    """

    per_task: int = 2
    scenario: Literal["class", "task"] = "class"
    order: Literal["seed", "given"] = "seed"
    epochs: int = 1
    test_rows: int = 200
    train_rows: int = 0
    blur: float = 0.0


@dataclass(frozen=True)
class SplitCifar10:
    """per_task: classes in each experience. scenario: "class" or "task", what the evaluator is to ask: which class of
    all, or which of the experience's. order: "seed" for another order of the classes with every seed but 0 (the one of
    the AdaB2N code), "given" for 0, 1, ... always. epochs: passes over each experience. test_rows: held-out rows of
    each experience, every class in its share; 0 for all. train_rows: training rows of each experience at most; 0 for
    all. blur: share of an experience's rows that is exchanged with rows of the others. more: all 50,000 training
    images instead of 1,000 of each class.
    """

    per_task: int = 2
    scenario: Literal["class", "task"] = "class"
    order: Literal["seed", "given"] = "seed"
    epochs: int = 1
    test_rows: int = 200
    train_rows: int = 0
    blur: float = 0.0
    more: bool = False


@dataclass(frozen=True)
class Permuted:
    """tasks: experiences; the first shows the pixels in their places. epochs: passes over each experience. test_rows:
    held-out rows of each experience, every class in its share; 0 for all. train_rows: training rows of each experience
    at most; 0 for all. blur: share of an experience's rows that is exchanged with rows of the others.
    """

    tasks: int = 5
    epochs: int = 1
    test_rows: int = 200
    train_rows: int = 0
    blur: float = 0.0


@dataclass(frozen=True)
class Rotated:
    """tasks: experiences. step: degrees, counter-clockwise, from one to the next. epochs: passes over each experience.
    test_rows: held-out rows of each experience, every class in its share; 0 for all. train_rows: training rows of each
    experience at most; 0 for all. blur: share of an experience's rows that is exchanged with rows of the others.
    """

    tasks: int = 20
    step: float = 9.0
    epochs: int = 1
    test_rows: int = 200
    train_rows: int = 0
    blur: float = 0.0


@dataclass(frozen=True)
class Domains:
    """epochs: passes over each experience. test_rows: held-out rows of each experience, every class in its share; 0
    for all. train_rows: training rows of each experience at most; 0 for all. blur: share of an experience's rows that
    is exchanged with rows of the others.
    """

    epochs: int = 1
    test_rows: int = 200
    train_rows: int = 0
    blur: float = 0.0


def split_digits(params: Split, seed: int) -> Stream:
    """Scikit-learn's 1,797 digits (8 x 8, pixels divided by 16) in tasks of two classes; needs no download.

    1,257 are for training and 540 held out, by one fixed shuffle, as in our note on continual evaluation.
    """
    return _split("split-digits", digits_images(), params, seed)


def split_mnist(params: Split, seed: int) -> Stream:
    """MNIST in tasks of two classes each: 60,000 training images, 10,000 test images, 28 x 28."""
    return _split("split-mnist", grey_images("mnist"), params, seed)


def split_fashion(params: Split, seed: int) -> Stream:
    """Fashion-MNIST in tasks of two classes each, 28 x 28. spec.notes["data"] says how many of its images are here."""
    return _split("split-fashion", grey_images("fashion"), params, seed)


def split_cifar10(params: SplitCifar10, seed: int) -> Stream:
    """CIFAR-10 in tasks of two classes each, 3 x 32 x 32: 1,000 training and 200 test images of each class.

    With ``more`` 5,000 and 1,000 of each. Where they come from JPEG copies, spec.notes["data"] says so: the pixels are
    then not those of the original, and accuracies are to be quoted as such.
    """
    return _split("split-cifar10", cifar10_images(params.more), params, seed)


def permuted_mnist(params: Permuted, seed: int) -> Stream:
    """MNIST again and again, the pixels of each experience in another fixed random order; all ten classes throughout.

    The first experience is MNIST itself (Kirkpatrick et al. 2017).
    """
    images = grey_images("mnist")
    _at_least_one(params.tasks, "permuted-mnist")
    tasks = [images.task("permutation 0")]
    for k in range(1, params.tasks):
        order = np.random.default_rng([seed, PIXELS, k]).permutation(images.x[0].size)
        tasks.append(images.task(f"permutation {k}", _Reordered(order)))
    return _domains("permuted-mnist", tasks, images, params, seed)


def rotated_mnist(params: Rotated, seed: int) -> Stream:
    """MNIST again and again, turned a step further in each experience; all ten classes throughout.

    Turned counter-clockwise about the centre, bilinear, black around (Lopez-Paz, Ranzato 2017; the step is that of the
    code of De Lange et al. 2023).
    """
    images = grey_images("mnist")
    _at_least_one(params.tasks, "rotated-mnist")
    angles = [params.step * k for k in range(params.tasks)]
    tasks = [images.task(f"{angle:g} degrees", Turned(angle, images.shape[1:]) if angle else None) for angle in angles]
    return _domains("rotated-mnist", tasks, images, params, seed)


def mnist_fashion(params: Domains, seed: int) -> Stream:
    """First MNIST, then Fashion-MNIST under the same ten labels: the pictures change, the answers' names do not."""
    digits, clothes = grey_images("mnist"), grey_images("fashion")
    tasks = [digits.task("mnist"), clothes.task("fashion")]
    together = replace(digits, source=f"mnist: {digits.source}; fashion: {clothes.source}")
    return _domains("mnist-fashion", tasks, together, params, seed)


def _at_least_one(tasks: int, name: str) -> None:
    if not 1 <= tasks <= 1000:
        raise InputError(f"{name}: tasks must be 1 to 1000, not {tasks}")


def _split(name: str, images: Images, params: Split | SplitCifar10, seed: int) -> Stream:
    """Tasks of ``per_task`` classes each."""
    count, size = len(images.classes), params.per_task
    if not 1 <= size <= count:
        raise InputError(f"{name}: per_task must be 1 to {count}, not {size}")
    given = params.order == "given" or seed == 0
    order = np.arange(count) if given else np.random.default_rng(42 + seed).permutation(count)
    code = np.argsort(order)
    y, y_test = code[images.y], code[images.y_test]
    names = [images.classes[k] for k in order]
    tasks = []
    for first in range(0, count, size):
        train, test = (np.flatnonzero((part >= first) & (part < first + size)) for part in (y, y_test))
        title = "classes " + ", ".join(names[first : first + size])
        tasks.append(Task(title, Rows(images.x, train, y[train]), Rows(images.x_test, test, y_test[test])))
    return stream_of(
        tasks,
        name=name,
        classes=names,
        shape=images.shape,
        scenario=params.scenario,
        seed=seed,
        notes={"data": images.source},
        **_shared(params),
    )


def _domains(name: str, tasks: Sequence[Task], images: Images, params: Any, seed: int) -> Stream:
    return stream_of(
        tasks,
        name=name,
        classes=images.classes,
        shape=images.shape,
        scenario="domain",
        seed=seed,
        notes={"data": images.source},
        **_shared(params),
    )


def _shared(params: Any) -> dict[str, Any]:
    """The parameters that every stream of experiences has."""
    return {k: v for k, v in asdict(params).items() if k in ("epochs", "test_rows", "train_rows", "blur")}


@dataclass(frozen=True, slots=True, eq=False)
class _Reordered:
    order: Array

    def __call__(self, x: Array) -> Array:
        return np.take(x, self.order, axis=1)


class Turned:
    """Images (rows, columns), flattened, turned about their centre by bilinear interpolation; zero around them.

    A turned pixel is the weighted sum of the four pixels around the place it comes from. Places and weights are the
    same for every image, so they are found once; the result is that of scipy.ndimage.rotate with ``order=1`` and
    ``mode="grid-constant"``, but quicker.
    """

    def __init__(self, degrees: float, shape: Sequence[int]) -> None:
        height, width = shape
        angle = np.deg2rad(degrees)
        down, right = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
        v, u = down - (height - 1) / 2, right - (width - 1) / 2
        from_down = np.cos(angle) * v + np.sin(angle) * u + (height - 1) / 2
        from_right = np.cos(angle) * u - np.sin(angle) * v + (width - 1) / 2
        self.corners: list[tuple[Array, Array]] = []
        for i in (0, 1):
            for j in (0, 1):
                row, column = np.floor(from_down).astype(int) + i, np.floor(from_right).astype(int) + j
                weight = (1 - np.abs(from_down - row)) * (1 - np.abs(from_right - column))
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                place = np.where(inside, row * width + column, 0)
                self.corners.append((place.ravel(), np.where(inside, weight, 0.0).ravel()))

    def __call__(self, x: Array) -> Array:
        turned, part = np.zeros_like(x), np.empty_like(x)
        for place, weight in self.corners:
            np.take(x, place, axis=1, out=part, mode="clip")  # any mode but "raise", which copies once more
            part *= weight
            turned += part
        return turned
