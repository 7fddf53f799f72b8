"""Forgetting requests of ACU beside training anew from features, and beside a rival that keeps A and B.

MNIST's 60,000 training rows, pixels in [0, 1], x = relu(z P), P Gaussian / 28, d = 4096, 10 classes, gamma = 0.1,
float64, one thread. Training anew: the Gram matrix of all rows, a Cholesky factor and a solve, features given (so is
what it costs to make them). The rival subtracts from its A and B, factors and solves. Ours: the low-latency engine,
with the folds of A and of the inverse counted in, a 64th of them for each row; a request of 1,000 rows goes the way of
the rival, and the inverse that is made anew after it is not counted. Each until W is usable.

ours and peer are milliseconds of processor time, medians over requests in turn with the rival's; training anew is timed
before and after. Then, in the state after all requests: what a certificate costs beside the request, and the distance
to training anew, whose floor is the distance between two trainings with the rows in another order (ours / peer).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from time import process_time
from typing import Any

import numpy as np

from ...evaluation.unlearning import relative_distance
from ...models.analytic import Array, Statistics
from ...models.analytic_inverse import Inverse
from ...models.feature_maps import Expansion
from ...streams.images import grey_images
from . import Row, row

GAMMA, FOLD = 0.1, 64
REQUESTS = {1: 25, 10: 6, 1000: 2}
"""Rows of a request, and how many are timed."""
SINGLE = 500
"""Requests of one row in a row, for the distance at the end."""
ANEW, RIVAL, FLOOR = "training anew", "keeps A and B", "two trainings anew, rows in another order"


def measure(d: int = 4096, rows: int = 60_000) -> list[Row]:
    """All cases, about five minutes and 3 GB at d = 4096."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        return _measure(d, rows)


def _measure(d: int, rows: int) -> list[Row]:
    images = grey_images("mnist")
    codes = images.y[:rows]
    x = _features(images.x[:rows].reshape(len(codes), -1), d)
    y = np.eye(10)[codes]
    order = np.random.default_rng(0).permutation(len(x))
    anew, _ = _timed(lambda: train(x, y))
    ours, rival = Inverse(d, 10, GAMMA, fold=FOLD), Statistics(d, 10, GAMMA)
    for at in range(0, len(x), 10_000):
        ours.learn(x[at : at + 10_000], y[at : at + 10_000])
    ours.settle()
    rival.load(ours.statistics.state())
    used = 0
    times: dict[int, tuple[float, float]] = {}
    for m, repeats in REQUESTS.items():
        mine, theirs = [], []
        for _ in range(repeats):
            some = order[used : used + m]
            used += m
            rows_x, rows_y = x[some], y[some]
            mine.append(_timed(partial(ours.forget, rows_x, rows_y, sure=True))[0])
            theirs.append(_timed(partial(_by_sums, rival, rows_x, rows_y))[0])
            ours.settle()
        times[m] = median(mine), median(theirs)
    fold = _fold_cost(ours, x, y, order[used : used + FOLD])
    used += FOLD
    again, _ = _timed(lambda: train(x, y))
    retrain = (anew + again) / 2
    found: list[Row] = []
    for m, (mine_m, theirs_m) in times.items():
        cost = mine_m + (fold * m / FOLD if m < d // 12 else 0.0)
        found.append(row("acu", f"d={d}, {m:,} rows", "ms", cost, retrain, ANEW, more_is_better=False))
        found.append(row("acu", f"d={d}, {m:,} rows", "ms", cost, theirs_m, RIVAL, more_is_better=False))
    certificate, _ = _timed(lambda: (ours.digest(), ours.bound()))
    found.append(row("acu", f"d={d}, certificate of a request", "ms", certificate, retrain, ANEW, more_is_better=False))
    return found + _distances(d, ours, x, y, order, used)


def _features(z: Array, d: int) -> Array:
    """x float64[n, d] from pixels uint8[n, 784], in pieces, so that nothing of its size is held beside it."""
    expand = Expansion(z.shape[1], d)
    x = np.empty((len(z), d))
    for at in range(0, len(z), 2000):
        x[at : at + 2000] = expand(z[at : at + 2000] / 255.0)
    return x


def train(x: Array, y: Array) -> Array:
    """The head from features."""
    made = Statistics(x.shape[1], y.shape[1], GAMMA)
    made.learn(x, y)
    return made.weights()


def _by_sums(head: Statistics, x: Array, y: Array) -> Array:
    head.forget(x, y, sure=True)
    return head.weights()


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds of processor time, and what came of it."""
    started = process_time()
    result = work()
    return 1e3 * (process_time() - started), result


def _fold_cost(ours: Inverse, x: Array, y: Array, some: Array) -> float:
    """Milliseconds of a full fold of A and the inverse."""
    for i in some:
        ours.forget(x[i : i + 1], y[i : i + 1], sure=True)
    return _timed(ours.fold)[0]


def _distances(d: int, ours: Inverse, x: Array, y: Array, order: Array, used: int) -> list[Row]:
    """After so many single requests, folds among them."""
    for i in order[used : used + SINGLE]:
        ours.forget(x[i : i + 1], y[i : i + 1], sure=True)
    left = order[used + SINGLE :]
    w = train(x[np.sort(left)], y[np.sort(left)])
    other = train(x[left], y[left])
    distance, floor = relative_distance(ours.weights(), w), relative_distance(other, w)
    case = f"d={d}, distance after {SINGLE} more requests"
    return [row("acu", case, "relative", distance, floor, FLOOR, more_is_better=False)]
