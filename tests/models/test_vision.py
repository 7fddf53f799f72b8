"""Torchvision beside any build of torch, and its classifiers as bodies of our networks."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.models import vision
from driftway.models.networks import build
from torch import nn

needs_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="needs the extra vision")


@needs_torchvision
def test_torchvision_can_be_imported_whatever_torch_it_lies_beside() -> None:
    code = "from driftway.models.vision import import_torchvision as get; print(get() is get(), get().__version__)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True")


def test_a_missing_torchvision_is_one_line_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match=r"driftway\[vision\]"):
        vision.import_torchvision()
    with pytest.raises(dw.InputError, match=r"torchvision:resnet18: .*driftway\[vision\]"):
        dw.learner("finetune", dw.stream("split-digits").spec, model="torchvision:resnet18")


def test_other_faults_of_the_import_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_name: str) -> Any:
        raise RuntimeError("something else")

    monkeypatch.setattr(vision.importlib, "import_module", broken)
    with pytest.raises(RuntimeError, match="something else"):
        vision.import_torchvision()


@needs_torchvision
@pytest.mark.parametrize(
    ("name", "shape", "features"),
    [
        ("resnet18", (1, 8, 8), 512),
        ("mobilenet_v3_small", (3, 32, 32), 1024),
        ("shufflenet_v2_x0_5", (2, 16, 20), 1024),
    ],
)
def test_a_classifier_is_a_body_and_a_head(name: str, shape: tuple[int, int, int], features: int) -> None:
    net = build(f"torchvision:{name}", shape, 7, seed=1)
    net.train()
    x = torch.zeros(4, *shape)
    assert net.body(x).shape == (4, features)
    assert net(x).shape == (4, 7)
    assert net.head.in_features == features


@needs_torchvision
def test_its_weights_come_from_the_seed_alone() -> None:
    first, again, other = (
        torch.cat([p.flatten() for p in build("torchvision:shufflenet_v2_x0_5", (1, 8, 8), 2, seed=seed).parameters()])
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@needs_torchvision
def test_nothing_in_a_body_draws_by_itself() -> None:
    net = build("torchvision:mobilenet_v3_small", (1, 32, 32), 2)
    before = torch.get_rng_state()
    net.train()(torch.zeros(2, 1, 32, 32))
    assert torch.equal(before, torch.get_rng_state())


@needs_torchvision
def test_another_norm_takes_the_place_of_batch_norm() -> None:
    net = build("torchvision:resnet18", (1, 8, 8), 2, norm="group")
    kinds = [type(m) for m in net.modules()]
    assert nn.BatchNorm2d not in kinds
    assert kinds.count(nn.GroupNorm) == 20


@needs_torchvision
@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("resnet81", (1, 8, 8), "did you mean .*resnet18"),
        ("squeezenet1_1", (1, 32, 32), "does not end in a linear layer"),
        ("alexnet", (1, 8, 8), "cannot take images of 1x8x8"),
        ("resnet18", (64,), "needs images"),
    ],
)
def test_what_cannot_be_a_body_is_refused(name: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words) as fault:
        build(f"torchvision:{name}", shape, 2)
    assert "\n" not in str(fault.value)


@needs_torchvision
def test_a_learner_learns_with_it() -> None:
    stream = dw.rebatch(dw.stream("split-digits"), 32)
    learner = dw.learner("finetune", stream.spec, model="torchvision:shufflenet_v2_x0_5", lr=0.05)
    batch = next(e for e in stream if isinstance(e, dw.Batch))
    before = learner.predict(batch).scores
    learner.learn(batch, learner.predict(batch))
    after = learner.predict(batch).scores
    assert before is not None
    assert after is not None
    assert not np.array_equal(before, after)
    assert np.isfinite(after).all()
