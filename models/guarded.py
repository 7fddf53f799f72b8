"""Hoeffding trees that are replaced when their error rises: one pair of ADWIN detectors and a spare tree each.

A rise at the looser level starts a background tree, which learns beside the tree; a rise at the stricter level puts
it in the tree's place (or starts afresh where there is none). Source: Gomes et al., "Adaptive random forests for
evolving data stream classification", Machine Learning 106, 2017.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiled import inner
from .detectors import Adwins, adwin_mean, adwin_reset, adwin_update, new_adwins
from .hoeffding import Floats, Forest, Rules, fell, plant, uniform
from .splitting import has_room, learn_tree


class Guards(NamedTuple):
    """Detectors of n trees. Tree i of the forest is watched; tree n + i is its background tree."""

    warning: Adwins
    drift: Adwins
    replaced: NDArray[np.int64]  # [n] how often each tree was replaced


def new_guards(n: int) -> Guards:
    """Guards for the first n trees of a forest of 2 n."""
    return Guards(new_adwins(n), new_adwins(n), np.zeros(n, np.int64))


@inner
def poisson(forest: Forest, tree: int, mean: float) -> float:
    """A Poisson draw from the tree's generator (inversion); mean 0 stands for a weight of exactly 1."""
    if mean <= 0:
        return 1.0
    u = uniform(forest, tree)
    term = np.exp(-mean)
    below, k = term, 0
    while u >= below and k < 100:
        k += 1
        term *= mean / k
        below += term
    return float(k)


@inner
def _rose(detectors: Adwins, i: int, error: float, delta: float) -> bool:
    """Feed one error; True when the detector finds a change to the worse."""
    before = adwin_mean(detectors, i)
    return adwin_update(detectors, i, error, delta) and adwin_mean(detectors, i) > before


@inner
def watch(forest: Forest, guards: Guards, tree: int, error: float, warning_delta: float, drift_delta: float) -> None:
    """Tell the guard of a tree whether it erred (1.0) or not (0.0); start or swap in its background tree."""
    spare = guards.replaced.shape[0] + tree
    if _rose(guards.warning, tree, error, warning_delta):
        fell(forest, spare)
        if has_room(forest, 1):
            plant(forest, spare)
        adwin_reset(guards.warning, tree)
    if _rose(guards.drift, tree, error, drift_delta):
        fell(forest, tree)
        forest.root[tree] = forest.root[spare]
        forest.root[spare] = -1
        adwin_reset(guards.warning, tree)
        adwin_reset(guards.drift, tree)
        guards.replaced[tree] += 1


@inner
def learn_guarded(
    forest: Forest, rules: Rules, guards: Guards, tree: int, x: Floats, y: int, weight: float, scratch: Floats
) -> None:
    """Train a tree, and its background tree where there is one, on a row."""
    if weight <= 0:
        return
    for one in (tree, guards.replaced.shape[0] + tree):
        if one == tree or forest.root[one] >= 0:
            learn_tree(forest, rules, one, x, y, weight, scratch)
