"""Replay: who stays in a memory, and the losses of the policies."""

from __future__ import annotations

from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.learners.memory import Memory
from driftway.adapt.learners.parts import Rows
from driftway.adapt.state import copy_state, digest
from torch.nn import functional as F
from torch.testing import assert_close


def rows(labels: list[int], first: int = 0, logits: torch.Tensor | None = None) -> Rows:
    """Rows whose one feature is their number."""
    n = len(labels)
    x = torch.arange(first, first + n, dtype=torch.float32).reshape(n, 1)
    return Rows(x, torch.tensor(labels), torch.zeros(n, dtype=torch.int64), logits, current=True)


def filled(kind: Any, labels: list[int], capacity: int = 10, seed: int = 0) -> Memory:
    memory = Memory(capacity, kind, (1,), 4, seed=seed)
    memory.insert(rows(labels))
    return memory


def test_a_reservoir_keeps_every_row_with_the_same_probability() -> None:
    counts = np.zeros(40)
    for seed in range(2000):
        counts[filled("reservoir", [0] * 40, seed=seed).x.flatten().long().numpy()] += 1
    assert counts.sum() == 20_000
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500 * 0.75)


def test_a_ring_gives_every_class_its_share_and_drops_the_oldest() -> None:
    memory = filled("ring", [0] * 30 + [1] * 30)
    assert memory.y.tolist().count(0) == 5
    assert sorted(memory.x[memory.y == 1].flatten().tolist()) == [55, 56, 57, 58, 59]
    assert sorted(memory.x[memory.y == 0].flatten().tolist()) == [25, 26, 27, 28, 29]


def test_a_balanced_memory_takes_from_the_class_that_has_most() -> None:
    memory = filled("balanced", [0] * 50 + [1] * 5 + [2] * 5)
    assert sorted(np.bincount(memory.y.numpy())) == [3, 3, 4]


@pytest.mark.parametrize("kind", ["reservoir", "ring", "balanced"])
def test_a_memory_never_outgrows_its_arrays_and_its_books_agree(kind) -> None:
    rng = np.random.default_rng(1)
    memory = Memory(12, kind, (1,), 4)
    size = memory.nbytes
    for step in range(60):
        memory.insert(rows(rng.integers(0, 4, 5).tolist(), 5 * step))
        assert memory.size == min(12, 5 * (step + 1))
        for label, places in enumerate(memory._places):
            assert all(int(memory.y[place]) == label for place in places)
        if kind != "reservoir":
            assert sorted(p for places in memory._places for p in places) == list(range(memory.size))
    assert memory.nbytes == size == 12 * (4 + 8 + 8)


def test_a_draw_has_no_row_twice_and_goes_on_after_a_restore() -> None:
    memory = filled("reservoir", [0, 1] * 10)
    drawn = memory.draw(6)
    assert drawn is not None
    assert len(set(drawn.x.flatten().tolist())) == 6
    assert len(memory.draw(100)) == 10  # type: ignore[arg-type]
    assert Memory(3, "ring", (1,), 2).draw(2) is None
    other = Memory(10, "reservoir", (1,), 4, seed=99)
    other.load(copy_state(memory.state()))
    for _ in range(3):
        memory.insert(rows([1, 0, 1], 100))
        other.insert(rows([1, 0, 1], 100))
        assert torch.equal(memory.draw(4).x, other.draw(4).x)  # type: ignore[union-attr]
    assert digest(memory.state()) == digest(other.state())


def test_logits_of_later_classes_count_as_zero() -> None:
    memory = Memory(4, "ring", (1,), 2, logits=True)
    memory.insert(rows([0, 1]), torch.ones(2, 2))
    memory.insert(rows([2]), torch.full((1, 3), 2.0))
    assert memory.logits is not None
    assert memory.logits[:3].tolist() == [[1, 1, 0], [1, 1, 0], [2, 2, 2]]


# --- losses -----------------------------------------------------------------------------------------------------


def prepared(name: str, small_tasks: Any, teach: Any, **settings: Any) -> tuple[Any, Rows]:
    """A learner after one experience, in training mode, and rows of the next one."""
    stream = small_tasks()
    events = list(dw.rebatch(stream, 8))
    at = next(i for i, e in enumerate(events) if isinstance(e, dw.Boundary))
    learner: Any = teach(dw.learner(name, stream.spec, model="mlp:8", **settings), events[:at])
    return learner, learner._rows(events[at + 1])


def drawn_again(memory: Memory, times: int, n: int) -> list[Rows]:
    """What the memory is going to hand out, without disturbing it."""
    kept = copy_state(memory.state())
    found = [memory.draw(n) for _ in range(times)]
    memory.load(kept)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize(("lam", "weights"), [(None, (1, 1)), (0.3, (0.3, 0.7))])
def test_er_weighs_the_rows_at_hand_and_the_memory(small_tasks, teach, lam, weights) -> None:
    learner, now = prepared("er", small_tasks, teach, memory=20, replay_batch=5, lam=lam)
    (old,) = drawn_again(learner.memory, 1, 5)
    loss = learner.policy.loss(now)
    assert_close(loss.plasticity, weights[0] * F.cross_entropy(learner.net(now.x), now.y))
    assert_close(loss.stability, weights[1] * F.cross_entropy(learner.net(old.x), old.y))


def test_er_ace_does_not_push_down_absent_old_classes(small_tasks, teach) -> None:
    learner, now = prepared("er-ace", small_tasks, teach, memory=20)
    grads = learner.gradients_of(learner.policy.loss(now).plasticity)
    assert set(now.y.tolist()) <= {2, 3}
    assert not grads["head.weight"][:2].any()
    assert grads["head.weight"][2:].any(1).all()


def test_derpp_is_three_terms(small_tasks, teach) -> None:
    learner, now = prepared("derpp", small_tasks, teach, memory=20, replay_batch=5, alpha=0.3, beta=0.6)
    dark, old = drawn_again(learner.memory, 2, 5)
    loss = learner.policy.loss(now)
    assert_close(loss.plasticity, F.cross_entropy(learner.net(now.x), now.y))
    past = 0.3 * F.mse_loss(learner.net(dark.x), dark.logits) + 0.6 * F.cross_entropy(learner.net(old.x), old.y)
    assert_close(loss.stability, past)


def test_derpp_keeps_what_was_said_when_the_row_was_met(small_tasks) -> None:
    stream = small_tasks()
    learner: Any = dw.learner("derpp", stream.spec, model="mlp:8", memory=50)
    batch = next(iter(dw.rebatch(stream, 8)))
    with torch.no_grad():
        said = learner.net(learner._tensor(batch.x))
    learner.learn(batch, learner.predict(batch))
    assert_close(learner.memory.logits[:8], said)


@pytest.mark.parametrize(
    ("g", "r", "expected"),
    [
        ([1.0, 0.0], [0.0, 1.0], [1.0, 0.0]),
        ([1.0, 1.0], [1.0, 0.0], [1.0, 1.0]),
        ([1.0, 1.0], [-1.0, 0.0], [0.0, 1.0]),
        ([1.0, -1.0], [0.0, 2.0], [1.0, 0.0]),
    ],
)
def test_agem_projects_only_what_would_raise_the_loss_of_the_past(small_tasks, g, r, expected) -> None:
    learner: Any = dw.learner("agem", small_tasks().spec, model="mlp:8")
    policy = learner.policy
    policy._past = {"a": torch.tensor(r[:1]), "b": torch.tensor(r[1:]), "c": None}
    grads: Any = {"a": torch.tensor(g[:1]), "b": torch.tensor(g[1:]), "c": torch.tensor([7.0])}
    policy.gradients(grads, {})
    assert_close(torch.cat([grads["a"], grads["b"]]), torch.tensor(expected))
    assert grads["c"].item() == 7.0


def test_joint_keeps_everything_and_learns_from_all_of_it(small_tasks, teach) -> None:
    stream = small_tasks(rows=600)
    learner: Any = teach(dw.learner("joint", stream.spec, model="mlp:16"), dw.rebatch(stream, 50))
    assert learner.memory.size == 1800
    assert sorted(set(learner.memory.y[:1800].tolist())) == [0, 1, 2, 3, 4, 5]


def test_replay_remembers_what_fine_tuning_forgets(small_tasks, teach) -> None:
    scores = {}
    for name in ("finetune", "er", "er-ace", "derpp", "joint"):
        stream = small_tasks(rows=200)
        learner = teach(dw.learner(name, stream.spec, model="mlp:32"), dw.rebatch(stream, 8))
        held = stream.spec.experiences[0]
        answers = learner.predict(dw.Batch(np.arange(len(held.x)), held.x.astype(float), 0.0)).output
        scores[name] = float((answers == held.y).mean())
    assert min(scores[n] for n in scores if n != "finetune") > max(0.6, scores["finetune"] + 0.2)
