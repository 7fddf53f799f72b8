"""What tests of gradient learners share: a small stream of experiences, and a way through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import driftway as dw
import numpy as np
import pytest


def small_tasks(
    tasks: int = 3, rows: int = 40, *, epochs: int = 1, scenario: Any = "class", seed: int = 0
) -> dw.Stream:
    """Two classes each, 4x4 images in which a class is a bright cell: easy, and forgotten at once."""
    rng = np.random.default_rng(5)

    def images(task: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(0, 2, n) + 2 * task
        x = rng.random((n, 1, 4, 4)) * 0.5
        x[np.arange(n), 0, y // 4, y % 4] += 0.5
        return x, y

    train = [(f"task {k}", *images(k, rows)) for k in range(tasks)]
    test = [images(k, 20) for k in range(tasks)]
    return dw.from_experiences(train, test, epochs=epochs, scenario=scenario, seed=seed)


def teach(learner: dw.Learner, events: Iterable[Any]) -> dw.Learner:
    """Every batch predicted and learnt, every boundary told."""
    for event in events:
        if isinstance(event, dw.Boundary):
            if "boundaries" in learner.needs:
                learner.boundary(event)
        else:
            learner.learn(event, learner.predict(event))
    return learner


@pytest.fixture(name="small_tasks", scope="session")
def small_tasks_fixture() -> Callable[..., dw.Stream]:
    return small_tasks


@pytest.fixture(name="teach", scope="session")
def teach_fixture() -> Callable[..., dw.Learner]:
    return teach
