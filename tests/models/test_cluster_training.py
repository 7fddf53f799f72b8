"""The step from buffered gradients: the invariants of its method note, threads, accumulation, the guard."""

from __future__ import annotations

import copy
import json
import threading
from typing import Any

import numpy as np
import pytest
import torch
from driftway.adapt.state import all_finite, digest, join, split
from driftway.models.cluster_entropy import ClusterEntropy
from driftway.models.cluster_training import FAR, RECENT, ClusterEntropyTTT
from torch import Tensor, nn
from torch.func import functional_call

M, D = 12, 6
IDS = torch.arange(M) % 3


class Small(nn.Module):
    """A frozen body, and a decoder that scores twelve entries."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Linear(D, 8)
            self.decoder = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, M))

    def features(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x))


def made(net: Small, delta: float = 0.05, **options: Any) -> ClusterEntropyTTT:
    behind = copy.deepcopy(net.decoder)  # a thread must not share a module with the answers
    return ClusterEntropyTTT(
        net.features,
        dict(net.decoder.named_parameters()),
        lambda weights, features: functional_call(net.decoder, dict(weights), (features,)),
        options.pop("objective", ClusterEntropy(IDS)),
        delta,
        behind=lambda weights, features: functional_call(behind, dict(weights), (features,)),
        **options,
    )


def frames(n: int, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(1, D, generator=draw) for _ in range(n)]


def drive(one: ClusterEntropyTTT, rows: list[Tensor], start: float = 0.0, every: float = 0.5) -> list[Tensor]:
    """Answer and observe, frame after frame."""
    found = []
    for i, x in enumerate(rows):
        answer = one.answer(x, start + every * i)
        found.append(answer.scores)
        one.observe(answer.features, start + every * i)
    return found


def base(net: Small, x: Tensor) -> Tensor:
    with torch.no_grad():
        scores: Tensor = net.decoder(net.features(x))
    return scores


def test_first_frame_is_answered_by_the_trained_weights() -> None:
    net = Small()
    rows = frames(3)
    found = drive(made(net), rows)
    assert torch.equal(found[0], base(net, rows[0]))
    assert not torch.equal(found[1], base(net, rows[1]))


def test_step_is_that_of_the_mean_of_four_gradients_at_the_trained_weights() -> None:
    net, rows = Small(), frames(6)
    one = made(net)
    drive(one, rows)
    together, _ = one.gradient(net.features(torch.cat(rows[2:])).detach())
    mean = torch.stack(one.memory.gradients).mean(0)
    torch.testing.assert_close(mean, together, atol=1e-6, rtol=1e-5)
    expected = -0.05 * one.length * together / together.norm()
    assert one.memory.moved is not None
    torch.testing.assert_close(one.memory.moved, expected, atol=1e-6, rtol=1e-4)
    assert float(one.memory.moved.norm()) == pytest.approx(0.05 * one.length, rel=1e-5)


def test_frozen_part_and_trained_weights_stay_as_they_are() -> None:
    net = Small()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    drive(made(net), frames(8))
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
    assert all(p.grad is None for p in net.parameters())


def test_pause_forgets_everything() -> None:
    net, rows = Small(), frames(5)
    one = made(net)
    drive(one, rows)
    (later,) = drive(one, rows[:1], start=3.1)
    assert torch.equal(later, base(net, rows[0]))
    assert len(one.memory.gradients) == 1
    drive(one, rows[1:2], start=4.1)
    assert len(one.memory.gradients) == 2, "a gap of exactly one second is none"
    assert torch.equal(one.answer(rows[0], 3.0).scores, base(net, rows[0])), "time that runs backwards is a new scene"


def test_short_steps_lower_the_entropy_as_first_order_says() -> None:
    net = Small().double()
    x = frames(1)[0].double()
    one = made(net, delta=1e-6)
    features = net.features(x)
    g, before = one.gradient(features)
    moved = one.moved_by(one.descent(g))
    after = float(one.objective(one.scores_fn(moved, features)).detach())
    eta = 1e-6 * one.length / float(g.norm())
    assert after - before == pytest.approx(-eta * float((g**2).sum()), rel=0.05)


@pytest.mark.parametrize("options", [{"delta": 0.0}, {"trigger": float("inf")}])
def test_no_length_or_no_trigger_is_no_adaptation(options: dict[str, Any]) -> None:
    net, rows = Small(), frames(8)
    for found, x in zip(drive(made(net, **options), rows), rows):
        assert torch.equal(found, base(net, x))


def test_trigger_lets_doubtful_frames_through() -> None:
    net, rows = Small(), frames(6)
    one = made(net, trigger=0.0)
    drive(one, rows)
    assert one.memory.steps == 6
    level = float(np.median([one.gradient(net.features(x))[1] for x in rows]))
    held = made(net, trigger=level)
    drive(held, rows)
    assert 0 < held.memory.steps < 6


@pytest.mark.parametrize("mode", ["episodic", "accumulate"])
@pytest.mark.parametrize("turned", [False, True])
def test_threads_give_the_same_bits(mode: Any, turned: bool) -> None:
    def turn(g: Tensor, frames: int) -> Tensor:
        return g.roll(frames)

    net, rows = Small(), frames(20)
    options: dict[str, Any] = {"mode": mode, "turn": turn if turned else None}
    one, other = made(net, **options), made(net, background="wait", **options)
    for start in (0.0, 60.0):
        for a, b in zip(drive(one, rows, start), drive(other, rows, start)):
            assert torch.equal(a, b)
    assert digest(one.state()) == digest(other.state())
    other.close()


def test_live_never_waits_and_says_what_it_missed() -> None:
    net, rows = Small(), frames(4)
    held = threading.Event()
    plain = ClusterEntropy(IDS)

    def slow(z: Tensor) -> Tensor:
        held.wait(20)
        value: Tensor = plain(z)
        return value

    one = made(net, objective=slow, background="live")
    found = drive(one, rows)
    assert all(torch.equal(z, base(net, x)) for z, x in zip(found, rows)), "nothing was ready"
    assert one.missed == 3
    held.set()
    one.settle()
    assert one.memory.frames == 1
    assert not torch.equal(one.answer(rows[0], 1.6).scores, base(net, rows[0]))
    one.close()


def test_saved_while_a_gradient_is_under_way_and_continued() -> None:
    net, rows = Small(), frames(12)
    straight, first, second = (made(net, background="wait", mode=m) for m in ("accumulate",) * 3)
    expected = drive(straight, rows)
    drive(first, rows[:7])
    skeleton, arrays = split(first.state())
    assert all_finite(first.state()) is None
    second.load(join(json.loads(json.dumps(skeleton)), {k: np.array(v) for k, v in arrays.items()}))
    for a, b in zip(expected[7:], drive(second, rows[7:], start=3.5)):
        assert torch.equal(a, b)
    assert digest(second.state()) == digest(straight.state())
    for one in (straight, first, second):
        one.close()


def test_sure_frames_and_broken_ones_leave_no_gradient() -> None:
    net, rows = Small(), frames(3)
    one = made(net, least=10.0)
    for found, x in zip(drive(one, rows), rows):
        assert torch.equal(found, base(net, x))
    one = made(net)
    drive(one, [rows[0], torch.full((1, D), torch.nan), rows[1]])
    assert len(one.memory.gradients) == 2
    assert all_finite(one.state()) is None


def test_weak_gradients_make_short_steps() -> None:
    net, rows = Small(), frames(1)
    full, short = made(net), made(net, reference=1e6)
    drive(full, rows)
    drive(short, rows)
    assert full.memory.moved is not None
    assert short.memory.moved is not None
    g = full.memory.gradients[0].norm()
    torch.testing.assert_close(short.memory.moved, full.memory.moved * g / 1e6)


def test_guard_keeps_the_old_answer_where_the_new_one_was_thought_unsafe() -> None:
    net, rows = Small(), frames(40)
    free = made(net, delta=0.5)
    changed = [i for i, z in enumerate(drive(free, rows)) if int(z.argmax()) != int(base(net, rows[i]).argmax())]
    assert changed

    def old_only(features: Tensor) -> Tensor:
        with torch.no_grad():
            z = net.decoder(features)
        return (torch.arange(M) == z.argmax(-1, keepdim=True)).float()[..., None].expand(*z.shape, 2)

    kept = made(net, delta=0.5, guard=old_only)
    drive(kept, rows)
    for i, x in enumerate(rows):
        answer = made(net, delta=0.5, guard=old_only).answer(x, float(i))
        assert not answer.refused, "nothing has moved yet"
    for x in rows[:10]:
        answer = kept.answer(x, 20.0)
        assert int(answer.scores.argmax()) == int(base(net, x).argmax())


def test_accumulation_is_held_by_an_anchor_and_ends_where_it_is_too_far() -> None:
    net = Small()
    rows = frames(1) * 30
    one = made(net, delta=1e-3, mode="accumulate", turn=lambda g, _: torch.ones_like(g))
    lengths = []
    for i, x in enumerate(rows):
        answer = one.answer(x, 0.5 * i)
        one.observe(answer.features, 0.5 * i)
        moved = one.memory.moved
        lengths.append(0.0 if moved is None else float(moved.norm()) / (1e-3 * one.length))
    assert lengths[0] == pytest.approx(0.99, rel=1e-3)
    assert lengths[1] == pytest.approx(0.99 * 1.99, rel=1e-3)
    assert max(lengths) <= FAR
    assert one.memory.resets > 0
    assert 0.0 in lengths


def test_accumulation_goes_back_where_answers_collapse() -> None:
    net = Small()
    one = made(net, delta=1e-3, mode="accumulate")
    from dataclasses import replace

    drive(one, frames(1))
    collapsed = replace(one.memory, mean=1e-4, answers=(0,) * RECENT, trained=(0, 1) * (RECENT // 2))
    assert one._collapsed(collapsed)
    assert not one._collapsed(replace(collapsed, mean=0.5))
    assert not one._collapsed(replace(collapsed, trained=(0,) * RECENT))
    assert not one._collapsed(replace(collapsed, answers=(0,) * (RECENT - 1)))
    one.memory = replace(collapsed, mean=1e-9)
    held = one._gathered(one.memory, 1e-9)
    assert held.moved is None
    assert held.resets == 1


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        made(Small(), delta=-1.0)
    with pytest.raises(ValueError, match="buffer at least 1"):
        made(Small(), buffer=0)


def test_value_and_slope_are_those_of_autograd() -> None:
    z = torch.randn(5, M, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for temperature in (1.0, 2.5):
        objective = ClusterEntropy(IDS, temperature=temperature, within=0.3, reduction="none")
        value, slope = objective.value_and_slope(z)
        leaf = z.clone().requires_grad_()
        objective(leaf).sum().backward()
        torch.testing.assert_close(value, objective(z))
        torch.testing.assert_close(slope, leaf.grad)
