"""Scores of single rows, counted in three ways at once: since the start, over a window, and with older rows faded.

All state is a handful of plain arrays and every row is handled alone, in order, so that nothing depends on how rows
are cut into calls. The window's sums are taken anew from its rows when asked for, oldest first: exact, no drift.

Legend. W rows of the window, C classes there is room for.
classes: float64[3, C, 3], per way of counting and class: rows, answers, hits (whole numbers but for the faded ones).
totals: float64[2, 6], cumulative and faded: the columns WEIGHT .. SECONDS below.
ring: float64[W, 7], the last W rows: label, answer, then OWN .. SECOND, then 1 if there is a SECOND.
marks: float64[8], see below.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..models.compiled import compiled, inlined
from ..models.detectors import Adwins, PageHinkleys
from .alarms import CHUNK, watch
from .metrics import CLIP
from .recovery import follow

Array: TypeAlias = NDArray[Any]

SINCE_START, WINDOW, FADED = range(3)
(WEIGHT, OWN, MAJORITY, NO_CHANGE, SECOND, SECONDS) = range(6)
"""Sums of: 1; hit (regression: absolute error) of the learner, of the majority and of the no-change baseline; log loss
(regression: squared error); rows that have one."""
(MAJORITY_NOW, LAST, CONCEPT, LABELLED, SCALE, ODD) = range(6)
"""Places in marks. What the baselines answer now and the number of known drifts so far (these three are kept with a row
until its label comes); labelled rows; the weight of the next row relative to those in the faded sums; scores or
answers that were no finite number."""

LARGEST = 1e100
"""Labels and errors of regression are held within this, so that no sum of squares can overflow."""
MOST_CLASSES = 4096
"""Answers at or above are wrong, and counted under no class."""
RESCALE = 1e30


@inlined
def _held(value: float) -> float:
    return min(max(value, -LARGEST), LARGEST)


@inlined
def _fade(classes: Array, totals: Array, marks: Array, fading: float) -> float:
    """The weight of a new row in the faded sums. Instead of fading all that is there, newer rows weigh more; when the
    weight has become large everything is scaled back."""
    scale = marks[SCALE] / fading
    if scale > RESCALE:
        for c in range(classes.shape[1]):
            for j in range(3):
                classes[FADED, c, j] /= scale
        for j in range(6):
            totals[1, j] /= scale
        scale = 1.0
    marks[SCALE] = scale
    return scale


@inlined
def _enter(
    totals: Array, ring: Array, at: int, weight: float, own: float, majority: float, no_change: float, second: float
) -> None:
    """Add one row to the sums and the window. second: -1 where there is none."""
    has = 1.0 if second >= 0.0 else 0.0
    second = second if second >= 0.0 else 0.0
    for way in range(2):
        w = 1.0 if way == 0 else weight
        totals[way, WEIGHT] += w
        totals[way, OWN] += w * own
        totals[way, MAJORITY] += w * majority
        totals[way, NO_CHANGE] += w * no_change
        totals[way, SECOND] += w * second
        totals[way, SECONDS] += w * has
    ring[at, 2], ring[at, 3], ring[at, 4], ring[at, 5], ring[at, 6] = own, majority, no_change, second, has


@inlined
def _count_classes(classes: Array, label: int, answer: int, way: int, weight: float) -> None:
    classes[way, label, 0] += weight
    if 0 <= answer < MOST_CLASSES:
        classes[way, answer, 1] += weight
    if answer == label:
        classes[way, label, 2] += weight


@inlined
def _log_loss(scores: Array, i: int, label: int, marks: Array) -> float:
    """Minus the log of the label's probability; -1 where there are no scores."""
    if scores.shape[0] == 0:
        return -1.0
    p = scores[i, label] if label < scores.shape[1] else 0.0
    if not np.isfinite(p):
        p = 0.0
        marks[ODD] += 1.0
    return -np.log(min(max(p, CLIP), 1.0 - CLIP))


@compiled
def score_classes(
    y: Array, output: Array, scores: Array, baseline: Array, start: int,
    classes: Array, totals: Array, ring: Array, marks: Array,
    cells: Array, sums: Array,
    alarms: Array, track: Array, stretch: Array, fading: float, refractory: int,
) -> int:  # fmt: skip
    """Count rows from ``start`` on; returns where it stopped: after a chunk, or where more classes are needed.

    y, output: int64[B]. scores: float64[B, C'] or empty. baseline: float64[B, 2 or 3] kept from the time of the
    prediction, or empty: then what the baselines say just before each row. Rows without a label are passed over.
    """
    size, first, stop = ring.shape[0], int(marks[LABELLED]), min(y.shape[0], start + CHUNK)
    errors, n = np.empty(stop - start), 0
    for i in range(start, stop):
        label, answer = y[i], output[i]
        if label < 0 or label >= MOST_CLASSES:
            continue
        if max(label, answer if answer < MOST_CLASSES else 0) >= classes.shape[1]:
            stop = i
            break
        majority, last, concept = marks[MAJORITY_NOW], marks[LAST], marks[CONCEPT]
        if baseline.shape[0] > 0:
            majority, last = baseline[i, 0], baseline[i, 1]
            concept = baseline[i, 2] if baseline.shape[1] > 2 else concept
        labelled = first + n
        at = labelled % size
        hit = 1.0 if answer == label else 0.0
        weight = _fade(classes, totals, marks, fading)
        if labelled >= size:
            _count_classes(classes, int(ring[at, 0]), int(ring[at, 1]), WINDOW, -1.0)
        _count_classes(classes, label, answer, SINCE_START, 1.0)
        _count_classes(classes, label, answer, WINDOW, 1.0)
        _count_classes(classes, label, answer, FADED, weight)
        ring[at, 0], ring[at, 1] = label, answer if -1 <= answer < MOST_CLASSES else -1
        majority_hit, last_hit = 1.0 if majority == label else 0.0, 1.0 if last == label else 0.0
        _enter(totals, ring, at, weight, hit, majority_hit, last_hit, _log_loss(scores, i, label, marks))
        errors[n] = 1.0 - hit
        n += 1
        if concept == marks[CONCEPT]:
            follow(track, stretch, hit)
        marks[LAST] = label
        rows, best = classes[SINCE_START, label, 0], int(marks[MAJORITY_NOW])
        if best < 0 or rows > classes[SINCE_START, best, 0] or (rows == classes[SINCE_START, best, 0] and label < best):
            marks[MAJORITY_NOW] = label
    marks[LABELLED] = first + n
    watch(Adwins(cells), PageHinkleys(sums), alarms, first, errors[:n], refractory)
    return stop


@compiled
def score_numbers(
    y: Array, output: Array, scores: Array, baseline: Array, start: int,  # noqa: ARG001 - one signature for both
    classes: Array, totals: Array, ring: Array, marks: Array,
    cells: Array, sums: Array,
    alarms: Array, track: Array, stretch: Array, fading: float, refractory: int,
) -> int:  # fmt: skip
    """As ``score_classes`` for regression: y, output float64[B], NaN for an unknown label; scores are not looked at.

    An answer that is no finite number is counted, and scored as if the running mean had been answered. The detectors
    see ``e / (e + s)``, e the absolute error and s its faded mean before: in [0, 1) whatever the unit, a half as usual.
    """
    first, stop = int(marks[LABELLED]), min(y.shape[0], start + CHUNK)
    errors, n = np.empty(stop - start), 0
    for i in range(start, stop):
        if not np.isfinite(y[i]):
            continue
        mean, last, concept = marks[MAJORITY_NOW], marks[LAST], marks[CONCEPT]
        if baseline.shape[0] > 0:
            mean, last = baseline[i, 0], baseline[i, 1]
            concept = baseline[i, 2] if baseline.shape[1] > 2 else concept
        label, answer = _held(y[i]), output[i]
        if not np.isfinite(answer):
            answer = mean
            marks[ODD] += 1.0
        error = min(abs(answer - label), LARGEST)
        usual = totals[1, OWN] / totals[1, WEIGHT] if totals[1, WEIGHT] > 0.0 else 0.0
        weight = _fade(classes, totals, marks, fading)
        at = (first + n) % ring.shape[0]
        _enter(totals, ring, at, weight, error, abs(mean - label), abs(last - label), error * error)
        errors[n] = error / (error + usual) if error > 0.0 else 0.0
        n += 1
        if concept == marks[CONCEPT]:
            follow(track, stretch, -error)
        marks[LAST] = label
        marks[MAJORITY_NOW] += (label - marks[MAJORITY_NOW]) / (first + n)
    marks[LABELLED] = first + n
    watch(Adwins(cells), PageHinkleys(sums), alarms, first, errors[:n], refractory)
    return stop


@compiled
def window_totals(ring: Array, labelled: int) -> Array:
    """float64[6]: the totals of the rows in the window, added up from the oldest on."""
    sums = np.zeros(6)
    size = ring.shape[0]
    rows = min(labelled, size)
    for k in range(labelled - rows, labelled):
        at = k % size
        sums[WEIGHT] += 1.0
        for j in range(OWN, SECONDS + 1):
            sums[j] += ring[at, j + 1]
    return sums


@inlined
def _beyond(p0: float, pc: float) -> float:
    return (p0 - pc) / (1.0 - pc) if pc != 1.0 else np.nan


@compiled
def class_figures(classes: Array, totals: Array, ring: Array, labelled: int) -> Array:
    """float64[3, 8], per way of counting: accuracy, balanced accuracy, the three kappas, log loss, and the accuracies
    of the majority and the no-change baseline. NaN where not defined."""
    figures = np.full((3, 8), np.nan)
    if labelled == 0:
        return figures
    for way in range(3):
        sums = totals[0] if way == SINCE_START else (totals[1] if way == FADED else window_totals(ring, labelled))
        n = sums[WEIGHT]
        p0, majority, no_change = sums[OWN] / n, sums[MAJORITY] / n, sums[NO_CHANGE] / n
        chance, recalls, met = 0.0, 0.0, 0
        for c in range(classes.shape[1]):
            rows = classes[way, c, 0]
            if rows > 0.0:
                chance += (rows / n) * (classes[way, c, 1] / n)
                recalls += classes[way, c, 2] / rows
                met += 1
        figures[way, 0], figures[way, 1] = p0, recalls / met
        figures[way, 2], figures[way, 3] = _beyond(p0, chance), _beyond(p0, majority)
        figures[way, 4] = _beyond(p0, no_change)
        if sums[SECONDS] > 0.0:
            figures[way, 5] = sums[SECOND] / sums[SECONDS]
        figures[way, 6], figures[way, 7] = majority, no_change
    return figures


@compiled
def number_figures(totals: Array, ring: Array, labelled: int) -> Array:
    """float64[3, 4], per way of counting: MAE, RMSE, and the MAE of the running mean and of the last value."""
    figures = np.full((3, 4), np.nan)
    if labelled == 0:
        return figures
    for way in range(3):
        sums = totals[0] if way == SINCE_START else (totals[1] if way == FADED else window_totals(ring, labelled))
        n = sums[WEIGHT]
        figures[way, 0], figures[way, 1] = sums[OWN] / n, np.sqrt(sums[SECOND] / n)
        figures[way, 2], figures[way, 3] = sums[MAJORITY] / n, sums[NO_CHANGE] / n
    return figures
