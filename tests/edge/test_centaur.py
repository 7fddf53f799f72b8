"""A planner that adapts, as functions and as a bundle: what the learner answers and remembers, frame by frame."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.edge.centaur import state_of
from driftway.adapt.edge.runner import Runner
from driftway.adapt.edge.steps import CannotExport, steps_of
from driftway.adapt.learners.centaur import Centaur
from driftway.models.cluster_training import RECENT
from driftway.models.planner import Planner

SETTINGS: list[dict[str, Any]] = [
    {"delta": 0.05, "objective": "ascent", "guard": True, "trigger": 0.5, "buffer": 3},
    {"delta": 0.02, "mode": "accumulate"},
    {"delta": 0.1, "objective": "full", "temperature": 2.0, "background": "no"},
]


@pytest.fixture(scope="module")
def stream() -> Any:
    return dw.stream("driving", scenes=4, plans=16, training=40)


@pytest.fixture(scope="module")
def make(stream: Any) -> Any:
    """A planner with random weights, the same each time."""

    def made(**settings: Any) -> Centaur:
        planner = Planner(stream.spec.worth.vocabulary, stream.spec.worth.layout, width=16, seed=1)
        return Centaur(stream.spec, Centaur.Params(**settings), planner=planner)

    return made


@pytest.fixture(scope="module")
def frames(stream: Any) -> list[dw.Batch]:
    stream.seek({})
    return [event for event in stream if isinstance(event, dw.Batch)]


def timed(batch: dw.Batch) -> Any:
    return np.c_[batch.x, np.full(len(batch), batch.time)]


def together(batches: list[dw.Batch]) -> dw.Batch:
    """Several frames as one batch, at the time of the first."""
    return dw.Batch(np.concatenate([b.ids for b in batches]), np.concatenate([b.x for b in batches]), batches[0].time)


def follow(learner: Centaur, batches: list[dw.Batch]) -> tuple[float, list[Any]]:
    """Both through the same frames, each from its own state; the largest difference of an answer, and outcomes."""
    steps = steps_of(learner)
    names, state, worst, outcomes = steps.verbs["adapt"].writes, dict(steps.state), 0.0, []
    for batch in batches:
        x = torch.from_numpy(timed(batch))
        with torch.no_grad():
            (asked,) = steps.verbs["predict"].module(x, state["moved"], state["clock"])
            scores, outcome, *new = steps.verbs["adapt"].module(x, *state.values())
        state = dict(zip(names, new, strict=True))
        said = learner.predict(batch)
        learner.adapt(batch, said)
        assert torch.equal(asked, scores)
        worst = max(worst, float(np.abs(scores.numpy() - said.scores).max()))
        outcomes.append(outcome.tolist())
    for name, value in state_of(learner).items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5)
    return worst, outcomes


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_a_step_is_the_learners(make: Any, frames: list[dw.Batch], settings: dict[str, Any]) -> None:
    learner = make(**settings)
    worst, outcomes = follow(learner, frames)
    assert worst < 1e-5
    assert sum(took for took, *_ in outcomes) == learner.training.memory.steps > 3
    assert sum(reset for _, _, reset, _ in outcomes) == learner.training.memory.resets


def test_frames_of_a_batch_are_learnt_one_after_the_other(make: Any, frames: list[dw.Batch]) -> None:
    learner = make(delta=0.05, mode="accumulate")
    worst, outcomes = follow(learner, [together(frames[:3]), frames[3], together(frames[5:10])])
    assert worst < 1e-5
    assert [kept for _, kept, *_ in outcomes] == [3, 1, 5]


def test_a_gap_or_an_earlier_time_begins_anew(make: Any, frames: list[dw.Batch]) -> None:
    learner = make(delta=0.1)
    at = [replace(frames[i], time=t) for i, t in enumerate((5.0, 6.0, 7.1, 7.5, 7.4))]
    worst, _ = follow(learner, at)
    assert worst < 1e-5
    assert len(learner.training.memory.gradients) == 1


def test_accumulated_steps_that_went_too_far_are_taken_back(make: Any, frames: list[dw.Batch]) -> None:
    learner = make(delta=0.05, mode="accumulate")
    size = sum(w.numel() for w in learner.training.start.values())
    learner.training.memory = replace(learner.training.memory, moved=torch.ones(size))
    learner.training.time = frames[0].time
    assert [reset for _, _, reset, _ in follow(learner, frames[:2])[1]] == [1, 0]


@pytest.mark.parametrize("trained", ["the same", "another"])
def test_so_are_those_that_are_sure_of_one_answer_alone(make: Any, frames: list[dw.Batch], trained: str) -> None:
    learner = make(delta=0.05, mode="accumulate", temperature=1e-4)
    here = learner.training._cluster(torch.from_numpy(learner.source_scores(frames[0])))
    there = here if trained == "the same" else here + 1
    learner.training.memory = replace(
        learner.training.memory, answers=(here,) * RECENT, trained=(there,) * RECENT, mean=0.0
    )
    learner.training.time = frames[0].time
    ((_, _, reset, _),) = follow(learner, frames[:1])[1]
    assert reset == (trained == "another")


def test_garbage_leaves_nothing(make: Any, frames: list[dw.Batch]) -> None:
    learner = make(delta=0.05)
    bad = replace(frames[2], x=np.full_like(frames[2].x, 1e30))
    worst, outcomes = follow(learner, [*frames[:2], bad, frames[3]])
    assert worst < 1e-5
    assert [kept for _, kept, *_ in outcomes] == [1, 1, 0, 1]


def test_controls_without_a_step(make: Any, frames: list[dw.Batch]) -> None:
    learner = make(objective="none")
    steps = steps_of(learner)
    assert list(steps.verbs) == ["predict"]
    (scores,) = steps.verbs["predict"].module(torch.from_numpy(timed(frames[0])))
    np.testing.assert_allclose(scores.numpy(), learner.predict(frames[0]).scores, atol=1e-6)
    for objective in ("random", "fallback"):
        with pytest.raises(CannotExport, match=f"^centaur:{objective} has no form as a graph"):
            steps_of(make(objective=objective))


@pytest.mark.parametrize("mode", ["episodic", "accumulate"])
def test_a_bundle_drives_as_the_learner_does(make: Any, frames: list[dw.Batch], tmp_path: Path, mode: str) -> None:
    learner = make(delta=0.05, mode=mode)
    for batch in frames[:7]:
        learner.adapt(batch, learner.predict(batch))
    runner = Runner(dw.export(learner, learner.spec, tmp_path / "bundle"))
    edge = dw.learner(f"edge:{tmp_path / 'bundle'}", learner.spec)
    start = state_of(learner)["moved"]
    for batch in [*frames[7:12], together(frames[12:15]), frames[15]]:
        said = learner.predict(batch)
        learner.adapt(batch, said)
        np.testing.assert_allclose(runner.predict(timed(batch)), said.scores, atol=1e-5)
        np.testing.assert_allclose(runner.adapt(timed(batch)), said.scores, atol=1e-5)
        told = edge.predict(batch)
        edge.adapt(batch, told)
        np.testing.assert_allclose(told.scores, said.scores, atol=1e-5)
    assert runner.counts["steps"] == 7
    assert runner.counts["rollbacks"] == 0
    assert not torch.equal(state_of(learner)["moved"], start)
