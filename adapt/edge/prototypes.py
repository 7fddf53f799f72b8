"""Prototypes as functions: labelled rows of new classes in, and a cosine classifier that knows them out.

What ``learners/test_time_shots.py`` and ``models/prototypes.py`` do, with one place for each class of the stream: a
class that nobody has shown yet has a logit of no weight. A method with a descent takes its step through the cosine
(``test_time.py``). Where norms look at the rows at hand, labelled rows are embedded in company of others, in one pass
in which each place of a row counts or does not. With company that comes after them, labelled rows wait in the state,
and the step that brings enough company makes their prototypes anew: the one ``If`` of these graphs, since a pass over
all of them at every step would cost more than the step.

Ours: base classes of a request are taken before new ones, whatever their codes, and no more than ``WAITING`` rows wait;
labels past that are refused.

state: ``prototypes`` float32[C, 2 d + 2], of each class its mean, its row, its shots and whether it is known; what the
step moves (``test_time.py``); ``company`` float32[64, ...], newest last, and ``come`` float32[2], how much of it there
is and how much there was when the waiting rows were last embedded; ``open`` float32[WAITING, ...], ``open_y``
int64[WAITING], ``open_count`` float32[2], how many wait and whether any do, ``before``, prototypes without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.kernels.joined_norm import Statistics
from ...models.manual_passes import Plan
from ...models.prototypes import EPS, Calibration, Prototypes
from ..learners.test_time import TestTimeLearner
from ..learners.test_time_parts import Entropy, Novel
from ..learners.test_time_shots import COMPANY, SANE, Prototyped, looks_at_rows
from .steps import CannotExport, Steps, Verb, drawn, labelled, rows_module
from .test_time import OUTCOME, GraphPasses, Seen, Step, blend, body_of, scores_of

WAITING = 128
UNKNOWN = -1e30
"""Logit of a class that is not known: its probability is 0, and no number on the way is infinite."""


def prototype_steps(learner: TestTimeLearner) -> Steps:
    """predict, learn, and adapt where anything moves or company is kept."""
    taught, classes = learner.taught, learner.spec.n_classes
    assert isinstance(taught, Prototyped)
    if classes is None:
        raise CannotExport("prototypes can be exported for a stream that names its classes only: their number is fixed")
    if learner.moving and not isinstance(learner.parts.objective, Entropy):
        raise CannotExport("beside prototypes the entropy alone has a form as a graph: groups of classes follow them")
    made = Classifier(learner, taught, classes)
    step = _step(learner, made) if learner.moving else None
    state = {**({} if step is None else step.state), **made.state(taught)}
    rows = drawn(learner.inputs, learner.spec.n_features)
    names = tuple(state)
    asked = tuple(n for n in names if n in ("moving", "prototypes"))
    learn = Learn(made, state, mean="loss" in state)
    verbs = {
        "predict": Verb(Predict(made, asked), rows, asked),
        "learn": Verb(learn, labelled(rows, classes), learn.names, learn.writes, ("outcome",)),
    }
    if step is not None or made.looks:
        adapt = Adapt(made, step, names)
        verbs["adapt"] = Verb(adapt, rows, names, adapt.writes, ("scores", "outcome"))
    return Steps(verbs, state, {"outcome": OUTCOME})


def _step(learner: TestTimeLearner, made: Classifier) -> Step:
    step = Step(learner, made.passes)
    if isinstance(learner.parts.filter, Novel):
        raise CannotExport(
            "beside prototypes a filter by the mean softmax has no form as a graph: set filter=confident"
        )
    step.first = torch.zeros(made.classes, dtype=torch.bool)
    step.first[made.order[: getattr(learner.parts.filter, "base", 0)]] = True
    return step


@dataclass(frozen=True)
class CountedPlan(Plan):
    """A plan over rows of which some do not count, weight float[B] of 0 and 1; alone: nobody keeps them company."""

    weight: Tensor = field(default_factory=lambda: torch.ones(0))
    alone: Tensor = field(default_factory=lambda: torch.ones(()))
    lone: str = "batch"

    def statistics(self, at: str, h: Tensor) -> Statistics:
        norm = self.norms[at]
        positions, over = h.shape[2:].numel(), [0, *range(2, h.dim())]
        rows = self.weight.sum()
        share = self.weight.reshape(-1, *(1,) * (h.dim() - 1)) / (rows.clamp(min=1) * positions)
        mean = (h * share).sum(over)
        var = ((h - mean.reshape(1, -1, *(1,) * (h.dim() - 2))).square() * share).sum(over)
        kept = [blend(norm, mode, rows, positions)[0] for mode in (norm.statistics, self.lone)]
        keep = torch.where(self.alone > 0, kept[1], kept[0])
        mean, var = mean + keep * (norm.running_mean - mean), var + keep * (norm.running_var - var)
        return Statistics(mean, var, 1.0, norm.eps)


class Classifier:
    """A body and prototypes of every class that there may be, as functions of state."""

    def __init__(self, learner: TestTimeLearner, taught: Prototyped, classes: int) -> None:
        head = taught.prototypes
        self.rows, self.classes, self.width = rows_module(learner.inputs), classes, head.rows.shape[1]
        self.passes = GraphPasses(body_of(learner), learner.moving)
        self.calibration, self.tau = head.calibration, head.tau_cls
        self.order = head.classes.clone()
        self.base = self.order[: head.base]
        self.is_base = torch.isin(torch.arange(classes), self.base)[:, None]
        self.looks = looks_at_rows(learner.net)
        self.after = self.looks and taught.how.company == "after"

    def state(self, taught: Prototyped) -> dict[str, Tensor]:
        """By name, as the learner has it now."""
        state = {"prototypes": self._table(taught.prototypes)}
        if not self.looks:
            return state
        rows, come = taught._company.rows, len(taught._company)
        shape = tuple(self.rows.shape)
        state["company"] = torch.zeros(COMPANY, *shape)
        if rows is not None and come:
            state["company"][-come:] = rows
        state["come"] = torch.tensor([float(come), 0.0])
        if not self.after:
            return state
        kept = taught._open
        state |= {"open": torch.zeros(WAITING, *shape), "open_y": torch.zeros(WAITING, dtype=torch.int64)}
        state |= {"open_count": torch.zeros(2), "before": state["prototypes"].clone()}
        if kept is not None:
            n = len(kept["x"])
            if n > WAITING:
                raise CannotExport(f"{n} labelled rows wait for company; {WAITING} can in a graph")
            state["open"][:n], state["open_y"][:n] = kept["x"], kept["y"]
            state["open_count"], state["come"][1] = torch.tensor([float(n), 1.0]), float(kept["come"])
            held = Prototypes(taught.prototypes.means, taught.prototypes.counts, taught.prototypes.classes)
            held.load(kept["before"])
            state["before"] = self._table(held)
        return state

    def _table(self, head: Prototypes) -> Tensor:
        table = torch.zeros(self.classes, 2 * self.width + 2, dtype=head.rows.dtype)
        counts = head.counts[:, None].to(head.rows.dtype)
        table[head.classes] = torch.cat([head.means, head.rows, counts, torch.ones_like(counts)], 1)
        return table

    # --- answers ------------------------------------------------------------------------------------------------

    def seen(self, x: Tensor, moving: Tensor | None, table: Tensor) -> Seen:
        """Logits of every class by its code, and the way back through the cosine and the body."""
        features, pull_features = self.passes(x, moving)
        length = torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp(min=EPS)
        unit, vectors = features / length, table[:, self.width : 2 * self.width]
        z = torch.where(self.known(table), self.tau * (unit @ vectors.T), UNKNOWN)

        def pull(slope: Tensor) -> Tensor:
            back = self.tau * (slope @ vectors)
            return pull_features((back - unit * (unit * back).sum(1, keepdim=True)) / length)

        return z, pull

    def known(self, table: Tensor) -> Tensor:
        """bool[C]: which classes there are."""
        return table[:, -1] > 0

    def embedded(self, x: Tensor, moving: Tensor | None, mask: Tensor, company: Tensor, come: Tensor) -> Tensor:
        """Features of labelled rows, of which those under the mask (float[n]) count, in the company there is."""
        if not self.looks:
            return self.passes(x, moving)[0]
        beside = (torch.arange(COMPANY) >= COMPANY - come).to(x.dtype)
        plan = self.passes.plan
        lone = "batch" if self.after else "source"
        counted = CountedPlan(
            plan.units, plan.norms, plan.moving, plan.wanted, torch.cat([mask, beside]), (come < 1).to(x.dtype), lone
        )
        return self.passes(torch.cat([x, company]), moving, counted)[0][: x.shape[0]]

    # --- prototypes ---------------------------------------------------------------------------------------------

    def added(self, table: Tensor, features: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """The table with shots float[n, d] of classes int64[n], those under the mask float[n]: ``Prototypes.add``."""
        length = torch.linalg.vector_norm(features, dim=1)
        mask = mask * ((length > EPS) & (length < torch.inf)).to(mask.dtype)
        counted = torch.where(mask[:, None] > 0, features, 0.0)
        of_class = F.one_hot(y, self.classes).to(mask.dtype) * mask[:, None]
        shots = of_class.sum(0)[:, None]
        means, count, known = table[:, : self.width], table[:, -2:-1], table[:, -1:]
        total = torch.where(known > 0, count, 0.0) + shots
        fresh = (of_class.T @ counted) / shots.clamp(min=1)
        mean = torch.where(known > 0, means + (fresh - means) * (shots / total.clamp(min=1)), fresh)
        size = torch.linalg.vector_norm(mean, dim=1, keepdim=True)
        taken = (shots > 0) & (size > EPS) & (size < torch.inf)
        row = mean / size.clamp(min=EPS)
        based = torch.where(taken, row, table[:, self.width : 2 * self.width])[self.base]
        row = torch.where(self.is_base, row, self._fused(row, based, total))
        new = torch.cat([mean, row, total, torch.ones_like(total)], 1)
        return torch.where(taken, new, table)

    def _fused(self, u: Tensor, base: Tensor, shots: Tensor) -> Tensor:
        """As ``fuse``, of length 1: u [C, d] and base rows [n0, d] are already."""
        how: Calibration = self.calibration
        mixture = torch.softmax(how.tau_s * (u @ base.T), 1) @ base
        mixture = mixture / torch.linalg.vector_norm(mixture, dim=1, keepdim=True).clamp(min=EPS)
        lam: Any = how.strength if how.rule == "fixed" else how.strength / (how.strength + shots)
        row = (1 - lam) * u + lam * mixture
        return row / torch.linalg.vector_norm(row, dim=1, keepdim=True).clamp(min=EPS)


def latest(held: Tensor, count: Tensor, x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """held [n, ...], whose last ``count`` rows count, with those of x behind that are kept, bool[B]; how many then."""
    n = held.shape[0]
    there = torch.cat([torch.arange(n) >= n - count, keep]).to(count.dtype)
    behind = there.sum() - torch.cumsum(there, 0) + there  # 1 for the newest
    wanted = n - torch.arange(n)
    source = ((behind == wanted[:, None]) & (there > 0)).to(count.dtype).argmax(1)
    return torch.cat([held, x])[source], torch.clamp(there.sum(), max=n)


class Predict(nn.Module):
    """Rows, what moves and the prototypes to scores by class code."""

    def __init__(self, made: Classifier, names: tuple[str, ...]) -> None:
        super().__init__()
        self.made, self.names, self.rows = made, names, made.rows

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        old = dict(zip(self.names, state, strict=True))
        return (scores_of(self.made.seen(self.rows(x), old.get("moving"), old["prototypes"])[0]),)


class Adapt(nn.Module):
    """(x, *state) to (scores before, outcome, *what changed): company, prototypes that waited for it, then a step."""

    def __init__(self, made: Classifier, step: Step | None, names: tuple[str, ...]) -> None:
        super().__init__()
        self.made, self.step, self.names, self.rows = made, step, names, made.rows
        still = ("open", "open_y", "before") if made.after else ("prototypes",)
        self.writes = tuple(n for n in names if n not in still)

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        old = dict(zip(self.names, state, strict=True))
        x, table = self.rows(x), old["prototypes"]
        seen = self.made.seen(x, old.get("moving"), table)
        new: dict[str, Tensor] = {}
        if self.made.looks:
            sane = (x.flatten(1).abs() <= SANE).all(1)
            new["company"], come = latest(old["company"], old["come"][0], x, sane)
            new["come"] = torch.stack([come, old["come"][1]])
        if self.made.after:
            new |= self._anew({**old, **new})
            table = new["prototypes"]
        outcome = torch.zeros(len(OUTCOME), dtype=x.dtype)
        if self.step is not None:
            moves = {n: old[n] for n in self.step.state}
            classes = self.made.known(table).to(x.dtype).sum()

            def elsewhere(rows: Tensor, moving: Tensor) -> Seen:
                return self.made.seen(rows, moving, table)

            moved, outcome = self.step.taken(x, seen, elsewhere, moves, classes)
            new |= moved
        return (scores_of(seen[0]), outcome, *(new[n] for n in self.writes))

    def _anew(self, now: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Prototypes of the rows that wait, once their company has doubled or is whole."""
        come, had = now["come"].unbind()
        waits = now["open_count"][1]
        due = (waits > 0) & (come >= torch.clamp(2 * had.clamp(min=1), max=COMPANY))
        given = [now[n] for n in ("before", "open", "open_y", "open_count", "company", "come")]
        moving = now.get("moving")

        def again(_: Tensor, before: Tensor, x: Tensor, y: Tensor, count: Tensor, company: Tensor, come: Tensor,
                  *at: Tensor) -> tuple[Tensor]:  # fmt: skip
            mask = (torch.arange(WAITING) < count[0]).to(x.dtype)
            features = self.made.embedded(x, at[0] if at else None, mask, company, come[0])
            return (self.made.added(before, features, y, mask),)

        def stay(table: Tensor, *_: Tensor) -> tuple[Tensor]:
            return (table.clone(),)

        operands = (now["prototypes"], *given, *(() if moving is None else (moving,)))
        (table,) = choose(due, again, stay, operands)
        left = torch.where(due & (come >= COMPANY), 0.0, torch.ones_like(come))
        embedded = torch.stack([come, torch.where(due, come, had) * left])
        return {"prototypes": table, "open_count": now["open_count"] * left, "come": embedded}


def choose(
    which: Tensor, yes: Callable[..., tuple[Tensor]], no: Callable[..., tuple[Tensor]], given: tuple[Tensor, ...]
) -> tuple[Tensor]:
    """One of two functions of the same tensors; in a graph a node that runs one of them."""
    if torch.compiler.is_exporting():
        found: tuple[Tensor] = torch.cond(which, yes, no, given)
        return found
    return yes(*given) if bool(which) else no(*given)


class Learn(nn.Module):
    """(x, y, *state) to (outcome, *what changed): labelled rows into the prototypes. mean: of losses, which is begun
    anew, since its scale goes with the number of classes."""

    def __init__(self, made: Classifier, state: Mapping[str, Tensor], *, mean: bool) -> None:
        super().__init__()
        self.made, self.rows = made, made.rows
        names = ("moving", "prototypes", "company", "come", "open", "open_y", "open_count", "before")
        self.writes = tuple(n for n in names if n in state and (made.after or n == "prototypes") and n != "moving")
        self.writes += ("loss",) * mean
        self.names = tuple(n for n in (*names, "loss") if n in state)

    def forward(self, x: Tensor, y: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        old = dict(zip(self.names, state, strict=True))
        x = self.rows(x)
        count, new = torch.ones(x.shape[0], dtype=x.dtype), {}
        took = torch.ones((), dtype=torch.bool)
        table, company, come = old["prototypes"], old.get("company", x[:0]), old.get("come", torch.zeros(2))[0]
        if self.made.after:
            more = (old["open_count"][1] > 0) & (come < 1)
            table = torch.where(more, old["before"], table)
            held = torch.where(more, old["open_count"][0], 0.0)
            count = torch.cat([(torch.arange(WAITING) < held).to(x.dtype), count])
            x, y = torch.cat([old["open"], x]), torch.cat([old["open_y"], y])
            took = count.sum() <= WAITING
            order = torch.cumsum(count, 0)
            source = ((order == 1 + torch.arange(WAITING)[:, None]) & (count > 0)).to(x.dtype).argmax(1)
            new = {"open": x[source], "open_y": y[source], "before": table, "company": company}
            new["come"] = torch.zeros(2, dtype=x.dtype)
            new["open_count"] = torch.stack([count.sum().clamp(max=WAITING), torch.ones((), dtype=x.dtype)])
            come = torch.zeros((), dtype=x.dtype)
        features = self.made.embedded(x, old.get("moving"), count, company, come)
        new["prototypes"] = self.made.added(table, features, y, count)
        if "loss" in self.writes:
            new["loss"] = torch.zeros_like(old["loss"])
        return (took.to(x.dtype).reshape(1), *(torch.where(took, new[n], old[n]) for n in self.writes))
