"""What SparCL is to be compared with: masks that never change, and masks that follow simpler rules.

random-mask: drawn once. magnitude-mask: the largest of the initial weights. snip: the largest |w dL/dw| on the first
rows (Lee et al., SNIP, ICLR 2019). set: between stages the smallest weights leave and as many are drawn (Mocanu et al.,
Nature Communications 2018). rigl: the smallest leave, and those of the largest gradient come (Evci et al., RigL, ICML
2020), a share 0.15 (1 + cos(pi t / T)) of the weights that are there, T being 0.75 of an experience; the cosine begins
anew with each (our choice), and without a known length it stays at its first value.

Layers, counts, stages, costs and what happens to dropped and new weights are SparCL's. The dense control is the learner
without any of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...models.masks import Granularity, Mask, best
from ...models.optimisers import Only
from ..learner import State
from .importance import gradient_of, size
from .parts import Active, Rows
from .sparse_net import SparseNet, read_block, refused
from .stages import Stages

if TYPE_CHECKING:
    from .gradient import GradientLearner

RIGL_SHARE, RIGL_END = 0.3, 0.75


@dataclass(frozen=True)
class RandomMask:
    """A mask drawn once."""

    sparsity: float = 0.75
    """Share of every masked weight that is not there."""
    granularity: Granularity = "element"
    """What is counted: single weights, whole output rows (a smaller network), or blocks."""
    block: str = "32x32"
    """Size of a block."""
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        _check(self.sparsity, self.block)

    @property
    def refuses(self) -> Mapping[str, str]:
        """One mask for a network."""
        return refused("RandomMask", self.granularity)

    def start(self, learner: GradientLearner) -> Active:
        made = _Fixed(learner, self.sparsity, self.granularity, self.block)
        drawn = {n: torch.from_numpy(made.generator.random(m.granules.n)) for n, m in made.sparse.masks.items()}
        made.become({name: scores.float() for name, scores in drawn.items()})
        return made


@dataclass(frozen=True)
class MagnitudeMask:
    """A mask of the largest initial weights."""

    sparsity: float = 0.75
    """Share of every masked weight that is not there."""
    granularity: Granularity = "element"
    """What is counted: single weights, whole output rows (a smaller network), or blocks."""
    block: str = "32x32"
    """Size of a block."""
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        _check(self.sparsity, self.block)

    @property
    def refuses(self) -> Mapping[str, str]:
        """One mask for a network."""
        return refused("MagnitudeMask", self.granularity)

    def start(self, learner: GradientLearner) -> Active:
        made = _Fixed(learner, self.sparsity, self.granularity, self.block)
        made.become(made.sizes())
        return made


@dataclass(frozen=True)
class SNIP:
    """A mask of the weights whose removal would change the first rows' loss most."""

    sparsity: float = 0.75
    """Share of every masked weight that is not there."""
    granularity: Granularity = "element"
    """What is counted: single weights, whole output rows (a smaller network), or blocks."""
    block: str = "32x32"
    """Size of a block."""
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        _check(self.sparsity, self.block)

    @property
    def refuses(self) -> Mapping[str, str]:
        """One mask for a network."""
        return refused("SNIP", self.granularity)

    def start(self, learner: GradientLearner) -> Active:
        return _Fixed(learner, self.sparsity, self.granularity, self.block, at_first_rows=True)


@dataclass(frozen=True)
class SET:
    """Between stages the smallest weights leave, and as many are drawn at random."""

    sparsity: float = 0.75
    """Share of every masked weight that is not there."""
    granularity: Granularity = "element"
    """What is counted: single weights, whole output rows (a smaller network), or blocks."""
    block: str = "32x32"
    """Size of a block."""
    zeta: float = 0.3
    """Share of what is there that is exchanged."""
    delta: int = 5
    """Epochs of a stage, at most a quarter of an experience; an experience of one epoch has ten stages."""
    delta_updates: int = 100
    """Updates of a stage where an experience's length is not known."""
    needs: ClassVar[frozenset[str]] = frozenset({"boundaries"})

    def __post_init__(self) -> None:
        _check(self.sparsity, self.block)
        _check_stages(self.zeta, self.delta, self.delta_updates)

    @property
    def refuses(self) -> Mapping[str, str]:
        """One mask for a network."""
        return refused("SET", self.granularity)

    def start(self, learner: GradientLearner) -> Active:
        stages = Stages(learner, self.delta, self.delta_updates)
        made = _Exchanging(learner, self.sparsity, self.granularity, self.block, stages, lambda _: self.zeta)
        made.become(made.sizes())
        return made


@dataclass(frozen=True)
class RigL:
    """Between stages the smallest weights leave, and those of the largest gradient come."""

    sparsity: float = 0.75
    """Share of every masked weight that is not there."""
    delta: int = 5
    """Epochs of a stage, at most a quarter of an experience; an experience of one epoch has ten stages."""
    delta_updates: int = 100
    """Updates of a stage where an experience's length is not known."""
    needs: ClassVar[frozenset[str]] = frozenset({"boundaries"})

    def __post_init__(self) -> None:
        _check(self.sparsity, "1x1")
        _check_stages(0.0, self.delta, self.delta_updates)

    @property
    def refuses(self) -> Mapping[str, str]:
        """One mask for a network."""
        return refused("RigL", "element")

    def start(self, learner: GradientLearner) -> Active:
        stages = Stages(learner, self.delta, self.delta_updates)
        made = _Exchanging(learner, self.sparsity, "element", "1x1", stages, rigl_share, by_gradient=True)
        made.become(made.sizes())
        return made


def rigl_share(part: float | None) -> float:
    """The share exchanged when ``part`` of an experience is over (None: unknown).

    >>> [round(rigl_share(part), 3) for part in (0.0, 0.375, 0.75, 1.0)]
    [0.3, 0.15, 0.0, 0.0]
    """
    return RIGL_SHARE / 2 * (1 + cos(pi * min(1.0, (part or 0.0) / RIGL_END)))


class _Fixed(Active):
    """A mask chosen once, at the start or from the first rows."""

    def __init__(
        self,
        learner: GradientLearner,
        sparsity: float,
        granularity: Granularity,
        block: str,
        *,
        at_first_rows: bool = False,
    ) -> None:
        self.learner, self.waiting = learner, at_first_rows
        self.generator = np.random.default_rng([learner.seed, 78])
        self.sparse = SparseNet(learner, self.generator, sparsity, granularity, block=read_block(block))
        self.reshapes = self.sparse.reshapes

    def sizes(self) -> dict[str, Tensor]:
        """Mean |w| of each granule."""
        return {name: self.sparse.pool(name, self.sparse.weight(name).abs()) for name in self.sparse.masks}

    def become(self, scores: Mapping[str, Tensor]) -> None:
        """Keep the granules of the largest scores."""

        def keep(name: str, mask: Mask) -> None:
            mask.keep_best(scores[name].to(mask.active.device), self.sparse.sparsity)

        self.sparse.renew(keep)

    def choose(self, now: Rows) -> Tensor | None:
        if self.waiting and len(now) > 1:
            self.waiting, self.sparse.scoring = False, True
            found = gradient_of(self.learner, now, own_classes=False)
            self.sparse.scoring = False
            pool, weight = self.sparse.pool, self.sparse.weight
            self.become({n: pool(n, weight(n).abs() * size(found[n])) for n in self.sparse.masks})
        return None

    def before_forward(self, rows: Sequence[Rows]) -> None:
        self.sparse.count(rows)

    def gradients(self, grads: dict[str, Tensor | None], only: dict[str, Only]) -> None:
        self.sparse.limit(grads, only)

    def telemetry(self) -> dict[str, float]:
        return self.sparse.telemetry()

    def state(self) -> State:
        return {"sparse": self.sparse.state(), "waiting": self.waiting}

    def load(self, state: State) -> None:
        self.sparse.load(state["sparse"])
        self.waiting = bool(state["waiting"])


class _Exchanging(Active):
    """A mask that exchanges a share of its granules between stages. share: by the part of an experience gone."""

    def __init__(
        self,
        learner: GradientLearner,
        sparsity: float,
        granularity: Granularity,
        block: str,
        stages: Stages,
        share: Callable[[float | None], float],
        *,
        by_gradient: bool = False,
    ) -> None:
        self.fixed = _Fixed(learner, sparsity, granularity, block)
        self.sparse, self.sizes, self.become = self.fixed.sparse, self.fixed.sizes, self.fixed.become
        self.stages, self.share, self.by_gradient = stages, share, by_gradient
        self.reshapes = self.sparse.reshapes
        self.exchanging = 0.0

    def choose(self, now: Rows) -> Tensor | None:
        moment = self.stages.due()
        if moment:
            self.stages.taken(moment)
            share = self.share(moment.epoch / moment.epochs if moment.epochs else None) if moment.stage else 0.0
            if self.by_gradient:
                self.exchanging = share
            elif share:
                self._exchange(share, None)
        return None

    def _exchange(self, share: float, grads: Mapping[str, Tensor | None] | None) -> None:
        scores = self.sizes()

        def change(name: str, mask: Mask) -> Tensor:
            there, before = int(mask.active.sum()), mask.active
            leaving = round(share * there)
            if not leaving:
                return torch.zeros_like(before)
            mask.replace(best(scores[name], before, there - leaving))
            if grads is None:
                return mask.grow(self.sparse.sparsity, self.sparse.generator)
            gradient = grads.get(name)
            assert gradient is not None
            return mask.add(best(self.sparse.pool(name, size(gradient)), ~mask.active, leaving))

        self.sparse.renew(change)

    def before_forward(self, rows: Sequence[Rows]) -> None:
        self.sparse.count(rows)

    def gradients(self, grads: dict[str, Tensor | None], only: dict[str, Only]) -> None:
        if self.exchanging:
            self._exchange(self.exchanging, grads)
            self.exchanging = 0.0
        self.sparse.limit(grads, only)

    def boundary(self) -> None:
        self.stages.boundary()

    def telemetry(self) -> dict[str, float]:
        return self.sparse.telemetry()

    def state(self) -> State:
        return {"sparse": self.sparse.state(), "stages": self.stages.state(), "exchanging": self.exchanging}

    def load(self, state: State) -> None:
        self.sparse.load(state["sparse"])
        self.stages.load(state["stages"])
        self.exchanging = float(state["exchanging"])


def _check(sparsity: float, block: str) -> None:
    if not 0 <= sparsity < 1:
        raise ValueError("sparsity must lie in 0..1, 1 excluded")
    read_block(block)


def _check_stages(zeta: float, delta: int, delta_updates: int) -> None:
    if not 0 <= zeta < 1 or min(delta, delta_updates) < 1:
        raise ValueError("zeta must lie in 0..1, delta and delta_updates be at least 1")
