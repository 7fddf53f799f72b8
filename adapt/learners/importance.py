"""Gradients that say what a weight matters for: of the rows at hand, and of the rows in a memory, each for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...models.norms import frozen_stats
from ..learner import State
from .parts import Rows
from .regularisers import Recent

if TYPE_CHECKING:
    from .gradient import GradientLearner


def gradient_of(learner: GradientLearner, rows: Rows, *, own_classes: bool) -> dict[str, Tensor]:
    """The gradient of the mean cross-entropy of some rows by parameter name, in training mode, leaving no trace.

    own_classes: the loss sees only the classes of each row's experience (those present, where no more is known).
    """
    net, said, training = learner.net, learner.said, learner.net.training
    net.train()
    with frozen_stats(net):
        (z,) = learner.logits(rows)
    if own_classes:
        seen = learner.own_classes(rows, z.shape[1]) | (F.one_hot(rows.y, z.shape[1]) > 0)
        z = z.masked_fill(~seen, -torch.inf)
        loss = F.cross_entropy(z, rows.y)
    else:
        loss = learner.cross_entropy(z, rows)
    found = learner.gradients_of(loss)
    net.train(training)
    learner.said = said
    return {name: g for name, g in found.items() if g is not None}


def size(gradient: Tensor) -> Tensor:
    """|gradient|, and 0 where it is no number."""
    return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0).abs()


class Fresh:
    """Rows to score with: those at hand (with the last ones before, where they are few), and some out of the memory.

    The memory is looked at by a generator of its own, so that scoring does not change what is replayed.
    """

    def __init__(self, learner: GradientLearner, rows: int, generator: np.random.Generator) -> None:
        self.learner, self.rows, self.generator = learner, rows, generator
        self.recent = Recent(learner, rows)

    def now(self, now: Rows) -> Rows | None:
        """At least ``rows`` rows of the experience at hand, if so many have come; None for a single row."""
        n = min(self.recent.count, self.rows)
        if len(now) < self.rows and n:
            device = self.learner.device
            x, y, task = (getattr(self.recent, key)[:n].to(device) for key in ("x", "y", "task"))
            now = Rows(torch.cat([x, now.x]), torch.cat([y, now.y]), torch.cat([task, now.task]), current=True)
        return now if len(now) > 1 else None

    def memory(self) -> Rows | None:
        """Rows of the memory; None where there is none, or fewer than two in it."""
        memory = self.learner.memory
        if memory is None or memory.size < 2:
            return None
        drawn = self.generator.choice(memory.size, min(self.rows, memory.size), replace=False, shuffle=False)
        index, device = torch.from_numpy(np.sort(drawn)), self.learner.device
        return Rows(memory.x[index].to(device), memory.y[index].to(device), memory.task[index].to(device))

    def learnt(self, now: Rows) -> None:
        """Keep the last rows, where batches are smaller than what scores want."""
        if len(now) < self.rows:
            self.recent.insert(now)

    def boundary(self) -> None:
        """Rows of the experience before are no longer at hand."""
        self.recent.count = 0

    def state(self) -> State:
        return self.recent.state()

    def load(self, state: State) -> None:
        self.recent.load(state)
