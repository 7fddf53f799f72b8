"""Centaur's planner as functions: frames in, plans and the one step of the score decoder out.

What ``models/cluster_training.py`` does in ``learners/centaur.py``: gradients of the last frames' cluster entropy at
the trained weights (at the moved ones where steps accumulate), their mean, one scale-free step, the trigger, the guard
for safety, and the way back to the trained weights. A graph has no clock: behind the stream's columns a row has one
more, ``time`` in seconds, by which frames follow one another or a new scene begins; rows of a batch have that of the
first. Frames of a batch are learnt one after the other by a ``Scan``. The gradient is autograd's, written down for one
frame by ``make_fx``; it is taken before the next frame, never beside it.

state: ``moved`` float32[P], what is added to the trained weights; ``gradients`` float32[K, P] and ``entropies``
float32[K], newest last; ``kept`` float32[1], how many of them there are; ``clock`` float64[2], when the last frame was
and whether there was one. Accumulating also ``mean`` float32[2], the mean entropy and whether there is one, and
``kinds`` float32[2, 64], clusters of the last answers and of those of the trained weights, -1 for none yet.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions
from torch._higher_order_ops.scan import scan
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from ...models.cluster_entropy import ClusterEntropy
from ...models.cluster_training import ANCHOR, COLLAPSED, DECAY, FAR, RECENT, SAFETY_MARGIN
from ...models.kernels.selection import references
from ...models.planner import combined
from ..learners.centaur import Centaur
from .steps import CannotExport, Draw, Steps, Verb
from .test_time import OUTCOME

TIME = "time"
NO_GUARD = {"every": 1_000_000, "share": 0.0}
"""Answers of few kinds are no sign of collapse where a few plans fit a scene; steps have their own way back."""
REFUSED = {
    "random": "its directions are drawn by lot",
    "fallback": "it brakes instead of adapting",
}

State = dict[str, Tensor]


def steps(learner: Centaur) -> Steps:
    """predict and, unless the objective is ``none``, adapt."""
    objective = learner.params.objective
    if objective in REFUSED:
        raise CannotExport(f"centaur:{objective} has no form as a graph: {REFUSED[objective]}; use cluster or full")
    decoder = FrameDecoder(learner)
    rows = _frames(learner.spec.n_features)
    if not learner.training.delta:
        return Steps({"predict": Verb(Predict(decoder, ()), rows, ())}, {}, {}, beside=(TIME,), guard=NO_GUARD)
    step = Step(learner, decoder)
    names = tuple(step.state)
    verbs = {
        "predict": Verb(Predict(decoder, ("moved", "clock")), rows, ("moved", "clock")),
        "adapt": Verb(step, rows, names, names, ("scores", "outcome")),
    }
    return Steps(verbs, step.state, {"outcome": OUTCOME}, beside=(TIME,), guard=NO_GUARD)


def _frames(columns: int) -> Draw:
    """Random frames, one moment each batch."""

    def draw(rows: int, seed: int) -> dict[str, Tensor]:
        x = torch.rand((rows, columns + 1), generator=torch.Generator().manual_seed(seed)).double()
        return {"x": torch.cat([x[:, :-1], torch.full((rows, 1), 0.5 * seed, dtype=x.dtype)], 1)}

    return draw


class FrameDecoder(nn.Module):
    """The planner as a function of one vector of all that moves in its decoder."""

    start: Tensor

    def __init__(self, learner: Centaur) -> None:
        super().__init__()
        self.planner = copy.deepcopy(learner.planner)
        weights = learner.training.start
        self.shapes = {n: w.shape for n, w in weights.items()}
        self.register_buffer("start", torch.cat([w.detach().reshape(-1) for w in weights.values()]))
        self.register_buffer("entries", self.planner.entries().clone())
        self.temperature, self.gap = learner.params.temperature, learner.training.gap
        self.guarded = learner.training.guard is not None

    def heads(self, weights: Tensor, tokens: Tensor, scene: Tensor) -> Tensor:
        """float[B, M, 6] by weights float[P]."""
        parts = weights.split([s.numel() for s in self.shapes.values()])
        named = {n: w.reshape(s) for (n, s), w in zip(self.shapes.items(), parts)}
        logits: Tensor = functional_call(self.planner.decoder, named, (tokens, scene, self.entries))
        return logits

    def follows(self, x: Tensor, clock: Tensor) -> Tensor:
        """bool[]: whether these rows come no later than the gap after the last frame, and not before it."""
        since = x[0, -1] - clock[0]
        return (clock[1] > 0) & (since >= 0) & (since <= self.gap)

    def answer(self, moved: Tensor | None, tokens: Tensor, scene: Tensor) -> Tensor:
        """Probabilities float[B, M] of the plans; all alike where a row's scores are not finite."""
        logits = self.heads(self.start if moved is None else self.start + moved, tokens, scene)
        z = self.planner.combine(logits)
        if self.guarded and moved is not None:
            trained = self.heads(self.start, tokens, scene)
            old = self.planner.combine(trained)
            safety = torch.sigmoid(trained[..., 1:3])
            ours, theirs = (F.one_hot(s.argmax(1), s.shape[1]).to(s.dtype)[..., None] for s in (z, old))
            less = ((safety * ours).sum(1) < (safety * theirs).sum(1) - SAFETY_MARGIN).any(1, keepdim=True)
            z = torch.where(less, old, z)
        sound = (z.abs() < math.inf).all(1, keepdim=True)
        return torch.softmax(torch.where(sound, z, 0.0) / self.temperature, 1)


class Predict(nn.Module):
    """Frames, and what moves if anything does, to scores."""

    def __init__(self, decoder: FrameDecoder, reads: tuple[str, ...]) -> None:
        super().__init__()
        self.decoder, self.reads = decoder, reads

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        by, old = self.decoder, dict(zip(self.reads, state))
        moved = torch.where(by.follows(x, old["clock"]), old["moved"], 0.0) if old else None
        return (by.answer(moved, *by.planner.features(x[:, :-1].float())),)


class Step(nn.Module):
    """(x, *state) to (scores before, outcome, *state after the frames were learnt one by one)."""

    def __init__(self, learner: Centaur, decoder: FrameDecoder) -> None:
        super().__init__()
        self.decoder, self.how = decoder, learner.training
        self.sign = -1.0 if learner.params.objective == "ascent" else 1.0
        ids = _clusters(learner)
        shares = F.one_hot(ids, int(ids.max()) + 1).float()
        self.measure = ClusterEntropy(assign=shares, temperature=learner.params.temperature, reduction="none")
        self.known = isinstance(learner.measure, ClusterEntropy)
        self.cluster = ids.float()
        self.gathers = learner.training.mode == "accumulate"
        self.weights = learner.planner.weights.tolist()  # numbers: parts of a tensor are no constants in a ``Scan``
        self.state = state_of(learner)
        self.gradient = self._written_down()

    def _written_down(self) -> Any:
        """(weights float[P], tokens [L, d], scene [d]) of one frame to (gradient float[P], objective, scores [M])."""

        def gradient(weights: Tensor, tokens: Tensor, scene: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            at = weights.detach().requires_grad_(True)
            with torch.enable_grad():
                z = self.decoder.planner.combine(self.decoder.heads(at, tokens[None], scene[None]))
                value, slope = self.measure.value_and_slope(z)
                (found,) = torch.autograd.grad(z, at, slope)
            return found, value[0], z[0].detach()

        tokens, scene = self.decoder.planner.features(
            torch.zeros(1, sum(a * b for a, b in self.decoder.planner.layout))
        )
        with references():
            example = (self.decoder.start.clone(), tokens[0], scene[0])
            return make_fx(gradient, decomposition_table={**core_aten_decompositions()})(*example)

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        old = dict(zip(self.state, state, strict=True))
        tokens, scene = self.decoder.planner.features(x[:, :-1].float())
        follows = self.decoder.follows(x, old["clock"])
        old = {n: torch.where(follows, t, _empty(n, t)) for n, t in old.items() if n != "clock"}
        scores = self.decoder.answer(old["moved"], tokens, scene)

        def frame(carried: list[Tensor], seen: list[Tensor]) -> tuple[list[Tensor], Tensor]:
            new, outcome = self._observed(dict(zip(old, carried)), *seen)
            return [new[n].clone() for n in old], outcome

        last, outcomes = one_by_one(frame, list(old.values()), [tokens, scene])
        took, kept, reset, value = outcomes.unbind(1)
        outcome = torch.stack([took.amax(0), kept.sum(), reset.amax(0), value.mean()])
        new = dict(zip(old, last)) | {"clock": torch.stack([x[0, -1], torch.ones_like(x[0, -1])])}
        return (scores, outcome, *(new[n] for n in self.state))

    def _observed(self, old: State, tokens: Tensor, scene: Tensor) -> tuple[State, Tensor]:
        """The state after one frame's gradient, and its outcome."""
        start = self.decoder.start
        found, value, z = self.gradient(start + old["moved"] if self.gathers else start, tokens, scene)
        length = torch.linalg.vector_norm(found)
        usable = (value.abs() < math.inf) & (value > self.how.least) & (length < math.inf)
        fresh = {
            "gradients": torch.cat([old["gradients"][1:], found[None]]),
            "entropies": torch.cat([old["entropies"][1:], value[None]]),
            "kept": (old["kept"] + 1).clamp(max=float(self.how.buffer)),
        }
        new = old | {n: torch.where(usable, t, old[n]) for n, t in fresh.items()}
        step, takes = self._step(new)
        reset = torch.zeros_like(takes)
        if self.gathers:
            new, reset = self._gathered(new, step, value, z, tokens, scene)
        else:
            takes = takes & usable
            new["moved"] = torch.where(usable, step, old["moved"])
        return new, torch.stack([b.to(value.dtype) for b in (takes, usable, reset)] + [value])

    def _step(self, now: State) -> tuple[Tensor, Tensor]:
        """The step that the buffered gradients ask for, float[P], zeros for none, and whether there is one."""
        how, count = self.how, now["kept"][0]
        mean = now["gradients"].sum(0) * (self.sign / count.clamp(min=1))
        length = torch.linalg.vector_norm(mean)
        takes = (count > 0) & (length > 0)
        if how.trigger is not None:
            takes = takes & (now["entropies"].sum() / count.clamp(min=1) > how.trigger)
        short = (length / how.reference).clamp(max=1.0) if how.reference else torch.ones_like(length)
        way = -how.delta * how.length * short / torch.where(length > 0, length, 1.0)
        return torch.where(takes, mean * way, 0.0), takes

    def _gathered(
        self, now: State, step: Tensor, value: Tensor, z: Tensor, tokens: Tensor, scene: Tensor
    ) -> tuple[State, Tensor]:
        """One step further and a little back, or all the way back; and whether it was that."""
        trained = combined(self.decoder.heads(self.decoder.start, tokens[None], scene[None]), self.weights)[0]
        kinds = self.cluster.index_select(0, torch.stack([z.argmax(0), trained.argmax(0)]))
        new = now | {
            "moved": (1 - ANCHOR) * (now["moved"] + step),
            "kinds": torch.cat([now["kinds"][:, 1:], kinds[:, None]], 1),
        }
        mean, known = now["mean"].unbind()
        mean = torch.where(known > 0, DECAY * mean + (1 - DECAY) * value, value)
        new["mean"] = torch.stack([mean, torch.ones_like(mean)])
        far = torch.linalg.vector_norm(new["moved"])
        same = new["kinds"].amin(1) == new["kinds"].amax(1)
        sure = mean < COLLAPSED * math.log(self.measure.clusters if self.known else 2)
        collapsed = sure & (new["kinds"][0, 0] >= 0) & same[0] & ~same[1]
        whole = (value.abs() < math.inf) & (far <= FAR * self.how.delta * self.how.length)
        reset = ~whole | collapsed
        return {n: torch.where(reset, _empty(n, t), t) for n, t in new.items()}, reset


def state_of(learner: Centaur) -> State:
    """By name, as the learner has it now; waits for its thread."""
    learner.training.settle()
    how, memory = learner.training, learner.training.memory
    size = sum(w.numel() for w in how.start.values())
    gradients, entropies, n = torch.zeros(how.buffer, size), torch.zeros(how.buffer), len(memory.gradients)
    if n:
        gradients[-n:], entropies[-n:] = torch.stack(memory.gradients), torch.tensor(memory.entropies)
    state = {
        "moved": torch.zeros(size) if memory.moved is None else memory.moved.clone(),
        "gradients": gradients,
        "entropies": entropies,
        "kept": torch.tensor([float(n)]),
        "clock": torch.tensor([how.time or 0.0, float(how.time is not None)], dtype=torch.float64),
    }
    if how.mode == "accumulate":
        state["mean"] = torch.tensor([memory.mean or 0.0, float(memory.mean is not None)])
        kinds = torch.full((2, RECENT), -1.0)
        for row, found in zip(kinds, (memory.answers, memory.trained)):
            row[RECENT - len(found) :] = torch.tensor(found, dtype=row.dtype)
        state["kinds"] = kinds
    return state


def one_by_one(
    frame: Callable[[list[Tensor], list[Tensor]], tuple[list[Tensor], Tensor]],
    carried: list[Tensor],
    rows: list[Tensor],
) -> tuple[list[Tensor], Tensor]:
    """What is carried from row to row by ``frame``, and its results [B, ...]: a ``Scan`` where a graph is written."""
    if torch.compiler.is_exporting():
        last, found = scan(frame, carried, rows)
        return last, found
    results = []
    for row in zip(*rows, strict=True):
        carried, result = frame(carried, list(row))
        results.append(result)
    return carried, torch.stack(results)


def _clusters(learner: Centaur) -> Tensor:
    """int64[M], each plan's cluster; the entropy over all plans is that over clusters of one."""
    measure = learner.measure
    if not isinstance(measure, ClusterEntropy):
        return torch.arange(len(learner.planner.poses))
    assert measure.cluster_ids is not None
    return measure.cluster_ids


def _empty(name: str, tensor: Tensor) -> Tensor:
    """As at the beginning of a scene."""
    return torch.full_like(tensor, -1.0 if name == "kinds" else 0.0)
