"""Published methods of test-time adaptation, each a recipe of a few lines out of ``test_time_parts``.

Sources and what is ours: as there. RSGS is a reconstruction from the abstract of arXiv 2506.05736, whose body we could
not read: the direction of GSAM on the entropy loss of SAR. EATA's redundancy threshold suits few classes; its penalty
by Fisher information is left out (its published ETA).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ...streams import StreamSpec
from .test_time_parts import (
    Confident,
    Descent,
    Direction,
    Novel,
    Parts,
    Recovery,
    WeightedEntropy,
)

Statistics = Literal["auto", "source", "batch", "mixed", "running"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Parameters that all methods have: the source model, and the statistics of batch norms."""

    model: str = "auto"
    """The source network, as in models/networks.py; auto is convnet for images, mlp-norm for other rows."""
    norm: Literal["batch", "group", "continual"] = "batch"
    """Its norms."""
    epochs: int = 25
    """Epochs over the clean rows."""
    source_lr: float = 0.05
    """First step length of the source's training."""
    source_batch: int = 32
    """Rows of a step of the source's training."""
    cache: bool = True
    """Keep the trained source model, and take one that was kept."""
    statistics: Statistics = "auto"
    """Of batch norms: source, batch, mixed, running, or auto: batch from 16 rows on, mixed below."""
    prior: float = 16.0
    """How many rows the source's statistics count for in the mixture."""
    follow: float = 0.05
    """How far running statistics go towards those of the rows of each step."""

    def __post_init__(self) -> None:
        if not (self.epochs >= 0 and self.source_batch >= 1 and 0 < self.source_lr < math.inf):
            raise ValueError("epochs must be at least 0, source_batch at least 1, source_lr above 0")
        if not 0 < self.prior < math.inf:
            raise ValueError("prior must be above 0")
        if not 0 <= self.follow <= 1:
            raise ValueError("follow must lie in 0..1")
        self.parts()

    def parts(self, spec: StreamSpec | None = None) -> Parts:
        """The method, for streams of this spec."""
        return Parts()


@dataclass(frozen=True, kw_only=True)
class Source(Recipe):
    """The source model as it is: the control."""

    statistics: Statistics = "source"


@dataclass(frozen=True, kw_only=True)
class BatchNormAdapt(Recipe):
    """New statistics, no gradient."""


@dataclass(frozen=True, kw_only=True)
class Tent(Recipe):
    """The entropy of all rows."""

    optimizer: Literal["sgd", "adam"] = "adam"
    """Plain descent or Adam."""
    lr: float = 1e-3
    """Step length."""
    momentum: float = 0.9
    """Of plain descent."""

    def parts(self, spec: StreamSpec | None = None) -> Parts:
        return Parts(descent=Descent(self.optimizer, self.lr, self.momentum))


@dataclass(frozen=True, kw_only=True)
class EATA(Recipe):
    """Weighted entropy of rows that are confident and not like those before; without the Fisher penalty."""

    lr: float = 1e-3
    """Step length."""
    momentum: float = 0.9
    """Of the descent."""
    e_frac: float = 0.4
    """Entropy from which on a row does not count, as a share of ln C."""
    like: float = 0.4
    """Likeness to earlier rows from which on a row does not count; 0.05 where there are a thousand classes."""

    def parts(self, spec: StreamSpec | None = None) -> Parts:
        descent = Descent("sgd", self.lr, self.momentum)
        return Parts(WeightedEntropy(self.e_frac), Novel(self.e_frac, self.like), descent=descent)


@dataclass(frozen=True, kw_only=True)
class SAR(Recipe):
    """Entropy of confident rows, descended where it is flat, with a way back."""

    lr: float = 2.5e-4
    """Step length from 32 rows on; below that it falls with them."""
    momentum: float = 0.9
    """Of the descent."""
    e_frac: float = 0.4
    """Entropy from which on a row does not count, as a share of ln C."""
    rho: float = 0.05
    """How far the ascent goes."""
    recover: float = 0.2
    """Back to the source when the running loss falls below this (nats; published for 1,000 classes); 0 for never."""

    def parts(self, spec: StreamSpec | None = None) -> Parts:
        return Parts(
            filter=Confident(self.e_frac),
            direction=Direction(self.rho, refilter=True),
            descent=Descent("sgd", self.lr, self.momentum, "sar"),
            whole=False,
            recovery=Recovery(self.recover),
        )


@dataclass(frozen=True, kw_only=True)
class RSGS(Recipe):
    """Entropy of confident rows along GSAM's direction; a reconstruction from the paper's abstract."""

    lr: float = 1e-3
    """Step length from 16 rows on; below that it falls with them."""
    momentum: float = 0.9
    """Of the descent."""
    e_frac: float = 0.4
    """Entropy from which on a row does not count, as a share of ln C."""
    rho: float = 0.05
    """How far the ascent goes."""
    alpha: float = 0.4
    """Weight of the surrogate gap; at most 0.1 below 16 rows."""
    refilter: bool = False
    """Rows must be confident after the ascent too."""
    clip: float = 1.0
    """Length of a direction that rests on one row, at most; 0 for no limit."""
    recover: float = 0.2
    """Back to the source when the running loss falls below this times ln C / ln 1000; 0 for never."""

    def parts(self, spec: StreamSpec | None = None) -> Parts:
        return Parts(
            filter=Confident(self.e_frac),
            direction=Direction(self.rho, self.alpha, self.refilter, self.clip),
            descent=Descent("sgd", self.lr, self.momentum, "linear"),
            whole=False,
            recovery=Recovery(self.recover, by_classes=True),
        )
