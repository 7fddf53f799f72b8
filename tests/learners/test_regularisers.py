"""EWC and LwF by their formulas."""

from __future__ import annotations

from typing import Any

import driftway as dw
import pytest
import torch
from driftway.adapt.learners.regularisers import Recent
from torch.nn import functional as F
from torch.testing import assert_close

from .test_replay import prepared, rows


def entered(name: str, small_tasks: Any, teach: Any, **settings: Any) -> tuple[Any, Any]:
    """A learner that has just been told of the second experience, and rows of it."""
    learner, now = prepared(name, small_tasks, teach, **settings)
    learner.boundary(dw.Boundary("next", 0.0))
    return learner, now


def test_fisher_information_is_the_mean_square_of_each_rows_gradient(small_tasks, teach) -> None:
    learner, _ = prepared("ewc", small_tasks, teach)
    part = learner.techniques[0]
    x, y = part.recent.x[:40].clone(), part.recent.y[:40].clone()
    learner.boundary(dw.Boundary("next", 0.0))
    total = torch.zeros_like(learner.net.head.weight)
    for i in range(40):
        total += learner.gradients_of(F.cross_entropy(learner.net(x[i : i + 1]), y[i : i + 1]))["head.weight"] ** 2
    assert_close(part.fisher["head.weight"], total / 40)
    assert part.recent.count == 0


def test_ewc_is_a_weighted_distance_from_the_anchor(small_tasks, teach) -> None:
    learner, now = entered("ewc", small_tasks, teach, ewc=3.0)
    part = learner.techniques[0]
    assert part.penalty(now).item() == 0.0
    with torch.no_grad():
        learner.net.head.bias += 0.5
    assert_close(part.penalty(now), 0.5 * 3.0 * 0.25 * part.fisher["head.bias"].sum())


def test_fisher_information_adds_up_over_boundaries(small_tasks, teach) -> None:
    learner, now = entered("ewc", small_tasks, teach, ewc_decay=0.5)
    part = learner.techniques[0]
    before = part.fisher["head.bias"].clone()
    part.recent.insert(now)
    new = part._fisher(now)["head.bias"]
    learner.boundary(dw.Boundary("third", 0.0))
    assert_close(part.fisher["head.bias"], new + 0.5 * before)


def test_a_boundary_without_rows_changes_nothing(small_tasks, teach) -> None:
    learner, _ = entered("ewc", small_tasks, teach)
    kept = learner.techniques[0].anchor
    learner.boundary(dw.Boundary("again", 0.0))
    assert learner.techniques[0].anchor is kept


def test_lwf_is_the_divergence_from_the_teacher_over_old_classes(small_tasks, teach) -> None:
    learner, now = entered("lwf", small_tasks, teach, lwf=2.0, temperature=3.0)
    part = learner.techniques[0]
    learner.policy.loss(now)
    assert part.penalty(now).item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        learner.net.head.bias += torch.arange(6.0)
    learner.policy.loss(now)
    said, taught = learner.net(now.x)[:, :2] / 3, part.teacher(now.x)[:, :2] / 3
    p = taught.softmax(1)
    expected = 2.0 * 9 * (p * (taught.log_softmax(1) - said.log_softmax(1))).sum(1).mean()
    assert_close(part.penalty(now), expected)


def test_the_last_rows_are_the_last_rows(small_tasks) -> None:
    learner: Any = dw.learner("finetune", small_tasks().spec, model="mlp:4")
    recent = Recent(learner, 4)
    recent.x = recent.x.reshape(4, -1)[:, :1].clone()
    for first in range(0, 9, 3):
        recent.insert(rows([0, 1, 0], first))
    taken = recent.take()
    assert taken is not None
    assert sorted(taken.x.flatten().tolist()) == [5, 6, 7, 8]
    recent.insert(rows([0] * 9, 20))
    assert sorted(recent.x.flatten().tolist()) == [25, 26, 27, 28]
