"""The metrics of continual evaluation, from counts of right answers: pure arithmetic in memory that does not grow.

M. De Lange, G. M. van de Ven, T. Tuytelaars, "Continual evaluation for lifelong learning: identifying the stability
gap", ICLR 2023; the formulas are those of the authors' code. Where that code is at odds with the definition (window
plasticity) ours follows the definition, and ``wp_reference=True`` the code. Forgetting and backward transfer: D.
Lopez-Paz, M. Ranzato, NeurIPS 2017, and A. Chaudhry et al., ECCV 2018. MFN and MAA: as continual learning of language
models reports them. Gap depth is our reading of follow-up work.

Letters: A(i) is the share of experience i's held-out rows that are answered rightly, k the number of experiences seen
(the last of them is being learnt), n the number of an evaluation. Experiences are numbered from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .windows import Moves

WINDOWS = (10, 100)
"""Evaluations in a window, as in the authors' code."""


@dataclass(slots=True)
class _Track:
    """One experience's curve, summed up; all in right answers. None: not known yet.

    end: when it had been learnt. best: the most at any end of an experience, its own and later ones. least: the
    fewest since its own end, up to the last switch; low: the fewest since the last switch, which stood at
    ``before``. fallen, relative: sum of before - low, and of that over before, of the switches that are over;
    switches, counted: how many there are in these sums.
    """

    rows: int
    moves: list[Moves]
    latest: int = 0
    end: int | None = None
    best: int | None = None
    least: int | None = None
    low: int | None = None
    before: int | None = None
    fallen: int = 0
    switches: int = 0
    relative: float = 0.0
    counted: int = 0

    def switch(self) -> None:
        """Another experience begins: what stands now is how the one before it ended."""
        if self.low is not None and self.before is not None:
            self.least = self.low if self.least is None else min(self.least, self.low)
            self.fallen, self.switches, self.relative, self.counted = self.gaps()
        if self.end is None:
            self.end = self.latest
        self.best = self.latest if self.best is None else max(self.best, self.latest)
        self.before, self.low = self.latest, None

    def gaps(self) -> tuple[int, int, float, int]:
        """fallen, switches, relative and counted, the running switch included."""
        if self.low is None or self.before is None:
            return self.fallen, self.switches, self.relative, self.counted
        drop = self.before - self.low
        fallen, switches = self.fallen + drop, self.switches + 1
        if not self.before:
            return fallen, switches, self.relative, self.counted
        return fallen, switches, self.relative + drop / self.before, self.counted + 1


WHOLE = ("latest", "end", "best", "least", "low", "before", "fallen", "switches", "counted")
"""The whole numbers of a ``_Track``, in the order in which they are saved."""


class Scores:
    """All metrics of continual evaluation from counts of right answers, exact and in memory that stays the same.

    sizes: held-out rows of each experience, in the order in which they are learnt. Windows count evaluations, so that
    figures of window metrics at different intervals are not comparable. A figure that is not defined is None.

    >>> scores = Scores([10, 10])
    >>> for right in ([8], [9], [4, 7], [6, 9]):
    ...     scores.add(right)
    >>> {k: v for k, v in scores.figures().items() if k in ("acc", "min_acc", "wc_acc", "gap_depth")}
    {'acc': 0.75, 'min_acc': 0.4, 'wc_acc': 0.65, 'gap_depth': 0.5}
    """

    def __init__(self, sizes: Sequence[int], *, windows: Sequence[int] = WINDOWS, wp_reference: bool = False) -> None:
        if not sizes or min(sizes) < 1:
            raise ValueError("there is at least one experience, and each has at least one row")
        self.sizes = tuple(map(int, sizes))
        self.windows = tuple(windows)
        self.evaluations = 0
        self._reference = wp_reference
        self._tracks: list[_Track] = []
        self._sums: list[list[int]] = []
        self._ends = 0.0  # sum of ACC at the ends of the experiences that are over

    @property
    def seen(self) -> int:
        """Experiences seen so far."""
        return len(self._tracks)

    @property
    def latest(self) -> list[int]:
        """Right answers of each experience seen, at the last evaluation."""
        return [track.latest for track in self._tracks]

    def add(self, right: Sequence[int]) -> None:
        """One evaluation: right answers of experiences 0, 1, ... up to the one being learnt.

        One more than the last time: a new experience began, and the last evaluation was at the end of the one before.
        """
        tracks = self._tracks
        if len(right) != len(tracks):
            self._begin(len(right))
        self.evaluations = n = self.evaluations + 1
        sums, current = self._sums[-1], len(tracks) - 1
        for i, (track, count) in enumerate(zip(tracks, right, strict=True)):
            track.latest = count
            sums[i] += count
            if i < current and (track.low is None or count < track.low):
                track.low = count
            for moves in track.moves:
                moves.add(n, count)

    def _begin(self, seen: int) -> None:
        if seen != len(self._tracks) + 1 or seen > len(self.sizes):
            raise ValueError(f"{seen} counts after {len(self._tracks)} of {len(self.sizes)} experiences")
        for track in self._tracks:
            track.switch()
        self._ends += self.row()["acc"] or 0.0
        self._tracks.append(self._track(seen - 1))
        self._sums.append([0] * seen)

    def _track(self, i: int) -> _Track:
        return _Track(self.sizes[i], [Moves(w, reference=self._reference) for w in self.windows])

    # --- results ------------------------------------------------------------------------------------------------------

    def row(self) -> dict[str, float | None]:
        """The three figures that say how things stand: acc, min_acc and wc_acc."""
        tracks = self._tracks
        if not tracks:
            return {"acc": None, "min_acc": None, "wc_acc": None}
        now = tracks[-1].latest / tracks[-1].rows
        least = _mean([_fewest(track) / track.rows for track in tracks[:-1]])
        acc = sum(track.latest / track.rows for track in tracks) / len(tracks)
        share = 1 / len(tracks)
        return {"acc": acc, "min_acc": least, "wc_acc": now if least is None else share * now + (1 - share) * least}

    def figures(self) -> dict[str, float | None]:
        """All metrics by name (see ``metrics.METRICS``)."""
        tracks, past = self._tracks, self._tracks[:-1]
        gaps = [(track.rows, *track.gaps()) for track in past]
        forgetting = _mean([(_known(t.end) - t.latest) / t.rows for t in past])
        found = self.row()
        acc = found["acc"]
        found |= {"mfn": acc, "maa": None if acc is None else (self._ends + acc) / len(tracks)}
        for name in ("drop", "rise"):
            for j, width in enumerate(self.windows):
                key = f"{'wf' if name == 'drop' else 'wp'}{width}"
                found[key] = _mean([getattr(t.moves[j], name) / t.rows for t in tracks])
        return found | {
            "forgetting": forgetting,
            "forgetting_max": _mean([(_known(t.best) - t.latest) / t.rows for t in past]),
            "bwt": None if forgetting is None else 0.0 - forgetting,
            "learning_accuracy": _mean([(t.latest if t.end is None else t.end) / t.rows for t in tracks]),
            "aaa": self._anytime(),
            "gap_depth": _ratio(sum(fallen / rows for rows, fallen, *_ in gaps), sum(g[2] for g in gaps)),
            "gap_depth_relative": _ratio(sum(g[3] for g in gaps), sum(g[4] for g in gaps)),
        }

    def _anytime(self) -> float | None:
        """Mean ACC over all evaluations, from exact sums for each number of experiences seen."""
        total = 0.0
        for sums in self._sums:
            total += sum(s / rows for s, rows in zip(sums, self.sizes)) / len(sums)
        return _ratio(total, self.evaluations)

    # --- saved and restored -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that later figures depend on."""
        whole = [[_code(getattr(track, name)) for name in WHOLE] for track in self._tracks]
        return {
            "evaluations": self.evaluations,
            "ends": self._ends,
            "tracks": np.array(whole, np.int64).reshape(-1, len(WHOLE)),
            "relative": np.array([track.relative for track in self._tracks], np.float64),
            "sums": [np.array(sums, np.int64) for sums in self._sums],
            "moves": [[moves.state() for moves in track.moves] for track in self._tracks],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what ``state()`` of one with the same sizes and windows returned; copies what it keeps."""
        self.evaluations, self._ends = int(state["evaluations"]), float(state["ends"])
        self._sums = [sums.tolist() for sums in state["sums"]]
        self._tracks = []
        for i, whole in enumerate(state["tracks"].tolist()):
            track = self._track(i)
            for name, code in zip(WHOLE, whole, strict=True):
                setattr(track, name, None if code == _UNKNOWN else code)
            track.relative = float(state["relative"][i])
            for moves, kept in zip(track.moves, state["moves"][i], strict=True):
                moves.load(kept)
            self._tracks.append(track)


_UNKNOWN = -(2**62)
"""Stands for None among whole numbers; no sum of counts gets there."""


def _code(value: int | None) -> int:
    return _UNKNOWN if value is None else value


def _known(value: int | None) -> int:
    assert value is not None, "an experience that is over has an end"
    return value


def _fewest(track: _Track) -> int:
    """The fewest right answers since the experience's own end."""
    return min(v for v in (track.least, track.low) if v is not None)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _ratio(total: float, count: int) -> float | None:
    return total / count if count else None
