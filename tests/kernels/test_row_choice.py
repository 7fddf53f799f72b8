"""Scores and choices of rows: the hand examples of the method, ties, blocks, controls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from driftway.models.kernels.row_choice import Choice, RowSlot, active_count, quantile_rows, row_score, top_rows

OUTPUTS = torch.tensor([[1.0, 2.0, 3.0, -2.0], [3.0, -1.0, 2.0, -6.0]])
"""Outputs of W = [[1, 0], [0, 1], [1, 1], [-2, 0]] for the tokens (1, 2) and (3, -1)."""
LOUD = torch.tensor([[10.0, 9.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.5], [0.0, 0.0, 1.0, 0.5]])


def test_scores_by_hand() -> None:
    assert row_score(OUTPUTS).tolist() == [4.0, 3.0, 5.0, 8.0]
    by_token = row_score(OUTPUTS, "token_l1") / 2
    assert by_token.tolist() == pytest.approx([0.1875, 0.1667, 0.2708, 0.375], abs=1e-4)
    assert (row_score(LOUD, "token_l1") / 3).tolist() == pytest.approx([0.1754, 0.1579, 0.4444, 0.2222], abs=1e-4)


def test_choices_by_hand() -> None:
    score = row_score(OUTPUTS).numpy()
    for ratio in (0.5, 0.7):
        assert Choice(ratio).rows(score).tolist() == [2, 3]
    assert np.quantile(score, 0.7) == pytest.approx(5.3)
    assert Choice(0.7, quantile=True).rows(score).tolist() == [3]
    assert Choice(0.5).rows(row_score(OUTPUTS, "token_l1").numpy()).tolist() == [2, 3]
    assert Choice(0.5).rows(row_score(LOUD).numpy()).tolist() == [0, 1]
    assert Choice(0.5).rows(row_score(LOUD, "token_l1").numpy()).tolist() == [2, 3]
    assert Choice(0.5, select="bottom").rows(score).tolist() == [0, 1]


def test_loud_silence_is_no_division_by_zero() -> None:
    assert row_score(torch.zeros(3, 4), "token_l1").tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("rows", "by_count", "by_quantile"),
    [(4, 2, 1), (8, 3, 3), (10, 3, 3), (64, 20, 19), (1024, 308, 307), (2816, 845, 845)],
)
def test_how_many_rows_stay(rows: int, by_count: int, by_quantile: int) -> None:
    score = np.random.default_rng(rows).permutation(rows).astype(np.float64)
    assert active_count(rows, 0.7) == len(Choice(0.7).rows(score)) == by_count
    assert len(quantile_rows(score, 0.7)) == by_quantile


def test_one_row_is_always_active() -> None:
    assert [active_count(rows, 0.99) for rows in (1, 2, 50, 100, 1000)] == [1, 1, 1, 1, 10]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exactly_k_rows_whatever_the_ties(dtype: type) -> None:
    """The lowest rows among equals: what a stable sort says."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        score = rng.integers(0, 6, rng.integers(1, 40)).astype(dtype)
        k = int(rng.integers(1, len(score) + 1))
        expected = sorted(sorted(range(len(score)), key=lambda i: (-score[i], i))[:k])
        assert top_rows(score, k).tolist() == expected
    assert top_rows(np.zeros(7, dtype), 3).tolist() == [0, 1, 2]
    assert quantile_rows(np.zeros(7, dtype), 0.7).tolist() == list(range(7))


def test_a_score_that_is_not_finite_chooses_nothing() -> None:
    assert Choice(0.5).rows(np.array([1.0, np.nan, 2.0])) is None
    slot = RowSlot(Choice(0.5))
    slot.see(torch.tensor([[1.0, torch.inf, 0.0]]))
    assert slot.rows().tolist() == [0, 1, 2]
    assert slot.not_finite == 1


def test_blocks_are_neighbours() -> None:
    score = np.array([0.0, 9.0, 5.0, 5.0, 1.0, 1.0, 8.0])
    assert Choice(0.5, block_rows=2).rows(score).tolist() == [2, 3, 6]
    assert Choice(0.7, block_rows=2).rows(score).tolist() == [2, 3, 6]
    assert Choice(0.9, block_rows=2).rows(score).tolist() == [6]
    assert Choice(0.7, block_rows=16).rows(np.arange(64.0)).tolist() == list(range(32, 64))


def test_random_rows_have_a_seed_of_their_own() -> None:
    choice, before = Choice(0.7, select="random"), torch.get_rng_state()
    draws = [choice.rows(np.zeros(100), (3, 0, step)).tolist() for step in range(3)]
    assert [len(set(d)) for d in draws] == [30] * 3
    assert draws[0] == choice.rows(np.ones(100), (3, 0, 0)).tolist() != draws[1]
    assert torch.equal(before, torch.get_rng_state())


def test_the_choice_has_no_scale_and_no_size_of_batch() -> None:
    y = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    chosen = [Choice(0.7).rows(row_score(z).numpy()).tolist() for z in (y, 8 * y, torch.cat([y, y]), -y)]
    assert chosen[0] == chosen[1] == chosen[2] == chosen[3]


def test_positions_are_summed_and_short_floats_kept_long() -> None:
    y = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(row_score(y), y.abs().sum((0, 2, 3)))
    tokens = y.movedim(1, -1).reshape(-1, 3)
    torch.testing.assert_close(row_score(y, "token_l1"), row_score(tokens, "token_l1"))
    for kind in ("sum_abs", "token_l1"):
        short = row_score(torch.ones(1000, 2, dtype=torch.bfloat16), kind)
        assert short.dtype is torch.float32
        assert short.tolist() == pytest.approx([1000.0 if kind == "sum_abs" else 500.0] * 2)
