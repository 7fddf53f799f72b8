"""Centaur: before each plan one step of the score decoder, from how torn the planner was over earlier frames.

Source: Sima et al., Centaur, arXiv 2503.11650, 2025. The paper's abstract and second-hand notes of its body are all we
could read: the step itself, what is ours in it, and the open questions are in ``models/cluster_training.py``. Ours too:
the objectives beside cluster entropy (controls), the planner that scores 64 plans, the way other rows than driving
scenes are treated: classes take the place of plans, groups of classes that of manoeuvres, and the step is Tent's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ...models.cluster_entropy import ClusterEntropy, full_entropy
from ...models.cluster_training import Background, ClusterEntropyTTT, Mode, Weights
from ...models.planner import Planner
from ...models.trajectories import manoeuvres
from ...streams import Array, Batch, InputError, StreamSpec
from ..learner import Learner, Prediction, State
from ..source_model import Progress, tell
from ..source_planner import PlannerTraining, source_planner
from .test_time_parts import ClusterEntropyObjective, Descent, Parts
from .test_time_recipes import Recipe

Objective = Literal["cluster", "cluster6", "full", "shuffled", "ascent", "random", "none", "fallback"]
FAR = 16.0
"""Metres beyond which a plan ends far away: headings x distance are six clusters."""
CALIBRATED_ON = 32
"""Clean scenes from which the reference length of a gradient and quantiles of the objective are taken."""
SAME_SPEED = 4.0
"""m/s: the car can only follow plans whose speed after 0.5 s differs by less from its own."""
COUNTS = ("batches", "refused", "braked", "calmed")


class Centaur(Learner):
    """A planner whose decoder takes one step, from the gradients of the last four frames, before each answer.

    For streams with a vocabulary of plans (``spec.worth``). Named ``centaur:OBJECTIVE``, ``centaur`` alone is
    ``centaur:cluster``. planner: a trained one instead of that of the stream's clean scenes; the learner takes it over.

    The rows of a batch are planned before any of them is learnt from; a stream of single frames is what it is for.
    """

    needs = frozenset({"source"})

    @dataclass(frozen=True, kw_only=True)
    class Params(Recipe):
        """Of the step for plans, then of the planner; those that all recipes have are for other streams."""

        objective: Objective = "cluster"
        """cluster (3 headings), cluster6 (heading x distance), full (entropy over all plans); controls: shuffled
        (clusters of the same sizes by lot), ascent, random (a direction by lot), none, fallback (brake in doubt)."""
        delta: float = 0.01
        """Length of a step, as a share of the length of the trained weights."""
        buffer: int = 4
        """Frames whose gradients are averaged."""
        mode: Mode = "episodic"
        """episodic: one step from the trained weights; accumulate: a step further with every frame."""
        trigger: float = 0.0
        """Quantile of the objective on clean scenes up to which no step is taken; 0: always a step."""
        guard: bool = False
        """Keep to the unadapted plan where the new one was thought less safe by the trained weights."""
        temperature: float = 1.0
        """Of the softmax over plans."""
        brake: float = 0.9
        """fallback: quantile of the objective on clean scenes from which on the car brakes."""
        background: Background = "wait"
        """Gradients in a thread: no, wait (the next frame waits if it must), live (never waits, not repeatable)."""
        steps: int = 1000
        """Of the planner's training."""
        width: int = 96
        """Of the planner's layers."""
        groups: int = 5
        """Other streams: groups of classes."""
        lr: float = 1e-3
        """Other streams: step length of Adam."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.objective not in get_args(Objective):
                raise ValueError(f"objective must be one of {', '.join(get_args(Objective))}")
            if not (0 <= self.delta < math.inf and self.buffer >= 1 and 0 < self.temperature < math.inf):
                raise ValueError("delta is at least 0, buffer at least 1, temperature above 0")
            if not (0 <= self.trigger <= 1 and 0 <= self.brake <= 1):
                raise ValueError("trigger and brake are quantiles, in 0..1")

        def parts(self, spec: StreamSpec | None = None) -> Parts:
            """Of streams without a vocabulary of plans."""
            return Parts(ClusterEntropyObjective(self.groups), descent=Descent("adam", self.lr))

    @classmethod
    def params_for(cls, objective: str) -> type[Params]:
        """The parameters of ``centaur:OBJECTIVE``."""
        if not objective:
            return cls.Params
        if objective not in get_args(Objective):
            raise InputError(
                f"centaur: there is no objective {objective!r}; there are {', '.join(get_args(Objective))}"
            )
        own = [("objective", Objective, field(default=objective))]
        return make_dataclass("Params", own, bases=(cls.Params,), frozen=True, kw_only=True)

    def __init__(
        self,
        spec: StreamSpec,
        params: Params | None = None,
        seed: int = 0,
        *,
        planner: Planner | None = None,
        progress: Progress = tell,
    ) -> None:
        super().__init__(spec, params, seed)
        if spec.worth is None:
            raise InputError(f"stream {spec.name} has no vocabulary of plans; the stream driving has")
        p: Centaur.Params = self.params
        if planner is None:
            training = PlannerTraining(steps=p.steps, width=p.width, seed=seed)
            planner = source_planner(spec, training, keep=p.cache, progress=progress)
        self.planner = planner.requires_grad_(False).eval()
        self.measure = measure_of(p.objective, spec.worth.vocabulary, p.temperature)
        self.training = self._build(torch.from_numpy(spec.worth.train(CALIBRATED_ON)[0]))
        self.counts = dict.fromkeys(COUNTS, 0)
        self._said: tuple[Prediction, list[Any]] | None = None

    def _build(self, clean: Tensor) -> ClusterEntropyTTT:
        """The step, its lengths measured on clean rows float[n, D]."""
        p = self.params
        self._entries = self.planner.entries()
        made = ClusterEntropyTTT(
            self.planner.features,
            dict(self.planner.decoder.named_parameters()),
            self._scores,
            self.measure,
            0.0 if p.objective in ("none", "fallback") else p.delta,
            buffer=p.buffer,
            mode=p.mode,
            guard=self._safety if p.guard else None,
            turn=turn_of(p.objective, self.seed),
            background=p.background,
            behind=partial(self._scores, decoder=copy.deepcopy(self.planner.decoder)),
        )
        with torch.no_grad():
            frames = [self.planner.features(row[None]) for row in clean]
        found = [made.gradient(frame) for frame in frames]
        made.reference = float(np.median([float(torch.linalg.vector_norm(g)) for g, _ in found]))
        doubt = np.array([value for _, value in found])
        made.trigger = float(np.quantile(doubt, p.trigger)) if p.trigger else None
        self.doubtful = float(np.quantile(doubt, p.brake))
        return made

    def _scores(self, weights: Weights, features: Any, decoder: nn.Module | None = None) -> Tensor:
        """float[1, M] of one frame's features; decoder: of the same form, where the planner's own may be in use."""
        return self.planner.combine(self._heads(weights, features, decoder))

    def _heads(self, weights: Weights, features: Any, decoder: nn.Module | None = None) -> Tensor:
        decoder = self.planner.decoder if decoder is None else decoder
        logits: Tensor = functional_call(decoder, dict(weights), (*features, self._entries))
        return logits

    def _safety(self, features: Any) -> Tensor:
        """float[1, M, 2]: NC and DAC of every plan as the trained weights see them."""
        return torch.sigmoid(self._heads(self.training.start, features)[..., 1:3])

    # --- answers ------------------------------------------------------------------------------------------------

    def predict(self, batch: Batch) -> Prediction:
        rows, kept = [], []
        for x in self._rows(batch):
            answer = self.training.answer(x, batch.time)
            scores = self._braked(x, answer.scores) if self.params.objective == "fallback" else answer.scores
            rows.append(scores)
            kept.append((answer, scores is not answer.scores))
        prediction = self._prediction(rows)
        self._said = (prediction, kept)
        return prediction

    def _rows(self, batch: Batch) -> list[Tensor]:
        assert isinstance(batch.x, np.ndarray)
        return list(torch.from_numpy(np.ascontiguousarray(batch.x, np.float32)).split(1))

    def _prediction(self, rows: list[Tensor]) -> Prediction:
        z = torch.cat(rows) if rows else torch.empty(0, len(self.planner.poses))
        z = torch.where(torch.isfinite(z).all(1, keepdim=True), z, 0.0)
        scores: Array = torch.softmax(z.double() / self.params.temperature, 1).numpy(force=True)
        return Prediction(z.argmax(1).numpy(force=True), scores)

    def _braked(self, x: Tensor, scores: Tensor) -> Tensor:
        """The scores, or, in doubt, those of the plan that stops soonest of the same manoeuvre at the car's speed."""
        if not float(self.measure(scores)) > self.doubtful:
            return scores
        plans = self.planner.trajectories
        kinds = torch.from_numpy(manoeuvres(plans.numpy()))
        fits = (plans[:, 5, 3] - 10 * x[0, 0]).abs() < SAME_SPEED
        same = fits & (kinds == kinds[int(scores.argmax())])
        far = torch.linalg.vector_norm(plans[:, -1, :2], dim=1)
        chosen = int(torch.where(same if bool(same.any()) else fits, far, torch.inf).argmin())
        found = scores.clone()
        found[0, chosen] = scores.max() + 1.0
        return found

    def source_scores(self, batch: Batch) -> Array:
        with torch.no_grad():
            rows = [self._scores(self.training.start, self.planner.features(x)) for x in self._rows(batch)]
        scores = self._prediction(rows).scores
        assert scores is not None
        return scores

    # --- adaptation ---------------------------------------------------------------------------------------------

    def adapt(self, batch: Batch, prediction: Prediction) -> None:
        said, self._said = self._said, None
        if said is not None and said[0] is prediction:
            kept = said[1]
        else:
            kept = [(self.training.answer(x, batch.time), False) for x in self._rows(batch)]
        self.counts["batches"] += 1
        self.counts["refused"] += sum(answer.refused for answer, _ in kept)
        self.counts["braked"] += sum(braked for _, braked in kept)
        if self.training.delta:
            for answer, _ in kept:
                self.training.observe(answer.features, batch.time)

    def gentler(self) -> None:
        """Half the step length."""
        self.training.delta /= 2
        self.counts["calmed"] += 1

    # --- state --------------------------------------------------------------------------------------------------

    def telemetry(self) -> dict[str, float]:
        if self.params.background != "live":
            self.training.settle()
        memory, c = self.training.memory, self.counts
        return {
            "resets": float(memory.resets),
            "batches": float(c["batches"]),
            "steps": float(memory.steps),
            "skipped": float(memory.frames - memory.steps + self.training.missed),
            "refused": float(c["refused"]),
            "braked": float(c["braked"]),
            "doubt": memory.entropies[-1] if memory.entropies else 0.0,
        }

    def facts(self) -> dict[str, Any]:
        sizes: list[int] = []
        if isinstance(self.measure, ClusterEntropy):
            assert self.measure.cluster_ids is not None
            sizes = torch.bincount(self.measure.cluster_ids).tolist()
        return {
            "objective": self.params.objective,
            "cluster_sizes": sizes,
            "step_length": self.training.delta * self.training.length,
            "reference_gradient": self.training.reference,
        }

    def adapted(self) -> State:
        return self.training.state()

    def restore(self, adapted: State) -> None:
        delta = self.training.delta
        self.training.load(adapted)
        self.training.delta = delta
        self._said = None

    def state(self) -> State:
        return {
            "planner": dict(self.planner.state_dict(keep_vars=True)),
            "training": self.training.state(),
            "levels": [self.training.reference, self.doubtful, self.training.trigger],
            "counts": dict(self.counts),
        }

    def load(self, state: State) -> None:
        self.training.settle()
        self.planner.load_state_dict(state["planner"])
        self._entries = self.planner.entries()
        self.training.start_from(dict(self.planner.decoder.named_parameters()))
        self.training.reference, self.doubtful, self.training.trigger = state["levels"]
        self.training.load(state["training"])
        self.counts = {k: int(state["counts"][k]) for k in COUNTS}
        self._said = None


def measure_of(objective: Objective, vocabulary: Array, temperature: float) -> Callable[[Tensor], Tensor]:
    """What is to fall: the entropy over clusters of plans, or over all plans, a function of scores [..., M]."""
    if objective == "full":
        return lambda z: full_entropy(z, temperature).mean()
    ids = manoeuvres(vocabulary, far=FAR if objective == "cluster6" else None)
    if objective == "shuffled":
        ids = np.random.default_rng(0).permutation(ids)
    return ClusterEntropy(torch.from_numpy(ids), temperature=temperature)


def turn_of(objective: Objective, seed: int) -> Callable[[Tensor, int], Tensor] | None:
    """For controls: what becomes of the mean gradient."""
    if objective == "ascent":
        return lambda gradient, _: -gradient
    if objective != "random":
        return None

    def by_lot(gradient: Tensor, frames: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed * 1_000_003 + frames)
        drawn = torch.randn(gradient.shape, generator=draw)
        return drawn * (torch.linalg.vector_norm(gradient) / torch.linalg.vector_norm(drawn))

    return by_lot
