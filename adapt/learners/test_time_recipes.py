"""Published methods of test-time adaptation, each a recipe of a few lines out of ``test_time_parts``.

Sources and what is ours: as there. RSGS is a reconstruction from the abstract of arXiv 2506.05736, whose body we could
not read: the direction of GSAM on the entropy loss of SAR. EATA's thresholds, its beta and CoTTA's confidence are
those published for ten classes; other step lengths than the published ones are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal

from ...streams import StreamSpec
from .test_time_parts import (
    Anchor,
    ClusterEntropyObjective,
    Confident,
    Descent,
    Direction,
    Entropy,
    Everything,
    Filter,
    Grouped,
    Novel,
    Objective,
    Parts,
    Recovery,
    Remembering,
    SoftCrossEntropy,
    Teaching,
    WeightedEntropy,
)
from .test_time_passes import Way
from .test_time_shots import CompanyRule, Finetuning, Shots

Statistics = Literal["auto", "source", "batch", "mixed", "running"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Parameters that all methods have: the source model, and the statistics of batch norms."""

    model: str = "auto"
    """The source network, as in models/networks.py; auto is convnet for images, mlp-norm for other rows."""
    source: str = ""
    """A source model of one's own: a safetensors file, torchvision:NAME or module:function; else one is trained."""
    norm: Literal["batch", "group", "continual"] = "batch"
    """Its norms."""
    epochs: int | None = None
    """Epochs over the clean rows; none: 25, down to 5 where there are more than 12,000 rows."""
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
    step: Way = "auto"
    """How passes are computed: auto tries all but compiled, which takes up to minutes to get ready, once for each size
    of batch (models/fastest_passes.py)."""

    def __post_init__(self) -> None:
        if not ((self.epochs or 0) >= 0 and self.source_batch >= 1 and 0 < self.source_lr < math.inf):
            raise ValueError("epochs must be at least 0, source_batch at least 1, source_lr above 0")
        if not 0 < self.prior < math.inf:
            raise ValueError("prior must be above 0")
        if not 0 <= self.follow <= 1:
            raise ValueError("follow must lie in 0..1")
        self.parts()
        for f in fields(self):
            if (value := getattr(self, f.name)) != value:
                raise ValueError(f"{f.name} is not a number")

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
    prototypes: Literal["none", "fixed", "shrink", "tuned"] = "none"
    """Of new classes from labelled rows: none (no label does anything), or calibrated by this rule."""

    def parts(self, spec: StreamSpec | None = None) -> Parts:
        shots = None if self.prototypes == "none" else Shots(self.prototypes)
        return Parts(descent=Descent(self.optimizer, self.lr, self.momentum), shots=shots)


@dataclass(frozen=True, kw_only=True)
class EATA(Recipe):
    """Weighted entropy of rows that are confident and not like those before, held near the source."""

    lr: float = 1e-3
    """Step length."""
    momentum: float = 0.9
    """Of the descent."""
    e_frac: float = 0.4
    """Entropy from which on a row does not count, as a share of ln C."""
    like: float = 0.4
    """Likeness to earlier rows from which on a row does not count; 0.05 where there are a thousand classes."""
    beta: float = 1.0
    """Weight of the Fisher penalty, 2000 where there are a thousand classes; 0 for none (published as ETA)."""

    def parts(self, spec: StreamSpec | None = None) -> Parts:
        descent = Descent("sgd", self.lr, self.momentum)
        anchor = Anchor(self.beta) if self.beta else None
        return Parts(WeightedEntropy(self.e_frac), Novel(self.e_frac, self.like), descent=descent, anchor=anchor)


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


@dataclass(frozen=True, kw_only=True)
class CoTTA(Recipe):
    """Cross-entropy to a slow teacher that looks twice where the source is unsure; all parameters move."""

    lr: float = 1e-3
    """Step length (Adam)."""
    decay: float = 0.999
    """Of the teacher's moving average."""
    views: int = 32
    """Augmentations over which the teacher's logits are averaged; 0 for none."""
    sure: float = 0.92
    """Mean greatest probability of the source below which they are; 0.1 where there are a thousand classes."""
    restore: float = 0.01
    """Chance of every single weight to go back to the source's after a step."""

    def parts(self, spec: StreamSpec | None = None) -> Parts:
        return Parts(
            SoftCrossEntropy(),
            descent=Descent("adam", self.lr),
            scope="all",
            teacher=Teaching(self.decay, self.views, self.sure),
            restore=self.restore,
        )


@dataclass(frozen=True, kw_only=True)
class RoTTA(Recipe):
    """Cross-entropy to a slow teacher on augmented rows of a class-balanced memory, with running statistics."""

    statistics: Statistics = "running"
    lr: float = 1e-3
    """Step length (Adam)."""
    decay: float = 0.999
    """Of the teacher's moving average."""
    memory: int = 64
    """Rows that are remembered."""
    every: int = 64
    """Rows that come between two steps."""

    def parts(self, spec: StreamSpec | None = None) -> Parts:
        return Parts(
            SoftCrossEntropy(),
            descent=Descent("adam", self.lr),
            teacher=Teaching(self.decay),
            memory=Remembering(self.memory, self.every),
            augment=True,
        )


@dataclass(frozen=True, kw_only=True)
class NCM(Recipe):
    """The nearest class mean by cosine: new classes from their shots, no calibration, no gradient."""

    company: CompanyRule = "after"
    """Rows without labels that labelled ones are embedded together with, 64 at most: after them, or before."""

    def parts(self, spec: StreamSpec | None = None) -> Parts:
        return Parts(shots=Shots("fixed", 0.0, company=self.company))


@dataclass(frozen=True, kw_only=True)
class TEEN(Recipe):
    """Prototypes of new classes drawn to the base classes they resemble; no gradient."""

    rule: Literal["fixed", "shrink", "tuned"] = "fixed"
    """Strength: lam, kappa / (kappa + shots), or this with a kappa chosen on the source's side."""
    lam: float = 0.1
    """Weight of the base classes in a new row; the authors have 0.1 for 60 classes of CIFAR, else 0.5."""
    kappa: float = 0.5
    """Shots that the base classes count for, by the rule shrink."""
    tau_s: float = 16.0
    """How sharply the nearest base classes are preferred."""
    company: CompanyRule = "after"
    """Rows without labels that labelled ones are embedded together with, 64 at most: after them, or before."""

    def parts(self, spec: StreamSpec | None = None) -> Parts:
        return Parts(shots=Shots(self.rule, self.lam, self.kappa, self.tau_s, self.company))


@dataclass(frozen=True, kw_only=True)
class ShotsFinetune(Recipe):
    """Cross-entropy on the labelled rows of new classes, by all weights: forgets the base classes."""

    steps: int = 50
    """Updates on the labelled rows of a session."""
    lr: float = 0.01
    """Their step length."""
    momentum: float = 0.9
    """Of the descent, which starts anew with each session."""

    def parts(self, spec: StreamSpec | None = None) -> Parts:
        return Parts(shots=Finetuning(self.steps, self.lr, self.momentum))


@dataclass(frozen=True, kw_only=True)
class CSFA(Recipe):
    """Calibrated prototypes for new classes, and RSGS for drift (the paper's csfa_rsgs, from its abstract)."""

    rule: Literal["fixed", "shrink", "tuned"] = "fixed"
    """Strength: lam, kappa / (kappa + shots), or this with a kappa chosen on the source's side."""
    lam: float = 0.1
    """Weight of the base classes in a new row; the authors have 0.1 for 60 classes of CIFAR, else 0.5."""
    kappa: float = 0.5
    """Shots that the base classes count for, by the rule shrink."""
    tau_s: float = 16.0
    """How sharply the nearest base classes are preferred."""
    company: CompanyRule = "after"
    """Rows without labels that labelled ones are embedded together with, 64 at most: after them, or before."""
    lr: float = 1e-3
    """Step length from 16 rows on; below that it falls with them."""
    momentum: float = 0.9
    """Of the descent."""
    filter: Literal["confident", "by-group"] = "confident"
    """Rows that count: those of low entropy, or the surest 40 % of those answered base and of those answered new."""
    e_frac: float = 0.4
    """Entropy from which on a row does not count, as a share of ln C; C grows. For by-group: the share that counts."""
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
        base = 0 if spec is None else int(spec.notes.get("base", 0))
        return Parts(
            filter=Confident(self.e_frac) if self.filter == "confident" else Grouped(self.e_frac, base),
            direction=Direction(self.rho, self.alpha, self.refilter, self.clip),
            descent=Descent("sgd", self.lr, self.momentum, "linear"),
            whole=False,
            recovery=Recovery(self.recover, by_classes=True),
            shots=Shots(self.rule, self.lam, self.kappa, self.tau_s, self.company),
        )


@dataclass(frozen=True, kw_only=True)
class Mixture(Recipe):
    """A method of one's own out of the parts of the others."""

    objective: Literal["entropy", "weighted-entropy", "cluster-entropy", "soft-cross-entropy"] = "entropy"
    """What is made small; soft-cross-entropy is that to the teacher."""
    groups: int = 5
    """Groups of classes of the cluster entropy."""
    filter: Literal["none", "confident", "novel", "by-group"] = "none"
    """Rows that count: all, those of low entropy, the unlike ones of these, the surest of base and of new classes."""
    e_frac: float = 0.4
    """Entropy from which on a row does not count, as a share of ln C; also sets the weights of weighted-entropy."""
    like: float = 0.4
    """For novel: likeness to earlier rows from which on a row does not count."""
    share: float = 0.4
    """For by-group: the part of each group that counts."""
    rho: float = 0.0
    """How far the ascent goes; 0 for the plain gradient."""
    alpha: float = 0.0
    """Weight of the surrogate gap."""
    refilter: bool = False
    """Rows must be confident after the ascent too."""
    clip: float = 0.0
    """Length of a direction that rests on one row, at most; 0 for no limit."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Plain descent or Adam."""
    lr: float = 1e-3
    """Step length."""
    momentum: float = 0.9
    """Of plain descent."""
    by_rows: Literal["none", "sar", "linear"] = "none"
    """How the step length falls with the rows of a small batch."""
    scope: str = "affine"
    """What moves: affine (of norms), all, or patterns of parameter names with commas between."""
    whole: bool = True
    """Norms of a ResNet's last stage move too."""
    memory: int = 0
    """Rows of a class-balanced memory on which steps are taken; 0 for the rows at hand."""
    every: int = 0
    """Rows that come between two steps on the memory; 0 for as many as it holds."""
    teacher: float = 0.0
    """Decay of a teacher's moving average, which then answers; 0 for no teacher."""
    views: int = 0
    """Augmentations over which the teacher's logits are averaged where the source is unsure."""
    sure: float = 0.92
    """Mean greatest probability of the source below which it is unsure."""
    augment: bool = False
    """The student sees rows augmented."""
    recover: float = 0.0
    """Back to the source when the running loss falls below this times ln C / ln 1000; 0 for never."""
    restore: float = 0.0
    """Chance of every moving number to go back to the source's after a step."""
    beta: float = 0.0
    """Weight of the Fisher penalty."""

    def __post_init__(self) -> None:
        Recipe.__post_init__(self)
        for wrong, line in (
            (self.views and not self.teacher, "views are a teacher's: teacher must be above 0"),
            (self.every and not self.memory, "every is for a memory, which must have room: memory above 0"),
            (self.alpha and not self.rho, "alpha weighs what an ascent shows: rho must be above 0"),
            (self.refilter and not self.rho, "refilter looks again after the ascent: rho must be above 0"),
            (self.refilter and self.filter not in ("confident", "novel"), "refilter needs filter confident or novel"),
        ):
            if wrong:
                raise ValueError(line)

    def parts(self, spec: StreamSpec | None = None) -> Parts:
        objectives: dict[str, Callable[[], Objective]] = {
            "entropy": Entropy,
            "weighted-entropy": partial(WeightedEntropy, self.e_frac),
            "cluster-entropy": partial(ClusterEntropyObjective, self.groups),
            "soft-cross-entropy": SoftCrossEntropy,
        }
        base = 0 if spec is None else int(spec.notes.get("base", 0))
        filters: dict[str, Callable[[], Filter]] = {
            "none": Everything,
            "confident": partial(Confident, self.e_frac),
            "novel": partial(Novel, self.e_frac, self.like),
            "by-group": partial(Grouped, self.share, base),
        }
        scope = self.scope if "," not in self.scope else tuple(part.strip() for part in self.scope.split(","))
        return Parts(
            objectives[self.objective](),
            filters[self.filter](),
            Direction(self.rho, self.alpha, self.refilter, self.clip),
            Descent(self.optimizer, self.lr, self.momentum, self.by_rows),
            scope,
            self.whole,
            Recovery(self.recover, by_classes=True) if self.recover else None,
            Teaching(self.teacher, self.views, self.sure) if self.teacher else None,
            Remembering(self.memory, self.every or self.memory) if self.memory else None,
            Anchor(self.beta) if self.beta else None,
            self.augment,
            self.restore,
        )
