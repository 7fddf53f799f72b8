"""Drift alarms, and how they compare with the drifts that are known.

Two detectors watch the error of the learner, ADWIN (delta 0.002) and Page-Hinkley (river's defaults). An alarm is a
*rise* of the error: that a learner still improves is no drift. After an alarm the same detector is silent for a
refractory period, since a learner in trouble sets it off again and again.

A known drift is found by a detector's first alarm after it, if that comes before the next drift and within ``horizon``
labelled rows; every other alarm is false. (River's detectors as they are; one-sidedness, refractory period and horizon
are our choice.)
"""

from __future__ import annotations

from collections import deque
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..models.compiled import compiled, inlined
from ..models.detectors import Adwins, PageHinkleys, adwin_mean, adwin_update, page_hinkley_update
from .recovery import Recovery

Array: TypeAlias = NDArray[Any]

DETECTORS = ("adwin", "page_hinkley")
DELTA = 0.002
REFRACTORY = 500
"""Labelled rows during which a detector does not repeat itself."""
KEPT = 256
"""Drifts told one by one in a summary (the latest), and alarms kept for whoever collects them."""
CHUNK = 512
"""Most rows of one compiled call."""
ROOM = 64
"""Alarms there is room for after a call: ADWIN looks at every 32nd row and Page-Hinkley is silent for 30 after it found
something, so that a chunk gives at most 17 + 18."""


def new_alarms() -> Array:
    """int64[ROOM + 2, 2]. Row 0: alarms in the list, nothing. Row 1: labelled rows at the last alarm of each detector,
    -1 before the first. Then the list: (labelled rows, detector)."""
    alarms = np.zeros((ROOM + 2, 2), np.int64)
    alarms[1] = -1
    return alarms


@inlined
def _list(alarms: Array, labelled: int, detector: int, refractory: int) -> None:
    """Write an alarm down, unless it comes too soon after the detector's last one."""
    if alarms[1, detector] < 0 or labelled - alarms[1, detector] >= refractory:
        alarms[1, detector] = labelled
        at = alarms[0, 0] + 2
        alarms[at, 0], alarms[at, 1] = labelled, detector
        alarms[0, 0] += 1


@compiled
def watch(
    adwin: Adwins, page_hinkley: PageHinkleys, alarms: Array, labelled: int, errors: Array, refractory: int
) -> None:
    """Give errors (float64[n], n <= CHUNK, in [0, 1]) to both detectors; list their alarms. labelled: rows before."""
    for k in range(errors.shape[0]):
        before = adwin_mean(adwin, 0)
        if adwin_update(adwin, 0, errors[k], DELTA) and adwin_mean(adwin, 0) > before:
            _list(alarms, labelled + k + 1, 0, refractory)
        if page_hinkley_update(page_hinkley, 0, errors[k], 30, 0.005, 50.0, 0.9999, False):
            _list(alarms, labelled + k + 1, 1, refractory)


class DriftLog:
    """Known drifts with what happened after each, and the score of each detector. Memory is bounded."""

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon
        self.alarms = 0
        self._drifts: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._known = 0
        self._tally = {d: {"alarms": 0, "found": 0, "false": 0, "delays": 0} for d in DETECTORS}
        self._waiting: deque[dict[str, Any]] = deque(maxlen=KEPT)

    def drift(self, name: str, step: int, labelled: int, before: float | None) -> None:
        """A known drift now: rows seen, labelled rows seen, and the window's score, None where there was none."""
        delay: dict[str, int | None] = dict.fromkeys(DETECTORS)
        self._drifts.append({"name": name, "step": step, "labelled": labelled, "before": before, "delay": delay})
        self._known += 1

    def close(self, found: Recovery) -> None:
        """The latest drift is watched no longer."""
        if self._drifts:
            self._drifts[-1] |= _told(found)

    def alarm(self, labelled: int, detector: str) -> None:
        """A detector's alarm at this many labelled rows."""
        tally = self._tally[detector]
        tally["alarms"] += 1
        self.alarms += 1
        self._waiting.append({"step": labelled, "detector": detector})
        drift = self._drifts[-1] if self._drifts else None
        delay = labelled - drift["labelled"] if drift else self.horizon + 1
        if drift and drift["delay"][detector] is None and delay <= self.horizon:
            drift["delay"][detector] = delay
            tally["found"] += 1
            tally["delays"] += delay
        else:
            tally["false"] += 1

    def take(self) -> list[dict[str, Any]]:
        """The alarms since the last call."""
        taken = list(self._waiting)
        self._waiting.clear()
        return taken

    def summary(self, labelled: int, current: Recovery) -> dict[str, Any]:
        """Counts, the drifts one by one, and per detector: found, missed, false alarms, mean delay in labelled rows."""
        drifts = [dict(d, delay=dict(d["delay"])) for d in self._drifts]
        if drifts:
            drifts[-1] |= _told(current)
        return {
            "drift_alarms": self.alarms,
            "drifts": drifts,
            "detection": {d: self._detection(d, labelled) for d in DETECTORS},
        }

    def _detection(self, detector: str, labelled: int) -> dict[str, Any]:
        """Nothing can be called false or missed while no drift is known."""
        tally = self._tally[detector]
        if not self._known:
            unknown = ("found", "missed", "false_alarms", "false_alarms_per_1000", "mean_delay")
            return {"alarms": tally["alarms"], **dict.fromkeys(unknown)}
        return {
            "alarms": tally["alarms"],
            "found": tally["found"],
            "missed": self._known - tally["found"],
            "false_alarms": tally["false"],
            "false_alarms_per_1000": 1000.0 * tally["false"] / labelled if labelled else None,
            "mean_delay": tally["delays"] / tally["found"] if tally["found"] else None,
        }

    def state(self) -> dict[str, Any]:
        """All of it, as plain values."""
        return {
            "known": self._known,
            "drifts": [dict(d, delay=dict(d["delay"])) for d in self._drifts],
            "tally": {d: dict(t) for d, t in self._tally.items()},
            "waiting": [dict(a) for a in self._waiting],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what ``state()`` returned."""
        self._known = int(state["known"])
        self._drifts = deque((dict(d, delay=dict(d["delay"])) for d in state["drifts"]), maxlen=KEPT)
        self._tally = {d: dict(state["tally"][d]) for d in DETECTORS}
        self._waiting = deque((dict(a) for a in state["waiting"]), maxlen=KEPT)
        self.alarms = sum(t["alarms"] for t in self._tally.values())


def _told(found: Recovery) -> dict[str, Any]:
    return {
        "depth": found.depth,
        "recovered": found.rows is not None,
        "recovery_rows": found.rows,
        "lost": found.lost,
        "watched": found.watched,
    }
