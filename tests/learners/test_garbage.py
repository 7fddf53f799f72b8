"""10,000 batches of garbage through every method of test-time adaptation, and clean rows after them.

A method whose statistics are those of the batch is less sure on few rows than its source, garbage or not. So what it
must come back to is the lesser of its source's accuracy and that of the same method without the garbage.
"""

from __future__ import annotations

from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt.learners import LEARNERS
from driftway.adapt.loop import Loop
from driftway.adapt.source_watch import SourceWatch
from driftway.adapt.state import all_finite
from driftway.streams import Source

CENTRES = 3.0 * np.array([[1, 1, 0, 0], [-1, 1, 0, 0], [1, -1, 0, 0], [-1, -1, 0, 0]])
METHODS = [name for name, entry in LEARNERS.items() if entry.recipe or entry.classes]
BATCHES, SIZE, SETTLE, JUDGED = 10_000, 16, 3200, 1600
SETTINGS: dict[str, Any] = {"model": "mlp-norm:8", "epochs": 15, "cache": False}
OWN: dict[str, dict[str, Any]] = {"cotta": {"views": 4}}
"""What would take long, and is the same code many times over."""


def rows_of(n: int, seed: int) -> tuple[Any, Any]:
    """Four classes that a small network tells apart."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, n)
    return CENTRES[y] + rng.normal(size=(n, 4)), y


def clean(seed: int) -> tuple[Any, Any]:
    x, y = rows_of(400, seed)
    return x.astype(np.float32), y


SPEC = dw.StreamSpec(
    "clean",
    tuple(dw.Column(c) for c in "abcd"),
    classes=tuple("stuv"),
    source=Source("clean", (0, 1, 2, 3), lambda: clean(1), lambda: clean(2)),
)

GARBAGE: list[Any] = [
    lambda n, _: np.full((n, 4), np.nan),
    lambda *_: np.zeros((0, 4)),
    lambda n, rng: np.full((n, 4), 100 * rng.normal()),
    lambda n, rng: CENTRES[1] + rng.normal(size=(n, 4)),
    lambda n, rng: rng.choice([-1, 1], (n, 4)) * 10.0 ** rng.uniform(3, 300, (n, 4)),
    lambda n, rng: np.where(rng.random((n, 4)) < 0.3, np.inf, 0.0),
    lambda n, rng: 50 * rng.normal(size=(n, 4)),
    lambda n, rng: np.where(rng.random((n, 4)) < 0.3, np.nan, rng.normal(size=(n, 4))),
]
"""Missing, empty, constant, one class, huge, infinite, noise, half missing; all but the empty and the
infinite ones pass the loop's door."""


def learner(name: str) -> dw.Learner:
    return dw.learner(name, SPEC, seed=0, **SETTINGS, **OWN.get(name, {}))


def watched(one: dw.Learner) -> Loop:
    return Loop(one, guard=dw.Guard(), source_watch=SourceWatch())


def after(loop: Loop, first: int) -> tuple[float, float]:
    """Accuracy on clean rows, of the loop and of its learner's source, once enough of them came to settle."""
    x, y = rows_of(SETTLE + JUDGED, 9)
    right, source = [], []
    for at in range(0, len(x), SIZE):
        batch = dw.Batch(np.arange(first + at, first + at + SIZE), x[at : at + SIZE], 0.0)
        answers = loop.predict(batch).output
        if at < SETTLE:
            continue
        scores = loop.learner.source_scores(batch)
        assert scores is not None
        source.append(scores.argmax(1) == y[at : at + SIZE])
        right.append(answers == y[at : at + SIZE])
    return tuple(float(np.concatenate(part).mean()) for part in (right, source))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def unspoilt() -> Any:
    """What each method is worth on the clean rows without any garbage before them."""
    known: dict[str, float] = {}

    def worth(name: str) -> float:
        if name not in known:
            known[name] = after(watched(learner(name)), 0)[0]
        return known[name]

    return worth


@pytest.mark.parametrize("name", METHODS)
def test_garbage_through_the_loop(name: str, unspoilt: Any) -> None:
    loop, rng, at = watched(learner(name)), np.random.default_rng(0), 0
    for i in range(BATCHES):
        x = GARBAGE[i % len(GARBAGE)](int(rng.integers(1, 5)), rng)
        answer = loop.predict(dw.Batch(np.arange(at, at + len(x)), x, 0.0))
        assert len(answer.output) == len(x)
        at += len(x)
        loop.records()
    assert loop.quarantined > BATCHES // 8
    assert loop.step > BATCHES // 2
    assert all_finite(loop.learner.state()) is None
    accuracy, source = after(loop, at)
    assert source > 0.98
    assert accuracy >= min(source, unspoilt(name)) - 0.01


@pytest.mark.parametrize("name", METHODS)
def test_garbage_straight_into_the_learner(name: str, unspoilt: Any) -> None:
    """Without the loop's door: rows that are missing or infinite reach the network."""
    one, rng = learner(name), np.random.default_rng(1)
    for i in range(400):
        x = GARBAGE[i % len(GARBAGE)](int(rng.integers(1, 5)), rng)
        batch = dw.Batch(np.arange(len(x)), x, 0.0)
        answer = one.predict(batch)
        assert answer.scores is not None
        assert np.isfinite(answer.scores).all()
        one.adapt(batch, answer)
    assert all_finite(one.state()) is None
    accuracy, source = after(watched(one), 0)
    assert accuracy >= min(source, unspoilt(name)) - 0.01
