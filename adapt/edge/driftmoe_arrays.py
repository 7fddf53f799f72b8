"""The loops of DriftMoE as NumPy calls, for devices without Numba: the same names, arguments and results.

``take_over`` puts them in place of the loops. Sums over single-precision numbers keep the loops' order, so that the
router has the same bits; the rest agrees to the rounding of double-precision logarithms and sums, and ties stay ties.
What is not here is quick enough as plain Python.

Legend: d columns, D encoded inputs, C classes, E experts, R rules, F features a leaf observes, n leaves or rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from ...models import router
from ...models.encoding import LARGEST, LARGEST_PLAIN, Encoder
from ...models.hoeffding import (
    ADAPTIVE,
    BAYES,
    BAYES_RIGHT,
    COUNT,
    HALF_LOG_TAU,
    HIGH,
    LEAF,
    LOW,
    MAJORITY_RIGHT,
    MEAN,
    NEGLIGIBLE,
    OFFSET,
    SLOPE,
    SMALLEST_VARIANCE,
    SQUARES,
    Forest,
    Rules,
    find_leaf,
)
from ...models.router import BETA1, BETA2, EPSILON, STEPS, Router
from ...models.splitting import gain
from ..learners import driftmoe_data as data

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Ints = NDArray[np.int64]
Truths = NDArray[np.bool_]

complementary_errors = np.frompyfunc(math.erfc, 1, 1)


# --- rows and linear models (models/encoding.py, models/linear.py) -------------------------------------------------


def bound(x: Floats, out: Floats) -> None:
    np.minimum(np.maximum(x, -LARGEST), LARGEST, out=out)


def encode(encoder: Encoder, x: Floats, out: Floats) -> None:
    numeric, gaps, clip = encoder.slots == 0, np.isnan(x), encoder.clip[0]
    values, limit = np.where(gaps, encoder.mean, x), LARGEST_PLAIN
    if clip > 0:
        variance, limit = np.where(encoder.seen > 0, encoder.squares / encoder.seen, 0.0), clip
        values = np.where(variance > 0, (values - encoder.mean) / np.sqrt(variance), 0.0)
    out[:] = 0.0
    out[encoder.first[numeric]] = np.minimum(np.maximum(values, -limit), limit)[numeric]
    for f in np.flatnonzero(~(numeric | gaps)):
        out[encoder.first[f] + int(x[f]) % encoder.slots[f]] = 1.0


def observe_scale(encoder: Encoder, x: Floats) -> None:
    gaps = np.isnan(x)
    encoder.imputed[0] += gaps.sum()
    at = np.flatnonzero((encoder.slots == 0) & ~gaps)
    seen = encoder.seen[at] + 1.0
    gap = x[at] - encoder.mean[at]
    mean = encoder.mean[at] + gap / seen
    encoder.seen[at], encoder.mean[at] = seen, mean
    encoder.squares[at] += gap * (x[at] - mean)


def softmax_scores(weights: Floats, x: Floats, n_classes: int, out: Floats) -> None:
    scores = weights[:n_classes, :-1] @ x + weights[:n_classes, -1]
    shares = np.exp(scores - scores.max())
    out[:n_classes] = shares / shares.sum()
    out[n_classes:] = 0.0


def softmax_step(weights: Floats, x: Floats, y: int, scores: Floats, n_classes: int, rate: float, decay: float) -> None:
    step = rate * (scores[:n_classes] - (np.arange(n_classes) == y))
    weights[:n_classes, :-1] *= 1.0 - rate * decay
    weights[:n_classes, :-1] -= step[:, None] * x
    weights[:n_classes, -1] -= step


# --- router (models/router.py) -------------------------------------------------------------------------------------


def add_rows(out: Singles, share: Singles, rows: Singles, used: Ints) -> None:  # noqa: ARG001 - as the loop is called
    at = np.flatnonzero(share)
    whole = len(at) - len(at) % 4
    parts = share[at, None] * rows[at]
    fours = parts[:whole].reshape(whole // 4, 4, len(out))
    sums = (fours[:, 0] + fours[:, 1]) + (fours[:, 2] + fours[:, 3])
    np.add.reduce(np.concatenate([out[None], sums, parts[whole:]]), axis=0, out=out)


def _layer(theta: Singles, start: int, n: int, m: int, x: Singles, out: Singles, used: Ints) -> None:
    bias = start + n * m
    out[:] = theta[bias : bias + m]
    add_rows(out, x, theta[start:bias].reshape(n, m), used)


def _rectify(h: Singles) -> None:
    np.maximum(h, np.float32(0), out=h)


def _thin(units: Singles, keep: Singles) -> None:
    if len(keep):
        units *= keep


def _add_layer_gradient(out: Singles, start: int, inputs: Singles, errors: Singles) -> None:
    n, m = inputs.shape[1], errors.shape[1]
    product = np.empty((n, m), np.float32)
    router._product(np.ascontiguousarray(inputs.T), errors, product)
    bias = out[start + n * m : start + n * m + m]
    out[start : start + n * m].reshape(n, m)[...] += product
    np.add.reduce(np.concatenate([bias[None], errors]), axis=0, out=bias)


def _forward(theta: Singles, start: int, x: Singles, out: Singles, rectified: bool) -> None:
    n, m = x.shape[1], out.shape[1]
    router._product(x, theta[start : start + n * m].reshape(n, m), out)
    out += theta[start + n * m : start + n * m + m]
    if rectified:
        _rectify(out)


def _errors_below(errors: Singles, w: Singles, units: Singles, out: Singles) -> None:
    router._product(errors, w.T, out)
    np.copyto(out, np.float32(0), where=~(units > 0))


def _output_errors(z: Singles, mask: Singles, weight: Singles, rows: int) -> None:
    share = weight / np.float32(rows * z.shape[1])
    z[...] = (_sigmoids(z) - mask) * share


def _sigmoids(z: Singles) -> Singles:
    found: Singles = (1.0 / (1.0 + np.exp(-z.astype(np.float64)))).astype(np.float32)
    return found


def adam_step(router: Router, g: Singles, rate: float) -> None:
    router.counter[STEPS] += 1
    t = int(router.counter[STEPS])
    b1, b2, one = np.float32(BETA1), np.float32(BETA2), np.float32(1)
    step, scale = np.float32(rate / (1.0 - BETA1**t)), np.float32(1.0 / np.sqrt(1.0 - BETA2**t))
    first, second = router.moment1, router.moment2
    first *= b1
    first += (one - b1) * g
    second *= b2
    second += (one - b2) * g * g
    router.theta[...] -= step * first / (np.sqrt(second) * scale + np.float32(EPSILON))


# --- trees (models/hoeffding.py, models/splitting.py) --------------------------------------------------------------


def majority_of(forest: Forest, slot: int, out: Floats) -> bool:
    counts = forest.counts[slot]
    total = counts.sum()
    out[:] = counts / total if total > 0 else 0.0
    return bool(total > 0)


def bayes_of(forest: Forest, slot: int, x: Floats, out: Floats) -> bool:
    if not (forest.counts[slot] > 0).any():
        out[:] = 0.0
        return False
    out[:] = posteriors(forest, np.array([slot]), x)[0]
    return True


def posteriors(forest: Forest, slots: Ints, x: Floats) -> Floats:
    """Naive Bayes of several leaves that are not empty, float[n, C]."""
    counts, subset, observer = forest.counts[slots], forest.subset[slots], forest.observer[slots]
    values = x[subset]
    known = (subset >= 0) & ~np.isnan(values)
    gap = values[:, None] - observer[:, :, MEAN]
    parts = np.where(known[:, None], observer[:, :, OFFSET] + observer[:, :, SLOPE] * gap * gap, 0.0)
    score = np.log(counts / counts.sum(1, keepdims=True)) + parts.sum(2)
    if forest.categories.shape[2]:
        score += categories_of_leaves(forest, slots, known, values, subset, observer[:, :, COUNT])
    score -= score.max(1, keepdims=True)
    shares = np.where(score > NEGLIGIBLE, np.exp(score), 0.0)
    found: Floats = shares / shares.sum(1, keepdims=True)
    return found


def categories_of_leaves(
    forest: Forest, slots: Ints, known: Truths, values: Floats, subset: NDArray[np.int32], counts: Floats
) -> Floats:
    """Log likelihoods float[n, C] of nominal values[n, F]; counts[n, C, F]: weight seen of each feature."""
    known = known & (forest.slot[subset] >= 0)
    place = np.where(known, forest.slot[subset] + codes(values, known) % np.maximum(forest.fan[subset], 1), 0)
    classes = np.arange(counts.shape[1])
    seen = forest.categories[slots[:, None, None], classes[None, :, None], place[:, None]]
    logs: Floats = np.where(known[:, None] & (seen > 0), np.log(seen / counts), 0.0)
    return logs.sum(2)


def codes(values: Floats, known: Truths) -> Ints:
    """Categories as whole numbers, 0 where there is none."""
    return np.where(known, values, 0.0).astype(np.int64)


def ask_trees(forest: Forest, rules: Rules, trees: int, x: Floats, p: Floats) -> None:
    p[:trees] = 1.0 / p.shape[1]
    nodes = np.array([find_leaf(forest, i, x) for i in range(trees)], np.int64)
    slots = forest.node[nodes, LEAF]
    totals, right = forest.counts[slots].sum(1), forest.leaf[slots]
    known = (nodes >= 0) & (totals > 0)
    bayes = known & (rules.leaf == BAYES)
    if rules.leaf == ADAPTIVE:
        bayes = known & (right[:, BAYES_RIGHT] >= right[:, MAJORITY_RIGHT])
    by_count, by_bayes = np.flatnonzero(known & ~bayes), np.flatnonzero(bayes)
    p[by_count] = forest.counts[slots[by_count]] / totals[by_count, None]
    if len(by_bayes):
        p[by_bayes] = posteriors(forest, slots[by_bayes], x)


def observe(forest: Forest, slot: int, x: Floats, y: int, weight: float) -> None:
    forest.counts[slot, y] += weight
    subset = forest.subset[slot]
    at = np.flatnonzero((subset >= 0) & ~np.isnan(x[subset]))
    seen = forest.observer[slot, y]
    seen[COUNT, at] += weight
    nominal = forest.slot[subset[at]] >= 0
    if nominal.any():
        f = subset[at[nominal]]
        forest.categories[slot, y, forest.slot[f] + x[f].astype(np.int64) % forest.fan[f]] += weight
        at = at[~nominal]
    f = subset[at]
    value, (count, mean, squares, low, high, _, _) = x[f], seen[:, at]
    new = count == weight
    gap = value - mean
    mean = mean + weight * gap / count
    squares = squares + weight * gap * (value - mean)
    low, high = np.where(new, value, np.minimum(low, value)), np.where(new, value, np.maximum(high, value))
    seen[MEAN, at], seen[SQUARES, at], seen[LOW, at], seen[HIGH, at] = mean, squares, low, high
    variance = np.where(count > 1, np.maximum(squares / (count - 1.0), forest.floor[f]), 0.0)
    wide = variance > SMALLEST_VARIANCE
    at, variance = at[wide], variance[wide]
    seen[SLOPE, at], seen[OFFSET, at] = -0.5 / variance, -HALF_LOG_TAU - 0.5 * np.log(variance)


def best_cut(
    forest: Forest,
    rules: Rules,
    slot: int,
    j: int,
    before: float,
    halves: Floats,  # noqa: ARG001 - as the loop is called
) -> tuple[float, float]:
    count, mean, squares, low, high = forest.observer[slot, :, : HIGH + 1, j].T
    there = count > 0
    if not there.any():
        return -math.inf, 0.0
    first, last = low[there].min(), high[there].max()
    cuts = first + (last - first) / (rules.cuts + 1.0) * np.arange(1, rules.cuts + 1)
    cuts = cuts[(first < cuts) & (cuts < last)]
    if not len(cuts):
        return -math.inf, 0.0
    floor = forest.floor[forest.subset[slot, j]]
    variance = np.where(count > 1, np.maximum(squares / (count - 1.0), floor), 0.0)
    cut = cuts[:, None]
    below = count * 0.5 * complementary_errors((mean - cut) / np.sqrt(2.0 * variance)).astype(np.float64)
    below = np.where(variance > 0, below, 0.0)
    below = np.where(cut < low, 0.0, np.where(cut >= high, count, below))
    merits = gains(before, below, count - below, rules.min_branch)
    best = int(merits.argmax())
    return (float(merits[best]), float(cuts[best])) if merits[best] > -math.inf else (-math.inf, 0.0)


def best_category(
    forest: Forest,
    rules: Rules,
    slot: int,
    j: int,
    before: float,
    halves: Floats,  # noqa: ARG001 - as the loop is called
) -> tuple[float, float, bool]:
    f = forest.subset[slot, j]
    first, fan = forest.slot[f], forest.fan[f]
    weights = np.ascontiguousarray(forest.categories[slot, :, first : first + fan].T)
    found, value, multiway = -math.inf, 0.0, False
    if rules.multiway:
        found, multiway = gain(before, weights, rules.min_branch), True
    merits = gains(before, weights, weights.sum(0) - weights, rules.min_branch)
    merits[weights.sum(1) <= 0] = -math.inf
    best = int(merits.argmax())
    return (float(merits[best]), float(best), False) if merits[best] > found else (found, value, multiway)


def gains(before: float, left: Floats, right: Floats, min_branch: float) -> Floats:
    """Information gain of splits in two, weights left[n, C] and right[n, C]; -inf where a side is next to empty."""
    sides = np.stack([left, right])
    weight = sides.sum(2)
    share = weight / weight.sum(0)
    after = share * entropies(sides)
    fit = (share > min_branch).all(0)
    found: Floats = np.where(fit, before - (after[0] + after[1]), -math.inf)
    return found


def entropies(weights: Floats) -> Floats:
    """In bits, over the last axis; 0 where there is no weight."""
    there = weights > 0
    total = np.where(there, weights, 0.0).sum(-1)
    logs = np.where(there, weights * np.log2(weights), 0.0).sum(-1)
    found: Floats = np.where(total > 0, np.log2(total) - logs / total, 0.0)
    return found


# --- mixture (adapt/learners/driftmoe_data.py) ---------------------------------------------------------------------


def vote(exponents: Floats, recency: Floats, votes: Floats, z: Singles, p: Floats) -> None:
    share = np.stack([says(exponents, recency, r, z) for r in range(len(exponents))])
    np.add.reduce(share[:, :, None] * p, axis=1, out=votes)


def says(exponents: Floats, recency: Floats, rule: int, z: Singles) -> Floats:
    """Weight of every expert under a rule, float[E]."""
    trust = np.maximum(_sigmoids(z).astype(np.float64), data.LEAST_TRUST)
    found: Floats = data.power(recency[rule], exponents[rule, 0]) * data.power(trust, exponents[rule, 1])
    return np.broadcast_to(found, z.shape)


def judge(plan: data.Plan, pool: data.Pool, y: int, z: Singles, p: Floats, said: Ints) -> None:
    if plan.top_one:
        share = (np.arange(len(z)) == z.argmax()).astype(np.float64)
    else:
        share = says(plan.exponents, pool.recency, int(pool.standing.argmax()), z)
        share = share / share.sum()
    pool.usage[...] += (1.0 - data.USAGE_MEMORY) * (share - pool.usage)
    if plan.top_one:
        return
    pool.standing[...] += (1.0 - data.RULE_MEMORY) * ((said == y) - pool.standing)
    recency = pool.recency + (1.0 - plan.exponents[:, 2:]) * ((p.argmax(1) == y) - pool.recency)
    np.maximum(recency, data.LEAST_RECENCY, out=pool.recency)


def target_mask(desk: data.Desk, y: int, z: Singles, p: Floats) -> int:
    right = p.argmax(1) == y
    desk.mask[:] = right
    if not right.any():
        best = int(p[:, y].argmax())
        desk.mask[best if p[best, y] > 0 else int(z.argmax())] = 1
    return int(right.sum())


def top(scores: Floats) -> int:
    return int(scores.argmax())


FORMS = (
    *(bound, encode, observe_scale, softmax_scores, softmax_step),
    *(add_rows, _layer, _rectify, _thin, _add_layer_gradient, _forward, _errors_below, _output_errors, adam_step),
    *(majority_of, bayes_of, ask_trees, observe, best_cut, best_category),
    *(vote, judge, target_mask, top),
)


def take_over(modules: Iterable[ModuleType]) -> None:
    """Put the forms above in place of the loops of these names."""
    for module in modules:
        for form in FORMS:
            if hasattr(module, form.__name__):
                setattr(module, form.__name__, form)
