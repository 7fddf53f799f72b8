"""Regularisers: a penalty that ties the network to what it was at the last boundary. Both need boundaries.

EWC: Kirkpatrick et al., PNAS 2017, in its online form (Schwarz et al., Progress & compress, ICML 2018). The diagonal
Fisher information is the mean of squared gradients of single rows, over the last ``fisher_rows`` rows of an experience
(our choice: a stream cannot be read twice). LwF: Li, Hoiem, Learning without forgetting, ECCV 2016.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models.kernels.inference_linear import Linear
from ..learner import State
from .parts import Active, Rows
from .replay import memory_for

if TYPE_CHECKING:
    from .gradient import GradientLearner


@dataclass(frozen=True)
class EWC:
    """Elastic weight consolidation: ewc / 2 sum_i F_i (w_i - w*_i)^2, w* the weights at the last boundary.

    F = ewc_decay F + F_new at every boundary.
    """

    ewc: float = 100.0
    """Strength."""
    ewc_decay: float = 1.0
    """What stays of the earlier Fisher information at a boundary."""
    fisher_rows: int = 200
    """Last rows of an experience that the Fisher information is taken over."""
    needs: ClassVar[frozenset[str]] = frozenset({"boundaries"})
    refuses: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        if self.ewc < 0 or not 0 <= self.ewc_decay <= 1 or self.fisher_rows < 1:
            raise ValueError("ewc must be at least 0, ewc_decay in 0..1, fisher_rows at least 1")

    def start(self, learner: GradientLearner) -> Active:
        return _EWC(learner, self)


class _EWC(Active):
    def __init__(self, learner: GradientLearner, values: EWC) -> None:
        self.learner, self.values = learner, values
        self.fisher: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self.recent = Recent(learner, values.fisher_rows)

    def boundary(self) -> None:
        rows = self.recent.take()
        if rows is None:
            return
        new = self._fisher(rows)
        decay = self.values.ewc_decay
        self.fisher = {n: f + decay * self.fisher[n] if n in self.fisher else f for n, f in new.items()}
        self.anchor = {n: self.learner.weights[n].detach().clone() for n in self.fisher}

    def _fisher(self, rows: Rows) -> dict[str, Tensor]:
        """Mean over rows of the squared gradient of each row's own cross-entropy, network in evaluation mode."""
        learner = self.learner
        total: dict[str, Tensor] = {}
        for i in range(len(rows)):
            one = rows.keep(torch.arange(len(rows), device=rows.y.device) == i)
            for name, g in learner.gradients_of(learner.cross_entropy(learner.outputs(one.x, one.y), one)).items():
                if g is not None:
                    total[name] = total[name] + g * g if name in total else g * g
        return {name: f / len(rows) for name, f in total.items()}

    def penalty(self, now: Rows) -> Tensor | None:
        if not self.anchor or not self.values.ewc:
            return None
        weights = self.learner.weights
        terms = [(self.fisher[n] * (weights[n] - self.anchor[n]) ** 2).sum() for n in self.anchor]
        return 0.5 * self.values.ewc * torch.stack(terms).sum()

    def learnt(self, now: Rows) -> None:
        self.recent.insert(now)

    def grown(self, name: str, rows: int) -> None:
        if name in self.fisher:
            weight = self.learner.weights[name].detach()
            old = self.fisher[name]
            self.anchor[name] = torch.cat([self.anchor[name], weight[len(old) :].clone()])
            self.fisher[name] = torch.cat([old, torch.zeros_like(weight[len(old) :])])

    def state(self) -> State:
        return {"fisher": dict(self.fisher), "anchor": dict(self.anchor), "recent": self.recent.state()}

    def load(self, state: State) -> None:
        self.fisher = {n: t.clone() for n, t in state["fisher"].items()}
        self.anchor = {n: t.clone() for n, t in state["anchor"].items()}
        self.recent.load(state["recent"])


@dataclass(frozen=True)
class LwF:
    """Learning without forgetting: lwf T^2 KL(teacher || network) on the rows at hand, outputs divided by T.

    The teacher is the network of the last boundary; only classes that it had met take part. The authors of the
    stability gap leave T^2 out.
    """

    lwf: float = 1.0
    """Strength."""
    temperature: float = 2.0
    """T."""
    needs: ClassVar[frozenset[str]] = frozenset({"boundaries"})
    refuses: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        if self.lwf < 0 or self.temperature <= 0:
            raise ValueError("lwf must be at least 0 and temperature above 0")

    def start(self, learner: GradientLearner) -> Active:
        return _LwF(learner, self)


class _LwF(Active):
    def __init__(self, learner: GradientLearner, values: LwF) -> None:
        self.learner, self.values = learner, values
        self.teacher: Any = None
        self.met = torch.zeros(learner.net.head.out_features, dtype=torch.bool, device=learner.device)
        self.old = self.met.clone()

    def boundary(self) -> None:
        self.teacher = copy.deepcopy(self.learner.net).eval().requires_grad_(False)
        self.old = self.met.clone()

    def penalty(self, now: Rows) -> Tensor | None:
        if self.teacher is None or not self.old.any():
            return None
        with torch.no_grad():
            taught = self.teacher(self.learner.through.cast(now.x)).float()
        taught = taught[:, self.old[: self.teacher.head.out_features]]
        z = self.learner.said
        assert z is not None
        said = z.float()[:, : len(self.old)][:, self.old]
        t = self.values.temperature
        apart = F.kl_div(
            F.log_softmax(said / t, 1), F.log_softmax(taught / t, 1), reduction="batchmean", log_target=True
        )
        return self.values.lwf * t * t * apart

    def learnt(self, now: Rows) -> None:
        self.met[now.y] = True

    def grown(self, name: str, rows: int) -> None:
        self.met = F.pad(self.met, (0, rows - len(self.met)))
        self.old = F.pad(self.old, (0, rows - len(self.old)))

    def state(self) -> State:
        teacher = None if self.teacher is None else dict(self.teacher.state_dict())
        return {"teacher": teacher, "met": self.met, "old": self.old}

    def load(self, state: State) -> None:
        self.met, self.old = (state[k].clone().to(self.learner.device) for k in ("met", "old"))
        self.teacher = None
        if state["teacher"] is not None:
            self.teacher = copy.deepcopy(self.learner.net).eval().requires_grad_(False)
            classes = len(state["teacher"]["head.bias"])
            if classes != self.teacher.head.out_features:
                features = self.teacher.head.in_features
                self.teacher.head = Linear(features, classes, device=self.learner.device).requires_grad_(False)
            self.teacher.load_state_dict(state["teacher"])


class Recent:
    """The last rows that were learnt: a ring of fixed size, emptied at every boundary."""

    def __init__(self, learner: GradientLearner, capacity: int) -> None:
        self.learner, self.capacity = learner, capacity
        memory = memory_for(learner, capacity, "ring")
        self.x, self.y, self.task = memory.x, memory.y, memory.task
        self.count = 0

    def insert(self, rows: Rows) -> None:
        rows = rows if len(rows) <= self.capacity else rows.keep(torch.arange(len(rows)) >= len(rows) - self.capacity)
        to = torch.arange(self.count, self.count + len(rows)) % self.capacity
        self.x[to], self.y[to], self.task[to] = rows.x.detach().cpu(), rows.y.cpu(), rows.task.cpu()
        self.count += len(rows)

    def take(self) -> Rows | None:
        """All of them, and start anew."""
        n, device = min(self.count, self.capacity), self.learner.device
        self.count = 0
        return Rows(self.x[:n].to(device), self.y[:n].to(device), self.task[:n].to(device)) if n else None

    def state(self) -> State:
        return {"x": self.x, "y": self.y, "task": self.task, "count": self.count}

    def load(self, state: State) -> None:
        self.x, self.y, self.task = (state[k].clone() for k in ("x", "y", "task"))
        self.count = int(state["count"])
