"""The table of learners: every line holds, and wrong names and parameters are one clear line."""

from __future__ import annotations

from dataclasses import asdict, fields
from importlib.util import find_spec
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt.learners import LEARNERS, learner_class, learner_params, make_learner
from driftway.adapt.state import digest
from driftway.streams import Source

CLEAN = (np.array([[0.5, 0], [2.0, 1]], np.float32), np.array([0, 1]))
SPEC = dw.StreamSpec(
    "s",
    (dw.Column("a"), dw.Column("b", ("p", "q"))),
    classes=("n", "y"),
    source=Source("clean", (0, 1), lambda: CLEAN, lambda: CLEAN),
)
NUMBERS = dw.StreamSpec("r", SPEC.columns, target="regression")
EXAMPLE = {
    "river": "river:tree.HoeffdingTreeClassifier",
    "avalanche": "avalanche:Naive",
    "frozen": "frozen:majority",
    "reloop2": "logistic+reloop2",
    "platt": "platt:logistic",
}
WITH: dict[str, dict[str, Any]] = {
    "adab2n": {"model": "mlp-norm"},
    **{name: {"epochs": 1, "cache": False} for name, entry in LEARNERS.items() if entry.recipe or entry.classes},
    "din": {"user": "a", "item": "b", "epochs": 1},
}


@pytest.mark.parametrize("name", LEARNERS)
def test_every_entry_names_a_learner_with_parameters_that_have_defaults(name: str) -> None:
    entry = LEARNERS[name]
    assert issubclass(entry.load(), dw.Learner)
    assert entry.load().__doc__
    assert len(entry.summary) < 100
    if name == "avalanche" and find_spec("avalanche") is None:
        pytest.skip("needs the extra avalanche")
    if entry.takes == "bundle":
        pytest.skip("is made of a bundle: tests/edge")
    full = EXAMPLE.get(name, name)
    settings = WITH.get(name, {})
    assert asdict(make_learner(full, SPEC, **settings).params) == asdict(learner_params(full)(**settings))


def test_text_becomes_the_type_of_the_parameter() -> None:
    assert make_learner("logistic", SPEC, rate="0.5", slots="7").params == learner_params("logistic")(0.5, slots=7)
    forest: Any = make_learner(
        "river:forest.ARFClassifier", SPEC, seed=5, n_models="3", max_features="2", max_depth="4", binary_split="true"
    )
    model = forest._model
    assert (model.n_models, model.max_features, model.max_depth, model.binary_split) == (3, 2, 4, True)
    assert model.seed == 5


def test_frozen_takes_the_parameters_of_what_it_freezes() -> None:
    assert [f.name for f in fields(learner_params("frozen"))] == ["after", "rate", "clip", "l2", "slots"]
    params = make_learner("frozen:river:forest.ARFClassifier", SPEC, after="7", n_models=2).params
    assert (params.after, params.n_models) == (7, 2)


@pytest.mark.parametrize(
    ("name", "settings", "line"),
    [
        ("logistik", {}, "unknown learner 'logistik': did you mean logistic?"),
        ("zzz", {}, "unknown learner 'zzz': there are: majority, no-change,"),
        ("majority:x", {}, "takes nothing after a colon"),
        ("majority", {"a": 1}, "has no parameter 'a': it takes: none"),
        ("logistic", {"rat": 1}, "has no parameter 'rat': did you mean rate?"),
        ("logistic", {"rate": "fast"}, "Expected `float`, got `str` for `rate`"),
        ("logistic", {"rate": "-1"}, "must be above 0"),
        ("logistic", {"rate": "nan"}, "must be above 0"),
        ("frozen:logistik", {}, "did you mean logistic"),
        ("frozen:logistic", {"after": -1}, "after must be at least 0"),
        ("frozen:frozen", {}, "cannot be frozen again"),
        ("river", {}, "expected river:module.Class"),
        ("river:os.path", {}, "river has no module 'os'"),
        ("river:tree.Hoeffding", {}, "did you mean HoeffdingTree"),
        ("river:tree.HoeffdingTreeClassifier", {"gracee": 1}, "has no parameter 'gracee'"),
        ("river:tree.HoeffdingTreeRegressor", {}, "is no classifier, stream 's' is classification"),
        ("river:ensemble.BaggingClassifier", {}, "needs model, which no flag can say"),
    ],
)
def test_what_cannot_be_is_one_line(name: str, settings: dict[str, Any], line: str) -> None:
    with pytest.raises(dw.InputError) as caught:
        make_learner(name, SPEC, **settings)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stream_that_the_learner_cannot_do() -> None:
    for name, entry in LEARNERS.items():
        if "regression" not in entry.load().targets:
            with pytest.raises(dw.InputError, match="stream 'r' is regression"):
                make_learner(name, NUMBERS)
    with pytest.raises(dw.InputError, match="has no columns"):
        make_learner("majority", dw.StreamSpec("none", (), classes=("a", "b")))
    many = dw.StreamSpec("many", SPEC.columns, classes=("a", "b", "c"))
    with pytest.raises(dw.InputError, match="knows two classes, stream 'many' has 3 classes"):
        make_learner("river:linear_model.LogisticRegression", many)


def test_river_rows_by_name_categories_by_name_missing_left_out() -> None:
    river: Any = make_learner("river:tree.HoeffdingTreeClassifier", SPEC)
    table = np.array([[1.5, 1], [np.nan, 0], [2.5, np.nan]])
    assert river._rows(dw.Batch(np.arange(3), table, 0.0)) == [{"a": 1.5, "b": "q"}, {"b": "p"}, {"a": 2.5}]


def test_river_models_learn_and_say_that_they_cannot_be_saved() -> None:
    rng = np.random.default_rng(0)
    x = np.c_[rng.normal(size=400), rng.integers(0, 2, 400)]
    batch = dw.Batch(np.arange(400), x, 0.0, (x[:, 1] > 0).astype(np.int64))
    for name in (
        "river:tree.HoeffdingTreeClassifier",
        "river:linear_model.Perceptron",
        "river:dummy.NoChangeClassifier",
    ):
        learner = make_learner(name, SPEC)
        if "linear" in name:  # knows no categories
            batch = dw.Batch(batch.ids, x[:, :1], 0.0, (x[:, 0] > 0).astype(np.int64))
            learner = make_learner(name, dw.StreamSpec("s", SPEC.columns[:1], classes=("n", "y")))
        prediction = learner.test_then_train(batch)
        assert prediction.scores is not None
        assert prediction.scores.shape == (400, 2)
        if "dummy" not in name:
            assert (prediction.output == batch.y)[200:].mean() > 0.9
        with pytest.raises(dw.CannotCheckpoint, match="objects of its own"):
            digest(learner.state())
    numbers = make_learner("river:tree.HoeffdingTreeRegressor", NUMBERS, leaf_prediction="mean")
    values = numbers.test_then_train(dw.Batch(np.arange(400), x, 0.0, x[:, 1] * 10))
    assert values.scores is None
    assert np.abs(values.output - x[:, 1] * 10)[200:].mean() < 5


def test_a_river_model_that_chokes_on_a_row_says_which() -> None:
    learner = make_learner("river:linear_model.Perceptron", SPEC)  # knows numbers only
    with pytest.raises(dw.InputError, match=r"^river:linear_model.Perceptron cannot take row 7: TypeError"):
        learner.test_then_train(dw.Batch(np.array([7]), np.zeros((1, 2)), 0.0, np.array([1])))


def test_names_of_the_package() -> None:
    assert dw.learner is make_learner
    assert learner_class("majority") is LEARNERS["majority"].load()
