"""Few-shot class-incremental streams with drift: ``digits-gilcd``, ``mnist-gilcd``, ``omniglot-gilcd``.

A source model knows the base classes. Each later session brings a few labelled rows of each of its new classes, once,
and then, like the first, rows without labels of all classes so far, under a drift of its own. The setting is that of
Yu, Lu, Zhang: Generalized incremental learning under concept drift across evolving data streams, arXiv 2506.05736
(its data sets are not known to us); layout and drifts are those of our note, stream (B).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from .cifar_c import CIFAR_C, weathered
from .datasets import folders, locate_file
from .events import Array, Batch, Boundary, Event, Labels
from .experiences import BLOCK_CELLS, ORDER, TEST, TRAIN, Rows, Task, moments, pixels
from .feed import Chance
from .image_shifts import source_of
from .images import Images, digits_images, grey_images, resizing
from .npz import read_arrays
from .sources import BLOCK, Block, BlockStream, Position
from .spec import InputError, Stream, StreamSpec

OMNIGLOT = "omniglot_small1.npz"
OMNIGLOT_SIDE = 28
OMNIGLOT_TRAIN = 15
"""Of the 20 people that draw each character, those whose drawings are for training; the others' are for tests."""

DRIFTS: dict[str, Callable[[Array, Chance], Array]] = {
    "noise": lambda x, chance: x + 0.3 * chance.normal(*x.shape[1:]),
    "contrast": lambda x, _: 0.5 + 0.4 * (x - 0.5),
    "inversion": lambda x, _: 0.7 * x + 0.3 * (1.0 - x),
}
"""Those of the note: Gaussian noise of 0.3, contrast times 0.4 (about mid grey: our choice), 0.3 of the negative."""
CIFAR = "cifar-c:"


@dataclass(frozen=True)
class Gilcd:
    """base: classes that the source model knows. ways: new classes in each session. shots: labelled rows of each of
    them. sessions: after the first, at most; 0 for as many as the classes allow. passes: over the unlabelled rows of
    each session, every one in a new order. rows: unlabelled rows in one pass at most, every class in its share; 0 for
    all test rows of the classes so far. order: of the unlabelled rows, iid or sorted (by class). drifts: of the
    sessions, in turn: noise, contrast, inversion, none, or cifar-c:NAME. severity: of those of CIFAR-C, 1 to 5.
    """

    base: int = 6
    ways: int = 2
    shots: int = 5
    sessions: int = 0
    passes: int = 2
    rows: int = 1000
    order: Literal["iid", "sorted"] = "iid"
    drifts: tuple[str, ...] = ("noise", "contrast", "inversion")
    severity: int = 5


@dataclass(frozen=True)
class OmniglotGilcd:
    """base: classes that the source model knows. ways: new classes in each session. shots: labelled rows of each of
    them. sessions: after the first, at most; 0 for as many as the classes allow. passes: over the unlabelled rows of
    each session, every one in a new order. rows: unlabelled rows in one pass at most, every class in its share; 0 for
    all test rows of the classes so far. order: of the unlabelled rows, iid or sorted (by class). drifts: of the
    sessions, in turn: noise, contrast, inversion, none, or cifar-c:NAME. severity: of those of CIFAR-C, 1 to 5.
    """

    base: int = 60
    ways: int = 5
    shots: int = 5
    sessions: int = 8
    passes: int = 2
    rows: int = 0
    order: Literal["iid", "sorted"] = "iid"
    drifts: tuple[str, ...] = ("noise", "contrast", "inversion")
    severity: int = 5


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """support: int64[N K], places among the training rows. queries: int64[n], places among the test rows."""

    name: str
    support: Array
    queries: Array
    drift: str


class SessionBlocks:
    """Of each session a Boundary, its labelled rows as one batch, and blocks without labels.

    The labels of a block follow it, marked as for judging only.
    """

    start: ClassVar[Position] = {"session": 0, "row": 0}

    def __init__(self, clean: Task, shape: tuple[int, ...], sessions: Sequence[Session], severity: int, seed: int):
        assert clean.test is not None
        self.train, self.test = clean.train, clean.test
        self.shape, self.sessions, self.severity, self.seed = shape, sessions, severity, seed
        self.first = np.cumsum([0, *(len(s.support) + len(s.queries) for s in sessions)])
        self.block = max(1, min(BLOCK, BLOCK_CELLS // int(np.prod(shape))))

    def read(self, at: Position) -> Block:
        s, row = at["session"], at["row"]
        session = self.sessions[s]
        shots = len(session.support)
        rows, which = self.train, session.support
        if row >= shots:
            rows, which = self.test, session.queries[row - shots : row - shots + self.block]
        first = int(self.first[s]) + row
        ids = np.arange(first, first + len(which), dtype=np.int64)
        x, y = self._drifted(rows.read(which), session.drift, ids), rows.y[which]
        events: list[Event] = [Boundary(session.name, float(first))] if row == 0 else []
        if row < shots:
            events.append(Batch(ids, x, float(first), y))
        else:
            events += [Batch(ids, x, float(first)), Labels(ids, y, float(first), learn=False)]
        row += len(which)
        if row < shots + len(session.queries):
            return Block(events, {"session": s, "row": row})
        return Block(events, {"session": s + 1, "row": 0} if s + 1 < len(self.sessions) else None)

    def _drifted(self, x: Array, drift: str, ids: Array) -> Array:
        if drift == "none":
            return x
        if drift in DRIFTS:
            return np.clip(DRIFTS[drift](x, Chance(self.seed, ids)), 0.0, 1.0)
        images = x.reshape(-1, *self.shape)
        return weathered(images, drift.removeprefix(CIFAR), self.severity, ids, self.seed).reshape(x.shape)


def digits_gilcd(params: Gilcd, seed: int) -> Stream:
    """Scikit-learn's digits: 0 to 5 are known, then come {6, 7} and {8, 9}, five labelled rows of each.

    spec.source has the clean rows of the base classes; training rows of new classes come as labelled rows only. In
    each session, the first too, test rows of all classes so far come without labels under the session's drift, which
    the labelled rows have as well; behind each block of them (512 rows at most) come their labels, as a Labels event
    with ``learn=False``, for whoever judges. The first labelled rows of a class are answered before they are learnt,
    so a curve over all rows counts them, nearly always as wrong. A Boundary stands before each session, the first too.
    With another seed than 0 the classes come in another order; spec.classes has their names. spec.notes["base"] is
    the number of base classes, spec.notes["sessions"] has name, first row, codes of new classes and drift of each.
    """
    return _gilcd("digits-gilcd", digits_images(), params, seed)


def mnist_gilcd(params: Gilcd, seed: int) -> Stream:
    """MNIST in the same way as digits-gilcd: six digits are known, then come two and two; a pass has 1,000 rows."""
    return _gilcd("mnist-gilcd", grey_images("mnist"), params, seed)


def omniglot_gilcd(params: OmniglotGilcd, seed: int) -> Stream:
    """Omniglot in the same way as digits-gilcd: 60 handwritten characters are known, then come 5 in each of 8 sessions.

    The 136 characters of the first small background set, brought to 28 x 28, ink 1; the drawings of 15
    people are for training, those of 5 others for tests.
    """
    return _gilcd("omniglot-gilcd", omniglot_images(), params, seed)


def omniglot_images() -> Images:
    """One channel of 28 x 28, float32, from drawings of 105 x 105 bits."""
    path = locate_file(OMNIGLOT)
    if path is None:
        places = " or ".join(str(folder) for folder in folders())
        made = "it is made of python/images_background_small1.zip of github.com/brendenlake/omniglot"
        raise InputError(f"omniglot-gilcd: {OMNIGLOT} is not in {places}; {made}")
    arrays = read_arrays(path)
    try:
        packed, y = arrays["x_packed"], arrays["character"].astype(np.int64)
        side = int(arrays["image_shape"][0])
        bits = np.unpackbits(packed, axis=1)[:, : side * side].reshape(-1, side, side)
        names = tuple(arrays["character_names"].tolist())
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: not the arrays of the first small background set of Omniglot ({error})") from None
    smaller = resizing(side, OMNIGLOT_SIDE)
    x = (smaller @ bits @ smaller.T).astype(np.float32)[:, None]
    person = np.arange(len(y)) - np.searchsorted(y, y)  # the file has the drawings of a character together
    train, test = person < OMNIGLOT_TRAIN, person >= OMNIGLOT_TRAIN
    return Images(x[train], y[train], x[test], y[test], names, "the 136 characters of images_background_small1")


def _gilcd(name: str, images: Images, params: Gilcd | OmniglotGilcd, seed: int) -> Stream:
    count, base, ways = len(images.classes), params.base, params.ways
    _check(name, params, count)
    sessions = min(params.sessions or count, (count - base) // ways)
    order = np.arange(count) if seed == 0 else np.random.default_rng(42 + seed).permutation(count)
    code = np.argsort(order)
    used = base + sessions * ways
    titles = [images.classes[k] for k in order[:used]]
    y, y_test = code[images.y], code[images.y_test]
    if np.bincount(y, minlength=count)[base:used].min(initial=params.shots) < params.shots:
        raise InputError(f"{name}: some classes have fewer than {params.shots} training rows")
    train, test = Rows(images.x, np.arange(len(y)), y), Rows(images.x_test, np.arange(len(y_test)), y_test)
    plan = [_session(k, train, test, params, titles, seed) for k in range(sessions + 1)]
    blocks = SessionBlocks(Task(name, train, test), images.shape, plan, params.severity, seed)
    source = Task("source", _below(train, base), _below(test, base))
    spec = StreamSpec(
        name,
        pixels(images.shape),
        classes=tuple(titles),
        length=int(blocks.first[-1]),
        drifts=tuple(blocks.first[1:-1].tolist()),
        shape=images.shape,
        notes={
            **moments([source], images.shape[0]),
            "data": images.source,
            "base": base,
            "shots": params.shots,
            "sessions": [
                [s.name, int(first), list(range(base + (k - 1) * ways, base + k * ways)) if k else [], s.drift]
                for k, (s, first) in enumerate(zip(plan, blocks.first, strict=False))
            ],
        },
        source=source_of(source),
    )
    return BlockStream(spec, blocks)


def _check(name: str, params: Gilcd | OmniglotGilcd, count: int) -> None:
    known = {*DRIFTS, "none", *(CIFAR + kind for kind in CIFAR_C)}
    if not params.drifts or not known.issuperset(params.drifts):
        raise InputError(f"{name}: drifts must be some of {', '.join(DRIFTS)}, none, and {CIFAR}NAME")
    if not (1 <= params.base <= count and params.ways >= 1 and params.shots >= 1 and params.passes >= 1):
        raise InputError(f"{name}: base must be 1 to {count}; ways, shots and passes at least 1")
    if params.rows < 0 or params.sessions < 0 or params.severity not in range(1, 6):
        raise InputError(f"{name}: rows and sessions must be at least 0, and severity 1 to 5")


def _session(
    k: int, train: Rows, test: Rows, params: Gilcd | OmniglotGilcd, titles: Sequence[str], seed: int
) -> Session:
    known = params.base + k * params.ways
    new = range(known - params.ways, known) if k else range(0)
    generator = np.random.default_rng([seed, TRAIN, k])
    shots = [generator.permutation(np.flatnonzero(train.y == c))[: params.shots] for c in new]
    support = generator.permutation(np.concatenate(shots)) if shots else np.empty(0, np.int64)
    seen = _below(test, known)
    passes = []
    for turn in range(params.passes):
        part = seen.subset(params.rows, np.random.default_rng([seed, TEST, k, turn]))
        mixed = np.random.default_rng([seed, ORDER, k, turn])
        order = mixed.permutation(len(part))
        if params.order == "sorted":
            place = mixed.permutation(known)
            order = order[np.argsort(place[part.y[order]], kind="stable")]
        passes.append(part.index[order])
    title = f"session {k}" + (": classes " + ", ".join(titles[c] for c in new) if k else ": base classes")
    return Session(title, support, np.concatenate(passes), params.drifts[k % len(params.drifts)])


def _below(rows: Rows, classes: int) -> Rows:
    """The rows whose code is less."""
    kept = rows.y < classes
    return Rows(rows.x, rows.index[kept], rows.y[kept], rows.view)
