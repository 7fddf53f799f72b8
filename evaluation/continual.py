"""Continual evaluation: every experience seen so far, judged at every update of the learner.

M. De Lange, G. M. van de Ven, T. Tuytelaars, "Continual evaluation for lifelong learning: identifying the stability
gap", ICLR 2023. The metrics are in ``continual_scores``; here a learner is asked for its answers. Our own: one array of
rows and one pass for all experiences, answers that are not asked for again while the learner stands still, and no draw
from any random generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..streams import Array, Experience, InputError
from .continual_scores import Scores
from .curves import curve_header
from .subsets import margin, subset

SCENARIOS = ("class", "task", "domain")


class Probed(Protocol):
    """What evaluation wants of a learner; see ``adapt.learner.Learner``."""

    def probe(self, x: Array) -> Callable[[], Array]: ...
    def version(self) -> int | None: ...


class Evaluation(NamedTuple):
    """One evaluation: after how many updates, in which experience, right answers of each experience seen, and the step
    that the caller named."""

    update: int
    experience: int
    right: tuple[int, ...]
    step: int = 0


class Answers:
    """Right answers of a learner on the held-out rows of the experiences seen, all asked for in one pass.

    scenario: "class" and "domain" take the best of all classes, "task" the best of the experience's own (the lowest of
    equals; a class that the learner does not know yet comes last). Rows lie in one array, experience after experience,
    filled as they come to be seen.
    """

    def __init__(self, experiences: Sequence[Experience], scenario: str = "class") -> None:
        if scenario not in SCENARIOS:
            raise ValueError(f"scenario must be one of {', '.join(SCENARIOS)}, not {scenario!r}")
        self.sizes = tuple(len(e.y) for e in experiences)
        self.experiences = tuple(experiences)
        self.scenario = scenario
        self._own = [np.array(sorted(e.classes)) for e in experiences] if scenario == "task" else None
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self._x = np.empty((int(self._starts[-1]), *np.shape(experiences[0].x)[1:]), np.float32)
        self._y = np.concatenate([np.asarray(e.y, np.int64) for e in experiences])
        self._filled = self._seen = 0
        self._ask: Callable[[], Array] | None = None
        self._version: int | None = None
        self._right: tuple[int, ...] = ()

    def rows(self, seen: int) -> Array:
        """float32[n, d]: the rows of the first ``seen`` experiences."""
        for i in range(self._filled, seen):
            self._x[self._starts[i] : self._starts[i + 1]] = self.experiences[i].x
        self._filled = max(self._filled, seen)
        return self._x[: self._starts[seen]]

    def count(self, scores: Array, seen: int) -> tuple[int, ...]:
        """Right answers of each experience. scores: float[n, C] of ``rows(seen)``."""
        starts = self._starts
        if self._own is None:
            answers = scores.argmax(1)
        else:
            parts = (scores[starts[i] : starts[i + 1]] for i in range(seen))
            answers = np.concatenate([_best_of(part, own) for part, own in zip(parts, self._own)])
        hits = answers == self._y[: len(answers)]
        return tuple(np.add.reduceat(hits, starts[:seen], dtype=np.int64).tolist())

    def ask(self, learner: Probed, seen: int) -> tuple[int, ...]:
        """Right answers of this learner now; those of the last time where its version says that they still hold."""
        if self._ask is None or seen != self._seen:
            self._ask, self._seen, self._version = learner.probe(self.rows(seen)), seen, None
        version = learner.version()
        if version is None or version != self._version:
            self._right = self.count(self._ask(), seen)
            self._version = version
        return self._right

    def forget(self) -> None:
        """The learner was replaced: what it answered before counts no more."""
        self._ask = None


def _best_of(scores: Array, own: Array) -> Array:
    """int64[n]: the class of ``own`` with the highest score; classes without a column come last."""
    known = own[own < scores.shape[1]]
    return known[scores[:, known].argmax(1)] if len(known) else np.full(len(scores), own[0])


class Continual:
    """Judges every experience seen so far, after every update or every so many, and at the end of each experience.

    every: updates between two evaluations; None evaluates at ends only. scenario, wp_reference: see ``Answers`` and
    ``Scores``. rows: evaluate on so many of each experience's held-out rows (see ``subset``), None on all.

    The caller counts updates and says when an experience is over. Whoever learns is never changed, so a run with
    evaluation and one without end in the same learner, bit for bit. No update is evaluated twice, but for one that ends
    an experience in which nothing was learnt: the rows of that experience were not asked before.
    """

    columns: tuple[str, ...] = ("experience", "acc", "min_acc", "wc_acc")

    def __init__(
        self,
        experiences: Sequence[Experience],
        every: int | None = 1,
        scenario: str = "class",
        *,
        wp_reference: bool = False,
        rows: int | None = None,
    ) -> None:
        if every is not None and every < 1:
            raise ValueError("every is at least 1, or None for the ends of experiences only")
        self.every = every
        self.names = tuple(e.name for e in experiences)
        self._of = tuple(len(e.y) for e in experiences)
        self.answers = Answers(experiences if rows is None else [subset(e, rows) for e in experiences], scenario)
        self.scores = Scores(self.answers.sizes, wp_reference=wp_reference)
        self.experience = 0
        self.evaluated = 0
        self.missed = 0

    def room(self, update: int) -> int | None:
        """Updates until the next evaluation that falls due by count; None where none ever does."""
        return None if self.every is None else self.every - update % self.every

    def updated(self, update: int, learner: Probed, step: int = 0) -> list[Evaluation]:
        """Evaluate if it is time, now that the learner has had so many updates."""
        return [self._evaluate(update, learner, step)] if self.due(update) else []

    def end(self, update: int, learner: Probed, step: int = 0) -> list[Evaluation]:
        """The stream, or what is left of it in this run, is over: how the experience ended."""
        return [] if self.judged(update) else [self._evaluate(update, learner, step)]

    def switch(self, update: int, learner: Probed, step: int = 0) -> list[Evaluation]:
        """Another experience begins: how the one before it ended."""
        if self.experience + 1 == len(self.names):
            raise InputError(f"the stream goes on after the last of its {len(self.names)} experiences")
        done = self.end(update, learner, step)
        self.experience += 1
        return done

    def due(self, update: int) -> bool:
        """Whether this update is one to evaluate after, by count."""
        return self.every is not None and update % self.every == 0

    def judged(self, update: int) -> bool:
        """Whether the experience at hand was evaluated after this very update."""
        return self.scores.seen > self.experience and self.evaluated == update

    def take(self, update: int, right: tuple[int, ...], step: int = 0) -> Evaluation:
        """Enter the right answers of one evaluation."""
        self.scores.add(right)
        self.evaluated = update
        return Evaluation(update, len(right) - 1, right, step)

    def _evaluate(self, update: int, learner: Probed, step: int) -> Evaluation:
        return self.take(update, self.answers.ask(learner, self.experience + 1), step)

    def header(self) -> list[str]:
        """Titles of the columns of a file with the whole curve; each experience's says how many rows it has."""
        return curve_header(self.names, self.answers.sizes)

    def row(self) -> dict[str, Any]:
        """How things stood at the last evaluation; keys as in ``columns``."""
        return {"experience": self.experience, **self.scores.row()}

    def summary(self) -> dict[str, Any]:
        """All metrics, and what they rest on: evaluations, updates between them, rows and experiences seen.

        acc_margin: half of the 95 % interval around acc where only a part of the rows was asked, else None. missed:
        evaluations that were due and not made, since the process that makes them was not done with the one before.
        """
        seen, sizes = self.scores.seen, self.answers.sizes
        shares = [right / rows for right, rows in zip(self.scores.latest, sizes)]
        return {
            **self.scores.figures(),
            "acc_margin": margin(shares, sizes[:seen], self._of[:seen]),
            "evaluations": self.scores.evaluations,
            "missed": self.missed,
            "every": self.every,
            "rows": sum(sizes[:seen]),
            "experiences": seen,
        }

    def state(self) -> dict[str, Any]:
        """Everything that later figures depend on."""
        counts = {"experience": self.experience, "evaluated": self.evaluated, "missed": self.missed}
        return {**counts, "scores": self.scores.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what ``state()`` of one with the same experiences returned."""
        self.experience, self.evaluated, self.missed = (int(state[k]) for k in ("experience", "evaluated", "missed"))
        self.scores.load(state["scores"])
        self.answers.forget()
