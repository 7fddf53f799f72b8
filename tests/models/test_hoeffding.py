"""Hoeffding trees in plain arrays: equal to river's where conventions are the same, and worked by hand.

River's tree is used as it is for weighted rows. For missing values and ties ``Straight`` below changes some of its
conventions to ours; then every answer must be the same, so that nothing else differs. (Left is rounding: whether 49 or
50 rows came since the last attempt, and which of two splits of equal gain is the better one.)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from driftway.models.arrays import from_dict, to_dict
from driftway.models.compiled import compiled
from driftway.models.hoeffding import (
    ADAPTIVE,
    BAYES,
    FREE_LEAVES,
    MAJORITY,
    WEIGHT,
    Forest,
    Rules,
    enlarged,
    leaf_bytes,
    new_forest,
    predict_tree,
    top,
    with_classes,
    with_room,
    with_trees,
)
from driftway.models.splitting import entropy, gain, has_room, learn_tree
from numpy.testing import assert_allclose, assert_array_equal
from river import tree
from river.tree.nodes.branch import DTBranch

LEAVES = {MAJORITY: "mc", BAYES: "nb", ADAPTIVE: "nba"}
FAN = [4, 0, 3, 0, 12]


@compiled
def grow(
    forest: Forest, rules: Rules, t: int, x: Any, y: Any, weight: Any, start: int, room: int, answers: Any, out: Any
) -> int:
    """Test, then train, tree t row by row from ``start`` on; returns where room ran out."""
    scratch = np.empty(out.shape[1])
    for b in range(start, x.shape[0]):
        if not has_room(forest, room):
            return b
        known = predict_tree(forest, rules, t, x[b], out[b])
        answers[b] = top(out[b]) if known else 0
        learn_tree(forest, rules, t, x[b], y[b], weight[b], scratch)
    return x.shape[0]


@compiled
def impurity(weights: Any) -> float:
    return entropy(weights)


@compiled
def gained(before: float, branches: Any, min_branch: float) -> float:
    return gain(before, branches, min_branch)


def grown(
    rows: tuple[Any, Any],
    rules: Rules,
    fan: list[int] = FAN,
    weight: Any = None,
    most: int = 100_000,
    forest: Forest | None = None,
    t: int = 0,
) -> tuple[Any, Any, Forest]:
    """Answers, scores and the forest after all rows."""
    x, y = rows
    weight = np.ones(len(y)) if weight is None else weight
    forest = new_forest([len(fan)], fan, int(y.max()) + 1, 0) if forest is None else forest
    answers, out = np.zeros(len(y), np.int64), np.zeros((len(y), forest.counts.shape[1]))
    at = 0
    while at < len(y):
        forest, room = with_room(forest, 4 + max(fan), most)
        at = grow(forest, rules, t, x, y, weight, at, room, answers, out)
    return answers, out, forest


def mixed_rows(n: int, missing: float = 0.0, seed: int = 1) -> tuple[Any, Any]:
    """Three classes decided by nominal columns 0, 2 and 4 of FAN and numeric column 1; a tenth of labels is noise."""
    rng = np.random.default_rng(seed)
    codes = [rng.integers(0, k, n) for k in (4, 3, 12)]
    a, b = rng.normal(size=(2, n))
    y = (rng.permutation(48).reshape(4, 12) % 3)[codes[0], codes[2]]
    y = np.where(codes[1] == 2, (y + (a > 0)) % 3, y)
    y = np.where(rng.random(n) < 0.1, rng.integers(0, 3, n), y)
    x = np.c_[codes[0], a, codes[1], b, codes[2]].astype(np.float64)
    x[rng.random(x.shape) < missing] = np.nan
    return x, y


def river_answers(model: Any, rows: tuple[Any, Any], nominal: tuple[int, ...] = (), weight: Any = None) -> Any:
    """As ``grown``, by river; a missing value is a missing key."""
    x, y = rows
    answers = np.zeros(len(y), np.int64)
    for i, row in enumerate(x.tolist()):
        known = {j: int(v) if j in nominal else v for j, v in enumerate(row) if v == v}
        scores = model.predict_proba_one(known)
        answers[i] = max(scores, key=scores.get) if scores else 0
        model.learn_one(known, int(y[i]), w=1.0 if weight is None else weight[i])
    return answers


class Straight(tree.HoeffdingTreeClassifier):
    """River's tree with our conventions: a branch counts the weight that passed through it, a missing value follows
    the heaviest branch (the lowest category on ties), every row may set off a split attempt, and a class without weight
    is no class of the leaf (river's naive Bayes gives it likelihood 1)."""

    def _weight(self, node: Any) -> float:
        seen: float = self.passed.get(id(node), (node, node.total_weight))[1]
        return seen

    def _pass(self, node: Any, w: float) -> None:
        self.passed[id(node)] = (node, self._weight(node) + w)

    def _new_leaf(self, initial_stats: Any = None, parent: Any = None) -> Any:
        known = None if initial_stats is None else {c: w for c, w in initial_stats.items() if w > 0}
        return super()._new_leaf(known, parent)

    @property
    def passed(self) -> dict[int, tuple[Any, float]]:
        return self.__dict__.setdefault("_passed", {})

    def _branch(self, node: Any, x: dict[int, Any], learning: bool) -> int:
        try:
            return int(node.branch_no(x))
        except KeyError:
            if learning and node.feature in x:
                node.add_child(x[node.feature], self._new_leaf(parent=node))
                return len(node.children) - 1
        weights = [self._weight(child) for child in node.children]
        if node.max_branches() == 2:
            return 1 if weights[0] < weights[1] else 0
        return max(sorted(range(len(weights)), key=node._r_mapping.__getitem__), key=weights.__getitem__)

    def learn_one(self, x: dict[int, Any], y: int, *, w: float = 1.0) -> None:
        self.classes.add(y)
        if self._root is None:
            self._root, self._n_active_leaves = self._new_leaf(), 1
        parent, branch, node = None, None, self._root
        self._pass(node, w)
        while isinstance(node, DTBranch):
            parent, branch = node, self._branch(node, x, True)
            node = node.children[branch]
            self._pass(node, w)
        node.learn_one(x, y, w=w, tree=self)
        weight = node.total_weight
        if weight - node.last_split_attempt_at >= self.grace_period:
            self._attempt_to_split(node, parent, branch)
            node.last_split_attempt_at = weight
            now = self._root if parent is None else parent.children[branch]
            self.passed[id(now)] = (now, self._weight(node))

    def predict_proba_one(self, x: dict[int, Any]) -> dict[int, float]:
        scores = dict.fromkeys(sorted(self.classes), 0.0)
        node = self._root
        while isinstance(node, DTBranch):
            node = node.children[self._branch(node, x, False)]
        return scores if node is None else scores | node.prediction(x, tree=self)


# --- beside river -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("river_takes_the_lowest_on_ties")
@pytest.mark.parametrize("missing", [0.0, 0.1])
@pytest.mark.parametrize("multiway", [True, False])
@pytest.mark.parametrize("leaf", LEAVES)
def test_every_answer_is_rivers_once_ties_and_missing_values_are_treated_alike(
    leaf: int, multiway: bool, missing: float
) -> None:
    rows = mixed_rows(4_000, missing)
    delta = 1e-3 if multiway else 0.2
    answers, _, forest = grown(rows, Rules(grace=50.0, delta=delta, leaf=leaf, multiway=multiway))
    model = Straight(
        grace_period=50,
        delta=delta,
        leaf_prediction=LEAVES[leaf],
        binary_split=not multiway,
        nominal_attributes=[0, 2, 4],
    )
    assert_array_equal(answers, river_answers(model, rows, (0, 2, 4)))
    assert (forest.node_value[:, WEIGHT] > 0).sum() == model.n_nodes > 6


@pytest.mark.parametrize("leaf", LEAVES)
def test_nominal_columns_agree_with_river_as_it_is(leaf: int) -> None:
    rows = mixed_rows(4_000)
    answers = grown(rows, Rules(grace=50.0, leaf=leaf))[0]
    model = tree.HoeffdingTreeClassifier(grace_period=50, leaf_prediction=LEAVES[leaf], nominal_attributes=[0, 2, 4])
    assert (answers == river_answers(model, rows, (0, 2, 4))).mean() >= 0.99


def test_missing_values_lose_nothing_beside_river_as_it_is() -> None:
    rows = mixed_rows(4_000, missing=0.1)
    answers = grown(rows, Rules(grace=50.0))[0]
    model = tree.HoeffdingTreeClassifier(grace_period=50, nominal_attributes=[0, 2, 4])
    theirs = river_answers(model, rows, (0, 2, 4))
    assert (answers == theirs).mean() > 0.85
    assert (answers == rows[1]).mean() > (theirs == rows[1]).mean() - 0.01


@pytest.mark.parametrize("whole", [True, False])
def test_weighted_rows_agree_with_river(whole: bool) -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(4_000, 5))
    y = (x[:, 0] + x[:, 1] * x[:, 2] > 0).astype(np.int64)
    weight = rng.poisson(3.0, 4_000) + 1.0 if whole else rng.exponential(2.0, 4_000) + 0.1
    answers, _, forest = grown((x, y), Rules(grace=100.0, delta=1e-3), [0] * 5, weight)
    model = tree.HoeffdingTreeClassifier(grace_period=100, delta=1e-3)
    assert (answers == river_answers(model, (x, y), (), weight)).mean() >= 0.99
    assert forest.used[FREE_LEAVES] < len(forest.leaf) - 3


def test_a_row_of_weight_three_is_three_rows_to_the_statistics() -> None:
    x, y = mixed_rows(60)
    rules = Rules(grace=1e9)
    once = grown((x, y), rules, weight=np.full(60, 3.0))[2]
    thrice = grown((np.repeat(x, 3, axis=0), np.repeat(y, 3)), rules)[2]
    assert_allclose(once.counts, thrice.counts)
    assert_allclose(once.categories, thrice.categories)
    assert_allclose(once.observer, thrice.observer, atol=1e-9)


# --- by hand ----------------------------------------------------------------------------------------------------


def test_entropy_and_gain_by_hand() -> None:
    assert impurity(np.array([4.0, 4.0])) == 1.0
    assert impurity(np.array([0.0, 7.0, 0.0])) == 0.0
    assert impurity(np.zeros(3)) == 0.0
    assert_allclose(impurity(np.array([1.0, 3.0])), 0.8112781245)
    # {4, 4} into {4, 1} and {0, 3}: 1 - 5/8 H(1/5) = 1 - 5/8 * 0.7219280949
    assert_allclose(gained(1.0, np.array([[4.0, 1.0], [0.0, 3.0]]), 0.01), 0.5487949407)
    assert gained(1.0, np.array([[4.0, 4.0], [0.0, 0.0]]), 0.01) == -np.inf
    assert gained(1.0, np.array([[400.0, 400.0], [1.0, 0.0]]), 0.01) == -np.inf
    assert gained(0.0, np.zeros((2, 2)), 0.01) == -np.inf


def test_splits_when_the_bound_allows_and_not_a_row_before() -> None:
    """One feature is the class, the other tells nothing: the lead is 1 bit at every 4 rows, and eps < 1 from 9 on."""
    eps = [math.sqrt(math.log(1e7) / (2 * n)) for n in (8, 9)]
    assert eps[0] > 1 > eps[1]
    x = np.array([[i % 2, i // 2 % 2] for i in range(12)], np.float64)
    leaves = {}
    for n in (8, 12):
        forest = grown((x[:n], np.arange(n) % 2), Rules(grace=4.0), [0, 0])[2]
        leaves[n] = int(len(forest.leaf) - forest.used[FREE_LEAVES])
    assert leaves == {8: 1, 12: 2}
    assert forest.node[forest.root[0], 1] == 0
    assert 0 < forest.node_value[forest.root[0], 0] < 1


def test_naive_bayes_by_hand() -> None:
    """Two Gaussians: class 0 from 0, 2; class 1 from 3, 5; sample variance 2 both, priors 1/2."""
    x, y = np.array([[0.0], [2.0], [3.0], [5.0], [2.5], [1.0], [np.nan]]), np.array([0, 0, 1, 1, 0, 0, 0])
    weight = np.array([1.0, 1, 1, 1, 0, 0, 0])
    out = grown((x, y), Rules(leaf=BAYES), [0], weight)[1]
    assert_allclose(out[4], [0.5, 0.5])
    ratio = math.exp((-((1 - 1) ** 2) + (1 - 4) ** 2) / 4)
    assert_allclose(out[5], [ratio / (1 + ratio), 1 / (1 + ratio)])
    assert_allclose(out[6], [0.5, 0.5])


def test_variance_has_a_floor() -> None:
    x, y = np.array([[0.0], [0.0], [1.0], [1.0], [0.4]]), np.array([0, 0, 1, 1, 0])
    forest = new_forest([1], [0], 2, 0)
    assert_allclose(grown((x, y), Rules(leaf=BAYES), [0], forest=forest)[1][4], [0.5, 0.5])  # no spread says nothing
    forest = new_forest([1], [0], 2, 0)
    forest.floor[0] = 0.5
    odds = math.exp((0.6**2 - 0.4**2) / (2 * 0.5))
    assert_allclose(grown((x, y), Rules(leaf=BAYES), [0], forest=forest)[1][4, 0], odds / (1 + odds))


def test_a_missing_value_goes_where_most_rows_went() -> None:
    x = np.r_[np.zeros(60), np.ones(40)][np.random.default_rng(0).permutation(100), None]
    y = x[:, 0].astype(np.int64)
    _, _, forest = grown((x, y), Rules(grace=20.0, delta=0.1), [0])
    answers, out, _ = grown((np.full((1, 1), np.nan), np.array([0])), Rules(), [0], forest=forest)
    assert answers[0] == 0
    assert out[0, 0] == 1.0


# --- the arrays -------------------------------------------------------------------------------------------------


def test_classes_that_come_later_change_nothing_but_the_width() -> None:
    x, y = mixed_rows(1_000)
    narrow, _, small = grown((x, np.minimum(y, 1)), Rules(grace=50.0))
    wide_forest = new_forest([len(FAN)], FAN, 4, 0)
    wide, scores, big = grown((x, np.minimum(y, 1)), Rules(grace=50.0), forest=wide_forest)
    assert_array_equal(narrow, wide)
    assert not scores[:, 2:].any()
    for a, b in zip(with_classes(small, 4), big):
        assert_array_equal(a, b)
    rest = mixed_rows(500, seed=2)
    one, other = (grown(rest, Rules(grace=50.0), forest=f)[1] for f in (with_classes(small, 4), big))
    assert_array_equal(one, other)


def test_room_doubles_until_the_bound_and_then_growth_ends() -> None:
    rules = Rules(grace=5.0, delta=0.5, tau=0.9, multiway=False)
    answers, _, forest = grown(mixed_rows(4_000), rules, most=40)
    assert len(forest.leaf) == 40
    assert len(forest.leaf) - forest.used[FREE_LEAVES] in (39, 40)
    assert (answers == mixed_rows(4_000)[1])[2_000:].mean() > 0.5
    assert with_room(forest, 10, 40) == (forest, 0)
    roomy, room = with_room(forest, 10, 1_000)
    assert (room, len(roomy.leaf)) == (10, 80)


def test_enlarging_keeps_every_bit_and_hands_out_low_slots_first() -> None:
    _, _, forest = grown(mixed_rows(500), Rules(grace=20.0, delta=0.1, multiway=False))
    big = enlarged(forest, 10_000)
    for name in ("leaf", "counts", "observer", "categories", "node", "node_value"):
        old, new = getattr(forest, name), getattr(big, name)
        assert_array_equal(old, new[: len(old)])
        assert not new[len(old) :].any()
    taken = len(forest.leaf) - forest.used[FREE_LEAVES]
    assert len(big.leaf) - big.used[FREE_LEAVES] == taken
    assert sorted(big.free_leaves[: big.used[FREE_LEAVES]])[-1] == len(big.leaf) - 1
    rest = mixed_rows(500, seed=2)
    one, other = (grown(rest, Rules(grace=20.0, delta=0.1, multiway=False), forest=f)[1] for f in (forest, big))
    assert_array_equal(one, other)


def test_leaf_bytes_is_what_the_arrays_take() -> None:
    forest = enlarged(new_forest([5], FAN, 3, 0, capacity=512), 100_000)
    per_leaf = sum(a.nbytes for a in forest) / len(forest.leaf)
    assert abs(leaf_bytes(forest) / per_leaf - 1) < 0.02


def test_random_subsets_are_ordered_and_even() -> None:
    fan = [0] * 8
    forest = new_forest([3] * 400, fan, 2, 7)
    x, y = np.zeros((1, 8)), np.array([1])
    for t in range(400):
        forest = grown((x, y), Rules(), fan, forest=forest, t=t)[2]
    subsets = forest.subset[forest.node[forest.root, 4]]
    assert (np.diff(subsets, axis=1) > 0).all()
    shares = np.bincount(subsets.ravel(), minlength=8) / 400
    assert_allclose(shares, 3 / 8, atol=0.09)
    again = with_trees(new_forest([3], fan, 2, 7), 3, 7)
    assert len(np.unique(again.generator)) == 3


def test_there_and_back_as_a_dict() -> None:
    _, _, forest = grown(mixed_rows(200), Rules())
    back = from_dict(Forest, to_dict(forest))
    for a, b in zip(forest, back):
        assert_array_equal(a, b)
        assert a.dtype == b.dtype
        assert a is not b
