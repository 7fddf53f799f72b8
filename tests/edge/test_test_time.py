"""The step as one function beside the learner that branches: equal states and answers, step for step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import driftway as dw
import numpy as np
import onnxruntime
import pytest
import torch
from driftway.adapt.edge.steps import CannotExport, steps_of
from driftway.adapt.edge.tracing import traced
from driftway.adapt.learners.centaur import Centaur
from driftway.adapt.learners.test_time_recipes import (
    EATA,
    RSGS,
    SAR,
    BatchNormAdapt,
    CoTTA,
    Mixture,
    Recipe,
    RoTTA,
    Source,
    Tent,
)
from driftway.adapt.learners.test_time_teacher import Hold
from torch import nn

RECIPES: list[Recipe] = [
    Tent(optimizer="sgd", lr=0.05),
    Tent(optimizer="sgd", lr=0.05, momentum=0.0, statistics="batch"),
    Tent(optimizer="sgd", lr=0.05, statistics="source"),
    Tent(lr=0.01, statistics="mixed"),
    EATA(lr=0.05, e_frac=0.95, like=0.995, beta=0),
    SAR(lr=0.05, e_frac=0.7, recover=0.0),
    SAR(lr=0.05, e_frac=0.9, recover=0.5),
    RSGS(lr=0.05, e_frac=0.7, refilter=True, recover=0.0),
    RSGS(lr=0.05, e_frac=0.6, clip=0.01, recover=0.0),
    Mixture(objective="cluster-entropy", groups=3, filter="by-group", share=0.5, rho=0.05, alpha=0.4, lr=0.05),
    Centaur.Params(groups=3, lr=0.01),
    Tent(lr=0.01, statistics="running"),
    RSGS(lr=0.05, e_frac=0.9, recover=0.9, statistics="running", follow=0.3),
    Mixture(filter="novel", e_frac=0.97, like=0.999, lr=0.05, recover=0.9),
    Mixture(filter="novel", e_frac=0.9, like=0.95, optimizer="adam", lr=0.01, by_rows="linear"),
]


def follow(learner: Any, rows: Any, sizes: tuple[int, ...] = (20, 1, 3, 16, 1, 5, 33)) -> float:
    """Both through the same batches, each step from the learner's state; the largest difference of anything."""
    worst = 0.0
    moved = 0
    for i, n in enumerate(sizes):
        steps = steps_of(learner)
        verb = steps.verbs["adapt"]
        batch = rows(n, i + 1)
        with torch.no_grad():
            scores, outcome, *state = verb.module(torch.from_numpy(batch.x).float(), *steps.state.values())
        prediction = learner.predict(batch)
        before = dict(learner.counts)
        learner.adapt(batch, prediction)
        worst = max(worst, float(np.abs(scores.numpy() - prediction.scores).max()))
        now = steps_of(learner).state
        for name, value in zip(verb.writes, state, strict=True):
            worst = max(worst, float((value - now[name]).abs().max()))
        assert bool(outcome[0]) == (learner.counts["steps"] > before["steps"])
        assert int(outcome[1]) == learner.counts["kept"] - before["kept"]
        assert bool(outcome[2]) == (learner.counts["resets"] > before["resets"])
        moved += int(outcome[0])
    assert moved > 1, "the case moves nothing"
    return worst


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: f"{type(r).__name__}-{RECIPES.index(r)}")
def test_a_step_is_the_learners(make: Any, rows: Any, recipe: Recipe) -> None:
    assert follow(make(recipe), rows) < 1e-5


@pytest.mark.parametrize("model", ["mlp-norm:16-8", "resnet18:4"])
def test_of_other_networks(make: Any, rows: Any, model: str) -> None:
    learner = make(RSGS(lr=0.05, e_frac=0.8, recover=0.0), model)
    assert follow(learner, rows, (20, 3, 5)) < 1e-4  # sums of many layers in another order


def test_a_penalty_holds_it_near_the_source(rows: Any) -> None:
    stream = dw.stream("digits-c")
    learner = dw.learner("eata", stream.spec, epochs=1, cache=False, e_frac=0.95, like=0.99, beta=50.0, lr=0.05)
    assert follow(learner, rows) < 1e-5
    assert learner.hold is not None  # type: ignore[attr-defined]


def held(make: Any) -> Any:
    """EATA with a penalty of made-up weights."""
    found = make(EATA(lr=0.005, e_frac=0.95, like=0.995, beta=0))
    draw = torch.Generator().manual_seed(5)
    fisher = {n: 0.05 * torch.rand(w.shape, generator=draw) for n, w in found.source.items()}
    found.hold = Hold(2.0, fisher, found.source)
    return found


def deviations(made: Callable[[], Any], graph: Any, seed: int, steps: int = 200) -> tuple[float, float]:
    """How far scores of a bundle's graph and of PyTorch go from a run in double precision, at most."""
    eager, double = made(), made()
    double.net.double()
    double.source = {n: w.double() for n, w in double.source.items()}
    if double.hold is not None:
        double.hold = Hold(double.hold.beta, {n: f.double() for n, f in double.hold.fisher.items()}, double.source)
    known, verb = dict(steps_of(eager).state), steps_of(double).verbs["adapt"]
    exact, single = {n: t.double() for n, t in known.items()}, {n: t.numpy() for n, t in known.items()}
    draw, far = np.random.default_rng(seed), [0.0, 0.0]
    for i in range(steps):
        x = draw.random((2, 64), np.float32)
        with torch.no_grad():
            true, _, *new = verb.module(torch.from_numpy(x).double(), *exact.values())
        exact = dict(zip(exact, new))
        scores, _, *moved = graph.run(None, {"x": x} | {f"old.{n}": a for n, a in single.items()})
        single = dict(zip(single, moved))
        batch = dw.Batch(np.arange(2) + 2 * i, x.astype(np.float64), 0.0)
        said = eager.predict(batch)
        eager.adapt(batch, said)
        far = [max(f, float(np.abs(s - true.numpy()).max())) for f, s in zip(far, (scores, said.scores))]
    return far[0], far[1]


@pytest.mark.parametrize("case", ["cluster entropy by Adam", "EATA with its penalty"])
def test_over_many_steps_it_stays_as_near_to_double_precision_as_pytorch(make: Any, case: str) -> None:
    def made() -> Any:
        return held(make) if "EATA" in case else make(Centaur.Params(groups=3, lr=1e-3), "convnet:4")

    steps = steps_of(made())
    model = traced("adapt", steps.verbs["adapt"], steps.state).SerializeToString()
    graph = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found = [deviations(made, graph, seed) for seed in range(5)]
    ours, eager = np.median(found, 0)
    assert 0 < ours <= 3 * eager


def test_a_row_of_garbage_moves_nothing(make: Any) -> None:
    steps = steps_of(make(Tent(optimizer="sgd", lr=0.05)))
    x = torch.rand(20, 64)
    x[3] = torch.nan
    with torch.no_grad():
        scores, outcome, *state = steps.verbs["adapt"].module(x, *steps.state.values())
    assert outcome[0] == 0
    assert all(torch.equal(a, b) for a, b in zip(state, steps.state.values(), strict=True))
    assert torch.allclose(scores.sum(1), torch.ones(20))


@pytest.mark.parametrize("model", ["convnet:4-8", "mlp-norm:8"])
def test_statistics_that_follow_the_stream(make: Any, rows: Any, model: str) -> None:
    learner = make(BatchNormAdapt(statistics="running", follow=0.2), model)
    start = steps_of(learner).state["statistics"].clone()
    for i, n in enumerate((5, 1, 20)):
        steps, batch = steps_of(learner), rows(n, i)
        batch.x[0] *= 30  # farther than they may follow
        with torch.no_grad():
            x = torch.from_numpy(batch.x).float()
            (asked,) = steps.verbs["predict"].module(x, *steps.state.values())
            scores, outcome, moved = steps.verbs["adapt"].module(x, *steps.state.values())
        prediction = learner.predict(batch)
        learner.adapt(batch, prediction)
        assert torch.equal(asked, scores)
        assert outcome.tolist()[:2] == [1, n]
        np.testing.assert_allclose(scores.numpy(), prediction.scores, atol=1e-5)
        np.testing.assert_allclose(moved.numpy(), steps_of(learner).state["statistics"].numpy(), rtol=1e-5, atol=1e-5)
    assert float((moved - start).abs().max()) > 0.1


@pytest.mark.parametrize("recipe", [BatchNormAdapt(), Source()])
def test_without_a_descent_there_is_an_answer_and_no_step(make: Any, rows: Any, recipe: Recipe) -> None:
    learner = make(recipe)
    steps = steps_of(learner)
    assert list(steps.verbs) == ["predict"]
    for n in (1, 5, 20):
        batch = rows(n)
        with torch.no_grad():
            (scores,) = steps.verbs["predict"].module(torch.from_numpy(batch.x).float())
        np.testing.assert_allclose(scores.numpy(), learner.predict(batch).scores, atol=1e-6)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (CoTTA(), "^cotta has no form as graphs: its teacher answers through views"),
        (RoTTA(), "^rotta has no form as graphs: its steps rest on a memory of rows"),
        (Mixture(teacher=0.9), "a second network"),
        (Mixture(scope="head.*"), "scope=affine"),
    ],
)
def test_what_has_no_graph_is_said(make: Any, recipe: Recipe, words: str) -> None:
    with pytest.raises(CannotExport, match=words):
        steps_of(make(recipe))


def test_the_layer_that_has_no_graph_is_named(make: Any) -> None:
    learner = make(Tent())
    learner.net.body.insert(2, nn.GELU())
    with pytest.raises(CannotExport, match=r"GELU at body\.2"):
        steps_of(learner)


def test_a_learner_without_graphs_is_named() -> None:
    learner = dw.learner("majority", dw.stream("digits").spec)
    with pytest.raises(CannotExport, match="Majority has no form as graphs"):
        steps_of(learner)
