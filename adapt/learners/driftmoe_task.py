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

from ...models.compiled import compiled, inner
from ...models.encoding import Encoder, bound, encode, observe_scale
from ...models.hoeffding import Forest, Rules, predict_tree, top
from ...models.router import Router, collect, route, sigmoid
from ...models.splitting import has_room, learn_tree, sum_of

if TYPE_CHECKING:
    from ...models.held import Held

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
