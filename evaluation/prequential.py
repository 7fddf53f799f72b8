"""The standard evaluator: every prediction is scored once, with what was answered before its label was known.

Order for a row: it is predicted (and the baselines say what they would answer), its label arrives, it is scored, and
only then do the baselines learn the label. With delayed labels the baselines thus know no more than the learner did.
A. P. Dawid, "Present position and potential developments: the prequential approach", JRSS A 147, 1984; windows and
fading: J. Gama, R. Sebastião, P. P. Rodrigues, Machine Learning 90, 2013.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..models.detectors import Adwins, PageHinkleys, new_adwins, new_page_hinkleys
from ..streams import Array, StreamSpec
from . import tallies
from .alarms import DETECTORS, REFRACTORY, DriftLog, new_alarms
from .recovery import RELATIVE, STRETCH, TOLERANCE, begin, new_track, read
from .watch import plain

CLASS_SCORES = ("accuracy", "balanced_accuracy", "kappa", "kappa_m", "kappa_t", "logloss", "majority", "no_change")
NUMBER_SCORES = ("mae", "rmse", "majority", "no_change")
WAYS = ("", "_window", "_fading")

_INT, _FLOAT = np.dtype(np.int64), np.dtype(np.float64)
_NO_SCORES = np.zeros((0, 0))
_FOLLOW_ROWS = np.zeros((0, 3))


class Prequential:
    """Prequential scores, baselines, drift alarms and recovery times of one run, in fixed memory.

    window: rows of the sliding window. fading: what one row costs the older ones in the faded scores (0 < fading <= 1).
    refractory: labelled rows during which a drift detector does not repeat itself. horizon: labelled rows within which
    an alarm counts as finding a known drift. All figures are exact and the same, bit for bit, however the rows are cut
    into calls; a figure that is not defined is None.

    >>> import numpy as np
    >>> from driftway.streams import Column, StreamSpec
    >>> watch = Prequential(StreamSpec("example", (Column("x"),), classes=("no", "yes")))
    >>> watch.update_rows(np.array([0, 0, 1, 1, 1, 0]), np.array([0, 1, 1, 1, 0, 0]), None)
    >>> {k: round(v, 3) for k, v in watch.row().items() if k in ("accuracy", "kappa", "majority", "no_change")}
    {'accuracy': 0.667, 'kappa': 0.333, 'majority': 0.167, 'no_change': 0.5}
    """

    queries_only: ClassVar[bool] = False

    def __init__(
        self,
        spec: StreamSpec,
        window: int = 1000,
        fading: float = 0.999,
        refractory: int = REFRACTORY,
        horizon: int = 2000,
    ) -> None:
        if window < 1 or not 0.0 < fading <= 1.0 or refractory < 0 or horizon < 0:
            raise ValueError("window is at least 1, 0 < fading <= 1, refractory and horizon are not negative")
        self._regression = spec.target == "regression"
        self._names = NUMBER_SCORES if self._regression else CLASS_SCORES
        self.columns: tuple[str, ...] = ("labelled", *(n + way for n in self._names for way in WAYS), "alarms")
        self._fading, self._refractory = float(fading), int(refractory)
        room = 0 if self._regression else max(spec.n_classes or 2, 2)
        self._adwin, self._page_hinkley = new_adwins(1), new_page_hinkleys(1)
        self._set(
            classes=np.zeros((3, room, 3)),
            totals=np.zeros((2, 6)),
            ring=np.zeros((window, 7)),
            marks=np.array([0.0 if self._regression else -1.0] * 2 + [0.0, 0.0, 1.0, 0.0]),
            alarms=new_alarms(),
            track=new_track(),
            stretch=np.zeros(min(STRETCH, window)),
        )
        self._log = DriftLog(horizon)

    def _set(self, **arrays: Array) -> None:
        """Take over these arrays and line up what one compiled call is given."""
        self._arrays = arrays
        self._marks, self._alarms = arrays["marks"], arrays["alarms"]
        self._now = self._marks[: tallies.LABELLED].reshape(1, 3)
        self._call = (
            *(arrays[k] for k in ("classes", "totals", "ring", "marks")),
            *self._adwin,
            *self._page_hinkley,
            *(arrays[k] for k in ("alarms", "track", "stretch")),
            self._fading,
            self._refractory,
        )

    # --- rows -------------------------------------------------------------------------------------------------------

    def baseline(self, n: int) -> Array:
        """float64[n, 3]: what majority and no-change would answer now, for n rows, and how many drifts are known.

        Majority is the most frequent label that has arrived (the lowest on ties), no-change the last one; -1 before
        any. For regression their mean and the last; 0 before any.
        """
        return self._now.copy() if n == 1 else self._now.repeat(n, 0)

    def update(self, y: Array, output: Array, scores: Array | None, baseline: Array) -> None:
        """Rows whose labels came, all predicted beforehand; ``baseline``: what ``baseline`` said at that time.

        y, output: int64[B], or float64[B] for regression. scores: float64[B, C] class probabilities or None.
        """
        self._score(y, output, scores, plain(baseline, _FLOAT))

    def update_rows(self, y: Array, output: Array, scores: Array | None) -> None:
        """Rows tested and then trained on one after the other: the baselines know every row before the one at hand."""
        self._score(y, output, scores, _FOLLOW_ROWS)

    def _score(self, y: Array, output: Array, scores: Array | None, baseline: Array) -> None:
        dtype = _FLOAT if self._regression else _INT
        y, output = plain(y, dtype), plain(output, dtype)
        scores = _NO_SCORES if scores is None or self._regression else plain(scores, _FLOAT)
        score = tallies.score_numbers if self._regression else tallies.score_classes
        at, n = 0, len(y)
        while at < n:
            at = score(y, output, scores, baseline, at, *self._call)
            if self._alarms[0, 0]:
                self._collect()
            if at < n and not self._regression:
                self._make_room(int(y[at]), int(output[at]))

    def _make_room(self, label: int, answer: int) -> None:
        """Where the row at hand is of a class there is no room for: room for the next power of two."""
        old, code = self._arrays["classes"], max(c for c in (label, answer, 0) if c < tallies.MOST_CLASSES)
        if code < old.shape[1]:
            return
        new = np.zeros((3, 1 << code.bit_length(), 3))
        new[:, : old.shape[1]] = old
        self._set(**(self._arrays | {"classes": new}))

    def _collect(self) -> None:
        """Enter the alarms that compiled code left behind into the log."""
        for labelled, detector in self._alarms[2 : 2 + int(self._alarms[0, 0])].tolist():
            self._log.alarm(labelled, DETECTORS[detector])
        self._alarms[0], self._alarms[2:] = 0, 0

    # --- drifts -----------------------------------------------------------------------------------------------------

    def boundary(self, name: str, step: int) -> None:
        """The world changes now, after ``step`` rows: rows predicted from here on belong to a new concept.

        Delays are counted in labelled rows from here (waiting for labels is part of them); recovery only looks at rows
        predicted from here on, whenever their labels come.
        """
        labelled = int(self._marks[tallies.LABELLED])
        self._log.close(read(self._arrays["track"], self._stretch))
        window = tallies.window_totals(self._arrays["ring"], labelled)
        before = float(window[tallies.OWN] / window[tallies.WEIGHT]) if labelled else None
        self._log.drift(name, step, labelled, before)
        self._marks[tallies.CONCEPT] += 1
        if before is None:
            self._arrays["track"][:] = 0.0
        elif self._regression:
            begin(self._arrays["track"], -before, RELATIVE * before)
        else:
            begin(self._arrays["track"], before, TOLERANCE)

    @property
    def _stretch(self) -> int:
        return len(self._arrays["stretch"])

    def alarms(self) -> list[dict[str, Any]]:
        """The drift alarms since the last call: ``{"step": labelled rows, "detector": name}``."""
        return self._log.take()

    # --- results ----------------------------------------------------------------------------------------------------

    def _figures(self) -> dict[str, float | None]:
        labelled = int(self._marks[tallies.LABELLED])
        parts = self._arrays
        if self._regression:
            figures = tallies.number_figures(parts["totals"], parts["ring"], labelled)
        else:
            figures = tallies.class_figures(parts["classes"], parts["totals"], parts["ring"], labelled)
        values = (None if v != v else v for v in figures.T.ravel().tolist())
        return dict(zip(self.columns[1:-1], values, strict=True))

    def row(self) -> dict[str, float | int | None]:
        """The scores now, cumulative, over the window and faded; keys as in ``columns``."""
        labelled = int(self._marks[tallies.LABELLED])
        return {"labelled": labelled, **self._figures(), "alarms": self._log.alarms}

    def summary(self) -> dict[str, Any]:
        """All scores, the baselines, and what became of every known drift. A score that does not apply is None."""
        labelled = int(self._marks[tallies.LABELLED])
        figures = self._figures()
        every = dict.fromkeys(n + way for n in (*CLASS_SCORES[:-2], *NUMBER_SCORES[:-2]) for way in WAYS)
        return {
            "labelled": labelled,
            **{name: figures.get(name) for name in every},
            "baseline": {name: figures[name] for name in ("majority", "no_change")},
            "not_finite": int(self._marks[tallies.ODD]),
            **self._log.summary(labelled, read(self._arrays["track"], self._stretch)),
        }

    # --- saved and restored -----------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that later figures depend on, by reference."""
        return {
            **self._arrays,
            "adwin": dict(self._adwin._asdict()),
            "page_hinkley": dict(self._page_hinkley._asdict()),
            "log": self._log.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what ``state()`` of an evaluator with the same settings returned; copies what it keeps."""
        for name in ("ring", "stretch"):
            if state[name].shape != self._arrays[name].shape:
                raise ValueError(f"a state with a window of {len(state['ring'])} rows, not {len(self._arrays['ring'])}")
        self._adwin = Adwins(**{k: np.array(v) for k, v in state["adwin"].items()})
        self._page_hinkley = PageHinkleys(**{k: np.array(v) for k, v in state["page_hinkley"].items()})
        self._set(**{k: np.array(state[k]) for k in self._arrays})
        self._log.load(state["log"])
