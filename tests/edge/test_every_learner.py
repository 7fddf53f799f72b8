"""Every learner of the table either has a form as graphs, or is refused in one line before anything is written."""

from __future__ import annotations

from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import driftway as dw
import pytest
import torch
from driftway.adapt.edge.steps import CannotExport, steps_of
from driftway.adapt.learners import LEARNERS
from driftway.models.networks import build
from driftway.models.prototypes import Prototypes
from torch import nn

IMAGES = dw.StreamSpec(
    "images",
    tuple(dw.Column(f"x{j}", missing=False) for j in range(64)),
    classes=tuple("abcd"),
    shape=(1, 8, 8),
    notes={"mean": [0.3], "std": [0.7]},
)
TABLE = dw.StreamSpec("table", (dw.Column("a"), dw.Column("b", ("x", "y"))), classes=("n", "y"))

PREDICT, ADAPT, LEARN = "predict", "predict adapt", "predict learn"
HAVE = {
    **dict.fromkeys(("source", "bn-adapt"), PREDICT),
    **dict.fromkeys(("tent", "eata", "sar", "rsgs", "test-time", "centaur"), ADAPT),
    **dict.fromkeys(("ncm", "teen", "csfa"), "predict learn adapt"),
    **dict.fromkeys(("finetune", "adab2n", "migu", "sparcl", "random-mask", "magnitude-mask"), LEARN),
    **dict.fromkeys(("snip", "set", "rigl", "reloop2", "platt"), LEARN),
    "acu": "predict learn forget",
}
"""Learners with a form as graphs, and the verbs of a bundle."""
AS_SOURCES = {"driftmoe", "hoeffding-tree"}
"""Learners that go into a bundle as they are (test_driftmoe.py)."""
SETTINGS: dict[str, dict[str, Any]] = {
    "eata": {"beta": 0},
    "reloop2": {"warmup": 4},
    "platt": {"warmup": 4},
    "acu": {"width": 8},
    "din": {"user": "a", "item": "b"},
}
TAKES = {"river": "river:naive_bayes.GaussianNB", "avalanche": "avalanche:Naive", "unlearn": "unlearn:finetune"}
NEEDS = {"avalanche": "avalanche"}


def model(shots: bool) -> nn.Module:
    net = build("convnet:4", (1, 8, 8), 4)
    return (
        nn.Sequential(OrderedDict(body=net.body, head=Prototypes(torch.eye(4), torch.ones(4).long()))) if shots else net
    )


def made(name: str) -> dw.Learner:
    """A learner of this name, which has met a few rows where it must before it can be exported."""
    entry, settings = LEARNERS[name], dict(SETTINGS.get(name, {}))
    if entry.recipe or name == "centaur":
        return dw.learner(name, IMAGES, model=model(name in ("ncm", "teen", "csfa")), **settings)
    if entry.part:
        return dw.learner(name, IMAGES, model="mlp-norm:8-8", **settings)
    learner = dw.learner(TAKES.get(name, name), TABLE, **settings)
    for i in range(3 if name in ("acu", "reloop2", "platt") else 0):
        batch = dw.Batch(torch.arange(4).numpy() + 10 * i, torch.rand(4, 2).round().double().numpy(), 0.0,
                         torch.tensor([0, 1, 0, 1]).numpy())  # fmt: skip
        learner.learn(batch, learner.predict(batch))
    return learner


@pytest.mark.parametrize("name", sorted(HAVE))
def test_it_has_these_verbs(name: str) -> None:
    assert " ".join(steps_of(made(name)).verbs) == HAVE[name]


@pytest.mark.parametrize("name", sorted(set(LEARNERS) - set(HAVE) - AS_SOURCES - {"edge"}))
def test_it_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    if name in NEEDS and find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    learner = made(name)
    with pytest.raises(CannotExport) as caught:
        dw.export(learner, learner.spec, tmp_path / "bundle")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) > 20
    assert list(tmp_path.iterdir()) == []


def test_the_readme_names_every_learner_that_can_be_exported() -> None:
    text = (Path(dw.__file__).parent / "README.md").read_text()
    section = text.partition("\n## On a device\n")[2].partition("\n## ")[0]
    told = set(section.replace("`", " ").replace(",", " ").split())
    assert set(HAVE) | AS_SOURCES <= told
