"""Batch norms whose statistics follow the stream, as functions: rows and statistics in, answers and statistics out.

The answer is by the statistics as they are; a second pass, each norm of which goes on with what it has moved to, gives
those from then on (``models/adaptive_norm.py``, mode running), all of them or, where one is not finite, none. A method
with a descent takes its step from that second pass, its gradient through the rows' share of the statistics included.

state: ``statistics`` float32[2 x channels], mean and variance of each norm, one after the other; with a descent also
what a step moves (``test_time.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...models.adaptive_norm import FARTHEST, WIDEST
from ...models.kernels.joined_norm import Statistics
from ...models.manual_passes import Plan
from ..learners.test_time import TestTimeLearner
from .steps import Steps, Verb, drawn, rows_module
from .test_time import OUTCOME, GraphPasses, Seen, Step, count_of, scores_of


def following_steps(learner: TestTimeLearner, passes: GraphPasses) -> Steps:
    """predict and adapt of a learner whose statistics move, and whatever else does."""
    rows = drawn(learner.inputs, learner.spec.n_features)
    step = Step(learner, passes) if learner.moving else None
    state = {**({} if step is None else step.state), "statistics": _joined(learner.followed)}
    names = tuple(state)
    asked = tuple(n for n in names if n in ("moving", "statistics"))
    verbs = {
        "predict": Verb(Predict(Statistic(learner, passes), rows_module(learner.inputs), asked), rows, asked),
        "adapt": Verb(Follow(learner, passes, step, names), rows, names, names, ("scores", "outcome")),
    }
    return Steps(verbs, state, {"outcome": OUTCOME})


def _joined(statistics: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([t.detach().clone() for t in statistics.values()])


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
            wide = torch.maximum(norm.running_var, norm.running_var.mean()) + norm.eps
            far = FARTHEST * wide.sqrt()
            held = torch.minimum(torch.maximum(middle, norm.running_mean - far), norm.running_mean + far)
            values = torch.scalar_tensor(h.numel() // h.shape[1], dtype=h.dtype)
            through = norm.follow * torch.stack([middle == held, (spread <= WIDEST * wide) & (values > 1)]).to(h.dtype)
            spread = torch.where(values > 1, torch.minimum(spread, WIDEST * wide), var)
            mean, var = mean + norm.follow * (held - mean), var + norm.follow * (spread - var)
            self.proposed.update({f"{at}.followed_mean": mean, f"{at}.followed_var": var})
            return Statistics(mean, var, 1.0, norm.eps, through if self.moving else None)
        return Statistics(mean, var, 1.0, norm.eps)


class Statistic:
    """A network's passes by given statistics, one vector of all of them."""

    def __init__(self, learner: TestTimeLearner, passes: GraphPasses) -> None:
        self.passes, self.names = passes, list(learner.followed)
        self.sizes = [len(learner.followed[n]) for n in self.names]
        self.source = _joined({n: learner.net.get_buffer(n.replace("followed_", "running_")) for n in self.names})

    def as_they_are(self, x: Tensor, moving: Tensor | None, statistics: Tensor) -> Tensor:
        """Logits."""
        return self._through(x, moving, statistics, None)[0]

    def moved(self, x: Tensor, moving: Tensor | None, statistics: Tensor) -> tuple[Seen, Tensor]:
        """A pass by statistics that follow the rows, and these."""
        found: dict[str, Tensor] = {}
        seen = self._through(x, moving, statistics, found)
        return seen, torch.cat([found[n] for n in self.names])

    def _through(self, x: Tensor, moving: Tensor | None, statistics: Tensor, found: dict[str, Tensor] | None) -> Seen:
        held = dict(zip(self.names, statistics.split(self.sizes)))
        plan = self.passes.plan
        now = {at: (held[f"{at}.followed_mean"], held[f"{at}.followed_var"]) for at in plan.norms}
        return self.passes(x, moving, FollowingPlan(plan.units, plan.norms, plan.moving, plan.wanted, now, found))


class Predict(nn.Module):
    """Rows, what moves and statistics to scores."""

    def __init__(self, by: Statistic, rows: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.by, self.rows, self.names = by, rows, names

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        old = dict(zip(self.names, state, strict=True))
        return (scores_of(self.by.as_they_are(self.rows(x), old.get("moving"), old["statistics"])),)


class Follow(nn.Module):
    """(x, *state) to (scores before the step, outcome, *state after it)."""

    def __init__(
        self, learner: TestTimeLearner, passes: GraphPasses, step: Step | None, names: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.rows, self.by, self.step, self.names = rows_module(learner.inputs), Statistic(learner, passes), step, names

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        old = dict(zip(self.names, state, strict=True))
        x, moving, statistics = self.rows(x), old.get("moving"), old["statistics"]
        scores = scores_of(self.by.as_they_are(x, moving, statistics))
        seen, found = self.by.moved(x, moving, statistics)
        took = torch.linalg.vector_norm(found) < math.inf
        new = {"statistics": torch.where(took, found, statistics)}
        if self.step is None:
            one = took.to(x.dtype)
            return (scores, torch.stack([one, one * count_of(x), 0 * one, 0 * one]), new["statistics"])

        def elsewhere(rows: Tensor, at: Tensor) -> Seen:
            return self.by.moved(rows, at, statistics)[0]

        moved, outcome = self.step.taken(x, seen, elsewhere, {n: old[n] for n in self.step.state})
        new["statistics"] = torch.where(outcome[2] > 0, self.by.source, new["statistics"])
        return (scores, outcome, *({**new, **moved}[n] for n in self.names))
