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
from numpy.typing import NDArray

from ...models.arrays import from_dict, to_dict
from ...models.compiled import compiled
from ...models.encoding import bound
from ...models.guarded import Guards, learn_guarded, new_guards, watch
from ...models.held import Held, hold
from ...models.hoeffding import (
    ADAPTIVE,
    BAYES,
    MAJORITY,
    Forest,
    Rules,
    most_leaves,
    new_forest,
    predict_tree,
    top,
    with_classes,
    with_room,
)
from ...models.splitting import has_room
from ...streams import Array, Batch, StreamSpec
from ..learner import Learner, Prediction, State
from .segments import classes_in, plain, test_then_train

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEAVES = {"majority": MAJORITY, "bayes": BAYES, "adaptive": ADAPTIVE}
OPEN_SLOTS = 64


def category_counts(spec: StreamSpec) -> list[int]:
    """Categories to count per column, 0 for numeric ones; an open column shares slots by code modulo their number."""
    counts = []
    for column in spec.columns:
        known = 0 if column.categories is None else max(1, len(column.categories))
        counts.append(max(known, OPEN_SLOTS) if known and column.open else known)
    return counts


@compiled
def pass_rows(
    model: Held,
    x: Floats,
    y: Ints,
    answers: Ints,
    out: Floats,
    start: int,
    stop: int,
    test: bool,
    train: bool,
    room: int,
) -> int:
    """Test, train, or both, row after row, in [start, stop) of x[B, d]; out[B, C]. A tree without data says class 0.

    guard: float64[2], ADWIN's deltas for warning and drift, or empty where the tree is not guarded. Stops before a
    row to be trained on when there is no room for ``room`` leaves; returns where it stopped. model: a handle on
    (forest, guards, rules, guard).
    """
    forest, guards, rules, guard = model.value
    scratch = np.empty(forest.counts.shape[1])
    row = np.empty(x.shape[1])
    for b in range(start, stop):
        if train and not has_room(forest, room):
            return b
        bound(x[b], row)
        if test:
            known = predict_tree(forest, rules, 0, row, out[b])
            answers[b] = top(out[b]) if known else 0
            if not known:
                out[b] = 1.0 / out.shape[1]
        if train and guard.shape[0] > 0:
            watch(forest, guards, 0, 0.0 if answers[b] == y[b] else 1.0, guard[0], guard[1])
        if train:
            learn_guarded(forest, rules, guards, 0, row, y[b], 1.0, scratch)
    return stop


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
        self._rules = Rules(
            p.grace, p.delta, p.tau, LEAVES[p.leaf], multiway=not (p.binary or p.adaptive), max_depth=p.max_depth
        )
        self._guard = np.array([p.warning, p.drift] if p.adaptive else [], np.float64)
        self._room = 4 + (max(fan) if self._rules.multiway else 2)
        self._max_bytes = int(p.max_mib * 2**20)
        self._work_on(new_forest([len(fan)] * 2, fan, max(2, spec.n_classes or 2), seed), new_guards(1))

    def _work_on(self, forest: Forest, guards: Guards) -> None:
        """Take these arrays for the model from now on."""
        self._forest, self._guards = forest, guards
        self._model = hold((forest, guards, self._rules, self._guard))
        self._most_leaves = most_leaves(forest, self._max_bytes)

    def predict(self, batch: Batch) -> Prediction:
        return self._pass(plain(batch.x), np.empty(0, np.int64), None, train=False)

    def learn(self, batch: Batch, prediction: Prediction) -> None:
        assert batch.y is not None
        self._know(classes_in(batch.y))
        self._pass(plain(batch.x), plain(batch.y), prediction.output, train=True)

    def test_then_train(self, batch: Batch) -> Prediction:
        return test_then_train(self, batch)

    def known_classes(self) -> int:
        return self._forest.counts.shape[1]

    def run(self, x: Array, y: Array, start: int, stop: int) -> Prediction:
        """Test, then train, on rows [start, stop), whose classes are all known."""
        return self._pass(x[start:stop], y[start:stop], None, train=True)

    def _pass(self, x: Array, y: Array, known: Array | None, *, train: bool) -> Prediction:
        """Through the compiled rows; ``known`` holds the answers to learn with, where rows were predicted before."""
        n = len(x)
        answers = np.empty(n, np.int64) if known is None else known
        out = np.empty((n, self._forest.counts.shape[1]))
        at = 0
        while at < n:
            room = self._make_room() if train else 0
            at = pass_rows(self._model, x, y, answers, out, at, n, known is None, train, room)
        return Prediction(answers, out)

    def _make_room(self) -> int:
        """Leaves that one row may take at most, after enlarging the forest where needed; 0 at the memory bound."""
        forest, room = with_room(self._forest, self._room, self._most_leaves)
        if forest is not self._forest:
            self._work_on(forest, self._guards)
        return room

    def _know(self, classes: int) -> None:
        if classes > self._forest.counts.shape[1]:
            self._work_on(with_classes(self._forest, classes), self._guards)

    def state(self) -> State:
        return {"forest": to_dict(self._forest), "guards": to_dict(self._guards)}

    def load(self, state: State) -> None:
        self._work_on(from_dict(Forest, state["forest"]), from_dict(Guards, state["guards"]))

    def telemetry(self) -> dict[str, float]:
        """Leaves in use, and how often the tree was replaced."""
        leaves = len(self._forest.leaf) - int(self._forest.used[1])
        return {"leaves": float(leaves), "resets": float(self._guards.replaced.sum())}
