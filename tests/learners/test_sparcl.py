"""SparCL: the invariants of its note, at every update of a run, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.learners.importance import gradient_of
from driftway.adapt.learners.sparcl import SparCL
from driftway.adapt.state import digest, join, split
from driftway.models.masks import Granules, Mask, keep_count

EPOCHS, ROWS, BATCH = 20, 30, 10
N = 64 * 64


def stream(tasks: int = 2, epochs: int = EPOCHS, **more: Any) -> dw.Stream:
    """Two classes a task, 8x8 images: a class is a bright corner."""
    rng = np.random.default_rng(3)

    def images(task: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(0, 2, n) + 2 * task
        x = rng.random((n, 1, 8, 8)) * 0.5
        x[np.arange(n), 0, y, 2 * (y % 2)] += 0.5
        return x, y

    train = [(f"task {k}", *images(k, ROWS)) for k in range(tasks)]
    return dw.from_experiences(train, [images(k, 10) for k in range(tasks)], epochs=epochs, **more)


def learner(name: str = "er+sparcl", *, over: Any = None, **settings: Any) -> Any:
    given = {"model": "mlp:64-64", "memory": 20, "replay_batch": 5, "lr": 0.1, "seed": 4, **settings}
    return dw.learner(name, (over or stream()).spec, **given)


def run(made: Any, over: Any = None) -> Iterator[tuple[int, int, int]]:
    """(task, epoch, step) after every update."""
    step = 0
    for event in dw.rebatch(over or stream(), BATCH):
        if isinstance(event, dw.Boundary):
            if "boundaries" in made.needs:
                made.boundary(event)
            continue
        epoch = made.seen // ROWS
        made.learn(event, None)
        step += 1
        yield made.task, epoch, step


def finish(made: Any, over: Any = None) -> Any:
    for _ in run(made, over):
        pass
    return made


def masks(made: Any) -> dict[str, Mask]:
    found: dict[str, Mask] = made.techniques[0].sparse.masks
    return found


# --- masks of weights ------------------------------------------------------------------------------------------------


def test_counts_at_every_update() -> None:
    made = learner(sparsity=0.75)
    expected = keep_count(N, 0.75)
    assert [int(m.active.sum()) for m in masks(made).values()] == [expected, expected]
    for task, epoch, _ in run(made):
        grown = keep_count(N, 0.74) if task and epoch < 5 else expected
        assert [int(m.active.sum()) for m in masks(made).values()] == [grown, grown]
        assert {int(m.moving.sum()) for m in masks(made).values()} == {keep_count(N, 0.8)}
    assert made.telemetry()["sparsity"] == pytest.approx(0.75)
    assert made.telemetry()["gradient_density"] == pytest.approx(0.2, abs=1e-3)


def test_masks_do_exchange_and_stand_still_at_the_end() -> None:
    made, seen = learner(sparsity=0.9), {}
    for task, epoch, _ in run(made):
        seen.setdefault((task, epoch), {n: m.active.clone() for n, m in masks(made).items()})
    for name in masks(made):
        changed = [e for e in range(1, EPOCHS) if not torch.equal(seen[0, e][name], seen[0, e - 1][name])]
        assert changed == [5, 10, 15]
        changed = [e for e in range(1, EPOCHS) if not torch.equal(seen[1, e][name], seen[1, e - 1][name])]
        assert changed == [5, 10, 15]
        assert not torch.equal(seen[1, 0][name], seen[0, EPOCHS - 1][name])


@pytest.mark.parametrize("granularity", ["element", "block", "row"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_what_is_masked_stays_zero_and_what_is_frozen_keeps_every_bit(granularity: str, optimizer: str) -> None:
    made = learner(
        granularity=granularity,
        optimizer=optimizer,
        block="16x16",
        sparsity=0.5,
        gradient_share=0.6,
        refresh=7,
        lr=0.01,
        momentum=0.9,
        weight_decay=0.1,
        p_intra=0.1,
    )
    technique = made.techniques[0]
    form = technique.sparse.form
    before: dict[str, Any] = {}

    class Watch:
        """Copies weights and moments as they are when the update is about to come."""

        def gradients(self, grads: Any, only: Any) -> None:
            type(technique).gradients(technique, grads, only)
            slots = made.optimiser.slots
            for name in masks(made):
                tensors = [made.weights[name], *(t for t in slots.get(name, {}).values() if t.dim() > 1)]
                before[name] = [t.detach().clone() for t in tensors]

    technique.gradients = Watch().gradients
    for _ in run(made):
        for name, mask in masks(made).items():
            assert not (mask.moving & ~mask.active).any()
            weight = made.weights[name].detach()
            slots = [t for t in made.optimiser.slots[name].values() if t.dim() > 1]
            if granularity == "row":
                still = ~mask.moving[form.at[name.removesuffix(".weight")]]
            else:
                there = mask.granules.spread(mask.active)
                for tensor in (weight, *slots):
                    assert not tensor[~there].any()
                still = ~mask.granules.spread(mask.moving)
            for now, then in zip((weight, *slots), before[name], strict=False):
                assert torch.equal(now[still], then[still])
            assert not torch.equal(weight[~still], before[name][0][~still])


@pytest.mark.parametrize("sparsity", [0.75, 0.9])
def test_what_grows_was_not_there_and_begins_at_zero(sparsity: float) -> None:
    made = learner(sparsity=sparsity)
    sparse = made.techniques[0].sparse
    settle, grown = sparse.form.settle, []

    def watched(stay: Any, slots: Any) -> bool:
        done: bool = settle(stay, slots)
        for name, mask in sparse.masks.items():
            new = mask.active & ~stay[name]
            assert not made.weights[name].detach().flatten()[new].any()
            grown.append(int(new.sum()))
        return done

    sparse.form.settle = watched
    finish(made)
    assert sum(n > 0 for n in grown) == 2 * (3 + 4)
    assert max(grown) == keep_count(N, sparsity) - keep_count(N, sparsity + 0.01)


def test_a_weight_that_passes_through_zero_stays() -> None:
    made = learner(sparsity=0.75, p_intra=0.0, p_inter=0.0)
    (name, mask), *_ = masks(made).items()
    at = mask.active.nonzero().flatten()[:50]
    with torch.no_grad():
        made.net.get_parameter(name).view(-1)[at] = 0.0
    kept = mask.active.clone()
    finish(made)
    assert torch.equal(mask.active, kept)


def test_the_notes_exchange_by_percentiles() -> None:
    technique = learner(percentile=True, sparsity=0.75).techniques[0]
    mask, scores = Mask(Granules((100,))), torch.cat([torch.zeros(75), torch.arange(1, 26).float()])
    technique.sparse.pool = lambda _, values: values
    new = technique._exchange("w", mask, scores, 0.75, 0.75)
    assert int(mask.active.sum()) == 25
    assert not new.any()
    new = technique._exchange("w", mask, scores, 0.76, 0.75)
    assert int(new.sum()) == 1
    assert int((mask.active & ~new).sum()) == 24


# --- what it becomes where parts of it are off -----------------------------------------------------------------------

OFF = {"sparsity": 0.0, "gradient_share": 1.0, "removal": 0.0, "p_intra": 0.0, "p_inter": 0.0}


@pytest.mark.parametrize("granularity", ["element", "row", "block"])
@pytest.mark.parametrize("settings", [{"momentum": 0.9, "weight_decay": 0.01}, {"optimizer": "adamw", "lr": 0.01}])
def test_with_everything_off_it_is_the_dense_learner_bit_for_bit(granularity: str, settings: dict[str, Any]) -> None:
    sparse = finish(learner(granularity=granularity, **OFF, **settings))
    dense = finish(learner("er", **settings))
    for name, weight in dense.weights.items():
        assert torch.equal(sparse.weights[name], weight)
    assert digest(sparse.optimiser.state()) == digest(dense.optimiser.state())
    assert torch.equal(sparse.memory.x, dense.memory.x)


def test_scoring_leaves_no_trace() -> None:
    """With a static mask, all of it moving, scores cannot matter; looking for them at any time changes nothing else."""
    one, other = learner(p_intra=0.0, p_inter=0.0, removal=0.0, gradient_share=1.0), learner("er+magnitude-mask")
    for (_, _, step), _ in zip(run(one), run(other), strict=True):
        if step % 3 == 0:
            before = digest(one.state()["net"]), digest(one.policy.state()), one.said, torch.get_rng_state()
            one.techniques[0]._gradients(one.techniques[0]._now)
            assert (digest(one.state()["net"]), digest(one.policy.state()), one.said) == before[:3]
            assert torch.equal(torch.get_rng_state(), before[3])
    for name, weight in other.weights.items():
        assert torch.equal(one.weights[name], weight)


def test_without_gradients_it_goes_by_magnitude() -> None:
    made = finish(learner(now_weight=0.0, memory_weight=0.0, gradient_share=1.0))
    technique = made.techniques[0]
    assert technique._gradients(technique._now) == {}


def test_masks_move_only_if_told_to() -> None:
    made = learner(p_intra=0.0, p_inter=0.0)
    first = {n: m.active.clone() for n, m in masks(made).items()}
    finish(made)
    assert all(torch.equal(first[n], m.active) for n, m in masks(made).items())
    everything = finish(learner(gradient_share=1.0))
    assert all(torch.equal(m.active, m.moving) for m in masks(everything).values())


# --- importance ------------------------------------------------------------------------------------------------------


def test_the_loss_for_scores_sees_the_classes_of_the_experience_only() -> None:
    made = learner(over=stream(3))
    for task, _, _step in run(made, stream(3)):
        if task == 2:
            break
    rows = made.techniques[0]._now
    own = gradient_of(made, rows, own_classes=True)
    others = gradient_of(made, rows, own_classes=False)
    assert not own["head.weight"][:4].any()
    assert others["head.weight"][:4].any()


def test_scores_add_up_both_sources() -> None:
    made = learner(now_weight=0.3, memory_weight=0.7, score_rows=20)
    for _, _, step in run(made):
        if step == 10:
            break
    technique = made.techniques[0]
    state = technique.generator.bit_generator.state
    found = technique._gradients(technique._now)
    technique.generator.bit_generator.state = state
    now, memory = technique.fresh.now(technique._now), technique.fresh.memory()
    assert len(now) > BATCH
    assert len(memory) == 20
    one, two = gradient_of(made, now, own_classes=True), gradient_of(made, memory, own_classes=False)
    for name in masks(made):
        torch.testing.assert_close(found[name], 0.3 * one[name].abs() + 0.7 * two[name].abs())


def test_a_gradient_that_is_no_number_is_left_out_of_the_scores() -> None:
    made = learner()
    with torch.no_grad():
        made.net.head.weight.fill_(torch.inf)
    rows = next(iter(dw.rebatch(stream(), BATCH)))
    now = made._rows(rows)
    found = made.techniques[0]._gradients(now)
    assert all(torch.isfinite(f).all() for f in found.values())


# --- data ------------------------------------------------------------------------------------------------------------


def test_rows_leave_in_stages_and_are_not_presented_again() -> None:
    made = learner(removal=0.4, cutoff=2)
    technique, offered = made.techniques[0], {}
    for task, epoch, _ in run(made):
        offered[task, epoch] = technique.removal.removed
    for task in (0, 1):
        assert [offered[task, e] for e in range(EPOCHS)] == [0] * 5 + [6] * 5 + [12] * 10
    kept = finish(learner(removal=0.0))
    assert made.telemetry()["paper_flops"] < 0.85 * kept.telemetry()["paper_flops"]


def test_removal_is_off_where_rows_do_not_come_again() -> None:
    for over in (stream(epochs=1), stream(epochs=1, blur=0.2)):
        made = finish(learner(over=over), over)
        assert not made.techniques[0].removing
        assert made.telemetry()["removed_rows"] == 0
    assert not learner(task_free=True).techniques[0].removing


# --- stages ----------------------------------------------------------------------------------------------------------


def test_stages_of_an_experience_of_one_epoch_and_of_unknown_length() -> None:
    once = stream(epochs=1)
    made = learner(over=once, p_intra=0.05)
    stages = []
    for task, _, _ in run(made, once):
        stages.append((task, made.techniques[0].stages.reached))
    assert stages == [(0, 0), (0, 3), (0, 6), (1, 0), (1, 3), (1, 6)]
    free = learner(task_free=True, delta_updates=4)
    assert free.needs == {"labels"}
    for _, _, step in run(free):
        assert free.techniques[0].stages.reached == (step - 1) // 4


def test_a_schedule_of_ones_own() -> None:
    made = learner(schedule="0:.79:.77,10:.75:.75", sparsity=0.75)
    for task, epoch, _ in run(made):
        if task == 0:
            level = 0.75 if epoch < 5 or epoch >= 10 else 0.77
            assert int(next(iter(masks(made).values())).active.sum()) == keep_count(N, level)


# --- costs -----------------------------------------------------------------------------------------------------------


def test_operations_are_counted_from_real_masks_and_rows() -> None:
    values = {"p_intra": 0.0, "p_inter": 0.0, "removal": 0.0, "gradient_share": 1.0}
    made = finish(learner(sparsity=0.75, **values))
    macs = 0.25 * 2 * N + 64 * 4
    rows, replayed = 2 * EPOCHS * ROWS, 5 * (2 * EPOCHS * ROWS // BATCH - 1)
    found = made.telemetry()
    assert found["paper_flops"] == pytest.approx(2 * macs * (3 * rows + replayed))
    assert found["true_flops"] == pytest.approx(2 * macs * 3 * (rows + replayed), rel=0.01)
    both = finish(learner(sparsity=0.75)).telemetry()
    assert both["paper_flops"] < found["paper_flops"]
    assert both["true_flops"] > both["paper_flops"]


def test_rows_make_the_network_smaller() -> None:
    made = finish(learner(granularity="row", sparsity=0.75))
    assert made.net.body[1].weight.shape == (16, 64)
    assert made.net.body[3].weight.shape == (16, 16)
    assert made.telemetry()["sparsity"] == pytest.approx(1 - (16 * 64 + 16 * 16) / (2 * N))
    assert made.predicting() is None
    assert learner().predicting() is not None


# --- state -----------------------------------------------------------------------------------------------------------

KINDS: list[dict[str, Any]] = [
    {"momentum": 0.9, "weight_decay": 0.01},
    {"optimizer": "adamw", "lr": 0.01, "clip": 1.0},
    {"granularity": "row", "momentum": 0.9, "gradient_share": 0.4},
    {"granularity": "row", "optimizer": "adamw", "lr": 0.01},
    {"granularity": "block", "block": "8x8", "sparsity": 0.8, "optimizer": "adamw", "lr": 0.01},
    {"granularity": "block", "block": "8x8", "sparsity": 0.5, "momentum": 0.9},
    {"merged": True, "percentile": True, "expand_first": True, "removal_score": "forgetting"},
    {"granularity": "row", "model": "resnet18:8", "momentum": 0.9, "sparsity": 0.7},
    {"granularity": "row", "model": "convnet:8-16-32", "norm": "none", "gradient_share": 0.3},
]


def restored(made: Any, fresh: Any) -> Any:
    skeleton, arrays = split(made.state())
    fresh.load(join(json.loads(json.dumps(skeleton)), {k: np.array(v) for k, v in arrays.items()}))
    return fresh


NAMES = [*["er+sparcl"] * len(KINDS), "er+adab2n+sparcl", "er+sparcl+adab2n"]
KINDS += [{"granularity": "row", "model": "convnet:8-16-32", "optimizer": "adamw", "lr": 0.01, "sparsity": 0.7}] * 2


@pytest.mark.parametrize(("name", "settings"), list(zip(NAMES, KINDS, strict=True)))
def test_saved_and_continued_equals_uninterrupted(name: str, settings: dict[str, Any]) -> None:
    over = stream(2, 4)
    events = list(dw.rebatch(stream(2, 4), BATCH))
    straight = learner(name, over=over, **settings)
    others: dict[int, Any] = {}
    for i, event in enumerate(events):
        if i in (8, 17):
            others[i] = restored(straight, learner(name, over=over, **settings))
            assert digest(others[i].state()) == digest(straight.state())
        for made in (straight, *others.values()):
            if isinstance(event, dw.Boundary):
                made.boundary(event)
            else:
                made.learn(event, None)
    for other in others.values():
        assert digest(other.state()) == digest(straight.state())
        assert np.isfinite(other.predict(events[-1]).scores).all()


def test_a_head_that_grows_over_a_network_that_shrinks() -> None:
    spec = dw.StreamSpec("growing", tuple(dw.Column(f"x{j}") for j in range(20)))
    rng = np.random.default_rng(0)

    def batch(at: int) -> dw.Batch:
        y = rng.integers(0, 2 + at // 4, 12)
        return dw.Batch(np.arange(12) + 12 * at, rng.normal(size=(12, 20)) + y[:, None], float(at), y)

    settings = {"model": "mlp:64-32", "granularity": "row", "task_free": True, "delta_updates": 3, "momentum": 0.9}
    made = dw.learner("er+sparcl", spec, **settings)
    for at in range(12):
        made.learn(batch(at), None)
    fresh = restored(made, dw.learner("er+sparcl", spec, **settings))
    last = batch(13)
    for one in (made, fresh):
        one.learn(last, None)
    assert digest(made.state()) == digest(fresh.state())
    assert made.predict(last).scores.shape == (12, 5)


# --- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "line"),
    [
        ("sparcl+rigl", {}, "a network can have one of them only"),
        ("sparcl+migu", {}, "which weights"),
        ("sparcl+ewc", {"granularity": "row"}, "a number for every weight"),
        ("sparcl+lwf", {"granularity": "block"}, "its teacher is a copy"),
        ("sparcl", {"sparsity": 1.0}, "sparsity"),
        ("sparcl", {"block": "32"}, "block '32' is not rows and columns"),
        ("sparcl", {"schedule": "5"}, "start:prune:grow"),
        ("sparcl", {"granularity": "column"}, "granularity"),
        ("sparcl", {"head_only": True}, "it must be trained"),
        ("sparcl", {"granularity": "row", "model": "convnet:16-32", "norm": "group"}, "normalised each by itself"),
    ],
)
def test_what_cannot_be_is_one_line(name: str, settings: dict[str, Any], line: str) -> None:
    with pytest.raises(dw.InputError) as caught:
        dw.learner(name, stream().spec, **{"model": "mlp:64-64", **settings})
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_element_masks_go_with_those_who_keep_a_number_for_every_weight() -> None:
    for other in ("ewc", "lwf"):
        finish(dw.learner(f"sparcl+{other}", stream(2, 2).spec, model="mlp:64-64"), stream(2, 2))


def test_the_value_says_what_it_needs() -> None:
    assert SparCL().needs == {"boundaries"}
    assert SparCL(task_free=True).needs == frozenset()
    assert "EWC" in SparCL(granularity="row").refuses
    assert "EWC" not in SparCL().refuses
