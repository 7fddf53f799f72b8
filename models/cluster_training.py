"""Test-time training by cluster entropy: one step from the gradients of earlier frames, before each answer.

Source: Sima et al., Centaur, arXiv 2503.11650, 2025: the gradients of the last four frames, averaged, taken at the
trained weights; one step of the score decoder; the features stay frozen; the gradient is computed beside the next
frame's inference; an update only where uncertainty is high (an appendix). The paper's step length, optimiser and reset
rule are not known. Ours: the scale-free length below, ``least``, the accumulating mode with its anchor and its way
back, the guard, the threads.

With g the mean of the buffered gradients, theta = theta_0 - delta ||theta_0|| g / ||g|| min(1, ||g|| / reference): a
step is never longer than the share ``delta`` of the trained weights' length, and shorter where the gradient is weak.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .cluster_entropy import ClusterEntropy

Weights = Mapping[str, Tensor]
Mode = Literal["episodic", "accumulate"]
Background = Literal["no", "wait", "live"]

ANCHOR, FAR, DECAY = 0.01, 5.0, 0.9
"""Accumulating: pull back to the trained weights; how many steps away from them is too far; of the mean entropy."""
COLLAPSED, RECENT = 0.02, 64
"""Accumulating: mean entropy, as a share of its greatest, and answers, among which collapse is looked for."""
SAFETY_MARGIN = 0.1


class Answer(NamedTuple):
    """Scores [..., M] of a frame, the frozen features that they came from, and whether the step was taken back."""

    scores: Tensor
    features: Any
    refused: bool


@dataclass(frozen=True, slots=True)
class Memory:
    """All that earlier frames have left behind. gradients: flat, newest last; entropies: of their frames.

    moved: what is to be added to the trained weights, flat; None for nothing. frames: gradients taken in all. mean: of
    the entropy, decayed; answers, trained: clusters that the last answers fell into, and those of the trained weights.
    """

    gradients: tuple[Tensor, ...] = ()
    entropies: tuple[float, ...] = ()
    moved: Tensor | None = None
    frames: int = 0
    steps: int = 0
    resets: int = 0
    mean: float | None = None
    answers: tuple[int, ...] = ()
    trained: tuple[int, ...] = ()


class ClusterEntropyTTT:
    """Answers for frames one after the other, each from weights that earlier frames have moved by one step.

    model: the frozen part, from a frame (any value) to its features. params: the trained weights that may move, by
    name. scores_fn(params, features): float[..., M] scores of a fixed vocabulary. objective: of such scores, a scalar
    (``ClusterEntropy``, or any other measure of uncertainty). delta: length of a step, as a share of ||theta_0||.
    reference: length of a gradient from which on steps are of full length; 0 for every gradient. buffer: frames whose
    gradients are averaged. mode: ``episodic``, always one step from theta_0; ``accumulate``, a step further each frame.
    trigger: a step only where the mean objective of the buffered frames is above it. guard(features): safety [..., M,
    j] of every answer under theta_0, in 0..1: an answer that is less safe than that of theta_0 by more than 0.1 is
    not given, theta_0's is. least: of a frame's objective, below which its gradient is left out. gap: seconds without a
    frame after which everything is forgotten. turn(gradient, frames): another direction of the same length, for
    controls.

    background: ``no`` takes gradients when ``observe`` is called; ``wait`` in a thread of its own, for which the next
    frame waits if it is not ready: the same bits; ``live`` never waits: an answer takes what is ready, and a frame that
    comes while the thread is busy leaves no gradient (``missed`` counts them). behind: equal to ``scores_fn``;
    gradients are taken of it. ``torch.func.functional_call`` exchanges the parameters of its module while it runs, so
    a thread must not share a module with the answers.
    """

    memory: Memory
    time: float | None
    """Of the last frame observed."""

    def __init__(
        self,
        model: Callable[[Any], Any],
        params: Weights,
        scores_fn: Callable[[Weights, Any], Tensor],
        objective: Callable[[Tensor], Tensor],
        delta: float,
        *,
        reference: float = 0.0,
        buffer: int = 4,
        mode: Mode = "episodic",
        trigger: float | None = None,
        guard: Callable[[Any], Tensor] | None = None,
        least: float = 1e-3,
        gap: float = 1.0,
        turn: Callable[[Tensor, int], Tensor] | None = None,
        background: Background = "no",
        behind: Callable[[Weights, Any], Tensor] | None = None,
    ) -> None:
        if not (0 <= delta < math.inf and reference >= 0 and buffer >= 1 and least >= 0 and gap > 0):
            raise ValueError("delta, reference and least are at least 0, buffer at least 1, gap above 0")
        self.model, self.scores_fn, self.objective = model, scores_fn, objective
        self.behind = scores_fn if behind is None else behind
        self._pending: Future[tuple[Memory, Weights]] | None = None
        self._worker: ThreadPoolExecutor | None = None
        self.start_from(params)
        self.delta, self.reference, self.buffer, self.mode = delta, reference, buffer, mode
        self.trigger, self.guard, self.least, self.gap, self.turn = trigger, guard, least, gap, turn
        self.background = background

    def start_from(self, params: Weights) -> None:
        """Take these for the trained weights, by reference, and forget all frames."""
        self.settle()
        self.start = {n: p.detach() for n, p in params.items()}
        self.length = float(torch.linalg.vector_norm(_flat(self.start)))
        self.memory, self.time, self.missed = Memory(), None, 0
        self._weights: Weights = self.start

    # --- a frame ------------------------------------------------------------------------------------------------

    def answer(self, frame: Any, time: float) -> Answer:
        """Scores of a frame; nothing changes but that a gradient which is ready is taken over."""
        self.settle(wait=self.background != "live")
        weights = self._weights if self._follows(time) else self.start
        with torch.no_grad():
            features = self.model(frame)
            scores = self.scores_fn(weights, features)
            if self.guard is not None and weights is not self.start:
                trained = self.scores_fn(self.start, features)
                if self._less_safe(features, scores, trained):
                    return Answer(trained, features, True)
        return Answer(scores, features, False)

    def observe(self, features: Any, time: float) -> None:
        """Take the gradient of a frame that has been answered, now or in the background."""
        self.settle(wait=self.background != "live")
        if not self._follows(time):
            self.forget()
        self.time = time
        if self._pending is not None:
            self.missed += 1
        elif self.background == "no":
            self.memory, self._weights = self._advanced(self.memory, self._weights, features)
        else:
            self._pending = self._thread().submit(self._advanced, self.memory, self._weights, features)

    def _follows(self, time: float) -> bool:
        return self.time is not None and 0 <= time - self.time <= self.gap

    def forget(self) -> None:
        """Back to the trained weights, as at the beginning of a scene."""
        self._pending = None
        kept = self.memory
        self.memory = Memory(frames=kept.frames, steps=kept.steps, resets=kept.resets)
        self._weights = self.start

    def settle(self, *, wait: bool = True) -> None:
        """Take over what the thread has found; wait for it, or leave it if it is not ready."""
        if self._pending is not None and (wait or self._pending.done()):
            self.memory, self._weights = self._pending.result()
            self._pending = None

    def close(self) -> None:
        """Wait for the thread and end it."""
        self.settle()
        if self._worker is not None:
            self._worker.shutdown()
            self._worker = None

    def _thread(self) -> ThreadPoolExecutor:
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "gradient")
        return self._worker

    def _less_safe(self, features: Any, scores: Tensor, trained: Tensor) -> bool:
        assert self.guard is not None
        safety = self.guard(features)
        one = (*safety.shape[:-2], 1, safety.shape[-1])
        new, old = (safety.gather(-2, _best(z)[..., None].expand(one)) for z in (scores, trained))
        return bool((new < old - SAFETY_MARGIN).any())

    # --- gradients ----------------------------------------------------------------------------------------------

    def gradient(self, features: Any, weights: Weights | None = None) -> tuple[Tensor, float]:
        """(flat gradient, objective) at the trained weights, or at others."""
        at = {n: p.detach().requires_grad_(True) for n, p in (self.start if weights is None else weights).items()}
        with torch.enable_grad():
            value = self.objective(self.behind(at, features))
            found = torch.autograd.grad(value, list(at.values()), allow_unused=True, materialize_grads=True)
        return torch.cat([g.reshape(-1) for g in found]), float(value.detach())

    def _advanced(self, memory: Memory, weights: Weights, features: Any) -> tuple[Memory, Weights]:
        """Memory and weights once this frame's gradient is known: a function of its arguments alone."""
        gathering = self.mode == "accumulate"
        if gathering:
            memory = self._followed(memory, weights, features)
        found, value = self.gradient(features, weights if gathering else None)
        usable = math.isfinite(value) and value > self.least and bool(torch.isfinite(found).all())
        if usable:
            memory = replace(
                memory,
                gradients=(*memory.gradients, found)[-self.buffer :],
                entropies=(*memory.entropies, value)[-self.buffer :],
            )
        memory = replace(memory, frames=memory.frames + 1)
        if gathering:
            memory = self._gathered(memory, value)
        elif usable:
            step = self._step(memory)
            memory = replace(memory, moved=step, steps=memory.steps + (step is not None))
        return memory, self.moved_by(memory.moved)

    def _step(self, memory: Memory) -> Tensor | None:
        """The one step that the buffered gradients ask for; None where it is none."""
        if not memory.gradients:
            return None
        if self.trigger is not None and not sum(memory.entropies) / len(memory.entropies) > self.trigger:
            return None
        mean = torch.stack(memory.gradients).mean(0)
        return self.descent(mean if self.turn is None else self.turn(mean, memory.frames))

    def descent(self, gradient: Tensor) -> Tensor | None:
        """The step along a flat gradient, flat; None where there is no way to go."""
        norm = float(torch.linalg.vector_norm(gradient))
        if norm == 0 or self.delta == 0:
            return None
        short = min(1.0, norm / self.reference) if self.reference else 1.0
        return gradient * (-self.delta * self.length * short / norm)

    def moved_by(self, step: Tensor | None) -> Weights:
        """The trained weights with something flat added to them."""
        if step is None:
            return self.start
        parts = step.split([p.numel() for p in self.start.values()])
        return {n: p + d.view_as(p) for (n, p), d in zip(self.start.items(), parts)}

    # --- accumulating -------------------------------------------------------------------------------------------

    def _followed(self, memory: Memory, weights: Weights, features: Any) -> Memory:
        """Which clusters the answers of these and of the trained weights fall into."""
        with torch.no_grad():
            ours, trained = (self._cluster(self.behind(w, features)) for w in (weights, self.start))
        return replace(
            memory,
            answers=(*memory.answers, ours)[-RECENT:],
            trained=(*memory.trained, trained)[-RECENT:],
        )

    def _cluster(self, scores: Tensor) -> int:
        entry = int(_best(scores.reshape(-1, scores.shape[-1])[-1]))
        if not isinstance(self.objective, ClusterEntropy):
            return entry
        ids, shares = self.objective.cluster_ids, self.objective.assign
        return int(ids[entry]) if ids is not None else int(_there(shares)[entry].argmax())

    def _gathered(self, memory: Memory, value: float) -> Memory:
        """One step further, a little back to the trained weights, and all the way back where that has gone wrong."""
        if not math.isfinite(value):
            return Memory(frames=memory.frames, steps=memory.steps, resets=memory.resets + 1)
        step = self._step(memory)
        moved = memory.moved if memory.moved is not None else torch.zeros_like(_flat(self.start))
        moved = (1 - ANCHOR) * (moved if step is None else moved + step)
        mean = value if memory.mean is None else DECAY * memory.mean + (1 - DECAY) * value
        memory = replace(memory, moved=moved, mean=mean, steps=memory.steps + (step is not None))
        far = float(torch.linalg.vector_norm(moved))
        if math.isfinite(far) and far <= FAR * self.delta * self.length and not self._collapsed(memory):
            return memory
        return Memory(frames=memory.frames, steps=memory.steps, resets=memory.resets + 1)

    def _collapsed(self, memory: Memory) -> bool:
        """Sure of everything, and always of the same, where the trained weights are not."""
        if memory.mean is None or len(memory.answers) < RECENT:
            return False
        kinds = self.objective.clusters if isinstance(self.objective, ClusterEntropy) else 2
        sure = memory.mean < COLLAPSED * math.log(kinds)
        return sure and len(set(memory.answers)) == 1 and len(set(memory.trained)) > 1

    # --- saved and restored -------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that later answers depend on beside the trained weights; waits for the thread."""
        self.settle()
        m = self.memory
        return {
            "gradients": list(m.gradients),
            "entropies": list(m.entropies),
            "moved": m.moved,
            "counts": [m.frames, m.steps, m.resets, self.missed],
            "mean": m.mean,
            "answers": list(m.answers),
            "trained": list(m.trained),
            "time": self.time,
            "delta": self.delta,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state`` returned; copies what it keeps."""
        self.settle()
        frames, steps, resets, self.missed = (int(n) for n in state["counts"])
        self.memory = Memory(
            tuple(torch.as_tensor(g).clone() for g in state["gradients"]),
            tuple(float(h) for h in state["entropies"]),
            None if state["moved"] is None else torch.as_tensor(state["moved"]).clone(),
            frames,
            steps,
            resets,
            None if state["mean"] is None else float(state["mean"]),
            tuple(int(a) for a in state["answers"]),
            tuple(int(a) for a in state["trained"]),
        )
        self.time = None if state["time"] is None else float(state["time"])
        self.delta = float(state["delta"])
        self._weights = self.moved_by(self.memory.moved)


def _flat(params: Weights) -> Tensor:
    return torch.cat([p.reshape(-1) for p in params.values()])


def _best(scores: Tensor) -> Tensor:
    return scores.argmax(-1, keepdim=True)


def _there(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
