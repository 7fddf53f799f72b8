"""The choices in which methods of test-time adaptation differ, as values that a person may put together anew.

Sources: Tent, Wang et al., ICLR 2021; EATA, Niu et al., ICML 2022; SAR, Niu et al., ICLR 2023; GSAM, Zhuang et al.,
ICLR 2022; CoTTA, Wang et al., CVPR 2022; RoTTA, Yuan et al., CVPR 2023. Ours: step lengths for small batches, a
recovery threshold that follows the number of classes, the clip of a single row's gradient, the filter by groups. Every
objective has its slope in closed form, so that no graph is needed beyond the logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models.cluster_entropy import ClusterEntropy
from ...models.clustering import build_clusters
from ...models.optimisers import SGD, AdamW, Optimiser
from ...streams import Array, InputError
from .test_time_shots import Finetuning, Shots

FEW_ROWS = 16


# --- objective --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rows:
    """What an objective says of each row of a batch.

    value: float[B], its loss in nats. slope: float[B, C], the loss by the logits. doubt: float[B], how unsure the model
    is, in nats, which filters go by. most: the greatest doubt there can be.
    """

    value: Tensor
    slope: Tensor
    doubt: Tensor
    most: float


def entropy(z: Tensor) -> Tensor:
    """float[B]: - sum p ln p of softmax(z), z float[B, C], in nats."""
    logs = torch.log_softmax(z, 1)
    return -(logs.exp() * logs).sum(1)


def mean_of(rows: Rows, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The mean loss over the rows where ``mask`` holds, and its slope float[B, C]: zero for the other rows."""
    n = mask.sum()
    slope = torch.where(mask[:, None], rows.slope, 0.0) / n
    return torch.where(mask, rows.value, 0.0).sum() / n, slope


def probabilities(z: Tensor) -> Array:
    """float64[B, C]; a row whose logits are not finite is as likely of one class as of any other."""
    scores = torch.softmax(z.double(), 1)
    broken = ~torch.isfinite(scores).all(1)
    if bool(broken.any()):
        scores[broken] = 1 / z.shape[1]
    found: Array = scores.numpy(force=True)
    return found


@dataclass(frozen=True, slots=True)
class Entropy:
    """H = - sum p ln p; dH/dz = -p (ln p + H). Every row that counts weighs the same."""

    def rows(self, z: Tensor, target: Tensor | None = None) -> Rows:
        """Of logits float[B, C]; target: float[B, C], a teacher's probabilities, for objectives that have one."""
        logs = torch.log_softmax(z, 1)
        p = logs.exp()
        value = -(p * logs).sum(1)
        return Rows(value, -p * (logs + value[:, None]), value, math.log(z.shape[1]))


@dataclass(frozen=True, slots=True)
class WeightedEntropy:
    """Row weights exp(e_frac ln C - H), without a gradient of their own (EATA)."""

    e_frac: float = 0.4

    def __post_init__(self) -> None:
        if not math.isfinite(self.e_frac):
            raise ValueError("e_frac of weighted entropy must be finite")

    def rows(self, z: Tensor, target: Tensor | None = None) -> Rows:
        plain = Entropy().rows(z, target)
        weight = torch.exp(self.e_frac * plain.most - plain.doubt)
        return Rows(weight * plain.value, weight[:, None] * plain.slope, plain.doubt, plain.most)


@dataclass(frozen=True, slots=True)
class SoftCrossEntropy:
    """- sum t ln p to a teacher's probabilities t, whose slope is p - t; doubt is the entropy of p."""

    def rows(self, z: Tensor, target: Tensor | None = None) -> Rows:
        assert target is not None, "soft cross-entropy needs a teacher"
        logs = torch.log_softmax(z, 1)
        p = logs.exp()
        return Rows(-(target * logs).sum(1), p - target, -(p * logs).sum(1), math.log(z.shape[1]))


@dataclass(frozen=True, slots=True)
class ClusterEntropyObjective:
    """H_c + within (H - H_c) over groups of classes that the source model finds alike (``models/cluster_entropy.py``).

    The groups are medoids' neighbourhoods among the rows of the head's weights, built once by ``fitted``; as many
    groups as classes give the plain entropy. Source: Sima et al., Centaur, arXiv 2503.11650, 2025, for trajectories;
    classes are our use of it.
    """

    groups: int = 5
    within: float = 0.0
    measure: ClusterEntropy | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.groups < 2 or not 0 <= self.within <= 1:
            raise ValueError("groups of cluster entropy must be at least 2, within in 0..1")

    def fitted(self, prototypes: Tensor) -> ClusterEntropyObjective:
        """The same with its groups, from one vector for each class, float[C, d]."""
        k = min(self.groups, len(prototypes))
        ids = torch.from_numpy(build_clusters(prototypes.detach().double().numpy(force=True), k))
        measure = ClusterEntropy(ids, within=self.within, reduction="none").to(prototypes.device)
        return replace(self, measure=measure)

    def rows(self, z: Tensor, target: Tensor | None = None) -> Rows:
        assert self.measure is not None, "cluster entropy has no groups yet"
        value, slope = self.measure.value_and_slope(z)
        return Rows(value, slope, value, math.log(self.measure.clusters))


# --- which rows count -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Everything:
    """Every row counts."""

    def choose(self, z: Tensor, rows: Rows, mean: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """bool[B], and what the filter remembers from then on: a mean softmax float[C], or nothing."""
        return self.again(rows), mean

    def again(self, rows: Rows) -> Tensor:
        """bool[B] at another place: of the rows chosen before, those that still count."""
        return torch.ones_like(rows.doubt, dtype=torch.bool)


@dataclass(frozen=True, slots=True)
class Confident:
    """Rows whose doubt lies below e_frac of the greatest: of e_frac ln C for an entropy over C classes."""

    e_frac: float = 0.4

    def __post_init__(self) -> None:
        if not self.e_frac >= 0:
            raise ValueError("e_frac must be at least 0")

    def choose(self, z: Tensor, rows: Rows, mean: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.again(rows), mean

    def again(self, rows: Rows) -> Tensor:
        return rows.doubt < self.e_frac * rows.most


@dataclass(frozen=True, slots=True)
class Novel:
    """Confident rows whose softmax is unlike the running mean of those chosen before: |cosine| below ``like``.

    mean <- decay mean + (1 - decay) the mean of this batch's chosen rows; the first batch is not tested.
    """

    e_frac: float = 0.4
    like: float = 0.4
    decay: float = 0.9

    def __post_init__(self) -> None:
        if not (self.e_frac >= 0 and self.like >= 0):
            raise ValueError("e_frac and like must be at least 0")

    def choose(self, z: Tensor, rows: Rows, mean: Tensor | None) -> tuple[Tensor, Tensor | None]:
        mask = self.again(rows)
        p = torch.softmax(z, 1)
        if mean is not None:
            mean = F.pad(mean, (0, p.shape[1] - len(mean)))  # classes may have come since
            mask = mask & (F.cosine_similarity(p, mean[None], dim=1).abs() < self.like)
        if mask.any():
            now = p[mask].mean(0)
            mean = now if mean is None else self.decay * mean + (1 - self.decay) * now
        return mask, mean

    def again(self, rows: Rows) -> Tensor:
        return rows.doubt < self.e_frac * rows.most


@dataclass(frozen=True, slots=True)
class Grouped:
    """Of the rows that are answered with one of the first ``base`` classes, and of all others, the least doubtful.

    share: of each group, rounded half up, so that a group of one row counts for nothing at 0.4. base: 0 for one group.
    Rows of new classes are the doubtful ones; a common threshold would drop them first.
    """

    share: float = 0.4
    base: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError("the share of a group lies in 0..1")

    def choose(self, z: Tensor, rows: Rows, mean: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As in ``Everything``."""
        mask = torch.zeros_like(rows.doubt, dtype=torch.bool)
        new = z.argmax(1) >= self.base
        for group in (new.nonzero()[:, 0], (~new).nonzero()[:, 0]):
            order = rows.doubt[group].argsort(stable=True)
            mask[group[order[: math.floor(self.share * len(group) + 0.5)]]] = True
        return mask, mean

    def again(self, rows: Rows) -> Tensor:
        """All of those chosen before."""
        return torch.ones_like(rows.doubt, dtype=torch.bool)


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
        if not all(0 <= v < math.inf for v in (self.rho, self.alpha, self.clip, self.few)):
            raise ValueError("rho, alpha and clip are at least 0 and finite")

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

    def __post_init__(self) -> None:
        if not 0 <= self.below < math.inf:
            raise ValueError("recover must be at least 0 and finite")

    def threshold(self, classes: int) -> float:
        """In nats."""
        return self.below * (math.log(classes) / math.log(1000) if self.by_classes else 1.0)

    def follow(self, mean: float | None, loss: float) -> float:
        """The running mean with one loss more."""
        return loss if mean is None else self.decay * mean + (1 - self.decay) * loss


# --- beside the step --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Teaching:
    """A teacher, the moving average of what moves, that answers and sets targets.

    decay: of the average. views: where the source's mean greatest probability over a batch is below ``sure``, logits
    are means over so many augmented views; 0 for never (CoTTA: 32 and, for ten classes, 0.92).
    """

    decay: float = 0.999
    views: int = 0
    sure: float = 0.92

    def __post_init__(self) -> None:
        if not (0 <= self.decay < 1 and self.views >= 0 and 0 <= self.sure <= 2):
            raise ValueError("a teacher's decay lies in 0..1 (below 1), views are at least 0, sure in 0..2")


@dataclass(frozen=True, slots=True)
class Remembering:
    """A class-balanced memory (``test_time_memory.py``): steps are taken on its rows, one every ``every`` rows that
    come, each row weighing the less the older it is (RoTTA)."""

    capacity: int = 64
    every: int = 64

    def __post_init__(self) -> None:
        if self.capacity < 1 or self.every < 1:
            raise ValueError("a memory has room for at least 1 row, and every is at least 1")


@dataclass(frozen=True, slots=True)
class Anchor:
    """EATA's penalty beta sum F (phi - phi0)^2; F from up to ``rows`` clean rows in mini-batches of ``batch``."""

    beta: float = 1.0
    rows: int = 2000
    batch: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf or self.rows < 1 or self.batch < 1:
            raise ValueError("beta is above 0 and finite, rows and batch are at least 1")


# --- together ---------------------------------------------------------------------------------------------------


Objective = Entropy | WeightedEntropy | SoftCrossEntropy | ClusterEntropyObjective
Filter = Everything | Confident | Novel | Grouped


@dataclass(frozen=True, slots=True)
class Parts:
    """A method. descent: None takes no step at all. scope: ``affine`` scales and shifts of norms, ``all`` everything,
    or patterns of parameter names (``body.0.*``). whole: norms of a ResNet's last stage move too. recovery: None never
    goes back. augment: the student sees rows under a random view, the teacher as they are. restore: the chance of every
    moving number to go back to the source's after a step (CoTTA). shots: what labelled rows of new classes do; None for
    nothing.
    """

    objective: Objective = field(default_factory=Entropy)
    filter: Filter = field(default_factory=Everything)
    direction: Direction = field(default_factory=Direction)
    descent: Descent | None = None
    scope: str | tuple[str, ...] = "affine"
    whole: bool = True
    recovery: Recovery | None = None
    teacher: Teaching | None = None
    memory: Remembering | None = None
    anchor: Anchor | None = None
    augment: bool = False
    restore: float = 0.0
    shots: Shots | Finetuning | None = None

    def __post_init__(self) -> None:
        if isinstance(self.objective, SoftCrossEntropy) and self.teacher is None:
            raise ValueError("soft cross-entropy needs a teacher")
        if not 0 <= self.restore < 1:
            raise ValueError("the chance of restoring lies in 0..1 (below 1)")
        if isinstance(self.shots, Finetuning) and self.descent is not None:
            raise ValueError("fine-tuning on labelled rows and steps without labels do not go together")

    def for_classes(self, prototypes: Tensor | None) -> Parts:
        """The same, knowing the model's vectors of the classes, float[C, d]; None where it has none."""
        if not isinstance(self.objective, ClusterEntropyObjective):
            return self
        if prototypes is None:
            raise InputError("cluster entropy needs a model with a linear head, or prototypes")
        return replace(self, objective=self.objective.fitted(prototypes))

    def fewer_groups(self) -> str | None:
        """A line for a person where there are fewer classes than groups of them were asked for."""
        how = self.objective
        if not isinstance(how, ClusterEntropyObjective) or how.measure is None or how.measure.clusters >= how.groups:
            return None
        return f"cluster entropy: {how.measure.clusters} groups, one for each class, instead of {how.groups}"
