"""What tests share: rows of a stream, coin flips, a walk over a forest."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.streams import concatenate
from river.tree.nodes.htc_nodes import LeafMajorityClass, LeafNaiveBayesAdaptive
from river.tree.utils import do_naive_bayes_prediction
from threadpoolctl import threadpool_limits


def pytest_configure() -> None:
    """Where pytest runs in several processes each has one thread: more would wait for each other's cores."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        threadpool_limits(1)


def first_rows(name: str, rows: int, seed: int = 0, **params: Any) -> tuple[dw.StreamSpec, dw.Batch]:
    """Spec and first rows of a stream; skips where its data set is not on this machine."""
    try:
        stream = dw.take(dw.stream(name, seed=seed, **params), rows)
    except dw.InputError as missing:
        pytest.skip(str(missing))
    return stream.spec, concatenate([e for e in stream if isinstance(e, dw.Batch)])


@pytest.fixture(name="first_rows", scope="session")
def first_rows_fixture() -> Callable[..., tuple[dw.StreamSpec, dw.Batch]]:
    return first_rows


def coin_flips(n: int = 10_000) -> tuple[dw.StreamSpec, dw.Batch]:
    """Labels that nothing can predict: whoever does better than 50 % has seen them."""
    rng = np.random.default_rng(11)
    columns = (*(dw.Column(f"x{j}") for j in range(4)), dw.Column("kind", ("a", "b", "c")))
    x = np.c_[rng.normal(size=(n, 4)), rng.integers(0, 3, n)]
    spec = dw.StreamSpec("coin", columns, classes=("heads", "tails"))
    return spec, dw.Batch(np.arange(n), x, 0.0, rng.integers(0, 2, n))


@pytest.fixture(name="coin_flips", scope="session")
def coin_flips_fixture() -> tuple[dw.StreamSpec, dw.Batch]:
    return coin_flips()


def check_slots(forest: Any) -> int:
    """Every node and leaf slot is used once or free once; returns how many leaves are in use."""
    nodes: list[int] = [int(root) for root in forest.root if root >= 0]
    leaves: list[int] = []
    for at in nodes:  # grows on the way
        kind, _, left, right, leaf, _ = (int(v) for v in forest.node[at])
        if kind == 0:
            leaves.append(leaf)
        else:
            nodes += [int(b) for b in forest.branches[left : left + right]] if kind == 3 else [left, right]
    free_nodes = forest.free_nodes[: forest.used[0]].tolist()
    free_leaves = forest.free_leaves[: forest.used[1]].tolist()
    assert sorted(nodes + free_nodes) == list(range(len(forest.node)))
    assert sorted(leaves + free_leaves) == list(range(len(forest.leaf)))
    return len(leaves)


@pytest.fixture(name="check_slots", scope="session")
def check_slots_fixture() -> Callable[[Any], int]:
    return check_slots


def learn_lowest_on_ties(self: Any, x: Any, y: Any, *, w: float = 1.0, tree: Any = None) -> None:
    """River's scoreboard of an adaptive leaf, but the lowest class wins ties."""
    for name, scores in (
        ("_mc_correct_weight", LeafMajorityClass.prediction(self, x)),
        ("_nb_correct_weight", do_naive_bayes_prediction(x, self.stats, self.splitters)),
    ):
        empty = not scores and name == "_mc_correct_weight"
        if empty or (scores and max(sorted(scores), key=scores.get) == y):
            setattr(self, name, getattr(self, name) + w)
    LeafMajorityClass.learn_one(self, x, y, w=w, tree=tree)


@pytest.fixture
def river_takes_the_lowest_on_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test, river's adaptive leaves settle ties as ours do."""
    monkeypatch.setattr(LeafNaiveBayesAdaptive, "learn_one", learn_lowest_on_ties)
