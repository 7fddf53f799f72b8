"""When and how a leaf of a Hoeffding tree splits, and how a tree learns a row.

A leaf splits on the feature of highest information gain once its lead over the runner-up exceeds the Hoeffding bound
eps = sqrt(R^2 ln(1/delta) / (2 n)), R = log2(classes in the leaf), or once eps < tau (a tie).
Source: Domingos and Hulten, KDD 2000.
"""

from __future__ import annotations

import math

import numpy as np

from .compiled import inner
from .hoeffding import (
    ADAPTIVE,
    ATTEMPTED,
    BAYES_RIGHT,
    COUNT,
    DEPTH,
    EQUALS,
    FEATURE,
    FREE_LEAVES,
    FREE_NODES,
    HIGH,
    IS_LEAF,
    KIND,
    LEAF,
    LEFT,
    LOW,
    MAJORITY_RIGHT,
    MEAN,
    MULTIWAY,
    NUMERIC,
    RIGHT,
    THRESHOLD,
    USED_FAN,
    WEIGHT,
    Floats,
    Forest,
    Rules,
    bayes_of,
    child_of,
    clear_observers,
    majority_of,
    observe,
    plant,
    take_leaf,
    top,
    variance_of,
)


@inner
def sum_of(weights: Floats) -> float:
    """Sum of a vector (a plain loop compiles in a tenth of the time of NumPy's)."""
    total = 0.0
    for w in weights:
        total += w
    return total


@inner
def entropy(weights: Floats) -> float:
    """Shannon entropy in bits of class weights[C]; 0 where there is no weight."""
    total, sum_of_logs = 0.0, 0.0
    for w in weights:
        if w > 0:
            total += w
            sum_of_logs += w * np.log2(w)
    return np.log2(total) - sum_of_logs / total if total > 0 else 0.0


@inner
def gain(before: float, branches: Floats, min_branch: float) -> float:
    """Information gain of branches[B, C] over an entropy; -inf unless two branches hold more than ``min_branch``."""
    total, large = 0.0, 0
    for branch in branches:
        total += sum_of(branch)
    if total <= 0:
        return -np.inf
    after = 0.0
    for branch in branches:
        share = sum_of(branch) / total
        large += share > min_branch
        after += share * entropy(branch)
    return before - after if large >= 2 else -np.inf


@inner
def share_below(forest: Forest, slot: int, c: int, j: int, f: int, cut: float) -> float:
    """Weight of class c that its Gaussian puts at or below a cut: n Phi((cut - mean) / sigma)."""
    observer = forest.observer
    if cut < observer[slot, c, LOW, j]:
        return 0.0
    if cut >= observer[slot, c, HIGH, j]:
        return observer[slot, c, COUNT, j]
    variance = variance_of(forest, slot, c, j, f)
    if variance <= 0:
        return 0.0
    gap = (observer[slot, c, MEAN, j] - cut) / math.sqrt(2.0 * variance)
    return observer[slot, c, COUNT, j] * 0.5 * math.erfc(gap)


@inner
def best_cut(forest: Forest, rules: Rules, slot: int, j: int, before: float, halves: Floats) -> tuple[float, float]:
    """Merit and value of the best of ``cuts`` evenly spaced thresholds of a numeric feature. halves: scratch [2, C]."""
    f = forest.subset[slot, j]
    low, high = np.inf, -np.inf
    n_classes = halves.shape[1]
    for c in range(n_classes):
        observer = forest.observer[slot, c]
        if observer[COUNT, j] > 0:
            low, high = min(low, observer[LOW, j]), max(high, observer[HIGH, j])
    best, value = -np.inf, 0.0
    step = (high - low) / (rules.cuts + 1.0)
    for i in range(rules.cuts):
        cut = low + step * (i + 1)
        if not low < cut < high:
            continue
        for c in range(n_classes):
            halves[0, c] = share_below(forest, slot, c, j, f, cut)
            halves[1, c] = forest.observer[slot, c, COUNT, j] - halves[0, c]
        merit = gain(before, halves, rules.min_branch)
        if merit > best:
            best, value = merit, cut
    return best, value


@inner
def best_category(
    forest: Forest, rules: Rules, slot: int, j: int, before: float, halves: Floats
) -> tuple[float, float, bool]:
    """Merit, category and whether to split into all categories at once, for a nominal feature."""
    f = forest.subset[slot, j]
    first, fan = forest.slot[f], forest.fan[f]
    weights, total = np.zeros((fan, halves.shape[1])), np.zeros(halves.shape[1])
    for c in range(halves.shape[1]):
        for k in range(fan):
            weights[k, c] = forest.categories[slot, c, first + k]
            total[c] += weights[k, c]
    best, value, multiway = -np.inf, 0.0, False
    if rules.multiway:
        best, multiway = gain(before, weights, rules.min_branch), True
    for k in range(fan):
        if sum_of(weights[k]) <= 0:
            continue
        for c in range(halves.shape[1]):
            halves[0, c] = weights[k, c]
            halves[1, c] = total[c] - weights[k, c]
        merit = gain(before, halves, rules.min_branch)
        if merit > best:
            best, value, multiway = merit, float(k), False
    return best, value, multiway


@inner
def attempt_split(forest: Forest, rules: Rules, tree: int, at: int) -> None:
    """Split the leaf node if one feature is clearly the best; without room for the children it stays a leaf."""
    slot = forest.node[at, LEAF]
    counts = forest.counts[slot]
    n_classes, seen, total, largest = counts.shape[0], 0, 0.0, 0.0
    for c in range(n_classes):
        seen += counts[c] > 0
        total += counts[c]
        largest = max(largest, counts[c])
    if seen < 2:
        return
    if largest / total > rules.max_share:
        if rules.forget_pure:
            clear_observers(forest, slot)
        return
    before = entropy(counts)
    halves = np.zeros((2, n_classes))
    best, second, chosen, value, multiway = -np.inf, -np.inf, -1, 0.0, False
    for j in range(forest.subset.shape[1]):
        f = forest.subset[slot, j]
        if f < 0:
            break
        all_at_once = False
        if forest.slot[f] < 0:
            merit, cut = best_cut(forest, rules, slot, j, before, halves)
        else:
            merit, cut, all_at_once = best_category(forest, rules, slot, j, before, halves)
        if merit >= best:
            best, second, chosen, value, multiway = merit, best, j, cut, all_at_once
        elif merit > second:
            second = merit
    bound = math.sqrt(math.log2(max(seen, 2)) ** 2 * math.log(1.0 / rules.delta) / (2.0 * total))
    if not (best - second > bound or bound < rules.tau):
        return
    if best == -np.inf:
        if rules.forget_pure:
            clear_observers(forest, slot)
    elif multiway:
        split_all_ways(forest, tree, at, chosen)
    else:
        split_in_two(forest, tree, at, chosen, value)


@inner
def has_room(forest: Forest, extra: int) -> bool:
    """Whether ``extra`` leaves can be taken."""
    return forest.used[FREE_NODES] >= extra and forest.used[FREE_LEAVES] >= extra


@inner
def split_in_two(forest: Forest, tree: int, at: int, j: int, value: float) -> None:
    """Turn a leaf into a numeric (x <= value) or nominal (category counter of x == value) test with two leaves."""
    if not has_room(forest, 2):
        return
    node = forest.node[at]
    slot, f = node[LEAF], forest.subset[node[LEAF], j]
    left = take_leaf(forest, tree, node[DEPTH] + 1)
    right = take_leaf(forest, tree, node[DEPTH] + 1)
    for c in range(forest.counts.shape[1]):
        observer = forest.observer[slot, c]
        if forest.slot[f] < 0:
            below = share_below(forest, slot, c, j, f, value)
        else:
            below = forest.categories[slot, c, forest.slot[f] + int(value)]
        forest.counts[forest.node[left, LEAF], c] = below
        forest.counts[forest.node[right, LEAF], c] = observer[COUNT, j] - below
    settle(forest, left)
    settle(forest, right)
    node[KIND] = NUMERIC if forest.slot[f] < 0 else EQUALS
    node[FEATURE], node[LEFT], node[RIGHT] = f, left, right
    forest.node_value[at, THRESHOLD] = value
    give_back(forest, slot)


@inner
def split_all_ways(forest: Forest, tree: int, at: int, j: int) -> None:
    """Turn a leaf into a test with one leaf per category of a nominal feature."""
    node = forest.node[at]
    slot, f = node[LEAF], forest.subset[node[LEAF], j]
    fan, first = forest.fan[f], forest.used[USED_FAN]
    if not has_room(forest, fan) or first + fan > forest.branches.shape[0]:
        return
    for k in range(fan):
        child = take_leaf(forest, tree, node[DEPTH] + 1)
        forest.branches[first + k] = child
        for c in range(forest.counts.shape[1]):
            forest.counts[forest.node[child, LEAF], c] = forest.categories[slot, c, forest.slot[f] + k]
        settle(forest, child)
    forest.used[USED_FAN] += fan
    node[KIND], node[FEATURE], node[LEFT], node[RIGHT] = MULTIWAY, f, first, fan
    give_back(forest, slot)


@inner
def settle(forest: Forest, at: int) -> None:
    """A new leaf counts its inherited weight as seen."""
    slot = forest.node[at, LEAF]
    total = sum_of(forest.counts[slot])
    forest.leaf[slot, ATTEMPTED] = total
    forest.node_value[at, WEIGHT] = total


@inner
def give_back(forest: Forest, slot: int) -> None:
    """Free a leaf's statistics."""
    forest.free_leaves[forest.used[FREE_LEAVES]] = slot
    forest.used[FREE_LEAVES] += 1


@inner
def learn_tree(forest: Forest, rules: Rules, tree: int, x: Floats, y: int, weight: float, scratch: Floats) -> None:
    """Train one tree on a row x[d] of class y. scratch: [C]. An unborn tree is planted first."""
    if forest.root[tree] < 0:
        if not has_room(forest, 1):
            return
        plant(forest, tree)
    at = forest.root[tree]
    forest.node_value[at, WEIGHT] += weight
    while forest.node[at, KIND] != IS_LEAF:
        at = child_of(forest, at, x, True)
        forest.node_value[at, WEIGHT] += weight
    slot = forest.node[at, LEAF]
    if rules.leaf == ADAPTIVE:
        if not majority_of(forest, slot, scratch) or top(scratch) == y:
            forest.leaf[slot, MAJORITY_RIGHT] += weight
        if bayes_of(forest, slot, x, scratch) and top(scratch) == y:
            forest.leaf[slot, BAYES_RIGHT] += weight
    observe(forest, slot, x, y, weight)
    total = 0.0
    for c in range(forest.counts.shape[1]):
        total += forest.counts[slot, c]
    if total - forest.leaf[slot, ATTEMPTED] >= rules.grace and forest.node[at, DEPTH] < rules.max_depth:
        forest.leaf[slot, ATTEMPTED] = total
        attempt_split(forest, rules, tree, at)
