"""Streams of experiences: one task after the other, each with rows held out to judge it by.

Everything random is drawn from generators of its own, seeded by (seed, purpose, experience, epoch): which rows come
when is a pure function of the position, and neither evaluation nor a learner can disturb it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np

from .events import Array, Batch, Boundary, Event
from .sources import BLOCK, Block, BlockStream, Position
from .spec import MAX_CLASSES, Column, Experience, InputError, StreamSpec

Scenario = Literal["class", "task", "domain"]
View = Callable[[Array], Array]
"""How an experience shows a row: a pure function from float64[B, d] to float64[B, d]."""

ORDER, TRAIN, TEST, BLUR, PIXELS = range(5)
"""Purposes of generators."""
MOMENT_ROWS = 10_000
"""Training rows, evenly spaced, over which mean and standard deviation of the channels are taken."""
BLOCK_CELLS = 1 << 19
"""Blocks of wide rows are shorter: at most so many numbers (4 MiB)."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Some rows of an array that others may share, and how they are seen.

    x: numbers[N, ...], kept as they are; uint8 is shown divided by 255, anything else unchanged. index: int64[n], the
    rows meant. y: int64[n], their class codes.
    """

    x: Array
    index: Array
    y: Array
    view: View | None = None

    def __len__(self) -> int:
        return len(self.index)

    def read(self, which: Array) -> Array:
        """float64[B, d]: the chosen ones of these rows, flattened."""
        x = self.x[self.index[which]].reshape(len(which), -1)
        x = np.divide(x, 255.0) if x.dtype == np.uint8 else x.astype(np.float64)
        return x if self.view is None else self.view(x)

    def subset(self, n: int, generator: np.random.Generator) -> Rows:
        """``n`` of the rows, every class in its share, in the order they have; all of them if n is 0 or too many."""
        if not 0 < n < len(self):
            return self
        kept = stratified(self.y, n, generator)
        return replace(self, index=self.index[kept], y=self.y[kept])


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What one experience is made of: its training rows, and those held out (None where there are none)."""

    name: str
    train: Rows
    test: Rows | None = None

    @property
    def classes(self) -> tuple[int, ...]:
        """The codes that its rows have."""
        y = self.train.y if self.test is None else np.concatenate([self.train.y, self.test.y])
        return tuple(np.unique(y).tolist())


def stratified(y: Array, n: int, generator: np.random.Generator) -> Array:
    """int64[n], rising: rows drawn so that each class has its share of ``n``, to less than one row."""
    codes, counts = np.unique(y, return_counts=True)
    exact = n * counts / len(y)
    quota = np.floor(exact).astype(np.int64)
    quota[np.argsort(quota - exact, kind="stable")[: n - quota.sum()]] += 1
    drawn = [generator.permutation(np.flatnonzero(y == c))[:q] for c, q in zip(codes, quota, strict=True)]
    return np.sort(np.concatenate(drawn))


def exchanged(sizes: Sequence[int], share: float, generator: np.random.Generator) -> list[tuple[Array, Array]]:
    """Blurry boundaries: per experience its rows as (experience they are from, row there), int64[n] each.

    Each gives up ``share`` of its rows, drawn at random, and gets as many back, none of them its own. Where one would
    give more than all others together, it gives as many as they do.
    """
    leaving = [round(share * n) for n in sizes]
    widest = int(np.argmax(leaving))
    leaving[widest] = min(leaving[widest], sum(leaving) - leaving[widest])
    orders = [generator.permutation(n) for n in sizes]
    goal = np.repeat(np.arange(len(sizes)), leaving)
    lot = generator.permutation(len(goal))
    origin = goal[lot]
    row = np.concatenate([order[:n] for order, n in zip(orders, leaving, strict=True)])[lot]
    for i in np.flatnonzero(origin == goal):
        k = goal[i]
        if origin[i] == k:  # an earlier swap may have moved it
            j = generator.choice(np.flatnonzero((goal != k) & (origin != k)))
            origin[[i, j]], row[[i, j]] = origin[[j, i]], row[[j, i]]
    mixed = []
    for k, (order, n) in enumerate(zip(orders, leaving, strict=True)):
        came = goal == k
        stayed = order[n:]
        mixed.append((np.r_[np.full(len(stayed), k), origin[came]], np.r_[stayed, row[came]]))
    return mixed


class ExperienceBlocks:
    """Blocks of the training rows: experience after experience, each in ``epochs`` passes, each in an order of its
    own.
    """

    start: ClassVar[Position] = {"experience": 0, "epoch": 0, "row": 0}

    def __init__(self, tasks: Sequence[Task], epochs: int, blur: float, seed: int) -> None:
        self.tasks, self.epochs, self.seed = tasks, epochs, seed
        self.sizes = [len(task.train) for task in tasks]
        self.first = np.cumsum([0, *self.sizes]) * epochs
        self.block = max(1, min(BLOCK, BLOCK_CELLS // max(1, tasks[0].train.x[0].size)))
        rng = np.random.default_rng([seed, BLUR])
        self.mixed = exchanged(self.sizes, blur, rng) if blur else None
        self._order: tuple[tuple[int, int], Array] = ((-1, -1), np.empty(0, np.int64))

    def read(self, at: Position) -> Block:
        k, epoch, row = at["experience"], at["epoch"], at["row"]
        n = self.sizes[k]
        which = self._shuffled(k, epoch)[row : row + self.block]
        first = int(self.first[k]) + epoch * n + row
        ids = np.arange(first, first + len(which), dtype=np.int64)
        x, y = self._rows(k, which)
        events: list[Event] = [Batch(ids, x, float(first), y)]
        if k and not epoch and not row:
            events.insert(0, Boundary(self.tasks[k].name, float(first)))
        row += len(which)
        if row == n:
            k, epoch, row = (k, epoch + 1, 0) if epoch + 1 < self.epochs else (k + 1, 0, 0)
        more = k < len(self.tasks)
        return Block(events, {"experience": k, "epoch": epoch, "row": row} if more else None)

    def _shuffled(self, k: int, epoch: int) -> Array:
        """The order of one pass; the last one is kept, since blocks are mostly read one after the other."""
        if self._order[0] != (k, epoch):
            generator = np.random.default_rng([self.seed, ORDER, k, epoch])
            self._order = ((k, epoch), generator.permutation(self.sizes[k]))
        return self._order[1]

    def _rows(self, k: int, which: Array) -> tuple[Array, Array]:
        """x and y; a row exchanged with another experience looks as it does there."""
        if self.mixed is None:
            train = self.tasks[k].train
            return train.read(which), train.y[which]
        origin, row = self.mixed[k][0][which], self.mixed[k][1][which]
        y = np.empty(len(which), np.int64)
        x = np.empty((len(which), self.tasks[k].train.x[0].size))
        for j in np.unique(origin):
            mine, train = origin == j, self.tasks[j].train
            x[mine], y[mine] = train.read(row[mine]), train.y[row[mine]]
        return x, y


def stream_of(
    tasks: Sequence[Task],
    *,
    name: str,
    classes: Sequence[str],
    shape: tuple[int, ...] | None,
    scenario: Scenario,
    epochs: int = 1,
    blur: float = 0.0,
    train_rows: int = 0,
    test_rows: int = 0,
    seed: int = 0,
    notes: dict[str, Any] | None = None,
) -> BlockStream:
    """The stream of these tasks; parameters as in ``from_experiences``. Raises InputError for values that cannot be."""
    if epochs < 1 or train_rows < 0 or test_rows < 0:
        raise InputError(f"{name}: epochs must be at least 1, train_rows and test_rows at least 0")
    if not 0.0 <= blur <= 1.0 or (blur and len(tasks) < 2):
        raise InputError(f"{name}: blur must lie in 0..1, and needs two experiences or more; it is {blur:g}")
    spread = [task.classes for task in tasks]
    facts = {"epochs": epochs, "scenario": scenario, "per_task": _per_task(spread, len(classes), scenario)}
    if shape is not None:
        facts |= moments(tasks, shape[0])
    tasks = [
        replace(task, train=task.train.subset(train_rows, np.random.default_rng([seed, TRAIN, k])))
        for k, task in enumerate(tasks)
    ]
    starts = np.cumsum([len(task.train) for task in tasks]) * epochs
    held = [
        _held_out(task, codes, test_rows, np.random.default_rng([seed, TEST, k]))
        for k, (task, codes) in enumerate(zip(tasks, spread, strict=True))
        if task.test is not None
    ]
    spec = StreamSpec(
        name,
        pixels(shape) if shape is not None else table_columns(tasks[0].train.x.shape[1]),
        classes=tuple(classes),
        length=int(starts[-1]),
        drifts=tuple(starts[:-1].tolist()),
        shape=shape,
        notes={k: v for k, v in (facts | (notes or {})).items() if v is not None},
        experiences=tuple(held) if len(held) == len(tasks) else (),
    )
    return BlockStream(spec, ExperienceBlocks(tasks, epochs, blur, seed))


def _held_out(task: Task, codes: tuple[int, ...], n: int, generator: np.random.Generator) -> Experience:
    assert task.test is not None
    test = task.test.subset(n, generator)
    x = np.empty((len(test), test.x[0].size), np.float32)
    for start in range(0, len(test), BLOCK):
        part = np.arange(start, min(start + BLOCK, len(test)))
        x[part] = test.read(part)
    return Experience(task.name, x, test.y, len(task.train), codes)


def moments(tasks: Sequence[Task], channels: int) -> dict[str, Any]:
    """Mean and standard deviation of each channel, over evenly spaced training rows of all experiences."""
    share = max(1, MOMENT_ROWS // len(tasks))
    total, square, cells = np.zeros(channels), np.zeros(channels), 0
    for task in tasks:
        rows = np.linspace(0, len(task.train) - 1, min(share, len(task.train))).astype(np.int64)
        for start in range(0, len(rows), BLOCK):
            x = task.train.read(rows[start : start + BLOCK]).reshape(-1, channels, task.train.x[0].size // channels)
            total += x.sum((0, 2))
            square += np.square(x).sum((0, 2))
            cells += x.shape[0] * x.shape[2]
    mean = total / cells
    std = np.sqrt(np.maximum(square / cells - mean**2, 0.0))
    return {"mean": mean.tolist(), "std": np.where(std > 0, std, 1.0).tolist()}


def _per_task(spread: Sequence[tuple[int, ...]], classes: int, scenario: Scenario) -> int | None:
    """p, if experience k has the codes from k p up to (k + 1) p only; all classes if the domain changes; else None."""
    if scenario == "domain":
        return classes
    p = len(spread[0])
    fits = all(k * p <= codes[0] and codes[-1] < (k + 1) * p for k, codes in enumerate(spread))
    return p if fits else None


@lru_cache(maxsize=8)
def pixels(shape: tuple[int, ...]) -> tuple[Column, ...]:
    """A column per pixel of an image (channels, rows, columns), never empty."""
    places = (".".join(map(str, place if shape[0] > 1 else place[1:])) for place in np.ndindex(shape))
    return tuple(Column(f"pixel {place}", missing=False) for place in places)


@lru_cache(maxsize=8)
def table_columns(width: int) -> tuple[Column, ...]:
    return tuple(Column(f"x{j}", missing=False) for j in range(width))


def from_experiences(
    train: Sequence[tuple[str, Array, Array]],
    test: Sequence[tuple[Array, Array]] | None = None,
    *,
    name: str = "experiences",
    classes: Sequence[str] | None = None,
    scenario: Scenario = "class",
    epochs: int = 1,
    blur: float = 0.0,
    train_rows: int = 0,
    test_rows: int = 0,
    seed: int = 0,
) -> BlockStream:
    """One task after the other, as one stream with a Boundary between them and rows held out of each.

    train: (name, x, y) of each experience. x: numbers[n, d], or images [n, H, W] or [n, C, H, W]; uint8 is shown as
    0..1 (divided by 255, block by block), other numbers as they are. y: integers[n], class codes from 0 on. test: (x,
    y) held out of each, None for a stream without; they become ``spec.experiences``.

    epochs: passes over each experience, every one in a new order. blur: share of the rows of each experience that is
    exchanged with rows of the others, once, by lot. train_rows, test_rows: at most so many rows of each experience,
    every class in its share, drawn once by the seed; 0 means all. scenario: what the evaluator is to ask: ``"class"``
    (which class of all), ``"task"`` (which class of this experience), ``"domain"`` (the same classes throughout).
    Ids are row numbers: an example has another id in a later epoch. Raises InputError for arrays that do not fit.

    >>> import driftway as dw, numpy as np
    >>> x, y = np.zeros((6, 2)), np.array([0, 1, 0, 1, 0, 1])
    >>> stream = dw.from_experiences([("first", x, y), ("second", x, y + 2)], [(x, y), (x, y + 2)], epochs=2)
    >>> [(e.name, e.rows, e.classes) for e in stream.spec.experiences], stream.spec.length
    ([('first', 6, (0, 1)), ('second', 6, (2, 3))], 24)
    """
    if not train or (test is not None and len(test) != len(train)):
        raise InputError(f"{name}: {len(train)} experiences and {len(test or ())} held out; one for each is needed")
    if scenario not in ("class", "task", "domain"):
        raise InputError(f"{name}: scenario must be class, task or domain, not {scenario!r}")
    tasks = []
    for k, (title, x, y) in enumerate(train):
        held = None if test is None else _checked(f"{title}, held out", *test[k])
        tasks.append(Task(str(title), _checked(str(title), x, y), held))
    parts = [part for task in tasks for part in (task.train, task.test) if part is not None]
    shapes = {part.x.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise InputError(f"{name}: the experiences have rows of different shapes: {', '.join(map(str, shapes))}")
    shape = shapes.pop()
    count = 1 + max(int(part.y.max()) for part in parts)
    classes = [str(k) for k in range(count)] if classes is None else classes
    if count > len(classes):
        raise InputError(f"{name}: class code {count - 1} is out of range 0..{len(classes) - 1}")
    return stream_of(
        tasks,
        name=name,
        classes=classes,
        shape=None if len(shape) == 1 else shape,
        scenario=scenario,
        epochs=epochs,
        blur=blur,
        train_rows=train_rows,
        test_rows=test_rows,
        seed=seed,
    )


def _checked(name: str, x: Array, y: Array) -> Rows:
    """All rows of two arrays that belong together."""
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim not in (2, 3, 4) or x.dtype.kind not in "biuf" or not x.size:
        raise InputError(f"{name}: x must be numbers [n, d], [n, H, W] or [n, C, H, W], not {x.dtype}{list(x.shape)}")
    if y.shape != (len(x),) or y.dtype.kind not in "iu":
        raise InputError(f"{name}: x has {len(x)} rows, so y must be {len(x)} integers, not {y.dtype}{list(y.shape)}")
    if y.min() < 0 or y.max() >= MAX_CLASSES:
        raise InputError(f"{name}: class codes must lie in 0..{MAX_CLASSES - 1}, not {y.min()}..{y.max()}")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise InputError(f"{name}: x has values that are not finite")
    x = x[:, None] if x.ndim == 3 else x
    return Rows(x, np.arange(len(x)), y.astype(np.int64))
