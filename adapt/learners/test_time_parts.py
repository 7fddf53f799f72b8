"""The choices in which methods of test-time adaptation differ, as values, and the published recipes made of them.

Sources: Tent, Wang et al., ICLR 2021; EATA, Niu et al., ICML 2022; SAR, Niu et al., ICLR 2023; GSAM, Zhuang et al.,
ICLR 2022. RSGS is a reconstruction from the abstract of arXiv 2506.05736, whose body we could not read: the direction
of GSAM on the entropy loss of SAR. Ours: step lengths for small nets and small batches, the redundancy threshold for
few classes, the recovery threshold of RSGS that follows the number of classes, the clip of a single row's gradient.
EATA's penalty by Fisher information is left out (its published ETA).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models.optimisers import SGD, AdamW, Optimiser

Statistics = Literal["auto", "source", "batch", "mixed"]
FEW_ROWS = 16


def entropy(z: Tensor) -> Tensor:
    """float[B]: - sum p ln p of softmax(z), z float[B, C], in nats."""
    logs = torch.log_softmax(z, 1)
    return -(logs.exp() * logs).sum(1)


# --- objective --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entropy:
    """Every row that counts weighs the same."""

    def rows(self, e: Tensor, classes: int) -> Tensor:
        """float[B]: the loss of each row, from its entropy."""
        return e


@dataclass(frozen=True, slots=True)
class WeightedEntropy:
    """Row weights exp(e_frac ln C - entropy), without a gradient of their own (EATA)."""

    e_frac: float = 0.4

    def __post_init__(self) -> None:
        if not math.isfinite(self.e_frac):
            raise ValueError("e_frac of weighted entropy must be finite")

    def rows(self, e: Tensor, classes: int) -> Tensor:
        return torch.exp(self.e_frac * math.log(classes) - e.detach()) * e


# --- which rows count -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Everything:
    """Every row counts."""

    def choose(self, z: Tensor, e: Tensor, mean: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """bool[B], and what the filter remembers from then on: a mean softmax float[C], or nothing."""
        return torch.ones_like(e, dtype=torch.bool), mean

    def again(self, e: Tensor, classes: int) -> Tensor:
        """bool[B] at another place: of the rows chosen before, those that still count."""
        return torch.ones_like(e, dtype=torch.bool)


@dataclass(frozen=True, slots=True)
class Confident:
    """Rows whose entropy lies below e_frac ln C."""

    e_frac: float = 0.4

    def choose(self, z: Tensor, e: Tensor, mean: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.again(e, z.shape[1]), mean

    def again(self, e: Tensor, classes: int) -> Tensor:
        return e < self.e_frac * math.log(classes)


@dataclass(frozen=True, slots=True)
class Novel:
    """Confident rows whose softmax is unlike the running mean of those chosen before: |cosine| below ``like``.

    mean <- decay mean + (1 - decay) the mean of this batch's chosen rows; the first batch is not tested.
    """

    e_frac: float = 0.4
    like: float = 0.4
    decay: float = 0.9

    def choose(self, z: Tensor, e: Tensor, mean: Tensor | None) -> tuple[Tensor, Tensor | None]:
        mask = self.again(e, z.shape[1])
        p = torch.softmax(z, 1)
        if mean is not None:
            mask = mask & (F.cosine_similarity(p, mean[None], dim=1).abs() < self.like)
        if mask.any():
            now = p[mask].mean(0)
            mean = now if mean is None else self.decay * mean + (1 - self.decay) * now
        return mask, mean

    def again(self, e: Tensor, classes: int) -> Tensor:
        return e < self.e_frac * math.log(classes)


# --- the step ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Direction:
    """rho 0 is the plain gradient; above it SAM, and with alpha GSAM (``models/surrogate_gap.py``).

    refilter: rows must be confident after the ascent too (SAR). clip: the length of a direction that rests on a single
    row, at most; 0 for no limit. few: alpha is at most this below 16 rows.
    """

    rho: float = 0.0
    alpha: float = 0.0
    refilter: bool = False
    clip: float = 0.0
    few: float = 0.1

    def __post_init__(self) -> None:
        if min(self.rho, self.alpha, self.clip, self.few) < 0:
            raise ValueError("rho, alpha and clip are at least 0")

    def alpha_for(self, rows: int) -> float:
        """alpha for a batch of so many rows."""
        return min(self.alpha, self.few) if rows < FEW_ROWS else self.alpha


@dataclass(frozen=True, slots=True)
class Descent:
    """The optimiser, and how its rate follows the rows of a batch.

    by_rows: ``none``; ``sar`` rate x 2 B / 64 below 32 rows, doubled once more for one; ``linear`` rate x B / 16 below
    16 rows.
    """

    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = 1e-3
    momentum: float = 0.9
    by_rows: Literal["none", "sar", "linear"] = "none"

    def __post_init__(self) -> None:
        if not (0 <= self.lr < math.inf and 0 <= self.momentum < 1):
            raise ValueError("lr must be at least 0 and momentum in 0..1")

    def start(self) -> Optimiser:
        """An optimiser without any moments yet."""
        return SGD(self.lr, self.momentum) if self.optimizer == "sgd" else AdamW(self.lr)

    def rate(self, rows: int) -> float:
        """The step length for a batch of so many rows."""
        if self.by_rows == "sar" and rows < 32:
            return self.lr * 2 * rows / 64 * (2 if rows == 1 else 1)
        return self.lr * min(1.0, rows / FEW_ROWS) if self.by_rows == "linear" else self.lr


@dataclass(frozen=True, slots=True)
class Recovery:
    """Back to the source once the running mean of the (second) loss falls below a threshold: SAR's sign of collapse.

    below: the threshold, in nats; by_classes: times ln C / ln 1000. decay: of the running mean.
    """

    below: float = 0.2
    by_classes: bool = False
    decay: float = 0.9

    def threshold(self, classes: int) -> float:
        """In nats."""
        return self.below * (math.log(classes) / math.log(1000) if self.by_classes else 1.0)

    def follow(self, mean: float | None, loss: float) -> float:
        """The running mean with one loss more."""
        return loss if mean is None else self.decay * mean + (1 - self.decay) * loss


# --- together ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parts:
    """A method. descent: None takes no step at all. scope: ``affine`` scales and shifts of norms, ``all`` everything.

    whole: norms of a ResNet's last stage move too. recovery: None never goes back.
    """

    objective: Entropy | WeightedEntropy = field(default_factory=Entropy)
    filter: Everything | Confident | Novel = field(default_factory=Everything)
    direction: Direction = field(default_factory=Direction)
    descent: Descent | None = None
    scope: Literal["affine", "all"] = "affine"
    whole: bool = True
    recovery: Recovery | None = None


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
    """Of batch norms: source, batch, mixed, or auto: batch from 16 rows on, mixed below."""
    prior: float = 16.0
    """How many rows the source's statistics count for in the mixture."""

    def __post_init__(self) -> None:
        if not (self.epochs >= 0 and self.source_batch >= 1 and 0 < self.source_lr < math.inf):
            raise ValueError("epochs must be at least 0, source_batch at least 1, source_lr above 0")
        if not 0 < self.prior < math.inf:
            raise ValueError("prior must be above 0")
        self.parts()

    def parts(self) -> Parts:
        """The method."""
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

    def parts(self) -> Parts:
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

    def parts(self) -> Parts:
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

    def parts(self) -> Parts:
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

    def parts(self) -> Parts:
        return Parts(
            filter=Confident(self.e_frac),
            direction=Direction(self.rho, self.alpha, self.refilter, self.clip),
            descent=Descent("sgd", self.lr, self.momentum, "linear"),
            whole=False,
            recovery=Recovery(self.recover, by_classes=True),
        )
