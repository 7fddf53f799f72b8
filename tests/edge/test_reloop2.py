"""ReLoop2 and Platt scaling on a device, around linear and click models: labels at once and late, as in the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import onnx
import pytest
import torch
from driftway.adapt.edge import bases, reloop2
from driftway.adapt.edge.runner import Runner
from driftway.adapt.edge.steps import CannotExport, steps_of
from driftway.models.ctr import Field, Places
from numpy.testing import assert_allclose, assert_array_equal

COLUMNS = (
    dw.Column("price"),
    dw.Column("place", ("top", "left", "foot")),
    dw.Column("user", tuple("abcdefg"), open=True),
    dw.Column("age"),
)
CLICKS = dw.StreamSpec("clicks", COLUMNS, classes=("no", "yes"))
KINDS = dw.StreamSpec("kinds", COLUMNS, classes=("a", "b", "c"))


def batch(n: int, seed: int, classes: int = 2) -> dw.Batch:
    rng = np.random.default_rng(seed)
    x = np.c_[rng.normal(3, 2, n), rng.integers(0, 3, n), rng.integers(0, 30, n), rng.normal(0, 1, n)]
    x[rng.random(x.shape) < 0.1] = np.nan
    side = (np.nan_to_num(x[:, 0]) > 3).astype(np.int64) + (x[:, 1] == (seed // 10) % 3)
    y = np.where(rng.random(n) < 0.2, rng.integers(0, classes, n), side % classes)
    return dw.Batch(np.arange(n) + 1000 * seed, x, 0.0, y)


def started(name: str, spec: dw.StreamSpec, **settings: Any) -> Any:
    """After 60 labels, on 40 of which the base was trained."""
    learner = dw.learner(name, spec, seed=3, warmup=40, **settings)
    for i in range(6):
        rows = batch(10, i, len(spec.classes or ()))
        learner.learn(rows, learner.predict(rows))
    return learner


SMALL = {"arrays": 6, "bits": 4, "slot": 7, "slots": 3}
CASES: list[tuple[str, dw.StreamSpec, dict[str, Any]]] = [
    ("reloop2:logistic", CLICKS, SMALL),
    ("reloop2:logistic", KINDS, {**SMALL, "strength": "hedge", "keep": "decay", "rho": 0.5}),
    ("reloop2:logistic", KINDS, {**SMALL, "strength": "fixed", "gamma": 0.5, "thin": 0.5, "code": "place"}),
    ("reloop2:deepfm", CLICKS, {**SMALL, "embedding_bytes": 9000, "widths": "8", "dim": 4, "keep": "cumulative"}),
    ("reloop2:dcnv2", CLICKS, {**SMALL, "widths": "8", "dim": 4, "uniform": True, "strength": "hedge"}),
    ("reloop2:fm", CLICKS, {**SMALL, "dim": 4, "code": "place", "lr": 0.05}),
    ("platt:logistic", CLICKS, {}),
    ("platt:logistic", KINDS, {"forget": 0.98}),
    ("platt:ctr-lr", CLICKS, {"lr": 0.05}),
]


def in_graph(steps: Any, state: dict[str, Any], verb: str, *given: Any) -> tuple[Any, Any, dict[str, Any]]:
    what = steps.verbs[verb]
    with torch.no_grad():
        found = what.module(*map(torch.from_numpy, given), *(state[n] for n in what.reads))
    first, rest = found[0], found[len(what.answers) :]
    return first.numpy(), found[1].numpy(), {**state, **dict(zip(what.writes, rest, strict=True))}


@pytest.mark.parametrize(("name", "spec", "settings"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)])
def test_labels_late_or_at_once_teach_as_in_the_loop(name: str, spec: dw.StreamSpec, settings: dict[str, Any]) -> None:
    learner = started(name, spec, **settings)
    steps = steps_of(learner)
    state, waiting, told = {n: t.clone() for n, t in steps.state.items()}, [], 0.0
    for i in range(10, 28):
        rows = batch(1 + i % 5, i, len(spec.classes or ()))
        said = learner.predict(rows)
        scores, trace, _ = in_graph(steps, state, "predict", rows.x)
        assert_allclose(scores, said.scores, atol=1e-6)
        if "bucket" in said.trace:
            assert_array_equal(trace[:, : said.trace["bucket"].shape[1]], said.trace["bucket"])
            told = max(told, float(np.abs(said.scores - said.trace["base.scores"]).max()))
        waiting.append((rows, said, trace))
        for rows, said, trace in waiting if i % 3 else ():
            learner.learn(rows, said)
            for j in range(len(rows)):
                _, _, state = in_graph(steps, state, "learn", trace[j : j + 1], rows.y[j : j + 1])
        waiting = [] if i % 3 else waiting
    now = steps_of(learner).state
    for n, value in now.items():
        assert_allclose(state[n].numpy(), value.numpy(), rtol=1e-6, atol=1e-6, err_msg=n)
    assert max(float((now[n] - steps.state[n]).abs().max()) for n in now) > 0.1
    assert told > 0.02 or "platt" in name


@pytest.mark.parametrize(
    ("name", "spec", "settings"), [CASES[0], CASES[3], CASES[7]], ids=["reloop2", "deepfm", "platt"]
)
def test_a_bundle_answers_as_the_learner_on_a_stream(
    name: str, spec: dw.StreamSpec, settings: dict[str, Any], tmp_path: Path
) -> None:
    learner = started(name, spec, **settings)
    folder = dw.export(learner, spec, tmp_path / "bundle")
    edge, late = dw.learner(f"edge:{folder}", spec), []
    for i in range(100, 140):
        rows = batch(1 + i % 4, i, len(spec.classes or ()))
        ours, theirs = learner.predict(rows), edge.predict(rows)
        assert_allclose(theirs.scores, ours.scores, atol=1e-6 if "fm" in name else 1e-12)
        late.append((rows, ours, theirs))
        edge.adapt(rows, theirs)
        if len(late) > 2:
            rows, ours, theirs = late.pop(0)
            learner.learn(rows, ours)
            edge.learn(rows, theirs)
    runner = Runner(folder)
    rows = batch(3, 900, len(spec.classes or ()))
    runner.adapt(rows.x, rows.ids.tolist())
    runner.save(tmp_path / "saved")
    other = Runner(folder, state=tmp_path / "saved")
    assert other.label(rows.ids.tolist(), rows.y.tolist()) == 3  # type: ignore[union-attr]
    runner.label(rows.ids.tolist(), rows.y.tolist())  # type: ignore[union-attr]
    assert all(np.array_equal(v, runner.now[k]) for k, v in other.now.items())
    for verb in ("predict", "learn"):
        model = onnx.load(folder / f"{verb}.onnx")
        onnx.checker.check_model(model, full_check=True)
        assert {n.domain for n in model.graph.node} == {""}


def test_hashes_are_those_of_the_table() -> None:
    places = Places([Field("user", 7, True), Field("big", 900, False), Field("number"), Field("few", 3)], 700)
    rng = np.random.default_rng(0)
    x = np.c_[rng.integers(0, 2**40, 500), rng.integers(0, 900, 500), rng.normal(size=500), rng.integers(0, 3, 500)]
    x[rng.random(x.shape) < 0.1] = np.nan
    assert_array_equal(bases.places_of(places, torch.from_numpy(x)).numpy(), places.rows(x))


def test_two_arrays_of_one_row_never_meet() -> None:
    """What is written at once goes to different places, so that no runtime has to add to one place twice."""
    learner = started("reloop2:logistic", CLICKS, **SMALL)
    buckets = torch.randint(0, 16, (50, 6), generator=torch.Generator().manual_seed(0))
    at = reloop2.places(learner._memory, torch.tensor(2), buckets)
    assert all(len(row.unique()) == 6 for row in at)


@pytest.mark.parametrize(
    ("name", "spec", "settings", "words"),
    [
        ("reloop2:logistic", CLICKS, {"memory": "exact"}, "memory=sketch"),
        ("reloop2:logistic", CLICKS, {"base": "incremental"}, "base=frozen"),
        ("reloop2:logistic", CLICKS, {"code": "user"}, "values are not known"),
        ("reloop2:majority", CLICKS, {}, "Majority has no form as a graph inside another learner"),
        ("reloop2:din", CLICKS, {"user": "user", "item": "place"}, "histories of users move"),
        ("platt:logistic", CLICKS, {"base": "incremental"}, "base=frozen"),
    ],
)
def test_what_has_no_graph_is_said(name: str, spec: dw.StreamSpec, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CannotExport, match=words):
        steps_of(started(name, spec, **settings))


@pytest.mark.parametrize("name", ["reloop2", "platt"])
def test_a_base_that_has_not_learnt_enough_is_said(name: str) -> None:
    with pytest.raises(CannotExport, match="40 labels first"):
        steps_of(dw.learner(name, CLICKS, warmup=40))
