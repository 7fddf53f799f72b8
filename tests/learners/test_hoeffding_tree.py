"""The learner hoeffding-tree against river's HoeffdingTreeClassifier, its adaptive variant, and its edges.

What differs from river, all of it (tests/models/test_hoeffding.py takes the differences away and demands equality):
rounding, where a leaf inherited fractions ("weight since the last attempt >= grace") or two splits gain the same; on
ties a leaf's scoreboard takes the lowest class, river's the class it saw first; a class without weight in a leaf has
no likelihood there, in river's naive Bayes it has 1; a row whose value is missing goes where most rows went, while
river counts the weight that the leaves below hold now, and lets no leaf split on such a row.
"""

from __future__ import annotations

from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt.state import all_finite, digest, state_bytes
from numpy.testing import assert_array_equal
from river import tree

ROWS = 20_000
LEAVES = {"majority": "mc", "bayes": "nb", "adaptive": "nba"}


def river_answers(batch: dw.Batch, **settings: Any) -> np.ndarray:
    """River's tree, tested and then trained row by row; class 0 before the first row, the lowest class on ties."""
    model = tree.HoeffdingTreeClassifier(**settings)
    answers = np.zeros(len(batch), np.int64)
    for i, (row, label) in enumerate(zip(batch.x.tolist(), batch.y.tolist())):  # type: ignore[union-attr]
        x = dict(enumerate(row))
        scores = model.predict_proba_one(x)
        answers[i] = max(scores, key=scores.get) if scores else 0
        model.learn_one(x, label)
    return answers


@pytest.mark.parametrize("grace", [200, 50])
@pytest.mark.parametrize("name", ["electricity", "sea"])
def test_agrees_with_river_on_real_data(name: str, grace: int, first_rows: Any) -> None:
    spec, batch = first_rows(name, ROWS)
    answers = dw.learner("hoeffding-tree", spec, grace=grace).test_then_train(batch).output
    theirs = river_answers(batch, grace_period=grace)
    assert (answers == theirs).mean() >= 0.99
    assert abs((answers == batch.y).mean() - (theirs == batch.y).mean()) < 0.002


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_kind_of_leaf_agrees_with_river(leaf: str, first_rows: Any) -> None:
    spec, batch = first_rows("sea-drift", 5_000)
    answers = dw.learner("hoeffding-tree", spec, grace=50, leaf=leaf).test_then_train(batch).output
    theirs = river_answers(batch, grace_period=50, leaf_prediction=LEAVES[leaf])
    assert (answers == theirs).mean() >= 0.99


def abrupt(n: int = 8_000) -> tuple[dw.StreamSpec, dw.Batch]:
    """The labels turn round half way."""
    rng = np.random.default_rng(5)
    x = rng.uniform(-1, 1, (n, 4))
    y = (x[:, 0] + x[:, 1] > 0).astype(np.int64)
    y[n // 2 :] = 1 - y[n // 2 :]
    spec = dw.StreamSpec("abrupt", tuple(dw.Column(f"x{j}") for j in range(4)), classes=("n", "y"))
    return spec, dw.Batch(np.arange(n), x, 0.0, y)


def test_adaptive_replaces_its_tree_after_an_abrupt_drift(check_slots: Any) -> None:
    spec, batch = abrupt()
    plain = dw.learner("hoeffding-tree", spec, grace=50)
    adaptive: Any = dw.learner("hoeffding-tree", spec, grace=50, adaptive=True)
    hits = [(m.test_then_train(batch).output == batch.y)[len(batch) // 2 :].mean() for m in (plain, adaptive)]
    assert adaptive.telemetry()["resets"] >= 1
    assert plain.telemetry()["resets"] == 0
    assert hits[1] > hits[0] + 0.05
    check_slots(adaptive.rows.pool.forest)


def test_adaptive_leaves_its_tree_alone_where_nothing_drifts(coin_flips: Any) -> None:
    spec, batch = coin_flips
    adaptive = dw.learner("hoeffding-tree", spec, adaptive=True)
    adaptive.test_then_train(batch)
    assert adaptive.telemetry()["resets"] == 0


def test_coin_flips_stay_coin_flips(coin_flips: Any) -> None:
    spec, batch = coin_flips
    for settings in ({}, {"grace": 20, "delta": 0.1}, {"adaptive": True}):
        answers = dw.learner("hoeffding-tree", spec, **settings).test_then_train(batch).output
        assert abs((answers == batch.y).mean() - 0.5) <= 0.02


def test_at_the_memory_bound_the_tree_stops_growing_and_goes_on_learning(first_rows: Any, check_slots: Any) -> None:
    spec, batch = first_rows("agrawal-drift", 8_000, n=40_000)
    grown: Any = dw.learner("hoeffding-tree", spec, grace=20, delta=0.1)
    bound: Any = dw.learner("hoeffding-tree", spec, grace=20, delta=0.1, max_mib=0.1)
    for learner in (grown, bound):
        learner.test_then_train(batch.rows(slice(0, 6_000)))
    assert check_slots(grown.rows.pool.forest) > check_slots(bound.rows.pool.forest) > 50
    assert state_bytes(bound.state()) < 0.15 * 2**20 < state_bytes(grown.state())
    size, before = state_bytes(bound.state()), digest(bound.state())
    answers = bound.test_then_train(batch.rows(slice(6_000, None))).output
    assert state_bytes(bound.state()) == size
    assert digest(bound.state()) != before
    assert (answers == batch.y[6_000:]).mean() > 0.6


@pytest.mark.parametrize("settings", [{"max_mib": 0.1}, {"max_mib": 0.1, "adaptive": True}, {}])
def test_rows_and_blocks_give_the_same_bits_while_memory_grows_and_at_its_bound(
    settings: dict[str, Any], first_rows: Any
) -> None:
    spec, batch = first_rows("agrawal-drift", 3_000, n=4_000)
    blocks, rows = (dw.learner("hoeffding-tree", spec, grace=20, delta=0.1, **settings) for _ in range(2))
    answers = blocks.test_then_train(batch)
    singly = dw.Learner.test_then_train(rows, batch)
    assert_array_equal(answers.scores, singly.scores)
    assert digest(blocks.state()) == digest(rows.state())


def test_a_class_met_on_the_way_equals_one_known_from_the_start() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(1_500, 3))
    y = (x[:, 0] > 0) + 2 * (x[:, 1] > 0.5) * (np.arange(1_500) > 500)
    batch, columns = dw.Batch(np.arange(1_500), x, 0.0, y), tuple(dw.Column(c) for c in "abc")
    known = dw.learner("hoeffding-tree", dw.StreamSpec("k", columns, classes=tuple("pqrs")), grace=50)
    grown = dw.learner("hoeffding-tree", dw.StreamSpec("g", columns), grace=50)
    assert_array_equal(known.test_then_train(batch).output, grown.test_then_train(batch).output)
    assert digest(known.state()) == digest(grown.state())


def test_open_column_is_split_by_the_counters_that_the_rows_go_to() -> None:
    """Codes 6, 70 and 134 share a counter of an open column, so they must share a branch."""
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 192, 4_000)
    y = (codes % 64 == 6).astype(np.int64)
    y[rng.random(4_000) < 0.5] = 1
    spec = dw.StreamSpec("open", (dw.Column("town", ("x",), open=True),), classes=("n", "y"))
    learner = dw.learner("hoeffding-tree", spec, grace=50, delta=0.5, tau=0.5, leaf="majority", binary=True)
    learner.test_then_train(dw.Batch(np.arange(4_000), codes[:, None].astype(np.float64), 0.0, y))
    assert learner.telemetry()["leaves"] > 1
    alike = learner.predict(dw.Batch(np.arange(3), np.array([[6.0], [70.0], [134.0]]), 0.0)).scores
    assert alike is not None
    assert_array_equal(alike, alike[[0, 0, 0]])


def test_max_depth_is_the_level_of_the_deepest_leaf(first_rows: Any) -> None:
    spec, batch = first_rows("sea-drift", 5_000)
    for depth in (0, 1, 2):
        learner: Any = dw.learner("hoeffding-tree", spec, grace=20, delta=0.1, max_depth=depth)
        learner.test_then_train(batch)
        assert learner.telemetry()["leaves"] == 2**depth


def test_extreme_numbers_leave_the_state_finite() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(600, 3)), rng.integers(0, 2, 600)
    x[::3, 0], x[1::3, 0], x[::2, 1], x[:, 2] = 1.7e308, -1.7e308, 5e-324, 1e-160 * x[:, 2]
    spec = dw.StreamSpec("far", tuple(dw.Column(c) for c in "abc"), classes=("n", "y"))
    for leaf in LEAVES:
        learner = dw.learner("hoeffding-tree", spec, grace=20, delta=0.5, leaf=leaf)
        scores = learner.test_then_train(dw.Batch(np.arange(600), x, 0.0, y)).scores
        assert np.isfinite(scores).all()
        assert all_finite(learner.state()) is None


def test_how_an_array_lies_in_memory_changes_nothing(first_rows: Any) -> None:
    spec, batch = first_rows("sea-drift", 600)
    x, y = np.asfortranarray(batch.x), np.repeat(batch.y, 2)[::2]
    for array in (x, y):
        array.setflags(write=False)
    plain, odd = (dw.learner("hoeffding-tree", spec, grace=20) for _ in range(2))
    assert_array_equal(plain.test_then_train(batch).scores, odd.test_then_train(dw.Batch(batch.ids, x, 0.0, y)).scores)
    assert_array_equal(plain.predict(batch).scores, odd.predict(dw.Batch(batch.ids, x, 0.0)).scores)


@pytest.mark.parametrize(
    "settings", [{"grace": 0}, {"delta": 0}, {"delta": 1}, {"tau": -1}, {"max_depth": -1}, {"max_mib": 0}, {"drift": 2}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], first_rows: Any) -> None:
    spec, _ = first_rows("sea-drift", 10)
    with pytest.raises(dw.InputError, match=next(iter(settings))):
        dw.learner("hoeffding-tree", spec, **settings)
