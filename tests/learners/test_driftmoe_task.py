"""MoE-Task: the published setting is an online network alone, held against torch; ours lets the trees have a say."""

from __future__ import annotations

from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.learners import driftmoe_task as task
from driftway.adapt.state import all_finite, copy_state, digest
from driftway.models.compiled import compiled
from driftway.models.router import STEPS, layout
from numpy.testing import assert_allclose, assert_array_equal

FAITHFUL = {"variant": "task", "faithful": True}
OURS = {"variant": "task"}


@compiled
def kept(plan: task.Plan, pool: task.Pool) -> Any:
    return task.keep_units(plan, pool)


def rows(n: int, seed: int = 0, classes: int = 3) -> tuple[dw.StreamSpec, dw.Batch]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    y = np.argmax(x[:, :classes] + rng.normal(0, 0.3, (n, classes)), axis=1)
    spec = dw.StreamSpec("rows", tuple(dw.Column(c) for c in "abcd"), classes=tuple("pqr"[:classes]))
    return spec, dw.Batch(np.arange(n), x, 0.0, y)


def test_faithful_is_torchs_network_trained_row_by_row_under_dropout() -> None:
    """Section 4 of the note: logits under dropout answer, then one Adam step on BCE with the one-hot of y."""
    spec, batch = rows(120)
    learner: Any = dw.learner("driftmoe", spec, seed=2, **FAITHFUL)
    mixture = learner._mixture
    params, at = [], 0
    for n, m in layout(mixture.pool.router.size):
        for shape in ((n, m), (m,)):
            size = int(np.prod(shape))
            part = mixture.pool.router.theta[at : at + size].reshape(shape)
            params.append(torch.tensor(part, dtype=torch.float64, requires_grad=True))
            at += size
    adam = torch.optim.Adam(params, lr=2e-3)
    for t in range(120):
        keep = torch.tensor(kept(mixture.plan, mixture.pool), dtype=torch.float64)
        row = batch.rows(slice(t, t + 1))
        h = torch.relu(torch.tensor(row.x, dtype=torch.float64) @ params[0] + params[1]) * keep
        z = torch.relu(h @ params[2] + params[3]) @ params[4] + params[5]
        expected = torch.sigmoid(z) / torch.sigmoid(z).sum()
        prediction = learner.predict(row)
        assert_allclose(prediction.scores, expected.detach().numpy(), atol=2e-4)
        assert prediction.output[0] == int(np.argmax(prediction.scores))
        target = torch.zeros(1, 3, dtype=torch.float64)
        target[0, int(row.y[0])] = 1  # type: ignore[index]
        adam.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(z, target).backward()
        adam.step()
        learner.learn(row, prediction)
    assert mixture.pool.router.counter[STEPS] == 120


def test_in_the_published_setting_trees_change_no_answer() -> None:
    """Invariant 11: with the trees of another model in the forest the answers stay; in our setting they do not."""
    spec, batch = rows(300)
    grown: Any = dw.learner("driftmoe", spec, **OURS)
    grown.test_then_train(batch)
    for settings, changed in ((FAITHFUL, False), (OURS, True)):
        plain: Any = dw.learner("driftmoe", spec, **settings)
        planted: Any = dw.learner("driftmoe", spec, **settings)
        state = copy_state(planted.state())
        state["forest"] = copy_state(grown.state()["forest"])
        planted.load(state)
        one, other = plain.test_then_train(batch).scores, planted.test_then_train(batch).scores
        assert np.array_equal(one, other) != changed


def test_dropout_leaves_out_a_fifth_of_the_units_and_differs_from_row_to_row() -> None:
    spec, batch = rows(200)
    learner: Any = dw.learner("driftmoe", spec, **FAITHFUL)
    masks = []
    for t in range(200):
        masks.append(kept(learner._mixture.plan, learner._mixture.pool) == 0)
        learner.test_then_train(batch.rows(slice(t, t + 1)))
    mask = np.array(masks)
    assert_allclose(mask.mean(), 0.2, atol=0.01)
    assert mask.mean(axis=1).std() < 0.04
    assert mask.mean(axis=0).std() < 0.06
    overlap = (mask[1:] & mask[:-1]).mean()
    assert_allclose(overlap, 0.04, atol=0.006)
    assert len({m.tobytes() for m in mask}) == 200
    assert len(kept(dw.learner("driftmoe", spec, **OURS)._mixture.plan, learner._mixture.pool)) == 0  # type: ignore[attr-defined]


def test_ours_scores_are_router_times_trees() -> None:
    spec, batch = rows(400)
    learner: Any = dw.learner("driftmoe", spec, **OURS)
    learner.test_then_train(batch)
    scores = learner.predict(batch).scores
    assert_allclose(scores.sum(axis=1), 1)
    for t in range(3):
        lone = dw.learner(
            "hoeffding-tree",
            dw.StreamSpec("one", spec.columns, classes=("rest", "this")),
            grace=50,
            delta=0.01,
            binary=True,
        )
        lone.test_then_train(dw.Batch(batch.ids, batch.x, 0.0, (batch.y == t).astype(np.int64)))
        opinion = lone.predict(batch).scores[:, 1]  # type: ignore[index]
        assert (scores[opinion == 0, t] < 1e-6).all()
        assert np.corrcoef(scores[:, t], opinion)[0, 1] > 0.5


def test_trees_that_all_say_no_leave_the_answer_to_the_router() -> None:
    """Leaves that never saw a class give it nothing; then not class 0 but the router's choice is the answer."""
    spec, _ = rows(1)
    learner: Any = dw.learner("driftmoe", spec, **OURS)
    row = dw.Batch(np.arange(1), np.ones((1, 4)), 0.0, np.array([2]))
    learner.test_then_train(row)
    forest = learner._mixture.pool.forest
    for root in forest.root:
        forest.counts[forest.node[root, 4]] = [5.0, 0.0]
    learner._mixture.pool.router.theta[-3:] = [-9.0, 0.0, 9.0]
    assert learner.predict(row).output[0] == 2
    assert_allclose(learner.predict(row).scores.sum(), 1)


@pytest.mark.parametrize("settings", [FAITHFUL, OURS], ids=["faithful", "ours"])
def test_coin_flips_stay_coin_flips(settings: dict[str, Any], coin_flips: Any) -> None:
    spec, batch = coin_flips
    answers = dw.learner("driftmoe", spec, **settings).test_then_train(batch).output
    assert abs((answers == batch.y).mean() - 0.5) <= 0.02


@pytest.mark.parametrize("settings", [FAITHFUL, OURS], ids=["faithful", "ours"])
def test_a_new_class_gets_an_output_and_a_tree(settings: dict[str, Any]) -> None:
    _, batch = rows(900)
    y = np.where(np.arange(900) < 300, np.minimum(batch.y, 1), batch.y)  # type: ignore[type-var]
    spec = dw.StreamSpec("growing", tuple(dw.Column(c) for c in "abcd"))
    blocks: Any = dw.learner("driftmoe", spec, **settings)
    singly: Any = dw.learner("driftmoe", spec, **settings)
    batch = dw.Batch(batch.ids, batch.x, 0.0, y)
    answers = blocks.test_then_train(batch)
    assert_array_equal(answers.scores, dw.Learner.test_then_train(singly, batch).scores)
    assert digest(blocks.state()) == digest(singly.state())
    assert (answers.output == y)[600:].mean() > 0.7
    assert answers.scores[:300, 2].sum() == 0


@pytest.mark.parametrize("settings", [FAITHFUL, OURS], ids=["faithful", "ours"])
def test_saved_loaded_and_continued_equals_uninterrupted(settings: dict[str, Any]) -> None:
    spec, batch = rows(400)
    straight, resumed = dw.learner("driftmoe", spec, **settings), dw.learner("driftmoe", spec, **settings)
    straight.test_then_train(batch.rows(slice(0, 200)))
    resumed.load(copy_state(straight.state()))
    for learner in (straight, resumed):
        learner.test_then_train(batch.rows(slice(200, None)))
    assert digest(straight.state()) == digest(resumed.state())


@pytest.mark.parametrize("settings", [FAITHFUL, OURS], ids=["faithful", "ours"])
def test_extreme_and_missing_numbers_leave_state_and_scores_finite(settings: dict[str, Any]) -> None:
    spec, batch = rows(500)
    x = np.array(batch.x)
    x[::3, 0], x[1::3, 0], x[::2, 1], x[::5, 2] = 1.7e308, -1.7e308, 5e-324, np.nan
    learner = dw.learner("driftmoe", spec, **settings)
    assert np.isfinite(learner.test_then_train(dw.Batch(batch.ids, x, 0.0, batch.y)).scores).all()  # type: ignore[arg-type]
    assert all_finite(learner.state()) is None
    assert learner.telemetry()["imputed"] == 100


def test_ours_beats_the_published_one(first_rows: Any) -> None:
    spec, batch = first_rows("sea-drift", 5_000, n=20_000)
    hits = [
        (dw.learner("driftmoe", spec, **s).test_then_train(batch).output == batch.y).mean() for s in (FAITHFUL, OURS)
    ]
    assert hits[1] > hits[0]
