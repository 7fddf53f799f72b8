"""Adaptation without labels: a source model, and of each method its objective, filter, direction, scope and statistics.

The answer to a batch is that of the forward pass before the step. Where a step follows, that pass keeps its graph until
``adapt``, so that one pass serves both; without it (a batch that was loaded, or put off) the pass is made again, with
the same bits. The pass after the ascent is a function of shifted parameters: nothing has to be put back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from ...models.adaptive_norm import adaptive_norms, affine_names
from ...models.inputs import Columns, Pixels
from ...models.networks import Network
from ...models.surrogate_gap import ascent, gap_direction, joint_norm
from ...streams import Array, Batch, Boundary, InputError, StreamSpec
from ..learner import Learner, Prediction, State
from ..source_model import Progress, Training, source_model, tell
from .gradient import inputs_of
from .test_time_parts import Parts, Recipe, entropy

LAST_STAGE = ("body.blocks.6.", "body.blocks.7.", "body.layer4.")
"""Of ResNets, ours and torchvision's; SAR leaves it alone."""
LEAST = 1e-8
"""A gradient shorter than this points nowhere."""


@dataclass(frozen=True, slots=True)
class Step:
    """A direction by parameter name, the losses before and after the ascent, and how many rows they rest on."""

    direction: dict[str, Tensor]
    loss: Tensor
    perturbed: Tensor
    rows: int


class TestTimeLearner(Learner):
    """A model trained on the stream's clean rows that adapts to the rows it answers, never to labels.

    params: a recipe, which has the method's parameters. parts: a method of one's own mixture instead of the recipe's.
    model: a trained network instead of the recipe's source model; the learner takes it over.

    With statistics of the batch an answer depends on the rows that came along, by nature of the method.
    """

    __test__ = False
    needs = frozenset({"source"})

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
        model: Network | None = None,
        progress: Progress = tell,
    ) -> None:
        super().__init__(spec, params, seed)
        if spec.notes.get("reset") == "boundary" and spec.drifts:
            self.needs |= {"boundaries"}
        p: Recipe = self.params
        self.parts = p.parts() if parts is None else parts
        self.inputs: Pixels | Columns = inputs_of(spec)
        if model is None:
            training = Training(p.model, p.norm, p.epochs, p.source_lr, p.source_batch, seed)
            model = source_model(spec, self.inputs, training, keep=p.cache, progress=progress)
        self.net = model.eval()
        adaptive_norms(self.net, p.statistics, p.prior)
        self.net.requires_grad_(False)
        self.moving = self._moving()
        self.source = {n: w.detach().clone() for n, w in self.moving.items()}
        """What moves, as it was before any step."""
        self.optimiser = None if self.parts.descent is None else self.parts.descent.start()
        self.mean_softmax: Tensor | None = None
        self.mean_loss: float | None = None
        self.counts = dict.fromkeys(("steps", "batches", "skipped", "rows", "kept", "resets", "moved"), 0)
        self.gap = 0.0
        self._said: tuple[Prediction, Tensor, Tensor] | None = None

    def _moving(self) -> dict[str, Tensor]:
        """The parameters in scope, which alone get gradients."""
        if self.parts.descent is None:
            return {}
        everything = dict(self.net.named_parameters())
        names = list(everything) if self.parts.scope == "all" else affine_names(self.net)
        if not self.parts.whole:
            names = [n for n in names if not n.startswith(LAST_STAGE)]
        if not names:
            raise InputError("there is nothing to adapt: the model has no norms with scale and shift")
        return {n: everything[n].requires_grad_(True) for n in names}

    # --- answers ------------------------------------------------------------------------------------------------

    def predict(self, batch: Batch) -> Prediction:
        x = self._tensor(batch)
        if not self.moving:
            with torch.inference_mode():
                return _prediction(self.net(x))
        z = self.net(x)
        prediction = _prediction(z.detach())
        self._said = (prediction, x, z)
        return prediction

    def _tensor(self, batch: Batch) -> Tensor:
        assert isinstance(batch.x, np.ndarray)
        return self.inputs.tensor(batch.x)

    def probe(self, x: Array) -> Any:
        rows = self.inputs.tensor(x)

        def score() -> Array:
            with torch.inference_mode():
                scores: Array = _probabilities(self.net(rows))
            return scores

        return score

    def version(self) -> int | None:
        return self.counts["moved"]

    # --- adaptation ---------------------------------------------------------------------------------------------

    def adapt(self, batch: Batch, prediction: Prediction) -> None:
        said, self._said = self._said, None
        if not self.moving or not len(batch):
            return
        if said is not None and said[0] is prediction:
            x, z = said[1:]
        else:
            x = self._tensor(batch)
            z = self.net(x)
        self.counts["batches"] += 1
        self.counts["rows"] += len(batch)
        step = self._step(x, z)
        if step is None or not bool(torch.isfinite(joint_norm(list(step.direction.values())))):
            self.counts["skipped"] += 1
            return
        self._take(step, len(batch))

    def _step(self, x: Tensor, z: Tensor) -> Step | None:
        """Where to go; None where no row counts or there is no slope."""
        how = self.parts.direction
        e = entropy(z)
        with torch.no_grad():
            mask, self.mean_softmax = self.parts.filter.choose(z, e, self.mean_softmax)
        loss = self._loss(e, z.shape[1], mask)
        if loss is None:
            return None
        rows = int(mask.sum())
        weights = list(self.moving.values())
        g = torch.autograd.grad(loss, weights)
        if how.rho == 0:
            return Step(dict(zip(self.moving, g)), loss.detach(), loss.detach(), rows)
        if not float(joint_norm(g)) >= LEAST:
            return None
        up = ascent(g, how.rho)
        shifted = {n: (w.detach() + d).requires_grad_(True) for (n, w), d in zip(self.moving.items(), up)}
        z = functional_call(self.net, shifted, (x,))
        e = entropy(z)
        if how.refilter:
            mask = mask & self.parts.filter.again(e.detach(), z.shape[1])
        perturbed = self._loss(e, z.shape[1], mask)
        if perturbed is None:
            return None
        gp = torch.autograd.grad(perturbed, list(shifted.values()))
        found = gap_direction(g, gp, how.alpha_for(len(x)))
        rows = int(mask.sum())
        if how.clip and rows == 1:
            found = [d * torch.clamp(how.clip / (joint_norm(found) + LEAST), max=1.0) for d in found]
        return Step(dict(zip(self.moving, found)), loss.detach(), perturbed.detach(), rows)

    def _loss(self, e: Tensor, classes: int, mask: Tensor) -> Tensor | None:
        """The objective's mean over the rows that count; None where none does."""
        if not bool(mask.any()):
            return None
        return self.parts.objective.rows(e, classes)[mask].mean()

    def _take(self, step: Step, rows: int) -> None:
        """Move, then see whether it was for the worse."""
        assert self.optimiser is not None
        assert self.parts.descent is not None
        self.optimiser.lr = self.parts.descent.rate(rows)
        self.optimiser.step(self.moving, step.direction, {})
        self.counts["steps"] += 1
        self.counts["kept"] += step.rows
        self.counts["moved"] += 1
        loss = float(step.perturbed)
        self.gap = loss - float(step.loss)
        slots = [t for slot in self.optimiser.slots.values() for t in slot.values()]
        if not all(bool(torch.isfinite(t).all()) for t in (*self.moving.values(), *slots)):
            self._restore()
        elif self.parts.recovery is not None:
            self.mean_loss = self.parts.recovery.follow(self.mean_loss, loss)
            if self.mean_loss < self.parts.recovery.threshold(self.net.head.out_features):
                self._restore()

    def _restore(self) -> None:
        """Back to the source: its parameters, no moments, no memory of losses."""
        assert self.parts.descent is not None
        with torch.no_grad():
            for name, weight in self.moving.items():
                weight.copy_(self.source[name])
        self.optimiser = self.parts.descent.start()
        self.mean_loss = None
        self.counts["resets"] += 1
        self.counts["moved"] += 1

    def boundary(self, event: Boundary) -> None:
        """Start from the source again, where the stream asks for it (setting reset-each-shift)."""
        self._said = None
        if "boundaries" in self.needs and self.optimiser is not None and self.optimiser.slots:
            self._restore()
            self.mean_softmax = None

    # --- state --------------------------------------------------------------------------------------------------

    def telemetry(self) -> dict[str, float]:
        c = self.counts
        kept = c["kept"] / c["rows"] if c["rows"] else 0.0
        return {"resets": float(c["resets"]), "skipped": float(c["skipped"]), "kept": kept, "gap": self.gap}

    def state(self) -> State:
        return {
            "net": dict(self.net.state_dict(keep_vars=True)),
            "source": dict(self.source),
            "optimiser": None if self.optimiser is None else self.optimiser.state(),
            "inputs": self.inputs.state(),
            "mean_softmax": self.mean_softmax,
            "mean_loss": self.mean_loss,
            "counts": dict(self.counts),
            "gap": self.gap,
        }

    def load(self, state: State) -> None:
        self.net.load_state_dict(state["net"])
        self.source = {n: torch.as_tensor(state["source"][n]).clone() for n in self.moving}
        if self.optimiser is not None:
            self.optimiser.load(state["optimiser"])
        self.inputs.load(state["inputs"])
        kept = state["mean_softmax"]
        self.mean_softmax = None if kept is None else torch.as_tensor(kept).clone()
        self.mean_loss = None if state["mean_loss"] is None else float(state["mean_loss"])
        self.counts = {k: int(state["counts"][k]) for k in self.counts}
        self.gap = float(state["gap"])
        self._said = None


def _probabilities(z: Tensor) -> Array:
    """float64[B, C]; a row whose logits are not finite is as likely of one class as of any other."""
    scores = torch.softmax(z.double(), 1)
    broken = ~torch.isfinite(scores).all(1)
    if bool(broken.any()):
        scores[broken] = 1 / z.shape[1]
    found: Array = scores.numpy(force=True)
    return found


def _prediction(z: Tensor) -> Prediction:
    scores = _probabilities(z)
    return Prediction(scores.argmax(1), scores)
