"""ACU as a learner: requests by id, class and group, refusals, certificates, provenance, what is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt.learners.acu import ACU
from driftway.adapt.state import copy_state, digest
from driftway.models.backbones import TorchMap
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

SPEC = dw.StreamSpec("s", tuple(dw.Column(f"x{j}") for j in range(6)), classes=("a", "b", "c"))
RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 6))
Y = np.argmax(X[:, :3], axis=1)


def rows(*index: int) -> dw.Batch:
    at = np.array(index, np.int64)
    return dw.Batch(at, X[at], 0.0, Y[at])


def acu(spec: dw.StreamSpec = SPEC, features: Any = None, **settings: Any) -> ACU:
    return ACU(spec, ACU.Params(**{"width": 24, **settings}), seed=3, features=features)


def teach(learner: ACU, index: Any = range(200), size: int = 7) -> ACU:
    index = list(index)
    for at in range(0, len(index), size):
        batch = rows(*index[at : at + size])
        learner.learn(batch, learner.predict(batch))
    return learner


WAYS: dict[str, dict[str, Any]] = {
    "float": {},
    "bitwise": {"exact": "bitwise"},
    "low-latency": {"engine": "low-latency"},
    "air": {"weighting": "air"},
    "air, bitwise": {"weighting": "air", "exact": "bitwise"},
    "no expansion": {"width": 0},
    "float32": {"engine": "float32"},
}
every = pytest.mark.parametrize("settings", WAYS.values(), ids=list(WAYS))


def weights(learner: ACU) -> Any:
    return learner.head.weights()


@every
def test_forgetting_is_never_having_learnt(settings: dict[str, Any]) -> None:
    learner = teach(acu(**settings))
    gone = [3, 17, *range(40, 60)]
    receipt = learner.forget(np.array(gone))
    never = teach(acu(**settings), [i for i in range(200) if i not in gone], 11)
    assert receipt.ids == tuple(gone)
    assert receipt.before != receipt.after
    assert_allclose(weights(learner), weights(never), atol=1e-3 if settings.get("engine") == "float32" else 1e-10)
    assert_array_equal(learner.predict(rows(*gone)).output, never.predict(rows(*gone)).output)
    if settings.get("exact") == "bitwise":
        assert receipt.after == never.head.digest()
        assert_array_equal(weights(learner), weights(never))
        assert learner.predict(rows(*range(50))).scores.tobytes() == never.predict(rows(*range(50))).scores.tobytes()  # type: ignore[union-attr]


@every
def test_a_retired_class_is_never_answered_and_may_come_back(settings: dict[str, Any]) -> None:
    learner = teach(acu(**settings))
    before = weights(learner).copy()
    receipt = learner.forget_whole("class", 2)
    assert receipt.certificate["counts_after"][2] == 0
    assert_array_equal(weights(learner)[:, 2], 0.0)
    answer = learner.predict(rows(*range(200)))
    assert answer.scores is not None
    assert_array_equal(answer.scores[:, 2], 0.0)
    assert 2 not in answer.output
    teach(learner, np.flatnonzero(Y == 2))
    assert_allclose(weights(learner), before, atol=1e-3 if settings.get("engine") == "float32" else 1e-9)
    assert 2 in learner.predict(rows(*range(200))).output


def test_the_zero_logit_trap() -> None:
    """The hand example: at (-1, 0) the forgotten class would win with its logit of 0."""
    spec = dw.StreamSpec("two", (dw.Column("a"), dw.Column("b")), classes=("0", "1"), shape=(2,))
    learner = acu(spec, width=0, gamma=1.0)
    x, y = np.array([[1.0, 0], [1, 1], [0, 1]]), np.array([0, 0, 1])
    learner.learn(dw.Batch(np.arange(3), x, 0.0, y), dw.Prediction(y))
    learner.forget(np.array([2]))
    assert_allclose(weights(learner), [[0.6, 0], [0.2, 0]], atol=1e-14)
    assert learner.predict(dw.Batch(np.array([9]), np.array([[-1.0, 0]]), 0.0)).output.tolist() == [0]


@pytest.mark.parametrize("exact", ["float", "bitwise"])
def test_all_data_leaves_a_fresh_head_that_answers_evenly(exact: Any) -> None:
    learner, fresh = teach(acu(exact=exact)), acu(exact=exact)
    learner.forget(np.arange(200))
    assert learner.head.digest() == fresh.head.digest()
    assert_allclose(learner.predict(rows(1, 2)).scores, 1 / 3)


# --- refusals: all of a request or none -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "reason"),
    [([3, 777], "777 was never learnt"), ([5, 4], "4 was forgotten already"), ([3, 3], "named twice")],
)
def test_what_cannot_be_forgotten_is_refused_whole(ids: list[int], reason: str) -> None:
    learner = teach(acu())
    learner.forget(np.array([4]))
    before = digest(learner.state())
    with pytest.raises(dw.CannotForget, match=reason):
        learner.forget(np.array(ids))
    assert digest(learner.state()) == before


def test_an_empty_request_changes_no_sum() -> None:
    learner = teach(acu())
    receipt = learner.forget(np.empty(0, np.int64))
    assert receipt.before == receipt.after
    assert receipt.ids == ()
    with pytest.raises(dw.CannotForget, match="no learnt rows of class 7"):
        learner.forget_whole("class", 7)


def test_learnt_twice_and_forgotten_once_is_lawful() -> None:
    learner = teach(acu())
    learner.learn(replace_ids(rows(8), 1008), learner.predict(rows(8)))
    receipt = learner.forget(np.array([8]))
    assert receipt.certificate["equal_rows_left"] == 1
    assert_allclose(weights(learner), weights(teach(acu())), atol=1e-10)
    with pytest.raises(dw.CannotForget, match="already"):
        learner.forget(np.array([8]))
    assert learner.forget(np.array([1008])).certificate["equal_rows_left"] == 0


def replace_ids(batch: dw.Batch, *ids: int) -> dw.Batch:
    return replace(batch, ids=np.array(ids))


def handing_over(**settings: Any) -> ACU:
    return teach(acu(keep="digests", salt="pepper", **settings))


def test_rows_that_are_handed_over_are_compared_with_what_was_learnt() -> None:
    learner = handing_over()
    before = digest(learner.state())
    good = rows(6, 7)
    assert good.y is not None
    wrong_label = replace(good, y=(good.y + np.arange(2)) % 3)
    with pytest.raises(dw.CannotForget, match=r"row 7 was learnt with label \d, not \d"):
        learner.forget_rows(wrong_label)
    with pytest.raises(dw.CannotForget, match="row 6 has other features"):
        learner.forget_rows(replace(good, x=X[[6, 7]] + [[1e-3], [0]]))
    with pytest.raises(dw.CannotForget, match="handed over once, with its label"):
        learner.forget_rows(replace(good, y=None))
    with pytest.raises(dw.CannotForget, match="ids do not suffice"):
        learner.forget(np.array([6]))
    with pytest.raises(dw.CannotForget, match="rows are not kept"):
        learner.forget_whole("class", 1)
    assert digest(learner.state()) == before
    learner.forget_rows(good)
    assert_allclose(weights(learner), weights(teach(acu(), [i for i in range(200) if i not in (6, 7)])), atol=1e-10)


def test_a_class_goes_without_its_rows_where_its_sums_are_apart() -> None:
    learner = handing_over(weighting="air", exact="bitwise")
    receipt = learner.forget_whole("class", 1)
    never = teach(acu(weighting="air", exact="bitwise"), np.flatnonzero(Y != 1))
    assert receipt.after == never.head.digest()


@pytest.mark.parametrize("engine", ["statistics", "low-latency"])
def test_a_group_goes_without_its_rows(engine: Any) -> None:
    learner = acu(keep="digests", salt="pepper", groups=True, engine=engine)
    assert learner.needs == {"boundaries"}
    for group in range(3):
        teach(learner, range(60 * group, 60 * group + 60))
        learner.boundary(dw.Boundary(f"group {group + 1}", 0.0))
    learner.forget_rows(rows(60, 61, 62))
    receipt = learner.forget_whole("group", 1)
    assert receipt.certificate["rows"] == 57
    assert_allclose(weights(learner), weights(teach(acu(), [*range(60), *range(120, 180)])), atol=1e-9)
    with pytest.raises(dw.CannotForget, match="no learnt rows of group 1"):
        learner.forget_whole("group", 1)


def test_groups_that_are_not_told_apart_are_no_groups() -> None:
    learner = teach(acu())
    for kind in ("group", "spam"):
        with pytest.raises(dw.CannotForget, match=f"no {kind}s here"):
            learner.forget_whole(kind, 0)
    learner = acu(groups=True, exact="bitwise")
    teach(learner, range(100))
    learner.boundary(dw.Boundary("b", 0.0))
    teach(learner, range(100, 200))
    assert learner.forget_whole("group", 0).after == teach(acu(exact="bitwise"), range(100, 200)).head.digest()
    assert not learner.records


@pytest.mark.parametrize("engine", ["statistics", "low-latency"])
def test_a_quick_certificate_digests_the_list_of_rows(engine: Any) -> None:
    learner = teach(acu(certificate="quick", engine=engine))
    receipt = learner.forget(np.array([3, 90]))
    others = [i for i in range(200) if i not in (3, 90)]
    never = teach(acu(certificate="quick", engine=engine), others[::-1])
    assert receipt.after == never.facts()["learnt_sha256"] != receipt.before
    assert receipt.certificate["bound"] is None
    assert_allclose(weights(learner), weights(never), atol=1e-10)
    again = acu(certificate="quick", engine=engine)
    again.load(learner.state())
    assert again.facts()["learnt_sha256"] == receipt.after


@every
def test_asking_for_facts_changes_nothing(settings: dict[str, Any]) -> None:
    learner = teach(acu(**settings), size=1)
    before = digest(learner.state())
    learner.facts()
    assert digest(learner.state()) == before


def test_a_forgotten_row_is_overwritten() -> None:
    learner = teach(acu())
    needle = learner.features(X[5:6]).astype(np.float32).tobytes()
    kept = learner.learnt.state()
    assert needle in kept["rows"].tobytes()
    hexes = learner.learnt.hex_digests(learner.learnt.find(np.array([5])))
    learner.forget(np.array([5]))
    kept = copy_state(learner.state())["learnt"]
    assert needle not in kept["rows"].tobytes()
    assert bytes.fromhex(hexes[0]) not in kept["digests"].tobytes()


def test_barred_rows_are_taken_out_and_never_learnt() -> None:
    learner = teach(acu(exact="bitwise"), range(100))
    learner.bar(np.array([50, 150]))
    teach(learner, range(100, 200))
    never = teach(acu(exact="bitwise"), [i for i in range(200) if i not in (50, 150)])
    assert learner.head.digest() == never.head.digest()
    with pytest.raises(dw.CannotForget, match="already"):
        learner.forget(np.array([150]))


def test_sums_that_were_damaged_are_built_anew_from_the_rows() -> None:
    learner = teach(acu())
    learner.head.gram *= 1e-6
    receipt = learner.forget(np.arange(60))
    assert receipt.certificate["rebuilt"]
    assert_allclose(weights(learner), weights(teach(acu(), range(60, 200))), atol=1e-10)


# --- certificates and provenance --------------------------------------------------------------------------------


@every
def test_the_certificate_bounds_the_distance(settings: dict[str, Any]) -> None:
    learner = teach(acu(**settings))
    found = learner.forget(np.arange(20)).certificate
    distance = np.linalg.norm(weights(learner) - weights(teach(acu(**settings), range(20, 200))))
    if settings.get("engine") != "float32":
        assert distance <= found["bound"] + 1e-11
    assert found["smallest_pivot"] > 0
    assert sum(found["counts_before"]) - sum(found["counts_after"]) == 20
    assert len(found["digests"]) == 20


def test_a_class_that_a_request_leaves_thin_is_named() -> None:
    learner = teach(acu(alert=10))
    of_one = np.flatnonzero(Y == 1)
    assert learner.forget(of_one[:3]).certificate["thin_classes"] == []
    assert learner.forget(of_one[9:]).certificate["thin_classes"] == [1]
    assert learner.forget(np.flatnonzero(Y == 0)[:1]).certificate["thin_classes"] == []


@pytest.mark.parametrize(
    ("provenance", "words"),
    [("drawn", ""), ("public", "declared"), ("contains_user_data", "not exact"), ("unknown", "not exact")],
)
def test_the_guarantee_says_what_the_backbone_may_hold(provenance: str, words: str) -> None:
    import torch

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU())
    features = TorchMap(net, lambda x: torch.from_numpy(x).float(), provenance).sized(6)
    learner = teach(acu(features=features))
    receipt = learner.forget(np.array([1]))
    assert words in receipt.guarantee
    assert ("not exact" in receipt.guarantee) == (provenance in ("contains_user_data", "unknown"))
    assert receipt.certificate["provenance"] == provenance


def test_single_precision_is_never_called_exact() -> None:
    assert "not exact" in teach(acu(engine="float32")).forget(np.array([1])).guarantee


def test_a_state_of_another_backbone_is_refused() -> None:
    state = teach(acu(backbone="mlp:10")).state()
    other = ACU(SPEC, ACU.Params(width=24, backbone="mlp:10"), seed=4)
    with pytest.raises(dw.InputError, match="backbone is not the one"):
        other.load(state)


@pytest.mark.parametrize(
    "settings",
    [
        {"gamma": 0},
        {"bits": 13},
        {"engine": "low-latency", "exact": "bitwise"},
        {"keep": "digests"},
        {"keep": "digests", "salt": "s", "groups": True, "exact": "bitwise"},
    ],
)
def test_parameters_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(dw.InputError):
        dw.learner("acu", SPEC, **settings)


@pytest.mark.parametrize("backbone", ["onnx:nowhere.onnx", "convnet", "spam"])
def test_backbones_that_cannot_work_are_one_line(backbone: str) -> None:
    with pytest.raises(dw.InputError):
        dw.learner("acu", SPEC, backbone=backbone)


def test_digits_are_learnt() -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    spec = dw.StreamSpec(
        "d", tuple(dw.Column(f"p{j}") for j in range(64)), classes=tuple("0123456789"), shape=(1, 8, 8)
    )
    learner = ACU(spec, ACU.Params(width=256), seed=0)
    x, y = data.data / 16, data.target
    learner.learn(dw.Batch(np.arange(1200), x[:1200], 0.0, y[:1200]), dw.Prediction(y[:1200]))
    answer = learner.predict(dw.Batch(np.arange(1200, 1797), x[1200:], 0.0))
    assert (answer.output == y[1200:]).mean() > 0.93
    assert answer.scores is not None
    assert -np.log(answer.scores[np.arange(597), y[1200:]]).mean() < 0.35
