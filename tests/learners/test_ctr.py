"""Click learners: steps against a plain Adam over the whole table, histories that respect the delay, the source."""

from __future__ import annotations

from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.state import digest
from numpy.testing import assert_allclose, assert_array_equal

SPEC = dw.StreamSpec(
    "clicks",
    (dw.Column("user", ("u", "v", "w")), dw.Column("item", ("a", "b", "c", "d")), dw.Column("age")),
    classes=("no", "yes"),
    notes={"user": "user", "item": "item"},
)
SMALL: dict[str, Any] = {"dim": 3, "widths": "5", "embedding_bytes": 600, "lr": 0.01}


def rows(n: int, seed: int = 0) -> dw.Batch:
    rng = np.random.default_rng(seed)
    x = np.c_[rng.integers(0, 3, n), rng.integers(0, 4, n), rng.normal(size=n)].astype(float)
    return dw.Batch(np.arange(n), x, 0.0, (x[:, 0] == x[:, 1]).astype(np.int64))


def build(name: str, **settings: Any) -> Any:
    return dw.learner(name, SPEC, seed=2, **(SMALL | settings))


@pytest.mark.parametrize("name", ["ctr-lr", "fm", "deepfm", "dcnv2"])
def test_steps_are_adams_on_the_whole_table_where_every_batch_is_the_same(name: str) -> None:
    learner, batch = build(name), rows(60)
    learner._observe(np.asarray(batch.x))
    inputs = learner._inputs(np.asarray(batch.x))
    peer = build(name).net
    weights = list(peer.parameters())
    moments = [[torch.zeros_like(w), torch.zeros_like(w)] for w in weights]
    learner._observe = len  # the scale stays
    for t in range(1, 6):
        learner.learn(batch, learner.predict(batch))
        z, _ = peer(*inputs)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(z, torch.from_numpy(batch.y).float())
        for w, pair, g in zip(weights, moments, torch.autograd.grad(loss, weights), strict=True):
            pair[0] = 0.9 * pair[0] + 0.1 * g
            pair[1] = 0.999 * pair[1] + 0.001 * g * g
            w.data -= 0.01 * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t) * pair[0] / (pair[1].sqrt() + 1e-8)
    for (of, ours), theirs in zip(learner.net.named_parameters(), weights, strict=True):
        assert_allclose(ours.detach(), theirs.detach(), atol=2e-5, err_msg=of)


def test_rows_nobody_looks_up_keep_every_bit() -> None:
    learner, batch = build("deepfm", weight_decay=0.1), rows(30)
    before = learner.net.vectors.weight.detach().clone()
    learner.learn(batch, learner.predict(batch))
    used = np.unique(learner._places.rows(np.asarray(batch.x)))
    rest = np.setdiff1d(np.arange(len(before)), used)
    assert len(rest)
    assert torch.equal(learner.net.vectors.weight[rest], before[rest])
    assert (learner.net.vectors.weight[used] != before[used]).any()


def test_a_click_enters_the_history_when_its_label_comes() -> None:
    learner = build("din", history=2)
    batch = dw.Batch(np.arange(3), np.array([[0.0, 1, 0], [0, 2, 0], [1, 3, 0]]), 0.0, np.array([1, 0, 1]))
    first = learner.predict(batch)
    assert (first.trace["past"] == -1).all()
    learner.learn(batch, first)
    item = learner._places.of(np.array([1.0, 3.0]), 1).tolist()
    again = learner.predict(batch).trace["past"]
    assert again.tolist() == [[item[0], -1], [item[0], -1], [item[1], -1]]
    learner.learn(batch.rows([2]), first.rows(np.array([2])))
    assert learner.predict(batch).trace["past"][2].tolist() == [item[1], item[1]]


def test_the_source_is_learnt_before_the_stream_begins() -> None:
    stream = dw.stream("ctr-drift", seed=1, train=1500)
    first, again = (dw.learner("deepfm", stream.spec, seed=1, epochs=3, lr=0.01) for _ in range(2))
    none = dw.learner("deepfm", stream.spec, seed=1, epochs=0)
    assert digest(first.state()) == digest(again.state())
    assert first.facts()["source_rows"] == 1500
    assert "source" in first.needs
    assert "source" not in none.needs
    assert stream.spec.source is not None
    x, y = stream.spec.source.test()
    batch = dw.Batch(np.arange(len(x)), x.astype(np.float64), 0.0)
    hits = [(learner.predict(batch).output == y).mean() for learner in (first, none)]
    assert hits[0] > hits[1] + 0.1


def test_random_numbers_of_others_are_left_alone() -> None:
    before = torch.get_rng_state()
    one = build("deepfm")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert_array_equal(build("deepfm").net.vectors.weight.detach(), one.net.vectors.weight.detach())


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"widths": "8-x"}, "widths are numbers"),
        ({"embedding_bytes": 16}, "raise the bound"),
        ({"lr": 0}, "lr must be above 0"),
        ({"user": "town"}, "which column is the user"),
    ],
)
def test_what_cannot_be_is_one_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(dw.InputError, match=line):
        build("din", **settings)


def test_only_clicks() -> None:
    with pytest.raises(dw.InputError, match="tells a click from none, stream 's' has 3 classes"):
        dw.learner("fm", dw.StreamSpec("s", SPEC.columns, classes=("a", "b", "c")))
