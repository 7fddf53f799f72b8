"""Prototypes: the note's hand numbers and table, and what may never change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from driftway.evaluation.metrics import base_accuracy, harmonic_mean, new_accuracy
from driftway.models.prototypes import (
    STRENGTHS,
    Calibration,
    Cosine,
    Prototypes,
    choose_calibration,
    class_means,
    fuse,
    split_scores,
)
from driftway.streams import few_shot_features
from torch import Tensor, nn

EYE = torch.eye(2, dtype=torch.float64)
NEW = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
MANY = torch.full((20,), 500)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small(calibration: Calibration | None = None, dtype: torch.dtype = torch.float64) -> Prototypes:
    """Four base classes in 8 dimensions, of 30 rows each."""
    return Prototypes(draw(4, 8).to(dtype), torch.full((4,), 30), calibration=calibration)


@pytest.mark.parametrize(
    ("tau_s", "lam", "expected"),
    [
        (16.0, 0.0, (0.6, 0.8)),
        (16.0, 0.1, (0.5440728, 0.8199170)),
        (16.0, 0.5, (0.3203642, 0.8995851)),
        (16.0, 1.0, (0.0407284, 0.9991703)),
        (1.0, 0.5, (0.6167461, 0.7868745)),
        (1.0, 1.0, (0.6334922, 0.7737491)),
        (0.0, 1.0, (0.5**0.5, 0.5**0.5)),
    ],
)
def test_fusion_by_hand(tau_s: float, lam: float, expected: tuple[float, float]) -> None:
    np.testing.assert_allclose(fuse(NEW, EYE, lam, tau_s)[0], expected, atol=5e-8)


@pytest.mark.parametrize(("tau_s", "expected"), [(16.0, (0.0391657, 0.9608343)), (1.0, (0.4501660, 0.5498340))])
def test_weights_by_hand(tau_s: float, expected: tuple[float, float]) -> None:
    """With base rows e1 and e2 the mixture's direction is that of the weights."""
    mixture = fuse(NEW, EYE, 1.0, tau_s)[0]
    np.testing.assert_allclose(mixture / mixture.sum(), expected, atol=5e-8)


def test_lengths_and_order_of_base_rows_do_not_matter() -> None:
    raw, base = draw(3, 8, seed=1), draw(5, 8, seed=2)
    plain = fuse(raw, base, 0.4)
    assert torch.equal(fuse(raw * 4, base * torch.tensor([[2.0], [0.5], [1], [8], [1]]), 0.4), plain)
    torch.testing.assert_close(fuse(raw * 1e3, base * torch.tensor([[7.0], [0.1], [1], [3], [1]]), 0.4), plain)
    torch.testing.assert_close(fuse(raw, base[[3, 0, 4, 1, 2]], 0.4), plain)
    by_row = fuse(raw, base, torch.tensor([0.0, 0.4, 0.0], dtype=torch.float64))
    assert torch.equal(by_row[1], plain[1])
    assert torch.equal(by_row[0], fuse(raw, base, 0.0)[0])


def test_without_calibration_it_is_the_nearest_class_mean() -> None:
    made = few_shot_features(5, seed=3)
    prototypes = learnt(made, Calibration("fixed", 0.0))
    means = np.stack([made.support[made.support_y == c].mean(0) for c in range(20, 30)])
    rows = np.concatenate([made.prototypes, means])
    cosines = made.queries @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T
    np.testing.assert_array_equal(prototypes.answers(torch.from_numpy(made.queries)), cosines.argmax(1))


def learnt(made: Any, calibration: Calibration) -> Prototypes:
    prototypes = Prototypes(torch.from_numpy(made.prototypes), MANY, calibration=calibration)
    assert prototypes.add(torch.from_numpy(made.support), torch.from_numpy(made.support_y)) == 0
    return prototypes


def measured(shots: int, lam: float) -> list[float]:
    """Mean over 10 seeds of base and new accuracy, their harmonic mean (in %), and cosine of new rows and truth."""
    found = []
    for seed in range(10):
        made = few_shot_features(shots, seed)
        prototypes = learnt(made, Calibration("fixed", lam))
        answers = prototypes.answers(torch.from_numpy(made.queries)).numpy()
        b, n = base_accuracy(made.queries_y, answers, 20), new_accuracy(made.queries_y, answers, 20)
        both = harmonic_mean(b, n)
        assert b is not None
        assert n is not None
        assert both is not None
        truth = nn.functional.normalize(torch.from_numpy(made.truth))
        cosine = (prototypes.rows[20:] * truth).sum(1).mean()
        found.append((100 * b, 100 * n, 100 * both, 100 * float(cosine)))
    return [float(value) for value in np.mean(found, axis=0)]


TABLE = {
    (1, 0.0): (81.0, 2.1, 4.0, 56),
    (1, 0.1): (80.7, 3.4, 6.5, 63),
    (1, 0.3): (79.3, 8.7, 15.6, 74),
    (1, 0.5): (76.2, 17.5, 28.3, 84),
    (1, 0.7): (72.2, 27.2, 39.4, 90),
    (5, 0.0): (78.8, 21.6, 33.8, 83),
    (5, 0.1): (78.0, 25.7, 38.4, 86),
    (5, 0.3): (75.8, 35.1, 47.8, 90),
    (5, 0.5): (73.0, 43.0, 54.1, 93),
    (5, 0.7): (71.7, 45.5, 55.6, 93),
    (20, 0.0): (76.3, 52.6, 62.2, 95),
    (20, 0.1): (75.4, 55.7, 64.0, 96),
    (20, 0.3): (73.6, 61.1, 66.7, 96),
    (20, 0.5): (72.1, 62.4, 66.9, 96),
    (20, 0.7): (72.1, 58.1, 64.3, 95),
}


@pytest.mark.parametrize(("shots", "lam"), TABLE)
def test_table_of_the_note(shots: int, lam: float) -> None:
    np.testing.assert_allclose(measured(shots, lam), TABLE[shots, lam], atol=2.0)


def test_calibration_is_worth_ten_points_and_costs_the_base_less() -> None:
    plain, calibrated = measured(5, 0.0), measured(5, 0.5)
    assert calibrated[2] - plain[2] > 10
    assert 0 < plain[0] - calibrated[0] < 10


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"strength": 1.0}, "strength"),
        ({"strength": -0.1}, "strength"),
        ({"strength": float("nan")}, "strength"),
        ({"rule": "shrink", "strength": float("inf")}, "strength"),
        ({"rule": "best"}, "rule"),
        ({"tau_s": -1.0}, "tau_s"),
    ],
)
def test_calibrations_that_cannot_be_are_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Calibration(**given)


def test_shrink_fades_with_shots_and_fixed_does_not() -> None:
    shots = torch.tensor([1, 5, 1000])
    np.testing.assert_allclose(Calibration("shrink", 0.5).lam(shots), [1 / 3, 1 / 11, 0.5 / 1000.5])
    assert Calibration("fixed", 0.1).lam(shots).tolist() == [0.1, 0.1, 0.1]
    assert Calibration("shrink", 0.0).lam(shots).tolist() == [0.0, 0.0, 0.0]
    prototypes, shrinking = small(Calibration("fixed", 0.5 / 2.5)), small(Calibration("shrink", 0.5))
    for some in (prototypes, shrinking):
        some.add(draw(2, 8, seed=1), torch.tensor([4, 4]))
    torch.testing.assert_close(shrinking.rows, prototypes.rows)


def test_old_rows_stay_bit_for_bit_and_only_base_classes_are_mixed() -> None:
    prototypes, alone = small(), small()
    assert prototypes.add(draw(4, 8, seed=1), torch.tensor([4, 4, 5, 5])) == 0
    before = {name: value.clone() for name, value in prototypes.named_buffers()}
    given_out = prototypes.rows
    later = draw(3, 8, seed=2)
    prototypes.add(later, torch.tensor([9, 9, 6]))
    alone.add(later, torch.tensor([9, 9, 6]))
    assert prototypes.classes.tolist() == [0, 1, 2, 3, 4, 5, 6, 9]
    assert prototypes.counts.tolist() == [30, 30, 30, 30, 2, 2, 1, 2]
    for name, value in before.items():
        assert torch.equal(getattr(prototypes, name)[:6], value)
    assert torch.equal(prototypes.rows[6:], alone.rows[4:])
    assert torch.equal(given_out, before["rows"])
    torch.testing.assert_close(prototypes.rows.norm(dim=1), torch.ones(8, dtype=torch.float64))


@pytest.mark.parametrize("rule", ["fixed", "shrink"])
def test_shots_in_two_parts_are_as_good_as_in_one(rule: Any) -> None:
    x, y = draw(7, 8, seed=1), torch.tensor([4, 5, 4, 4, 5, 4, 4])
    whole, parts = small(Calibration(rule, 0.3)), small(Calibration(rule, 0.3))
    whole.add(x, y)
    parts.add(x[:3], y[:3])
    other = parts.rows[5].clone()
    parts.add(x[3:4], y[3:4])
    assert torch.equal(parts.rows[5], other)
    parts.add(x[4:], y[4:])
    assert parts.counts.tolist() == whole.counts.tolist() == [30] * 4 + [5, 2]
    torch.testing.assert_close(parts.rows, whole.rows)


def test_shots_of_a_base_class_are_averaged_by_counts_without_a_mixture() -> None:
    prototypes = small(Calibration("fixed", 0.9))
    means, shots = prototypes.means.clone(), draw(10, 8, seed=1)
    prototypes.add(shots, torch.full((10,), 2))
    expected = (30 * means[2] + shots.sum(0)) / 40
    torch.testing.assert_close(prototypes.rows[2], expected / expected.norm())
    assert prototypes.counts.tolist() == [30, 30, 40, 30]
    assert torch.equal(prototypes.means[[0, 1, 3]], means[[0, 1, 3]])


def test_features_without_direction_are_refused() -> None:
    prototypes, clean = small(), small()
    good = draw(2, 8, seed=1)
    bad = torch.stack([torch.zeros(8), torch.full((8,), torch.nan), torch.full((8,), torch.inf)])
    assert prototypes.add(torch.cat([bad, good]), torch.tensor([4, 4, 5, 4, 4])) == 3
    assert prototypes.classes.tolist() == [0, 1, 2, 3, 4]
    clean.add(good, torch.tensor([4, 4]))
    assert torch.equal(prototypes.rows, clean.rows)
    assert prototypes.add(torch.cat([good, -good]), torch.full((4,), 8)) == 4, "shots that cancel"
    assert prototypes.add(torch.empty(0, 8), torch.empty(0, dtype=torch.int64)) == 0
    assert len(prototypes) == 5
    assert prototypes(torch.zeros(1, 8, dtype=torch.float64)).tolist() == [[0.0] * 5]


@pytest.mark.parametrize(
    ("means", "counts", "classes", "reason"),
    [
        (torch.zeros(2, 3), torch.ones(2), None, "direction"),
        (torch.ones(2), torch.ones(2), None, "need"),
        (torch.ones(0, 3), torch.ones(0), None, "need"),
        (torch.ones(2, 3), torch.ones(3), None, "need"),
        (torch.ones(2, 3), torch.tensor([1, 0]), None, "count"),
        (torch.ones(2, 3), torch.ones(2), torch.tensor([1, 1]), "one code"),
    ],
)
def test_prototypes_that_cannot_be_are_refused(means: Tensor, counts: Tensor, classes: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Prototypes(means, counts, classes)


def test_logits_are_scaled_cosines_whatever_the_lengths() -> None:
    prototypes = small()
    x = draw(6, 8, seed=5)
    logits = prototypes(x)
    expected = 16 * nn.functional.cosine_similarity(x[:, None], prototypes.means[None], dim=-1)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(prototypes(x * 1e4), logits)
    assert torch.equal(prototypes.answers(x), logits.argmax(1))


@pytest.mark.parametrize("inference", [False, True])
def test_rows_never_have_a_gradient_and_features_do(inference: bool) -> None:
    """Shots embedded in inference mode must not spoil later steps."""
    torch.manual_seed(0)
    body = nn.Linear(3, 8)
    prototypes = small(dtype=torch.float32)
    net = nn.Sequential(body, prototypes)
    with torch.inference_mode(inference):
        prototypes.add(body(draw(5, 3).float()), torch.tensor([4, 4, 4, 5, 5]))
        prototypes.load(prototypes.state())
    assert [name for name, _ in net.named_parameters()] == ["0.weight", "0.bias"]
    assert set(net.state_dict()) == {"0.weight", "0.bias"}
    before = prototypes.rows.clone()
    net(draw(4, 3, seed=1).float()).logsumexp(1).sum().backward()
    assert body.weight.grad is not None
    assert float(body.weight.grad.abs().sum()) > 0
    assert not any(b.requires_grad or b.is_inference() or b.grad_fn for b in prototypes.buffers())
    assert torch.equal(prototypes.rows, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_is_a_tree_that_brings_the_same_answers_back(dtype: torch.dtype) -> None:
    prototypes = small(Calibration("shrink", 2.0, 8.0), dtype)
    prototypes.add(draw(4, 8, seed=1), torch.tensor([7, 7, 4, 4]))
    state = prototypes.state()
    other = small(dtype=dtype)
    other.load(state)
    for some in (prototypes, other):
        some.add(draw(3, 8, seed=2), torch.tensor([7, 11, 11]))
    x = draw(9, 8, seed=3).to(dtype)
    assert torch.equal(other(x), prototypes(x))
    assert torch.equal(other.answers(x), prototypes.answers(x))
    assert other.state().keys() == state.keys()
    assert other.calibration == Calibration("shrink", 2.0, 8.0)
    assert other.rows.dtype == dtype
    assert state["classes"].tolist() == [0, 1, 2, 3, 4, 7], "what was given out does not change"


def test_class_means() -> None:
    x, y = draw(50, 3), torch.randint(5, (50,), generator=torch.Generator().manual_seed(0)) * 2
    classes, means, counts = class_means(x, y)
    assert classes.tolist() == [0, 2, 4, 6, 8]
    assert int(counts.sum()) == 50
    torch.testing.assert_close(means[3], x[y == 6].mean(0))


def base_rows(seed: int, per_class: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and held-out rows of the 20 base classes of the note's stream."""
    made = few_shot_features(1, seed, queries=2 * per_class)
    x, y = torch.from_numpy(made.queries[made.queries_y < 20]), torch.from_numpy(made.queries_y[made.queries_y < 20])
    train = torch.arange(len(y)) % 2 == 0
    return x[train], y[train], x[~train], y[~train]


def test_strength_is_chosen_by_classes_that_are_pretended_to_be_new() -> None:
    """On the note's stream the best lam is 0.5 or more at one and five shots, and falls with twenty."""
    rows = base_rows(0)
    chosen = [choose_calibration(*rows, shots) for shots in (1, 5, 20)]
    assert [c.rule for c in chosen] == ["fixed"] * 3
    assert chosen[0].strength >= chosen[1].strength >= 0.5
    assert 0.1 <= chosen[2].strength <= chosen[1].strength
    shrunk = choose_calibration(*rows, 5, "shrink", draws=3, tau_s=12.0)
    assert shrunk.tau_s == 12.0
    assert 0.4 <= float(shrunk.lam(torch.tensor([5]))) < 1


def test_split_scores_are_those_of_the_split() -> None:
    rows = base_rows(1)
    scores = split_scores(*rows, 5, draws=2)
    assert tuple(scores) == STRENGTHS["fixed"]
    assert all(0 <= score <= 1 for score in scores.values())
    assert scores == split_scores(*rows, 5, draws=2)
    assert scores != split_scores(*rows, 5, draws=2, seed=1)
    some = split_scores(*rows, 5, draws=2, strengths=[0.3])
    assert some[0.3] == scores[0.3]


def test_given_classes_are_pretended_to_be_new_in_every_draw() -> None:
    """Where the features of the given classes are noise, the score is that of guessing."""
    x, y, queries, queries_y = base_rows(2)
    blind = torch.isin(y, torch.tensor([3, 7])), torch.isin(queries_y, torch.tensor([3, 7]))
    x[blind[0]], queries[blind[1]] = draw(int(blind[0].sum()), 64, seed=1), draw(int(blind[1].sum()), 64, seed=2)
    rows = (x, y, queries, queries_y)
    scores = split_scores(*rows, 5, draws=3, strengths=[0.0], pretended=torch.tensor([3, 7]))
    others = split_scores(*rows, 5, draws=3, strengths=[0.0], pretended=torch.tensor([4, 8]))
    assert scores[0.0] < 0.3 < 0.5 < others[0.0]
    assert scores == split_scores(*rows, 5, draws=3, strengths=[0.0], pretended=torch.tensor([7, 3]))
    with pytest.raises(ValueError, match="pretend"):
        split_scores(*rows, 5, pretended=torch.tensor([99]))


def test_the_classifier_that_a_body_learns_under() -> None:
    torch.manual_seed(0)
    classifier, x = Cosine(8, 5), draw(6, 8).float()
    z = classifier(x)
    torch.testing.assert_close(z, 16 * nn.functional.cosine_similarity(x[:, None], classifier.weight[None], dim=-1))
    z.logsumexp(1).sum().backward()
    assert classifier.weight.grad is not None
    along = (classifier.weight.grad * classifier.weight).sum(1)
    torch.testing.assert_close(along, torch.zeros(5), rtol=0, atol=1e-5)


def test_the_least_of_equal_strengths_is_chosen() -> None:
    x = torch.eye(4).repeat(3, 1)
    y = torch.arange(4).repeat(3)
    assert choose_calibration(x, y, x, y, 1, draws=2, strengths=[0.2, 0.1]).strength == 0.1


def test_splits_that_cannot_be_are_refused() -> None:
    x, y = torch.eye(2), torch.arange(2)
    with pytest.raises(ValueError, match="held-out"):
        split_scores(x, y, x[:1], y[:1], 1)
    with pytest.raises(ValueError, match="pretend"):
        split_scores(x[:1], y[:1], x[:1], y[:1], 1)
