"""Masks: exact counts, who stays, who comes, which weights are masked. Numbers of SparCL's note."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from driftway.models.masks import (
    Granules,
    Mask,
    above_percentile,
    best,
    keep_count,
    load_masks,
    masks_for,
    masks_state,
    prunable,
    sprout,
)
from driftway.models.networks import build
from torch import Tensor


def scores(*values: float) -> Tensor:
    return torch.tensor(values)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("n", "sparsity", "keep"),
    [(100, 0.75, 25), (100, 0.74, 26), (100, 0.76, 24), (16384, 0.9, 1638), (16384, 0.91, 1475), (16384, 0.89, 1802)],
)
def test_counts_of_the_note(n: int, sparsity: float, keep: int) -> None:
    assert keep_count(n, sparsity) == keep


def test_counts_round_halves_to_even_and_are_inverse() -> None:
    assert [keep_count(10, s) for s in (0.25, 0.35, 0.45)] == [8, 6, 6]  # 10 s is 2.5, 3.5, 4.5
    mask = Mask(Granules((100,)))
    mask.keep_best(torch.rand(100, generator=torch.Generator().manual_seed(0)), 0.75)
    for sparsity in (0.74, 0.76, 0.75):
        mask.keep_best(torch.ones(100), sparsity)
        mask.grow(sparsity, rng())
        assert int(mask.active.sum()) == keep_count(100, sparsity)


def test_the_least_important_leave_and_an_inactive_entry_never_enters_by_its_score() -> None:
    w, now, memory = scores(0.5, -0.2, 0.1, 0), scores(0, 0.4, 0.1, 9), scores(0.2, 0, 0.6, 9)
    active = torch.tensor([True, True, True, False])
    cwi = w.abs() + 0.5 * now.abs() + 0.5 * memory.abs()
    torch.testing.assert_close(cwi[:3], scores(0.6, 0.4, 0.45))
    assert best(cwi, active, 2).tolist() == [True, False, True, False]
    assert best(w.abs(), active, 2).tolist() == [True, True, False, False]
    cgi = 0.5 * now.abs() + 0.5 * memory.abs()
    torch.testing.assert_close(cgi[:3], scores(0.1, 0.2, 0.35))
    assert best(cgi, active, 1).tolist() == [False, False, True, False]


def test_equal_scores_still_give_the_exact_count_and_the_lowest_indices() -> None:
    chosen = best(torch.ones(1000), torch.arange(1000) % 2 == 1, 100)
    assert chosen.nonzero().flatten().tolist() == list(range(1, 200, 2))
    some = best(scores(1, 2, 2, 2, 3), torch.ones(5, dtype=torch.bool), 3)
    assert some.tolist() == [False, True, True, False, True]
    assert best(scores(1, 2), torch.tensor([True, False]), 5).tolist() == [True, False]
    assert not best(scores(1, 2), torch.tensor([True, True]), 0).any()


def test_growth_is_even_among_the_inactive_and_seeded() -> None:
    active = torch.arange(100) < 24
    drawn = torch.stack([sprout(active, 1, rng(seed)) for seed in range(2000)])
    assert not (drawn & active).any()
    assert (drawn.sum(1) == 1).all()
    counts = drawn.sum(0)[24:]
    assert counts.min() > 8
    assert counts.max() < 55
    assert torch.equal(sprout(active, 7, rng(3)), sprout(active, 7, rng(3)))
    assert int(sprout(active, 500, rng()).sum()) == 76


def test_percentile_rule_of_the_published_code() -> None:
    found = torch.cat([torch.zeros(75), torch.arange(1, 26).float()])
    edge = np.percentile(found.numpy(), 75)
    assert edge == pytest.approx(0.25)
    assert int(above_percentile(found, 0.75).sum()) == 25
    assert int(above_percentile(found, 0.76).sum()) == 24


def test_no_row_is_left_without_a_weight() -> None:
    mask = Mask(Granules((8, 32)), guarded=True)
    uneven = torch.rand(8, 32, generator=torch.Generator().manual_seed(0)) + 10 * torch.arange(8)[:, None]
    mask.keep_best(uneven.flatten(), 0.9)
    assert int(mask.active.sum()) == 26
    table = mask.active.reshape(8, 32)
    assert table.any(1).all()
    assert int(table[7].sum()) == 19
    free = Mask(Granules((8, 32)))
    free.keep_best(uneven.flatten(), 0.9)
    assert not free.active.reshape(8, 32).any(1).all()


def test_granules_pool_and_spread() -> None:
    values = torch.arange(30.0).reshape(5, 6)
    cut = Granules((5, 6), (2, 4))
    assert (cut.grid, cut.n, cut.even) == ((3, 2), 6, False)
    assert cut.sizes().tolist() == [8, 4, 8, 4, 4, 2]
    blocks = [values[i : i + 2, j : j + 4] for i in (0, 2, 4) for j in (0, 4)]
    torch.testing.assert_close(cut.pool(values), torch.stack([b.mean() for b in blocks]))
    chosen = torch.tensor([True, False, False, False, False, True])
    there = cut.spread(chosen)
    assert there.nonzero().tolist() == [[i, j] for i in (0, 1) for j in range(4)] + [[4, 4], [4, 5]]
    assert cut.entries(chosen) == int(there.sum()) == 10
    rows = Granules((3, 2, 2), (1, 4))
    torch.testing.assert_close(rows.pool(torch.arange(12.0).reshape(3, 2, 2)), scores(1.5, 5.5, 9.5))
    assert rows.spread(torch.tensor([False, True, False])).flatten(1).all(1).tolist() == [False, True, False]
    assert rows.entries(torch.tensor([False, True, True])) == 8


def test_which_weights_are_masked() -> None:
    resnet = prunable(build("resnet18:64", (3, 32, 32), 10))
    assert len(resnet) == 16
    assert sum(torch.Size(shape).numel() for shape in resnet.values()) == 10_985_472
    assert not any("shortcut" in name or "stem" in name or "head" in name for name in resnet)
    assert list(prunable(build("mlp:256-256", (64,), 10))) == ["body.1.weight", "body.3.weight"]
    assert not prunable(build("mlp:8", (64,), 10))


def test_a_layer_that_could_not_keep_a_weight_per_row_stays_dense() -> None:
    shapes = {"wide": (8, 512), "tall": (512, 8)}
    assert set(masks_for(shapes, "element", 0.75)) == {"wide", "tall"}
    assert set(masks_for(shapes, "element", 0.95)) == {"wide"}
    assert set(masks_for(shapes, "row", 0.95)) == {"tall"}


def test_rows_are_rounded_up_to_a_multiple() -> None:
    mask = masks_for({"w": (64, 100)}, "row", 0.9, multiple=16)["w"]
    assert [mask.count(s) for s in (0.9, 0.7, 0.0)] == [16, 32, 64]


def test_state_round_trip() -> None:
    masks = masks_for({"w": (32, 64)}, "block", 0.5, block=(8, 8))
    masks["w"].keep_best(torch.arange(32.0), 0.5)
    masks["w"].moving = best(torch.arange(32.0), masks["w"].active, 3)
    other = masks_for({"w": (32, 64)}, "block", 0.5, block=(8, 8))
    load_masks(other, masks_state(masks))
    assert torch.equal(other["w"].active, masks["w"].active)
    assert torch.equal(other["w"].moving, masks["w"].moving)
    other["w"].active[:] = False
    assert int(masks["w"].active.sum()) == 16
