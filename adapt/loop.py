"""The loop: events in, predictions out, every update watched.

The same object is pushed by a live program (``predict``, ``label``, ``forget``) and pulled through a stream
(``steps``, a generator of records). Nothing calls back into it and it knows no clock but for the cost figures.

Order for every row: predict, adapt, then, when its label is known, evaluate with the prediction made before, learn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Any

import numpy as np

from ..evaluation.clicks import ClickScores
from ..evaluation.continual import Continual, Evaluation
from ..evaluation.cost import BatchCost, LatencyHistogram
from ..evaluation.worths import Worths
from ..streams import NO_LABEL, Array, Batch, Boundary, Event, Forget, Labels, Rejected, Stream, concatenate
from .admission import Admission
from .anew import Anew
from .checkpoint import Checkpointer
from .evaluator import Evaluator
from .guard import Guard
from .learner import CannotForget, Learner, Prediction, Receipt, State, stack
from .ledger import Ledger
from .pending import Pending, Waiting
from .record import FILES, Record
from .source_watch import SourceWatch
from .unlearning import Requests


class Loop:
    """Drives one learner.

    evaluators: watch every prediction whose label comes. guard: rolls a broken learner back. source_watch: does so
    without labels, beside the learner's source. checkpoint: where and how often everything is saved. pending: how many
    rows may wait for their label. row_by_row: test, then train on every single row of a batch instead of on the batch
    as a whole. every: rows between two progress records.
    continual: judges the stream's experiences after updates; a boundary ends the one at hand. ledger: where requests to
    forget are written down. anew: what compares the learner after each of them with one trained anew.
    """

    def __init__(
        self,
        learner: Learner,
        *,
        evaluators: Sequence[Evaluator] = (),
        guard: Guard | None = None,
        source_watch: SourceWatch | None = None,
        checkpoint: Checkpointer | None = None,
        pending: int = 10_000,
        row_by_row: bool = False,
        every: int = 100,
        continual: Continual | None = None,
        ledger: Ledger | None = None,
        anew: Anew | None = None,
    ) -> None:
        self.learner = learner
        self.requests = Requests(ledger, anew)
        self.evaluators = tuple(evaluators)
        self._judges = [e for e in evaluators if isinstance(e, Worths)]
        self._mixed = learner.spec.mixed
        self._clicks = [e for e in evaluators if isinstance(e, ClickScores)]
        self.continual = continual
        self.guard = guard
        self.source_watch = source_watch
        self.checkpoint = checkpoint
        self.row_by_row = row_by_row
        self.every = every
        self.step = 0
        self.labelled = 0
        self.updates = 0
        self.cost = BatchCost()
        self.quarantined = 0
        self.rollbacks = 0
        self.seconds = {"predict": 0.0, "adapt": 0.0, "learn": 0.0, "evaluate": 0.0, "io": 0.0}
        self.latency = LatencyHistogram()
        self.stopping = False
        self.ended = False
        self.written = {"records": 0, "quarantine": 0, "continual": 0}
        self._pending = Pending(pending)
        self._admission = Admission(learner.spec)
        self._due: deque[Record] = deque(maxlen=100_000)
        self._regression = learner.spec.target == "regression"
        if guard is not None:
            guard.begin(learner)

    # --- pushed by a live program -------------------------------------------------------------------------------

    def predict(self, batch: Batch) -> Prediction:
        """The learner's answer for every row, in order; a refused row gets class -1 (or NaN) and is quarantined."""
        if self._admission.sound(batch, self._pending.highest):
            return self._predict(batch)
        good, keep = self._sift(batch)
        n = len(batch.ids)
        empty = np.full(n, np.nan) if self._regression else np.full(n, NO_LABEL)
        if not len(keep):
            return Prediction(empty)
        answer = self._predict(good)
        empty[keep] = answer.output
        scores = None
        if answer.scores is not None:
            scores = np.full((n, answer.scores.shape[1]), np.nan)
            scores[keep] = answer.scores
        return Prediction(empty, scores)

    def label(self, labels: Labels) -> None:
        """Labels of rows predicted earlier: evaluated with that prediction, then learnt."""
        ids = np.asarray(labels.ids)
        reasons: list[str | None] = [None] * len(ids)
        y = self._admission.sift_labels(labels.y, reasons)
        rows: list[Waiting] = []
        known: list[int] = []
        for i, (row, reason) in enumerate(zip(ids.tolist(), reasons)):
            unknown = np.isnan(y[i]) if self._regression else y[i] == NO_LABEL
            found = reason or ("label is missing" if unknown else self._pending.take(row, float(y[i])))
            if isinstance(found, str):
                self._refuse(row, found)
            else:
                rows.append(found)
                known.append(i)
        if not rows:
            return
        if self.row_by_row:
            for waiting, i in zip(rows, known):
                self._learn(waiting, y[i : i + 1], labels.learn)
        elif len(rows) == 1:
            self._learn(rows[0], y[known], labels.learn)
        else:
            joined = Waiting(
                concatenate([w.batch for w in rows]),
                stack([w.prediction for w in rows]),
                np.concatenate([w.baseline for w in rows]),
            )
            self._learn(joined, y[known], labels.learn)

    def forget(self, request: Forget) -> Receipt:
        """Unlearn rows exactly; raises ``CannotForget`` with the reason. Save right after it."""
        return self.forget_together([request])[0]

    def forget_together(self, requests: Sequence[Forget]) -> list[Receipt]:
        """Several requests for rows as one change, all or none of them; each has its receipt and line of the ledger."""
        receipts = self.requests.carry_out(self, requests, self._pending)
        self._due += [Record(self.step, "forget", self.requests.told(receipt)) for receipt in receipts]
        return receipts

    def recover(self) -> list[str]:
        """After loading, or where there was nothing to load: see ``Requests.recover``."""
        return self.requests.recover(self.learner, self.checkpoint, self._pending)

    def records(self) -> list[Record]:
        """The records since the last call (a bounded number is kept). ``steps`` hands them out by itself."""
        taken = list(self._due)
        self._due.clear()
        return taken

    # --- pulled from a stream -----------------------------------------------------------------------------------

    def steps(self, stream: Stream) -> Iterator[Record]:
        """Run the stream from its cursor on; ends early, with everything saved, after ``stop()``."""
        events = iter(stream)
        checkpoint, due, seconds = self.checkpoint, self._due, self.seconds
        while not self.stopping:
            started = perf_counter()
            event = next(events, None)
            seconds["io"] += perf_counter() - started
            if event is None:
                break
            self.ended = False
            self._take(event)
            if due:
                yield from self.hand_out()
            if checkpoint is not None and (checkpoint.due(self.step) or self.requests.open):
                yield Record(self.step, "checkpoint")
                self.save(stream.cursor())
        if not self.stopping and not self.ended:
            self.ended = True
            if self.continual is not None:
                self._judge(self.continual.end)
            self._progress("end")
            yield from self.hand_out()
        if checkpoint is not None:
            yield Record(self.step, "checkpoint")
            self.save(stream.cursor())

    def stop(self) -> None:
        """Finish the event at hand, save, and end ``steps``. Safe to call from a signal handler."""
        self.stopping = True

    def hand_out(self) -> Iterator[Record]:
        """The records that are due, counted by the file they belong to, so that a resumed run can cut its files."""
        while self._due:
            record = self._due.popleft()
            self.written[FILES.get(record.kind, "records")] += 1
            yield record

    def _take(self, event: Event) -> None:
        if isinstance(event, Batch):
            if self._admission.sound(event, self._pending.highest):
                self._run(event)
            else:
                good, keep = self._sift(event)
                if len(keep):
                    self._run(good)
        elif isinstance(event, Labels):
            self.label(event)
        elif isinstance(event, Rejected):
            self._refuse(event.row, event.reason)
        elif isinstance(event, Boundary):
            if self.continual is not None:
                self._judge(self.continual.switch)
            for evaluator in self.evaluators:
                evaluator.boundary(event.name, self.step)
            if "boundaries" in self.learner.needs:
                self.learner.boundary(event)
            self._due.append(Record(self.step, "boundary", {"note": event.name}))
        else:
            try:
                self.forget(event)
            except CannotForget as refusal:
                self._due.append(Record(self.step, "forget", {"note": f"refused: {refusal}"}))

    def _run(self, batch: Batch) -> None:
        """A sound batch: as a whole, or, row by row, cut where labels are missing and where a record or evaluation is
        due."""
        if not self.row_by_row:
            self._predict(batch)
            return
        n, at = len(batch), 0
        labelled = self._known(batch)
        while at < n:
            end = min(n, at + self._room())
            if not labelled[at] or self.source_watch is not None or self._mixed is not None:
                self._predict(batch.rows(slice(at, at + 1)))
                at += 1
                continue
            missing = np.flatnonzero(~labelled[at:end])
            end = at + int(missing[0]) if len(missing) else end
            self._test_then_train(batch if end - at == n else batch.rows(slice(at, end)))
            at = end

    def _room(self) -> int:
        """How many rows may be learnt one by one before something must be written down or judged."""
        room = self.every - self.step % self.every
        judged = None if self.continual is None else self.continual.room(self.updates)
        return room if judged is None else min(room, judged)

    def _known(self, batch: Batch) -> Array:
        """bool[B]: which rows bring their label."""
        if batch.y is None:
            return np.zeros(len(batch), bool)
        return ~np.isnan(batch.y) if self._regression else batch.y != NO_LABEL

    def _answered(self, y: Array) -> bool:
        """Whether every label is known; quick for the one row that most events are."""
        if len(y) == 1:
            label = y.item()
            return label == label if self._regression else label != NO_LABEL
        return not np.isnan(y).any() if self._regression else bool((y != NO_LABEL).all())

    # --- one step -----------------------------------------------------------------------------------------------

    def _predict(self, batch: Batch) -> Prediction:
        """Predict and adapt; rows whose label came along are evaluated and learnt, the others wait."""
        learner, seconds = self.learner, self.seconds
        t0 = perf_counter()
        prediction = learner.predict(batch)
        t1 = perf_counter()
        if self.source_watch is None:
            learner.adapt(batch, prediction)
        else:
            prediction = self.source_watch.step(learner, batch, prediction)
        t2 = perf_counter()
        seconds["predict"] += t1 - t0
        seconds["adapt"] += t2 - t1
        n = len(batch)
        self.latency.add((t2 - t0) / n, n)
        before = self.step
        self.step = before + n
        self._note_watch()
        self._pending.remember(batch.ids, batch.y)
        baseline = self.evaluators[0].baseline(n) if self.evaluators else np.zeros((n, 2))
        if self._mixed is not None:
            baseline = np.column_stack([baseline, self._mixed.of(batch.ids)])
        waiting = Waiting(batch, prediction, baseline)
        if batch.y is None:
            self._pending.wait(waiting)
        elif self._answered(batch.y):
            self._learn(waiting, batch.y)
        else:
            known = self._known(batch)
            for part in (~known, known):
                rows = Waiting(batch.rows(part), prediction.rows(part), baseline[part])
                if len(rows.batch) and part is known:
                    self._learn(rows, rows.batch.y)
                elif len(rows.batch):
                    self._pending.wait(rows)
        self.cost.count(1, seconds)
        if self.step // self.every > before // self.every:
            self._progress("progress")
        return prediction

    def _note_watch(self) -> None:
        """Write down what the watch beside the source did."""
        if self.source_watch is None or not self.source_watch.notes:
            return
        for kind, note in self.source_watch.notes:
            self._due.append(Record(self.step, kind, {"note": note}))
            if kind == "rollback":
                self._rolled_back()
        self.source_watch.notes.clear()

    def _rolled_back(self) -> None:
        self.rollbacks += 1
        if self.continual is not None:
            self.continual.answers.forget()

    def _learn(self, rows: Waiting, y: Array | None, learn: bool = True) -> None:
        """Evaluate with the prediction made before, then learn (unless the labels are for judging only)."""
        assert y is not None
        batch, prediction = rows.batch, rows.prediction
        t0 = perf_counter()
        for evaluator in self.evaluators:
            if not (learn and evaluator.queries_only):
                evaluator.update(y, prediction.output, prediction.scores, rows.baseline)
        for clicks in self._clicks:
            clicks.rows(batch.ids, y, prediction.scores)
        for judge in self._judges:
            for values in judge.answers(batch.ids, prediction.output, self.learner.source_scores(batch)):
                self._due.append(Record(self.step, "worth", values))
        if self.source_watch is not None:
            self.source_watch.judge(y, prediction)
        t1 = perf_counter()
        self.seconds["evaluate"] += t1 - t0
        self.labelled += len(y)
        if not learn:
            return
        if batch.y is not y:
            batch = Batch(batch.ids, batch.x, batch.time, y)
        self.learner.learn(batch, prediction)
        self.requests.learnt(batch)
        self.updates += 1
        self.seconds["learn"] += perf_counter() - t1
        if self.continual is not None:
            self._judge(self.continual.updated)

    def _test_then_train(self, batch: Batch) -> None:
        """Labelled rows, one after the other, in one call of the learner."""
        assert batch.y is not None
        t0 = perf_counter()
        prediction = self.learner.test_then_train(batch)
        self.requests.learnt(batch, row_by_row=True)
        t1 = perf_counter()
        n = len(batch)
        self.latency.add((t1 - t0) / n, n)
        self.step += n
        self.labelled += n
        self._pending.remember(batch.ids, batch.y)
        for evaluator in self.evaluators:
            evaluator.update_rows(batch.y, prediction.output, prediction.scores)
        for clicks in self._clicks:
            clicks.rows(batch.ids, batch.y, prediction.scores)
        self.updates += n
        self.seconds["learn"] += t1 - t0
        self.cost.count(n, self.seconds)
        self.seconds["evaluate"] += perf_counter() - t1
        if self.continual is not None:
            self._judge(self.continual.updated)
        if self.step % self.every == 0:
            self._progress("progress")

    def _judge(self, moment: Callable[[int, Learner, int], list[Evaluation]]) -> None:
        """Let continual evaluation know of a moment: an update, a switch, the end; keep what it found."""
        t0 = perf_counter()
        for update, experience, right, step in moment(self.updates, self.learner, self.step):
            values = {"update": update, "experience": experience, "right": right}
            self._due.append(Record(step, "evaluation", values))
        self.seconds["evaluate"] += perf_counter() - t0

    def _progress(self, kind: str) -> None:
        """Write down where things stand; let the guard look."""
        values: dict[str, Any] = {}
        for evaluator in self.evaluators:
            for alarm in evaluator.alarms():
                self._due.append(Record(self.step, "alarm", {"note": f"{alarm['detector']} at row {alarm['step']}"}))
            values.update(evaluator.row())
        if self.continual is not None:
            values.update(self.continual.row())
        values.update(self.learner.telemetry())
        if self.source_watch is not None:
            values.update(self.source_watch.row())
        self._due.append(Record(self.step, kind, values))
        if self.guard is not None and kind == "progress":
            rollback = self.guard.check(self.step, self.learner, values)
            if rollback is not None:
                self._rolled_back()
                note = f"back to row {rollback.to_step}: {rollback.reason}"
                self._due.append(Record(self.step, "rollback", {"note": note}))

    # --- refused rows -------------------------------------------------------------------------------------------

    def _sift(self, batch: Batch) -> tuple[Batch, Array]:
        """The rows of an unsound batch that may pass, and their positions; the others are quarantined."""
        ids = np.asarray(batch.ids)
        known = self._pending.met(ids) if ids.dtype.kind in "iu" and ids.ndim == 1 else np.zeros(0, bool)
        good, keep, faults = self._admission.sift(batch, known)
        if len(ids) == 0:
            self._refuse(-1, "empty batch")
        for fault in faults:
            self._refuse(fault.row, fault.reason)
        return good, keep

    def _refuse(self, row: int, reason: str) -> None:
        self.quarantined += 1
        self._due.append(Record(self.step, "quarantine", {"row": row, "reason": reason}))

    # --- saved and restored -------------------------------------------------------------------------------------

    def save(self, cursor: dict[str, Any], meta: dict[str, Any] | None = None) -> None:
        """Write a checkpoint now."""
        if self.checkpoint is not None:
            self.checkpoint.save(self.step, self.state(), cursor, meta or {})
            self.requests.settle(self.checkpoint)

    def state(self) -> dict[str, State]:
        """All that decides how the run goes on: learner, evaluation, pending rows, guard and counters."""
        return {
            "learner": self.learner.state(),
            "evaluators": [e.state() for e in self.evaluators],
            "pending": self._pending.state(),
            "guard": None if self.guard is None else self.guard.state(),
            "source_watch": None if self.source_watch is None else self.source_watch.state(),
            "continual": None if self.continual is None else self.continual.state(),
            "requests": self.requests.state(),
            "loop": {
                "step": self.step,
                "labelled": self.labelled,
                "updates": self.updates,
                "quarantined": self.quarantined,
                "rollbacks": self.rollbacks,
                "ended": self.ended,
                "written": dict(self.written),
            },
        }

    def load(self, state: dict[str, State]) -> None:
        """Go on from what ``state()`` returned."""
        self.learner.load(state["learner"])
        for evaluator, kept in zip(self.evaluators, state["evaluators"], strict=True):
            evaluator.load(kept)
        self._pending.load(state["pending"])
        if self.guard is not None and state["guard"] is not None:
            self.guard.load(state["guard"])
        if self.source_watch is not None and state["source_watch"] is not None:
            self.source_watch.load(state["source_watch"])
        if self.continual is not None:
            self.continual.load(state["continual"])
        self.requests.load(state["requests"])
        counters = state["loop"]
        self.step, self.labelled, self.updates = (int(counters[k]) for k in ("step", "labelled", "updates"))
        self.quarantined, self.rollbacks = int(counters["quarantined"]), int(counters["rollbacks"])
        self.ended = bool(counters["ended"])
        self.written = {k: int(v) for k, v in counters["written"].items()}

    def summary(self) -> dict[str, Any]:
        """Figures of the run so far, in the words of summary.json."""
        total: dict[str, Any] = {
            "examples": self.step,
            "labelled": self.labelled,
            "quarantined": self.quarantined,
            "dropped_labels": self._pending.dropped,
            "waiting": len(self._pending),
            "rollbacks": self.rollbacks,
        }
        for evaluator in self.evaluators:
            total |= {k: v for k, v in evaluator.summary().items() if k not in total}
        if self.continual is not None:
            total["continual"] = self.continual.summary()
        total["source"] = None if self.source_watch is None else self.source_watch.summary()
        total["seconds"] = {k: round(v, 6) for k, v in self.seconds.items()}
        if self.row_by_row and not self.seconds["predict"]:
            total["seconds"]["predict"] = None
        total["ms_per_batch"] = self.cost.figures()
        total["latency_ms"] = {"p50": self.latency.quantile(0.5) * 1e3, "p99": self.latency.quantile(0.99) * 1e3}
        return total
