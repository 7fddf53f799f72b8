"""Adaptation without labels: a source model, and of each method its objective, filter, direction, scope and statistics.

The answer to a batch is that before the step. Where the step goes on from the same forward pass, that is kept until
``adapt``, so that one pass serves both; without it (a batch that was loaded, or put off) the pass is made again, with
the same bits. The pass after the ascent is a function of shifted parameters: nothing has to be put back. Where there is
a teacher, it answers, and the student learns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...models.adaptive_norm import (
    adaptive_norms,
    adopt,
    affine_names,
    followed,
    following,
    proposals,
    start_anew,
    using,
)
from ...models.passes import Pass
from ...models.surrogate_gap import all_finite, joint_norm
from ...streams import NO_LABEL, Array, Batch, Boundary, InputError, StreamSpec
from ..learner import Learner, Prediction, State
from ..source_model import Progress, Training, class_count, tell
from .test_time_memory import BalancedMemory
from .test_time_parts import Parts, probabilities
from .test_time_passes import passes_for
from .test_time_recipes import Recipe
from .test_time_shots import Prototyped, by_code, inputs_for, start
from .test_time_step import Lesson, Step, Student, choose, step_of
from .test_time_teacher import (
    RESTORE,
    STRONG,
    VIEWS,
    Hold,
    Teacher,
    augmentation_of,
    copy_into,
    draw_back,
    generator,
    hold_of,
)

LAST_STAGE = ("body.blocks.6.", "body.blocks.7.", "body.layer4.")
"""Of ResNets, ours and torchvision's; SAR leaves it alone."""
COUNTS = ("steps", "batches", "lessons", "skipped", "rows", "kept", "resets", "moved")


@dataclass(frozen=True, slots=True)
class Said:
    """Rows float[B, ...], the answer's logits float[B, C], and the student's pass where that gave them."""

    x: Tensor
    z: Tensor
    first: Pass | None = None


class TestTimeLearner(Learner):
    """A model trained on the stream's clean rows that adapts to the rows it answers.

    Labels change nothing, except where the method has a part for labelled rows of new classes (``parts.shots``).

    params: a recipe, which has the method's parameters. parts: a method of one's own mixture instead of the recipe's.
    model: a trained network instead of the recipe's source model, float[B, ...] to float[B, C]; the learner takes it
    over. Images go into it scaled by the mean and std of the spec's notes, other rows scaled by the stream's clean
    ones, and as they are where there are none.

    With statistics of the batch an answer depends on the rows that came along, by nature of the method.

    >>> import driftway as dw
    >>> spec = dw.StreamSpec("sensors", (dw.Column("a"), dw.Column("b")), classes=("n", "y"))
    >>> net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    >>> list(dw.learner("tent", spec, model=net).moving)
    ['1.weight', '1.bias']
    """

    __test__ = False
    needs = frozenset({"source"})
    devices: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda"})

    @dataclass(frozen=True, kw_only=True)
    class Params(Recipe):
        """What all recipes have; on its own it adapts nothing but statistics."""

    def __init__(
        self,
        spec: StreamSpec,
        params: Recipe | None = None,
        seed: int = 0,
        *,
        parts: Parts | None = None,
        model: nn.Module | None = None,
        progress: Progress = tell,
        device: str = "cpu",
    ) -> None:
        super().__init__(spec, params, seed)
        if device != "cpu" and not torch.cuda.is_available():
            raise InputError(f"device {device}: PyTorch finds none on this machine")
        if spec.notes.get("reset") == "boundary" and spec.drifts:
            self.needs |= {"boundaries"}
        p: Recipe = self.params
        self.device = torch.device(device)
        self.parts = p.parts(spec) if parts is None else parts
        self.inputs = inputs_for(spec)
        self.net, self.taught = start(
            self.parts.shots,
            spec,
            self.inputs,
            Training(p.model, p.norm, p.epochs, p.source_lr, p.source_batch, seed),
            source=p.source,
            model=model,
            keep=p.cache,
            progress=progress,
        )
        self.net.eval().to(self.device)
        adaptive_norms(self.net, p.statistics, p.prior, p.follow)
        self.net.requires_grad_(False)
        self.parts = self.parts.for_classes(self._vectors())
        if (fewer := self.parts.fewer_groups()) is not None:
            progress(fewer)
        self.moving = self._moving()
        self.passes = passes_for(self.net, self.moving, p.step)
        self.source = {n: w.detach().clone() for n, w in self.moving.items()}
        """What moves, as it was before any step."""
        self.optimiser = None if self.parts.descent is None else self.parts.descent.start()
        self.mean_softmax: Tensor | None = None
        self.mean_loss: float | None = None
        self.calmed = 0
        """How often steps were made gentler."""
        self.counts = dict.fromkeys(COUNTS, 0)
        self.gap = 0.0
        self.touched = False
        """Whether anything may have moved since the start or the last reset."""
        self._said: tuple[Prediction, Said] | None = None
        self._beside(spec)

    def _beside(self, spec: StreamSpec) -> None:
        """What only some methods have: running statistics, a teacher, a memory, a penalty."""
        how = self.parts
        self.followed = followed(self.net)
        self.augment = augmentation_of(spec)
        self.teacher = None if how.teacher is None else Teacher(how.teacher, self.net, self.source, self.augment)
        self.memory = None if how.memory is None else BalancedMemory(how.memory.capacity, self.classes)
        self.hold: Hold | None = None
        if how.anchor is not None and self.moving:
            self.hold = hold_of(how.anchor, spec, self.inputs, self.passes, self.source, self.seed)
        self.adapts = bool(self.moving or self.followed)
        self.direct = bool(self.moving) and not (
            self.followed or self.teacher or self.memory is not None or how.augment
        )
        """Whether a step goes on from the pass that answered."""

    @property
    def classes(self) -> int:
        """How many there are logits for now."""
        if self.taught is not None:
            return len(self.taught.codes)
        head = getattr(self.net, "head", None)
        return head.out_features if isinstance(head, nn.Linear) else class_count(self.spec)

    def _vectors(self) -> Tensor | None:
        """One of each class, float[C, d], where the network has them: prototypes, or the rows of a linear head."""
        if isinstance(self.taught, Prototyped):
            return self.taught.prototypes.rows
        head = getattr(self.net, "head", None)
        return head.weight if isinstance(head, nn.Linear) else None

    def _moving(self) -> dict[str, Tensor]:
        """The parameters in scope, which alone get gradients."""
        if self.parts.descent is None:
            return {}
        everything = dict(self.net.named_parameters())
        scope = self.parts.scope
        if scope == "affine":
            names = affine_names(self.net)
        elif scope == "all":
            names = list(everything)
        else:
            patterns = (scope,) if isinstance(scope, str) else scope
            names = [n for n in everything if any(fnmatchcase(n, pattern) for pattern in patterns)]
        if not self.parts.whole:
            names = [n for n in names if not n.startswith(LAST_STAGE)]
        if not names:
            what = f"no parameters like {scope if isinstance(scope, str) else ', '.join(scope)}"
            what = "no norms with scale and shift" if scope == "affine" else what
            raise InputError(f"there is nothing to adapt: the model has {what}")
        return {n: everything[n] for n in names}

    # --- answers ------------------------------------------------------------------------------------------------

    def predict(self, batch: Batch) -> Prediction:
        if not len(batch):  # statistics of no rows are not finite
            none = self.source_scores(batch)
            return Prediction(none.argmax(1), none)
        said = self._say(self._tensor(batch))
        scores = self._scores(said.z)
        prediction = Prediction(scores.argmax(1), scores)
        self._said = (prediction, said)
        return prediction

    def _scores(self, z: Tensor) -> Array:
        """float64[B, C] by class code."""
        scores = probabilities(z)
        if self.taught is None:
            return scores
        return by_code(scores, self.taught.codes.numpy(force=True), self.spec.n_classes or 0)

    def _say(self, x: Tensor) -> Said:
        if not self.direct:
            return Said(x, self._logits(x))
        first = self.passes(x)
        return Said(x, first.z, first)

    def _logits(self, x: Tensor) -> Tensor:
        """The answer alone, without a graph."""
        if self.teacher is not None:
            return self.teacher.logits(x, generator(self.seed, VIEWS, self.counts["batches"]))
        with torch.inference_mode():
            z: Tensor = self.net(x)
        return z

    def _tensor(self, batch: Batch) -> Tensor:
        assert isinstance(batch.x, np.ndarray)
        return self.inputs.tensor(batch.x).to(self.device)

    def probe(self, x: Array) -> Any:
        rows = self.inputs.tensor(x).to(self.device)

        def score() -> Array:
            return self._scores(self._logits(rows))

        return score

    def source_scores(self, batch: Batch) -> Array:
        with torch.inference_mode(), using(self.net, "source"):
            return self._scores(functional_call(self.net, self.source, (self._tensor(batch),)))

    def version(self) -> int | None:
        looks = self.parts.teacher.views if self.parts.teacher is not None else 0  # other views for every batch
        return self.counts["moved"] + (self.counts["batches"] if looks else 0)

    # --- adaptation ---------------------------------------------------------------------------------------------

    def adapt(self, batch: Batch, prediction: Prediction) -> None:
        kept, self._said = self._said, None
        if self.taught is not None and batch.y is not None:  # labelled rows teach by their labels alone
            batch, kept = batch.rows(batch.y == NO_LABEL), None
        if not (self.adapts or self.taught) or not len(batch):
            return
        fits = kept is not None and kept[0] is prediction
        said = kept[1] if kept is not None and fits else self._say(self._tensor(batch))
        if self.taught is not None and self.taught.meet(said.x):
            self._retaught()
        if not self.adapts:
            return
        self.touched = True
        self.counts["batches"] += 1
        for lesson in self._lessons(said):
            self.counts["lessons"] += 1
            self.counts["rows"] += len(lesson.x)
            step = self._step(lesson)
            if self.followed:
                adopt(self.followed, lesson.moved)
                self.counts["moved"] += 1
            if step is not None and bool(torch.isfinite(joint_norm(list(step.direction.values())))):
                self._take(step, len(lesson.x))
            else:
                self.counts["skipped"] += bool(self.moving)
            self.passes.choose(lesson.x)

    def _lessons(self, said: Said) -> Iterator[Lesson]:
        """What there is to learn from: the rows at hand, or those of the memory each time enough have come."""
        if self.memory is None:
            if self.teacher is not None and self.followed:
                self.teacher.see(said.x)
            yield self._lesson(said.x, None if self.teacher is None else said.z, first=said.first)
            return
        assert self.parts.memory is not None
        for x, weight in self.memory.take(said.x, said.z, self.parts.memory.every):
            yield self._lesson(x, None if self.teacher is None else self.teacher.see(x), weight)

    def _lesson(
        self, x: Tensor, taught: Tensor | None, weight: Tensor | None = None, first: Pass | None = None
    ) -> Lesson:
        if self.parts.augment:
            x = self.augment(x, 1, generator(self.seed, STRONG, self.counts["lessons"]))[0]
        first, moved = self._seen(x) if first is None else (first, {})
        return Lesson(x, first, moved, None if taught is None else torch.softmax(taught, 1), weight)

    def _seen(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> tuple[Pass, dict[str, Tensor]]:
        """A pass, and the running statistics that it proposes where there are any."""
        if not self.followed:
            return self.passes(x, weights), {}
        with following(self.net):
            seen = self.passes(x, weights)
        return seen, proposals(self.net)

    def _step(self, lesson: Lesson) -> Step | None:
        """Where to go; None where no row counts or there is no slope."""
        if not self.moving:
            return None
        rows, mask, self.mean_softmax = choose(lesson, self.parts, self.mean_softmax)
        student = Student(self.moving, self._elsewhere, self.hold)
        return step_of(lesson, rows, mask, self.parts, student, gentle=self.calmed > 0)

    def _elsewhere(self, x: Tensor, weights: Mapping[str, Tensor]) -> Pass:
        return self._seen(x, weights)[0]  # what it proposes is of another place

    def _take(self, step: Step, rows: int) -> None:
        """Move, then see whether it was for the worse."""
        assert self.optimiser is not None
        assert self.parts.descent is not None
        self.optimiser.lr = self.parts.descent.rate(rows) * 0.5**self.calmed
        self.optimiser.step(self.moving, step.direction, {})
        if self.teacher is not None:
            self.teacher.follow(self.moving)
        if self.parts.restore:
            draw_back(
                self.moving, self.source, self.parts.restore, generator(self.seed, RESTORE, self.counts["lessons"])
            )
        self.counts["steps"] += 1
        self.counts["kept"] += step.rows
        self.counts["moved"] += 1
        loss = float(step.perturbed)
        self.gap = loss - float(step.loss)
        slots = [t for slot in self.optimiser.slots.values() for t in slot.values()]
        if not all_finite([*self.moving.values(), *slots]):
            self._reset()
        elif self.parts.recovery is not None:
            self.mean_loss = self.parts.recovery.follow(self.mean_loss, loss)
            if self.mean_loss < self.parts.recovery.threshold(self.classes):
                self._reset()

    def _reset(self) -> None:
        """Back to the source: its parameters and statistics, no moments, no running means, an empty memory."""
        copy_into(self.moving, self.source)
        start_anew(self.net)
        if self.teacher is not None:
            self.teacher.reset(self.followed)
        if self.memory is not None:
            self.memory.clear()
        if self.parts.descent is not None:
            self.optimiser = self.parts.descent.start()
        self.mean_loss, self.mean_softmax, self.touched = None, None, False
        self.counts["resets"] += 1
        self.counts["moved"] += 1

    def learn(self, batch: Batch, prediction: Prediction) -> None:
        """Labelled rows of new classes, where the method has a part for them; others change nothing."""
        if self.taught is None or batch.y is None or not len(batch):
            return
        self.taught.learn(self._tensor(batch), torch.from_numpy(np.ascontiguousarray(batch.y, np.int64)))
        self.mean_loss = None  # its scale goes with the number of classes
        self._retaught()

    def _retaught(self) -> None:
        self.parts = self.parts.for_classes(self._vectors())
        self.counts["moved"] += 1
        self._said = None

    def gentler(self) -> None:
        """Half the step length; where the surrogate gap has a weight, at least 0.4."""
        self.calmed += 1

    def boundary(self, event: Boundary) -> None:
        """Start from the source again, where the stream asks for it (setting reset-each-shift)."""
        self._said = None
        if "boundaries" in self.needs and self.touched:
            self._reset()

    # --- state --------------------------------------------------------------------------------------------------

    def telemetry(self) -> dict[str, float]:
        c = self.counts
        kept = c["kept"] / c["rows"] if c["rows"] else 0.0
        counted = {k: float(c[k]) for k in ("resets", "batches", "steps", "skipped")}
        return {**counted, "kept": kept, "gap": self.gap}

    def adapted(self) -> State | None:
        if not self.adapts:
            return None
        return {
            "moving": dict(self.moving),
            "optimiser": None if self.optimiser is None else self.optimiser.state(),
            "mean_softmax": self.mean_softmax,
            "mean_loss": self.mean_loss,
            "statistics": dict(self.followed),
            "teacher": None if self.teacher is None else self.teacher.state(),
            "memory": None if self.memory is None else self.memory.state(),
        }

    def restore(self, adapted: State) -> None:
        copy_into(self.moving, adapted["moving"])
        copy_into(self.followed, adapted["statistics"])
        if self.optimiser is not None:
            self.optimiser.load(adapted["optimiser"])
        if self.teacher is not None:
            self.teacher.load(adapted["teacher"])
        if self.memory is not None:
            self.memory.load(adapted["memory"])
        kept = adapted["mean_softmax"]
        self.mean_softmax = None if kept is None else torch.as_tensor(kept).clone()
        self.mean_loss = None if adapted["mean_loss"] is None else float(adapted["mean_loss"])
        self.counts["moved"] += 1
        self._said = None

    def facts(self) -> dict[str, Any]:
        return {"passes": self.passes.facts()} if self.moving else {}

    def state(self) -> State:
        return {
            "net": dict(self.net.state_dict(keep_vars=True)),
            "source": dict(self.source),
            "adapted": self.adapted(),
            "fisher": None if self.hold is None else dict(self.hold.fisher),
            "inputs": self.inputs.state(),
            "taught": None if self.taught is None else self.taught.state(),
            "touched": self.touched,
            "counts": dict(self.counts),
            "calmed": self.calmed,
            "gap": self.gap,
            "passes": dict(self.passes.chosen),
        }

    def load(self, state: State) -> None:
        self.net.load_state_dict(state["net"])
        copy_into(self.source, state["source"])
        self.inputs.load(state["inputs"])
        if self.taught is not None:
            self.taught.load(state["taught"])
            self.parts = self.parts.for_classes(self._vectors())
        if self.hold is not None:
            copy_into(self.hold.fisher, state["fisher"])
        self.touched = bool(state["touched"])
        if state["adapted"] is not None:
            self.restore(state["adapted"])
        self.counts = {k: int(state["counts"][k]) for k in COUNTS}
        self.calmed = int(state["calmed"])
        self.gap = float(state["gap"])
        self.passes.load(state["passes"])
        self._said = None
