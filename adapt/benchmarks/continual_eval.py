"""What evaluation at every update costs: ours in our loop beside a bare forward pass, and beside Avalanche's.

Split digits, five experiences, batches of ten, 500 held-out rows in all, one thread, finetune against Avalanche's Naive
(both plain SGD on the same network). Runs come in turn; of each update the median over the runs is taken, of those the
mean over the stream. What is compared:

- "evaluation": what an update costs more, all metrics of ``Continual`` included. Peers are one forward pass of the
  network over the rows of the experiences seen so far and nothing else (floor: ours by that), and a call of Avalanche's
  ``eval`` as ``eval_every=1, peval_mode="iteration"`` makes it, accuracy of each experience as the only metric, no
  loggers, each experience in one batch;
- "training step": ``learn`` alone, and the whole loop with the prediction that comes before learning, beside an
  iteration of Avalanche's ``training_epoch``, data loader included, no metrics;
- "step with worker": a median step of the whole loop while a worker process evaluates, beside one without evaluation.

Both are asked for the accuracies of the same weights at the end of every experience; unless they agree to the last
digit there is no result but an error. Without the extra ``avalanche`` its rows are left out.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from statistics import fmean, median
from time import perf_counter
from typing import Any

import torch

from ...evaluation.continual import Continual, Evaluation
from ...models.inputs import Pixels
from ...models.networks import build
from ...streams import Batch, Event, StreamSpec, open_stream, rebatch
from ..avalanche_bridge import import_avalanche, to_avalanche
from ..evaluated_apart import Apart
from ..evaluation_worker import Recipe, cannot
from ..learners import make_learner
from ..loop import Loop
from ..runs import Given
from . import Row, row

BENCH, BATCH, TEST_ROWS, RATE = "continual-eval", 10, 100, 0.1
CASES = {"mlp:400-400": (7, 0), "resnet18:20": (3, 60)}
"""model -> (runs, training rows of each experience; 0 for all)."""

LEARN, EVALUATE, STEP = "learn", "evaluate", "step"
"""Parts of what an update costs: two of the loop's own, and all of it."""


@dataclass
class Clocked(Given):
    """Events made beforehand; notes how long each batch kept the loop busy, and in which part."""

    loop: Loop | None = None
    steps: list[dict[str, float]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Event]:
        assert self.loop is not None
        for event in self.events:
            started, before = perf_counter(), dict(self.loop.seconds)
            yield event
            if isinstance(event, Batch):
                spent = {part: seconds - before[part] for part, seconds in self.loop.seconds.items()}
                self.steps.append(spent | {STEP: perf_counter() - started})


class BarePass(Continual):
    """In the place of an evaluation one forward pass over the rows seen so far, and nothing else."""

    def __init__(self, spec: StreamSpec) -> None:
        super().__init__(spec.experiences)
        pixels = Pixels(spec.shape or (), spec.notes["mean"], spec.notes["std"])
        self._rows = pixels.tensor(self.answers.rows(len(self.names)))

    def updated(self, update: int, learner: Any, step: int = 0) -> list[Evaluation]:  # noqa: ARG002 - as above it
        with torch.inference_mode():
            learner.net(self._rows[: sum(self.answers.sizes[: self.experience + 1])])
        return []

    def end(self, update: int, learner: Any, step: int = 0) -> list[Evaluation]:  # noqa: ARG002 - as above it
        return []


Steps = list[dict[str, float]]
"""What every update of one run cost, by part, in seconds."""


def looped(spec: StreamSpec, events: list[Event], model: str, continual: Continual | None) -> Steps:
    """One run of our loop."""
    learner = make_learner("finetune", spec, model=model, lr=RATE)
    loop = Loop(learner, continual=continual)
    clocked = Clocked(spec, events, loop)
    if not isinstance(continual, Apart):
        for _ in loop.steps(clocked):
            pass
        return clocked.steps
    with continual.working(Recipe("finetune", spec, 0, {"model": model, "lr": RATE}), learner):
        for _ in loop.steps(clocked):
            pass
    return clocked.steps


def naive(model: str, spec: StreamSpec, *, evaluate: bool) -> Any:
    """Avalanche's Naive, which notes in ``steps`` how long each iteration, or each evaluation in one, took."""
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    class Clock(Naive):
        """Iterations are what lies between two of them, the making of the loader's batch included."""

        def training_epoch(self, **settings: Any) -> None:
            self.steps: Steps = getattr(self, "steps", [])
            self.at: float | None = perf_counter()
            super().training_epoch(**settings)
            self.at = None

        def eval(self, *given: Any, **settings: Any) -> Any:
            started = perf_counter()
            found = super().eval(*given, **settings)
            if getattr(self, "at", None) is not None:
                self.steps.append({EVALUATE: perf_counter() - started})
            return found

        def _after_training_iteration(self, **settings: Any) -> None:
            super()._after_training_iteration(**settings)
            if not evaluate and self.at is not None:
                self.steps.append({LEARN: perf_counter() - self.at})
                self.at = perf_counter()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no loggers
        metrics = EvaluationPlugin(accuracy_metrics(experience=True) if evaluate else [])
    net = build(model, spec.shape or (), spec.n_classes or 0)
    return Clock(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), RATE),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=BATCH,
        eval_mb_size=TEST_ROWS,
        evaluator=metrics,
        eval_every=1 if evaluate else -1,
        peval_mode="iteration",
    )


def trained(strategy: Any, benchmark: Any, *, evaluate: bool) -> Steps:
    """One run of Avalanche's."""
    for k, experience in enumerate(benchmark.train_stream):
        strategy.train(experience, eval_streams=[benchmark.test_stream[: k + 1]] if evaluate else [])
    steps: Steps = strategy.steps
    return steps


def compare_answers(spec: StreamSpec, events: list[Event], model: str, benchmark: Any) -> tuple[float, float]:
    """Final ACC by us and by Avalanche; ``RuntimeError`` unless every accuracy on the same weights is the same."""
    learner = make_learner("finetune", spec, model=model, lr=RATE)
    loop = Loop(learner, continual=Continual(spec.experiences, None))
    strategy = naive(model, spec, evaluate=True)
    mine: list[float] = []
    theirs: list[float] = []
    for record in loop.steps(Given(spec, events)):
        if record.kind == "evaluation":
            right = record.values["right"]
            mine = [n / len(e.y) for n, e in zip(right, spec.experiences)]
            strategy.model.load_state_dict(learner.net.state_dict())  # type: ignore[attr-defined] # a network
            found = strategy.eval(benchmark.test_stream[: len(right)])
            theirs = [found[f"Top1_Acc_Exp/eval_phase/test_stream/Exp{k:03}"] for k in range(len(right))]
            if mine != theirs:
                raise RuntimeError(f"{model}: we say {mine} of the weights that Avalanche says {theirs} of")
    return fmean(mine), fmean(theirs)


def typical(runs: Sequence[Steps], part: str) -> float:
    """Milliseconds: the mean over updates of the median over runs."""
    return 1e3 * fmean(median(at) for at in zip(*([step[part] for step in run] for run in runs)))


def middle(runs: Sequence[Steps]) -> float:
    """Milliseconds: the median step of all runs."""
    return 1e3 * median(step[STEP] for run in runs for step in run)


def cases(model: str, runs: int, train_rows: int, *, beside: bool) -> list[Row]:
    """All rows of one network. beside: Avalanche is there."""
    stream = rebatch(open_stream("split-digits", train_rows=train_rows, test_rows=TEST_ROWS), BATCH)
    spec, events = stream.spec, list(stream)
    benchmark = to_avalanche(stream) if beside else None
    worked = cannot(make_learner("finetune", spec, model=model)) is None
    found: dict[str, list[Steps]] = {}
    for turn in range(runs + 1):
        done = {
            "ours": looped(spec, events, model, Continual(spec.experiences)),
            "bare": looped(spec, events, model, BarePass(spec)),
            "without": looped(spec, events, model, None),
        }
        if worked:
            done["worker"] = looped(spec, events, model, Apart(spec.experiences))
        if beside:
            for name, evaluate in (("their step", False), ("their evaluation", True)):
                done[name] = trained(naive(model, spec, evaluate=evaluate), benchmark, evaluate=evaluate)
        if turn:
            for name, steps in done.items():
                found.setdefault(name, []).append(steps)
    made = []

    def add(case: str, ours: float, peer: float, peer_name: str, **more: Any) -> None:
        made.append(row(BENCH, f"{model}, {case}", "ms", ours, peer, peer_name, more_is_better=False) | more)

    ours, bare = typical(found["ours"], EVALUATE), typical(found["bare"], EVALUATE)
    add("evaluation", ours, bare, "bare forward pass", floor=ours / bare)
    if beside:
        add("evaluation", ours, typical(found["their evaluation"], EVALUATE), "Avalanche's eval", floor=ours / bare)
        step = typical(found["their step"], LEARN)
        add("training step: learn", typical(found["without"], LEARN), step, "Avalanche's Naive")
        add("training step: whole loop", typical(found["without"], STEP), step, "Avalanche's Naive")
        acc = compare_answers(spec, events, model, benchmark)
        made.append(row(BENCH, f"{model}, same weights: final ACC", "share", *acc, "Avalanche's eval"))
    if worked:
        add("step with worker", middle(found["worker"]), middle(found["without"]), "no evaluation")
    return made


def measure() -> list[Row]:
    """Both networks, on one thread."""
    beside = find_spec("avalanche") is not None
    if beside:
        import_avalanche()
    else:
        print("driftway: without the extra avalanche there is nothing to compare with but ourselves", file=sys.stderr)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [found for model, case in CASES.items() for found in cases(model, *case, beside=beside)]
    finally:
        torch.set_num_threads(threads)
