"""What tests of bundles share: small learners with plausible weights, and one bundle that is made once."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.learners.test_time import TestTimeLearner
from driftway.adapt.learners.test_time_recipes import Mixture, Recipe
from driftway.models.networks import build

CLASSES = tuple("abcdef")


def images(shape: tuple[int, ...], classes: tuple[str, ...] = CLASSES, **more: Any) -> dw.StreamSpec:
    """Of images of this shape, with a mean that is not 0."""
    columns = tuple(dw.Column(f"x{j}", missing=False) for j in range(math.prod(shape)))
    notes = {"mean": [0.3] * shape[0], "std": [0.7] * shape[0]}
    return dw.StreamSpec("images", columns, classes=classes, shape=shape, notes=notes, **more)


def network(model: str, shape: tuple[int, ...], classes: int = len(CLASSES), seed: int = 1) -> Any:
    """Random weights, large enough for answers to differ; statistics as training leaves them."""
    net = build(model, shape, classes).eval()
    draw = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_(0, 0.1, generator=draw)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.05, 0.2, generator=draw)  # type: ignore[union-attr, operator]
    with torch.no_grad():
        net.head.weight.normal_(0, 1, generator=draw)
    return net


def learner(recipe: Recipe, model: str = "convnet:4-8", shape: tuple[int, ...] = (1, 8, 8)) -> TestTimeLearner:
    return TestTimeLearner(images(shape), recipe, model=network(model, shape))


def batch(rows: int, seed: int = 0, width: int = 64) -> dw.Batch:
    x = np.random.default_rng(seed).random((rows, width), np.float32)
    return dw.Batch(np.arange(rows) + 1000 * seed, x.astype(np.float64), 0.0)


@pytest.fixture(name="make", scope="session")
def make_fixture() -> Callable[..., TestTimeLearner]:
    return learner


@pytest.fixture(name="rows", scope="session")
def rows_fixture() -> Callable[..., dw.Batch]:
    return batch


@pytest.fixture(name="bundle", scope="session")
def bundle_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a method with two gradients a step, in which every row counts."""
    made = learner(Mixture(rho=0.05, alpha=0.4, lr=0.01))
    return dw.export(made, made.spec, tmp_path_factory.mktemp("edge") / "bundle", name="test-time")  # type: ignore[no-any-return]
