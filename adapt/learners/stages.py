"""Where in an experience a learner stands, for techniques that act between stages of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..learner import State

if TYPE_CHECKING:
    from .gradient import GradientLearner

TENTHS = 10


@dataclass(frozen=True, slots=True)
class Moment:
    """epoch: whole epochs since the experience began (tenths of it, where it has one epoch; stretches of so many
    updates, where its length is unknown). every: between two stages. epochs: of the experience, None if unknown."""

    epoch: int
    every: int
    epochs: int | None

    @property
    def stage(self) -> int:
        """Stages that are over."""
        return self.epoch // self.every


class Stages:
    """Tells the stages of the experience at hand.

    delta: epochs of a stage, held to a quarter of the epochs there are, so that short experiences have stages too; an
    experience of one epoch has ten stages. updates: of a stage, where rows of the experience are not known or
    ``task_free`` is set.
    """

    def __init__(self, learner: GradientLearner, delta: int, updates: int, *, task_free: bool = False) -> None:
        self.learner, self.delta, self.updates, self.task_free = learner, delta, updates, task_free
        self.reached = -1
        self._began = 0

    @property
    def epochs(self) -> int:
        """Epochs of the experience at hand; 0 if its length is not known."""
        known = self.learner.spec.experiences
        if self.task_free or self.learner.task >= len(known) or not known[self.learner.task].rows:
            return 0
        return int(self.learner.spec.notes.get("epochs", 1))

    def now(self) -> Moment:
        """The moment before the next rows are learnt."""
        learner, epochs = self.learner, self.epochs
        if not epochs:
            return Moment((learner.updates - self._began) // self.updates, 1, None)
        rows = learner.spec.experiences[learner.task].rows
        if epochs == 1:
            return Moment(TENTHS * learner.seen // rows, 1, TENTHS)
        return Moment(learner.seen // rows, min(self.delta, max(1, epochs // 4)), epochs)

    def due(self) -> Moment | None:
        """The moment, if a stage has begun that was not ``taken`` yet."""
        moment = self.now()
        return moment if moment.stage > self.reached else None

    def taken(self, moment: Moment) -> None:
        """What was to be done at this stage's beginning is done."""
        self.reached = moment.stage

    def boundary(self) -> None:
        """A new experience."""
        self.reached = -1
        self._began = self.learner.updates

    def state(self) -> State:
        return {"reached": self.reached, "began": self._began}

    def load(self, state: State) -> None:
        self.reached, self._began = int(state["reached"]), int(state["began"])
