"""SparCL: sparse continual learning. Masks of weights, rows and gradients that follow what each task needs.

Wang et al., SparCL: Sparse Continual Learning on the Edge, NeurIPS 2022, arXiv 2209.09476.

    importance of a weight     CWI = |w| + a |dL~/dw| + b |dL/dw|        a: rows at hand, b: rows of the memory
    importance of a gradient   CGI =       a |dL~/dw| + b |dL/dw|        L~: over the classes of the experience only
    TDM   between stages: drop the least CWI until s + p_intra, grow at random until s;
          after a boundary grow until s - p_inter, back at the end of the first stage
    DDR   at the end of each of the first ``cutoff`` stages drop the rows with the fewest wrong answers
    DGM   every ``refresh`` updates: only the largest CGI among the active weights move

From the paper: all of that. From the authors' code: 5 epochs a stage, 30 updates, shares of 0.01, the mask that stands
still in the last tenth, which layers are masked; as options ``merged`` (both importances from the gradient of the last
update, both losses together), ``percentile`` (choice by percentiles), ``removal_score="forgetting"`` and
``expand_first``. The code also trains the rows at hand with L~: that is ``single_head`` of the learner, and to be set
for the baseline too. Ours: masks as a state of their own, exact counts, fresh rows for scores, frozen weights that keep
their moments and are not decayed, a weight for each row where there are enough, and the granularities row and block.

With ``granularity="row"`` dropped rows, and all that hangs on them, are not there (``models/compact.py``): the network
is smaller, so its true sparsity is above s. Data removal needs two epochs or more, images (rows that look the same in
every epoch), and known experiences; without them it is off. Rows that left make batches smaller and not fewer, so that
as many rows are replayed as ever, where the authors' code, filling its batches up, replays less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ...models.masks import Granularity, Mask, above_percentile, best, keep_count, sprout
from ...models.optimisers import Only
from ...models.schedules import Schedule, read_schedule, smallest_p, sparcl_schedule, worth
from ..learner import State
from .importance import Fresh, gradient_of, size
from .parts import Active, Rows
from .removal import Removal, Score
from .sparse_net import SparseNet, read_block, refused
from .stages import Moment, Stages

if TYPE_CHECKING:
    from .gradient import GradientLearner


@dataclass(frozen=True)
class SparCL:
    """Dynamic masks of weights (TDM), data (DDR) and gradients (DGM) around any replay policy."""

    sparsity: float = 0.75
    """Share of every masked weight that is not there."""
    granularity: Granularity = "element"
    """What is counted: single weights (the paper), whole output rows (a smaller network), or blocks."""
    block: str = "32x32"
    """Size of a block."""
    row_multiple: int = 1
    """Round the number of rows up to a multiple of it."""
    p_intra: float | None = None
    """Share exchanged between stages; none: min(0.01, 0.2 (1 - sparsity)), of rows 0.2 (1 - sparsity)."""
    p_inter: float | None = None
    """Share grown at a boundary; none: as p_intra."""
    delta: int = 5
    """Epochs of a stage, at most a quarter of an experience; an experience of one epoch has ten stages."""
    delta_updates: int = 100
    """Updates of a stage where an experience's length is not known."""
    schedule: str = ""
    """Sparsities by epoch instead, start:prune:grow with commas between: 0:.77:.75,25:.76:.75,40:.75:.75."""
    now_weight: float = 0.5
    """a, the weight of the gradient of the rows at hand."""
    memory_weight: float = 0.5
    """b, the weight of the gradient of the memory's rows."""
    gradient_share: float = 0.8
    """Share of the active weights that move."""
    refresh: int = 30
    """Updates between two choices of these."""
    removal: float = 0.3
    """Share of an experience's rows that data removal drops."""
    cutoff: int = 4
    """Stages over which it does."""
    removal_score: Score = "misclassified"
    """What is counted: wrong answers, or changes from right to wrong."""
    score_rows: int = 32
    """Rows, at hand and of the memory, that gradients are taken over; the last ones where batches are smaller."""
    merged: bool = False
    """Importance from the gradient of the last update, as the code has it: costs nothing."""
    percentile: bool = False
    """Choose by percentiles, as the code does, instead of exact counts."""
    expand_first: bool = False
    """Grow at the beginning of the first experience too, as the code does."""
    task_free: bool = False
    """Do without boundaries: stages by updates, no growth at boundaries, no data removal."""

    def __post_init__(self) -> None:
        shares = (self.sparsity, self.removal, self.p_intra or 0.0, self.p_inter or 0.0)
        if not all(0 <= share < 1 for share in shares) or not 0 < self.gradient_share <= 1:
            raise ValueError("sparsity, removal, p_intra and p_inter must lie in 0..1, gradient_share above 0")
        if min(self.delta, self.delta_updates, self.refresh, self.score_rows, self.row_multiple) < 1 or self.cutoff < 0:
            raise ValueError("delta, delta_updates, refresh, score_rows and row_multiple must be at least 1")
        read_block(self.block)
        self.schedule_of(Moment(0, 1, None))

    @property
    def needs(self) -> frozenset[str]:
        """Boundaries, unless it is told to do without."""
        return frozenset(() if self.task_free else {"boundaries"})

    @property
    def refuses(self) -> Mapping[str, str]:
        """Whom it cannot be combined with depends on the granularity."""
        return refused("SparCL", self.granularity)

    def schedule_of(self, moment: Moment) -> Schedule:
        """What masks do in an experience of this length."""
        default = smallest_p(self.sparsity, 1.0 if self.granularity == "row" else 0.01) if self.sparsity else 0.0
        p_intra = default if self.p_intra is None else self.p_intra
        p_inter = 0.0 if self.task_free else p_intra if self.p_inter is None else self.p_inter
        if self.schedule:
            return read_schedule(self.schedule, self.sparsity, p_inter)
        return sparcl_schedule(self.sparsity, p_intra, p_inter, every=moment.every, epochs=moment.epochs)

    def start(self, learner: GradientLearner) -> Active:
        return _SparCL(learner, self)


class _SparCL(Active):
    def __init__(self, learner: GradientLearner, values: SparCL) -> None:
        self.learner, self.values = learner, values
        self.generator = np.random.default_rng([learner.seed, 78])
        self.sparse = SparseNet(
            learner,
            self.generator,
            values.sparsity,
            values.granularity,
            block=read_block(values.block),
            multiple=values.row_multiple,
            share=values.gradient_share,
        )
        self.reshapes = self.sparse.reshapes
        self.stages = Stages(learner, values.delta, values.delta_updates, task_free=values.task_free)
        self.removal = Removal(values.removal, values.cutoff, values.removal_score, learner.seed)
        self.fresh = Fresh(learner, values.score_rows, self.generator)
        self.since = 0
        """Updates since the choice of what moves."""
        self.last: dict[str, Tensor] = {}
        """Gradient of the last update, where importances are taken from it."""
        self._now: Rows | None = None
        self.sparse.renew(
            lambda name, mask: self._exchange(name, mask, self._size_of(name), values.sparsity, values.sparsity)
        )

    # --- TDM and DDR, between stages ----------------------------------------------------------------------------

    def choose(self, now: Rows) -> Tensor | None:
        moment = self.stages.due()
        if moment and self.removing:
            self.removal.end_stage(moment.stage)
        keep = self.removal.keep(now.x, now.ids) if self.removing else None
        self._now = now if keep is None else now.keep(keep)
        if moment and len(self._now):
            self.stages.taken(moment)
            self._renew_masks(moment, self._now)
        return keep

    @property
    def removing(self) -> bool:
        """Whether data removal can work here: rows come again and look the same."""
        wanted = self.values.removal > 0 and self.values.cutoff > 0
        return wanted and self.stages.epochs > 1 and self.learner.inputs.fixed

    def _renew_masks(self, moment: Moment, now: Rows) -> None:
        schedule, masks, s = self.values.schedule_of(moment), self.sparse.masks.values(), self.values.sparsity
        if moment.stage:
            prune_to, grow_to = schedule.at(moment.epoch)
        elif self.learner.task or self.values.expand_first:
            prune_to, grow_to = schedule.at_start
        else:
            return
        shrinks = any(m.count(worth(m.granules.n, prune_to, s)) < int(m.active.sum()) for m in masks)
        if not shrinks and all(m.count(worth(m.granules.n, grow_to, s)) <= int(m.active.sum()) for m in masks):
            return
        gradients = self._gradients(now) if shrinks else {}
        cwi = {name: self._size_of(name) + gradients.get(name, 0.0) for name in self.sparse.masks}
        self.sparse.renew(lambda name, mask: self._exchange(name, mask, cwi[name], prune_to, grow_to))
        self.since = 0

    def _exchange(self, name: str, mask: Mask, importance: Tensor, prune_to: float, grow_to: float) -> Tensor:
        """Drop the least important granules, grow others; which are new, bool[n]."""
        scores, n = self.sparse.pool(name, importance), mask.granules.n
        if self.values.percentile and prune_to:
            kept = mask.active & above_percentile(scores.masked_fill(~mask.active, 0.0), prune_to)
            mask.replace(kept)
            return mask.add(sprout(kept, int(n - int(kept.sum()) - grow_to * n + 1e-9), self.generator))
        mask.keep_best(scores, worth(n, prune_to, self.values.sparsity))
        return mask.grow(worth(n, grow_to, self.values.sparsity), self.generator)

    # --- importance ---------------------------------------------------------------------------------------------

    def _size_of(self, name: str) -> Tensor:
        return self.sparse.weight(name).abs()

    def _gradients(self, now: Rows) -> dict[str, Tensor]:
        """a |dL~/dw| + b |dL/dw| of every masked weight, from fresh rows and whole gradients."""
        values, names = self.values, self.sparse.masks
        if values.merged:
            return {n: values.now_weight * size(g) for n, g in self.last.items()}
        total: dict[str, Tensor] = {}
        self.sparse.scoring = True
        self.sparse.form.whole(True)
        sources = ((values.now_weight, self.fresh.now(now), True), (values.memory_weight, self.fresh.memory(), False))
        for weight, rows, own in sources:
            if not weight or rows is None:
                continue
            for name, gradient in gradient_of(self.learner, rows, own_classes=own).items():
                if name in names:
                    term = weight * size(gradient)
                    total[name] = total[name] + term if name in total else term
        self.sparse.form.whole(False)
        self.sparse.scoring = False
        return total

    # --- DGM, in every update -----------------------------------------------------------------------------------

    def before_forward(self, rows: Sequence[Rows]) -> None:
        self.sparse.count(rows)

    def gradients(self, grads: dict[str, Tensor | None], only: dict[str, Only]) -> None:
        if self.since % self.values.refresh == 0 and self.values.gradient_share < 1:
            self._choose_moving(grads)
        self.sparse.limit(grads, only)
        if self.values.merged:
            self.last = {name: g for name in self.sparse.masks if (g := self._left_over(name, grads)) is not None}

    def _choose_moving(self, grads: dict[str, Tensor | None]) -> None:
        assert self._now is not None
        if self.values.merged:
            cgi = {name: size(g) for name in self.sparse.masks if (g := grads.get(name)) is not None}
        else:
            cgi = self._gradients(self._now)
        for name, mask in self.sparse.masks.items():
            if name in cgi:
                mask.moving = self._moving(mask, self.sparse.pool(name, cgi[name]))
        self.sparse.moved()

    def _left_over(self, name: str, grads: dict[str, Tensor | None]) -> Tensor | None:
        """The gradient as the code finds it at the next change of masks; of single weights only those that moved."""
        grad, mask = grads.get(name), self.sparse.masks[name]
        return grad if grad is None or mask.granules.block != (1, 1) else grad * mask.granules.spread(mask.moving)

    def _moving(self, mask: Mask, scores: Tensor) -> Tensor:
        density = self.values.gradient_share * (1 - self.values.sparsity)
        if self.values.percentile:
            scores = scores.masked_fill(~mask.active, 0.0)
            edge = float(np.percentile(scores.numpy(force=True), 100 * (1 - density)))
            return (scores >= edge) & (scores > 0)
        return best(scores, mask.active, keep_count(mask.granules.n, 1 - density))

    def after_step(self, now: Rows) -> None:
        self.since += 1
        said = self.learner.said
        if self.removing and said is not None and len(said) == len(now):
            self.removal.observe(now.x, said.detach().argmax(1) == now.y, now.ids)

    def learnt(self, now: Rows) -> None:
        self.fresh.learnt(now)

    def boundary(self) -> None:
        self.stages.boundary()
        self.fresh.boundary()
        self.removal.begin()

    # --- records and state --------------------------------------------------------------------------------------

    def telemetry(self) -> dict[str, float]:
        return self.sparse.telemetry() | {"removed_rows": float(self.removal.removed)}

    def state(self) -> State:
        return {
            "sparse": self.sparse.state(),
            "stages": self.stages.state(),
            "removal": self.removal.state(),
            "fresh": self.fresh.state(),
            "since": self.since,
            "last": self.last,
        }

    def load(self, state: State) -> None:
        self.sparse.load(state["sparse"])
        self.stages.load(state["stages"])
        self.removal.load(state["removal"])
        self.fresh.load(state["fresh"])
        self.since = int(state["since"])
        self.last = {name: gradient.clone() for name, gradient in state["last"].items()}
