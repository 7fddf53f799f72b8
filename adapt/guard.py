"""The guard: a ring of snapshots of the learner, and the two ways in which a run is seen to have gone wrong.

Non-finite state: an array or number in the learner is NaN or infinite. Always a fault, whatever the accuracy says.

Prequential collapse after a reset: learners throw parts of themselves away when they believe the concept has drifted.
Where that belief was wrong the new parts are worse than the old ones. It is told by three facts together, each
against a snapshot: the learner has reset something since; at the snapshot its window accuracy was at or above that of
the no-change baseline; now it lies below that baseline and below its own old value, by ``margin`` each. A drift alone
fulfils the last two as well: but then the old state is no better, which is why the reset is asked for.

Going back is going to the newest snapshot that will do. A snapshot is used once: if the run goes wrong again, the one
before it is next, and in the end the state from before the first event.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .learner import CannotCheckpoint, Learner, State
from .state import all_finite, copy_state

ACCURACY, NO_CHANGE = "accuracy_window", "no_change_window"
"""The columns of an evaluator's row that the collapse is read from; without them only the state is watched."""


@dataclass(frozen=True, slots=True)
class Rollback:
    """What the guard did: at ``step`` the learner went back to how it was at ``to_step``, for ``reason``."""

    step: int
    to_step: int
    reason: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A finite copy of the learner's state, and how it was doing (window accuracies, None where not known)."""

    step: int
    accuracy: float | None
    no_change: float | None
    resets: float
    state: State

    @property
    def good(self) -> bool:
        """Whether the learner was then at or above the no-change baseline."""
        return self.accuracy is not None and self.no_change is not None and self.accuracy >= self.no_change


class Guard:
    """Watches one learner and takes it back when it breaks.

    every: rows between two looks, each of which takes a snapshot if all is well. keep: snapshots in the ring; memory
    is (keep + 1) times the learner's state. margin: how far accuracy must fall, as a fraction of 1. cooldown: rows
    after a rollback during which accuracy is not judged, since its window still shows the collapse.
    A learner whose state cannot be copied is not watched; ``off`` then says why.
    """

    def __init__(self, every: int = 1000, keep: int = 3, margin: float = 0.1, cooldown: int = 3000) -> None:
        if every < 1 or keep < 1 or not 0 < margin < 1 or cooldown < 0:
            raise ValueError("every and keep are at least 1, margin is between 0 and 1, cooldown is not negative")
        self.every = every
        self.keep = keep
        self.margin = margin
        self.cooldown = cooldown
        self.off: str | None = None
        self._looked = 0
        self._calm_until = 0
        self._fresh: State = None
        self._ring: list[Snapshot] = []

    def begin(self, learner: Learner) -> None:
        """Remember the learner as it is before the first event."""
        try:
            self._fresh = copy_state(learner.state())
        except CannotCheckpoint as reason:
            self.off = str(reason)

    def check(self, step: int, learner: Learner, row: Mapping[str, Any]) -> Rollback | None:
        """Look at the learner if ``every`` rows have gone by; roll it back, or take a snapshot.

        row: the evaluators' current values, as in a progress record.
        """
        if self.off is not None or step // self.every <= self._looked // self.every:
            return None
        self._looked = step
        state = learner.state()
        broken = all_finite(state)
        if broken is not None:
            return self._back(step, learner, len(self._ring) - 1, f"{broken} is not finite")
        now = Snapshot(step, _number(row, ACCURACY), _number(row, NO_CHANGE), _resets(learner), state)
        if step >= self._calm_until:
            for i in reversed(range(len(self._ring))):
                if self._collapsed(self._ring[i], now):
                    reason = (
                        f"accuracy {now.accuracy:.3f} after a reset, no-change {now.no_change:.3f},"
                        f" before it {self._ring[i].accuracy:.3f}"
                    )
                    return self._back(step, learner, i, reason)
        self._ring.append(Snapshot(step, now.accuracy, now.no_change, now.resets, copy_state(state)))
        del self._ring[: -self.keep]
        return None

    def _collapsed(self, then: Snapshot, now: Snapshot) -> bool:
        if not then.good or now.accuracy is None or now.no_change is None or now.resets <= then.resets:
            return False
        assert then.accuracy is not None
        return now.accuracy < now.no_change - self.margin and now.accuracy < then.accuracy - self.margin

    def _back(self, step: int, learner: Learner, index: int, reason: str) -> Rollback:
        """Load the snapshot at ``index`` (-1: the state before the first event); it and later ones leave the ring."""
        to_step, state = (0, self._fresh) if index < 0 else (self._ring[index].step, self._ring[index].state)
        learner.load(state)
        del self._ring[max(index, 0) :]
        self._calm_until = step + self.cooldown
        return Rollback(step, to_step, reason)

    def forget_snapshots(self) -> None:
        """Drop every snapshot but the one from before the first event: they hold what is to be forgotten."""
        self._ring.clear()

    def state(self) -> State:
        """The ring and the counters: part of every checkpoint, since what the guard will do depends on them."""
        ring = [
            {"step": s.step, "accuracy": s.accuracy, "no_change": s.no_change, "resets": s.resets, "state": s.state}
            for s in self._ring
        ]
        return {"looked": self._looked, "calm_until": self._calm_until, "fresh": self._fresh, "ring": ring}

    def load(self, state: State) -> None:
        """Take over what ``state()`` returned."""
        self._looked, self._calm_until = int(state["looked"]), int(state["calm_until"])
        self._fresh = copy_state(state["fresh"])
        self._ring = [
            Snapshot(s["step"], s["accuracy"], s["no_change"], s["resets"], copy_state(s["state"]))
            for s in state["ring"]
        ]


def _number(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    return None if value is None or not math.isfinite(value) else float(value)


def _resets(learner: Learner) -> float:
    return float(learner.telemetry().get("resets", 0.0))
