"""Avalanche and us: its benchmarks as our streams, our streams as its benchmarks, our evaluation in its strategies.

Avalanche (Lomonaco et al., CVPR workshops 2021; avalanche-lib 0.6) comes with the extra ``avalanche``. It takes
seconds to import and is imported only by the functions here. The fourth way across, its strategies as learners in our
loop, is ``learners/avalanche_strategy.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..evaluation.continual import Continual, Evaluation
from ..streams import NO_LABEL, Array, Batch, Boundary, Experience, InputError, Rejected, Stream, from_experiences

if TYPE_CHECKING:
    from torch import Tensor


def import_avalanche() -> None:
    """Import Avalanche; ``InputError`` in one line where it is not installed.

    A program that uses Avalanche beside us calls this first: it needs torchvision, which cannot be imported beside
    every build of torch (``models/vision.py`` knows how). What its own dependencies have to say about
    one another at that moment (one calls itself unmaintained) is no concern of a run and is kept quiet.
    """
    from ..models.vision import import_torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import_torchvision()
            import avalanche.training.supervised  # noqa: F401
        except ImportError as fault:
            raise InputError(f'this needs avalanche-lib: pip install "driftway[avalanche]" ({fault})') from None


def dataset_of(x: Tensor, y: Tensor, task: int = 0) -> Any:
    """Avalanche's data set of these rows (x[B, ...], y int64[B]), all with one task label."""
    from avalanche.benchmarks.utils import ConstantSequence, TaskAwareSupervisedClassificationDataset, TaskLabels
    from avalanche.benchmarks.utils.data_attribute import DataAttribute
    from torch.utils.data import TensorDataset

    labels = DataAttribute(y.tolist(), "targets")
    tasks = TaskLabels(ConstantSequence(task, len(y)))
    return TaskAwareSupervisedClassificationDataset([TensorDataset(x, y)], data_attributes=[labels, tasks])


# --- its benchmarks as our streams ------------------------------------------------------------------------------


def from_avalanche(
    benchmark: Any,
    *,
    name: str = "avalanche",
    epochs: int = 1,
    scenario: str | None = None,
    test_rows: int = 0,
    train_rows: int = 0,
    seed: int = 0,
) -> Stream:
    """A benchmark of Avalanche as a stream: its experiences with a Boundary between them, its test rows held out.

    benchmark: anything with a ``train_stream`` and a ``test_stream`` whose experiences have data sets of (tensor,
    label, ...); the test stream has one experience for each of the others, or a single one for all. Rows are as the
    benchmark's transforms for evaluation show them; all are read now and kept. epochs, test_rows, train_rows, seed: as
    in ``from_experiences``. scenario: "class", "task" or "domain"; left out, it is "task" where the experiences have
    task labels of their own, "domain" where all have the same classes, "class" elsewhere.

    Class codes are given in the order in which the classes come; ``spec.classes`` has Avalanche's numbers for them.
    Raises ``InputError`` for rows that are no tensors, and where the two streams do not fit together.
    """
    import_avalanche()
    train = [_arrays(experience) for experience in benchmark.train_stream]
    test = [_arrays(experience) for experience in benchmark.test_stream]
    if len(test) == 1:
        test *= len(train)
    if not train or len(test) != len(train):
        raise InputError(f"{name}: {len(train)} training experiences and {len(test)} for tests; one for each is needed")
    labels = list(dict.fromkeys(c for _, y in (*train, *test) for c in np.unique(y).tolist()))
    code = {label: k for k, label in enumerate(labels)}
    if scenario is None:
        scenario = _scenario(benchmark, train)

    def coded(y: Array) -> Array:
        return np.array([code[label] for label in y.tolist()], np.int64)

    return from_experiences(
        [(f"experience {k}", x, coded(y)) for k, (x, y) in enumerate(train)],
        [(x, coded(y)) for x, y in test],
        name=name,
        classes=[str(label) for label in labels],
        scenario=scenario,  # type: ignore[arg-type] # checked there
        epochs=epochs,
        train_rows=train_rows,
        test_rows=test_rows,
        seed=seed,
    )


def _arrays(experience: Any) -> tuple[Array, Array]:
    """float32[n, ...] and int64[n]: every row of an experience, as its transforms for evaluation show it."""
    from torch import Tensor

    shown = experience.dataset.eval()
    x, y = [], []
    for k in range(len(shown)):
        row, label, *_ = shown[k]
        if not isinstance(row, Tensor):
            raise InputError(
                f"Avalanche gives rows of {type(row).__name__}; its benchmark needs a transform to tensors"
            )
        x.append(row.numpy(force=True))
        y.append(int(label))
    if not x:
        raise InputError("an experience of the benchmark has no rows")
    return np.stack(x).astype(np.float32, copy=False), np.array(y, np.int64)


def _scenario(benchmark: Any, train: Sequence[tuple[Array, Array]]) -> str:
    tasks = {tuple(getattr(experience, "task_labels", ())) for experience in benchmark.train_stream}
    if len(tasks) > 1:
        return "task"
    spread = {tuple(np.unique(y).tolist()) for _, y in train}
    return "domain" if len(spread) == 1 and len(train) > 1 else "class"


# --- our streams as its benchmarks ------------------------------------------------------------------------------


def to_avalanche(stream: Stream, *, normalise: bool = True) -> Any:
    """One of our streams as a benchmark of Avalanche: a train stream of its experiences, a test stream of the held-out
    rows where there are any.

    The stream is read from its first event to its last, then put back to where it was. An experience is one pass over
    its rows in the order of the stream (repeating them is the strategy's business), float32[*spec.shape] each.
    normalise: subtract the mean and divide by the deviation of the channels where the spec has them, which gives the
    very tensors that our own networks get; else rows stay in the units of the stream. Experiences know their classes
    and, if the scenario is "task", their task labels. Raises ``InputError`` for a stream without end, a numeric
    target, a label that is late or missing and a value that is missing.
    """
    import_avalanche()
    from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels

    spec = stream.spec
    if spec.target != "classification" or spec.length is None:
        raise InputError(f"{spec.name}: a benchmark of Avalanche needs an end and classes")
    pieces = _pieces(stream, spec.notes.get("epochs", 1))
    if spec.experiences and len(spec.experiences) != len(pieces):
        raise InputError(f"{spec.name}: {len(pieces)} experiences, but rows are held out of {len(spec.experiences)}")
    tensors = _tensors(stream, normalise)
    by_task = spec.notes.get("scenario") == "task"
    streams = {"train": pieces, "test": [(e.x, e.y) for e in spec.experiences]}
    made = benchmark_from_datasets(
        **{
            name: [dataset_of(*tensors(x, y), task=k if by_task else 0) for k, (x, y) in enumerate(rows)]
            for name, rows in streams.items()
            if rows
        }
    )
    return with_classes_timeline(with_task_labels(made) if by_task else made)


def _pieces(stream: Stream, epochs: int) -> list[tuple[Array, Array]]:
    """x float64[n, d] and y int64[n] of each experience, the first of its passes."""
    before = stream.cursor()
    stream.seek({})
    groups: list[list[Batch]] = [[]]
    for event in stream:
        if isinstance(event, Boundary):
            groups.append([])
        elif isinstance(event, Batch):
            if event.y is None or (event.y == NO_LABEL).any() or not np.isfinite(np.asarray(event.x)).all():
                raise InputError(f"{stream.spec.name}: Avalanche needs every label and value with its row")
            groups[-1].append(event)
        elif not isinstance(event, Rejected):
            raise InputError(f"{stream.spec.name}: Avalanche knows no {type(event).__name__}")
    stream.seek(before)
    pieces = []
    for group in groups:
        x, y = np.concatenate([b.x for b in group]), np.concatenate([b.y for b in group if b.y is not None])
        n = len(y) // epochs
        pieces.append((x[:n], y[:n]))
    return pieces


def _tensors(stream: Stream, normalise: bool) -> Callable[[Array, Array], tuple[Tensor, Tensor]]:
    import torch

    from ..models.inputs import Pixels

    spec = stream.spec
    shape = spec.shape or (spec.n_features,)
    known = spec.shape is not None and "mean" in spec.notes
    pixels = Pixels(spec.shape or (), spec.notes["mean"], spec.notes["std"]) if normalise and known else None

    def made(x: Array, y: Array) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(x.astype(np.float32)).reshape(-1, *shape) if pixels is None else pixels.tensor(x)
        return rows, torch.from_numpy(y.astype(np.int64))

    return made


# --- our evaluation in its strategies ---------------------------------------------------------------------------


def continual_plugin(benchmark: Any, *, every: int | None = 1, scenario: str = "class") -> Any:
    """Our continual evaluation as a plugin for a strategy of Avalanche: ``Naive(..., plugins=[plugin])``.

    benchmark: whose ``test_stream`` has the rows to judge by, one experience for each of the train stream, trained in
    that order. every: iterations between two evaluations; None evaluates at the ends of experiences only. scenario:
    as in ``Continual``. All rows are read once, now; a plugin belongs to one strategy and one run over the stream.

    ``plugin.summary()`` has ACC, min-ACC, WC-ACC and all the others; ``plugin.curve`` every evaluation, as
    ``Evaluation(update, experience, right)``. Parameters, gradients, modes of modules and random generators are left
    exactly as they are. Raises ``InputError`` where experiences come in another order.
    """
    import_avalanche()
    from avalanche.training.plugins import SupervisedPlugin

    judged: list[Experience] = []
    tasks: list[int] = []
    shape: tuple[int, ...] = ()
    for k, experience in enumerate(benchmark.test_stream):
        x, y = _arrays(experience)
        shape = x.shape[1:]
        judged.append(Experience(f"experience {k}", x.reshape(len(x), -1), y, 0, tuple(np.unique(y).tolist())))
        tasks += [int(task) for task in experience.dataset.targets_task_labels]

    class ContinualPlugin(SupervisedPlugin):
        """Feeds ``Continual`` from the callbacks of a strategy; to ``Continual`` it is the learner."""

        def __init__(self) -> None:
            super().__init__()
            self.continual = Continual(judged, every, scenario)
            self.curve: list[Evaluation] = []
            self.update = 0

        def before_training_exp(self, strategy: Any, **_: Any) -> None:
            self.strategy = strategy
            at = _position(strategy.experience)
            if at == self.continual.experience + 1:
                self.curve += self.continual.switch(self.update, self)
            elif at != self.continual.experience:
                raise InputError(f"experience {at} after {self.continual.experience}: they are judged in their order")

        def after_training_iteration(self, _strategy: Any, **_: Any) -> None:
            self.update += 1
            self.curve += self.continual.updated(self.update, self)

        def summary(self) -> dict[str, Any]:
            """All metrics with the model as it stands, as in the key ``continual`` of our summaries."""
            self.curve += self.continual.end(self.update, self)
            return self.continual.summary()

        def version(self) -> int:
            return self.update

        def probe(self, x: Array) -> Callable[[], Array]:
            return _probe(self.strategy, x.reshape(-1, *shape), tasks[: len(x)])

    return ContinualPlugin()


def _position(experience: Any) -> int:
    """The number of an experience; of the one it was cut from, where a stream was cut into small ones."""
    return int(getattr(experience, "origin_experience", experience).current_experience)


def _probe(strategy: Any, x: Array, tasks: Sequence[int]) -> Callable[[], Array]:
    """A function that gives the scores of these rows with the strategy's model of that moment."""
    import torch
    from avalanche.models.utils import avalanche_forward

    rows, labels = torch.from_numpy(x).to(strategy.device), torch.tensor(tasks, device=strategy.device)

    def score() -> Array:
        modes = [(module, module.training) for module in strategy.model.modules()]
        strategy.model.eval()
        with torch.inference_mode():
            scores: Array = avalanche_forward(strategy.model, rows, labels).numpy(force=True)
        for module, mode in modes:
            module.training = mode
        return scores

    return score
