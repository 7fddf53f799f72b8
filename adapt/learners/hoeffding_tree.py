"""One Hoeffding tree (Domingos and Hulten, KDD 2000), optionally one that is replaced when its error rises.

    descend to the leaf of x, predict with it; add (x, y) to the leaf's statistics;
    every ``grace`` units of weight: split the leaf if the best feature leads by more than the Hoeffding bound

Defaults and conventions are those of river's ``HoeffdingTreeClassifier``, with which it agrees row by row but for
rounding, ties in a leaf's scoreboard and where missing values go (tests/learners/test_hoeffding_tree.py lists it all).
Leaves at ``max_depth`` go on with naive Bayes, river's fall back to the majority.
Ours: ``adaptive``, which guards the tree by ADWIN and grows a background tree (as in adaptive random forests), and the
bound on memory, at which the tree stops growing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...models.arrays import from_dict, to_dict
from ...models.guarded import new_guards
from ...models.held import hold
from ...models.hoeffding import ADAPTIVE, BAYES, MAJORITY, Rules, new_forest, with_classes
from ...streams import Array, Batch, StreamSpec
from ..learner import Learner, Prediction, State
from .hoeffding_rows import Plan, Pool, pass_rows
from .row_model import RowModel
from .segments import classes_in, plain, test_then_train

LEAVES = {"majority": MAJORITY, "bayes": BAYES, "adaptive": ADAPTIVE}
OPEN_SLOTS = 64


def category_counts(spec: StreamSpec) -> list[int]:
    """Categories to count per column, 0 for numeric ones; an open column shares slots by code modulo their number."""
    counts = []
    for column in spec.columns:
        known = 0 if column.categories is None else max(1, len(column.categories))
        counts.append(max(known, OPEN_SLOTS) if known and column.open else known)
    return counts


class HoeffdingTree(Learner):
    """The learner ``hoeffding-tree``."""

    @dataclass(frozen=True)
    class Params:
        """Settings of the tree; the defaults are river's."""

        grace: float = 200.0
        """Weight a leaf gathers between two split attempts."""
        delta: float = 1e-7
        """Allowed chance of a wrong split."""
        tau: float = 0.05
        """Hoeffding bound below which a tie is broken."""
        leaf: Literal["majority", "bayes", "adaptive"] = "adaptive"
        """What a leaf predicts with: its majority class, naive Bayes, or whichever did better in that leaf."""
        binary: bool = False
        """Split nominal columns in two, never into one branch per category (always so when adaptive)."""
        max_depth: int = 1_000
        """Level at which leaves no longer split; the root is at 0."""
        max_mib: float = 100.0
        """Bound on memory; at the bound the tree stops growing."""
        adaptive: bool = False
        """Guard the tree: a rising error starts a background tree, which then takes its place."""
        warning: float = 0.01
        """ADWIN's delta that starts a background tree."""
        drift: float = 0.001
        """ADWIN's delta that swaps it in."""

        def __post_init__(self) -> None:
            if not (self.grace > 0 and self.tau >= 0 and self.max_depth >= 0 and self.max_mib > 0):
                raise ValueError("grace and max_mib must be above 0, tau and max_depth at least 0")
            if not all(0 < level < 1 for level in (self.delta, self.warning, self.drift)):
                raise ValueError("delta, warning and drift must be between 0 and 1")

    def __init__(self, spec: StreamSpec, params: Params | None = None, seed: int = 0) -> None:
        super().__init__(spec, params, seed)
        p, fan = self.params, category_counts(spec)
        multiway, classes = not (p.binary or p.adaptive), max(2, spec.n_classes or 2)
        rules = Rules(p.grace, p.delta, p.tau, LEAVES[p.leaf], multiway=multiway, max_depth=p.max_depth)
        self.plan = Plan(rules, np.array([p.warning, p.drift] if p.adaptive else [], np.float64))
        self.rows = RowModel(
            pass_rows,
            lambda pool: hold((self.plan, pool)),
            Pool(new_forest([len(fan)] * 2, fan, classes, seed), new_guards(1)),
            classes=classes,
            room=4 + (max(fan) if multiway else 2),
            max_bytes=int(p.max_mib * 2**20),
        )

    def predict(self, batch: Batch) -> Prediction:
        return Prediction(*self.rows.predict(plain(batch.x)))

    def learn(self, batch: Batch, prediction: Prediction) -> None:
        assert batch.y is not None
        self._know(classes_in(batch.y))
        self.rows.learn(plain(batch.x), plain(batch.y), (), prediction.output)

    def test_then_train(self, batch: Batch) -> Prediction:
        return test_then_train(self, batch)

    def known_classes(self) -> int:
        return self.rows.classes

    def run(self, x: Array, y: Array, start: int, stop: int) -> Prediction:
        """Test, then train, on rows [start, stop), whose classes are all known."""
        return Prediction(*self.rows.test_then_train(x[start:stop], y[start:stop]))

    def _know(self, classes: int) -> None:
        pool = self.rows.pool
        if classes > self.rows.classes:
            self.rows.work_on(pool._replace(forest=with_classes(pool.forest, classes)), classes)

    def state(self) -> State:
        return to_dict(self.rows.pool)

    def load(self, state: State) -> None:
        pool = from_dict(Pool, state)
        self.rows.work_on(pool, pool.forest.counts.shape[1])

    def telemetry(self) -> dict[str, float]:
        """Leaves in use, and how often the tree was replaced."""
        forest, guards = self.rows.pool
        leaves = len(forest.leaf) - int(forest.used[1])
        return {"leaves": float(leaves), "resets": float(guards.replaced.sum())}
