"""Avalanche's benchmarks as our streams, ours as its benchmarks, and our evaluation inside its strategies."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.avalanche_bridge import dataset_of
from driftway.evaluation.continual import Continual
from driftway.models.inputs import Pixels
from driftway.models.networks import build
from numpy.testing import assert_array_equal

needs_avalanche = pytest.mark.skipif(find_spec("avalanche") is None, reason="needs the extra avalanche")


def digits(**settings: Any) -> dw.Stream:
    return dw.rebatch(dw.stream("split-digits", **({"train_rows": 60, "test_rows": 40} | settings)), 10)


def benchmark_of(train: list[Any], test: list[Any]) -> Any:
    from avalanche.benchmarks import benchmark_from_datasets

    return benchmark_from_datasets(train=train, test=test)


def rows_of(dataset: Any) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """All rows of one of Avalanche's data sets: x, y, task labels."""
    items = [dataset[k] for k in range(len(dataset))]
    x, y, task = zip(*items)
    return torch.stack(x), torch.stack(y), [int(t) for t in task]


def naive(plugins: list[Any] | None = None, *, evaluator: Any = None, momentum: float = 0.0, **settings: Any) -> Any:
    """Avalanche's own Naive with the network of our learners of seed 0."""
    from avalanche.training.supervised import Naive

    net = build("mlp:20", (1, 8, 8), 10, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no loggers
        return Naive(
            model=net,
            optimizer=torch.optim.SGD(net.parameters(), 0.1, momentum),
            criterion=torch.nn.CrossEntropyLoss(),
            train_mb_size=10,
            plugins=plugins or [],
            evaluator=evaluator,
            **settings,
        )


def train(strategy: Any, benchmark: Any) -> torch.Tensor:
    """Every experience in the order of its rows; all weights in one."""
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[], shuffle=False)
    return torch.cat([p.detach().flatten() for p in strategy.model.parameters()])


def test_a_missing_avalanche_is_one_line_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.partition(".")[0] == "avalanche"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "avalanche", None)
    with pytest.raises(dw.InputError, match=r"driftway\[avalanche\]") as fault:
        dw.import_avalanche()
    assert "\n" not in str(fault.value)


# --- our streams as its benchmarks ------------------------------------------------------------------------------


@needs_avalanche
def test_a_stream_becomes_a_benchmark() -> None:
    stream = digits(epochs=2)
    events = iter(stream)
    next(events)
    cursor = stream.cursor()
    benchmark = dw.to_avalanche(stream)
    assert stream.cursor() == cursor
    assert [len(e.dataset) for e in benchmark.train_stream] == [60] * 5
    assert [e.current_experience for e in benchmark.train_stream] == list(range(5))
    assert [e.classes_in_this_experience for e in benchmark.test_stream] == [{2 * k, 2 * k + 1} for k in range(5)]
    spec = stream.spec
    pixels = Pixels((1, 8, 8), spec.notes["mean"], spec.notes["std"])
    x, y, task = rows_of(benchmark.test_stream[1].dataset)
    assert torch.equal(x, pixels.tensor(spec.experiences[1].x))
    assert_array_equal(y, spec.experiences[1].y)
    assert set(task) == {0}
    first = next(e for e in digits(epochs=2) if isinstance(e, dw.Batch))
    assert torch.equal(rows_of(benchmark.train_stream[0].dataset)[0][:10], pixels.tensor(first.x))


@needs_avalanche
def test_experiences_of_the_task_scenario_have_labels() -> None:
    benchmark = dw.to_avalanche(digits(scenario="task"))
    assert [e.task_label for e in benchmark.train_stream] == list(range(5))
    assert set(rows_of(benchmark.test_stream[3].dataset)[2]) == {3}


@needs_avalanche
def test_a_table_without_held_out_rows_has_a_train_stream_only() -> None:
    stream = dw.from_arrays(np.arange(12.0).reshape(6, 2), np.array([0, 1, 0, 1, 0, 1]), boundaries={4: "later"})
    benchmark = dw.to_avalanche(stream)
    assert [len(e.dataset) for e in benchmark.train_stream] == [4, 2]
    assert "test" not in benchmark.streams
    assert_array_equal(rows_of(benchmark.train_stream[1].dataset)[0], [[8, 9], [10, 11]])


@needs_avalanche
@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (lambda: dw.delay_labels(digits(), 5), "needs every label"),
        (lambda: dw.from_arrays(np.zeros((2, 1)), np.array([0.5, 1.5]), target="regression"), "an end and classes"),
        (lambda: dw.from_arrays(np.array([[1.0], [np.nan]]), np.array([0, 1])), "every label and value"),
        (lambda: dw.take(digits(), 70), "rows are held out of 5"),
    ],
)
def test_what_cannot_be_a_benchmark_is_refused(stream: Callable[[], dw.Stream], words: str) -> None:
    with pytest.raises(dw.InputError, match=words):
        dw.to_avalanche(stream())


# --- its benchmarks as our streams ------------------------------------------------------------------------------


@needs_avalanche
def test_there_and_back_gives_the_same_rows() -> None:
    stream = digits()
    back = dw.from_avalanche(dw.to_avalanche(stream, normalise=False))
    assert (back.spec.shape, back.spec.classes, back.spec.length) == ((1, 8, 8), stream.spec.classes, 300)
    assert back.spec.notes["scenario"] == "class"
    for ours, theirs in zip(stream.spec.experiences, back.spec.experiences, strict=True):
        assert_array_equal(ours.x, theirs.x)
        assert_array_equal(ours.y, theirs.y)
        assert ours.classes == theirs.classes
    rows = [
        [tuple(row) for e in s if isinstance(e, dw.Batch) for row in np.float32(e.x).tolist()] for s in (stream, back)
    ]
    assert sorted(rows[0]) == sorted(rows[1])


@needs_avalanche
def test_a_benchmark_becomes_a_stream_that_can_be_seeked() -> None:
    x = torch.arange(24.0).reshape(12, 2)
    labels = torch.tensor([7, 3] * 3 + [5, 7] * 3)
    held = dataset_of(x[:2] + 100, torch.tensor([7, 5]))
    benchmark = benchmark_of([dataset_of(x[:6], labels[:6]), dataset_of(x[6:], labels[6:])], [held])
    stream = dw.rebatch(dw.from_avalanche(benchmark, name="small", epochs=2), 4)
    assert (stream.spec.name, stream.spec.length, stream.spec.classes) == ("small", 24, ("3", "7", "5"))
    assert [e.classes for e in stream.spec.experiences] == [(0, 1, 2), (1, 2)]
    assert [e.y.tolist() for e in stream.spec.experiences] == [[1, 2], [1, 2]]
    events = list(stream)
    assert [type(e).__name__ for e in events].count("Boundary") == 1
    stream.seek({})
    again = iter(stream)
    for _ in range(3):
        next(again)
    stream.seek(stream.cursor())
    rest = [e.x.tolist() for e in stream if isinstance(e, dw.Batch)]
    assert rest == [e.x.tolist() for e in events[3:] if isinstance(e, dw.Batch)]


@needs_avalanche
def test_the_scenario_is_seen_from_the_benchmark() -> None:
    from avalanche.benchmarks import task_incremental_benchmark

    x, y = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
    parts = [dataset_of(x, y), dataset_of(x, y)]
    assert dw.from_avalanche(benchmark_of(parts, parts)).spec.notes["scenario"] == "domain"
    tasks = task_incremental_benchmark(benchmark_of(parts, parts), reset_task_labels=True)
    assert dw.from_avalanche(tasks).spec.notes["scenario"] == "task"
    assert dw.from_avalanche(tasks, scenario="class").spec.notes["scenario"] == "class"
    with pytest.raises(dw.InputError, match="one for each"):
        dw.from_avalanche(benchmark_of([*parts, parts[0]], parts))


@needs_avalanche
def test_rows_that_are_no_tensors_are_refused() -> None:
    from avalanche.benchmarks.utils import TaskAwareSupervisedClassificationDataset, TaskLabels
    from avalanche.benchmarks.utils.data_attribute import DataAttribute

    labels = DataAttribute([0, 1], "targets")
    words = TaskAwareSupervisedClassificationDataset(
        [[("one", 0), ("two", 1)]], data_attributes=[labels, TaskLabels([0, 0])]
    )
    with pytest.raises(dw.InputError, match="rows of str"):
        dw.from_avalanche(benchmark_of([words], [words]))


# --- our evaluation in its strategies ---------------------------------------------------------------------------


@needs_avalanche
def test_both_evaluate_alike_to_the_last_digit() -> None:
    """Our evaluator in Avalanche's strategy, our loop around our own learner, and Avalanche's own evaluation."""
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin

    stream = digits()
    benchmark = dw.to_avalanche(stream)
    plugin = dw.continual_plugin(benchmark)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = EvaluationPlugin(accuracy_metrics(experience=True))
    strategy = naive([plugin], evaluator=theirs)
    train(strategy, benchmark)
    learner = dw.learner("finetune", stream.spec, model="mlp:20", lr=0.1)
    loop = dw.Loop(learner, continual=Continual(stream.spec.experiences))
    ours = [r.values for r in loop.steps(stream) if r.kind == "evaluation"]
    assert [(e.update, e.right) for e in plugin.curve] == [(v["update"], v["right"]) for v in ours]
    assert len(ours) == 30
    assert plugin.summary() == loop.summary()["continual"]
    found = strategy.eval(benchmark.test_stream)
    right = [found[f"Top1_Acc_Exp/eval_phase/test_stream/Exp00{k}"] * 40 for k in range(5)]
    assert tuple(right) == plugin.curve[-1].right


@needs_avalanche
def test_evaluation_leaves_no_trace_in_a_strategy() -> None:
    benchmark = dw.to_avalanche(digits(train_rows=30))
    torch.manual_seed(1)
    without = train(naive(momentum=0.9), benchmark), torch.get_rng_state()
    torch.manual_seed(1)
    plugin = dw.continual_plugin(benchmark)
    observed = train(naive([plugin], momentum=0.9), benchmark), torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(without, observed))
    assert len(plugin.curve) == 15


@needs_avalanche
def test_ends_are_judged_where_nothing_falls_due_by_count() -> None:
    benchmark = dw.to_avalanche(digits(train_rows=30))
    plugin = dw.continual_plugin(benchmark, every=None)
    train(naive([plugin]), benchmark)
    assert [(e.update, e.experience) for e in plugin.curve] == [(3, 0), (6, 1), (9, 2), (12, 3)]
    assert plugin.summary()["evaluations"] == 5


@needs_avalanche
def test_a_stream_cut_into_small_experiences_is_judged_by_the_whole_ones() -> None:
    from avalanche.benchmarks import split_online_stream

    benchmark = dw.to_avalanche(digits(train_rows=30))
    plugin = dw.continual_plugin(benchmark)
    strategy = naive([plugin])
    for piece in split_online_stream(benchmark.train_stream, 10, seed=3):
        strategy.train(piece, eval_streams=[])
    assert [e.experience for e in plugin.curve] == [k for k in range(5) for _ in range(3)]


@needs_avalanche
def test_experiences_out_of_order_are_refused() -> None:
    benchmark = dw.to_avalanche(digits(train_rows=30))
    strategy = naive([dw.continual_plugin(benchmark)])
    with pytest.raises(dw.InputError, match="experience 2 after 0"):
        strategy.train(benchmark.train_stream[2], eval_streams=[])
