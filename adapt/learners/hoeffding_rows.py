"""One Hoeffding tree, row after row, compiled; the learner is ``hoeffding_tree.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...models.compiled import compiled
from ...models.encoding import bound
from ...models.guarded import Guards, learn_guarded, watch
from ...models.hoeffding import Forest, Rules, predict_tree, top
from ...models.splitting import has_room

if TYPE_CHECKING:
    from ...models.held import Held

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Plan(NamedTuple):
    """What does not change. guard: float64[2], ADWIN's deltas for warning and drift; empty: the tree is not guarded."""

    rules: Rules
    guard: Floats


class Pool(NamedTuple):
    """All that is learnt: the tree and its background tree, and the detectors that watch it."""

    forest: Forest
    guards: Guards


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

    Where it does not test, ``answers`` are those of before. Stops before a row to be trained on when there is no room
    for ``room`` leaves; returns where it stopped. model: a handle on (plan, pool).
    """
    plan, pool = model.value
    rules, guard, forest, guards = plan.rules, plan.guard, pool.forest, pool.guards
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
