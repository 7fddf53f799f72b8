"""The edge cases of forgetting, case by case, on the learner: a request is carried out whole or leaves no trace.

Those of the sums themselves are in tests/models/test_analytic.py, those of ledger, checkpoints and kills in
tests/adapt/test_ledger.py and test_unlearning.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.learners.acu import ACU
from driftway.adapt.state import copy_state, digest, split
from driftway.models.backbones import TorchMap
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

SPEC = dw.StreamSpec("s", tuple(dw.Column(f"x{j}") for j in range(6)), classes=("a", "b", "c"), shape=(6,))
RNG = np.random.default_rng(2)
X = RNG.normal(size=(240, 6)).round(3)
Y = np.argmax(X[:, :3], axis=1)
WAYS: dict[str, dict[str, Any]] = {
    "float": {},
    "bitwise": {"exact": "bitwise"},
    "low-latency": {"engine": "low-latency"},
    "air": {"weighting": "air"},
    "float32": {"engine": "float32"},
}
every = pytest.mark.parametrize("settings", WAYS.values(), ids=list(WAYS))


def rows(index: Any) -> dw.Batch:
    at = np.atleast_1d(np.asarray(index, np.int64))
    return dw.Batch(at, X[at], 0.0, Y[at])


def taught(index: Any = range(240), **settings: Any) -> ACU:
    learner = ACU(SPEC, ACU.Params(**{"width": 24, **settings}), seed=3)
    for at in range(0, len(index), 16):
        batch = rows(list(index)[at : at + 16])
        learner.learn(batch, learner.predict(batch))
    return learner


def near(one: ACU, other: ACU) -> None:
    assert_allclose(one.head.weights(), other.head.weights(), atol=1e-3 if one.params.engine == "float32" else 1e-10)


def handed(**settings: Any) -> dict[str, Any]:
    return {"keep": "digests", "salt": "s", **settings}


# --- never learnt, forgotten twice, learnt twice ----------------------------------------------------------------


@every
@pytest.mark.parametrize(
    ("ids", "reason"),
    [([3, 900], "900 was never learnt"), ([8, 4], "4 was forgotten already"), ([9, 9], "9 is named twice")],
)
def test_a_refused_request_leaves_no_trace(settings: dict[str, Any], ids: list[int], reason: str) -> None:
    learner = taught(**settings)
    learner.forget(np.array([4]))
    before, answers = digest(learner.state()), learner.predict(rows(range(50))).scores
    with pytest.raises(dw.CannotForget, match=reason):
        learner.forget(np.array(ids))
    assert digest(learner.state()) == before
    assert_array_equal(learner.predict(rows(range(50))).scores, answers)


def test_only_the_list_of_rows_knows_what_was_never_learnt() -> None:
    """Taking (1.5, 1) out of (1, 1) and (2, 2) passes every test of the algebra; A = 6, B = 5 stay."""
    spec = dw.StreamSpec("one", (dw.Column("a"),), classes=("0", "1"), shape=(1,))
    learner = ACU(spec, ACU.Params(width=0, gamma=1.0, **handed()), seed=0)
    two = dw.Batch(np.array([0, 1]), np.array([[1.0], [2.0]]), 0.0, np.array([1, 1]))
    learner.learn(two, learner.predict(two))
    stranger = dw.Batch(np.array([2]), np.array([[1.5]]), 0.0, np.array([1]))
    before = digest(learner.state())
    with pytest.raises(dw.CannotForget, match="never learnt"):
        learner.forget_rows(stranger)
    with pytest.raises(dw.CannotForget, match="other features"):
        learner.forget_rows(replace(stranger, ids=np.array([1])))
    assert digest(learner.state()) == before
    learner.head.forget(np.array([[1.5]]), np.array([[0.0, 1.0]]))  # the algebra lets it pass


def test_a_row_learnt_in_two_forms_goes_in_both() -> None:
    """Learnt once as it is and once augmented, under one id: the id takes both, one form alone is refused."""
    learner, open_hand = taught(range(60)), taught(range(60), **handed())
    turned = dw.Batch(np.array([5]), X[5:6, ::-1].copy(), 0.0, Y[5:6])
    for one in (learner, open_hand):
        one.learn(turned, one.predict(turned))
    receipt = learner.forget(np.array([5]))
    assert receipt.certificate["rows"] == 2
    assert [len(found) for found in receipt.certificate["digests"].values()] == [2]
    near(learner, taught([i for i in range(60) if i != 5]))
    with pytest.raises(dw.CannotForget, match="already"):
        learner.forget(np.array([5]))
    before = digest(open_hand.state())
    with pytest.raises(dw.CannotForget, match="was learnt once"):
        open_hand.forget_rows(turned)
    assert digest(open_hand.state()) == before


@every
def test_no_class_count_goes_below_zero(settings: dict[str, Any]) -> None:
    """The engine refuses a label of which it holds no row, whatever the features."""
    learner = taught(np.flatnonzero(Y != 2), **settings)
    at = int(np.flatnonzero(Y == 0)[0])
    x = learner.expand(learner.features(X[at : at + 1]))
    before = digest(learner.state())
    with pytest.raises(Exception, match="fewer rows of that class"):
        learner.head.forget(x, np.array([[0.0, 0.0, 1.0]]), sure=True)
    assert digest(learner.state()) == before


# --- much at once -----------------------------------------------------------------------------------------------


@every
def test_a_request_larger_than_a_block_is_one_transaction(settings: dict[str, Any]) -> None:
    learner = taught(**settings)
    gone = np.arange(200)
    before = digest(learner.state())
    with pytest.raises(dw.CannotForget, match="900 was never learnt"):
        learner.forget(np.concatenate([gone[:150], [900], gone[150:]]))
    assert digest(learner.state()) == before
    receipt = learner.forget(gone)
    assert receipt.certificate["rows"] == 200
    near(learner, taught(range(200, 240), **settings))


@every
def test_all_data_leaves_the_initial_state_and_even_answers(settings: dict[str, Any]) -> None:
    learner, fresh = taught(**settings), taught([], **settings)
    learner.forget(np.arange(100))
    receipt = learner.forget(np.arange(100, 240))
    assert receipt.after == fresh.head.digest()
    assert learner.head.n == 0
    assert_allclose(learner.predict(rows([1, 2])).scores, 1 / 3)
    batch = rows(range(30))
    learner.learn(batch, learner.predict(batch))
    near(learner, taught(range(30), **settings))


@every
def test_forgetting_and_learning_again_does_not_wear_the_head_out(settings: dict[str, Any]) -> None:
    learner, once = taught(**settings), taught(**settings)
    for k in range(40):
        some = (np.arange(8) * 29 + k) % 240
        learner.forget(some)
        batch = rows(some)
        learner.learn(batch, learner.predict(batch))
    near(learner, once)
    if settings.get("exact") == "bitwise":
        assert learner.head.digest() == once.head.digest()


# --- what is left -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("certificate", ["full", "quick"])
@every
def test_nothing_that_is_saved_holds_a_forgotten_row(settings: dict[str, Any], certificate: Any) -> None:
    learner = taught(certificate=certificate, **settings)
    z = learner.features(X[5:6])
    needles = [z.astype(np.float32).tobytes(), learner.expand(z).tobytes()]

    def found() -> list[bool]:
        saved = [array.tobytes() for array in split(copy_state(learner.state()))[1].values()]
        return [any(needle in body for body in saved) for needle in needles]

    assert any(found())
    learner.forget(np.array([5]))
    assert not any(found())


def test_the_head_stays_right_while_every_row_has_a_leverage_near_one() -> None:
    """Few rows of large numbers: an error may grow a millionfold a request, and no certificate asks for a fold."""
    x = 30 * X[:90]
    learner = ACU(SPEC, ACU.Params(width=128, engine="low-latency", certificate="quick"), seed=3)
    batch = dw.Batch(np.arange(90), x, 0.0, Y[:90])
    learner.learn(batch, learner.predict(batch))
    for i in range(80):
        followed = learner.forget(np.array([i])).certificate["followed_error"]
        assert followed < 1
        never = ACU(SPEC, ACU.Params(width=128), seed=3)
        others = dw.Batch(np.arange(i + 1, 90), x[i + 1 :], 0.0, Y[i + 1 : 90])
        never.learn(others, never.predict(others))
        assert np.linalg.norm(learner.head.weights() - never.head.weights()) < 1e-8


@pytest.mark.parametrize("engine", ["statistics", "low-latency"])
def test_a_gamma_that_rounding_swallows_is_one_line(engine: Any) -> None:
    with pytest.raises(dw.InputError, match="gamma 1e-200 is too small"):
        taught(gamma=1e-200, engine=engine)


# --- damage -----------------------------------------------------------------------------------------------------


def damage(learner: ACU) -> None:
    head = learner.head
    if hasattr(head, "upper"):
        head.upper *= 1e-3
    elif hasattr(head, "statistics"):
        head.statistics.gram *= 1e-4
        head.inverse = None
    else:
        head.gram[...] = head.gram // 10_000 if head.bits is not None else head.gram * 1e-4
        head.touched()


@every
def test_a_damaged_model_without_rows_refuses_and_stays_as_it_was(settings: dict[str, Any]) -> None:
    learner = taught(**handed(**settings))
    damage(learner)
    before = digest(learner.state())
    with pytest.raises(dw.CannotForget, match=r"damaged, and no rows are kept"):
        learner.forget_rows(rows(range(150)))
    assert digest(learner.state()) == before


@every
def test_a_damaged_model_with_rows_is_made_anew(settings: dict[str, Any]) -> None:
    learner = taught(**settings)
    damage(learner)
    receipt = learner.forget(np.arange(150))
    assert receipt.certificate["rebuilt"]
    near(learner, taught(range(150, 240), **settings))


@pytest.mark.parametrize("engine", ["statistics", "low-latency"])
def test_a_group_in_a_damaged_model_is_refused_whole(engine: Any) -> None:
    learner = taught(**handed(groups=True, engine=engine))
    learner.boundary(dw.Boundary("next", 0.0))
    more = replace(rows(range(9)), ids=np.arange(900, 909))
    learner.learn(more, learner.predict(more))
    damage(learner)
    before = digest(learner.state())
    with pytest.raises(dw.CannotForget, match="damaged"):
        learner.forget_whole("group", 0)
    assert digest(learner.state()) == before


# --- features that are not those learnt -------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [np.full((1, 6), np.nan), np.full((1, 6), np.inf), X[:1, :5], X[0]])
def test_rows_that_cannot_be_those_learnt_are_refused(wrong: Any) -> None:
    learner = taught(**handed())
    before = digest(learner.state())
    with pytest.raises(dw.CannotForget, match=r"other features|columns"):
        learner.forget_rows(dw.Batch(np.array([0]), wrong, 0.0, Y[:1]))
    assert digest(learner.state()) == before


def test_a_backbone_that_moved_since_is_noticed() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU())
    features = TorchMap(net, lambda x: torch.from_numpy(x).float()).sized(6)
    learner = ACU(SPEC, ACU.Params(width=24, **handed()), seed=3, features=features)
    batch = rows(range(60))
    learner.learn(batch, learner.predict(batch))
    before = digest(learner.state())
    with torch.no_grad():
        net[0].weight += 1e-4
    with pytest.raises(dw.CannotForget, match="the row, its preprocessing or the backbone has changed"):
        learner.forget_rows(rows(range(5)))
    assert digest(learner.state()) == before


@pytest.mark.parametrize("settings", [{"width": 25}, {"exact": "bitwise"}, {"projection": "uniform"}])
def test_a_state_of_another_expansion_is_refused(settings: dict[str, Any]) -> None:
    state = taught().state()
    with pytest.raises(dw.InputError, match="expansion is not the one"):
        ACU(SPEC, ACU.Params(**{"width": 24, **settings}), seed=3).load(state)
    with pytest.raises(dw.InputError, match="expansion is not the one"):
        ACU(SPEC, ACU.Params(width=24), seed=4).load(state)
