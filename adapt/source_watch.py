"""The guard where no labels come: the unadapted source answers one batch in eight too, and the two are compared.

Seen without labels, over the last 256 rows that both answered (and after 64 at the earliest): state that is not finite;
answers in half as many classes as the source's (entropy of the histogram); agreement below 0.3 at an entropy below
0.1 ln C; each as in the note on RSGS. Ours: these count only while the estimated gain (``evaluation/label_free.py``) is
negative, since a source that is wrong on most rows agrees with nobody; an estimate below -0.1 is a sign of its own,
the first to come; and none of them counts where the source itself says mostly the class that the learner says, since
then the rows may well be of that class. A sign must show at three looks in a row, 32 rows or more apart.

Then the learner goes back to the last good snapshot of what adaptation moved: one after which a whole window looked no
worse than the source. A second collapse soon after makes its steps gentler, a third takes it back to where it began
and ends adaptation. After a rollback, and while the estimate stays below -0.05, the learner is doubted: there is a
warning, and with ``stand_in`` (ours) the source answers for it until a whole window looks no worse than the source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..evaluation.label_free import entropies, estimated_gain, histogram_entropy
from ..evaluation.paired import Paired
from ..streams import Array, Batch
from .learner import Learner, Prediction, State
from .state import all_finite, copy_state

LEAST, APART, LOOKS = 64, 32, 3
"""Rows in the window before anything is said; rows between two looks; looks in a row that a sign must last."""
COLLAPSED, WORSE = -0.1, -0.05
"""Estimated gains below which the learner is taken back, and below which it is said to be worse."""
NEAR_BATCHES, NEAR_WINDOWS = 500, 4
"""Two collapses are near each other within this many batches, or windows of rows in shadow where those last longer."""
SKIPS, MOST_SKIPS = 50, 0.9
"""Batches over which skipped steps are counted, and the share of them that is told."""
SKEWED = 0.6
"""Share of the source's answers from which on rows may well be of one class; three quarters where there are two."""
SOURCE = "source"
"""Key in the trace: int64[B, 2], the learner's and the source's answer, -1 where the source was not asked."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What adaptation had moved after ``row`` rows, ``shadowed`` of them in shadow."""

    row: int
    shadowed: int
    state: State


class SourceWatch:
    """Watches one learner that has a source model, and takes it back when it collapses.

    every: batches of which one is in shadow. window: rows that signs are read from. keep: good snapshots. apart: least
    batches between two snapshots. stand_in: the source may answer for the learner. Memory is at most keep + 2
    times what adaptation moves, and two windows of scores.

    ``notes`` are (kind, words) of what happened since they were last taken: rollback, frozen or warning.
    """

    columns: ClassVar[tuple[str, ...]] = ("source_gain", "source_gain_estimated")

    def __init__(
        self, every: int = 8, window: int = 256, keep: int = 3, apart: int = 50, *, stand_in: bool = True
    ) -> None:
        if min(every, keep, apart) < 1 or window < LEAST:
            raise ValueError(f"every, keep and apart are at least 1, window at least {LEAST}")
        self.every, self.window, self.keep, self.apart, self.stand_in = every, window, keep, apart, stand_in
        self.off = False
        self.notes: list[tuple[str, str]] = []
        self.paired = Paired(window)
        self._mine = self._its = np.zeros((0, 0), np.float32)
        self._first: State = None
        self._candidate: Snapshot | None = None
        self._good: list[Snapshot] = []
        self._skips = np.zeros(SKIPS, np.int64)
        self._n = dict.fromkeys(
            ("batches", "rows", "shadowed", "unseen", "bad", "worse", "better", "falls", "fell_batch", "fell_shadowed",
             "snapped", "rollbacks", "frozen_at", "doubted", "told_skips", "stood_in"), 0
        )  # fmt: skip
        self._n["frozen_at"] = -1

    # --- one batch ----------------------------------------------------------------------------------------------

    def step(self, learner: Learner, batch: Batch, prediction: Prediction) -> Prediction:
        """Let the learner adapt, unless it is frozen, and look after it; the answer as it is to be handed out.

        It is the learner's own, or the source's where that stands in; its trace says what both answered.
        """
        n = self._n
        if self.off:
            learner.adapt(batch, prediction)
            return prediction
        if not n["batches"]:
            self._first = copy_state(learner.adapted())
        answer = self._shadow(learner, batch, prediction)
        if n["frozen_at"] < 0:
            before = learner.telemetry().get("skipped")
            learner.adapt(batch, prediction)
            if before is not None:
                self._count_skips(learner.telemetry()["skipped"] > before)
        n["batches"] += 1
        n["rows"] += len(batch)
        if n["unseen"] >= APART and len(self._mine) >= LEAST:
            self._look(learner)
        if self._candidate is None and self._first is not None and self._calm():
            self._snap(learner)
        return answer

    def _shadow(self, learner: Learner, batch: Batch, prediction: Prediction) -> Prediction:
        """Ask the source where its turn has come."""
        n, answers = self._n, np.full((len(batch), 2), -1)
        due, doubted = n["batches"] % self.every == 0, self.stand_in and n["doubted"]
        source = None
        if prediction.scores is not None and (due or doubted):
            source = learner.source_scores(batch)
            self.off = source is None
        if source is not None and prediction.scores is not None and due:
            answers[:, 0], answers[:, 1] = prediction.output, source.argmax(1)
            self._mine = self._last(self._mine, prediction.scores)
            self._its = self._last(self._its, source)
            n["shadowed"] += len(batch)
            n["unseen"] += len(batch)
        trace = {**prediction.trace, SOURCE: answers}
        if source is not None and doubted:
            n["stood_in"] += len(batch)
            return Prediction(source.argmax(1), source, trace)
        return Prediction(prediction.output, prediction.scores, trace)

    def _last(self, kept: Array, new: Array) -> Array:
        """The window with these rows behind it; classes may have been added."""
        parts = [kept, new.astype(np.float32)]
        wide = max(p.shape[1] for p in parts)
        parts = [np.pad(p, ((0, 0), (0, wide - p.shape[1]))) for p in parts]
        return np.concatenate(parts)[-self.window :]

    def _count_skips(self, skipped: bool) -> None:
        """A learner that skips nearly every batch is too unsure to teach itself: said once each time it begins."""
        n = self._n
        self._skips[n["batches"] % SKIPS] = skipped
        many = n["batches"] + 1 >= SKIPS and self._skips.mean() > MOST_SKIPS
        if many and not n["told_skips"]:
            self.notes.append(("warning", f"{self._skips.sum()} of the last {SKIPS} batches had no row to adapt to"))
        n["told_skips"] = int(many)

    # --- looking ------------------------------------------------------------------------------------------------

    def _look(self, learner: Learner) -> None:
        """Read the signs; take the learner back, or note that all is well."""
        n, gain = self._n, estimated_gain(self._mine, self._its)
        self.paired.guess(gain, n["unseen"])
        seen, n["unseen"] = n["unseen"], 0
        broken = all_finite(learner.adapted())
        if broken is not None and n["frozen_at"] < 0:
            self._back(learner, f"{broken} is not finite", newest=True)
            return
        skewed = self._skewed()
        sign = None if skewed else self._sign(gain)
        n["bad"] = n["bad"] + 1 if sign else 0
        n["worse"] = n["worse"] + 1 if gain < WORSE and not skewed else 0
        n["better"] = n["better"] + seen if gain > WORSE / 2 else 0
        if sign and n["bad"] >= LOOKS and self._first is not None and n["frozen_at"] < 0:
            self._back(learner, sign)
            return
        self._judge_candidate(gain)
        self._tell(gain)

    def _sign(self, gain: float) -> str | None:
        """The first sign of collapse, in words."""
        if gain >= 0:
            return None
        classes = self._mine.shape[1]
        mine, its = self._mine.argmax(1), self._its.argmax(1)
        if histogram_entropy(mine, classes) < 0.5 * histogram_entropy(its, classes):
            return "answers in half as many classes as its source"
        agreement = float((mine == its).mean())
        if agreement < 0.3 and entropies(self._mine).mean() < 0.1 * np.log(classes):
            return f"sure of its answers, and agrees with its source on {agreement:.0%} of them"
        return f"estimated gain over its source {100 * gain:.0f} points" if gain < COLLAPSED else None

    def _skewed(self) -> bool:
        """Whether the source itself says mostly what the learner says mostly: the rows may well be of that class."""
        classes = self._mine.shape[1]
        mine, its = (np.bincount(p.argmax(1), minlength=classes) for p in (self._mine, self._its))
        return bool(mine.argmax() == its.argmax() and its.max() >= max(SKEWED, 1.5 / classes) * its.sum())

    def _tell(self, gain: float) -> None:
        """Warn once each time the learner comes to look worse than its source, and take that back after a window."""
        n = self._n
        if n["worse"] >= LOOKS:
            self._doubt(f"looks worse than its source: estimated gain {100 * gain:.0f} points")
        elif n["doubted"] and n["better"] >= self.window:
            n["doubted"] = 0
            self.notes.append(("warning", "looks no worse than its source any more"))

    def _doubt(self, why: str) -> None:
        if not self._n["doubted"]:
            self._n["doubted"] = 1
            answers = "; the source answers instead" if self.stand_in else ""
            self.notes.append(("warning", why + answers))

    # --- snapshots ----------------------------------------------------------------------------------------------

    def _calm(self) -> bool:
        n = self._n
        return n["frozen_at"] < 0 and not n["bad"] and not n["worse"] and n["batches"] - n["snapped"] >= self.apart

    def _snap(self, learner: Learner) -> None:
        """A snapshot on trial: what comes after it decides whether it is good."""
        n, state = self._n, learner.adapted()
        n["snapped"] = n["batches"]
        if all_finite(state) is None:
            self._candidate = Snapshot(n["rows"], n["shadowed"], copy_state(state))

    def _judge_candidate(self, gain: float) -> None:
        """Once a whole window came after it, the snapshot on trial is good or it is dropped."""
        candidate = self._candidate
        if candidate is None or self._n["shadowed"] - candidate.shadowed < self.window:
            return
        self._candidate = None
        if gain >= WORSE and not self._n["bad"]:
            self._good = [*self._good, candidate][-self.keep :]

    def _back(self, learner: Learner, reason: str, *, newest: bool = False) -> None:
        """Back to the last good snapshot (newest: the one on trial will do), at the third time to the beginning."""
        n = self._n
        near = n["batches"] - n["fell_batch"] <= NEAR_BATCHES
        near |= n["shadowed"] - n["fell_shadowed"] <= NEAR_WINDOWS * self.window
        n["falls"] = n["falls"] + 1 if near and n["falls"] else 1
        n["fell_batch"], n["fell_shadowed"] = n["batches"], n["shadowed"]
        last = self._good.pop() if self._good and not (newest and self._candidate) else None
        if newest and self._candidate:
            last = self._candidate
        if n["falls"] >= 3:
            last = None
        learner.restore(self._first if last is None else last.state)
        n["rollbacks"] += 1
        self.notes.append(("rollback", f"back to row {0 if last is None else last.row}: {reason}"))
        self._doubt("on probation after a rollback")
        if n["falls"] == 2:
            learner.gentler()
        elif n["falls"] >= 3:
            n["frozen_at"] = n["rows"]
            self.notes.append(("frozen", "no adaptation from here on: it collapsed three times"))
        self._candidate = None
        self._mine, self._its = self._mine[:0], self._its[:0]
        n["snapped"] = n["batches"]
        n["bad"] = n["worse"] = n["better"] = n["unseen"] = 0

    # --- figures ------------------------------------------------------------------------------------------------

    def judge(self, y: Array, prediction: Prediction) -> None:
        """Labels came: count who was right where both had answered. Never looked at by any sign."""
        answers = prediction.trace.get(SOURCE)
        if answers is not None:
            both = answers[:, 1] >= 0
            self.paired.judge(answers[both, 0] == y[both], answers[both, 1] == y[both])

    def row(self) -> dict[str, float | None]:
        """The columns of a record: gain over the source of the last rows in shadow, by labels and by estimate."""
        return dict(zip(self.columns, (self.paired.recent_gain(), self.paired.estimate), strict=True))

    def summary(self) -> dict[str, Any] | None:
        """What stands under ``source`` in a summary; None where there is no source."""
        n = self._n
        if self.off or not n["shadowed"]:
            return None
        return {
            "shadow_rows": n["shadowed"],
            **self.paired.summary(),
            "rollbacks": n["rollbacks"],
            "frozen_at": None if n["frozen_at"] < 0 else n["frozen_at"],
            "stood_in": n["stood_in"],
        }

    # --- saved and restored -------------------------------------------------------------------------------------

    def state(self) -> State:
        """Everything that it will do depends on: windows, snapshots, counters, figures."""
        return {
            "off": self.off,
            "n": dict(self._n),
            "mine": self._mine,
            "its": self._its,
            "skips": self._skips,
            "first": self._first,
            "candidate": None if self._candidate is None else _written(self._candidate),
            "good": [_written(s) for s in self._good],
            "paired": self.paired.state(),
        }

    def load(self, state: State) -> None:
        """Take over what ``state()`` returned; copies what it keeps."""
        self.off = bool(state["off"])
        self._n = {k: int(state["n"][k]) for k in self._n}
        self._mine, self._its, self._skips = (np.array(state[k]) for k in ("mine", "its", "skips"))
        self._first = copy_state(state["first"])
        self._candidate = None if state["candidate"] is None else _read(state["candidate"])
        self._good = [_read(s) for s in state["good"]]
        self.paired.load(state["paired"])


def _written(s: Snapshot) -> State:
    return {"row": s.row, "shadowed": s.shadowed, "state": s.state}


def _read(kept: State) -> Snapshot:
    return Snapshot(int(kept["row"]), int(kept["shadowed"]), copy_state(kept["state"]))
