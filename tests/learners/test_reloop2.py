"""ReLoop2 and its control: the order of things, the rule for lambda, what the memory keeps and what it forgets."""

from __future__ import annotations

from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt.learner import stack
from driftway.adapt.learners.error_memory import NeighbourMemory, SketchMemory
from driftway.adapt.learners.strength import Strength, lift, settle
from driftway.adapt.state import copy_state, digest
from numpy.testing import assert_allclose, assert_array_equal

SPEC = dw.stream("ctr-drift", seed=3).spec
SMALL: dict[str, Any] = {"warmup": 0, "arrays": 8, "bits": 4}


def rows_of(n: int, seed: int = 0, flip: bool = False) -> dw.Batch:
    """Clicks by the sign of the first of 16 columns, or against it."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 16))
    return dw.Batch(np.arange(n), x, 0.0, (rng.random(n) < np.where((x[:, 0] > 0) ^ flip, 0.9, 0.1)).astype(np.int64))


def ready(**settings: Any) -> Any:
    """ReLoop2 around a logistic model that was deployed after 300 rows."""
    learner = dw.learner("reloop2:logistic", SPEC, seed=1, **(SMALL | {"warmup": 300} | settings))
    learner.test_then_train(rows_of(300))
    assert learner.telemetry()["deployed"] == 1
    return learner


def scores(prediction: dw.Prediction) -> Any:
    assert prediction.scores is not None
    return prediction.scores


def logloss(prediction: dw.Prediction, y: Any) -> float:
    return float(-np.log(scores(prediction)[np.arange(len(y)), y].clip(1e-9)).mean())


# --- the base, bit for bit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"strength": "hedge"}, {"strength": "fixed"}, {"memory": "exact"}])
def test_an_empty_memory_answers_as_the_base(settings: dict[str, Any]) -> None:
    learner, batch = ready(**settings), rows_of(50, seed=2)
    base = learner._trained.predict(batch)
    assert_array_equal(scores(learner.predict(batch)), scores(base))
    learner.learn(batch, learner.predict(batch))
    learner.deploy()
    assert_array_equal(scores(learner.predict(batch)), scores(base))


def test_lambda_nought_answers_as_the_base() -> None:
    learner, batch = ready(strength="fixed", lam=0.0), rows_of(80, seed=2)
    learner.learn(batch, learner.predict(batch))
    assert_array_equal(scores(learner.predict(batch)), scores(learner._trained.predict(batch)))


def test_a_memory_of_errors_brings_a_frozen_base_back() -> None:
    for memory in ("sketch", "exact"):
        learner, base = ready(memory=memory), []
        found, at = [], 0
        for seed in range(10):
            batch = rows_of(200, seed=seed + 5, flip=True)
            prediction = learner.predict(batch)
            base.append(logloss(learner._trained.predict(batch), batch.y))
            found.append(logloss(prediction, batch.y))
            learner.learn(batch, prediction)
            at += len(batch)
        assert np.mean(found[3:]) < np.mean(base[3:]) - 0.5


# --- predict, then write --------------------------------------------------------------------------------------------


def test_predictions_of_a_batch_do_not_depend_on_its_labels() -> None:
    batch = rows_of(200, seed=4)
    other = dw.Batch(batch.ids, batch.x, 0.0, 1 - np.asarray(batch.y))
    one, two = ready(), ready()
    assert_array_equal(scores(one.predict(batch)), scores(two.predict(other)))


def test_late_labels_go_where_the_row_was_predicted() -> None:
    """Predictions of several batches, then their labels in another order: the memory of labels that came at once."""
    at_once, late = ready(keep="cumulative"), ready(keep="cumulative")
    parts = [rows_of(40, seed=s) for s in range(5)]
    kept = []
    for part in parts:
        kept.append(late.predict(part))
        at_once.learn(part, at_once.predict(part))
    for i in (3, 0, 4, 1, 2):
        late.learn(parts[i], kept[i])
    assert_allclose(late._memory.table, at_once._memory.table, rtol=1e-12)


def test_rows_of_a_former_base_are_not_written() -> None:
    learner, batch = ready(), rows_of(60, seed=4)
    prediction = learner.predict(batch)
    learner.deploy()
    learner.learn(batch, prediction)
    assert learner.telemetry()["memory_rows"] == 0
    assert learner.telemetry()["too_late"] == 60


def test_rows_without_a_sound_vector_are_answered_by_the_base_and_not_written() -> None:
    learner = ready()
    broken = learner._trained

    class Broken(type(broken)):  # type: ignore[misc]
        def represent(self, batch: dw.Batch) -> Any:
            h = np.ones((len(batch), 3))
            h[::2] = np.nan
            return self.predict(batch), h

    broken.__class__ = Broken
    learner.deploy()
    batch = rows_of(10, seed=1)
    prediction = learner.predict(batch)
    learner.learn(batch, prediction)
    assert learner.telemetry()["memory_rows"] == 5
    assert learner.telemetry()["unsound"] == 5
    assert_array_equal(scores(learner.predict(batch))[::2], scores(broken.predict(batch))[::2])


def test_a_wrapped_learner_gets_its_own_answer_and_trace_back() -> None:
    seen = []
    learner = dw.learner("reloop2:din", SPEC, seed=1, user="x0", item="x1", epochs=1, widths="4", base="incremental")
    inner: Any = learner._trained  # type: ignore[attr-defined]
    learn = inner.learn
    inner.learn = lambda batch, prediction: (seen.append(prediction), learn(batch, prediction))
    batch = rows_of(8)
    expected = inner.predict(batch)
    learner.learn(batch, learner.predict(batch))
    assert_array_equal(scores(seen[0]), scores(expected))
    assert_array_equal(seen[0].trace["past"], expected.trace["past"])


# --- what the memory keeps ------------------------------------------------------------------------------------------


def written(memory: SketchMemory, n: int, seed: int = 0) -> SketchMemory:
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(n, 5)).astype(np.float32)
    memory.write(memory.address(h), rng.integers(0, 2, (n, 1)).astype(float), rng.random((n, 1)))
    return memory


def test_a_ring_drops_its_oldest_slot_whole() -> None:
    ring = SketchMemory(4, 3, keep="ring", slot=10, slots=3)
    for n, kept in ((10, 10), (15, 25), (4, 29), (1, 20), (30, 20)):
        written(ring, n)
        assert ring.rows == kept
        assert ring.table[..., 0].sum((0, 2)).tolist() == [kept] * 4


def test_decay_fades_by_slots() -> None:
    memory = written(SketchMemory(4, 3, keep="decay", slot=10, rho=0.5), 30)
    assert memory.rows == pytest.approx(10 * (0.5 + 0.25 + 0.125))
    for _ in range(30):
        written(memory, 20)
    assert memory.rows == pytest.approx(10, rel=1e-6)
    assert np.isfinite(memory.table.numpy()).all()


@pytest.mark.parametrize("settings", [{}, {"keep": "ring", "slot": 7, "slots": 3}, {"keep": "decay", "slot": 7}])
def test_writes_do_not_depend_on_how_rows_are_cut(settings: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    h, y, said = rng.normal(size=(40, 5)).astype(np.float32), rng.integers(0, 2, (40, 1)) * 1.0, rng.random((40, 1))
    whole, rows = SketchMemory(4, 3, **settings), SketchMemory(4, 3, **settings)
    at = whole.address(h)
    whole.write(at, y, said)
    for i in range(40):
        rows.write({k: v[i : i + 1] for k, v in at.items()}, y[i : i + 1], said[i : i + 1])
    assert_allclose(whole.table, rows.table, rtol=1e-12)
    assert digest(whole.state()["weights"]) == digest(rows.state()["weights"])


@pytest.mark.parametrize("settings", [{}, {"keep": "ring", "slot": 10, "slots": 2}])
def test_two_memories_add_up(settings: dict[str, Any]) -> None:
    one, other = (written(SketchMemory(4, 3, **settings), 25, seed) for seed in (0, 1))
    sums = one.table.sum(0) + other.table.sum(0)
    one.merge(other)
    assert_allclose(one.table.sum(0), sums)
    assert one.rows == (30 if settings else 50)
    with pytest.raises(ValueError, match="do not add up"):
        one.merge(SketchMemory(4, 2, **settings))


def test_the_exact_memory_finds_the_nearest_of_the_last_rows() -> None:
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.default_rng(0)
    h, query = rng.normal(size=(90, 6)).astype(np.float32), rng.normal(size=(20, 6)).astype(np.float32)
    memory = NeighbourMemory(50, 7)
    for part in np.split(np.arange(90), [20, 45, 48]):
        memory.write(memory.address(h[part]), np.zeros((len(part), 1)), np.zeros((len(part), 1)))
    near, cosine = memory.nearest(memory.address(query)["place"])
    oracle = NearestNeighbors(n_neighbors=7, metric="cosine").fit(h[-50:])
    distance, index = oracle.kneighbors(query)
    assert_allclose(cosine, 1 - distance, atol=1e-6)
    last = memory._vectors
    assert_allclose(last[near], (h / np.linalg.norm(h, axis=1, keepdims=True))[-50:][index], atol=1e-6)


def test_the_exact_memory_agrees_with_faiss() -> None:
    faiss = pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    memory = NeighbourMemory(500, 9)
    at = memory.address(rng.normal(size=(500, 12)).astype(np.float32))
    memory.write(at, np.zeros((500, 1)), np.zeros((500, 1)))
    index = faiss.IndexFlatIP(12)
    index.add(at["place"])
    query = memory.address(rng.normal(size=(30, 12)).astype(np.float32))["place"]
    near, cosine = memory.nearest(query)
    theirs = index.search(query, 9)
    assert_array_equal(near, theirs[1])
    assert_allclose(cosine, theirs[0], atol=1e-6)


# --- lambda ---------------------------------------------------------------------------------------------------------


def drawn(n: int, truth: float, seed: int = 0) -> tuple[Any, Any, Any]:
    """Answers p, directions u, and clicks of probability sigmoid(logit p + truth u)."""
    rng = np.random.default_rng(seed)
    p, u = rng.uniform(0.1, 0.9, (n, 1)), rng.normal(size=(n, 1, 1))
    q = settle(lift(p, "click") + truth * u[:, 0], "click")
    return p, u, (rng.random(n) < q[:, 0]).astype(np.int64)


@pytest.mark.parametrize("truth", [0.0, 0.5, 1.2])
def test_lambda_goes_where_the_log_loss_is_least(truth: float) -> None:
    rule = Strength("click", 1, fade=0.999, cap=1.5, mix=False)
    rule.learn(*drawn(8000, truth))
    assert rule.lam[0] == pytest.approx(truth, abs=0.15)


def test_lambda_by_hand() -> None:
    """One row: p = 1/2, u = 2, y = 1. g = -1, h = 1/4 * 4 = 1, H = 6 * fade: lambda = 1 / max(H, 5)."""
    rule = Strength("click", 1, fade=1.0, cap=1.5, mix=False)
    rule.learn(np.array([[0.5]]), np.array([[[2.0]]]), np.array([1]))
    assert rule.hess[0] == 6.0
    assert rule.lam[0] == pytest.approx(1 / 6)
    assert rule.answer(np.array([[0.5]]), np.array([[[2.0]]]))[0, 0] == pytest.approx(1 / (1 + np.exp(-1 / 3)))


def test_two_classes_are_clicks() -> None:
    p, u, y = drawn(500, 0.7)
    click, both = (Strength(kind, 1, fade=0.99, cap=1.5, mix=False) for kind in ("click", "class"))
    click.learn(p, u, y)
    both.learn(np.c_[1 - p, p], np.concatenate([np.zeros_like(u), u], 2), y)
    assert_allclose(both.lam, click.lam, rtol=1e-9)


def test_values_are_followed_in_their_own_unit() -> None:
    rng = np.random.default_rng(0)
    found = []
    for unit in (1.0, 1000.0):
        said, u = rng.normal(size=(3000, 1)) * unit, rng.normal(size=(3000, 1, 1)) * unit
        rule = Strength("value", 1, fade=0.999, cap=1.5, mix=False)
        rule.learn(said, u, (said + 0.8 * u[:, 0])[:, 0] + rng.normal(size=3000) * unit)
        found.append(rule.lam[0])
    assert found == pytest.approx([0.8, 0.8], abs=0.1)


def test_the_hedge_trusts_who_was_right() -> None:
    p, u, y = drawn(2000, 1.0)
    rule = Strength("click", 2, fade=0.999, cap=1.5, mix=True)
    rule.learn(p, np.concatenate([u, -u], 1), y)
    assert rule.trust[1] > 0.9
    assert rule.trust.sum() == pytest.approx(1)
    still = Strength("click", 2, fade=0.999, cap=1.5, mix=True)
    p, u, y = drawn(2000, 0.0)
    still.learn(p, np.concatenate([u, -u], 1), y)
    q = still.answer(p, np.concatenate([u, -u], 1))
    assert np.abs(q - p).mean() < 0.05


# --- several classes, values, Platt ---------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", ["newton", "hedge", "fixed"])
def test_several_classes_and_values(strength: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(900, 4))
    classes = dw.StreamSpec("c", tuple(map(dw.Column, "abcd")), classes=("k", "l", "m"))
    values = dw.StreamSpec("v", tuple(map(dw.Column, "abcd")), target="regression")
    late = np.arange(900) >= 300
    y = (x[:, 0] > 0).astype(np.int64) + late * (x[:, 1] > 0)
    t = 3 * x[:, 0] + 5 * late
    for spec, target in ((classes, y), (values, t)):
        learner: Any = dw.learner("reloop2:logistic", spec, seed=1, **(SMALL | {"warmup": 300, "strength": strength}))
        ours = learner.test_then_train(dw.Batch(np.arange(900), x, 0.0, target))
        base = learner._trained.predict(dw.Batch(np.arange(900), x, 0.0))
        last = slice(500, 900)
        if spec is classes:
            assert_allclose(scores(ours).sum(1), 1)
            assert logloss(ours.rows(last), y[last]) < logloss(base.rows(last), y[last]) - 0.1
        else:
            assert np.abs(ours.output - t)[last].mean() < np.abs(base.output - t)[last].mean() - 0.5


def test_platt_finds_scale_and_shift() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.1, 0.9, 6000)
    z = 0.5 * np.log(p / (1 - p)) + 1
    y = (rng.random(6000) < 1 / (1 + np.exp(-z))).astype(np.int64)
    learner: Any = dw.learner("platt:majority", SPEC, warmup=0, forget=1.0)
    for i in range(6000):
        learner._learn_class(np.array([1 - p[i], p[i]]), int(y[i]))
    answer = np.exp(learner._lifted(np.c_[1 - p, p]))
    answer /= answer.sum(1, keepdims=True)
    assert_allclose(answer[:, 1], 1 / (1 + np.exp(-z)), atol=0.03)


# --- names ----------------------------------------------------------------------------------------------------------


def test_names_and_parameters_of_both() -> None:
    learner = dw.learner("deepfm+reloop2", SPEC, arrays=4, bits=3, epochs=0, lr=0.01)
    assert type(learner._trained).__name__ == "ClickLearner"  # type: ignore[attr-defined]
    assert learner.params.lr == 0.01
    twice = dw.learner("er+migu+reloop2", SPEC, model="mlp:4", memory="exact", base_memory=7)
    assert twice._trained.memory.capacity == 7  # type: ignore[attr-defined]
    with pytest.raises(dw.InputError, match="no column 'town'"):
        dw.learner("reloop2:logistic", SPEC, code="town")
    with pytest.raises(dw.InputError, match="reloop2:logistic cannot be wrapped once more"):
        dw.learner("reloop2:reloop2:logistic", SPEC)
    assert dw.learner("platt:reloop2:logistic", SPEC, arrays=4).params.arrays == 4


@pytest.mark.parametrize("settings", [{"base": "incremental"}, {"renew": 500}])
def test_a_base_that_cannot_be_copied_is_one_line(settings: dict[str, Any]) -> None:
    pytest.importorskip("river")
    with pytest.raises(dw.InputError, match="need a copy of the base"):
        dw.learner("reloop2:river:linear_model.LogisticRegression", SPEC, **settings)
    dw.learner("reloop2:river:linear_model.LogisticRegression", SPEC, arrays=4)


def test_the_code_of_a_column_tells_users_apart() -> None:
    spec = dw.StreamSpec("u", (dw.Column("user", tuple("abcdefgh")), dw.Column("x")), classes=("n", "y"))
    rng = np.random.default_rng(0)
    user = rng.integers(0, 8, 2000)
    y = (rng.random(2000) < np.where(user % 2, 0.9, 0.1)).astype(np.int64)
    batch = dw.Batch(np.arange(2000), np.c_[user, rng.normal(size=2000)], 0.0, y)
    losses = {}
    for code in ("", "user"):
        learner = dw.learner("reloop2:majority", spec, warmup=100, code=code, arrays=8, bits=6)
        parts = []
        for i in range(0, 2000, 100):
            part = batch.rows(slice(i, i + 100))
            parts.append(learner.predict(part))
            learner.learn(part, parts[-1])
        losses[code] = logloss(stack(parts).rows(slice(500, None)), y[500:])
    assert losses["user"] < 0.5


def test_saved_within_late_labels_and_continued() -> None:
    batch, later = rows_of(50, seed=4), rows_of(50, seed=5)
    one, other = ready(strength="hedge"), ready(strength="hedge")
    prediction = one.predict(batch)
    other.load(copy_state(one.state()))
    for learner in (one, other):
        learner.learn(batch, prediction)
    assert digest(one.state()) == digest(other.state())
    assert_array_equal(scores(one.predict(later)), scores(other.predict(later)))
