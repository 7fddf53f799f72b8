"""Labelled rows as steps of a graph beside the learner's own: networks, heads, optimisers, masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.edge.runner import Runner
from driftway.adapt.edge.steps import CannotExport, steps_of
from numpy.testing import assert_allclose

SHAPE = (1, 8, 8)
SPEC = dw.StreamSpec(
    "images",
    tuple(dw.Column(f"x{j}", missing=False) for j in range(64)),
    classes=tuple("abcd"),
    shape=SHAPE,
    notes={"mean": [0.3], "std": [0.7]},
)


def row(i: int) -> dw.Batch:
    x = np.random.default_rng(i).random((1, 64), np.float32).astype(np.float64)
    return dw.Batch(np.array([i]), x, 0.0, np.array([i % 4]))


CASES: list[tuple[str, dict[str, Any]]] = [
    ("finetune", {"model": "mlp:12-8", "momentum": 0.9, "weight_decay": 0.01}),
    ("finetune", {"model": "mlp:12", "optimizer": "adamw", "lr": 0.01, "clip": 0.5, "passes": 2}),
    ("finetune", {"model": "convnet:4-6", "lr": 0.05}),
    ("finetune", {"model": "convnet:4-6", "norm": "group", "lr": 0.05}),
    ("finetune", {"model": "mlp-norm:8", "lr": 0.05}),
    ("finetune", {"model": "convnet:4-6", "head_only": True, "lr": 0.05, "momentum": 0.5}),
    ("adab2n", {"model": "convnet:4-6", "lr": 0.05, "momentum": 0.9, "ada_from": 0, "ada": 0.5}),
    ("adab2n", {"model": "mlp-norm:8", "lr": 0.05}),
    ("adab2n", {"model": "convnet:4-6", "lr": 0.05, "ids": "classes", "ada_from": 3, "ada": 5.0}),
    ("random-mask", {"model": "mlp:40-40", "sparsity": 0.5, "momentum": 0.9, "weight_decay": 0.01}),
]


@pytest.mark.parametrize(("name", "settings"), CASES, ids=[f"{i}-{name}" for i, (name, _) in enumerate(CASES)])
def test_a_step_is_the_learners(name: str, settings: dict[str, Any]) -> None:
    learner: Any = dw.learner(name, SPEC, seed=3, **settings)
    for i in range(3):
        learner.learn(row(i), learner.predict(row(i)))
    steps = steps_of(learner)
    state = {n: t.clone() for n, t in steps.state.items()}
    for i in range(3, 8):
        x, y = torch.from_numpy(row(i).x).float(), torch.from_numpy(row(i).y)
        with torch.no_grad():
            (scores,) = steps.verbs["predict"].module(x, *(state[n] for n in steps.verbs["predict"].reads))
            _, *after = steps.verbs["learn"].module(x, y, *state.values())
        assert_allclose(scores.numpy(), learner.predict(row(i)).scores, atol=1e-5)
        learner.learn(row(i), learner.predict(row(i)))
        moved = dict(zip(state, after, strict=True))
        now = steps_of(learner).state if i == 7 else {}
        for n, value in now.items():
            assert_allclose(moved[n].numpy(), value.numpy(), atol=2e-5, err_msg=n)
        state = moved
    start = steps.state
    assert max(float((state[n] - start[n]).abs().max()) for n in start) > 1e-3
    if name == "random-mask":
        still = [
            n for n in start if torch.equal(state[n][0], start[n][0]) or (state[n] == start[n]).float().mean() > 0.4
        ]
        assert any("body" in n for n in still)


@pytest.mark.parametrize("name", ["finetune", "adab2n"])
def test_late_labels_teach_a_bundle(name: str, tmp_path: Path) -> None:
    learner: Any = dw.learner(name, SPEC, model="convnet:4-6", lr=0.05)
    runner = Runner(dw.export(learner, SPEC, tmp_path / "bundle"))
    rows, before = [row(i) for i in range(8)], {n: v.copy() for n, v in runner.now.items()}
    for batch in rows:
        runner.adapt(batch.x, batch.ids.tolist())
    for batch in rows[::-1]:
        assert runner.label(batch.ids.tolist(), batch.y.tolist()) == 1
        learner.learn(batch, learner.predict(batch))
    assert runner.label([3, 99], [0, 0]) == 0
    assert_allclose(runner.predict(rows[0].x), learner.predict(rows[0]).scores, atol=1e-4)
    moved = {n: float(np.abs(v - before[n]).max()) for n, v in runner.now.items() if "running" in n}
    assert min(moved.values()) > 1e-3, "norms answer by statistics that follow the rows"
    assert runner.counts["learnt"] == 8


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("er", {"memory": 10}, "keeps rows to learn from again"),
        ("adab2n", {"model": "convnet:4", "reference": True}, "reference=false"),
        ("ewc", {"model": "mlp:8"}, "no form as a graph yet"),
        ("finetune", {"model": "mlp:8", "single_head": True}, "single_head has no form as a graph"),
    ],
)
def test_what_has_no_graph_is_said(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CannotExport, match=words):
        steps_of(dw.learner(name, SPEC, **settings))


def test_columns_that_follow_the_stream_are_said() -> None:
    spec = dw.StreamSpec("table", (dw.Column("a"),), classes=("n", "y"))
    with pytest.raises(CannotExport, match="scale follows"):
        steps_of(dw.learner("finetune", spec))
