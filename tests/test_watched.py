"""Continual evaluation has no say in anything: every learner ends the same, watched at every update or not at all."""

from __future__ import annotations

import random
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt.learners import LEARNERS
from driftway.adapt.loop import Loop
from driftway.adapt.record import Record
from driftway.adapt.state import digest
from driftway.evaluation.continual import Continual
from driftway.streams import Experience, Source

TAKES = {
    "river": "river:naive_bayes.GaussianNB",
    "frozen": "frozen:logistic",
    "reloop2": "logistic+reloop2",
    "platt": "platt:logistic",
    "avalanche": "avalanche:Naive",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "adab2n": {"model": "convnet:4-4"},
    "frozen": {"after": 60},
    "reloop2": {"warmup": 20, "arrays": 4, "bits": 3},
    "platt": {"warmup": 20},
    "hoeffding-tree": {"grace": 10},
    **{name: {"epochs": 1, "cache": False, "lr": 0.1} for name, entry in LEARNERS.items() if entry.recipe},
    **{name: {"epochs": 1, "cache": False} for name in ("source", "bn-adapt", "ncm", "teen")},
    "shots-finetune": {"epochs": 1, "cache": False, "steps": 2},
}
NAMES = [name for name, entry in LEARNERS.items() if not entry.given and entry.takes != "bundle"]
"""All but click models, since these rows are of six classes, and bundles, which are made of other learners."""
ROWS, TASKS = 30, 3


def rows_of(task: int, n: int, seed: int) -> tuple[Any, Any]:
    """Two classes of an experience, apart in the first two of four columns."""
    rng = np.random.default_rng([seed, task])
    y = 2 * task + rng.integers(0, 2, n)
    return rng.normal(size=(n, 4)) + np.c_[3.0 * (y % 2), np.full(n, 4.0 * task), np.zeros((n, 2))], y


def held_out(task: int) -> Experience:
    x, y = rows_of(task, 15 + task, seed=1)
    return Experience(f"task {task}", x.astype(np.float32), y, ROWS, (2 * task, 2 * task + 1))


def clean(seed: int) -> tuple[Any, Any]:
    """Rows of all experiences, for learners that start from a source model."""
    parts = [rows_of(task, 20, seed) for task in range(TASKS)]
    return np.concatenate([x for x, _ in parts]).astype(np.float32), np.concatenate([y for _, y in parts])


SPEC = dw.StreamSpec(
    "three",
    tuple(dw.Column(c) for c in "abcd"),
    classes=tuple("uvwxyz"),
    shape=(1, 2, 2),
    notes={"mean": [0.0], "std": [1.0]},
    experiences=tuple(held_out(task) for task in range(TASKS)),
    source=Source("clean", tuple(range(6)), lambda: clean(2), lambda: clean(3)),
)


class Tasks:
    """Three experiences of thirty rows each, in blocks of so many rows."""

    spec = SPEC

    def __init__(self, block: int) -> None:
        self.block = block

    def __iter__(self) -> Iterator[Any]:
        for task in range(TASKS):
            if task:
                yield dw.Boundary(f"task {task}", task * ROWS)
            x, y = rows_of(task, ROWS, seed=0)
            for at in range(0, ROWS, self.block):
                piece = slice(at, min(at + self.block, ROWS))
                yield dw.Batch(np.arange(task * ROWS, (task + 1) * ROWS)[piece], x[piece], 0.0, y[piece])

    def cursor(self) -> dict[str, Any]:
        return {}

    def seek(self, cursor: dict[str, Any]) -> None:
        """Always starts anew."""


def build(name: str) -> dw.Learner:
    if name == "avalanche" and find_spec("avalanche") is None:
        pytest.skip("needs the extra avalanche")
    settings = dict(SETTINGS.get(name, {}))
    if LEARNERS[name].home == "gradient:GradientLearner":
        settings = {"model": "mlp:12"} | settings
    return dw.learner(TAKES.get(name, name), SPEC, seed=3, **settings)


def run(name: str, every: int | None = 0, block: int = 5, row_by_row: bool = False) -> tuple[Loop, list[Record]]:
    """The loop after all rows and its records; ``every=0``: without continual evaluation."""
    watch = None if every == 0 else Continual(SPEC.experiences, every)
    loop = Loop(build(name), evaluators=[dw.Prequential(SPEC)], every=7, row_by_row=row_by_row, continual=watch)
    return loop, list(loop.steps(Tasks(block)))


def knows(loop: Loop) -> Any:
    """The digest of the learner's state, or what it answers where it has none."""
    try:
        return digest(loop.learner.state())
    except dw.CannotCheckpoint:
        x, _ = rows_of(1, 50, seed=9)
        prediction = loop.learner.predict(dw.Batch(np.arange(50), x, 0.0))
        return digest([prediction.output, prediction.scores])


def without_scores(records: list[Record]) -> list[Record]:
    """The records of a run with the traces of continual evaluation taken out."""
    kept = [r for r in records if r.kind != "evaluation"]
    columns = Continual.columns
    return [Record(r.step, r.kind, {k: v for k, v in r.values.items() if k not in columns}) for r in kept]


@pytest.mark.parametrize("row_by_row", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_watched_at_every_update_or_not_at_all(name: str, row_by_row: bool) -> None:
    watched, seen = run(name, 1, row_by_row=row_by_row)
    alone, unseen = run(name, 0, row_by_row=row_by_row)
    assert knows(watched) == knows(alone)
    assert without_scores(seen) == unseen
    updates = 90 if row_by_row else 18
    assert [r.values["update"] for r in seen if r.kind == "evaluation"] == list(range(1, updates + 1))


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_draws_from_no_generator_and_changes_no_state(name: str) -> None:
    loop, _ = run(name)
    watch = Continual(SPEC.experiences)
    watch.experience = TASKS - 1
    for task in range(TASKS - 1):  # as if the earlier ones had been judged at their time
        watch.take(0, tuple(0 for _ in range(task + 1)))

    def everything() -> Any:
        states: list[Any] = [random.getstate(), str(np.random.get_state()), knows(loop)]  # noqa: NPY002
        if hasattr(loop.learner, "net"):
            import torch

            modes = [module.training for module in loop.learner.net.modules()]
            states += [torch.get_rng_state().tolist(), modes, torch.is_inference_mode_enabled()]
        return states

    before = everything()
    first = watch.updated(1, loop.learner)
    watch.answers.forget()
    assert watch.updated(2, loop.learner)[0].right == first[0].right
    assert everything() == before


@pytest.mark.parametrize(("name", "every"), [*((name, 7) for name in NAMES), ("logistic", 1), ("logistic", None)])
def test_blocks_are_judged_as_single_rows_are(name: str, every: int | None) -> None:
    """A compiled pass over many rows is cut where an evaluation is due."""
    blocks, singles = run(name, every, block=ROWS, row_by_row=True), run(name, every, block=1, row_by_row=True)
    assert blocks[1] == singles[1]
    assert knows(blocks[0]) == knows(singles[0])
    if every is not None:
        apart = run(name, every, block=1)
        assert [r for r in apart[1] if r.kind == "evaluation"] == [r for r in blocks[1] if r.kind == "evaluation"]


def test_the_end_of_an_experience_is_judged_before_anybody_is_told() -> None:
    """What a learner does at a boundary belongs to the next experience."""

    class Clears(dw.Learner):
        needs = frozenset({"boundaries"})
        right = True

        def predict(self, batch: dw.Batch) -> dw.Prediction:
            scores = np.zeros((len(batch), 6))
            answer = 2 * (batch.x[:, 1] > 2).astype(int) + (batch.x[:, 0] > 1.5) if self.right else 5
            scores[np.arange(len(batch)), answer] = 1
            return dw.Prediction(scores.argmax(1), scores)

        def boundary(self, event: dw.Boundary) -> None:  # noqa: ARG002
            self.right = False

        def state(self) -> Any:
            return {}

        def load(self, state: Any) -> None:
            """Nothing to take over."""

    loop = Loop(Clears(SPEC), continual=Continual(SPEC.experiences, None))
    found = [r.values for r in loop.steps(Tasks(10)) if r.kind == "evaluation"]
    assert [(v["update"], v["experience"]) for v in found] == [(3, 0), (6, 1), (9, 2)]
    assert found[0]["right"][0] > 12
    assert found[1]["right"] == (0, 0)


def test_after_a_rollback_the_learner_is_asked_anew() -> None:
    """A version number that went back with the state must not pass for the one that was judged."""

    class Breaks(dw.Learner):
        """Says class 0; class 1, and not finite, once it has learnt 20 rows, but only the first time."""

        n = 0
        healed = False

        def broken(self) -> bool:
            return self.n == 20 and not self.healed

        def predict(self, batch: dw.Batch) -> dw.Prediction:
            scores = np.zeros((len(batch), 6))
            scores[:, int(self.broken())] = 1
            return dw.Prediction(scores.argmax(1), scores)

        def learn(self, batch: dw.Batch, prediction: dw.Prediction) -> None:  # noqa: ARG002
            self.n += len(batch)

        def version(self) -> int:
            return self.n

        def state(self) -> Any:
            return {"n": self.n, "x": np.array([np.inf if self.broken() else 0.0])}

        def load(self, state: Any) -> None:
            self.n, self.healed = state["n"], True

    watch = Continual(SPEC.experiences, 2)
    loop = Loop(Breaks(SPEC), guard=dw.Guard(every=2), every=2, continual=watch)
    right = {r.values["update"]: r.values["right"] for r in loop.steps(Tasks(1)) if r.kind == "evaluation"}
    assert loop.rollbacks == 1
    zero, one = (int((SPEC.experiences[0].y == c).sum()) for c in (0, 1))
    assert [right[n][0] for n in (18, 20, 22)] == [zero, one, zero]
