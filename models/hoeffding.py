"""Hoeffding trees as plain arrays, compiled.

A ``Forest`` holds the nodes and leaves of any number of trees in shared arrays, so that its state is a handful of
arrays and one call can work on all trees. Split decisions are in ``splitting.py``.

Legend: N node slots, L leaf slots, C classes, F features a leaf observes (its subset), Q category counters, d columns.
A leaf observes each numeric feature by one Gaussian per class and each nominal one by counts per class and category.

Source: Domingos and Hulten, "Mining high-speed data streams" (KDD 2000); Gaussian observers and adaptive naive Bayes
leaves as in MOA. Conventions follow river's ``HoeffdingTreeClassifier``, against which the tests hold it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiled import inner

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

KIND, FEATURE, LEFT, RIGHT, LEAF, DEPTH = range(6)  # columns of node
THRESHOLD, WEIGHT = range(2)  # columns of node_value
ATTEMPTED, MAJORITY_RIGHT, BAYES_RIGHT = range(3)  # columns of leaf
IS_LEAF, NUMERIC, EQUALS, MULTIWAY = range(4)  # kinds of node
COUNT, MEAN, SQUARES, LOW, HIGH, SLOPE, OFFSET = range(7)  # rows of observer; log p(x) = OFFSET + SLOPE (x - MEAN)^2
MAJORITY, BAYES, ADAPTIVE = range(3)  # what a leaf predicts with
FREE_NODES, FREE_LEAVES, USED_FAN = range(3)  # entries of used

NEGLIGIBLE = -700.0  # log odds beyond which a posterior is 0: its exponential would be denormal, and slow
HALF_LOG_TAU = 0.5 * np.log(2 * np.pi)
SMALLEST_VARIANCE = 1e-150  # below it a spread counts as none, so that 1 / variance stays finite


class Rules(NamedTuple):
    """How trees grow and predict; the same for all trees of a forest.

    grace: weight a leaf gathers between two split attempts. delta: allowed chance of a wrong split. tau: below this
    Hoeffding bound a tie is broken. leaf: MAJORITY, BAYES or ADAPTIVE. cuts: split points tried per numeric feature.
    min_branch: smallest share of weight a branch may have. max_share: a leaf purer than this is not split.
    forget_pure: clear the observers of a leaf that is not worth a split (river does). multiway: nominal features may
    split into one branch per category. max_depth: level at which leaves no longer split (the root is at 0).
    """

    grace: float = 200.0
    delta: float = 1e-7
    tau: float = 0.05
    leaf: int = ADAPTIVE
    cuts: int = 10
    min_branch: float = 0.01
    max_share: float = 0.99
    forget_pure: bool = True
    multiway: bool = True
    max_depth: int = 1_000


class Forest(NamedTuple):
    """The state of all trees. Slots that are in use nowhere are listed in ``free_nodes`` and ``free_leaves``."""

    root: Ints  # [T] node of each tree's root, -1: no tree
    width: Ints  # [T] features in a leaf's subset
    generator: NDArray[np.uint64]  # [T] state of each tree's random generator
    node: NDArray[np.int32]  # [N, 6]
    node_value: Floats  # [N, 2]
    leaf: Floats  # [L, 3]
    counts: Floats  # [L, C] weight of each class
    subset: NDArray[np.int32]  # [L, F] observed features
    observer: Floats  # [L, C, 7, F]
    categories: Floats  # [L, C, Q] weight per category of the nominal features
    slot: Ints  # [d] first category counter of a nominal feature, -1: numeric
    fan: Ints  # [d] number of categories
    floor: Floats  # [d] smallest variance of an observer
    free_nodes: NDArray[np.int32]  # [N]
    free_leaves: NDArray[np.int32]  # [L]
    branches: NDArray[np.int32]  # children of multiway nodes
    used: Ints  # [3] counters of the free lists and of branches


def new_forest(widths: list[int], fan: list[int], n_classes: int, seed: int, capacity: int = 16) -> Forest:
    """A forest of ``len(widths)`` unborn trees over columns with ``fan`` categories each (0: numeric)."""
    d, trees = len(fan), len(widths)
    fans = np.array(fan, np.int64)
    slot = np.where(fans > 0, np.cumsum(fans) - fans, -1)
    f = min(max(widths, default=1), d)
    n_nodes = n_leaves = max(capacity, 2 * trees)
    return Forest(
        root=np.full(trees, -1, np.int64),
        width=np.minimum(np.array(widths, np.int64), d),
        generator=np.random.SeedSequence(seed).generate_state(trees, np.uint64).astype(np.uint64),
        node=np.zeros((n_nodes, 6), np.int32),
        node_value=np.zeros((n_nodes, 2)),
        leaf=np.zeros((n_leaves, 3)),
        counts=np.zeros((n_leaves, n_classes)),
        subset=np.zeros((n_leaves, f), np.int32),
        observer=np.zeros((n_leaves, n_classes, 7, f)),
        categories=np.zeros((n_leaves, n_classes, int(fans.sum()))),
        slot=slot,
        fan=fans,
        floor=np.zeros(d),
        free_nodes=np.arange(n_nodes, dtype=np.int32)[::-1].copy(),
        free_leaves=np.arange(n_leaves, dtype=np.int32)[::-1].copy(),
        branches=np.zeros(64 if fans.any() else 0, np.int32),
        used=np.array([n_nodes, n_leaves, 0], np.int64),
    )


def most_leaves(forest: Forest, max_bytes: int) -> int:
    """How many leaves fit into so many bytes with the present number of classes; never fewer than 64."""
    return max(64, max_bytes // leaf_bytes(forest))


def leaf_bytes(forest: Forest) -> int:
    """Bytes that one more leaf takes, its nodes and places in the free lists included."""
    parts = (forest.leaf, forest.counts, forest.subset, forest.observer, forest.categories, forest.node)
    return sum(a.itemsize * int(np.prod(a.shape[1:])) for a in parts) + 64


def enlarged(forest: Forest, max_leaves: int) -> Forest:
    """The same forest with twice the slots (at most ``max_leaves`` leaves)."""
    old = len(forest.leaf)
    leaves = min(max(2 * old, 16), max_leaves)
    nodes = max(2 * leaves, len(forest.node))
    grown = {
        name: _padded(getattr(forest, name), {0: size})
        for size, names in (
            (leaves, ("leaf", "counts", "subset", "observer", "categories")),
            (nodes, ("node", "node_value")),
            (2 * leaves if forest.fan.any() else 0, ("branches",)),
        )
        for name in names
    }
    used = forest.used.copy()
    free_nodes, used[FREE_NODES] = _more_free(forest.free_nodes, int(used[FREE_NODES]), nodes)
    free_leaves, used[FREE_LEAVES] = _more_free(forest.free_leaves, int(used[FREE_LEAVES]), leaves)
    return forest._replace(**grown, free_nodes=free_nodes, free_leaves=free_leaves, used=used)


def with_room(forest: Forest, leaves: int, max_leaves: int) -> tuple[Forest, int]:
    """The forest, enlarged until ``leaves`` more can be taken, and how many can: ``leaves``, or 0 at ``max_leaves``."""
    while forest.used[FREE_NODES] < leaves or forest.used[FREE_LEAVES] < leaves:
        if len(forest.leaf) >= max_leaves:
            return forest, 0
        forest = enlarged(forest, max_leaves)
    return forest, leaves


def with_classes(forest: Forest, n_classes: int) -> Forest:
    """The same forest with room for more classes."""
    grown = {name: _padded(getattr(forest, name), {1: n_classes}) for name in ("counts", "observer", "categories")}
    return forest._replace(**grown)


def with_trees(forest: Forest, trees: int, seed: int) -> Forest:
    """The same forest with more trees, unborn, as wide as its first."""
    old = len(forest.root)
    fresh = np.random.SeedSequence([seed, old]).generate_state(trees - old, np.uint64)
    return forest._replace(
        root=np.append(forest.root, np.full(trees - old, -1)),
        width=np.append(forest.width, np.full(trees - old, forest.width[0])),
        generator=np.append(forest.generator, fresh),
    )


def _padded(array: NDArray, sizes: dict[int, int]) -> NDArray:
    """The array with zeros behind it along the given axes; never smaller."""
    shape = tuple(max(n, sizes.get(axis, n)) for axis, n in enumerate(array.shape))
    out = np.zeros(shape, array.dtype)
    out[tuple(slice(0, n) for n in array.shape)] = array
    return out


def _more_free(free: NDArray, count: int, size: int) -> tuple[NDArray, int]:
    """The stack of free slots after the slots have grown to ``size``; low numbers are handed out first."""
    fresh = np.arange(size - 1, len(free) - 1, -1, dtype=np.int32)
    stack = np.zeros(size, np.int32)
    stack[:count] = free[:count]
    stack[count : count + len(fresh)] = fresh
    return stack, count + len(fresh)


@inner
def uniform(forest: Forest, tree: int) -> float:
    """The next number in [0, 1) of a tree's generator (SplitMix64: Steele, Lea, Flood, OOPSLA 2014)."""
    forest.generator[tree] += np.uint64(0x9E3779B97F4A7C15)
    z = forest.generator[tree]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.float64(z >> np.uint64(11)) * 2.0**-53


@inner
def take_leaf(forest: Forest, tree: int, depth: int) -> int:
    """A new, empty leaf node; the caller has made sure that there is room."""
    forest.used[FREE_NODES] -= 1
    forest.used[FREE_LEAVES] -= 1
    at = forest.free_nodes[forest.used[FREE_NODES]]
    slot = forest.free_leaves[forest.used[FREE_LEAVES]]
    node = forest.node[at]
    node[KIND], node[LEAF], node[DEPTH] = IS_LEAF, slot, depth
    node[FEATURE] = node[LEFT] = node[RIGHT] = -1
    forest.node_value[at] = 0.0
    forest.leaf[slot] = 0.0
    forest.counts[slot] = 0.0
    clear_observers(forest, slot)
    d, width = forest.slot.shape[0], forest.width[tree]
    chosen = forest.subset[slot]
    chosen[:] = -1
    if width == d:
        for j in range(d):
            chosen[j] = j
    else:
        picked = 0  # selection sampling (Knuth, algorithm S) keeps the subset in column order
        for f in range(d):
            if uniform(forest, tree) * (d - f) < width - picked:
                chosen[picked] = f
                picked += 1
    return at


@inner
def clear_observers(forest: Forest, slot: int) -> None:
    """Forget what a leaf knows of its features; its class weights stay."""
    forest.observer[slot] = 0.0
    forest.categories[slot] = 0.0


@inner
def plant(forest: Forest, tree: int) -> None:
    """Give a tree its first leaf."""
    forest.root[tree] = take_leaf(forest, tree, 0)


@inner
def fell(forest: Forest, tree: int) -> None:
    """Free every slot of a tree. Multiway branch tables are not reclaimed: forests that fell trees split in two."""
    if forest.root[tree] < 0:
        return
    waiting, count = np.empty(forest.node.shape[0], np.int64), 1
    waiting[0] = forest.root[tree]
    while count > 0:
        count -= 1
        at = waiting[count]
        node = forest.node[at]
        if node[KIND] == IS_LEAF:
            forest.free_leaves[forest.used[FREE_LEAVES]] = node[LEAF]
            forest.used[FREE_LEAVES] += 1
        elif node[KIND] == MULTIWAY:
            for b in range(node[RIGHT]):
                waiting[count + b] = forest.branches[node[LEFT] + b]
            count += node[RIGHT]
        else:
            waiting[count], waiting[count + 1] = node[LEFT], node[RIGHT]
            count += 2
        forest.free_nodes[forest.used[FREE_NODES]] = at
        forest.used[FREE_NODES] += 1
    forest.root[tree] = -1


@inner
def child_of(forest: Forest, at: int, x: Floats, learning: bool) -> int:
    """The branch a row takes at an inner node; where its value is missing or new, the branch most rows took."""
    node = forest.node[at]
    value = x[node[FEATURE]]
    if node[KIND] == MULTIWAY:
        if not np.isnan(value):
            child = np.int64(forest.branches[node[LEFT] + int(value) % node[RIGHT]])
            if learning or forest.node_value[child, WEIGHT] > 0:
                return int(child)
        best = np.int64(forest.branches[node[LEFT]])
        for b in range(1, node[RIGHT]):
            other = np.int64(forest.branches[node[LEFT] + b])
            if forest.node_value[other, WEIGHT] > forest.node_value[best, WEIGHT]:
                best = other
        return int(best)
    if np.isnan(value):
        left_heavier = forest.node_value[node[LEFT], WEIGHT] >= forest.node_value[node[RIGHT], WEIGHT]
    elif node[KIND] == NUMERIC:
        left_heavier = value <= forest.node_value[at, THRESHOLD]
    else:
        left_heavier = int(value) % forest.fan[node[FEATURE]] == int(forest.node_value[at, THRESHOLD])
    return int(node[LEFT]) if left_heavier else int(node[RIGHT])


@inner
def find_leaf(forest: Forest, tree: int, x: Floats) -> int:
    """The leaf node a row falls into; -1 for an unborn tree."""
    node, at = forest.node, forest.root[tree]
    if at < 0:
        return -1
    while node[at, KIND] != IS_LEAF:
        value = x[node[at, FEATURE]]
        if node[at, KIND] == NUMERIC and value == value:
            at = np.int64(node[at, LEFT] if value <= forest.node_value[at, THRESHOLD] else node[at, RIGHT])
        else:
            at = child_of(forest, at, x, False)
    return at


@inner
def majority_of(forest: Forest, slot: int, out: Floats) -> bool:
    """Class shares of a leaf into out[C]; False (and zeros) where the leaf is empty."""
    counts, total = forest.counts, 0.0
    for c in range(counts.shape[1]):
        total += counts[slot, c]
    for c in range(counts.shape[1]):
        out[c] = counts[slot, c] / total if total > 0 else 0.0
    return total > 0


@inner
def categories_of(forest: Forest, slot: int, c: int, x: Floats) -> float:
    """Log likelihood of a row's nominal values under class c of a leaf; a category never seen there says nothing."""
    score = 0.0
    for j in range(forest.subset.shape[1]):
        f = forest.subset[slot, j]
        if f < 0:
            break
        if forest.slot[f] >= 0 and not np.isnan(x[f]):
            seen = forest.categories[slot, c, forest.slot[f] + int(x[f]) % forest.fan[f]]
            if seen > 0:
                score += np.log(seen / forest.observer[slot, c, COUNT, j])
    return score


@inner
def bayes_of(forest: Forest, slot: int, x: Floats, out: Floats) -> bool:
    """Naive Bayes posteriors of a leaf into out[C]: p(c|x) ~ p(c) prod_f p(x_f|c); False where the leaf is empty.

    A feature without a spread for a class (fewer than two values seen, all equal, or missing) says nothing of it.
    Most of the time of a forest goes by here, so arrays are indexed in place: a view of a row costs as much as
    the arithmetic on it.
    """
    counts, subset, observer = forest.counts, forest.subset, forest.observer
    n_classes, width, total = counts.shape[1], 0, 0.0
    for c in range(n_classes):
        total += counts[slot, c]
    if total <= 0:
        out[:] = 0.0
        return False
    while width < subset.shape[1] and subset[slot, width] >= 0:
        width += 1
    best, nominal = -np.inf, forest.categories.shape[2] > 0
    for c in range(n_classes):
        if counts[slot, c] <= 0:
            out[c] = -np.inf
            continue
        score = np.log(counts[slot, c] / total)
        for j in range(width):  # nominal features have slope and offset 0
            value = x[subset[slot, j]]
            gap = value - observer[slot, c, MEAN, j]
            density = observer[slot, c, OFFSET, j] + observer[slot, c, SLOPE, j] * gap * gap
            score += density if value == value else 0.0
        if nominal:
            score += categories_of(forest, slot, c, x)
        out[c] = score
        best = max(best, score)
    total = 0.0
    for c in range(n_classes):
        out[c] = np.exp(out[c] - best) if out[c] - best > NEGLIGIBLE else 0.0
        total += out[c]
    for c in range(n_classes):
        out[c] /= total
    return True


@inner
def top(scores: Floats) -> int:
    """Index of the largest score, the lowest on ties."""
    best = 0
    for c in range(1, scores.shape[0]):
        if scores[c] > scores[best]:
            best = c
    return best


@inner
def predict_tree(forest: Forest, rules: Rules, tree: int, x: Floats, out: Floats) -> bool:
    """Class probabilities of one tree for a row x[d] into out[C]; False where the tree knows nothing."""
    at = find_leaf(forest, tree, x)
    if at < 0:
        out[:] = 0.0
        return False
    slot = forest.node[at, LEAF]
    bayes_leads = forest.leaf[slot, BAYES_RIGHT] >= forest.leaf[slot, MAJORITY_RIGHT]
    if rules.leaf == BAYES or (rules.leaf == ADAPTIVE and bayes_leads):
        return bayes_of(forest, slot, x, out)
    return majority_of(forest, slot, out)


@inner
def observe(forest: Forest, slot: int, x: Floats, y: int, weight: float) -> None:
    """Add a row to a leaf: class weight, and per observed feature a weighted Welford step or a category count."""
    observer = forest.observer
    forest.counts[slot, y] += weight
    for j in range(forest.subset.shape[1]):
        f = forest.subset[slot, j]
        if f < 0:
            break
        value = x[f]
        if np.isnan(value):
            continue
        count = observer[slot, y, COUNT, j] + weight
        observer[slot, y, COUNT, j] = count
        if forest.slot[f] >= 0:
            forest.categories[slot, y, forest.slot[f] + int(value) % forest.fan[f]] += weight
            continue
        if count == weight:
            observer[slot, y, LOW, j] = observer[slot, y, HIGH, j] = value
        elif value < observer[slot, y, LOW, j]:
            observer[slot, y, LOW, j] = value
        elif value > observer[slot, y, HIGH, j]:
            observer[slot, y, HIGH, j] = value
        gap = value - observer[slot, y, MEAN, j]
        mean = observer[slot, y, MEAN, j] + weight * gap / count
        observer[slot, y, MEAN, j] = mean
        observer[slot, y, SQUARES, j] += weight * gap * (value - mean)
        variance = variance_of(forest, slot, y, j, f)
        if variance > SMALLEST_VARIANCE:
            observer[slot, y, SLOPE, j] = -0.5 / variance
            observer[slot, y, OFFSET, j] = -HALF_LOG_TAU - 0.5 * np.log(variance)


@inner
def variance_of(forest: Forest, slot: int, c: int, j: int, f: int) -> float:
    """Sample variance of one Gaussian, at least the feature's floor; 0 where fewer than two units of weight came."""
    count = forest.observer[slot, c, COUNT, j]
    if count <= 1:
        return 0.0
    return max(forest.observer[slot, c, SQUARES, j] / (count - 1.0), forest.floor[f])
