"""Replay policies: where the loss of a step comes from, the rows at hand alone or rows of the past too.

Sources. ER: Chaudhry et al., On tiny episodic memories, arXiv 1902.10486. ER-ACE: Caccia et al., New insights on
reducing abrupt representation change in online continual learning, ICLR 2022. DER++: Buzzega et al., Dark experience
for general continual learning, NeurIPS 2020. A-GEM: Chaudhry et al., ICLR 2019. All draw a fresh replay batch at every
update and insert the rows at hand after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models.optimisers import Only
from ..learner import State
from .memory import Kind, Memory
from .parts import Active, Loss, Rows

if TYPE_CHECKING:
    from .gradient import GradientLearner

NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Finetune:
    """The rows at hand and nothing else: the lower bound."""

    needs: ClassVar[frozenset[str]] = NOTHING
    refuses: ClassVar[Mapping[str, str]] = {}
    is_policy: ClassVar[bool] = True

    def start(self, learner: GradientLearner) -> Active:
        return _Finetune(learner)


class _Finetune(Active):
    def __init__(self, learner: GradientLearner) -> None:
        self.learner = learner

    def loss(self, now: Rows) -> Loss:
        (z,) = self.learner.logits(now)
        return Loss(self.learner.cross_entropy(z, now))


@dataclass(frozen=True)
class ER:
    """Experience replay: cross-entropy of the rows at hand plus that of rows drawn from a memory.

    loss = lam CE(now) + (1 - lam) CE(memory), lam = 1/2 by default times two: CE(now) + CE(memory).
    """

    memory: int = 200
    """Rows that are kept."""
    replay_batch: int = 10
    """Rows drawn for an update."""
    buffer: Kind = "reservoir"
    """Who stays in a full memory."""
    needs: ClassVar[frozenset[str]] = NOTHING
    refuses: ClassVar[Mapping[str, str]] = {}
    is_policy: ClassVar[bool] = True

    def start(self, learner: GradientLearner) -> Active:
        return _ER(learner, self)


def memory_for(learner: GradientLearner, capacity: int, kind: Kind, *, logits: bool = False) -> Memory:
    """An empty memory for the rows of a learner."""
    classes = learner.net.head.out_features
    return Memory(capacity, kind, learner.inputs.shape, classes, logits=logits, seed=learner.seed)


class _ER(Active):
    def __init__(self, learner: GradientLearner, values: ER) -> None:
        self.learner, self.values = learner, values
        self.memory = memory_for(learner, values.memory, values.buffer)

    def loss(self, now: Rows) -> Loss:
        learner = self.learner
        old = self.memory.draw(self.values.replay_batch, learner.device)
        if old is None:
            return Loss(learner.cross_entropy(learner.logits(now)[0], now))
        z, z_old = learner.logits(now, old)
        return Loss(learner.cross_entropy(z, now), learner.cross_entropy(z_old, old))

    def learnt(self, now: Rows) -> None:
        self.memory.insert(now)

    def telemetry(self) -> dict[str, float]:
        return {"memory_rows": float(self.memory.size)}

    def state(self) -> State:
        return {"memory": self.memory.state()}

    def load(self, state: State) -> None:
        self.memory.load(state["memory"])
