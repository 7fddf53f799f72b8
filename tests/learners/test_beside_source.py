"""The guard beside the source on real methods: what the estimate says of them, and what going back is worth."""

from __future__ import annotations

import copy
from typing import Any

import driftway as dw
import pytest
from driftway.adapt.learners.test_time import TestTimeLearner
from driftway.adapt.learners.test_time_recipes import BatchNormAdapt, Tent
from driftway.adapt.loop import Loop
from driftway.adapt.source_model import Training, source_model
from driftway.adapt.source_watch import SourceWatch
from driftway.models.inputs import Pixels
from driftway.models.networks import Network
from driftway.streams import rebatch, take

KINDS = ("gaussian_noise", "pixelate", "shot_noise", "jpeg_compression", "impulse_noise", "defocus_blur")


def stream(setting: str, rows: int = 3240) -> Any:
    return take(dw.stream("digits-c", rows=0, kinds=KINDS, severity=3, setting=setting), rows)


@pytest.fixture(scope="module")
def net() -> Network:
    spec = stream("continual").spec
    inputs = Pixels(spec.shape, spec.notes["mean"], spec.notes["std"])
    return source_model(spec, inputs, Training("convnet:16-32", epochs=20), keep=False, progress=lambda _: None)


def run(net: Network, recipe: Any, rows: Any, batch: int, watch: SourceWatch | None) -> dict[str, Any]:
    rows = rebatch(rows, batch)
    learner = TestTimeLearner(rows.spec, recipe, model=copy.deepcopy(net))
    loop = Loop(learner, evaluators=[dw.Prequential(rows.spec)], source_watch=watch, every=10**6)
    for _ in loop.steps(rows):
        pass
    return loop.summary()


@pytest.mark.parametrize(
    ("recipe", "setting", "batch", "sign"),
    [
        (BatchNormAdapt(), "continual", 64, 1),
        (BatchNormAdapt(), "correlated", 16, -1),
        (Tent(lr=0.05), "continual", 4, -1),
    ],
    ids=["helps", "statistics of few classes", "collapse"],
)
def test_the_estimate_has_the_sign_of_the_gain(net: Network, recipe: Any, setting: str, batch: int, sign: int) -> None:
    found = run(net, recipe, stream(setting), batch, SourceWatch(stand_in=False))["source"]
    assert sign * found["gain"] > 2 * found["gain_se"]
    assert sign * found["estimated_gain"] > 0.01
    assert bool(found["rollbacks"]) == (recipe.parts(stream(setting).spec).descent is not None)


@pytest.mark.parametrize(("stand_in", "worth"), [(False, 0.05), (True, 0.3)])
def test_going_back_is_worth_points(net: Network, stand_in: bool, worth: float) -> None:
    recipe = Tent(lr=0.05)
    alone = run(net, recipe, stream("continual"), 4, None)
    watched = run(net, recipe, stream("continual"), 4, SourceWatch(stand_in=stand_in))
    assert watched["source"]["rollbacks"] >= 2
    assert watched["accuracy"] > alone["accuracy"] + worth


def test_the_source_stands_in_where_statistics_fail(net: Network) -> None:
    """Nothing to go back to: what is wrong is that a batch is of few classes."""
    alone = run(net, BatchNormAdapt(), stream("correlated"), 16, None)
    watched = run(net, BatchNormAdapt(), stream("correlated"), 16, SourceWatch(stand_in=True))
    assert watched["source"]["rollbacks"] == 0
    assert watched["source"]["stood_in"] > 1000
    assert watched["accuracy"] > alone["accuracy"] + 0.2
