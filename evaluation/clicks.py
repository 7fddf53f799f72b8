"""Scores of click models: how well they rank, within users too, and whether their probabilities are true; by time slot.

y: int[B], 1 for a click; p: float[B], its probability; group: whose row it is (a user). None where not defined.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..models.compiled import compiled
from ..streams import InputError, StreamSpec
from ..streams.feed import uniform
from .metrics import CLIP, logloss
from .watch import Watch, plain

Array: TypeAlias = NDArray[Any]

_INT, _FLOAT = np.dtype(np.int64), np.dtype(np.float64)


# --- functions of all rows at once ----------------------------------------------------------------------------------


def auc(y: ArrayLike, p: ArrayLike) -> float | None:
    """The share of pairs of a click and a non-click that are ranked rightly, ties counting half.

    ``(sum of the clicks' ranks - n1 (n1 + 1) / 2) / (n1 n0)``, mid-ranks. None with one class only.
    J. A. Hanley, B. J. McNeil, Radiology 143, 1982.

    >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), auc([1, 0], [0.5, 0.5]), auc([1, 1], [0.2, 0.3])
    (0.75, 0.5, None)
    """
    found, _ = _aucs(y, p, np.zeros(len(np.asarray(y))))
    return float(found[0]) if len(found) else None


def gauc(y: ArrayLike, p: ArrayLike, group: ArrayLike) -> float | None:
    """AUC within each group, averaged by the groups' rows; groups of one class are dropped.

    H. Zhu et al., Optimized cost per click in Taobao display advertising, KDD 2017.

    >>> gauc([0, 1, 0, 1, 1], [0.2, 0.9, 0.8, 0.1, 0.7], ["a", "a", "b", "b", "c"])
    0.5
    """
    found, rows = _aucs(y, p, group)
    return float((found * rows).sum() / rows.sum()) if len(found) else None


def _aucs(y: ArrayLike, p: ArrayLike, group: ArrayLike) -> tuple[Array, Array]:
    """float64[g] and int64[g]: AUC and number of rows of every group that has both classes."""
    order = np.lexsort((np.asarray(p, np.float64), np.asarray(group)))
    click, p, group = np.asarray(y)[order] == 1, np.asarray(p, np.float64)[order], np.asarray(group)[order]
    if not len(click):
        return np.zeros(0), np.zeros(0, np.int64)
    first = np.concatenate([[True], group[1:] != group[:-1]])
    ties = np.flatnonzero(first | np.concatenate([[True], p[1:] != p[:-1]]))
    starts = np.flatnonzero(first)
    rows, clicks = np.diff([*starts, len(click)]), np.add.reduceat(click, starts, dtype=np.int64)
    length = np.diff([*ties, len(click)])
    ranks = np.repeat(ties + (length + 1) / 2, length) - np.repeat(starts, rows)
    both = (clicks > 0) & (clicks < rows)
    sums, clicks, rows = np.add.reduceat(np.where(click, ranks, 0.0), starts)[both], clicks[both], rows[both]
    return (sums - clicks * (clicks + 1) / 2) / (clicks * (rows - clicks)), rows


def calibration(y: ArrayLike, p: ArrayLike) -> float | None:
    """Clicks foretold over clicks that came, ``sum p / sum y``: above 1 the model promises too much.

    >>> calibration([0, 1, 0, 1], [0.5, 0.5, 0.25, 0.25])
    0.75
    """
    clicks = float(np.sum(np.asarray(y) == 1))
    return float(np.sum(np.asarray(p, np.float64))) / clicks if clicks else None


def click_scores(y: ArrayLike, p: ArrayLike, group: ArrayLike | None = None) -> dict[str, float | None]:
    """AUC, gAUC (None without groups), log loss and calibration."""
    p = np.asarray(p, np.float64)
    return {
        "auc": auc(y, p),
        "gauc": None if group is None else gauc(y, p, group),
        "logloss": logloss(y, np.stack([1 - p, p], 1)),
        "calibration": calibration(y, p),
    }


def by_slot(
    y: ArrayLike, p: ArrayLike, slot: ArrayLike, group: ArrayLike | None = None
) -> dict[int, dict[str, float | None]]:
    """``click_scores`` of every slot of time, in their order. slot: int[B], such as ``time // 3600``."""
    y, p, slot = np.asarray(y), np.asarray(p), np.asarray(slot, np.int64)
    whose = None if group is None else np.asarray(group)
    return {
        int(s): click_scores(y[slot == s], p[slot == s], None if whose is None else whose[slot == s])
        for s in np.unique(slot)
    }


# --- while a stream runs --------------------------------------------------------------------------------------------

BINS, EDGE = 4096, 16.0
"""Equal bins of the logit from -16 to 16 (their width is 1/128), in which scores are counted."""
KEPT = 131_072
"""Rows that are kept as they are."""
GATHERED = 256
"""Rows that are entered together, since entering one alone costs as much."""
MOST_SLOTS = 200
COLUMNS = ("auc", "slot", "slot_auc", "slot_gauc", "slot_logloss", "slot_calibration")


@compiled
def count_clicks(y: Array, p: Array, slot: Array, counts: Array, sums: Array) -> None:
    """Enter rows one by one, into their slot and into the last place, which is the whole run.

    y, slot: int64[B]. p: float64[B]. counts: int64[S + 1, BINS, 2], rows without and with a click by the bin of their
    score. sums: float64[S + 1, 2], of p and of the log loss.
    """
    whole, bins = counts.shape[0] - 1, counts.shape[1]
    for i in range(y.shape[0]):
        q = min(max(p[i], CLIP), 1.0 - CLIP)
        at = min(max(int((np.log(q / (1.0 - q)) + EDGE) * (bins / (2.0 * EDGE))), 0), bins - 1)
        loss = -np.log(q) if y[i] == 1 else -np.log(1.0 - q)
        for s in (slot[i], whole):
            counts[s, at, y[i]] += 1
            sums[s, 0] += p[i]
            sums[s, 1] += loss


def binned_auc(counts: Array) -> tuple[float | None, float]:
    """AUC of scores that were counted in bins (counts: int64[M, 2], lowest first), and how far off it is at most.

    Rows of one bin count as ties, so the error is at most half the share of pairs that fall into one bin.

    >>> binned_auc(np.array([[2, 0], [1, 1], [0, 2]]))
    (0.9444444444444444, 0.05555555555555555)
    """
    without, clicks = counts[:, 0].astype(np.float64), counts[:, 1].astype(np.float64)
    pairs = float(without.sum() * clicks.sum())
    if not pairs:
        return None, 0.0
    below = np.cumsum(without) - without / 2
    return float((clicks * below).sum()) / pairs, float((clicks * without).sum()) / 2 / pairs


class ClickScores(Watch):
    """AUC, gAUC, log loss and calibration of a click stream, of the whole run and of equal slots of its time.

    A row counts for the slot in which it came, with the probability given then, whenever its label comes. Rows
    without a probability are passed over. Memory is bounded, 65 kB a slot and 2.6 MB. Log loss and calibration are
    exact. AUC and gAUC are exact up to 131,072 rows. From there on AUC is that of scores in 4,096 bins, with a bound of
    its error, and gAUC is that of some users, drawn by hash, half as many each time that their rows do not fit; their
    rows are all kept. The same bits however the rows are cut into calls. All this is ours.

    spec: of a stream with ``impressions``, and a length where it is to have slots. slots: 1 to 200.

    >>> from driftway.streams import Impressions
    >>> watch = ClickScores(StreamSpec("example", (), classes=("no", "yes"), length=4, impressions=Impressions()), 2)
    >>> watch.rows(np.arange(4), np.array([0, 1, 1, 0]), np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.5, 0.5]]))
    >>> watch.summary()["auc"], [slot["auc"] for slot in watch.summary()["clicks"]["slots"]]
    (0.875, [1.0, 0.5])
    """

    def __init__(self, spec: StreamSpec, slots: int = 10) -> None:
        super().__init__()
        if spec.impressions is None or spec.n_classes != 2:
            raise ValueError(f"{spec.name} is no click stream: two classes and impressions are needed")
        if not 1 <= slots <= MOST_SLOTS:
            raise InputError(f"time-slots: must be 1 to {MOST_SLOTS}, not {slots}")
        self.columns = COLUMNS
        self._users, self._times = spec.impressions.users, spec.impressions.times
        self._bounds = _bounds(spec, slots)
        self._last = None if spec.length is None else spec.length - 1
        n = len(self._bounds) - 1
        self._counts, self._sums = np.zeros((n + 1, BINS, 2), np.int64), np.zeros((n + 1, 2))
        self._p, self._user = np.full(KEPT, np.nan), np.full(KEPT, -1, np.int64)
        self._mark = np.full(KEPT, -1, np.int32)  # twice the slot, and one more for a click
        self._kept, self._share = 0, 1.0
        self._new = np.zeros(GATHERED, np.int64), np.zeros(GATHERED, np.int64), np.zeros(GATHERED)  # ids, y, p
        self._gathered = 0
        self._reached = 0  # slots that are over
        self._over: dict[str, Any] = dict.fromkeys(COLUMNS[1:])

    # --- rows -------------------------------------------------------------------------------------------------------

    def update_rows(self, y: Array, output: Array, scores: Array | None) -> None:
        """Nothing: ``rows`` is told of them."""

    def rows(self, ids: Array, y: Array, scores: Array | None) -> None:
        """Rows whose labels came. ids, y: int64[B]. scores: float64[B, 2] as they were predicted, or None."""
        if scores is None or scores.shape[1] != 2:
            return
        n = len(ids)
        if self._gathered + n > GATHERED:
            self._flush()
        if n > GATHERED:
            self._enter(ids, y, plain(scores[:, 1], _FLOAT))
            return
        place = slice(self._gathered, self._gathered + n)
        for room, values in zip(self._new, (ids, y, scores[:, 1])):
            room[place] = values
        self._gathered += n

    def _flush(self) -> None:
        """Enter what was gathered."""
        n, self._gathered = self._gathered, 0
        if n:
            self._enter(*(values[:n] for values in self._new))

    def _enter(self, ids: Array, y: Array, p: Array) -> None:
        known = (y >= 0) & np.isfinite(p)
        if not known.all():
            ids, y, p = ids[known], y[known], p[known]
        if not len(ids):
            return
        y, slot = plain(y, _INT), self._slots(ids)
        count_clicks(y, p, slot, self._counts, self._sums)
        ended = self._last is not None and int(ids.max()) >= self._last
        self._reached = max(self._reached, int(slot.max()) + ended)
        self._keep(p, self._whose(ids), 2 * slot + y)

    def _slots(self, ids: Array) -> Array:
        """int64[B]: the slot of each row, from 0."""
        times = ids if self._times is None else self._times[np.clip(ids, 0, len(self._times) - 1)]
        return np.searchsorted(self._bounds[1:-1], times, side="right")

    def _whose(self, ids: Array) -> Array:
        """int64[B]: the user of each row, -1 where not known."""
        if self._users is None:
            return np.full(len(ids), -1)
        place = np.clip(ids, 0, len(self._users) - 1)
        return np.where(ids == place, self._users[place], -1)

    def _keep(self, p: Array, user: Array, mark: Array) -> None:
        """Keep rows of the users that are drawn; draw fewer users where they do not fit."""
        while True:
            if self._share < 1.0:
                drawn = _lots(user) < self._share
                p, user, mark = p[drawn], user[drawn], mark[drawn]
            n = min(len(p), KEPT - self._kept)
            place = slice(self._kept, self._kept + n)
            self._p[place], self._user[place], self._mark[place] = p[:n], user[:n], mark[:n]
            self._kept += n
            p, user, mark = p[n:], user[n:], mark[n:]
            if not len(p):
                return
            self._halve()

    def _halve(self) -> None:
        """Half as many users, or fewer still until one row fits."""
        lots = _lots(self._user)
        while self._kept == KEPT:
            self._share /= 2
            stay = np.flatnonzero(lots < self._share)
            self._kept = len(stay)
        for kept in (self._p, self._user, self._mark):
            kept[: self._kept] = kept[stay]

    # --- figures ----------------------------------------------------------------------------------------------------

    def row(self) -> dict[str, Any]:
        """AUC since the start, from bins; and of the last slot that is over, from 1, its scores by the labels that were
        known when the first record behind it was due."""
        self._flush()
        if self._reached != (self._over["slot"] or 0):
            scores = self._scores(self._reached - 1)
            self._over = {"slot": self._reached} | {c: scores[c.removeprefix("slot_")] for c in COLUMNS[2:]}
        return {"auc": binned_auc(self._counts[-1])[0], **self._over}

    def summary(self) -> dict[str, Any]:
        """auc, gauc, and under ``clicks`` the other scores, the same for every slot, and how exact they are.

        clock: seconds (since 1970) or rows, the unit of the slots' bounds. auc_margin: how far off AUC is at most.
        users_share: of the users that gAUC is taken from; None where there are none.
        """
        self._flush()
        n = len(self._bounds) - 1
        if not self._counts[n].any():
            return {"auc": None, "gauc": None, "clicks": None}
        whole = self._scores(n)
        bounds = [float(b) for b in self._bounds]
        slots = [{"from": bounds[s], "to": bounds[s + 1], **self._scores(s)} for s in range(n)]
        share = None if self._users is None else self._share
        told = {"clock": "rows" if self._times is None else "seconds", "users_share": share}
        return {"auc": whole["auc"], "gauc": whole["gauc"], "clicks": {**whole, **told, "slots": slots}}

    def _scores(self, slot: int) -> dict[str, Any]:
        """Of one slot, or of the whole run where it is the number of slots."""
        n, (total, loss) = len(self._bounds) - 1, self._sums[slot].tolist()
        without, clicks = self._counts[slot].sum(axis=0).tolist()
        mark = self._mark[: self._kept]
        here = np.flatnonzero(mark // 2 == slot) if slot < n else np.arange(self._kept)
        y, p, user = mark[here] % 2, self._p[here], self._user[here]
        found, margin = binned_auc(self._counts[slot])
        if self._share == 1.0:
            found, margin = auc(y, p), 0.0
        mine = user >= 0
        return {
            "rows": without + clicks,
            "clicks": clicks,
            "auc": found,
            "auc_margin": margin,
            "gauc": gauc(y[mine], p[mine], user[mine]),
            "logloss": loss / (without + clicks) if without + clicks else None,
            "calibration": total / clicks if clicks else None,
        }

    # --- saved and restored -----------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Counts, sums and kept rows, by reference."""
        self._flush()
        kept = slice(0, self._kept)
        return {
            "stretch": self.stretch,
            "counts": self._counts,
            "sums": self._sums,
            "p": self._p[kept],
            "user": self._user[kept],
            "mark": self._mark[kept],
            "share": self._share,
            "reached": self._reached,
            "over": dict(self._over),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what ``state()`` of an evaluator with as many slots returned."""
        if state["counts"].shape != self._counts.shape:
            raise ValueError(f"a state with {len(state['sums']) - 1} time slots, not {len(self._sums) - 1}")
        self._gathered = 0
        self._counts, self._sums = np.array(state["counts"]), np.array(state["sums"])
        self._kept, self._share = len(state["p"]), float(state["share"])
        for kept, told in ((self._p, "p"), (self._user, "user"), (self._mark, "mark")):
            kept[: self._kept] = state[told]
        self.stretch, self._reached, self._over = int(state["stretch"]), int(state["reached"]), dict(state["over"])


def _bounds(spec: StreamSpec, slots: int) -> Array:
    """float64[S + 1]: where the slots begin and end; one slot where it is not known how long the stream is."""
    times = None if spec.impressions is None else spec.impressions.times
    n = spec.length if times is None else min(len(times), spec.length or len(times))
    if n is None or (times is not None and not n):
        return np.array([0.0, np.inf])
    return np.linspace(0, n, slots + 1) if times is None else np.linspace(times[0], times[n - 1], slots + 1)


def _lots(user: Array) -> Array:
    """float64[B] in [0, 1), one number per user; rows of nobody are never drawn."""
    return np.where(user >= 0, uniform(0, user), 1.0)
