"""What the curve of a continual evaluation shows: what each switch cost, and the whole of it in few enough figures to
draw. Whatever is thinned keeps its lowest points: a mean over a stretch would hide the very drop that is looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..streams import Array
from .curves import Curve
from .plots import thin


@dataclass(frozen=True, slots=True)
class Fall:
    """What an experience that is over lost while the next one was learnt.

    experience: its number, from 0. before, lowest, end: its accuracy at the switch, at its lowest until the next
    switch, and there. place: where in the curve it was lowest. updates: from the switch to there.
    """

    experience: int
    before: float
    lowest: float
    end: float
    place: int
    updates: int

    @property
    def depth(self) -> float:
        """The gap: accuracy lost, negative where none was."""
        return self.before - self.lowest


@dataclass(frozen=True, slots=True)
class Switch:
    """One experience ends, another begins. begins: the number of the latter, from 0. place: in the curve, the end of
    the former; update: the same in updates. falls: one for each experience before."""

    begins: int
    place: int
    update: int
    falls: tuple[Fall, ...]

    @property
    def deepest(self) -> Fall:
        """The fall that lost most; of equals the earliest experience's."""
        return max(self.falls, key=lambda fall: fall.depth)

    @property
    def mean(self) -> float:
        """Mean depth over the experiences; the mean over all switches and experiences is the gap depth."""
        return sum(fall.depth for fall in self.falls) / len(self.falls)


def switches(curve: Curve) -> list[Switch]:
    """Every switch of the curve with what it cost."""
    accuracy, places = curve.accuracy, curve.switches.tolist()
    found = []
    for place, until in pairwise([*places, len(curve.update) - 1]):
        after = slice(place + 1, until + 1)
        falls = []
        for i in range(int(curve.experience[place]) + 1):
            lowest = place + 1 + int(accuracy[after, i].argmin())
            updates = int(curve.update[lowest] - curve.update[place])
            before, least, end = accuracy[[place, lowest, until], i].tolist()
            falls.append(Fall(i, before, least, end, lowest, updates))
        found.append(Switch(int(curve.experience[place + 1]), place, int(curve.update[place]), tuple(falls)))
    return found


def mean_accuracy(curve: Curve) -> Array:
    """float64[n]: ACC at each evaluation, the mean over the experiences seen."""
    return np.nanmean(curve.accuracy, axis=1) if len(curve.update) else np.empty(0)


def after_switches(curve: Curve, updates: int) -> list[tuple[Array, Array]]:
    """For each switch so many updates after it: updates since then, from 0 (float64[m]), and the mean accuracy of the
    experiences before (float64[m])."""
    accuracy, found = curve.accuracy, []
    for place, until in pairwise([*curve.switches.tolist(), len(curve.update) - 1]):
        since = curve.update[place : until + 1] - curve.update[place]
        shown = slice(place, place + int(np.searchsorted(since, updates, side="right")))
        past = accuracy[shown, : int(curve.experience[place]) + 1]
        found.append((since[: len(past)].astype(np.float64), past.mean(axis=1)))
    return found


def worst_before(curve: Curve) -> Array:
    """float64[n]: the lowest accuracy among the experiences that are over; NaN in the first."""
    past = np.arange(curve.right.shape[1]) < curve.experience[:, None]
    lowest = np.where(past, curve.accuracy, np.inf).min(axis=1, initial=np.inf)
    return np.where(np.isinf(lowest), np.nan, lowest)


def shape_of(y: Array, limit: int, keep: Sequence[int] = ()) -> Array:
    """int64[m], rising: places of y: float64[n] that keep its shape (see ``thin``), the places ``keep`` among them;
    leading NaN are left out."""
    known = np.flatnonzero(~np.isnan(y))
    if not len(known):
        return known
    start = int(known[0])
    shown = thin(y[start:], limit) + start
    return np.union1d(shown, [place for place in keep if place >= start]).astype(np.int64)


def envelope(curve: Curve, y: Array, most: int) -> tuple[Array, Array]:
    """y: float64[n] in about ``most`` stretches: middle updates (float64[m]) and lowest, median and highest value of
    each (float64[3, m]). No stretch goes across a switch."""
    n = len(y)
    edges = np.union1d(np.linspace(0, n, min(most, n) + 1).astype(np.int64), curve.switches + 1)
    parts = [y[start:stop] for start, stop in pairwise(edges.tolist())]
    middle = (curve.update[edges[:-1]] + curve.update[edges[1:] - 1]) / 2
    return middle, np.array([[p.min() for p in parts], [np.median(p) for p in parts], [p.max() for p in parts]])


def lowest_grid(curve: Curve, y: Array, columns: int) -> Array:
    """float64[k, <= columns]: the lowest values of y: float64[n, k] in equal stretches of updates.

    A stretch without an evaluation shows the one before it. NaN where nothing is known yet.
    """
    last = int(curve.update[-1])
    columns = max(1, min(columns, last))
    of = np.minimum(np.maximum(-(-curve.update * columns // last) - 1, 0), columns - 1)
    grid = np.full((columns, y.shape[1]), np.nan)
    np.fmin.at(grid, of, y)
    for before, column in pairwise(range(columns)):
        empty = np.isnan(grid[column])
        grid[column, empty] = grid[before, empty]
    return grid.T


def aligned(curve: Curve, like: Curve) -> Array:
    """float64[n]: the updates of a curve as those of another, switch on switch, the same steps after the last one.

    Seeds that order the classes anew have experiences of other lengths; a mean over them would smear each drop.
    """
    own, theirs = ([0, *c.update[c.switches].tolist()] for c in (curve, like))
    shared = min(len(own), len(theirs))
    after = np.maximum(curve.update - own[shared - 1], 0)
    return np.interp(curve.update, own[:shared], theirs[:shared]) + after
