"""The planner: its rule of selection, its losses, and what may adapt apart from what may not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from driftway.models.cluster_entropy import ClusterEntropy
from driftway.models.planner import (
    Planner,
    combined,
    fit_temperature,
    imitation_targets,
    planner_loss,
    train_planner,
)
from driftway.models.trajectories import manoeuvres
from driftway.streams.driving import LAYOUT, scenes
from driftway.streams.driving_truth import judge, mean_scores
from driftway.streams.kinematics import random_drives
from driftway.streams.vocabulary import vocabulary
from torch import Tensor
from torch.func import functional_call

PLANS = vocabulary(random_drives(1500), 32)
SCENES = scenes(range(4), severity=2)
FRAMES = torch.as_tensor(np.stack([s.observations for s in SCENES]))


def planner(seed: int = 0) -> Planner:
    return Planner(PLANS, LAYOUT, width=16, seed=seed)


def test_scores_of_the_parts_are_those_of_the_whole() -> None:
    net, x = planner(), FRAMES[:, -1]
    assert net(x).shape == (4, 32)
    params = dict(net.decoder.named_parameters())
    logits = functional_call(net.decoder, params, (*net.features(x), net.entries()))
    torch.testing.assert_close(net.combine(logits), net(x), rtol=0, atol=0)


def test_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b, c = planner(), planner(), planner(1)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.decoder.query.weight, c.decoder.query.weight)


def test_state_holds_the_vocabulary() -> None:
    a, b = planner(), planner(1)
    b.load_state_dict(a.state_dict())
    assert torch.equal(a(FRAMES[0]), b(FRAMES[0]))
    assert {"trajectories", "poses", "weights"} <= set(a.state_dict())


def test_selection_rule() -> None:
    """Two entries: even imitation; NC .5, DAC .5; TTC, EP and C .5 against all but certain ones."""
    logits = torch.zeros(1, 2, 6)
    logits[0, 1, 3:] = 40.0
    scores = combined(logits, (0.1, 0.2, 0.3, 4.0))[0]
    shared = (0.1 + 0.2 + 0.3) * math.log(0.5)
    assert scores.tolist() == pytest.approx([shared + 4 * math.log(6), shared + 4 * math.log(12)])
    assert bool(combined(torch.full((1, 2, 6), -1e4), (0.1, 0.2, 0.3, 4.0)).isfinite().all())


def test_imitation_targets() -> None:
    poses = torch.tensor([[0.0, 0], [3.0, 1], [40.0, 0]])
    target = imitation_targets(poses, torch.tensor([0]), sigma=20.0)[0]
    assert target.tolist() == pytest.approx([1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(0.5)), 0.0])
    torch.testing.assert_close(imitation_targets(poses, poses[:1], 20.0)[0], target)


def test_loss_of_indifferent_heads() -> None:
    metrics, target = torch.full((2, 4, 5), 0.5), torch.full((2, 4), 0.25)
    expected = math.log(4) + (3 + 3 + 3 + 2 + 1) * math.log(2)
    assert float(planner_loss(torch.zeros(2, 4, 6), target, metrics)) == pytest.approx(expected)


def entropy_of(net: Planner, params: dict[str, Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        known = (*net.features(x), net.entries())
    objective = ClusterEntropy(torch.as_tensor(manoeuvres(PLANS)))
    return objective(net.combine(functional_call(net.decoder, params, known)))


def test_gradients_of_frames_average_to_that_of_their_mean() -> None:
    net = planner()
    params = dict(net.decoder.named_parameters())
    each = [torch.autograd.grad(entropy_of(net, params, f[None]), list(params.values())) for f in FRAMES[0, :4]]
    together = torch.autograd.grad(entropy_of(net, params, FRAMES[0, :4]), list(params.values()))
    for parts, whole in zip(zip(*each), together):
        torch.testing.assert_close(torch.stack(parts).mean(0), whole, atol=1e-6, rtol=1e-4)
    assert all(p.grad is None for p in net.parameters())


def test_small_step_lowers_the_entropy_as_first_order_says() -> None:
    net = planner().double()
    params, x = dict(net.decoder.named_parameters()), FRAMES[1, :4].double()
    before = entropy_of(net, params, x)
    slopes = torch.autograd.grad(before, list(params.values()))
    square = sum(float((g**2).sum()) for g in slopes)
    eta = 1e-6
    moved = {n: p.detach() - eta * g for (n, p), g in zip(params.items(), slopes)}
    fell = entropy_of(net, moved, x) - before.detach()
    assert float(fell) == pytest.approx(-eta * square, rel=0.05)


def test_temperature_is_that_of_the_draws() -> None:
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 10, generator=draw)
    expert = torch.multinomial(torch.softmax(z / 0.5, -1), 1, generator=draw)[:, 0]
    assert fit_temperature(z, expert) == pytest.approx(0.5, rel=0.1)


def test_short_training_beats_chance_by_far_and_repeats() -> None:
    seen = scenes(range(160))
    metrics, expert = judge(seen, PLANS)
    x = np.stack([s.observations[-1] for s in seen])
    nets = [train_planner(PLANS, LAYOUT, x, metrics, expert, steps=60, batch=32, width=32) for _ in range(2)]
    assert all(torch.equal(p, q) for p, q in zip(nets[0].state_dict().values(), nets[1].state_dict().values()))
    assert not any(p.requires_grad for p in nets[0].parameters())
    held = scenes(range(60), split="validation")
    truth, _ = judge(held, PLANS)
    with torch.no_grad():
        chosen = nets[0](torch.as_tensor(np.stack([s.observations[-1] for s in held]))).argmax(-1).numpy()
    chance = np.random.default_rng(0).integers(0, len(PLANS), 60)
    assert mean_scores(truth, chosen)["pdms"] > 20 + mean_scores(truth, chance)["pdms"]
