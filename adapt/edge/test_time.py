"""Test-time adaptation as one function: rows and what moves in, answers and what moves out.

The step is that of ``learners/test_time.py`` and ``learners/test_time_step.py``, whose branches are here choices
between values: a step that is not taken gives back what it was given, a return to the source the source's. What moves
lies in one vector, and so do the moments, so that an update is a handful of nodes whatever the number of norms. The
network is a list of units (``models/units.py``), forward and back by ``models/manual_passes.py``.

state: ``moving`` float32[P]; ``momentum`` float32[P], or ``first`` and ``second`` float32[P] and ``taken`` float32[1]
of Adam; ``softmax`` float32[C], the filter's mean; ``running`` float32[2 or 1 each], the mean loss and the mean softmax
each with whether there is one.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.adaptive_norm import ENOUGH, AdaptiveNorm
from ...models.cluster_entropy import ClusterEntropy
from ...models.kernels.joined_norm import Statistics
from ...models.manual_passes import Plan, backward, forward
from ...models.optimisers import AdamW
from ...models.surrogate_gap import TINY
from ...models.units import Conv, missing_unit, units_of
from ..learners.test_time import TestTimeLearner
from ..learners.test_time_parts import (
    FEW_ROWS,
    ClusterEntropyObjective,
    Everything,
    Grouped,
    Novel,
    Objective,
    Recovery,
    Rows,
)
from ..learners.test_time_shots import Finetuning
from ..learners.test_time_step import LEAST
from .steps import CannotExport, Steps, Verb, drawn, over, rest_of, rows_module

OUTCOME = ("took", "kept", "reset", "loss")
"""What a step says of itself, float32[4]: whether it moved, on how many rows, back to the source, its loss."""


def steps(learner: TestTimeLearner) -> Steps:
    """predict, and adapt where anything moves; ``CannotExport`` for what has no graph."""
    _refuse(learner)
    if learner.taught is not None:
        from .prototypes import prototype_steps

        return prototype_steps(learner)
    passes = GraphPasses(learner.net, learner.moving)
    rows = drawn(learner.inputs, learner.spec.n_features)
    if learner.followed:
        from .running_statistics import following_steps

        return following_steps(learner, passes)
    verbs = {"predict": Verb(Predict(learner, passes), rows, ("moving",) if passes.names else ())}
    if not passes.names:
        return Steps(verbs, {})
    step = Step(learner, passes)
    names = tuple(step.state)
    verbs["adapt"] = Verb(step, rows, names, names, ("scores", "outcome"))
    return Steps(verbs, step.state, {"outcome": OUTCOME})


def _refuse(learner: TestTimeLearner) -> None:
    """Say in one line what there is no graph for."""
    parts, taught = learner.parts, learner.taught
    for there, what in (
        (parts.teacher and parts.teacher.views, "its teacher answers through views that are drawn at random"),
        (parts.memory, "its steps rest on a memory of rows and on views drawn at random"),
        (parts.augment, "steps on rows that are augmented at random cannot be repeated by a graph"),
        (parts.restore, "weights go back to the source's by lot"),
        (parts.teacher, "a teacher is a second network that follows the first"),
        (isinstance(parts.shots, Finetuning), "labelled rows train all weights; use csfa, teen or ncm for new classes"),
        (taught is not None and learner.followed, "prototypes beside running statistics: set another statistics"),
    ):
        if there:
            other = "" if ";" in what or ":" in what else "; use tent, eata, sar, rsgs or csfa"
            raise CannotExport(f"{_name(learner)} has no form as graphs: {what}{other}")
    net = learner.net if taught is None else body_of(learner)
    if units_of(net) is None:
        raise CannotExport(f"the model cannot be exported: {missing_unit(net)}")
    if learner.moving and Plan.of(net, learner.moving) is None:
        raise CannotExport("only scales and shifts of norms can move in a graph: set scope=affine")


def _name(learner: TestTimeLearner) -> str:
    """Of the recipe, as it stands in a table of learners."""
    return type(learner.params).__name__.lower()


def body_of(learner: TestTimeLearner) -> nn.Module:
    """The network without its prototypes; its parameters have the names that they have in the whole."""
    return nn.Sequential(OrderedDict(body=learner.net.get_submodule("body")))


# --- the network ------------------------------------------------------------------------------------------------


class GraphPlan(Plan):
    """A plan whose norms' statistics are functions of the number of rows, which may be unknown."""

    def statistics(self, at: str, h: Tensor) -> Statistics:
        norm = self.norms[at]
        keep, through = blend(norm, norm.statistics, count_of(h), h.shape[2:].numel())
        return Statistics(norm.running_mean, norm.running_var, keep, norm.eps, through)


def blend(norm: AdaptiveNorm, mode: str, rows: Tensor, positions: int) -> tuple[float | Tensor, Tensor | None]:
    """What the stored statistics weigh beside those of so many rows, and whether a gradient goes through the latter."""
    mixture = norm.prior / (norm.prior + rows)
    if mode in ("source", "mixed"):
        return (1.0 if mode == "source" else mixture), None
    if mode == "batch" and positions > 1:
        return 0.0, torch.ones_like(rows)
    through = ((rows >= ENOUGH) if mode == "auto" else (rows * positions > 1)).to(rows.dtype)
    return mixture * (1 - through), through


def count_of(x: Tensor) -> Tensor:
    """The number of rows as a float[]."""
    return torch.scalar_tensor(x.shape[0], dtype=x.dtype)


@dataclass(frozen=True)
class GraphConvolutions:
    """Convolutions, and their gradient as the transposed one, so that each weight is stored once."""

    weights: Mapping[str, Tensor]

    def forward(self, unit: Conv, x: Tensor) -> Tensor:
        """The convolution of x."""
        bias = None if unit.bias is None else self.weights[unit.bias]
        return F.conv2d(x, self.weights[unit.weight], bias, unit.stride, unit.padding, unit.dilation, unit.groups)

    def back(self, unit: Conv, dy: Tensor, x: Tensor) -> Tensor:
        """The gradient for x."""
        weight = self.weights[unit.weight]
        rest = [
            whole - ((part - 1) * s - 2 * p + d * (k - 1) + 1)
            for whole, part, s, p, d, k in zip(
                x.shape[2:], dy.shape[2:], unit.stride, unit.padding, unit.dilation, weight.shape[2:]
            )
        ]
        return F.conv_transpose2d(dy, weight, None, unit.stride, unit.padding, rest, unit.groups, unit.dilation)


Seen = tuple[Tensor, Callable[[Tensor], Tensor]]
"""What a pass gives: float[B, C], and the function from its slope to that of what moves."""
Elsewhere = Callable[[Tensor, Tensor], Seen]
"""A pass over rows at another place."""


class GraphPasses:
    """A network as a function of one vector of all that moves."""

    def __init__(self, net: nn.Module, moving: Mapping[str, Tensor]) -> None:
        found = Plan.of(net, moving) if moving else _still(net)
        assert found is not None
        self.plan = GraphPlan(found.units, found.norms, found.moving, found.wanted)
        value = {n: w.detach().clone() for n, w in net.named_parameters()}
        self.convolutions = GraphConvolutions({n: value[n] for n in _weights_of(found)})
        self.names = list(moving)
        self.sizes = [moving[n].numel() for n in self.names]
        self.value = {n: w for n, w in value.items() if n not in self.convolutions.weights}

    def flat(self, parts: Mapping[str, Any]) -> Tensor:
        """One vector of what is known by parameter name."""
        return torch.cat([torch.as_tensor(parts[n]).detach() for n in self.names])

    def __call__(self, x: Tensor, moving: Tensor | None, plan: Plan | None = None) -> Seen:
        """Logits float[B, C], and the function from their slope to that of ``moving``; plan: with other statistics."""
        value, plan = self.value, plan or self.plan
        if moving is not None:
            value = value | dict(zip(self.names, moving.split(self.sizes)))
        z, tape = forward(plan, self.convolutions, "graph", value, x)

        def pull(slope: Tensor) -> Tensor:
            return self.flat(backward(plan, self.convolutions, "graph", tape, slope))

        return z, pull


def _still(net: nn.Module) -> Plan:
    """The plan of a network in which nothing moves."""
    units = units_of(net)
    assert units is not None
    norms = {at: m for at, m in net.named_modules() if isinstance(m, AdaptiveNorm)}
    return Plan(units, norms, frozenset(), (False,) * (len(units) + 1))


def _weights_of(plan: Plan) -> list[str]:
    return [n for u in plan.units if isinstance(u, Conv) for n in (u.weight, u.bias) if n is not None]


def scores_of(z: Tensor) -> Tensor:
    """softmax(z), float[B, C]; a row whose logits are not finite is as likely of one class as of any other."""
    p = torch.softmax(z, 1)
    return torch.where(p == p, p, 1 / z.shape[1])


class Predict(nn.Module):
    """Rows, and what moves if anything does, to scores."""

    def __init__(self, learner: TestTimeLearner, passes: GraphPasses) -> None:
        super().__init__()
        self.rows, self.passes = rows_module(learner.inputs), passes

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        z, _ = self.passes(self.rows(x), state[0] if state else None)
        return (scores_of(z),)


# --- the step ---------------------------------------------------------------------------------------------------


class Step(nn.Module):
    """One step of a method: (x, *state) to (scores before it, outcome, *state after it)."""

    def __init__(self, learner: TestTimeLearner, passes: GraphPasses) -> None:
        super().__init__()
        self.rows, self.passes, self.parts = rows_module(learner.inputs), passes, learner.parts
        self.objective = graph_objective(learner.parts.objective)
        assert learner.parts.descent is not None
        self.descent, self.calmed = learner.parts.descent, learner.calmed
        self.classes = learner.classes
        self.first = torch.arange(learner.classes) < getattr(self.parts.filter, "base", 0)
        self.source = passes.flat(learner.source)
        self.fisher = None if learner.hold is None else 2 * learner.hold.beta * passes.flat(learner.hold.fisher)
        self.state = self._state(learner)

    def _state(self, learner: TestTimeLearner) -> dict[str, Tensor]:
        """By name, in the order of the graph's inputs."""
        slots = {} if learner.optimiser is None else learner.optimiser.slots
        zeros = {n: torch.zeros_like(w) for n, w in learner.moving.items()}

        def slot(key: str) -> Tensor:
            return self.passes.flat({n: slots.get(n, {}).get(key, zeros[n]) for n in zeros})

        state = {"moving": self.passes.flat(learner.moving)}
        if isinstance(learner.optimiser, AdamW):
            taken = next((float(s["t"]) for s in slots.values()), 0.0)
            state |= {"first": slot("m"), "second": slot("v"), "taken": torch.tensor([taken])}
        elif self.descent.momentum:
            state["momentum"] = slot("momentum")
        if isinstance(self.parts.filter, Novel):
            mean = learner.mean_softmax
            known = torch.zeros(self.classes) if mean is None else mean.clone()
            state |= {"softmax": known, "softmax_known": torch.tensor([float(mean is not None)])}
        if self.parts.recovery is not None:
            loss = learner.mean_loss
            state["loss"] = torch.tensor([loss or 0.0, float(loss is not None)])
        return state

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        old = dict(zip(self.state, state, strict=True))
        x = self.rows(x)
        seen = self.passes(x, old["moving"])
        new, outcome = self.taken(x, seen, self.passes, old)
        return (scores_of(seen[0]), outcome, *(new[n] for n in self.state))

    def taken(
        self, x: Tensor, seen: Seen, elsewhere: Elsewhere, old: Mapping[str, Tensor], classes: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The state after the step, and what the step says of itself. seen: of the rows as the network is. classes: how
        many have logits that count, where that is not fixed."""
        z, pull = seen
        rows = self._losses(z, classes)
        mask, new = self._choose(z, rows, old)
        direction, kept, loss = self._direction(x, rows, mask, pull, elsewhere, old["moving"], classes)
        length = torch.linalg.vector_norm(direction)
        took = (length < math.inf) & (kept > 0)
        moved = self._update(direction, count_of(x), old)
        new |= {n: torch.where(took, value, old[n]) for n, value in moved.items()}
        new, reset = self._recover(new, old, loss, took, classes)
        outcome = torch.stack([took.to(z.dtype), torch.where(took, kept, 0.0), reset.to(z.dtype), loss])
        return new, outcome

    def _losses(self, z: Tensor, classes: Tensor | None) -> Rows:
        rows = self.objective.rows(z)
        return rows if classes is None else replace(rows, most=torch.log(classes))  # type: ignore[arg-type]

    def _choose(self, z: Tensor, rows: Rows, old: Mapping[str, Tensor]) -> tuple[Tensor | None, dict[str, Tensor]]:
        """bool[B] of the rows that count (None: all), and what the filter remembers from then on."""
        how = self.parts.filter
        if isinstance(how, Everything):
            return None, {}
        if isinstance(how, Grouped):
            return surest(self.first[z.argmax(1)], rows.doubt, how.share), {}
        mask = how.again(rows)
        if not isinstance(how, Novel):
            return mask, {}
        mean, known = old["softmax"], old["softmax_known"]
        p = torch.softmax(z, 1)
        mask = mask & ((known == 0) | (cosine(p, mean).abs() < how.like))
        weight = mask.to(p.dtype)
        n = weight.sum()
        now = (p * weight[:, None]).sum(0) / n.clamp(min=1)
        followed = torch.where(known > 0, how.decay * mean + (1 - how.decay) * now, now)
        return mask, {
            "softmax": torch.where(n > 0, followed, mean),
            "softmax_known": torch.maximum(known, (n > 0).to(p.dtype)),
        }

    def _direction(
        self, x: Tensor, rows: Rows, mask: Tensor | None, pull: Any, elsewhere: Elsewhere, moving: Tensor,
        classes: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Where to go, on how many rows that rests (0: nowhere), and the loss that the recovery follows."""
        how = self.parts.direction
        loss, slope, n = mean_over(rows, mask)
        g = pull(slope) + self._held(moving)
        loss = loss + self._penalty(moving)
        if how.rho == 0:
            return g, n, loss
        length = torch.linalg.vector_norm(g)
        shifted = moving + g * (how.rho / length.clamp(min=TINY))
        z, pull = elsewhere(x, shifted)
        rows = self._losses(z, classes)
        if how.refilter:
            again = self.parts.filter.again(rows)
            mask = again if mask is None else mask & again
        perturbed, slope, left = mean_over(rows, mask)
        p = pull(slope) + self._held(shifted)
        kept = torch.where((length >= LEAST) & (n > 0), left, 0.0)
        if how.alpha:
            b = count_of(x)
            alpha = torch.where(b < FEW_ROWS, min(how.alpha, how.few), how.alpha)
            if self.calmed:
                alpha = alpha.clamp(min=0.4)
            c = over((g * p).sum(), (p * p).sum(), TINY)
            p = p - alpha * (g - c * p)
        if how.clip:
            bound = (how.clip / torch.linalg.vector_norm(p).clamp(min=LEAST)).clamp(max=1.0)
            p = p * torch.where(kept == 1, bound, 1.0)
        return p, kept, perturbed + self._penalty(shifted)

    def _held(self, at: Tensor) -> Tensor | float:
        return 0.0 if self.fisher is None else self.fisher * (at - self.source)

    def _penalty(self, at: Tensor) -> Tensor | float:
        return 0.0 if self.fisher is None else 0.5 * (self.fisher * (at - self.source).square()).sum()

    def _update(self, direction: Tensor, rows: Tensor, old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All that a step writes."""
        rate = self._rate(rows)
        if "first" in old:
            assert self.descent.optimizer == "adam"
            b1, b2 = AdamW(self.descent.lr).betas
            taken = old["taken"] + 1
            first = old["first"] + (1 - b1) * (direction - old["first"])
            second = b2 * old["second"] + (1 - b2) * direction * direction
            length = torch.sqrt(second) / torch.sqrt(rest_of(b2, taken))
            moving = old["moving"] - (rate / rest_of(b1, taken)) * over(first, length, AdamW(self.descent.lr).eps)
            return {"moving": moving, "first": first, "second": second, "taken": taken}
        if "momentum" not in old:
            return {"moving": old["moving"] - rate * direction}
        momentum = self.descent.momentum * old["momentum"] + direction
        return {"moving": old["moving"] - rate * momentum, "momentum": momentum}

    def _rate(self, rows: Tensor) -> Tensor | float:
        """As ``Descent.rate``, for a number of rows that is not known yet."""
        how, calm = self.descent, 0.5**self.calmed
        if how.by_rows == "none":
            return how.lr * calm
        if how.by_rows == "linear":
            return how.lr * calm * (rows / FEW_ROWS).clamp(max=1.0)
        few = torch.where(rows == 1, 2.0, 1.0) * rows * (2 / 64)
        return how.lr * calm * torch.where(rows < 32, few, 1.0)

    def _recover(
        self,
        new: dict[str, Tensor],
        old: Mapping[str, Tensor],
        loss: Tensor,
        took: Tensor,
        classes: Tensor | None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Back to the source after a step to nowhere, or once the running loss is below its threshold."""
        bad = ~(torch.linalg.vector_norm(new["moving"]) < math.inf)
        if "second" in new:
            bad = bad | ~(torch.linalg.vector_norm(new["second"]) < math.inf)
        how = self.parts.recovery
        if how is not None:
            mean, known = old["loss"].unbind()
            mean = torch.where(known > 0, how.decay * mean + (1 - how.decay) * loss, loss)
            bad = bad | (mean < threshold_of(how, self.classes if classes is None else classes))
            followed = torch.stack([mean, torch.ones_like(mean)])
            new["loss"] = torch.where(took, followed, old["loss"])
        reset = took & bad
        fresh = {"moving": self.source}
        for name in ("moving", "momentum", "first", "second", "taken", "loss", "softmax", "softmax_known"):
            if name in new:
                new[name] = torch.where(reset, fresh.get(name, torch.zeros_like(new[name])), new[name])
        return new, reset


# --- what objectives and filters are in a graph --------------------------------------------------------------------


def graph_objective(objective: Objective) -> Objective:
    """The same; groups of classes as a matrix of shares, for a product takes the place of a sum by index."""
    if not isinstance(objective, ClusterEntropyObjective) or objective.measure is None:
        return objective
    ids = objective.measure.cluster_ids
    assert ids is not None
    shares = F.one_hot(ids, objective.measure.clusters).float()
    measure = ClusterEntropy(assign=shares, within=objective.measure.within, reduction="none")
    return replace(objective, measure=measure)


def mean_over(rows: Rows, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The mean loss over the rows that count, its slope by the logits, and how many they are; zeros for none."""
    if mask is None:
        n = count_of(rows.slope)
        return rows.value.mean(), rows.slope / n, n
    weight = mask.to(rows.value.dtype)
    n = weight.sum()
    share = 1 / n.clamp(min=1)
    slope = torch.where(mask[:, None], rows.slope, 0.0) * share
    return torch.where(mask, rows.value, 0.0).sum() * share, slope, n


def threshold_of(how: Recovery, classes: int | Tensor) -> float | Tensor:
    """As ``Recovery.threshold``, for a number of classes that may be a tensor."""
    if isinstance(classes, int) or not how.by_classes:
        return how.threshold(2 if isinstance(classes, Tensor) else classes)
    return how.below / math.log(1000) * torch.log(classes)


def surest(first: Tensor, doubt: Tensor, share: float) -> Tensor:
    """bool[B]: of the rows answered with one of the first classes (bool[B]), and of all others, the least doubtful."""
    same = first[:, None] == first[None, :]
    place = torch.arange(doubt.shape[0])
    before = (doubt[None, :] < doubt[:, None]) | (
        (doubt[None, :] == doubt[:, None]) & (place[None, :] < place[:, None])
    )
    rank = (same & before).to(doubt.dtype).sum(1)
    size = same.to(doubt.dtype).sum(1)
    return rank < torch.floor(share * size + 0.5)


def cosine(p: Tensor, mean: Tensor) -> Tensor:
    """float[B]: of each row with one vector, as ``F.cosine_similarity`` has it."""
    lengths = torch.linalg.vector_norm(p, dim=1) * torch.linalg.vector_norm(mean)
    return (p @ mean) / lengths.clamp(min=1e-8)
