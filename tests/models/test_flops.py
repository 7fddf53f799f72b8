"""Operations and bytes of sparse training: the figures of the SparCL paper, from the shapes of the network."""

from __future__ import annotations

import pytest
import torch
from driftway.models.flops import StepCost, layer_costs, sparse_bytes, step_cost, surviving
from driftway.models.masks import prunable
from driftway.models.networks import build

ROWS = 50_000 * 50
"""Split CIFAR-10: rows presented in all epochs of all tasks."""


@pytest.fixture(scope="module", name="resnet")
def resnet_fixture():
    net = build("resnet18:64", (3, 32, 32), 10)
    return layer_costs(net, torch.zeros(1, 3, 32, 32)), list(prunable(net))


def test_multiplications_of_resnet18(resnet) -> None:
    costs, masked = resnet
    assert sum(layer.macs for layer in costs.values()) == 555_422_720
    assert sum(costs[name].macs for name in masked) == 547_356_672
    assert sum(costs[name].weights for name in masked) == 10_985_472


def test_a_network_in_half_precision_costs_as_many() -> None:
    net = build("convnet:4-8", (1, 8, 8), 3)
    x = torch.zeros(1, 1, 8, 8)
    assert layer_costs(net, x) == layer_costs(net.bfloat16(), x)


def test_the_papers_figures_for_split_cifar10(resnet) -> None:
    costs, masked = resnet
    dense = step_cost(costs)

    def sparse(density: float) -> StepCost:
        return step_cost(costs, dict.fromkeys(masked, density))

    def printed(value: float) -> float:
        return round(value / 1e15, 2)

    assert printed(dense.paper(ROWS)) == 8.33  # no replay
    assert printed(dense.paper(ROWS, ROWS)) == 11.11  # ER
    assert printed(dense.paper(ROWS, 2 * ROWS)) == 13.89  # DER++
    assert printed(sparse(0.10).paper(ROWS, 2 * ROWS)) == 1.57  # SNIP, RigL at .90
    assert printed(sparse(0.05).paper(ROWS, 2 * ROWS)) == 0.89  # at .95
    assert printed(sparse(0.25).paper(ROWS, 2 * ROWS)) == 3.62  # TDM at .75
    kept = ROWS * surviving(0.3, 4, 5, 50)
    assert surviving(0.3, 4, 5, 50) == pytest.approx(0.775)
    assert printed(sparse(0.25).paper(kept, 2 * kept)) == 2.81  # TDM and DDR
    # All three at .75: the paper prints 2.5, this convention gives 2.7; see the note of the method.
    both = step_cost(costs, dict.fromkeys(masked, 0.25), dict.fromkeys(masked, 0.2))
    assert both.paper(kept, 2 * kept) / 1e15 == pytest.approx(2.5, rel=0.09)
    assert both.paper(kept, kept) / 1e15 == pytest.approx(2.0, rel=0.09)


def test_a_replayed_row_truly_costs_as_much_as_any(resnet) -> None:
    dense = step_cost(resnet[0])
    assert dense.true(ROWS, ROWS) == 2 * dense.true(ROWS)
    assert dense.true(ROWS) == dense.paper(ROWS)
    assert dense.true(ROWS, 2 * ROWS) / dense.forward / ROWS == pytest.approx(9)


def test_the_papers_figure_for_tiny_imagenet() -> None:
    dense = step_cost(layer_costs(build("resnet18:64", (3, 64, 64), 200), torch.zeros(1, 3, 64, 64)))
    rows = 100_000 * 100
    assert round(dense.paper(rows, 2 * rows) / 1e16, 1) == 22.2


def test_counting_leaves_no_trace() -> None:
    net = build("convnet:8-16", (1, 8, 8), 4)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    costs = layer_costs(net.train(), torch.zeros(1, 1, 8, 8))
    assert net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert [layer.macs for layer in costs.values()] == [64 * 8 * 9, 16 * 16 * 8 * 9, 64]
    assert not any(module._forward_hooks for module in net.modules())


def test_bytes() -> None:
    n, there, moving = 1_000_000, 100_000, 80_000
    assert sparse_bytes(n, there, moving, 1000, "csr") == {
        "weights": 400_000,
        "index": 404_000,
        "gradient": 320_000,
        "mask": 125_000,
    }
    assert sparse_bytes(n, there, moving, 1000, "bitmap")["index"] == 125_000
    assert sparse_bytes(n, there, moving, 1000, "block", block=1000)["index"] == 400
    assert sparse_bytes(n, there, moving, 100, "rows")["index"] == 400
