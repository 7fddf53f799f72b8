"""Test-time adaptation: steps equal plain loops written from the methods' equations; what all recipes promise."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
import torch
from driftway.adapt.learners import LEARNERS
from driftway.adapt.learners.test_time import TestTimeLearner
from driftway.adapt.learners.test_time_parts import (
    Confident,
    Descent,
    Direction,
    Entropy,
    Novel,
    Parts,
    Recovery,
    Rows,
    SoftCrossEntropy,
    WeightedEntropy,
    entropy,
)
from driftway.adapt.learners.test_time_recipes import (
    EATA,
    RSGS,
    SAR,
    BatchNormAdapt,
    CoTTA,
    Mixture,
    RoTTA,
    Source,
    Tent,
)
from driftway.adapt.loop import Loop
from driftway.adapt.source_model import Training, source_model
from driftway.adapt.state import all_finite, digest, join, split
from driftway.models.adaptive_norm import AdaptiveNorm
from driftway.models.inputs import Pixels
from driftway.models.networks import Network, build
from torch import Tensor, nn

CLASSES, RATE = 10, 0.01
RECIPES: list[Any] = [
    Source(),
    BatchNormAdapt(),
    Tent(lr=RATE),
    Tent(optimizer="sgd", lr=RATE),
    EATA(lr=RATE, like=0.6),
    SAR(lr=RATE),
    RSGS(lr=RATE, rho=0.5),
    CoTTA(views=3),
    RoTTA(lr=RATE, memory=20, every=16),
    Mixture(lr=RATE, filter="confident", statistics="running", rho=0.1, teacher=0.9, augment=True, restore=0.1),
    Mixture(objective="soft-cross-entropy", teacher=0.9, views=8, memory=24, every=8, scope="body.*"),
    Mixture(lr=RATE, objective="weighted-entropy", filter="by-group", optimizer="adam", beta=3),
]
moving = pytest.mark.parametrize("recipe", RECIPES[2:], ids=lambda r: type(r).__name__)
every = pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: type(r).__name__)


@pytest.fixture(scope="module")
def stream() -> Any:
    return dw.stream("digits-c", rows=64, kinds=("contrast", "gaussian_noise"), severity=3)


@pytest.fixture(scope="module")
def batches(stream: Any) -> list[dw.Batch]:
    from driftway.streams import concatenate

    whole = concatenate([e for e in stream if isinstance(e, dw.Batch)])
    return [whole.rows(slice(at, at + 32)) for at in range(0, 128, 32)]


@pytest.fixture(scope="module")
def net(stream: Any) -> Network:
    inputs = Pixels(stream.spec.shape, stream.spec.notes["mean"], stream.spec.notes["std"])
    return source_model(stream.spec, inputs, Training("convnet:8-16", epochs=12), keep=False, progress=lambda _: None)


def learner(stream: Any, net: Network, recipe: Any, **options: Any) -> TestTimeLearner:
    return TestTimeLearner(stream.spec, recipe, model=copy.deepcopy(net), **options)


def feed(one: dw.Learner, batches: list[dw.Batch]) -> list[dw.Prediction]:
    """Predict and adapt, as the loop does."""
    answers = []
    for batch in batches:
        answers.append(one.predict(batch))
        one.adapt(batch, answers[-1])
    return answers


# --- against plain loops ----------------------------------------------------------------------------------------


class Plain:
    """What the published codes do: batch norms in training mode without running statistics, a torch optimiser."""

    def __init__(self, net: Network) -> None:
        self.net = copy.deepcopy(net).train().requires_grad_(False)
        self.params: list[Tensor] = []
        for m in self.net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.track_running_stats, m.running_mean, m.running_var = False, None, None
                self.params += [m.weight.requires_grad_(True), m.bias.requires_grad_(True)]
        self.start = [p.detach().clone() for p in self.params]

    def entropies(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p = self.net(x).softmax(1)
        return -(p * p.log()).sum(1), p

    def equals(self, one: TestTimeLearner) -> None:
        for mine, plain in zip(one.moving.values(), self.params, strict=True):
            torch.testing.assert_close(mine.detach(), plain.detach(), rtol=0, atol=1e-6)
        assert any(not torch.equal(a, b) for a, b in zip(self.params, self.start, strict=True))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_tent_equals_a_plain_loop(stream: Any, net: Network, batches: list[dw.Batch], optimizer: Any) -> None:
    one, plain = learner(stream, net, Tent(optimizer=optimizer, lr=RATE)), Plain(net)
    sgd, adam = torch.optim.SGD(plain.params, RATE, momentum=0.9), torch.optim.Adam(plain.params, RATE)
    for batch in batches:
        feed(one, [batch])
        e, _ = plain.entropies(one._tensor(batch))
        e.mean(0).backward()
        stepper = sgd if optimizer == "sgd" else adam
        stepper.step()
        stepper.zero_grad()
        plain.equals(one)


def test_eata_equals_a_plain_loop(stream: Any, net: Network, batches: list[dw.Batch]) -> None:
    one, plain = learner(stream, net, EATA(lr=RATE, like=0.3, beta=0)), Plain(net)
    optimiser = torch.optim.SGD(plain.params, RATE, momentum=0.9)
    margin, mean = 0.4 * math.log(CLASSES), None
    dropped = 0
    for batch in batches:
        feed(one, [batch])
        e, p = plain.entropies(one._tensor(batch))
        chosen = (e < margin).nonzero()[:, 0]
        if mean is not None:
            cosine = (p[chosen] @ mean) / (p[chosen].norm(dim=1) * mean.norm())
            dropped += int((cosine.abs() > 0.3).sum())
            chosen = chosen[cosine.abs() < 0.3]
        if len(chosen) == 0:
            continue
        now = p[chosen].detach().mean(0)
        mean = now if mean is None else 0.9 * mean + 0.1 * now
        weight = 1 / torch.exp(e[chosen].detach() - margin)
        (weight * e[chosen]).mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        plain.equals(one)
    assert dropped
    assert one.mean_softmax is not None
    torch.testing.assert_close(one.mean_softmax, mean)


@pytest.mark.parametrize("recover", [0.45, 0.0])
def test_sar_equals_a_plain_loop(stream: Any, net: Network, batches: list[dw.Batch], recover: float) -> None:
    one, plain = learner(stream, net, SAR(lr=RATE, rho=0.5, recover=recover)), Plain(net)
    optimiser = torch.optim.SGD(plain.params, RATE, momentum=0.9)
    margin, ema, refused = 0.4 * math.log(CLASSES), None, 0
    for batch in batches:
        feed(one, [batch])
        x = one._tensor(batch)
        e, _ = plain.entropies(x)
        first = (e < margin).nonzero()[:, 0]
        e[first].mean(0).backward()
        norm = torch.sqrt(sum((p.grad.square().sum() for p in plain.params if p.grad is not None), torch.zeros(())))
        kept = [p.detach().clone() for p in plain.params]
        with torch.no_grad():
            for p in plain.params:
                assert p.grad is not None
                p.add_(p.grad * (0.5 / (norm + 1e-12)))
        optimiser.zero_grad()
        e = plain.entropies(x)[0][first]
        second = e < margin
        refused += int((~second).sum())
        loss = e[second].mean(0)
        loss.backward()
        with torch.no_grad():
            for p, old in zip(plain.params, kept, strict=True):
                p.copy_(old)
        optimiser.step()
        optimiser.zero_grad()
        ema = loss.item() if ema is None else 0.9 * ema + 0.1 * loss.item()
        if ema < recover:
            with torch.no_grad():
                for p, old in zip(plain.params, plain.start, strict=True):
                    p.copy_(old)
            optimiser = torch.optim.SGD(plain.params, RATE, momentum=0.9)
            ema = None
        else:
            plain.equals(one)
        for mine, p in zip(one.moving.values(), plain.params, strict=True):
            torch.testing.assert_close(mine.detach(), p.detach(), rtol=0, atol=1e-6)
        assert (one.mean_loss is None) == (ema is None)
    assert refused
    assert bool(one.telemetry()["resets"]) == bool(recover)


def weights(one: TestTimeLearner) -> str:
    """Digest of all that a step changes."""
    assert one.optimiser is not None
    return digest([{n: w.detach() for n, w in one.moving.items()}, one.optimiser.state()])


def test_rsgs_is_sar_without_alpha_and_tent_without_ascent(stream: Any, net: Network, batches: list[dw.Batch]) -> None:
    sgd = Descent("sgd", RATE)
    sar = learner(stream, net, SAR(lr=RATE, rho=0.5, recover=0))
    rsgs = learner(stream, net, RSGS(lr=RATE, rho=0.5, alpha=0, refilter=True, clip=0, recover=0))
    tent = learner(stream, net, Tent(optimizer="sgd", lr=RATE))
    still = learner(stream, net, RSGS(lr=RATE, rho=0, e_frac=math.inf, recover=0))
    gapped = learner(stream, net, None, parts=Parts(filter=Confident(), direction=Direction(0.5, 0.4), descent=sgd))
    for batch in batches:
        for one in (sar, rsgs, tent, still, gapped):
            feed(one, [batch])
        assert weights(rsgs) == weights(sar)
        assert weights(still) == weights(tent)
    assert len({weights(one) for one in (rsgs, tent, gapped)}) == 3


# --- hand examples of the method note ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("z", "h", "slope"), [(0.0, 0.6931472, 0.0), (1.0, 0.5822031, -0.1966119), (2.0, 0.3653339, -0.2099872)]
)
def test_entropy_and_its_slope(z: float, h: float, slope: float) -> None:
    logits = torch.tensor([[z, 0.0]], dtype=torch.float64)
    rows = Entropy().rows(logits)
    assert rows.value.item() == pytest.approx(h, abs=1e-7)
    assert float(rows.slope[0, 0]) == pytest.approx(slope, abs=1e-7)
    torch.testing.assert_close(rows.value, entropy(logits))


@pytest.mark.parametrize("objective", [Entropy(), WeightedEntropy(), SoftCrossEntropy()])
def test_slopes_are_those_of_autograd(objective: Any) -> None:
    draw = torch.Generator().manual_seed(3)
    z = (3 * torch.randn(5, 4, generator=draw, dtype=torch.float64)).requires_grad_(True)
    t = torch.softmax(torch.randn(5, 4, generator=draw, dtype=torch.float64), 1)
    rows = objective.rows(z, t)
    value = rows.value
    if isinstance(objective, WeightedEntropy):
        value = torch.exp(0.4 * math.log(4) - entropy(z).detach()) * entropy(z)
        torch.testing.assert_close(rows.value, value)
    (found,) = torch.autograd.grad(value.sum(), z)
    torch.testing.assert_close(rows.slope, found, rtol=0, atol=1e-12)
    torch.testing.assert_close(rows.doubt, entropy(z))
    assert rows.most == math.log(4)


def test_the_threshold_follows_the_classes() -> None:
    keep = Confident(0.4)
    for classes, edge in ((10, 0.9210340), (6, 0.7167038), (2, 0.2772589)):
        doubt = torch.tensor([edge - 1e-6, edge + 1e-6], dtype=torch.float64)
        assert keep.again(Rows(doubt, doubt, doubt, math.log(classes))).tolist() == [True, False]
    z = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert keep.choose(z, Entropy().rows(z), None)[0].tolist() == [False, True]
    assert float(entropy(z)[1]) == pytest.approx(0.1908650, abs=1e-6)


def test_redundant_rows_and_the_running_mean() -> None:
    z = torch.tensor([[8.0, 0, 0], [0, 8.0, 0]])
    p = z.softmax(1)
    mask, mean = Novel().choose(z[:1], Entropy().rows(z[:1]), None)
    assert mask.tolist() == [True]
    mask, mean = Novel().choose(z, Entropy().rows(z), mean)
    assert mask.tolist() == [False, True]
    torch.testing.assert_close(mean, 0.9 * p[0] + 0.1 * p[1])


def test_recovery_goes_back_bit_for_bit(stream: Any, net: Network, batches: list[dw.Batch]) -> None:
    rule = Recovery(0.2, by_classes=True)
    assert rule.threshold(1000) == pytest.approx(0.2)
    assert rule.follow(None, 0.7) == 0.7
    assert rule.follow(0.7, 0.2) == pytest.approx(0.65)
    one = learner(stream, net, RSGS(lr=RATE, recover=0))
    feed(one, batches[:2])
    moved = {n: w.detach().clone() for n, w in one.moving.items()}
    assert any(not torch.equal(moved[n], one.source[n]) for n in moved)
    one.parts = RSGS(lr=RATE, recover=1e6).parts()
    feed(one, batches[2:3])
    assert all(torch.equal(w, one.source[n]) for n, w in one.moving.items())
    assert one.optimiser is not None
    assert one.optimiser.slots == {}
    assert one.mean_loss is None
    assert one.telemetry()["resets"] == 1


def test_rates_and_alpha_follow_the_rows() -> None:
    sar, rsgs = SAR().parts(), RSGS().parts()
    assert sar.descent is not None
    assert rsgs.descent is not None
    assert [sar.descent.rate(n) for n in (64, 32, 16, 1)] == [2.5e-4, 2.5e-4, 1.25e-4, 1.5625e-5]
    assert [rsgs.descent.rate(n) for n in (64, 16, 1)] == [1e-3, 1e-3, 6.25e-5]
    assert [rsgs.direction.alpha_for(n) for n in (64, 16, 15)] == [0.4, 0.4, 0.1]


# --- what every recipe promises ---------------------------------------------------------------------------------


@every
def test_only_what_may_move_gets_a_gradient(stream: Any, net: Network, batches: list[dw.Batch], recipe: Any) -> None:
    one = learner(stream, net, recipe)
    trained = {n for n, w in one.net.named_parameters() if w.requires_grad}
    norms = {f"body.{i}" for i in (1, 5)}
    assert norms == {n for n, m in one.net.named_modules() if isinstance(m, AdaptiveNorm)}
    names = {f"{n}.{kind}" for n in norms for kind in ("weight", "bias")}
    if one.parts.scope == "affine":
        assert trained == (names if one.parts.descent else set())
    assert trained == set(one.moving)
    rest = {n: w.clone() for n, w in one.net.state_dict().items() if n not in trained}
    feed(one, batches)
    assert all(torch.equal(one.net.state_dict()[n], w) for n, w in rest.items())


@every
def test_answers_are_those_before_the_step(stream: Any, net: Network, batches: list[dw.Batch], recipe: Any) -> None:
    one, other = learner(stream, net, recipe), learner(stream, net, recipe)
    still = learner(stream, net, replace(recipe, lr=0.0) if hasattr(recipe, "lr") else recipe)
    for mine, same in zip(feed(one, batches), feed(other, batches), strict=True):
        np.testing.assert_array_equal(mine.scores, same.scores)
        assert mine.scores is not None
        np.testing.assert_allclose(mine.scores.sum(1), 1)
    assert digest(one.state()) == digest(other.state())
    first = learner(stream, net, recipe).predict(batches[0])
    np.testing.assert_array_equal(first.scores, feed(still, batches[:1])[0].scores)
    before = digest(one.state())
    probed, scores = one.probe(batches[0].x)(), one.predict(batches[0]).scores  # type: ignore[arg-type]
    np.testing.assert_allclose(probed, scores, rtol=0, atol=1e-5)  # passes may be computed another way
    assert digest(one.state()) == before


@moving
def test_one_pass_or_two_make_the_same_step(stream: Any, net: Network, batches: list[dw.Batch], recipe: Any) -> None:
    one, other = learner(stream, net, recipe), learner(stream, net, recipe)
    for batch in batches:
        feed(one, [batch])
        answer = other.predict(batch)
        other.predict(batches[0].rows(slice(0, 3)))
        other.adapt(batch, answer)
    assert digest(one.state()) == digest(other.state())


@every
@pytest.mark.parametrize("at", [0, 2])
def test_saved_loaded_and_continued(stream: Any, net: Network, batches: list[dw.Batch], recipe: Any, at: int) -> None:
    straight, restored = learner(stream, net, recipe), learner(stream, build("convnet:8-16", (1, 8, 8), 10), recipe)
    feed(straight, batches[:at])
    feed(restored, batches[::-1])
    assert all_finite(straight.state()) is None
    skeleton, arrays = split(straight.state())
    restored.load(join(json.loads(json.dumps(skeleton)), {k: np.array(v) for k, v in arrays.items()}))
    kept = digest(restored.state())
    assert kept == digest(straight.state())
    feed(straight, batches[at:])
    assert digest(restored.state()) == kept
    feed(restored, batches[at:])
    assert digest(restored.state()) == digest(straight.state())


@pytest.mark.parametrize("recipe", [r for r in RECIPES if hasattr(r, "e_frac")][:4], ids=lambda r: type(r).__name__)
def test_all_filtered_leaves_everything(stream: Any, net: Network, batches: list[dw.Batch], recipe: Any) -> None:
    one = learner(stream, net, recipe)
    feed(one, batches[:2])
    one.parts = type(recipe)(**{**vars(recipe), "e_frac": 0.0}).parts()
    before, skipped = weights(one), one.telemetry()["skipped"]
    answer = feed(one, batches[2:3])[0]
    assert answer.output.shape == (32,)
    assert weights(one) == before
    assert one.telemetry()["skipped"] == skipped + 1


@every
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30, 0.0])
def test_garbage_leaves_finite_parameters(
    stream: Any, net: Network, batches: list[dw.Batch], recipe: Any, value: float
) -> None:
    one = learner(stream, net, recipe)
    feed(one, batches[:1])
    for rows in (32, 1):
        bad = dw.Batch(np.arange(rows), np.full((rows, 64), value), 0.0)
        (answer,) = feed(one, [bad])
        assert np.isfinite(answer.scores).all()  # type: ignore[arg-type]
    one.adapt(batches[0].rows(slice(0, 0)), answer)
    assert all_finite(one.state()) is None
    assert all(np.isfinite(v) for v in one.telemetry().values())
    right, fresh = (
        (feed(o, batches[:1])[0].output == batches[0].y).mean() for o in (one, learner(stream, net, recipe))
    )
    assert right >= fresh - 0.1


@every
def test_single_rows_and_the_loop(stream: Any, net: Network, recipe: Any) -> None:
    """Batches of one, row by row, with labels that nobody learns from."""
    one = learner(stream, net, recipe)
    loop = Loop(one, evaluators=[dw.Prequential(stream.spec)], row_by_row=True, guard=dw.Guard())
    list(loop.steps(dw.stream("digits-c", rows=20, kinds=("contrast",), severity=2)))
    assert loop.summary()["examples"] == 20
    assert all_finite(one.state()) is None


def test_streams_that_ask_for_it_start_from_the_source_at_boundaries(net: Network) -> None:
    shifts = dw.stream("digits-c", rows=64, kinds=("contrast", "fog"), severity=3, setting="reset-each-shift")
    one = learner(shifts, net, Tent(lr=RATE))
    assert "boundaries" in one.needs
    for event in shifts:
        if isinstance(event, dw.Boundary):
            one.boundary(event)
            assert all(torch.equal(w, one.source[n]) for n, w in one.moving.items())
        else:
            feed(one, [event])  # type: ignore[list-item]
    assert one.telemetry()["resets"] == 1


def test_the_last_stage_of_a_resnet_is_left_alone(stream: Any) -> None:
    slim = build("resnet18:4", (1, 8, 8), CLASSES)
    assert len(learner(stream, slim, Tent()).moving) == 2 * 20
    names = learner(stream, slim, SAR()).moving
    assert len(names) == 2 * 15
    assert not any(n.startswith(("body.blocks.6", "body.blocks.7")) for n in names)


def test_one_model_that_has_no_norms(stream: Any) -> None:
    with pytest.raises(dw.InputError, match="nothing to adapt"):
        learner(stream, build("mlp:4", (1, 8, 8), CLASSES), Tent())
    whole = learner(stream, build("mlp:4", (1, 8, 8), CLASSES), None, parts=Parts(descent=Descent(), scope="all"))
    assert len(whole.moving) == 4


# --- the source model -------------------------------------------------------------------------------------------


def test_source_models_are_kept_by_what_they_follow_from(
    stream: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said: list[str] = []

    def made(**settings: Any) -> dict[str, Tensor]:
        inputs = Pixels(stream.spec.shape, stream.spec.notes["mean"], stream.spec.notes["std"])
        training = Training(**{"model": "convnet:4", "epochs": 2, "batch": 64} | settings)
        return dict(source_model(stream.spec, inputs, training, progress=said.append).state_dict())

    first, files = made(), list((tmp_path / "driftway" / "sources").iterdir())
    assert len(files) == 1
    assert len(said) == 2
    again = made()
    assert len(said) == 2, "taken from the cache"
    files[0].write_bytes(files[0].read_bytes()[:-9])
    anew = made()
    assert len(said) == 4, "a file cut short is trained anew"
    assert all(torch.equal(first[n], again[n]) and torch.equal(first[n], anew[n]) for n in first)
    made(seed=1)
    assert len(list((tmp_path / "driftway" / "sources").iterdir())) == 2


@pytest.mark.parametrize("name", [n for n, e in LEARNERS.items() if e.recipe])
def test_streams_without_clean_rows_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(dw.InputError, match=r"^stream plain has no clean rows to train a source model on"):
        dw.learner(name, dw.StreamSpec("plain", (dw.Column("a"),), classes=("n", "y")))


def test_new_statistics_are_worth_much(stream: Any, net: Network, batches: list[dw.Batch]) -> None:
    y = np.concatenate([b.y for b in batches])  # type: ignore[misc]
    right = {
        type(r).__name__: (np.concatenate([p.output for p in feed(learner(stream, net, r), batches)]) == y).mean()
        for r in (Source(), BatchNormAdapt())
    }
    assert right["BatchNormAdapt"] > right["Source"] + 0.1


def test_many_rows_are_gone_through_less_often() -> None:
    assert [Training().epochs_over(n) for n in (0, 1257, 12_000, 20_000, 60_000, 10**6)] == [25, 25, 25, 15, 5, 5]
    assert Training(epochs=3).epochs_over(60_000) == 3


def test_a_model_that_does_not_fit_is_refused_in_one_line(stream: Any) -> None:
    for model, said in ((build("convnet:4", (1, 8, 8), 7), r"needs \(2, 10\)"), (nn.Linear(3, 10), "rows of 1x8x8")):
        with pytest.raises(dw.InputError, match=said):
            TestTimeLearner(stream.spec, Tent(), model=model)
