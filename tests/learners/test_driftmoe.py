"""MoE-Data: the method note's invariants and hand examples, a plain re-implementation beside it, and our own mode.

Of the note's invariants, 2 and part of 3 are in tests/models/test_router.py, 11 in test_driftmoe_task.py. Invariant 8
(the softmax temperature changes nothing) holds in that there is none: hard routing needs only the order of the logits.
Invariants 9 and 10 (labels at once but apart; save, load, continue) are also checked for every learner and setting by
tests/test_contract.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.learners import driftmoe_data as data
from driftway.adapt.learners.driftmoe import RULES, DataMixture, DriftMoE, effective
from driftway.adapt.state import all_finite, copy_state, digest
from driftway.models.router import FILLED, ROWS, STEPS, layout
from numpy.testing import assert_allclose, assert_array_equal
from river import tree

LONE = {"grace": 50.0, "delta": 1e-7}


def published(spec: dw.StreamSpec, seed: int = 0, **changes: Any) -> DataMixture:
    """The published setting with some of it changed, which the learner itself does not allow."""
    return DataMixture(spec, replace(effective(DriftMoE.Params(faithful=True)), **changes), seed)


def accuracy(learner: Any, batch: dw.Batch) -> float:
    return 100 * float((learner.test_then_train(batch).output == batch.y).mean())


def table(n: int, seed: int = 0, missing: float = 0.05) -> tuple[dw.StreamSpec, dw.Batch]:
    """Three classes, numbers and categories, missing values, labels that turn half way."""
    rng = np.random.default_rng(seed)
    x = np.c_[rng.normal(size=(n, 3)), rng.integers(0, 4, n), rng.integers(0, 90, n)]
    y = (x[:, 0] * np.where(np.arange(n) < n // 2, 1, -1) > 0).astype(np.int64) + (x[:, 3] == 2)
    x[rng.random(x.shape) < missing] = np.nan
    columns = (*(dw.Column(c) for c in "abc"), dw.Column("k", tuple("wxyz")), dw.Column("town", ("t",), open=True))
    return dw.StreamSpec("table", columns, classes=("p", "q", "r")), dw.Batch(np.arange(n), x, 0.0, y)


# --- invariant 1: the target mask -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "y", "z", "mask", "right"),
    [
        ([[0.6, 0.4], [0.2, 0.8], [0.5, 0.5]], 1, [0, 0, 0], [0, 1, 0], 1),
        ([[0.6, 0.4], [0.2, 0.8], [0.5, 0.5]], 0, [0, 0, 0], [1, 0, 1], 2),
        ([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.3, 0.2]], 2, [0, 0, 0], [0, 0, 1], 0),
        ([[0.6, 0.3, 0.1], [0.2, 0.6, 0.2], [0.5, 0.3, 0.2]], 2, [0, 0, 9], [0, 1, 0], 0),  # a tie: the lowest
        ([[0.6, 0.4, 0.0], [0.2, 0.8, 0.0], [0.5, 0.5, 0.0]], 2, [1, 3, 3], [0, 1, 0], 0),  # unknown to all: top-1
    ],
)
def test_mask_by_hand(p: list[list[float]], y: int, z: list[float], mask: list[int], right: int) -> None:
    desk = data.new_desk(published(table(1)[0], specialists=3).pool)
    assert data.target_mask(desk, y, np.array(z, np.float32), np.array(p)) == right
    assert_array_equal(desk.mask, mask)


# --- invariants 3 to 6: who learns what, and when ---------------------------------------------------------------


def test_router_stands_still_but_for_every_256th_row(first_rows: Any) -> None:
    spec, batch = first_rows("two-regimes", 600)
    mixture = published(spec)
    start = mixture.pool.router.theta.copy()
    mixture.test_then_train(batch.rows(slice(0, 255)))
    assert_array_equal(mixture.pool.router.theta, start)
    for t in range(255, 600):
        before = mixture.pool.router.theta.copy()
        mixture.test_then_train(batch.rows(slice(t, t + 1)))
        assert np.array_equal(mixture.pool.router.theta, before) == ((t + 1) % 256 != 0), t
    counter = mixture.pool.router.counter
    assert (counter[STEPS], counter[FILLED], counter[ROWS]) == (2, 600 % 256, 600)


def test_exactly_k_trees_learn_every_row(first_rows: Any) -> None:
    spec, batch = first_rows("two-regimes", 300)
    mixture = published(spec)
    for t in range(300):
        before, weights = mixture.pool.trained.copy(), root_weights(mixture)
        mixture.test_then_train(batch.rows(slice(t, t + 1)))
        assert sorted((mixture.pool.trained - before).tolist()) == [0] * 9 + [1] * 3
        assert_array_equal(root_weights(mixture) - weights, mixture.pool.trained - before)
    assert mixture.pool.trained.sum() == 3 * 300


def root_weights(mixture: DataMixture) -> np.ndarray:
    """Weight that each tree has learnt, as its root counts it."""
    forest, trees = mixture.pool.forest, len(mixture.pool.guards.replaced)
    return np.array([forest.node_value[r, 1] if r >= 0 else 0.0 for r in forest.root[:trees]])


@pytest.mark.parametrize("stream", ["table", "agrawal-drift"])
@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (4, 4)])
def test_one_tree_or_trees_that_all_learn_are_a_lone_tree(
    stream: str, experts: int, top_k: int, first_rows: Any
) -> None:
    spec, batch = table(3_000) if stream == "table" else first_rows(stream, 6_000)
    mixture = published(spec, specialists=experts, top_k=top_k)
    lone = dw.learner("hoeffding-tree", spec, **LONE)
    one, other = mixture.test_then_train(batch), lone.test_then_train(batch)
    assert_array_equal(one.output, other.output)
    assert_array_equal(one.scores, other.scores)


def test_the_first_answers_need_no_data() -> None:
    """Nothing learnt: the smallest class. A chosen tree that is unborn: the majority so far."""
    spec, batch = table(4)
    mixture = published(spec)
    assert_array_equal(mixture.predict(batch).output, 0)
    prediction = mixture.predict(batch.rows(slice(0, 1)))
    mixture.learn(dw.Batch(batch.ids[:1], batch.x[:1], 0.0, np.array([2])), prediction)  # type: ignore[index]
    assert_array_equal(mixture.predict(batch).output, 2)


# --- section 3 of the note, written plainly ---------------------------------------------------------------------


def plain_answers(batch: dw.Batch, theta: np.ndarray, sizes: Any, trees: int = 12, k: int = 3, b: int = 256) -> Any:
    """MoE-Data in the corrected order with river's trees and torch's router, one row after the other."""
    params, at = [], 0
    for n, m in layout(sizes):
        params += [torch.tensor(theta[at : at + n * m].reshape(n, m)), torch.tensor(theta[at + n * m : at + n * m + m])]
        at += n * m + m
    params = [p.requires_grad_() for p in params]
    adam = torch.optim.Adam(params, lr=2e-3)

    def router(x: Any) -> Any:
        h = torch.relu(x @ params[0] + params[1])
        return torch.relu(h @ params[2] + params[3]) @ params[4] + params[5]

    experts = [tree.HoeffdingTreeClassifier(grace_period=50, delta=1e-7, tau=0.05) for _ in range(trees)]
    seen, answers, rows, masks = np.zeros(2), [], [], []
    for row, y in zip(batch.x, batch.y):  # type: ignore[arg-type, call-overload]
        x = dict(enumerate(row.tolist()))
        with torch.no_grad():
            z = router(torch.tensor(row, dtype=torch.float32)).numpy()
        p = np.array([[s.get(c, 0.0) for c in (0, 1)] for s in (e.predict_proba_one(x) for e in experts)])
        p[p.sum(axis=1) == 0] = 0.5
        best = int(z.argmax())
        unborn = experts[best].n_nodes is None
        answers.append(int(seen.argmax()) if unborn else int(p[best].argmax()))
        mask = (p.argmax(axis=1) == y).astype(np.float32)
        if not mask.any():
            mask[p[:, y].argmax()] = 1
        rows.append(row)
        masks.append(mask)
        for i in np.argsort(-z, kind="stable")[:k]:
            experts[i].learn_one(x, int(y))
        if len(rows) == b:
            adam.zero_grad()
            z_batch = router(torch.tensor(np.array(rows), dtype=torch.float32))
            torch.nn.functional.binary_cross_entropy_with_logits(z_batch, torch.tensor(np.array(masks))).backward()
            adam.step()
            rows, masks = [], []
        seen[y] += 1
    return np.array(answers)


@pytest.mark.usefixtures("river_takes_the_lowest_on_ties")
def test_faithful_equals_the_note_written_plainly(first_rows: Any) -> None:
    spec, batch = first_rows("two-regimes", 2_500, seed=3)
    learner: Any = dw.learner("driftmoe", spec, faithful=True, seed=4)
    router = learner._mixture.pool.router
    theirs = plain_answers(batch, router.theta.copy(), router.size)
    ours = learner.test_then_train(batch).output
    assert (ours == theirs).mean() >= 0.999


# --- invariants 7, 9 and 10: no look ahead, no matter how rows come ---------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"faithful": True}, {"lean": True}], ids=str)
def test_future_labels_change_no_answer(settings: dict[str, Any]) -> None:
    spec, batch = table(400)
    other = np.array(batch.y)
    other[200:] = (other[200:] + 1) % 3
    one, two = (dw.learner("driftmoe", spec, **settings) for _ in range(2))
    first = one.test_then_train(batch).scores
    second = two.test_then_train(dw.Batch(batch.ids, batch.x, 0.0, other)).scores
    assert_array_equal(first[:201], second[:201])  # type: ignore[index]
    assert not np.array_equal(first[201:], second[201:])  # type: ignore[index]


@pytest.mark.parametrize("settings", [{}, {"faithful": True}, {"lean": True}, {"answer": "vote"}], ids=str)
def test_coin_flips_stay_coin_flips(settings: dict[str, Any], coin_flips: Any) -> None:
    spec, batch = coin_flips
    assert abs(accuracy(dw.learner("driftmoe", spec, **settings), batch) - 50) <= 2


@pytest.mark.parametrize("settings", [{}, {"faithful": True}, {"contrast": True, "balance": True}], ids=str)
def test_learning_row_by_row_from_waiting_predictions_equals_one_pass(settings: dict[str, Any]) -> None:
    spec, batch = table(700)
    straight, waiting = (dw.learner("driftmoe", spec, **settings) for _ in range(2))
    straight.test_then_train(batch)
    for t in range(len(batch)):
        row = batch.rows(slice(t, t + 1))
        unlabelled = dw.Batch(row.ids, row.x, row.time)
        prediction = copy_state(fields_of(waiting.predict(unlabelled)))
        waiting.predict(batch.rows(slice(0, 20)))  # a look at other rows in between changes nothing
        waiting.learn(row, dw.Prediction(**prediction))
    assert digest(straight.state()) == digest(waiting.state())


def fields_of(prediction: dw.Prediction) -> dict[str, Any]:
    return {"output": prediction.output, "scores": prediction.scores, "trace": dict(prediction.trace)}


@pytest.mark.parametrize("settings", [{}, {"max_mib": 0.2}], ids=str)
def test_rows_and_blocks_give_the_same_bits_while_memory_grows_and_at_its_bound(
    settings: dict[str, Any], check_slots: Any
) -> None:
    spec, batch = table(2_500)
    blocks, rows = (dw.learner("driftmoe", spec, **settings) for _ in range(2))
    answers = blocks.test_then_train(batch)
    assert_array_equal(answers.scores, dw.Learner.test_then_train(rows, batch).scores)
    assert digest(blocks.state()) == digest(rows.state())
    forest = blocks._mixture.pool.forest  # type: ignore[attr-defined]
    leaves = check_slots(forest)
    bound = blocks._mixture.rows.most_leaves  # type: ignore[attr-defined]
    assert len(forest.leaf) <= bound
    assert (leaves > bound - 3) == bool(settings)


# --- classes, labels and numbers out of the ordinary ------------------------------------------------------------


def test_a_class_that_comes_with_a_late_label_is_learnt() -> None:
    """Predictions made when two classes were known are learnt when there are four."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(900, 3))
    y = (x[:, 0] > 0) + 2 * (x[:, 1] > 0.3).astype(np.int64) * (np.arange(900) > 300)
    spec = dw.StreamSpec("growing", tuple(dw.Column(c) for c in "abc"))
    for settings in ({}, {"faithful": True}):
        learner = dw.learner("driftmoe", spec, **settings)
        loop = dw.Loop(learner)
        for t in range(900):
            loop.predict(dw.Batch(np.array([t]), x[t : t + 1], t))
            if t >= 50:
                loop.label(dw.Labels(np.array([t - 50]), y[t - 50 : t - 49], t))
        assert loop.quarantined == 0
        scores = learner.predict(dw.Batch(np.arange(900), x, 0.0)).scores
        assert scores.shape == (900, 4)  # type: ignore[union-attr]
        assert (scores.argmax(axis=1) == y)[500:].mean() > 0.6  # type: ignore[union-attr]


def test_more_classes_mean_fewer_leaves_within_the_same_memory() -> None:
    spec = dw.StreamSpec("growing", tuple(dw.Column(c) for c in "abc"))
    learner: Any = dw.learner("driftmoe", spec, max_mib=8)
    batch = dw.Batch(np.arange(2), np.zeros((2, 3)), 0.0, np.array([0, 300]))
    before = learner._mixture.rows.most_leaves
    learner.test_then_train(batch)
    assert learner._mixture.rows.most_leaves < before / 50
    other: Any = dw.learner("driftmoe", spec, max_mib=8)
    other.load(copy_state(learner.state()))
    assert other._mixture.rows.most_leaves == learner._mixture.rows.most_leaves


@pytest.mark.parametrize("settings", [{}, {"faithful": True}, {"scale": False}, {"scale": False, "answer": "vote"}])
def test_extreme_numbers_leave_state_and_scores_finite(settings: dict[str, Any]) -> None:
    spec, batch = table(700)
    x = np.array(batch.x)
    x[::3, 0], x[1::3, 0], x[::2, 1] = 1.7e308, -1.7e308, 5e-324
    x[:, 2] *= 1e-160
    learner = dw.learner("driftmoe", spec, **settings)
    prediction = learner.test_then_train(dw.Batch(batch.ids, x, 0.0, batch.y))
    assert np.isfinite(prediction.scores).all()  # type: ignore[arg-type]
    assert all_finite(learner.state()) is None


# --- our mode ---------------------------------------------------------------------------------------------------


def test_answer_is_the_weighted_vote_of_the_rule_that_stands_best() -> None:
    spec, batch = table(800)
    learner: Any = dw.learner("driftmoe", spec)
    learner.test_then_train(batch)
    pool, prediction = learner._mixture.pool, learner.predict(batch)
    z, p = prediction.trace["z"].astype(np.float64), prediction.trace["p"]
    answers = np.empty((len(batch), len(RULES)), np.int64)
    for r, (gamma, kappa, _) in enumerate(RULES):
        weight = pool.recency[r] ** gamma * (1 / (1 + np.exp(-z))) ** kappa
        votes = np.einsum("be,bek->bk", weight, p)
        answers[:, r] = votes.argmax(axis=1)
        if r == pool.standing.argmax():
            assert_allclose(prediction.scores, votes / votes.sum(axis=1, keepdims=True), atol=1e-6)
    assert (answers == prediction.trace["said"]).mean() > 0.999
    assert_array_equal(prediction.output, prediction.trace["said"][:, pool.standing.argmax()])


def test_rules_are_judged_by_what_they_said_when_the_row_was_new() -> None:
    """A rule that was right then gains standing, whatever it would say now."""
    spec, batch = table(300)
    learner: Any = dw.learner("driftmoe", spec)
    learner.test_then_train(batch.rows(slice(0, 200)))
    pool, row = learner._mixture.pool, batch.rows(slice(250, 251))
    prediction = learner.predict(row)
    said = np.array([[0, 1, 2, 0, 1, 2]])
    trace = {**prediction.trace, "said": said}
    before = pool.standing.copy()
    y = np.array([1])
    learner.learn(dw.Batch(row.ids, row.x, 0.0, y), dw.Prediction(prediction.output, prediction.scores, trace))
    assert_allclose(learner._mixture.pool.standing, before + 0.002 * ((said[0] == y) - before))


def test_experts_are_judged_with_the_memory_of_each_rule() -> None:
    spec, batch = table(120)
    learner: Any = dw.learner("driftmoe", spec)
    expected = np.full((len(RULES), 12), 0.5)
    for t in range(120):
        row = batch.rows(slice(t, t + 1))
        prediction = learner.predict(row)
        learner.learn(row, prediction)
        hit = prediction.trace["p"][0].argmax(axis=1) == row.y[0]  # type: ignore[index]
        for r, (_, _, rho) in enumerate(RULES):
            expected[r] = np.maximum(rho * expected[r] + (1 - rho) * hit, 1e-4)
    assert_allclose(learner._mixture.pool.recency, expected)


def test_contrast_and_balance_and_noise_do_what_they_say() -> None:
    spec, batch = table(600, missing=0)
    few = {"generalists": 1, "specialists": 1, "top_k": 1}
    all_rows, contrast, balance, noise = (
        dw.learner("driftmoe", spec, **few, **s) for s in ({}, {"contrast": True}, {"balance": True}, {"noise": True})
    )
    right = np.zeros(600, bool)
    for t in range(600):
        row = batch.rows(slice(t, t + 1))
        prediction = contrast.predict(row)
        right[t] = (prediction.trace["p"][0].argmax(axis=1) == row.y[0]).all()  # type: ignore[index]
        contrast.learn(row, prediction)
    for learner in (all_rows, balance, noise):
        learner.test_then_train(batch)
    counts = [m._mixture.pool.router.counter[ROWS] for m in (all_rows, contrast)]  # type: ignore[attr-defined]
    assert counts == [600, 600 - right.sum()]
    assert right.any()
    filled = balance._mixture.pool.router  # type: ignore[attr-defined]
    labels = np.bincount(batch.y, minlength=3)  # type: ignore[arg-type]
    last = filled.weight[filled.counter[FILLED] - 1]
    assert_allclose(last, np.clip(600 / (3 * labels[batch.y[-1]]), 0.2, 5), rtol=1e-6)  # type: ignore[index]
    seen = noise._mixture.pool.router.x  # type: ignore[attr-defined]
    assert np.abs(seen).max() <= 1.7
    assert_allclose(seen.mean(), 0, atol=0.15)
    assert_allclose(seen.std(), 1.7 / np.sqrt(3), rtol=0.1)


def test_lean_trains_few_trees() -> None:
    spec, batch = table(400)
    learner: Any = dw.learner("driftmoe", spec, lean=True)
    learner.test_then_train(batch)
    pool = learner._mixture.pool
    assert pool.trained[:10].sum() == 3 * 400
    assert_array_equal(pool.trained[10:], [400, 400])


def test_a_pool_of_linear_experts_alone_works() -> None:
    spec, batch = table(300)
    learner = dw.learner("driftmoe", spec, generalists=0, specialists=0)
    assert accuracy(learner, batch) > 40


@pytest.mark.parametrize(
    "settings",
    [
        {"generalists": -1},
        {"generalists": 0, "specialists": 0, "linear_rates": ()},
        {"top_k": 0},
        {"router_batch": 0},
        {"hidden": 1},
        {"rate": 0},
        {"linear_rates": (0.1, -1.0)},
        {"poisson": 1000},
        {"grace": 0},
        {"delta": 1},
        {"max_mib": 0},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(dw.InputError, match=next(iter(settings))):
        dw.learner("driftmoe", table(1)[0], **settings)


# --- acceptance -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_routing_wins_where_the_concept_depends_on_the_row(seed: int, first_rows: Any) -> None:
    spec, batch = first_rows("two-regimes", 10_000, seed=seed)
    lone = accuracy(dw.learner("hoeffding-tree", spec, **LONE), batch)
    assert accuracy(dw.learner("driftmoe", spec, faithful=True, seed=seed), batch) >= lone + 5
    assert accuracy(dw.learner("driftmoe", spec, seed=seed), batch) >= 89


@pytest.mark.parametrize(("name", "n"), [("led-drift", 100_000), ("sea-drift", 10_000)])
def test_faithful_is_within_a_point_of_a_lone_tree_elsewhere(name: str, n: int, first_rows: Any) -> None:
    """The note's check A: LED before its first drift, SEA with a drift every 2,500 rows."""
    spec, batch = first_rows(name, 10_000, seed=1, n=n)
    lone = accuracy(dw.learner("hoeffding-tree", spec, **LONE), batch)
    assert abs(accuracy(dw.learner("driftmoe", spec, faithful=True, seed=1), batch) - lone) <= 1
