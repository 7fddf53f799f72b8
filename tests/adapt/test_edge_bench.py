"""The bench of bundles on networks of a few channels: what it compares agrees, what it tells is complete."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from driftway.adapt.benchmarks import edge
from driftway.adapt.benchmarks.tta import Differs, Plain
from driftway.adapt.edge.runner import Runner


def test_one_step_agrees_with_the_peer_or_the_bench_ends(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (1, 8, 8)
    net = edge._network("convnet:4", shape)
    made = edge.export(edge._learner(net, shape), edge._spec(shape), bundle)
    monkeypatch.setattr(edge, "ROUND_SECONDS", 1e-3)
    row = edge._latency("convnet:4", net, shape, made, 16, 1)
    assert row["ratio"] == pytest.approx(row["peer"] / row["ours"])
    other = Plain(edge.build("convnet:4", shape, 10, seed=5).eval(), "tent", 16, 0.1)
    (x, *_) = edge._rows(shape, 16)
    with pytest.raises(Differs, match="apart"):
        edge._agree("convnet:4", other, Runner(made), x, edge.torch.from_numpy(x).reshape(-1, *shape))


@pytest.fixture(name="bundle")
def bundle_fixture(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


def test_turns_are_taken_and_sizes_are_those_on_the_disk() -> None:
    counts = [0, 0]

    def step(k: int) -> object:
        def one(_: object) -> None:
            counts[k] += 1
            np.linalg.norm(np.ones(100))

        return one

    edge._in_turn(step(0), [0], step(1), [0], lambda: sum(counts) * 1e-3)  # type: ignore[arg-type]
    assert min(counts) > edge.ROUNDS
    found = edge._sizes("onnxruntime")
    assert {"onnxruntime", "numpy"} <= set(found)
    assert all(size > 0 for size in found.values())
    assert edge._sizes("no such distribution") == {}
