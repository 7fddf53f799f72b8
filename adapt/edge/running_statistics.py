"""Batch norms whose statistics follow the stream, as functions: rows and statistics in, answers and statistics out.

The answer is by the statistics as they are; a second pass, each norm of which goes on with what it has moved to, gives
those from then on (``models/adaptive_norm.py``, mode running), all of them or, where one is not finite, none. There is
no gradient in it.

state: ``statistics`` float32[2 x channels], mean and variance of each norm, one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...models.adaptive_norm import FARTHEST, WIDEST
from ...models.kernels.joined_norm import Statistics
from ...models.manual_passes import Plan, forward
from ..learners.test_time import TestTimeLearner
from .steps import Steps, Verb, drawn, rows_module
from .test_time import OUTCOME, GraphPasses, count_of, scores_of


def following_steps(learner: TestTimeLearner, passes: GraphPasses) -> Steps:
    """predict and adapt of a learner in which nothing moves but statistics."""
    rows = drawn(learner.inputs, learner.spec.n_features)
    state = {"statistics": torch.cat([t.clone() for t in learner.followed.values()])}
    names = tuple(state)
    verbs = {
        "predict": Verb(Follow(learner, passes, moves=False), rows, names),
        "adapt": Verb(Follow(learner, passes, moves=True), rows, names, names, ("scores", "outcome")),
    }
    return Steps(verbs, state, {"outcome": OUTCOME})


@dataclass(frozen=True)
class FollowingPlan(Plan):
    """A plan with given statistics by norm; where ``proposed`` is a dict, norms move on and leave there what to."""

    now: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    proposed: dict[str, Tensor] | None = None

    def statistics(self, at: str, h: Tensor) -> Statistics:
        norm, (mean, var) = self.norms[at], self.now[at]
        if self.proposed is not None:
            over = [0, *range(2, h.dim())]
            middle = h.mean(over)
            spread = (h - middle.reshape(1, -1, *(1,) * (h.dim() - 2))).square().mean(over)
            wide = norm.running_var.clamp(min=float(norm.running_var.mean())) + norm.eps
            far = FARTHEST * wide.sqrt()
            middle = torch.minimum(torch.maximum(middle, norm.running_mean - far), norm.running_mean + far)
            values = torch.scalar_tensor(h.numel() // h.shape[1], dtype=h.dtype)
            spread = torch.where(values > 1, torch.minimum(spread, WIDEST * wide), var)
            mean, var = mean + norm.follow * (middle - mean), var + norm.follow * (spread - var)
            self.proposed.update({f"{at}.followed_mean": mean, f"{at}.followed_var": var})
        return Statistics(mean, var, 1.0, norm.eps)


class Follow(nn.Module):
    """(x, statistics) to (scores, outcome, statistics); to the scores alone where it only predicts."""

    def __init__(self, learner: TestTimeLearner, passes: GraphPasses, *, moves: bool) -> None:
        super().__init__()
        self.rows, self.passes, self.moves = rows_module(learner.inputs), passes, moves
        self.names = list(learner.followed)
        self.sizes = [len(learner.followed[n]) for n in self.names]

    def forward(self, x: Tensor, statistics: Tensor) -> tuple[Tensor, ...]:
        held = dict(zip(self.names, statistics.split(self.sizes)))
        plan = self.passes.plan
        now = {at: (held[f"{at}.followed_mean"], held[f"{at}.followed_var"]) for at in plan.norms}
        x = self.rows(x)
        scores = scores_of(self._through(FollowingPlan(plan.units, plan.norms, plan.moving, plan.wanted, now), x))
        if not self.moves:
            return (scores,)
        found: dict[str, Tensor] = {}
        self._through(FollowingPlan(plan.units, plan.norms, plan.moving, plan.wanted, now, found), x)
        new = torch.cat([found[n] for n in self.names])
        took = torch.linalg.vector_norm(new) < math.inf
        moved = took.to(new.dtype)
        outcome = torch.stack([moved, moved * count_of(x), torch.zeros(()), torch.zeros(())])
        return (scores, outcome, torch.where(took, new, statistics))

    def _through(self, plan: FollowingPlan, x: Tensor) -> Tensor:
        return forward(plan, self.passes.convolutions, "graph", self.passes.value, x)[0]
