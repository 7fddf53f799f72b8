"""MoE-Task: one one-vs-rest tree per class, and a router whose logits are the classes.

    z = router(x);  b_c = tree_c's probability that x is of class c
    answer = argmax_c sigma(z_c) b_c                 (published: argmax_c z_c, the trees have no say)
    m = one-hot of y;  one Adam step on BCE(z, m) with this single row
    every tree learns (x, [y = c])

As published, m can only be the one-hot of y (a tree is right only on its own class, and where none is, y gets the 1),
and the answer is the router's. So the published MoE-Task is an online network trained row by row, under dropout 0.2
even when it answers, and its trees are dead weight: replacing them by constants would change no answer.
``faithful`` is exactly that, and leaves the trees out. Ours: trees that have a say, standardised input, no dropout.

Legend: d columns, D encoded inputs, C classes (also the router's outputs and the trees).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...models.arrays import from_dict, to_dict
from ...models.compiled import compiled, inner
from ...models.encoding import Encoder, bound, encode, encoded_width, new_encoder, observe_scale
from ...models.held import Held, hold
from ...models.hoeffding import (
    ADAPTIVE,
    Forest,
    Rules,
    most_leaves,
    new_forest,
    predict_tree,
    top,
    with_room,
    with_trees,
)
from ...models.router import Router, collect, new_router, route, sigmoid, with_outputs
from ...models.splitting import has_room, learn_tree, sum_of
from ...streams import Array, Batch, StreamSpec
from ..learner import Prediction, State
from .hoeffding_tree import category_counts
from .segments import classes_in, plain, test_then_train

if TYPE_CHECKING:
    from .driftmoe import DriftMoE

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]

DROPPED = 0.2
LEAST_SCORE = 1e-30


class Plan(NamedTuple):
    """What does not change: growth rules of the trees, whether they have a say, dropout, Adam's rate, the seed."""

    rules: Rules
    trees: bool
    dropout: bool
    rate: float
    seed: int


class Pool(NamedTuple):
    """All that is learnt. labels: [C] labels seen."""

    forest: Forest
    encoder: Encoder
    router: Router
    labels: Floats


@inner
def encoded(pool: Pool, x: Floats) -> Singles:
    """The row as the router sees it."""
    out = np.empty(pool.router.size[0])
    encode(pool.encoder, x, out)
    return out.astype(np.float32)


@inner
def keep_units(plan: Plan, pool: Pool) -> Singles:
    """Dropout factors of the first layer, the same for every look at the same state (so that predicting is const)."""
    units = pool.router.size[1]
    if not plan.dropout:
        return np.empty(0, np.float32)
    keep = np.empty(units, np.float32)
    state = (np.uint64(plan.seed) << np.uint64(32)) ^ np.uint64(sum_of(pool.labels) + 1) * np.uint64(0x9E3779B97F4A7C15)
    for j in range(units):
        state ^= state << np.uint64(13)
        state ^= state >> np.uint64(7)
        state ^= state << np.uint64(17)
        keep[j] = 0.0 if (state >> np.uint64(11)) * 2.0**-53 < DROPPED else 1.0 / (1.0 - DROPPED)
    return keep


@inner
def predict_row(plan: Plan, pool: Pool, x: Floats, out: Floats) -> int:
    """Answer for x[d]; out[C] gets the scores, scaled to sum to 1."""
    n_classes = out.shape[0]
    z = np.empty(n_classes, np.float32)
    h1, h2 = np.empty(pool.router.size[1], np.float32), np.empty(pool.router.size[2], np.float32)
    route(pool.router, keep_units(plan, pool), encoded(pool, x), h1, h2, z)
    opinion = np.empty(2)
    total = 0.0
    for c in range(n_classes):
        out[c] = max(float(sigmoid(z[c])), LEAST_SCORE)
        if plan.trees and predict_tree(pool.forest, plan.rules, c, x, opinion):
            out[c] *= max(opinion[1], LEAST_SCORE)
        total += out[c]
    for c in range(n_classes):
        out[c] /= total
    return top(out)


@inner
def learn_row(plan: Plan, pool: Pool, x: Floats, y: int) -> None:
    """One Adam step of the router and one row for every tree."""
    n_classes = pool.labels.shape[0]
    mask, weight = np.zeros(n_classes, np.float32), np.ones(n_classes, np.float32)
    mask[y] = 1
    collect(pool.router, keep_units(plan, pool), encoded(pool, x), mask, weight, plan.rate, 1)
    scratch = np.empty(2)
    if plan.trees:
        for c in range(n_classes):
            learn_tree(pool.forest, plan.rules, c, x, 1 if y == c else 0, 1.0, scratch)
    observe_scale(pool.encoder, x)
    pool.labels[y] += 1.0


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
    """Test, train, or both, row after row, in [start, stop); returns where room for leaves ran out.

    model: a handle on (plan, pool).
    """
    plan, pool = model.value
    row = np.empty(x.shape[1])
    for b in range(start, stop):
        if train and not has_room(pool.forest, room):
            return b
        bound(x[b], row)
        if test:
            answers[b] = predict_row(plan, pool, row, out[b])
        if train:
            learn_row(plan, pool, row, y[b])
    return stop


class TaskMixture:
    """MoE-Task: owns the arrays, makes room in them, and calls the compiled algorithm."""

    def __init__(self, spec: StreamSpec, s: DriftMoE.Params, seed: int) -> None:
        fan = category_counts(spec)
        classes = max(2, spec.n_classes or 2)
        self.plan = Plan(
            rules=Rules(s.grace, s.delta, s.tau, ADAPTIVE, forget_pure=s.faithful, multiway=False),
            trees=not s.faithful,
            dropout=s.faithful,
            rate=s.rate,
            seed=seed,
        )
        encoder = new_encoder(fan, clip=5.0 if s.scale else 0.0)
        self._max_bytes = int(s.max_mib * 2**20)
        pool = Pool(
            forest=new_forest([len(fan)] * classes, fan, 2, seed),
            encoder=encoder,
            router=new_router(
                encoded_width(encoder), (s.hidden, s.hidden // 2), classes, 1, np.random.default_rng(seed)
            ),
            labels=np.zeros(classes),
        )
        self._work_on(pool)

    def _work_on(self, pool: Pool) -> None:
        """Take these arrays for the model from now on."""
        self.pool = pool
        self._model = hold((self.plan, pool))
        self._most_leaves = most_leaves(pool.forest, self._max_bytes)

    def predict(self, batch: Batch) -> Prediction:
        return self._pass(plain(batch.x), np.empty(0, np.int64), 0, len(batch), test=True, train=False)

    def learn(self, batch: Batch, prediction: Prediction) -> None:
        assert batch.y is not None
        self._know(classes_in(batch.y))
        self._pass(plain(batch.x), plain(batch.y), 0, len(batch), test=False, train=True)

    def test_then_train(self, batch: Batch) -> Prediction:
        return test_then_train(self, batch)

    def known_classes(self) -> int:
        return len(self.pool.labels)

    def run(self, x: Array, y: Array, start: int, stop: int) -> Prediction:
        """Test, then train, on rows [start, stop), whose classes are all known."""
        return self._pass(x[start:stop], y[start:stop], 0, stop - start, test=True, train=True)

    def _pass(self, x: Array, y: Array, at: int, stop: int, *, test: bool, train: bool) -> Prediction:
        answers, out = np.empty(len(x), np.int64), np.empty((len(x), len(self.pool.labels)))
        while at < stop:
            room = self._make_room() if train else 0
            at = pass_rows(self._model, x, y, answers, out, at, stop, test, train, room)
        return Prediction(answers, out)

    def _make_room(self) -> int:
        """Leaves that one row may take at most, after enlarging the forest where needed; 0 at the memory bound."""
        forest, room = with_room(self.pool.forest, 3 * len(self.pool.labels), self._most_leaves)
        if forest is not self.pool.forest:
            self._work_on(self.pool._replace(forest=forest))
        return room

    def _know(self, classes: int) -> None:
        """Append a tree and a router output for each new class."""
        old = len(self.pool.labels)
        if classes > old:
            rng = np.random.default_rng([self.plan.seed, old])
            self._work_on(
                self.pool._replace(
                    forest=with_trees(self.pool.forest, classes, self.plan.seed),
                    router=with_outputs(self.pool.router, classes, rng),
                    labels=np.pad(self.pool.labels, (0, classes - old)),
                )
            )

    def state(self) -> State:
        return to_dict(self.pool)

    def load(self, state: State) -> None:
        self._work_on(from_dict(Pool, state))

    def telemetry(self) -> dict[str, float]:
        """Leaves in use by all trees, missing values filled in; trees are never thrown away here."""
        leaves = len(self.pool.forest.leaf) - int(self.pool.forest.used[1])
        return {"leaves": float(leaves), "imputed": float(self.pool.encoder.imputed[0]), "resets": 0.0}
