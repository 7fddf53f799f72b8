"""Platt scaling as functions: answers of a base that stands still, scaled and shifted; a label takes Newton's step.

The formulas are those of ``learners/platt.py``, in double precision. The step solves with a matrix of 1 + C rows, for
which there is no operator: it is symmetric and positive definite, so elimination without a choice of rows, written out
row by row, does it. What a label needs of the moment of the answer, the base's scores, is the trace of ``predict``.

state: ``theta`` float64[1 + C]; ``hess`` float64[1 + C, 1 + C]; ``seen`` float64[1], labels learnt.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..learners.platt import RIDGE, Platt
from ..learners.strength import CLIP
from .bases import base_of
from .reloop2 import OUTCOME, table_rows
from .steps import CannotExport, Steps, Verb

NAMES = ("theta", "hess", "seen")
MOST = 32
"""Classes, at most: elimination is written out row by row."""


def steps(learner: Platt) -> Steps:
    """predict and learn of a learner whose base stands still."""
    classes = learner.spec.n_classes or 0
    for there, what in (
        (learner.spec.target != "classification", "numbers as targets: a bundle answers with classes"),
        (not 2 <= classes <= MOST, f"{classes or 'an unknown number of'} classes: there must be 2 to {MOST}"),
        (learner._learns, f"a base that learns on: set base=frozen, and let it learn {learner._warm} labels first"),
    ):
        if there:
            raise CannotExport(f"platt has no form as graphs for {what}")
    state = {
        "theta": torch.from_numpy(learner._theta.copy()),
        "hess": torch.from_numpy(learner._hess.copy()),
        "seen": torch.tensor([float(learner._rows)], dtype=torch.float64),
    }
    answers, rows = Answers(base_of(learner._base)), table_rows(learner)

    def traced(n: int, seed: int) -> dict[str, Tensor]:
        with torch.no_grad():
            trace = answers(rows(n, seed)["x"], state["theta"], state["seen"])[1]
        return {"trace": trace, "y": torch.arange(seed, seed + n) % classes}

    verbs = {
        "predict": Verb(answers, rows, ("theta", "seen"), (), ("scores", "trace")),
        "learn": Verb(Label(learner.params.forget), traced, NAMES, NAMES, ("outcome",), single=True),
    }
    return Steps(verbs, state, {"outcome": OUTCOME})


class Answers(nn.Module):
    """(x, theta, seen) to (scores float64[B, C], trace float64[B, C]: the base's)."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor, theta: Tensor, seen: Tensor) -> tuple[Tensor, ...]:
        said = self.base(x)[0]
        z = theta[0] * torch.log(said.clamp(CLIP, 1 - CLIP)) + theta[1:]
        return torch.where(seen > 0, torch.softmax(z, 1), said), said


class Label(nn.Module):
    """(trace, y, *state) of one row to (outcome, *state)."""

    def __init__(self, forget: float) -> None:
        super().__init__()
        self.forget = forget

    def forward(self, trace: Tensor, y: Tensor, theta: Tensor, hess: Tensor, seen: Tensor) -> tuple[Tensor, ...]:
        ell = torch.log(trace[0].clamp(CLIP, 1 - CLIP))
        q = torch.softmax(theta[0] * ell + theta[1:], 0)
        label = F.one_hot(y[0], len(ell)).double()
        along = torch.cat([ell[:, None], torch.eye(len(ell), dtype=ell.dtype)], 1)  # z by theta
        mixed = q @ along
        curve = along.T @ (q[:, None] * along) - mixed[:, None] * mixed[None]
        hess = self.forget * hess + curve
        return torch.ones(1), theta - solved(hess, (q - label) @ along), hess, seen + 1


def solved(matrix: Tensor, right: Tensor) -> Tensor:
    """x of (matrix + RIDGE I) x = right, for a matrix that is symmetric and not negative."""
    n = len(right)
    both = torch.cat([matrix + RIDGE * torch.eye(n, dtype=right.dtype), right[:, None]], 1)
    for k in range(n):
        row = both[k] / both[k, k]
        others = (torch.arange(n) != k).to(both.dtype)[:, None]
        both = torch.where(others > 0, both - both[:, k : k + 1] * row, row)
    return both[:, n]
