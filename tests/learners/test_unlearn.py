"""Networks that forget by gradient steps: training anew is exact, the others say that they are not."""

from __future__ import annotations

from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt.learners import learner_params
from driftway.adapt.state import digest
from driftway.models.approximate_unlearning import METHODS
from numpy.testing import assert_allclose, assert_array_equal

SPEC = dw.StreamSpec("s", tuple(dw.Column(f"x{j}") for j in range(5)), classes=("a", "b", "c"))
RNG = np.random.default_rng(1)
X = RNG.normal(size=(120, 5))
Y = np.argmax(X[:, :3], axis=1)
ALL = ("retrain", *METHODS)


def rows(index: Any) -> dw.Batch:
    at = np.asarray(index, np.int64)
    return dw.Batch(at, X[at], 0.0, Y[at])


def unlearn(method: str = "finetune", **settings: Any) -> Any:
    return dw.learner(f"unlearn:{method}", SPEC, seed=2, model="mlp:8", **settings)


def taught(method: str = "finetune", *, without: Any = (), spec: dw.StreamSpec = SPEC) -> Any:
    learner = dw.learner(f"unlearn:{method}", spec, seed=2, model="mlp:8")
    for at in range(0, 120, 10):
        batch = rows([i for i in range(at, at + 10) if i not in without])
        if len(batch):
            learner.learn(batch, learner.predict(batch))
    return learner


def weights(learner: Any) -> Any:
    return np.concatenate([w.detach().numpy().ravel() for w in learner.net.parameters()])


GONE = [3, 4, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49]
"""A whole batch, and parts of another."""


def test_training_anew_is_never_having_learnt() -> None:
    learner = taught("retrain")
    receipt = learner.forget(np.array(GONE))
    assert_allclose(weights(learner), weights(taught("retrain", without=GONE)), atol=1e-6)
    assert "trained anew" in receipt.guarantee
    more = rows(range(10))
    learner.learn(more, learner.predict(more))  # into the places that were set free
    learner.forget(np.array([50]))
    assert receipt.before != receipt.after


@pytest.mark.parametrize("method", METHODS)
def test_the_others_move_the_network_and_promise_nothing(method: str) -> None:
    learner = taught(method)
    before = weights(learner)
    receipt = learner.forget(np.array(GONE))
    assert not np.array_equal(before, weights(learner))
    assert receipt.guarantee.startswith("approximate")
    assert receipt.certificate == {"kind": "ids", "rows": 12, "method": method}
    again = taught(method)
    again.forget(np.array(GONE))
    assert_array_equal(weights(learner), weights(again))


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize(("ids", "reason"), [([3, 900], "never learnt"), ([7, 5], "forgotten already")])
def test_what_cannot_be_forgotten_is_refused_whole(method: str, ids: list[int], reason: str) -> None:
    learner = taught(method)
    learner.forget(np.array([5]))
    before = digest(learner.state())
    with pytest.raises(dw.CannotForget, match=reason):
        learner.forget(np.array(ids))
    assert digest(learner.state()) == before


@pytest.mark.parametrize("method", ALL)
def test_everything_forgotten_is_the_first_network(method: str) -> None:
    learner = taught(method)
    learner.forget(np.arange(120))
    assert_array_equal(weights(learner), weights(unlearn(method)))


def test_a_class_goes_with_all_its_rows() -> None:
    learner = taught("retrain")
    receipt = learner.forget_whole("class", 1)
    assert sorted(receipt.ids) == np.flatnonzero(Y == 1).tolist()
    assert_allclose(weights(learner), weights(taught("retrain", without=np.flatnonzero(Y == 1))), atol=1e-6)
    with pytest.raises(dw.CannotForget, match="no learnt rows of class 1"):
        learner.forget_whole("class", 1)
    with pytest.raises(dw.CannotForget, match="no groups here"):
        learner.forget_whole("group", 0)


def test_an_empty_request_changes_nothing() -> None:
    learner = taught("scrub")
    receipt = learner.forget(np.empty(0, np.int64))
    assert receipt.before == receipt.after


def test_barred_rows_are_forgotten_and_never_learnt() -> None:
    learner = taught("retrain", without=range(60, 120))
    learner.bar(np.array([3, 70]))
    for at in range(60, 120, 10):
        learner.learn(rows(range(at, at + 10)), learner.predict(rows([0])))
    assert_allclose(weights(learner), weights(taught("retrain", without=[3, 70])), atol=1e-6)


def test_a_forgotten_row_is_overwritten_and_state_goes_on() -> None:
    learner = taught("neg-grad+")
    learner.forget(np.array(GONE))
    other = unlearn("neg-grad+")
    other.load(learner.state())
    for one in (learner, other):
        one.forget(np.array([11, 12]))
    assert digest(learner.state()) == digest(other.state())
    assert len(learner.learnt) == 106


def test_pixels_are_scaled_as_the_stream_says() -> None:
    stream = dw.rebatch(dw.stream("split-digits", seed=0), 16)
    learner: Any = dw.learner("unlearn:retrain", stream.spec, model="convnet:4-4")
    batch = next(event for event in stream if isinstance(event, dw.Batch))
    learner.learn(batch, learner.predict(batch))
    z = learner._inputs(batch).reshape(len(batch), *stream.spec.shape)
    mean, std = (np.asarray(stream.spec.notes[k]).reshape(-1, 1, 1) for k in ("mean", "std"))
    assert_allclose(z, (np.asarray(batch.x).reshape(z.shape) - mean) / std, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{"lr": 0}, {"climb": -1}, {"alpha": 2}, {"share": 0}, {"epochs": 0}, {"model": "spam"}]
)
def test_settings_that_cannot_work_are_one_line(settings: dict[str, Any]) -> None:
    with pytest.raises(dw.InputError):
        dw.learner("unlearn:scrub", SPEC, **settings)


def test_methods_that_do_not_exist_are_named() -> None:
    with pytest.raises(dw.InputError, match=r"unlearn:spam: there are retrain, finetune"):
        learner_params("unlearn:spam")
