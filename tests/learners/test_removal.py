"""Data removal: who leaves, when, and that nobody is forgotten over a save."""

from __future__ import annotations

import json

import numpy as np
import torch
from driftway.adapt.learners.removal import Removal, Score
from driftway.adapt.state import join, split

WRONG = (0, 3, 1, 0, 2, 5, 0, 4, 1, 2)
X = torch.arange(30.0).reshape(10, 3)


def gone(removal: Removal, x: torch.Tensor = X) -> set[int]:
    keep = removal.keep(x)
    return set() if keep is None else set((~keep).nonzero().flatten().tolist())


def watched(share: float = 0.4, cutoff: int = 2, score: Score = "misclassified", seed: int = 0) -> Removal:
    """Every row shown six times, wrong as often as in the note."""
    removal = Removal(share, cutoff, score, seed)
    for turn in range(6):
        removal.observe(X, torch.tensor([turn >= wrong for wrong in WRONG]))
    return removal


def test_the_notes_example() -> None:
    chosen = set()
    for seed in range(20):
        removal = watched(seed=seed)
        assert gone(removal) == set()
        removal.end_stage(1)
        first = gone(removal)
        assert len(first) == 2
        assert first < {0, 3, 6}
        chosen |= first
        removal.end_stage(1)
        assert gone(removal) == first, "a stage ends once"
        rest = torch.tensor([i not in first for i in range(10)])
        removal.observe(X[rest], torch.ones(8, dtype=torch.bool))
        removal.end_stage(2)
        assert len(gone(removal)) == removal.removed == 4
        removal.observe(X[rest], torch.ones(8, dtype=torch.bool))
        removal.end_stage(3)
        assert removal.removed == 4, "nothing leaves after the cutoff"
    assert chosen == {0, 3, 6}, "equals are a matter of lot"


def test_rows_are_known_by_their_numbers_whatever_their_order() -> None:
    removal = watched()
    removal.end_stage(1)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    assert {int(order[i]) for i in gone(removal, X[order])} == gone(removal)
    assert gone(removal, X + 100.0) == set()
    assert gone(removal, X.reshape(10, 1, 3, 1)) == gone(removal)


def test_forgetting_counts_turns_from_right_to_wrong_and_rows_never_right_stay() -> None:
    removal = Removal(0.5, 1, "forgetting", 0)
    turns = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1]]).bool()
    for turn in turns.T:
        removal.observe(X[:4], turn)
    removal.end_stage(1)
    assert gone(removal, X[:4]) == {0, 3}


def test_nothing_leaves_without_share_or_cutoff_or_presentation() -> None:
    for share, cutoff in ((0.0, 2), (0.4, 0)):
        removal = watched(share, cutoff)
        removal.end_stage(1)
        assert gone(removal) == set()
    unseen = Removal(0.4, 1, "misclassified", 0)
    unseen.keep(X)
    unseen.end_stage(1)
    assert gone(unseen) == set()


def test_a_new_experience_has_all_its_rows() -> None:
    removal = watched()
    removal.end_stage(1)
    removal.begin()
    assert gone(removal) == set()
    assert (removal.removed, removal.stage) == (0, 0)


def test_saved_and_continued() -> None:
    one, other = watched(), Removal(0.4, 2, "misclassified", 9)
    one.end_stage(1)
    skeleton, arrays = split(one.state())
    other.load(join(json.loads(json.dumps(skeleton)), {k: np.array(v) for k, v in arrays.items()}))
    for removal in (one, other):
        removal.observe(X, torch.ones(10, dtype=torch.bool))
        removal.end_stage(2)
    assert gone(one) == gone(other)
    assert one.removed == 4
