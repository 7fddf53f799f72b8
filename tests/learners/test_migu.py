"""MIGU: what strict, reference and lazy masks move and what they leave, layers, controls, company."""

from __future__ import annotations

import copy
from typing import Any

import driftway as dw
import pytest
import torch
from driftway.adapt.learners.migu import catch_up, masked_gradient
from driftway.adapt.learners.parts import Active, Rows
from driftway.adapt.learners.row_overlap import RowOverlap
from driftway.adapt.state import digest
from driftway.models.networks import Network
from driftway.models.optimisers import SGD, AdamW, Only, RowSet
from torch import Tensor, nn


def learner_for(stream: dw.Stream, techniques: Any = (), replay: Any = None, **settings: Any) -> dw.GradientLearner:
    params = dw.GradientLearner.Params(**({"model": "mlp:32-16", "lr": 0.05} | settings))
    return dw.GradientLearner(stream.spec, params, seed=3, replay=replay, techniques=techniques)


def bits(tensor: Tensor) -> Tensor:
    """What lies in memory."""
    return tensor.detach().clone().view(torch.int32)


class _Watch(Active):
    """Compares every update's outcome with the rows it was held to."""

    def __init__(self, learner: dw.GradientLearner) -> None:
        self.learner, self.seen = learner, 0
        self.only: dict[str, Only] = {}
        self.before: dict[str, dict[str, Tensor]] = {}

    def gradients(self, _grads: dict[str, Tensor | None], only: dict[str, Only]) -> None:
        self.only = dict(only)
        self.before = {name: self._tensors(name) for name in only}

    def after_step(self, _now: Rows) -> None:
        for name, some in self.only.items():
            assert isinstance(some, RowSet)
            mask = torch.ones(len(self.learner.weights[name]), dtype=torch.bool)
            mask[some.index] = False
            for key, old in self.before[name].items():
                new = self._tensors(name)[key]
                assert torch.equal(old[mask], new[mask]), f"{key} of {name}"
            self.seen += int(not torch.equal(self.before[name]["weight"], self._tensors(name)["weight"]))

    def _tensors(self, name: str) -> dict[str, Tensor]:
        slots = self.learner.optimiser.slots.get(name, {})
        weight = self.learner.weights[name]
        return {"weight": bits(weight)} | {k: bits(t) for k, t in slots.items() if t.shape[:1] == weight.shape[:1]}


class Watch:
    """A technique that only looks."""

    needs: frozenset[str] = frozenset()
    refuses: dict[str, str] = {}  # noqa: RUF012 - the attribute that techniques have

    def start(self, learner: dw.GradientLearner) -> Active:
        return _Watch(learner)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw", "weight_decay": 0.1},
        {"momentum": 0.9, "weight_decay": 0.1},
        {"optimizer": "adamw", "weight_decay": 0.1, "clip": 0.1},
        {"optimizer": "adamw", "split_gradients": True},
        {"optimizer": "adamw", "model": "convnet:8-8", "weight_decay": 0.1},
        {"momentum": 0.9, "model": "resnet18:4"},
    ],
)
def test_strict_masked_rows_keep_every_bit(small_tasks: Any, teach: Any, settings: dict[str, Any]) -> None:
    stream = dw.rebatch(small_tasks(2, 20 if settings.get("model") == "resnet18:4" else 40), 10)
    events = list(stream)
    learner = learner_for(stream, [dw.MIGU(), Watch()], **settings)
    teach(learner, events)
    watch: Any = learner.techniques[1]
    assert watch.seen > 0
    assert all(name.startswith("body.") for name in watch.only)
    assert 0.3 <= learner.telemetry()["active_rows"] < 0.4


@pytest.mark.parametrize("mode", ["strict", "reference", "lazy"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_ratio_zero_is_no_migu_to_the_bit(small_tasks: Any, teach: Any, mode: Any, optimizer: Any) -> None:
    stream = dw.rebatch(small_tasks(2, 100), 10)
    events = list(stream)
    more: Any = {"optimizer": optimizer, "weight_decay": 0.01, "momentum": 0.9}
    plain = teach(learner_for(stream, **more), events)
    masked = teach(learner_for(stream, [dw.MIGU(mask_ratio=0.0, migu_mode=mode, migu_from=0)], **more), events)
    assert masked.updates >= 20
    assert masked.telemetry()["active_rows"] == 1.0
    for key in ("net", "optimiser"):
        assert digest(plain.state()[key]) == digest(masked.state()[key])


def test_modes_agree_without_momentum_and_decay(small_tasks: Any, teach: Any) -> None:
    """Plain SGD has nothing that moves a masked row, so all modes are one, EWC's dense gradient included."""
    stream = dw.rebatch(small_tasks(3, 40), 10)
    events = list(stream)
    nets = []
    for mode in ("strict", "reference", "lazy"):
        parts = [dw.EWC(10.0), dw.MIGU(migu_mode=mode, migu_layers="*", migu_bias=True)]
        nets.append(teach(learner_for(stream, parts), events).weights)
    for name, weight in nets[0].items():
        for other in nets[1:]:
            torch.testing.assert_close(weight, other[name], rtol=1e-4, atol=1e-6)


def test_reference_rows_drift_on_momentum() -> None:
    """One update with gradient 1, one masked, rate 0.01: the masked row moves by 0.0067, two thirds of a step."""
    weight, optimiser = {"w": torch.zeros(2, 1)}, AdamW(0.01)
    moves = []
    for index in ([0, 1], [1]):
        before = weight["w"].clone()
        optimiser.step(weight, {"w": masked_gradient(torch.ones(2, 1), torch.tensor(index))}, {})
        moves.append((weight["w"] - before)[0].item())
    assert moves == pytest.approx([-0.01, -0.0067], abs=2e-5)


def test_no_mask_before_the_second_experience(small_tasks: Any, teach: Any) -> None:
    stream = dw.rebatch(small_tasks(1, 60), 10)
    events = list(stream)
    plain = teach(learner_for(stream, optimizer="adamw"), events)
    later = teach(learner_for(stream, [dw.MIGU(migu_from=1)], optimizer="adamw"), events)
    at_once = teach(learner_for(stream, [dw.MIGU()], optimizer="adamw"), events)
    assert digest(plain.state()["net"]) == digest(later.state()["net"]) != digest(at_once.state()["net"])
    assert later.telemetry()["active_rows"] == 1.0
    assert at_once.telemetry()["active_rows"] < 0.4, "a stream without boundaries is masked from the start"
    assert dw.MIGU().needs == frozenset()
    assert dw.MIGU(migu_from=2).needs == {"boundaries"}
    assert "boundaries" in learner_for(small_tasks(2), [dw.MIGU()]).needs


@pytest.mark.parametrize("select", ["top", "random", "bottom"])
def test_controls_choose_other_rows_of_the_same_number(small_tasks: Any, teach: Any, select: Any) -> None:
    stream = dw.rebatch(small_tasks(2), 10)
    events = list(stream)
    before = torch.get_rng_state()
    learners = [teach(learner_for(stream, [dw.MIGU(migu_select=select)]), events) for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    assert digest(learners[0].state()) == digest(learners[1].state())
    assert learners[0].telemetry()["active_rows"] == (10 + 5) / (32 + 16)


def test_the_mask_does_not_depend_on_labels(small_tasks: Any) -> None:
    (batch,) = list(dw.rebatch(small_tasks(1, 10), 10))
    masks = []
    for y in (batch.y, 1 - batch.y):
        learner = learner_for(small_tasks(1, 10), [dw.MIGU(migu_layers="*"), Watch()])
        told = dw.Batch(batch.ids, batch.x, batch.time, y)
        learner.learn(told, learner.predict(told))
        watch: Any = learner.techniques[1]
        masks.append({name: some.index.tolist() for name, some in watch.only.items()})
    assert masks[0] == masks[1]
    assert len(masks[0]) == 3


def test_looking_changes_no_score(small_tasks: Any, teach: Any) -> None:
    """Passes in evaluation mode, in between and with gradients on, are no part of a step."""
    stream = dw.rebatch(small_tasks(2), 10)
    events = list(stream)
    quiet, watched = (learner_for(stream, [dw.MIGU(migu_from=0)], optimizer="adamw") for _ in range(2))
    teach(quiet, events)
    x = torch.randn(5, 1, 4, 4)
    probe = watched.probe(stream.spec.experiences[0].x)
    for event in events:
        watched.net(x * 100)
        probe()
        teach(watched, [event])
        watched.net.train()
        watched.net(x * 100)
        watched.net.eval()
    assert digest(quiet.state()) == digest(watched.state())


def test_a_copied_network_has_slots_of_its_own(small_tasks: Any, teach: Any) -> None:
    """LwF copies the network for its teacher; what the copy does must not reach the layers of the original."""
    stream = dw.rebatch(small_tasks(2), 10)
    events = list(stream)
    learner = learner_for(stream, [dw.LwF(1.0), dw.MIGU()])
    teach(learner, events)
    twin = copy.deepcopy(learner.net)
    with torch.no_grad():
        twin.body[1].weight.zero_()
    x = torch.ones(2, 1, 4, 4)
    assert not torch.equal(twin(x), learner.net(x))
    assert twin.body[1].forward.layer is twin.body[1]
    assert twin.body[1].forward.plain.__self__ is twin.body[1]


def test_layers_by_pattern(small_tasks: Any, teach: Any) -> None:
    stream = dw.rebatch(small_tasks(2), 10)
    events = list(stream)
    chosen = {
        "body.*": {"body.1.weight", "body.3.weight"},
        "*": {"body.1.weight", "body.3.weight", "head.weight"},
        "body.3, head": {"body.3.weight", "head.weight"},
    }
    for pattern, names in chosen.items():
        learner = learner_for(stream, [dw.MIGU(migu_layers=pattern), Watch()], optimizer="adamw")
        teach(learner, events)
        watch: Any = learner.techniques[1]
        assert set(watch.only) == names
    with pytest.raises(dw.InputError, match=r"names no linear or convolution layer: there are body.1, body.3, head"):
        learner_for(stream, [dw.MIGU(migu_layers="encoder.*")])


def test_biases_on_request(small_tasks: Any, teach: Any) -> None:
    stream = dw.rebatch(small_tasks(2), 10)
    events = list(stream)
    for bias in (False, True):
        learner = learner_for(stream, [dw.MIGU(migu_bias=bias), Watch()], optimizer="adamw", weight_decay=0.1)
        teach(learner, events)
        watch: Any = learner.techniques[1]
        assert ("body.1.bias" in watch.only) is bias


def test_layers_the_fast_path_does_not_know(small_tasks: Any, teach: Any) -> None:
    """Groups, padding by name and by reflection take the dense gradient; the masks hold all the same."""
    body = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding="same"),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Flatten(),
    )
    stream = dw.rebatch(small_tasks(2), 10)
    events = list(stream)
    net = Network(body, nn.Linear(32, 4))
    params = dw.GradientLearner.Params(optimizer="adamw", lr=0.01)
    learner = dw.GradientLearner(stream.spec, params, techniques=[dw.MIGU(), Watch()], model=net)
    teach(learner, events)
    watch: Any = learner.techniques[1]
    assert set(watch.only) == {"body.0.weight", "body.1.weight", "body.2.weight"}


def test_lazy_makes_up_for_decay() -> None:
    """Three updates missed: what a gradient of 0 would have done to moments and by decay, momentum's own move aside."""
    index, missed = torch.tensor([1]), torch.tensor([3])
    weight, optimiser = {"w": torch.ones(2, 2)}, AdamW(0.1, weight_decay=0.5)
    for _ in range(2):
        optimiser.step(weight, {"w": torch.ones(2, 2)}, {"w": RowSet(torch.tensor([0, 1]), compact=True)})
    before = {k: t.clone() for k, t in optimiser.slots["w"].items()} | {"w": weight["w"].clone()}
    catch_up(optimiser, "w", weight["w"], index, missed)
    after = optimiser.slots["w"] | {"w": weight["w"]}
    for key, factor in {"m": 0.9, "v": 0.999, "w": 0.95}.items():
        torch.testing.assert_close(after[key][1], before[key][1] * factor**3)
        assert torch.equal(after[key][0], before[key][0])
    assert after["t"].tolist() == [2.0, 5.0]
    plain = SGD(0.1, momentum=0.5, weight_decay=0.5)
    plain.slots["w"] = {"momentum": torch.ones(2, 2)}
    catch_up(plain, "w", weight["w"], index, missed)
    assert plain.slots["w"]["momentum"].tolist() == [[1.0, 1.0], [0.125, 0.125]]


def test_lazy_moments_are_those_of_an_ordinary_optimiser(small_tasks: Any, teach: Any) -> None:
    """Without decay the moments of rows that were just updated are those the masked gradients give (reference)."""
    stream = dw.rebatch(small_tasks(2, 40), 10)
    events = list(stream)
    first: Any = {"optimizer": "adamw", "lr": 1e-7, "model": "mlp:16"}
    lazy = teach(learner_for(stream, [dw.MIGU(migu_mode="lazy"), Watch()], **first), events)
    reference = teach(learner_for(stream, [dw.MIGU(migu_mode="reference")], **first), events)
    name = "body.1.weight"
    watch: Any = lazy.techniques[1]
    rows = watch.only[name].index
    for key in ("m", "v"):
        a, b = (learner.optimiser.slots[name][key][rows] for learner in (lazy, reference))
        torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-6)
    assert torch.equal(lazy.optimiser.slots[name]["t"][rows], reference.optimiser.slots[name]["t"].expand(len(rows)))


def test_clipping_counts_the_active_rows_only(small_tasks: Any, teach: Any) -> None:
    """Plain SGD with rate 1 under a limit moves the network by just that limit."""
    stream = dw.rebatch(small_tasks(1, 10), 10)
    events = list(stream)
    learner = learner_for(stream, [dw.MIGU()], lr=1.0, clip=1e-3)
    before = [w.detach().clone() for w in learner.weights.values()]
    teach(learner, events)
    moved = torch.cat([(w.detach() - b).flatten() for w, b in zip(learner.weights.values(), before)])
    assert learner.updates == 1
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_a_score_that_is_not_finite_masks_nothing(small_tasks: Any) -> None:
    stream = dw.rebatch(small_tasks(1, 10), 10)
    events = list(stream)
    learner = learner_for(stream, [dw.MIGU(), Watch()])
    with torch.no_grad():
        learner.weights["body.1.weight"][0, 0] = torch.inf
    (event,) = events
    learner.learn(event, learner.predict(event))
    watch: Any = learner.techniques[1]
    assert len(watch.only["body.1.weight"].index) == 32
    assert learner.telemetry()["rows_not_finite"] == 2.0


@pytest.mark.parametrize(
    "values", [{"mask_ratio": 1.0}, {"mask_ratio": -0.1}, {"migu_block_rows": 0}, {"migu_from": -2}]
)
def test_values_out_of_range(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        dw.MIGU(**values)


def test_a_gem_is_refused(small_tasks: Any) -> None:
    with pytest.raises(dw.InputError, match="MIGU cannot be combined with AGEM: A-GEM projects whole gradients"):
        learner_for(small_tasks(2), [dw.MIGU()], replay=dw.AGEM(20))


def test_overlap_of_the_rows_of_experiences() -> None:
    """Counted by hand: layers of 4 rows, ratio .5, top sets {0, 1} and {1, 2}, and {0, 3} twice: (.5 + 1) / 2."""
    overlap = RowOverlap(0.5)
    for experience, rows in enumerate(([0, 1], [2, 1, 1])):
        for row in rows:
            overlap.count("a", experience, torch.tensor([row]), 4)
        overlap.count("b", experience, torch.tensor([0, 3]), 4)
    assert overlap.overlap() == [[1.0, 0.75], [0.75, 1.0]]
    assert overlap.facts()["rows"] == {"layers": ["a", "b"], "overlap": overlap.overlap(), "expected": 0.5}
    overlap.count("a", 3, torch.tensor([0]), 4)
    assert overlap.overlap()[2] == [None] * 4
    assert not overlap.due(32)


def test_a_run_tells_the_overlap_of_all_its_experiences(small_tasks: Any, teach: Any) -> None:
    """Of the first one too, which is watched and not masked."""
    stream = dw.rebatch(small_tasks(3, 100), 10)
    learner = teach(learner_for(stream, [dw.MIGU()]), list(stream))
    rows = learner.facts()["rows"]
    assert rows["layers"] == ["body.1", "body.3"]
    shares = torch.tensor(rows["overlap"])
    assert shares.shape == (3, 3)
    assert shares.diagonal().eq(1).all()
    assert shares.allclose(shares.t())
    assert rows["expected"] == pytest.approx((10 / 32 + 5 / 16) / 2, abs=1e-4)
    assert not learner_for(stream, [dw.MIGU(mask_ratio=0.0)]).facts()
