"""One run from configuration to summary: stream opened, learner built, loop driven, folder written."""

from __future__ import annotations

import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any

import numpy as np

from ..evaluation.calibration import Calibration
from ..evaluation.clicks import ClickScores
from ..evaluation.continual import Continual
from ..evaluation.prequential import Prequential
from ..evaluation.shifts import Sessions, Shifts
from ..evaluation.source_domain import SourceDomain
from ..evaluation.worths import Worths
from ..streams import Batch, Event, Forget, InputError, Labels, StreamSpec
from .anew import Anew, held_out_rows
from .checkpoint import Checkpointer
from .config import RunConfig, difference, make_stream, resolve, to_toml
from .evaluated_apart import Apart
from .evaluation_worker import Recipe, cannot
from .evaluator import Evaluator
from .folder import (
    CHECKPOINT,
    CONFIG,
    SUMMARY,
    RecordWriter,
    holds_run,
    make_folder,
    plain,
    read_summary,
    to_json,
    write_whole,
)
from .folder_lock import FolderLock, doing
from .guard import Guard
from .learner import CannotCheckpoint, Learner, Receipt
from .learners import make_learner
from .ledger import Ledger
from .loop import Loop
from .record import Record
from .source_watch import SourceWatch
from .state import digest, state_bytes
from .unlearning import LEDGER

WARM_UP_ROWS = 24


class Run:
    """A run that can be stepped through, stopped, killed and resumed.

    out: the folder it is written to; None writes nothing. resume: go on from the newest whole checkpoint in ``out``
    (or start, where there is none). command: what a person typed, noted in the folder. Raises ``InputError`` for a
    configuration that cannot work.

    ``steps()`` yields the loop's records once they are written. ``summary()`` may be asked for at any time.
    ``notes`` are lines for a person: what this run cannot do, and checkpoints that were refused. The folder is locked
    until the last step or ``close()``.
    """

    def __init__(self, config: RunConfig, out: Path | None = None, *, resume: bool = False, command: str = "") -> None:
        self.config = config
        self.out = out
        self.notes: list[str] = []
        self.status = "interrupted"
        with ExitStack() as failing:
            self._lock = None if out is None else _enter(out, config, resume, command)
            if self._lock is not None:
                failing.callback(self._lock.release)
            self._set_up(resume, command)
            failing.pop_all()
        self._first_step = self.loop.step
        self._elapsed = 0.0

    def _set_up(self, resume: bool, command: str) -> None:
        config = self.config
        self.stream = make_stream(config)
        self.learner = _build(config, self.stream.spec)
        self.warm_up_seconds = _warm_up(config, self.stream.spec, foreign=can_checkpoint(self.learner) is not None)
        self.evaluator = Prequential(self.stream.spec, window=config.window, fading=config.fading)
        self.source_domain = make_source_domain(self.stream.spec, self.learner)
        self.continual = make_continual(config, self.stream.spec)
        _check_worker(config, self.continual, self.learner)
        self.loop = self._make_loop()
        self._writer = self._open_folder(resume, command) if self.out is not None else None

    def _make_loop(self) -> Loop:
        config = self.config
        savable = can_checkpoint(self.learner)
        if savable is not None:
            without = "no guard and no checkpoint" if self.out else "no guard"
            self.notes.append(f"{config.learner} runs with {without}: {savable}")
        keeps = savable is None and self.out is not None
        return Loop(
            self.learner,
            evaluators=[self.evaluator, *self._watches()],
            guard=Guard() if config.guard and savable is None else None,
            source_watch=make_source_watch(config, self.learner) if savable is None else None,
            checkpoint=Checkpointer(self.out / CHECKPOINT) if keeps and self.out is not None else None,
            pending=config.pending,
            row_by_row=config.batch == 1,
            every=config.every,
            continual=self.continual,
            ledger=Ledger(self.out / LEDGER) if keeps and self.out is not None else None,
            anew=make_anew(config, self.stream.spec),
        )

    def _watches(self) -> list[Evaluator]:
        """What watches beside the prequential evaluator."""
        found = watches(self.stream.spec, self.config.time_slots)
        return found if self.source_domain is None else [*found, self.source_domain]

    def _open_folder(self, resume: bool, command: str) -> RecordWriter:
        """Restore what the newest checkpoint holds, cut the files to it, and be ready to write."""
        assert self.out is not None
        kept = None
        if resume and self.loop.checkpoint is None and (self.out / CONFIG).exists():
            raise InputError(f"{self.out}: {self.config.learner} keeps no checkpoint, so this run cannot be resumed")
        if self.loop.checkpoint is not None:
            saved = self.loop.checkpoint.load_newest()
            self.notes += self.loop.checkpoint.notes
            if saved is not None:
                self.loop.load(saved.parts)
                self.stream.seek(saved.cursor)
                kept = self.loop.written
            self.notes += self.loop.recover()
        watched = () if self.continual is None else self.continual.columns
        judged = [column for watch in self.loop.evaluators[1:] for column in watch.columns]
        columns = [*self.evaluator.columns, *watched, *judged, *self.learner.telemetry()]
        if self.loop.requests.anew is not None:
            columns += Anew.columns
        if self.loop.source_watch is not None:
            columns += self.loop.source_watch.columns
        curve = [] if self.continual is None else self.continual.header()
        writer = RecordWriter(self.out, list(dict.fromkeys(columns)), kept, curve)
        if not (self.out / CONFIG).exists():
            write_whole(self.out / CONFIG, to_toml(self.config, command))
        return writer

    def steps(self) -> Iterator[Record]:
        """Run to the end of the stream, or until ``stop``; every record is handed out after it was written."""
        with ExitStack() as ends:
            ends.callback(self.close)
            with self._worker():
                started = perf_counter()
                self._ask_source(SourceDomain.begin)
                for record in self.loop.steps(self.stream):
                    if self._writer is not None:
                        self._writer.write(record, self.loop)
                    self._elapsed = perf_counter() - started
                    yield record
                self._ask_source(SourceDomain.end)
                self._elapsed = perf_counter() - started
            self.status = "done" if self.loop.ended else "interrupted"
            if self.out is not None and self._writer is not None:
                self._writer.sync()
                write_whole(self.out / SUMMARY, to_json(self.summary()))

    def forget(self, request: Forget) -> Receipt:
        """Carry out a request on a run that stands still: record, checkpoint and ledger are on the disk on return.

        Raises ``CannotForget``; nothing is changed then.
        """
        assert self.out is not None
        assert self._writer is not None
        receipt = self.loop.forget(request)
        for record in self.loop.hand_out():
            self._writer.write(record, self.loop)
        self._writer.sync()
        self.loop.save(self.stream.cursor())
        summary = read_summary(self.out)
        if summary is not None:
            state = self.learner.state()
            summary |= {"state_sha256": digest(state), "state_mb": round(state_bytes(state) / 1e6, 6)}
            summary["facts"] = plain(self.learner.facts() or None)
            write_whole(self.out / SUMMARY, to_json(summary))
        return receipt

    def close(self) -> None:
        """Let go of the folder and its files; for a run that is not stepped through."""
        if self._writer is not None:
            self._writer.close()
        if self._lock is not None:
            self._lock.release()

    def _ask_source(self, moment: Callable[[SourceDomain, Learner], None]) -> None:
        """Let the source domain be judged, if it is; the time is that of evaluation."""
        if self.source_domain is not None:
            started = perf_counter()
            moment(self.source_domain, self.learner)
            self.loop.seconds["evaluate"] += perf_counter() - started

    @contextmanager
    def _worker(self) -> Iterator[None]:
        """While inside, evaluation has its worker, if it is to have one."""
        if not isinstance(self.continual, Apart):
            yield
            return
        config = self.config
        recipe = Recipe(config.learner, self.stream.spec, config.seed, config.learner_params)
        try:
            with self.continual.working(recipe, self.learner):
                yield
        finally:
            self.notes += self.continual.notes

    def stop(self) -> None:
        """Finish the event at hand, save, and end. Safe in a signal handler, any number of times."""
        self.loop.stop()

    def summary(self) -> dict[str, Any]:
        """Everything of summary.json, as plain numbers; a key that does not apply is None."""
        from .. import __version__

        found = self.loop.summary()
        rows = self.loop.step - self._first_step
        state = None if can_checkpoint(self.learner) else self.learner.state()
        facts = {
            "driftway": __version__,
            "stream": self.stream.spec.name,
            "learner": self.config.learner,
            "seed": self.config.seed,
            "status": self.status,
            **dict.fromkeys((*SCORES, *CLICK_SCORES, *SHIFT_SCORES)),
            "baseline": {"majority": None, "no_change": None},
            "examples_per_second": round(rows / self._elapsed, 1) if self._elapsed else None,
            "seconds": None,
            "latency_ms": None,
            "ms_per_batch": None,
            "peak_rss_mb": round(_peak_mb(), 2),
            "state_mb": None if state is None else round(state_bytes(state) / 1e6, 6),
            **dict.fromkeys(COUNTS),
            "state_sha256": None if state is None else digest(state),
        }
        facts |= {**found, "facts": self.learner.facts() or None}
        facts["warm_up_seconds"] = round(self.warm_up_seconds, 3)
        return dict(plain(facts))


SCORES = ("examples", "labelled", "accuracy", "accuracy_window", "kappa", "kappa_m", "kappa_t", "logloss", "continual")
CLICK_SCORES = ("auc", "gauc", "clicks")
SHIFT_SCORES = ("shifts", "shift_error", "few_shot", "ece", "calibration", "source_domain", "source")
COUNTS = ("quarantined", "dropped_labels", "rollbacks", "drift_alarms")
CLOCKS = ("examples_per_second", "seconds", "latency_ms", "ms_per_batch", "peak_rss_mb", "warm_up_seconds")
"""Keys of a summary that depend on the machine and the moment; all others repeat bit for bit."""


def finished(out: Path, config: RunConfig) -> dict[str, Any] | None:
    """The summary of a run of this configuration that ended in this folder; None where there is more to do."""
    if not (out / CONFIG).exists():
        return None
    _same_run(out, config)
    summary = read_summary(out)
    return summary if summary is not None and summary.get("status") == "done" else None


def _enter(out: Path, config: RunConfig, resume: bool, command: str) -> FolderLock:
    """The folder, made and locked, once it is sure that it may be written to for this run."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: this is a file")
    make_folder(out)
    lock = FolderLock(out, doing(command))
    with ExitStack() as failing:
        failing.callback(lock.release)
        if holds_run(out):
            if not resume:
                raise InputError(f"--out {out}: holds a run already; --resume continues it")
            _same_run(out, config)
        failing.pop_all()
    return lock


def _same_run(out: Path, config: RunConfig) -> None:
    if (out / CONFIG).exists():
        unlike = difference(resolve({}, config=out / CONFIG), config)
        if unlike:
            raise InputError(f"{out} holds another run: {unlike}")


def can_checkpoint(learner: Learner) -> str | None:
    """None where the learner's state is a ``State``, else the reason why it is not."""
    try:
        learner.state()
    except CannotCheckpoint as reason:
        return str(reason)
    return None


def _build(config: RunConfig, spec: StreamSpec) -> Learner:
    """The learner, once it is sure that it can work on this stream and device."""
    learner = make_learner(config.learner, spec, seed=config.seed, device=config.device, **config.learner_params)
    if "boundaries" in learner.needs and not (spec.drifts or spec.experiences):
        raise InputError(f"{config.learner} needs to be told of boundaries, and stream {spec.name} tells of none")
    return learner


def make_continual(config: RunConfig, spec: StreamSpec) -> Continual | None:
    """What judges the stream's experiences; None where that is turned off, or left open and the stream has none."""
    every = config.evaluate_every
    if every == 0 or (every == "auto" and not spec.experiences):
        return None
    if not spec.experiences:
        raise InputError(f"evaluate-every: stream {spec.name} has no held-out rows to evaluate on")
    kind = Apart if config.evaluate_worker else Continual
    return kind(
        spec.experiences,
        None if every == "auto" else every,
        spec.notes.get("scenario", "class"),
        wp_reference=config.wp_reference,
        rows=config.evaluate_rows,
    )


def watches(spec: StreamSpec, time_slots: int = 1) -> list[Evaluator]:
    """What judges beside the prequential evaluator: calibration, and clicks, shifts or sessions where the stream has
    them."""
    if spec.target != "classification":
        return []
    found: list[Evaluator] = [Calibration(spec)]
    if spec.impressions is not None:
        found.append(ClickScores(spec, time_slots))
    if "sessions" in spec.notes:
        found.append(Sessions(spec))
    elif "stretches" in spec.notes:
        found.append(Shifts(spec))
    if spec.worth is not None:
        found.append(Worths(spec.worth))
    return found


def make_source_domain(spec: StreamSpec, learner: Learner) -> SourceDomain | None:
    """What judges how much of the source is forgotten; None where the learner does not start from one."""
    if spec.source is None or spec.target != "classification" or "source" not in learner.needs:
        return None
    if spec.worth is not None:
        return None  # whether a plan is the oracle's says little: many are as good
    return SourceDomain(spec.source)


def make_anew(config: RunConfig, spec: StreamSpec) -> Anew | None:
    """What compares the learner with one trained anew after every request; None where nobody asked for it."""
    if not config.forget_gap:
        return None
    if spec.target != "classification":
        raise InputError(f"forget-gap: {config.stream} has numbers to answer, and the gap is one of right answers")
    return Anew(partial(_build, config, spec), held_out_rows(spec))


def make_source_watch(config: RunConfig, learner: Learner) -> SourceWatch | None:
    """The guard beside the source; None where it is turned off, the learner starts from no source, or answers are
    plans, of which many are as good as the one that the source would choose."""
    watched = config.guard and "source" in learner.needs and learner.spec.worth is None
    return SourceWatch(stand_in=config.stand_in) if watched and learner.spec.target == "classification" else None


def _check_worker(config: RunConfig, continual: Continual | None, learner: Learner) -> None:
    """``InputError`` where a worker is asked for that has nothing to do, or cannot do it."""
    if not config.evaluate_worker:
        return
    reason = cannot(learner) if continual is not None else "there is nothing to evaluate"
    if reason is not None:
        raise InputError(f"evaluate-worker: {config.learner} on {config.stream}: {reason}")


@dataclass
class Given:
    """Events made beforehand, as a stream."""

    spec: StreamSpec
    events: list[Event]

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    def cursor(self) -> dict[str, Any]:
        return {}

    def seek(self, cursor: dict[str, Any]) -> None:
        """Always starts anew."""


def _warm_up(config: RunConfig, spec: StreamSpec, *, foreign: bool) -> float:
    """Compile what the run will call, on made-up rows and throw-away objects; returns the seconds it took.

    foreign: the learner is not ours, so nothing of it is compiled and made-up rows are none of its business.
    """
    started = perf_counter()
    rng = np.random.default_rng(0)
    n = WARM_UP_ROWS
    x = rng.normal(size=(n, spec.n_features))
    for j, column in enumerate(spec.columns):
        if column.categories is not None:
            x[:, j] = rng.integers(0, max(1, len(column.categories)), n)
    if spec.text is not None:
        x = rng.integers(0, spec.text.limits(), (n, spec.n_features)).astype(np.float64)
    y: Any = rng.normal(size=n)
    if spec.target == "classification":
        y = np.arange(n, dtype=np.int64) % min(n, spec.n_classes or 2)
    first, second = slice(0, n // 2), slice(n // 2, n)
    ids = np.arange(n)
    events: list[Event] = [
        Batch(ids[first], x[first], 0.0, y[first]),
        Batch(ids[second], x[second], 0.0),
        Labels(ids[second], y[second], 0.0),
    ]
    for row_by_row in {config.batch == 1, False}:
        evaluators = [Prequential(spec, window=config.window, fading=config.fading), *watches(spec)]
        learner = make_learner("majority", spec) if foreign else _build(config, spec)
        loop = Loop(learner, evaluators=evaluators, row_by_row=row_by_row, every=n)
        for _ in loop.steps(Given(spec, events)):
            pass
    return perf_counter() - started


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


@contextmanager
def signals_stop(run: Run) -> Iterator[None]:
    """While inside, SIGINT and SIGTERM ask the run to stop; a second one changes nothing."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        run.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
