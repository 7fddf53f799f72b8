"""Prototypes on a device: labelled rows of new classes and steps without labels, beside the learner's own."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import onnx
import pytest
import torch
from driftway.adapt.edge.runner import Runner
from driftway.adapt.edge.steps import CannotExport, steps_of
from driftway.adapt.learners.test_time import TestTimeLearner
from driftway.adapt.learners.test_time_recipes import CSFA, NCM, TEEN, Recipe, ShotsFinetune, Tent
from driftway.models.networks import build
from driftway.models.prototypes import Prototypes
from numpy.testing import assert_allclose
from torch import nn

BASE = 4
SPEC = dw.StreamSpec(
    "images",
    tuple(dw.Column(f"x{j}", missing=False) for j in range(64)),
    classes=tuple("abcdefg"),
    shape=(1, 8, 8),
    notes={"mean": [0.3], "std": [0.7], "base": 3},
)


def learner(recipe: Recipe, model: str = "convnet:4-8", seed: int = 1) -> TestTimeLearner:
    draw = torch.Generator().manual_seed(seed)
    net = build(model, (1, 8, 8), 2).eval()
    for module in net.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_(0, 0.1, generator=draw)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.05, 0.2, generator=draw)  # type: ignore[union-attr, operator]
    means = torch.randn(BASE, 8, generator=draw).abs()
    head = Prototypes(means, torch.tensor([9, 8, 7, 9]), torch.tensor([0, 1, 4, 5]))
    whole = nn.Sequential(OrderedDict(body=net.body, head=head))
    return TestTimeLearner(SPEC, recipe, model=whole)


def rows(n: int, seed: int, y: Any = None) -> dw.Batch:
    x = np.random.default_rng(seed).random((n, 64), np.float32).astype(np.float64) * (1 + seed % 3)
    return dw.Batch(np.arange(n) + 1000 * seed, x, 0.0, None if y is None else np.array(y, np.int64))


Script = list[tuple[int, Any]]
"""Rows and their labels, batch by batch."""
SESSIONS: Script = [
    (5, None), (3, [2, 2, 6]), (2, [6, 2]), (1, None), (1, None), (20, None), (30, None), (2, [3, 3]), (3, None),
    (1, [4]), (50, None), (40, None), (1, [2]), (9, None),
]  # fmt: skip


def in_graph(made: TestTimeLearner, state: dict[str, Any], verb: str, batch: dw.Batch) -> tuple[Any, dict[str, Any]]:
    """A verb on a state: its first answer, and the state after it."""
    what = steps_of(made).verbs[verb]
    given = {"x": torch.from_numpy(batch.x).float()}
    answers, after = what.step(given | ({"y": torch.from_numpy(batch.y)} if verb == "learn" else {}), state)
    return answers[what.answers[0]], after


RECIPES: list[Recipe] = [
    CSFA(lr=0.05, e_frac=0.97, recover=0.0),
    CSFA(lr=0.05, e_frac=0.97, filter="by-group", rule="shrink", company="before", recover=0.9),
    CSFA(lr=0.05, e_frac=0.97, statistics="source"),
    Tent(lr=0.01, prototypes="shrink", statistics="batch"),
    NCM(),
    TEEN(company="before", statistics="mixed"),
    TEEN(statistics="source", lam=0.5),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: f"{type(r).__name__}-{RECIPES.index(r)}")
def test_every_verb_is_the_learners(recipe: Recipe) -> None:
    made = learner(recipe)
    moved = 0.0
    for i, (n, y) in enumerate(SESSIONS):
        batch, steps = rows(n, i + 1, y), steps_of(made)
        said = made.predict(batch)
        (scores, _) = in_graph(made, dict(steps.state), "predict", batch)
        assert_allclose(scores.numpy(), said.scores, atol=1e-5)
        verb = "adapt" if y is None else "learn"
        state = dict(steps.state)
        if verb in steps.verbs:
            _, state = in_graph(made, state, verb, batch)
        made.adapt(batch, said)
        if y is not None:
            made.learn(batch, said)
        now = steps_of(made).state
        for name in steps.verbs[verb].writes if verb in steps.verbs else ():
            if name in ("open", "open_y", "company"):
                continue  # what does not count there is whatever was there
            assert_allclose(state[name].numpy(), now[name].numpy(), atol=2e-5, err_msg=f"{i} {name}")
            moved = max(moved, float((now[name] - steps.state[name]).abs().max()))
    assert moved > 0.1
    assert sorted(made.taught.codes.tolist()) == [0, 1, 2, 3, 4, 5, 6]  # type: ignore[union-attr]


IN_BUNDLE = CSFA(lr=0.05, e_frac=0.97, recover=0.0)


@pytest.fixture(name="csfa", scope="module")
def csfa_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = learner(IN_BUNDLE, "convnet:8")
    return dw.export(made, made.spec, tmp_path_factory.mktemp("csfa") / "bundle")  # type: ignore[no-any-return]


def test_a_bundle_follows_a_stream(csfa: Path) -> None:
    """Prototypes that wait for company included, for which the graph has a branch that no traced row takes."""
    made = learner(IN_BUNDLE, "convnet:8")
    edge = dw.learner(f"edge:{csfa}", made.spec)
    assert any(n.op_type == "If" for n in onnx.load(csfa / "adapt.onnx").graph.node)
    runner: Runner = edge.runner  # type: ignore[attr-defined]
    runner.about["guard"]["every"] = 10**9  # random weights answer too little to be judged
    for i, (n, y) in enumerate(SESSIONS):
        batch = rows(n, i + 1, y)
        ours, theirs = made.predict(batch), edge.predict(batch)
        assert_allclose(theirs.scores, ours.scores, atol=1e-4)
        for follower, said in ((made, ours), (edge, theirs)):
            follower.adapt(batch, said)
            if y is not None:
                follower.learn(batch, said)
    asked = rows(30, 99)
    assert_allclose(edge.predict(asked).scores, made.predict(asked).scores, atol=1e-4)
    assert runner.counts["steps"] == made.counts["steps"]
    assert runner.counts["learnt"] == sum(len(y) for _, y in SESSIONS if y)


def test_a_rollback_leaves_what_labels_taught(csfa: Path) -> None:
    runner = Runner(csfa)
    first = {n: v.copy() for n, v in runner.now.items()}
    runner.learn(rows(3, 1).x, [2, 2, 6])
    runner.adapt(rows(20, 2).x)
    assert not np.array_equal(runner.now["moving"], first["moving"])
    runner.about["guard"] = {"every": 1, "window": 1, "share": 1e9}
    runner.adapt(rows(20, 3).x)
    assert runner.counts["rollbacks"] == 1
    assert_allclose(runner.now["moving"], first["moving"], rtol=0, atol=0)
    assert runner.now["prototypes"][:, -1].tolist() == [1, 1, 1, 0, 1, 1, 1]
    company = runner.now["company"].reshape(len(runner.now["company"]), -1)
    assert int(runner.now["come"][0]) == int(company.any(1).sum()) == 40


def test_classes_that_labels_taught_are_no_collapse(csfa: Path) -> None:
    """All rows fall into a new class: far fewer classes than by the prototypes of the export, and yet all is well."""
    runner, x = Runner(csfa), rows(60, 1).x
    assert len(set(runner.predict(x).argmax(1))) == 3
    runner.adapt(rows(16, 11).x)
    runner.learn(x[:8], [2] * 8)
    runner.about["guard"]["every"] = 1
    assert set(runner.adapt(x).argmax(1)) == {2}
    assert runner.counts["rollbacks"] == 0
    assert_allclose(runner.good["moving"], runner.now["moving"], rtol=0, atol=0)
    assert not np.array_equal(runner.good["moving"], runner.exported["moving"])


def test_a_collapse_among_classes_that_labels_taught_is_seen(csfa: Path) -> None:
    """Rows of two new classes fall into one by what adapting moved; by the prototypes of the export they were one."""
    runner = Runner(csfa)
    x = rows(60, 1).x
    x = x[runner.predict(x).argmax(1) == 4]
    runner.learn(x[:8], [2] * 4 + [6] * 4)
    assert set(runner.predict(x).argmax(1)) == {2, 6}
    runner.about["guard"]["every"] = 1
    runner.now["moving"][:] = np.append(np.zeros(8), runner.now["prototypes"][4, :8])  # every row is class 4 then
    assert set(runner.adapt(x).argmax(1)) == {4}
    assert runner.counts["rollbacks"] == 1
    assert_allclose(runner.now["moving"], runner.exported["moving"], rtol=0, atol=0)


def test_more_rows_than_can_wait_are_refused() -> None:
    made = learner(CSFA())
    batch = rows(129, 1, [2] * 129)
    state = dict(steps_of(made).state)
    took, after = in_graph(made, state, "learn", batch)
    assert not took[0]
    assert all(torch.equal(after[n], state[n]) for n in state)


def test_over_many_steps_it_stays_as_near_to_double_precision_as_pytorch(csfa: Path) -> None:
    eager, double = (learner(IN_BUNDLE, "convnet:8") for _ in range(2))
    runner = Runner(csfa)
    double.net.double()
    double.source = {n: w.double() for n, w in double.source.items()}
    taught = double.taught
    taught.prototypes.load({**taught.prototypes.state(), **{  # type: ignore[union-attr]
        n: getattr(taught.prototypes, n).double() for n in ("means", "rows")}})  # type: ignore[union-attr]  # fmt: skip
    steps = steps_of(double)
    state = {n: t.double() if t.is_floating_point() else t for n, t in steps.state.items()}
    apart = np.zeros((200, 2))
    for i in range(200):
        y = [6 - i % 2] * 2 if i % 50 == 7 else None
        batch = rows(2, i, y)
        verb = steps.verbs["adapt" if y is None else "learn"]
        given = [torch.from_numpy(batch.x), *([] if y is None else [torch.from_numpy(batch.y)])]
        with torch.no_grad():
            answer, *rest = verb.module(*given, *(state[n] for n in verb.reads))
        state |= dict(zip(verb.writes, rest[len(verb.answers) - 1 :], strict=True))
        said = eager.predict(batch)
        eager.adapt(batch, said)
        if y is None:
            apart[i] = [np.abs(z - answer.numpy()).max() for z in (runner.adapt(batch.x), said.scores)]
        else:
            eager.learn(batch, said)
            runner.learn(batch.x, batch.y)
    mine, its = apart.max(0)
    assert mine <= 3 * its + 1e-6
    assert its > 0


def test_what_has_no_graph_is_said() -> None:
    with pytest.raises(CannotExport, match="running statistics"):
        steps_of(learner(CSFA(statistics="running")))
    net = build("convnet:4", (1, 8, 8), 7)
    with pytest.raises(CannotExport, match="shotsfinetune has no form as graphs: labelled rows train all weights"):
        steps_of(TestTimeLearner(SPEC, ShotsFinetune(), model=net))
