"""Where held-out tokens are routed to, on a made-up network whose tokens choose their bank themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from driftway.adapt.learners.token_probe import ROWS, TokenProbe
from driftway.models.dymoe import ExpertLinear, Routing
from driftway.streams.spec import OWN, PADDING, SHARED
from torch import Tensor, nn

LENGTH, TOKENS = 4, 3
"""Prompts of up to four tokens out of ids 1 to 3 (0: padding)."""


class Net(nn.Module):
    """Tokens as unit vectors (padding as zeros) through two layers of experts, and one that sees something else."""

    def __init__(self) -> None:
        super().__init__()
        self.layout = SimpleNamespace(length=LENGTH, pad=0, image=None, patch=0)
        self.layers = nn.ModuleList(self.layer(number) for number in range(3))

    @staticmethod
    def layer(number: int) -> ExpertLinear:
        return ExpertLinear(nn.Linear(TOKENS, 2), number, experts=1, rank=1, alpha=1.0, routing=Routing(0, 0.01))

    def forward(self, x: Tensor, y: Tensor, tokens: int) -> Tensor:  # noqa: ARG002 - as networks are called
        assert not self.training
        assert not torch.is_grad_enabled()
        longest = int((x[:, :LENGTH] != 0).sum(1).max())
        given = torch.eye(TOKENS + 1)[x[:, :longest].long()][..., 1:]
        self.layers[2](given[:, :1])
        return self.layers[0](given) + self.layers[1](given)


def aim(layer: ExpertLinear, token: int) -> None:
    """The newest bank's only expert is for this token."""
    with torch.no_grad():
        layer.new_router.copy_(torch.eye(TOKENS)[token - 1 : token])


def kinds(x: np.ndarray, experience: int) -> np.ndarray:  # noqa: ARG001 - as streams are asked
    """Token 3 is shared, the others are their experience's own."""
    of = np.array([PADDING, OWN, OWN, SHARED], np.int8)
    return of[x[:, :LENGTH].astype(int)]


@pytest.fixture
def learner() -> Any:
    x = [np.array([[1, 3, 0, 0], [1, 1, 3, 0]], np.float32), np.array([[2, 2, 2, 3]], np.float32)]
    held = tuple(SimpleNamespace(x=rows, y=np.zeros(len(rows), np.int64)) for rows in x)
    spec = SimpleNamespace(experiences=held, text=SimpleNamespace(kinds=kinds))
    net = Net()
    for layer in net.layers:
        aim(layer, 1)
    around = SimpleNamespace(around=torch.no_grad)
    return SimpleNamespace(net=net, spec=spec, writes=True, device=torch.device("cpu"), through=around)


def probe_of(learner: Any) -> TokenProbe:
    return TokenProbe(learner, {str(k): layer for k, layer in enumerate(learner.net.layers)})


def test_own_tokens_are_told_from_shared_ones(learner: Any) -> None:
    probe = probe_of(learner)
    assert probe.figures(1) == [{"own": 0.0, "ambiguous": None, "shared": 0.0}], "there is no newer bank"
    for layer in learner.net.layers:
        layer.grow()
        aim(layer, 3)
    first, second = probe.figures(2)
    assert first["own"] == pytest.approx(0.0, abs=1e-6)
    assert first["shared"] == pytest.approx(1.0, abs=1e-6), "token 3 has moved, as it may"
    assert second == {"own": 0.0, "ambiguous": None, "shared": 0.0}
    aim(learner.net.layers[0], 1)
    with torch.no_grad():
        learner.net.layers[0].new_router.mul_(-1)
        learner.net.layers[0].old_unit.neg_()
    assert probe.figures(1)[0]["own"] == pytest.approx(0.25, abs=1e-6), "one of two layers cannot tell the banks apart"


def test_rows_are_kept_through_a_checkpoint(learner: Any) -> None:
    probe = probe_of(learner)
    assert probe.state().shape == (3, 0, 0)
    probe.ended(1)
    for layer in learner.net.layers:
        layer.grow()
        aim(layer, 3)
    probe.ended(2)
    assert probe.drift is not None
    probe.drift["own"][1][0] = 1 / 3
    again = probe_of(learner)
    again.load(probe.state())
    assert again.drift == probe.drift
    assert again.facts(2) == probe.facts(2)
    assert len(probe.facts(2)["drift"]["own"]) == 3, "the row for now comes on top"
    assert probe.facts(2)["drifted"] == pytest.approx(0.0, abs=1e-6)
    assert len(probe.drift["own"]) == 2
    again.load(probe_of(learner).state())
    assert again.drift is None


def test_nothing_is_said_where_nobody_knows_the_tokens(learner: Any) -> None:
    for change in ({"writes": False}, {"spec": SimpleNamespace(text=None)}):
        probe = probe_of(SimpleNamespace(**(vars(learner) | change)))
        probe.ended(1)
        assert probe.facts(1) == {}
        assert probe.drift is None


def test_only_so_many_rows_are_looked_at(learner: Any) -> None:
    held = learner.spec.experiences[0]
    held.x, held.y = np.repeat(held.x[:1], ROWS + 5, axis=0), np.zeros(ROWS + 5, np.int64)
    held.x[ROWS:] = 2
    seen = []
    learner.net.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    probe_of(learner).figures(1)
    assert seen == [ROWS]
