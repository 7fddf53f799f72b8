"""The step of the gradient learner against PyTorch by hand, growing heads, scenarios, probes."""

from __future__ import annotations

from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.learners.parts import Loss
from driftway.adapt.state import digest
from driftway.models.networks import build
from numpy.testing import assert_array_equal
from torch.testing import assert_close


def batches(stream: Any, n: int = 8) -> list[Any]:
    return list(dw.rebatch(stream, n))


def tensors(stream: Any, batch: dw.Batch) -> tuple[torch.Tensor, torch.Tensor]:
    notes = stream.spec.notes
    x = torch.tensor(np.asarray(batch.x), dtype=torch.float32).reshape(-1, *stream.spec.shape)
    return (x - notes["mean"][0]) / notes["std"][0], torch.tensor(batch.y)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"lr": 0.05}, lambda w: torch.optim.SGD(w, lr=0.05)),
        (
            {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
            lambda w: torch.optim.SGD(w, lr=0.05, momentum=0.9, weight_decay=0.01),
        ),
        (
            {"lr": 0.01, "optimizer": "adamw", "weight_decay": 0.1},
            lambda w: torch.optim.AdamW(w, lr=0.01, weight_decay=0.1),
        ),
    ],
    ids=["sgd", "momentum", "adamw"],
)
def test_fine_tuning_is_what_one_would_write_by_hand(small_tasks, settings, rule) -> None:
    stream = small_tasks()
    learner: Any = dw.learner("finetune", stream.spec, seed=4, model="convnet:4-6", **settings)
    net = build("convnet:4-6", (1, 4, 4), 6, seed=4).train()
    optimiser = rule(net.parameters())
    for event in batches(stream):
        if isinstance(event, dw.Batch):
            learner.learn(event, learner.predict(event))
            x, y = tensors(stream, event)
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(net(x), y).backward()
            optimiser.step()
    assert_close(dict(learner.net.state_dict()), dict(net.state_dict()), rtol=1e-4, atol=1e-5)


def test_a_growing_head_keeps_old_rows_and_their_momentum_bit_for_bit(small_tasks, teach) -> None:
    stream = small_tasks()
    spec = dw.StreamSpec("open", stream.spec.columns, shape=(1, 4, 4), notes=stream.spec.notes)
    learner: Any = dw.learner("finetune", spec, model="mlp:8", momentum=0.9)
    first, later = batches(stream)[:2], batches(small_tasks())
    teach(learner, first)
    assert learner.net.head.out_features == 2
    slots = learner.optimiser.slots["head.weight"]
    head, velocity = learner.net.head.weight.detach().clone(), slots["momentum"].clone()
    learner._grow(6)
    assert torch.equal(learner.net.head.weight[:2], head)
    assert torch.equal(slots["momentum"][:2], velocity)
    assert not slots["momentum"][2:].any()
    assert learner.net.head.weight[2:].abs().min() > 0
    teach(learner, later)
    assert learner.predict(later[-1]).scores.shape[1] == 6


def test_new_rows_of_a_head_do_not_depend_on_when_they_came() -> None:
    one, other = build("mlp:4", (3,), 2), build("mlp:4", (3,), 2)
    from driftway.models.networks import grow_head

    grow_head(one, 5, seed=9)
    for classes in (3, 4, 5):
        grow_head(other, classes, seed=9)
    assert torch.equal(one.head.weight, other.head.weight)


def test_task_incremental_answers_and_losses_see_the_classes_of_the_experience_alone(small_tasks, teach) -> None:
    stream = small_tasks(scenario="task")
    learner: Any = teach(dw.learner("er", stream.spec, model="mlp:16", memory=30), batches(stream))
    assert "boundaries" in learner.needs
    assert learner.task == 2
    rows = dw.Batch(np.arange(20), stream.spec.experiences[0].x.astype(float), 0.0)
    assert set(learner.predict(rows).output) <= {4, 5}


def test_single_head_loss_leaves_the_other_classes_alone(small_tasks, teach) -> None:
    stream = small_tasks(tasks=1)
    learner: Any = dw.learner("finetune", stream.spec, model="mlp:8", single_head=True)
    before = learner.net.head.weight.detach().clone()
    teach(learner, batches(stream))
    assert torch.equal(before[2:], learner.net.head.weight[2:])
    assert not torch.equal(before[:2], learner.net.head.weight[:2])


def test_joint_and_separate_passes_agree_without_batch_norm_and_differ_with_it(small_tasks, teach) -> None:
    for norm, alike in (("none", True), ("batch", False)):
        nets = []
        for joint in (True, False):
            stream = small_tasks()
            learner: Any = dw.learner(
                "er", stream.spec, model="convnet:4-6", norm=norm, joint=joint, memory=20, lr=0.01
            )
            nets.append(teach(learner, batches(stream)).net.head.weight)
        assert torch.allclose(*nets, rtol=1e-3, atol=1e-5) == alike


def test_the_parts_of_the_gradient_sum_to_the_whole(small_tasks, teach) -> None:
    whole, apart = (
        teach(dw.learner("er", s.spec, model="mlp:8", memory=20, split_gradients=split), batches(s))
        for split in (False, True)
        for s in [small_tasks()]
    )
    assert_close(whole.net.head.weight, apart.net.head.weight, rtol=1e-4, atol=1e-6)
    found = apart.telemetry()
    assert found["gradient_plasticity"] > 0
    assert found["gradient_stability"] > 0
    assert -1 <= found["gradient_cosine"] <= 1


@pytest.mark.parametrize("name", ["ewc", "lwf"])
def test_the_stability_part_is_zero_at_the_first_update_of_an_experience(small_tasks, name) -> None:
    stream = small_tasks()
    learner: Any = dw.learner(name, stream.spec, model="mlp:8", split_gradients=True)
    entered = False
    for event in batches(stream):
        if isinstance(event, dw.Boundary):
            learner.boundary(event)
            entered = True
            continue
        learner.learn(event, learner.predict(event))
        if entered:
            assert learner.telemetry()["gradient_stability"] == pytest.approx(0, abs=1e-6)
            return


def test_clipping_limits_the_norm_of_the_whole_gradient() -> None:
    from driftway.adapt.learners.gradient import clip_gradients

    grads: Any = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]]), "c": None}
    clip_gradients(grads, 1.0)
    assert_close(grads["a"], torch.tensor([0.6, 0.0]))
    assert_close(grads["b"], torch.tensor([[0.8]]))
    clip_gradients(grads, 10.0)
    assert_close(grads["b"], torch.tensor([[0.8]]))


@pytest.mark.parametrize("head_only", [False, True])
def test_a_probe_says_what_predict_says_and_disturbs_nothing(small_tasks, teach, head_only) -> None:
    stream = small_tasks()
    learner: Any = dw.learner("er", stream.spec, model="convnet:4-6", memory=20, head_only=head_only)
    x = stream.spec.experiences[0].x
    ask = learner.probe(x)
    body = digest(dict(learner.net.body.state_dict()))
    for event in batches(stream):
        teach(learner, [event])
        before, random = digest(learner.state()), torch.random.get_rng_state()
        answer = ask().argmax(1)
        assert_array_equal(answer, learner.predict(dw.Batch(np.arange(len(x)), x.astype(float), 0.0)).output)
        assert digest(learner.state()) == before
        assert torch.equal(torch.random.get_rng_state(), random)
    assert (digest(dict(learner.net.body.state_dict())) == body) == head_only


def test_version_moves_with_every_update_and_with_nothing_else(small_tasks) -> None:
    stream = small_tasks()
    learner: Any = dw.learner("finetune", stream.spec, model="mlp:8", passes=3)
    batch = batches(stream)[0]
    assert learner.version() == 0
    learner.predict(batch)
    assert learner.version() == 0
    learner.learn(batch, learner.predict(batch))
    assert learner.version() == 3


def test_predicting_arrays_are_the_network_itself(small_tasks) -> None:
    stream = small_tasks()
    learner: Any = dw.learner("finetune", stream.spec, model="convnet:4")
    arrays = learner.predicting()
    learner.learn(batches(stream)[0], learner.predict(batches(small_tasks())[0]))
    for kept, now in zip(arrays, learner.predicting(), strict=True):
        assert_array_equal(kept, now)


def test_building_a_learner_leaves_the_global_generator_alone(small_tasks) -> None:
    before = torch.random.get_rng_state()
    dw.learner("derpp", small_tasks().spec, model="resnet18:4")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_parts_are_values_and_a_network_may_be_ones_own(small_tasks, teach) -> None:
    stream = small_tasks()
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 5), torch.nn.Tanh())
    net = dw.Network(body, torch.nn.Linear(5, 6))
    learner = dw.GradientLearner(stream.spec, replay=dw.DERpp(20), techniques=[dw.LwF(2.0)], model=net)
    teach(learner, batches(stream))
    assert learner.net is net
    assert dw.ER(memory=7) == dw.ER(memory=7)


def test_a_loss_without_either_half_is_none() -> None:
    one = torch.tensor(1.0)
    assert Loss(None).total() is None
    assert Loss(one).total() is one
    assert Loss(None, one).total() is one
    assert float(Loss(one, one).total()) == 2.0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "settings", "line"),
    [
        ("er+derpp", {}, "one replay policy, not ER and DERpp"),
        ("er+er", {}, "one replay policy"),
        ("ewc+ewc", {}, "EWC is given twice"),
        ("er+logistic", {}, "logistic cannot be combined with"),
        ("er+spacl", {}, "unknown learner 'spacl'"),
        ("er", {"memry": 3}, "did you mean memory?"),
        ("er", {"memory": 0}, "must be at least 1"),
        ("er", {"lr": -0.1}, "lr must be at least 0"),
        ("er", {"model": "mlpp"}, "unknown model 'mlpp'"),
        ("er", {"model": "mlp:a-b"}, "sizes are whole numbers"),
        ("lwf", {"temperature": 0}, "temperature above 0"),
    ],
)
def test_what_cannot_be_put_together_is_one_line(small_tasks, name, settings, line) -> None:
    with pytest.raises(dw.InputError, match=line):
        dw.learner(name, small_tasks().spec, **settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_one_line(small_tasks) -> None:
    with pytest.raises(dw.InputError, match="device cuda: PyTorch finds none"):
        dw.learner("er", small_tasks().spec, device="cuda")


def test_a_convolution_needs_images() -> None:
    table = dw.StreamSpec("t", (dw.Column("a"), dw.Column("b")), classes=("n", "y"))
    with pytest.raises(dw.InputError, match="needs images of shape"):
        dw.learner("er", table, model="convnet")
