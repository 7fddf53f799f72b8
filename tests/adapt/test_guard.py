"""The guard: when it goes back, how far, and that it forgets nothing over a restart."""

from __future__ import annotations

from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt.guard import Guard, Rollback
from driftway.adapt.state import digest, state_bytes

SPEC = dw.StreamSpec("s", (dw.Column("a"),), classes=("no", "yes"))
GOOD = {"accuracy_window": 0.9, "no_change_window": 0.6}
BAD = {"accuracy_window": 0.4, "no_change_window": 0.6}


class Counting(dw.Learner):
    """A learner whose state the tests set by hand."""

    def __init__(self) -> None:
        super().__init__(SPEC)
        self.w = np.zeros(3)
        self.resets = 0

    def predict(self, batch: dw.Batch) -> dw.Prediction:
        return dw.Prediction(np.zeros(len(batch), np.int64))

    def state(self) -> Any:
        return {"w": self.w, "resets": self.resets}

    def load(self, state: Any) -> None:
        self.w = np.array(state["w"])
        self.resets = int(state["resets"])

    def telemetry(self) -> dict[str, float]:
        return {"resets": float(self.resets)}


class Foreign(Counting):
    def state(self) -> Any:
        raise dw.CannotCheckpoint("an object of theirs")


def watched(steps: int, **options: Any) -> tuple[Guard, Counting]:
    """A guard that has seen a healthy learner, whose weights equal the step, up to ``steps``."""
    learner, guard = Counting(), Guard(**options)
    guard.begin(learner)
    for step in range(1000, steps + 1, 1000):
        learner.w[:] = step
        assert guard.check(step, learner, GOOD) is None
    return guard, learner


def test_non_finite_state_goes_back_to_the_newest_then_further_and_at_last_to_the_start() -> None:
    guard, learner = watched(5000)
    for step, to_step in ((6000, 5000), (7000, 4000), (8000, 3000), (9000, 0), (10_000, 0)):
        learner.w[1] = np.nan
        assert guard.check(step, learner, GOOD) == Rollback(step, to_step, "state.w is not finite")
        assert (learner.w == to_step).all()


def test_it_looks_once_every_so_many_rows_wherever_the_calls_fall() -> None:
    guard, learner = watched(1000)
    learner.w[0] = np.inf
    assert guard.check(1999, learner, GOOD) is None
    rollback = guard.check(2007, learner, GOOD)
    assert rollback is not None
    assert rollback.to_step == 1000


def test_collapse_after_a_reset_goes_back_to_before_the_reset() -> None:
    guard, learner = watched(3000)
    learner.resets, learner.w[:] = 1, -1
    assert guard.check(4000, learner, {"accuracy_window": 0.7, "no_change_window": 0.6}) is None  # not that bad yet
    rollback = guard.check(5000, learner, BAD)
    assert rollback is not None
    assert (rollback.step, rollback.to_step) == (5000, 3000)
    assert "accuracy 0.400 after a reset, no-change 0.600, before it 0.900" in rollback.reason
    assert learner.resets == 0
    learner.resets = 1
    assert guard.check(6000, learner, BAD) is None  # cooling down
    later = guard.check(8000, learner, BAD)
    assert later is None or later.to_step < 3000  # and never to the same snapshot again


@pytest.mark.parametrize(
    ("resets", "before", "now"),
    [
        (0, GOOD, BAD),  # a drift, but nothing was thrown away
        (1, BAD, BAD),  # it was no better before
        (1, GOOD, {"accuracy_window": 0.55, "no_change_window": 0.6}),  # within the margin of the baseline
        (1, {"accuracy_window": 0.45, "no_change_window": 0.4}, BAD),  # within the margin of its old self
        (1, GOOD, {"accuracy_window": 0.4}),  # no baseline to compare with
        (1, {}, BAD),
    ],
)
def test_what_is_no_collapse(resets: int, before: dict[str, float], now: dict[str, float]) -> None:
    learner, guard = Counting(), Guard()
    guard.begin(learner)
    guard.check(1000, learner, before)
    learner.resets = resets
    assert guard.check(2000, learner, now) is None


def test_a_restart_changes_nothing() -> None:
    straight, one = watched(4000)
    restarted, two = Guard(), Counting()
    restarted.load(straight.state())
    two.load(one.state())
    assert digest(restarted.state()) == digest(straight.state())
    for guard, learner in ((straight, one), (restarted, two)):
        learner.resets = 1
        rollback = guard.check(5000, learner, BAD)
        assert rollback is not None
        assert rollback.to_step == 4000
    assert digest(restarted.state()) == digest(straight.state())
    assert digest(one.state()) == digest(two.state())


def test_memory_is_bounded_and_snapshots_are_copies() -> None:
    guard, learner = watched(3000)
    size = state_bytes(guard.state())
    for step in range(4000, 50_000, 1000):
        learner.w += 1
        guard.check(step, learner, GOOD)
    assert state_bytes(guard.state()) == size
    learner.w[:] = np.nan
    rollback = guard.check(50_000, learner, GOOD)
    assert rollback is not None
    assert np.isfinite(learner.w).all()


def test_a_foreign_learner_is_left_alone() -> None:
    learner, guard = Foreign(), Guard()
    guard.begin(learner)
    assert guard.off == "an object of theirs"
    assert guard.check(1000, learner, GOOD) is None
