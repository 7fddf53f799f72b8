"""Streams for test-time adaptation: a source of clean images, then images that have shifted.

``digits-c``, ``mnist-c``, ``fashion-c``, ``cifar10-c`` show test images under the corruptions of CIFAR-C, in the
settings that the field compares by name; ``domain-shift`` goes from one image file to another. ``spec.source`` has
the clean rows. Rows carry their labels: a learner without labels leaves them alone, one that learns from them is an
upper bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from .cifar_c import CIFAR_C, weathered
from .events import Array, Batch, Boundary, Event
from .experiences import BLOCK_CELLS, ORDER, TEST, Rows, Task, moments, pixels
from .images import Images, cifar10_images, digits_images, grey_images
from .sources import BLOCK, Block, BlockStream, Position
from .spec import InputError, Mixed, Source, Stream, StreamSpec

Setting = Literal["continual", "reset-each-shift", "gradual", "mixed", "correlated"]
CLEAN = ("", 0)
Look = tuple[str, int]
"""A corruption and its severity, 0 for none."""


@dataclass(frozen=True)
class Corrupted:
    """severity: 1 to 5; in the gradual setting the greatest. kinds: corruptions in the order they come; all for the
    fifteen of CIFAR-C. rows: test images under each corruption at most, every class in its share; 0 for all. setting:
    continual, reset-each-shift, gradual, mixed or correlated. concentration: of the Dirichlet process in the correlated
    setting; the smaller, the longer the runs of one class.
    """

    severity: int = 5
    kinds: tuple[str, ...] = ("all",)
    rows: int = 1000
    setting: Setting = "continual"
    concentration: float = 0.1


@dataclass(frozen=True)
class CorruptedCifar10:
    """severity: 1 to 5; in the gradual setting the greatest. kinds: corruptions in the order they come; all for the
    fifteen of CIFAR-C. rows: test images under each corruption at most, every class in its share; 0 for all. setting:
    continual, reset-each-shift, gradual, mixed or correlated. concentration: of the Dirichlet process in the correlated
    setting; the smaller, the longer the runs of one class. more: all 50,000 training and 10,000 test images instead of
    1,000 and 200 of each class.
    """

    severity: int = 5
    kinds: tuple[str, ...] = ("all",)
    rows: int = 1000
    setting: Setting = "continual"
    concentration: float = 0.1
    more: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Some rows in the order they come, and how they look.

    which: int64[n], places in the stream's rows. look: int64[n], places in ``looks``.
    """

    name: str
    which: Array
    looks: tuple[Look, ...]
    look: Array


class StretchBlocks:
    """Blocks of rows, stretch after stretch, a Boundary before each."""

    start: ClassVar[Position] = {"stretch": 0, "row": 0}

    def __init__(self, rows: Rows, shape: tuple[int, ...], stretches: Sequence[Stretch], seed: int) -> None:
        self.rows, self.shape, self.stretches, self.seed = rows, shape, stretches, seed
        self.first = np.cumsum([0, *(len(s.which) for s in stretches)])
        self.block = max(1, min(BLOCK, BLOCK_CELLS // int(np.prod(shape))))

    def read(self, at: Position) -> Block:
        k, row = at["stretch"], at["row"]
        stretch = self.stretches[k]
        part = slice(row, row + self.block)
        which = stretch.which[part]
        first = int(self.first[k]) + row
        ids = np.arange(first, first + len(which), dtype=np.int64)
        x = self.rows.read(which)
        for j in np.unique(stretch.look[part]):
            kind, severity = stretch.looks[j]
            if severity:
                mine = stretch.look[part] == j
                images = x[mine].reshape(-1, *self.shape)
                x[mine] = weathered(images, kind, severity, ids[mine], self.seed).reshape(len(images), -1)
        events: list[Event] = [Batch(ids, x, float(first), self.rows.y[which])]
        if not row:
            events.insert(0, Boundary(stretch.name, float(first)))
        row += len(which)
        if row < len(stretch.which):
            return Block(events, {"stretch": k, "row": row})
        return Block(events, {"stretch": k + 1, "row": 0} if k + 1 < len(self.stretches) else None)


def shifting(
    name: str, images: Images, test: Rows, stretches: Sequence[Stretch], seed: int, notes: dict[str, Any]
) -> Stream:
    """The stream of these stretches; ``spec.notes["stretches"]`` has the name and first row of each.

    Where ``notes["setting"]`` is mixed ``spec.mixed`` has the look of every row of the one stretch.
    """
    blocks = StretchBlocks(test, images.shape, stretches, seed)
    clean = images.task("source")
    assert clean.test is not None
    spec = StreamSpec(
        name,
        pixels(images.shape),
        classes=images.classes,
        length=int(blocks.first[-1]),
        drifts=tuple(blocks.first[1:-1].tolist()),
        shape=images.shape,
        notes={
            **moments([clean], images.shape[0]),
            "data": images.source,
            "stretches": [[s.name, int(first)] for s, first in zip(stretches, blocks.first, strict=False)],
            **notes,
        },
        source=source_of(clean),
        mixed=_mixed(stretches[0]) if notes.get("setting") == "mixed" else None,
    )
    return BlockStream(spec, blocks)


def _mixed(stretch: Stretch) -> Mixed:
    return Mixed(tuple(f"{kind} {severity}" for kind, severity in stretch.looks), stretch.look)


def source_of(clean: Task) -> Source:
    """Training and test rows of a task, read when they are asked for."""
    assert clean.test is not None
    return Source(clean.name, clean.classes, partial(_arrays, clean.train), partial(_arrays, clean.test))


def _arrays(rows: Rows) -> tuple[Array, Array]:
    x = np.empty((len(rows), rows.x[0].size), np.float32)
    for start in range(0, len(rows), BLOCK):
        part = np.arange(start, min(start + BLOCK, len(rows)))
        x[part] = rows.read(part)
    return x, rows.y


def digits_c(params: Corrupted, seed: int) -> Stream:
    """Scikit-learn's digits (8 x 8, as in split-digits: 1,257 to train on, 540 to test) under each corruption.

    continual: one corruption after the other. reset-each-shift: the same rows; learners are to be reset at each
    Boundary (spec.notes["reset"]). gradual: each corruption rises from severity 1 to the given one and falls again, in
    equal parts of its rows. mixed: every image under every corruption, all in one random order, no Boundary between.
    correlated: as continual, the labels in runs: each class is dealt out to as many slots as there are classes, in
    shares drawn from a Dirichlet distribution (as for NOTE and RoTTA). single-sample is any of them in batches of one.
    A Boundary that bears the corruption's name stands before each stretch, the first too. The images of a stretch are
    the test images, in a new order each time; what happens to one depends on the seed and its row number.
    """
    return _corrupted("digits-c", digits_images(), params, seed)


def mnist_c(params: Corrupted, seed: int) -> Stream:
    """MNIST's test images under each corruption of CIFAR-C; settings as in digits-c.

    The corruptions are those of CIFAR-C at the size of 28 x 28, not those of the data set called MNIST-C.
    """
    return _corrupted("mnist-c", grey_images("mnist"), params, seed)


def fashion_c(params: Corrupted, seed: int) -> Stream:
    """Fashion-MNIST's test images under each corruption of CIFAR-C, at 28 x 28; settings as in digits-c."""
    return _corrupted("fashion-c", grey_images("fashion"), params, seed)


def cifar10_c(params: CorruptedCifar10, seed: int) -> Stream:
    """CIFAR-10's test images under each corruption of CIFAR-C, made here; settings as in digits-c.

    Frost is made up, and where the images come from JPEG copies (spec.notes["data"] says so) all of them have been
    through JPEG before: errors are not to be set beside those of the published CIFAR-10-C.
    """
    return _corrupted("cifar10-c", cifar10_images(params.more), params, seed)


def _corrupted(name: str, images: Images, params: Corrupted | CorruptedCifar10, seed: int) -> Stream:
    kinds = tuple(CIFAR_C) if params.kinds == ("all",) else params.kinds
    unknown = [kind for kind in kinds if kind not in CIFAR_C]
    if unknown or not kinds or len(set(kinds)) < len(kinds):
        raise InputError(f"{name}: kinds must be all, or some of {', '.join(CIFAR_C)}, each once")
    if params.severity not in range(1, 6):
        raise InputError(f"{name}: severity must be 1 to 5, not {params.severity}")
    if params.rows < 0 or not 0 < params.concentration < np.inf:
        raise InputError(f"{name}: rows must be at least 0, and concentration greater than 0")
    whole = images.task("source").test
    assert whole is not None
    test = whole.subset(params.rows, np.random.default_rng([seed, TEST]))
    stretches = _stretches(kinds, test, params, len(images.classes), seed)
    notes = {"setting": params.setting, "severity": params.severity, "kinds": list(kinds)}
    reset = {"reset": "boundary"} if params.setting == "reset-each-shift" else {}
    return shifting(name, images, test, stretches, seed, notes | reset)


def _stretches(
    kinds: Sequence[str], test: Rows, params: Corrupted | CorruptedCifar10, classes: int, seed: int
) -> list[Stretch]:
    top, n = params.severity, len(test)
    if params.setting == "mixed":
        pair = np.random.default_rng([seed, ORDER]).permutation(n * len(kinds))
        return [Stretch("mixed", pair % n, tuple((kind, top) for kind in kinds), pair // n)]
    stretches = []
    for k, kind in enumerate(kinds):
        generator = np.random.default_rng([seed, ORDER, k])
        correlated = params.setting == "correlated"
        which = in_runs(test.y, params.concentration, classes, generator) if correlated else generator.permutation(n)
        levels = (*range(1, top), *range(top, 0, -1)) if params.setting == "gradual" else (top,)
        title = f"{kind} {top}" if len(levels) == 1 else f"{kind} 1 to {top} to 1"
        look = np.arange(n) * len(levels) // n
        stretches.append(Stretch(title, which, tuple((kind, level) for level in levels), look))
    return stretches


def in_runs(y: Array, concentration: float, slots: int, generator: np.random.Generator) -> Array:
    """int64[n]: all rows, the labels in runs.

    The rows of each class, shuffled, are dealt out to the slots in shares drawn from a Dirichlet distribution with
    this concentration; slots come one after the other, and in each its classes in random order.
    """
    parts = []
    for code in np.unique(y):
        rows = generator.permutation(np.flatnonzero(y == code))
        share = generator.dirichlet(np.full(slots, concentration))
        parts.append(np.split(rows, np.rint(np.cumsum(share)[:-1] * len(rows)).astype(np.int64)))
    runs = [parts[c][slot] for slot in range(slots) for c in generator.permutation(len(parts))]
    return np.concatenate(runs)
