"""LoRA, incremental LoRA and O-LoRA on any network: what is frozen, what grows, what is kept bit for bit."""

from __future__ import annotations

from typing import Any

import driftway as dw
import pytest
import torch
from driftway.adapt.state import digest
from driftway.models.lora import LoRALinear, fold
from driftway.models.networks import Network
from torch import Tensor, nn

GROWING = [dw.IncLoRA(lora_rank=3), dw.OLoRA(lora_rank=3, ortho_l2=0.1)]


def learner_for(stream: dw.Stream, techniques: Any = (), replay: Any = None, **settings: Any) -> Any:
    params = dw.GradientLearner.Params(**({"model": "mlp:32-16", "lr": 0.05} | settings))
    return dw.GradientLearner(stream.spec, params, seed=3, replay=replay, techniques=techniques)


def stream_of(small_tasks: Any, tasks: int = 3) -> tuple[dw.Stream, list[Any]]:
    stream = dw.rebatch(small_tasks(tasks), 10)
    return stream, list(stream)


def layers(learner: Any) -> list[LoRALinear]:
    return [layer for layer in learner.net.modules() if isinstance(layer, LoRALinear)]


def frozen_tensors(learner: Any) -> dict[str, Tensor]:
    """Everything that no update may touch."""
    kept = {n: w for n, w in learner.net.named_parameters() if not w.requires_grad}
    return {n: t.detach().clone().view(torch.int32) for n, t in (kept | dict(learner.net.named_buffers())).items()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("technique", [dw.LoRA(), *GROWING], ids=lambda part: type(part).__name__)
def test_what_is_frozen_keeps_every_bit_and_has_no_slot(
    small_tasks: Any, teach: Any, technique: Any, optimizer: Any
) -> None:
    stream, events = stream_of(small_tasks)
    learner = learner_for(stream, [technique], optimizer=optimizer, weight_decay=0.1, momentum=0.9)
    begun = {n: w.detach().clone() for n, w in learner.weights.items()}
    before = frozen_tensors(learner)
    seen = 0
    for event in events:
        if isinstance(event, dw.Boundary):
            teach(learner, [event])
            before = frozen_tensors(learner)
            continue
        teach(learner, [event])
        after = frozen_tensors(learner)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[n], after[n]) for n in before)
        seen += sum(t.numel() > 0 for n, t in after.items() if n.endswith("old_A"))
    assert set(learner.optimiser.slots) == set(learner._trained)
    assert set(learner._trained) == {n for n in learner.weights if "lora" in n or n.startswith("head.")}
    assert all(not torch.equal(learner.weights[n], begun[n]) for n in learner._trained if n in begun)
    assert (seen > 0) is not isinstance(technique, dw.LoRA) or isinstance(technique, dw.IncLoRA | dw.OLoRA)


@pytest.mark.parametrize("technique", GROWING, ids=lambda part: type(part).__name__)
def test_a_new_adapter_per_experience_with_fresh_moments(small_tasks: Any, teach: Any, technique: Any) -> None:
    stream, events = stream_of(small_tasks)
    learner = learner_for(stream, [technique], optimizer="adamw", lr=0.01)
    teach(learner, events[:4])
    (boundary,) = [e for e in events if isinstance(e, dw.Boundary)][:1]
    told = [(layer.lora_A.weight.detach().clone(), layer.lora_B.weight.detach().clone()) for layer in layers(learner)]
    head = learner.optimiser.slots["head.weight"]["m"].clone()
    learner.boundary(boundary)
    for layer, (a, b) in zip(layers(learner), told, strict=True):
        assert torch.equal(layer.old_A, a)
        assert torch.equal(layer.old_B, b)
        assert not torch.equal(layer.lora_A.weight, a)
    assert not [n for n in learner.optimiser.slots if "lora" in n]
    assert torch.equal(learner.optimiser.slots["head.weight"]["m"], head)
    assert learner.telemetry()["adapters"] == 2.0
    other = learner_for(stream, [technique], optimizer="adamw", lr=0.01)
    assert not torch.equal(layers(other)[0].lora_A.weight, layers(learner)[0].lora_A.weight)


def test_the_first_experience_is_that_of_plain_lora(small_tasks: Any, teach: Any) -> None:
    stream, events = stream_of(small_tasks, 1)
    nets = [
        dict(teach(learner_for(stream, [part]), events).net.state_dict())
        for part in (dw.LoRA(), dw.IncLoRA(), dw.OLoRA(ortho=9.0))
    ]
    assert digest(nets[0]) == digest(nets[1]) == digest(nets[2])


def test_o_lora_holds_new_directions_apart_from_old_ones(small_tasks: Any, teach: Any) -> None:
    stream, events = stream_of(small_tasks)
    overlap = []
    for ortho in (0.0, 0.5):
        learner = teach(learner_for(stream, [dw.OLoRA(lora_rank=2, ortho=ortho, lora_dropout=0.0)]), events)
        overlap.append(sum(float((x.old_A @ x.lora_A.weight.t()).detach().abs().sum()) for x in layers(learner)))
    assert overlap[1] < 0.6 * overlap[0]


def test_the_penalty_by_hand(small_tasks: Any) -> None:
    """A_old = (1, 2), A_new = (3, -1): |3 - 2| = 1; norms sqrt(10) and 5."""
    stream, events = stream_of(small_tasks)
    learner = learner_for(
        stream, [dw.OLoRA(lora_rank=1, ortho=2.0, ortho_l2=3.0, lora_layers="body.3")], model="mlp:2-2"
    )
    (layer,) = layers(learner)
    learner.boundary(next(e for e in events if isinstance(e, dw.Boundary)))
    layer.old_A = torch.tensor([[1.0, 2.0]])
    with torch.no_grad():
        layer.lora_A.weight.copy_(torch.tensor([[3.0, -1.0]]))
        layer.lora_B.weight.copy_(torch.tensor([[3.0], [4.0]]))
    penalty = learner.techniques[0].penalty(None)
    assert penalty.item() == pytest.approx(2 * 1 + 3 * (10**0.5 + 5))


@pytest.mark.parametrize("name", ["lora", "inc-lora", "o-lora", "er+inc-lora", "lwf+o-lora", "derpp+lora", "ewc+lora"])
def test_saved_loaded_and_continued(small_tasks: Any, teach: Any, name: str) -> None:
    """Also into a learner that has grown further than the saved one."""
    stream, events = stream_of(small_tasks)
    settings: Any = {"model": "mlp:16-8", "optimizer": "adamw", "lr": 0.01, "lora_rank": 2, "lora_dropout": 0.2}
    learner, other = (dw.learner(name, stream.spec, seed=1, **settings) for _ in range(2))
    teach(learner, events[:7])
    teach(other, events)
    other.load(learner.state())
    assert digest(other.state()) == digest(learner.state())
    teach(learner, events[7:])
    teach(other, events[7:])
    assert digest(other.state()) == digest(learner.state())
    assert learner._trained == other._trained


def test_a_growing_head_stays_frozen_where_it_is_not_to_learn(small_tasks: Any, teach: Any) -> None:
    stream, events = stream_of(small_tasks)
    spec = dw.StreamSpec("open", stream.spec.columns, shape=stream.spec.shape, notes=stream.spec.notes)
    for also, learns in (("", False), ("head.*", True)):
        params = dw.GradientLearner.Params(model="mlp:16-8")
        learner: Any = dw.GradientLearner(spec, params, techniques=[dw.LoRA(train_also=also)])
        teach(learner, [e for e in events if isinstance(e, dw.Batch)])
        assert learner.net.head.out_features == 6
        assert ("head.weight" in learner._trained) is learns


def test_a_pattern_that_names_nothing_to_train_is_said(small_tasks: Any) -> None:
    stream, _ = stream_of(small_tasks)
    with pytest.raises(dw.InputError, match=r"train_also=hat\.\* names no parameter; there are head\.bias, head\.w"):
        dw.learner("lora", stream.spec, model="mlp:16-8", train_also="hat.*")


def test_layers_by_pattern_and_networks_of_ones_own(small_tasks: Any, teach: Any) -> None:
    stream, events = stream_of(small_tasks)
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    net = Network(nn.Sequential(nn.Flatten(1), nn.Unflatten(1, (1, 16)), encoder, nn.Flatten()), nn.Linear(16, 6))
    learner = dw.GradientLearner(
        stream.spec, techniques=[dw.LoRA(lora_layers="*.linear1", lora_dropout=0.0)], model=net
    )
    teach(learner, events)
    assert [n for n, m in net.named_modules() if isinstance(m, LoRALinear)] == ["body.2.linear1"]
    x = torch.randn(5, 16)
    with torch.no_grad():
        quick, plain = net(x), net.train()(x)
    assert torch.allclose(quick, plain, atol=1e-5), "PyTorch's shortcut for evaluation passes adapters by"
    before = net.eval()(x)
    fold(net)
    assert torch.allclose(net(x), before, atol=1e-5)


@pytest.mark.parametrize(
    ("techniques", "settings", "line"),
    [
        ([dw.LoRA(lora_layers="encoder.*")], {}, r"^lora_layers: 'encoder.\*' names no linear layer: there are body.1"),
        ([dw.LoRA()], {"head_only": True}, "head_only trains the head alone"),
        ([dw.LoRA(), dw.OLoRA()], {}, "LoRA cannot be combined with OLoRA: both put adapters"),
        ([dw.LoRA(), dw.SparCL()], {}, "LoRA cannot be combined with SparCL"),
        ([dw.EWC(), dw.IncLoRA()], {}, "IncLoRA cannot be combined with EWC"),
        ([dw.LoRA()], {"model": "convnet:4", "norm": "none"}, "names no linear layer: there are head"),
    ],
)
def test_what_cannot_be_is_one_line(small_tasks: Any, techniques: Any, settings: Any, line: str) -> None:
    with pytest.raises(dw.InputError, match=line):
        learner_for(small_tasks(2), techniques, **settings)


@pytest.mark.parametrize("values", [{"lora_rank": 0}, {"lora_alpha": 0.0}, {"lora_dropout": 1.0}])
def test_values_out_of_range(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        dw.LoRA(**values)
    with pytest.raises(ValueError, match="ortho and ortho_l2"):
        dw.OLoRA(ortho=-1.0)


@pytest.mark.parametrize("name", ["lora", "moe-lora"])
def test_nothing_is_dropped_from_answers_before_the_first_update(name: str) -> None:
    spec = dw.stream("split-digits").spec
    dropout = {"lora_dropout": 0.5} if name == "lora" else {"expert_dropout": 0.5}
    learner: Any = dw.learner(name, spec, model="mlp:16", **dropout)
    assert not any(module.training for module in learner.net.modules())
