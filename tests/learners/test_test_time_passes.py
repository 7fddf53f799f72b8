"""A test-time learner's ways to compute: chosen once, kept in the cache folder and the state, equal in what they do."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.learners.test_time import TestTimeLearner
from driftway.adapt.learners.test_time_recipes import SAR, CoTTA, Tent
from driftway.adapt.state import digest, join, split
from driftway.models import fastest_passes
from driftway.models.networks import Network, build

SHAPE = (1, 8, 8)


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dw.StreamSpec:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    columns = tuple(dw.Column(f"x{j}", missing=False) for j in range(64))
    notes = {"mean": [0.0], "std": [1.0]}
    return dw.StreamSpec("noise", columns, classes=("a", "b", "c"), shape=SHAPE, notes=notes)


@pytest.fixture
def net() -> Network:
    return build("convnet:4-6", SHAPE, 3)


def batches(n: int, rows: int = 16) -> list[dw.Batch]:
    rng = np.random.default_rng(0)
    return [dw.Batch(np.arange(rows), rng.normal(size=(rows, 64)), float(i)) for i in range(n)]


def feed(one: TestTimeLearner, rows: list[dw.Batch]) -> None:
    for batch in rows:
        one.adapt(batch, one.predict(batch))


def learner(spec: dw.StreamSpec, net: Network, recipe: Any) -> TestTimeLearner:
    return TestTimeLearner(spec, recipe, model=copy.deepcopy(net))


def test_runs_repeat_and_resume_bit_for_bit(
    spec: dw.StreamSpec, net: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = batches(5)
    clock = iter(np.random.default_rng(1).random(1000))
    monkeypatch.setattr(fastest_passes, "_timed", lambda *_: float(next(clock)))  # times at random
    whole, again = learner(spec, net, Tent(optimizer="sgd")), learner(spec, net, Tent(optimizer="sgd"))
    feed(whole, rows)
    size = fastest_passes.size_of(torch.zeros(16, *SHAPE))
    assert whole.facts() == {"passes": {"chosen": {size: whole.passes.chosen[size]}}}
    assert len(list((tmp_path / "driftway" / "steps").iterdir())) == 1
    feed(again, rows)
    assert digest(again.state()) == digest(whole.state())
    for stop in (1, 2, 4):
        first, second = learner(spec, net, Tent(optimizer="sgd")), learner(spec, net, Tent(optimizer="sgd"))
        feed(first, rows[:stop])
        second.load(join(*split(first.state())))
        feed(second, rows[stop:])
        assert digest(second.state()) == digest(whole.state())


@pytest.mark.parametrize("recipe", [Tent(optimizer="sgd", lr=0.01), SAR(lr=0.01, e_frac=1.0)], ids=["tent", "sar"])
def test_every_way_takes_the_same_steps(spec: dw.StreamSpec, net: Network, recipe: Any) -> None:
    plain = learner(spec, net, replace(recipe, step="plain"))
    feed(plain, batches(3))
    for way in fastest_passes.WAYS:
        one = learner(spec, net, replace(recipe, step=way))
        feed(one, batches(3))
        assert one.facts() == {"passes": {"chosen": way}}
        assert one.counts == plain.counts
        for name, weight in plain.moving.items():
            torch.testing.assert_close(one.moving[name], weight, rtol=0, atol=1e-5)


def test_what_has_no_other_way_goes_by_autograd(spec: dw.StreamSpec, net: Network) -> None:
    one = learner(spec, net, CoTTA())
    feed(one, batches(3, rows=2))
    assert set(one.passes.chosen.values()) <= {""}
    with pytest.raises(dw.InputError, match="cannot be 'packed'"):
        learner(spec, net, CoTTA(step="packed"))
    with pytest.raises(dw.InputError, match="cannot be 'captured'"):
        learner(spec, net, Tent(step="captured"))
