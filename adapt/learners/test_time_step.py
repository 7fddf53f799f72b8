"""One step of a method of test-time adaptation: which rows count, up where the loss rises, the way down from there.

Sources: SAR, Niu et al., ICLR 2023, and GSAM, Zhuang et al., ICLR 2022, for the pass after the ascent; the penalty of
EATA, Niu et al., ICML 2022, is part of the loss in both passes. Ours: no step where no row counts (published codes take
the mean of nothing) or where the gradient has no length, and the clip of a direction that rests on a single row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.passes import Gradients, Pass
from ...models.surrogate_gap import ascent, gap_direction, joint_norm
from .test_time_parts import Parts, Rows, mean_of
from .test_time_teacher import Hold, weighted

LEAST = 1e-8
"""A gradient shorter than this points nowhere."""
GENTLE_ALPHA = 0.4
"""Weight of the surrogate gap, at least, once steps have been made gentler."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """Rows as the student sees them and its pass over them; running statistics as they are to be from then on.

    target: a teacher's probabilities, float[B, C]. weight: of each row, float[B].
    """

    x: Tensor
    first: Pass
    moved: dict[str, Tensor]
    target: Tensor | None = None
    weight: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A direction by parameter name, the losses before and after the ascent, and how many rows they rest on."""

    direction: Gradients
    loss: Tensor
    perturbed: Tensor
    rows: int


@dataclass(frozen=True, slots=True)
class Student:
    """What a step needs to know of a network: its moving parameters, a pass over rows at other values of them, and the
    penalty that holds them."""

    moving: Mapping[str, Tensor]
    elsewhere: Callable[[Tensor, Mapping[str, Tensor]], Pass]
    hold: Hold | None


def choose(lesson: Lesson, parts: Parts, mean: Tensor | None) -> tuple[Rows, Tensor, Tensor | None]:
    """Losses of the rows, which of them count (bool[B]), and what the filter remembers from then on."""
    rows = weighted(parts.objective.rows(lesson.first.z, lesson.target), lesson.weight)
    return rows, *parts.filter.choose(lesson.first.z, rows, mean)


def step_of(
    lesson: Lesson, rows: Rows, mask: Tensor, parts: Parts, student: Student, *, gentle: bool = False
) -> Step | None:
    """Where to go; None where no row counts or there is no slope. rows, mask: as ``choose`` gives them."""
    how, x = parts.direction, lesson.x
    if not bool(mask.any()):
        return None
    loss, g = _slope(lesson.first, rows, mask, student.hold, student.moving)
    if how.rho == 0:
        return Step(g, loss, loss, int(mask.sum()))
    if not float(joint_norm(list(g.values()))) >= LEAST:
        return None
    up = ascent(list(g.values()), how.rho)
    shifted = {n: student.moving[n].detach() + d for n, d in zip(g, up, strict=True)}
    second = student.elsewhere(x, shifted)
    rows = weighted(parts.objective.rows(second.z, lesson.target), lesson.weight)
    if how.refilter:
        mask = mask & parts.filter.again(rows)
    if not bool(mask.any()):
        return None
    perturbed, gp = _slope(second, rows, mask, student.hold, shifted)
    alpha = max(how.alpha_for(len(x)), GENTLE_ALPHA if gentle and how.alpha else 0.0)
    found = gap_direction(list(g.values()), list(gp.values()), alpha)
    count = int(mask.sum())
    if how.clip and count == 1:
        found = [d * torch.clamp(how.clip / (joint_norm(found) + LEAST), max=1.0) for d in found]
    return Step(dict(zip(g, found, strict=True)), loss, perturbed, count)


def _slope(
    seen: Pass, rows: Rows, mask: Tensor, hold: Hold | None, at: Mapping[str, Tensor]
) -> tuple[Tensor, Gradients]:
    """The loss at these parameters and its gradient, the penalty included."""
    loss, slope = mean_of(rows, mask)
    g = seen.pull(slope)
    if hold is None:
        return loss, g
    held = hold.slope(at)
    return loss + hold.value(at), {n: part + held[n] for n, part in g.items()}
