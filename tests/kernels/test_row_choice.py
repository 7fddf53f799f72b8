"""Scores and choices of rows: the hand examples of the method, ties, blocks, controls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from driftway.models.kernels.row_choice import Choice, RowSlot, Together, active_count, quantile_rows, row_score

OUTPUTS = torch.tensor([[1.0, 2.0, 3.0, -2.0], [3.0, -1.0, 2.0, -6.0]])
"""Outputs of W = [[1, 0], [0, 1], [1, 1], [-2, 0]] for the tokens (1, 2) and (3, -1)."""
LOUD = torch.tensor([[10.0, 9.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.5], [0.0, 0.0, 1.0, 0.5]])


def test_scores_by_hand() -> None:
    assert row_score(OUTPUTS).tolist() == [4.0, 3.0, 5.0, 8.0]
    by_token = row_score(OUTPUTS, "token_l1") / 2
    assert by_token.tolist() == pytest.approx([0.1875, 0.1667, 0.2708, 0.375], abs=1e-4)
    assert (row_score(LOUD, "token_l1") / 3).tolist() == pytest.approx([0.1754, 0.1579, 0.4444, 0.2222], abs=1e-4)


def test_choices_by_hand() -> None:
    score = row_score(OUTPUTS)
    for ratio in (0.5, 0.7):
        assert Choice(ratio).rows(score).tolist() == [2, 3]
    assert np.quantile(score.numpy(), 0.7) == pytest.approx(5.3)
    assert Choice(0.7, quantile=True).rows(score).tolist() == [3]
    assert Choice(0.5).rows(row_score(OUTPUTS, "token_l1")).tolist() == [2, 3]
    assert Choice(0.5).rows(row_score(LOUD)).tolist() == [0, 1]
    assert Choice(0.5).rows(row_score(LOUD, "token_l1")).tolist() == [2, 3]
    assert Choice(0.5, select="bottom").rows(score).tolist() == [0, 1]


def test_parts_of_a_weight_are_chosen_apart() -> None:
    score = torch.tensor([9.0, 8, 7, 0, 1, 2, 3, 5, 4])
    assert Choice(0.5).rows(score).tolist() == [0, 1, 2, 7, 8]
    assert Choice(0.5, parts=3).rows(score).tolist() == [0, 1, 4, 5, 7, 8]
    assert len(Choice(0.5, select="random", parts=3).rows(score)) == 6
    assert Choice(0.5, parts=3).count(9) is None


def test_what_is_no_token_does_not_count() -> None:
    keep = torch.tensor([False, True])
    assert row_score(OUTPUTS, keep=keep).tolist() == [3.0, 1.0, 2.0, 6.0]
    assert torch.equal(row_score(OUTPUTS, "token_l1", keep), row_score(OUTPUTS[1:], "token_l1"))
    slot = RowSlot(Choice(0.5))
    slot.see(OUTPUTS, ~keep)
    assert slot.rows().tolist() == [1, 2]


def test_loud_silence_is_no_division_by_zero() -> None:
    assert row_score(torch.zeros(3, 4), "token_l1").tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("rows", "by_count", "by_quantile"),
    [(4, 2, 1), (8, 3, 3), (10, 3, 3), (64, 20, 19), (1024, 308, 307), (2816, 845, 845)],
)
def test_how_many_rows_stay(rows: int, by_count: int, by_quantile: int) -> None:
    score = torch.from_numpy(np.random.default_rng(rows).permutation(rows).astype(np.float64))
    assert active_count(rows, 0.7) == len(Choice(0.7).rows(score)) == by_count
    assert len(quantile_rows(score, 0.7)) == by_quantile


def test_one_row_is_always_active() -> None:
    assert [active_count(rows, 0.99) for rows in (1, 2, 50, 100, 1000)] == [1, 1, 1, 1, 10]


def test_exactly_k_rows_whatever_the_ties() -> None:
    assert Choice(0.6).rows(torch.zeros(7)).tolist() == [0, 1, 2]
    assert quantile_rows(torch.zeros(7), 0.7).tolist() == list(range(7))


def test_a_score_that_is_not_finite_chooses_all() -> None:
    slot = RowSlot(Choice(0.5))
    for bad in (torch.inf, torch.nan):
        slot.see(torch.tensor([[1.0, bad, 0.0]]))
        assert slot.rows().tolist() == [0, 1, 2]
        slot.take()
    assert slot.not_finite == 2


@pytest.mark.parametrize("select", ["top", "bottom"])
@pytest.mark.parametrize("block_rows", [1, 4])
def test_rows_of_all_layers_are_chosen_together(select: Any, block_rows: int) -> None:
    """What a GPU does, against what a CPU does; a layer that was not seen, or has rows already, is left alone."""
    choice, together = Choice(0.7, select=select, block_rows=block_rows), Together()
    slots = [RowSlot(choice, together=together) for _ in range(4)]
    scores = [torch.rand(width, generator=torch.Generator().manual_seed(width)) for width in (20, 8, 64)]
    for slot, score in zip(slots, scores):
        slot.add(score)
    before = slots[1].rows()
    together.choose(torch.device("cpu"))
    assert slots[1].index is before
    assert slots[3].index is None
    for slot, score in zip(slots, scores):
        assert slot.rows().tolist() == choice.rows(score).tolist()
        assert len(slot.rows()) == choice.count(len(score))
    assert sum(int(slot.not_finite) for slot in slots) == 0


def test_layers_that_are_not_finite_are_counted_where_the_rows_are_chosen() -> None:
    together = Together()
    slots = [RowSlot(Choice(0.5), together=together) for _ in range(3)]
    for slot, bad in zip(slots, (torch.nan, 1.0, torch.inf)):
        slot.add(torch.tensor([0.0, 2.0, bad, 1.0]))
    together.choose(torch.device("cpu"))
    assert sum(int(slot.not_finite) for slot in slots) == 2
    assert [slot.rows().tolist() for slot in slots] == [[1, 2], [1, 2], [1, 2]]


def test_a_count_known_beforehand() -> None:
    assert [Choice(0.7, block_rows=size).count(64) for size in (1, 16, 10)] == [20, 32, None]
    assert Choice(0.7, select="random").count(64) is None
    assert Choice(0.7, quantile=True).count(64) is None
    with pytest.raises(ValueError, match="run them eagerly"):
        RowSlot(Choice(0.7, quantile=True)).prepare(torch.zeros(4, 2))


def test_blocks_are_neighbours() -> None:
    score = torch.tensor([0.0, 9.0, 5.0, 5.0, 1.0, 1.0, 8.0])
    assert Choice(0.5, block_rows=2).rows(score).tolist() == [2, 3, 6]
    assert Choice(0.7, block_rows=2).rows(score).tolist() == [2, 3, 6]
    assert Choice(0.9, block_rows=2).rows(score).tolist() == [6]
    assert Choice(0.7, block_rows=16).rows(torch.arange(64.0)).tolist() == list(range(32, 64))


def test_random_rows_have_a_seed_of_their_own() -> None:
    choice, before = Choice(0.7, select="random"), torch.get_rng_state()
    draws = [choice.rows(torch.zeros(100), (3, 0, step)).tolist() for step in range(3)]
    assert [len(set(d)) for d in draws] == [30] * 3
    assert draws[0] == choice.rows(torch.ones(100), (3, 0, 0)).tolist() != draws[1]
    assert torch.equal(before, torch.get_rng_state())


def test_the_choice_has_no_scale_and_no_size_of_batch() -> None:
    y = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    chosen = [Choice(0.7).rows(row_score(z)).tolist() for z in (y, 8 * y, torch.cat([y, y]), -y)]
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
