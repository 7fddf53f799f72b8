"""ReLoop2 as functions: hash, read and compensate answer rows, a label writes one; the base stands still.

The formulas are those of ``models/kernels/sketch.py`` (path "torch") and ``learners/strength.py``, in double precision
but for the hash, which is in single precision there too. What a row's label needs of the moment when it was answered
(buckets, the base's answer, directions) is an answer of ``predict``, ``trace``, that the runner keeps with the row and
hands to ``learn``; so late labels teach as in the loop. Rows are learnt one at a time: lambda moves by Newton's step
after every label, and one row lies in K different arrays, so no two numbers are added to one place at once.

state: ``table`` float64[R, K, M, 1 + 2 V]; ``slots`` float64[R], the weight of each slot; ``clock`` float64[3], the
slot that is written, its rows, the weight of a new row; ``lam``, ``hess`` float64[E], ``trust`` float64[1 + E].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.inputs import Columns
from ...models.kernels import sketch
from ..learners.error_memory import RESCALED, SketchMemory
from ..learners.reloop2 import ReLoop2
from ..learners.row_vectors import CODE, RowVectors
from ..learners.strength import CLIP, FIRST, SHARED
from .bases import base_of
from .steps import CannotExport, ColumnRows, Draw, Steps, Verb

OUTCOME = ("took",)
NEVER = -1e300
NAMES = ("table", "slots", "clock", "lam", "hess", "trust")


def steps(learner: ReLoop2) -> Steps:
    """predict and learn of a learner whose base is deployed; ``CannotExport`` for what moves or has no graph."""
    memory = _refuse(learner)
    held = learner._strength
    clock = [float(memory._now), float(memory._filled), memory._scale]
    state = {
        "table": memory.table.clone(),
        "slots": torch.from_numpy(memory._weights.copy()),
        "clock": torch.tensor(clock, dtype=torch.float64),
        **{n: torch.from_numpy(getattr(held, n).copy()) for n in ("lam", "hess", "trust")},
    }
    answers = Answers(learner, memory)
    rows = table_rows(learner)

    def traced(n: int, seed: int) -> dict[str, Tensor]:
        with torch.no_grad():
            found = answers(rows(n, seed)["x"], *state.values())[1]
        return {"trace": found, "y": torch.arange(seed, seed + n) % (learner.spec.n_classes or 2)}

    verbs = {
        "predict": Verb(answers, rows, NAMES, (), ("scores", "trace")),
        "learn": Verb(Label(learner, memory), traced, NAMES, NAMES, ("outcome",), single=True),
    }
    return Steps(verbs, state, {"outcome": OUTCOME})


def _refuse(learner: ReLoop2) -> SketchMemory:
    """The memory; say in one line what there is no graph for."""
    p = learner.params
    for there, what in (
        (learner._kind == "value", "numbers as targets: a bundle answers with classes"),
        (p.memory != "sketch", "a memory of the rows themselves: set memory=sketch"),
        (p.base != "frozen" or p.renew, "a base that learns on: set base=frozen renew=0"),
        (learner._deployed is None, f"a base that is not deployed yet: let it learn {p.warmup} labels first"),
        (p.precision != "float64", "buckets in single precision: set precision=float64"),
    ):
        if there:
            raise CannotExport(f"reloop2 has no form as graphs for {what}")
    assert isinstance(learner._memory, SketchMemory)
    return learner._memory


def table_rows(learner: Any) -> Draw:
    """Rows of the learner's stream as columns: a tenth of the numbers missing, categories as they may come."""
    fan = [0 if c.categories is None else len(c.categories) + 5 * c.open for c in learner.spec.columns]

    def draw(n: int, seed: int) -> dict[str, Tensor]:
        rng = np.random.default_rng(seed)
        x = np.column_stack([rng.integers(0, size, n) if size else rng.normal(0, 2, n) for size in fan])
        gaps = (rng.random(x.shape) < 0.1) & [c.missing for c in learner.spec.columns]
        return {"x": torch.from_numpy(np.where(gaps, np.nan, x))}

    return draw


# --- where a row lies ---------------------------------------------------------------------------------------------


class Vectors(nn.Module):
    """``RowVectors``: hidden vectors or standardised columns, centred, with the code of a column beside them."""

    def __init__(self, learner: ReLoop2) -> None:
        super().__init__()
        held: RowVectors = learner._vectors
        self.columns = ColumnRows(held._columns) if isinstance(held._columns, Columns) else None
        self.mean, self.length = torch.from_numpy(held._mean.copy()), np.float32(held._length).item()
        self.code, self.codes = held._code, None
        if self.code < 0:
            return
        column = learner.spec.columns[self.code]
        if column.categories is None or column.open:
            raise CannotExport(f"reloop2 has no form as graphs for the code of {column.name}: its values are not known")
        values = np.array([*range(len(column.categories)), np.nan])
        self.codes = torch.from_numpy(held._codes(values))
        assert self.codes.shape[1] == CODE

    def forward(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        assert self.columns is not None
        h = self.columns(x) if hidden is None else hidden
        if len(self.mean) == h.shape[1]:
            h = h - self.mean
        if self.codes is None:
            return h
        column = x[:, self.code]
        last = len(self.codes) - 1
        at = torch.where(torch.isnan(column), float(last), column.clamp(0, last - 1)).long()
        return torch.cat([h / self.length, self.codes[at]], 1)


# --- answers ------------------------------------------------------------------------------------------------------


class Answers(nn.Module):
    """(x, *state) to (scores float64[B, C], trace float64[B, K + W + E W + 1]).

    trace: buckets, the base's answer, directions, and whether all of it is finite.
    """

    def __init__(self, learner: ReLoop2, memory: SketchMemory) -> None:
        super().__init__()
        deployed = learner._deployed
        assert deployed is not None
        self.base, self.vectors, self.how, self.memory = base_of(deployed), Vectors(learner), learner.params, memory
        self.click = learner._kind == "click"
        self.hedged = self.how.strength == "hedge"
        with torch.no_grad():
            x = table_rows(learner)(1, 0)["x"]
            scores, hidden = self.base(x)
            width = self.vectors(x, hidden).shape[1]
        self.planes = sketch.new_planes(width, memory.arrays, memory.bits, memory.seed).T.contiguous()
        self.powers = 2.0 ** torch.arange(memory.bits)
        if not self.click and memory.values != scores.shape[1]:
            raise CannotExport("reloop2 has no form as graphs for classes that its base or its memory does not know")

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        table, slots, clock, lam, _, trust = state
        scores, hidden = self.base(x)
        h = self.vectors(x, hidden)
        said = scores[:, 1:] if self.click else scores
        whole = h.sum(1) + said.sum(1)
        sound = (whole - whole == 0)[:, None]
        sides = (torch.where(sound, h, 0.0) @ self.planes > 0).reshape(-1, self.memory.arrays, self.memory.bits)
        buckets = (sides.to(self.powers.dtype) @ self.powers).long()
        y, its, n = self._read(table, buckets, torch.where(sound, said, 0.5), slots, clock[2])
        n = torch.where(sound, n, 0.0)
        z = lift(said, self.click)
        u = self._directions(said, z, y, its, n)
        p = self._fixed(said, y, its, n) if self.how.strength == "fixed" else self._moved(said, z, u, lam, trust)
        p = torch.where(sound, p, said)
        moved = (p != said).any(1, keepdim=True)
        answer = torch.where(moved, torch.cat([1 - p, p], 1) if self.click else p, scores)
        trace = [buckets.double(), said, u.flatten(1), sound.double()]
        return answer, torch.cat(trace, 1)

    def _read(self, table: Tensor, buckets: Tensor, base: Tensor, slots: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        """Local means y and b float64[B, V], and the rows behind them float64[B, 1]."""
        at = places(self.memory, torch.arange(self.memory.slots)[:, None, None], buckets)
        cells = table.reshape(-1, table.shape[-1])[at].sum(0)
        n, known = cells[..., 0], cells[..., 0] > 0
        some = known.any(1, keepdim=True)
        total, prior = slots.sum(), self.memory.prior * scale
        slope = torch.where(total > 0, 1 / (torch.where(total > 0, total, 1.0) * self.memory.tau), 0.0)
        score = n * (0 * slope if self.memory.uniform else slope)
        a = torch.softmax(torch.where(some, torch.where(known, score, NEVER), 0.0), 1) * known
        both = torch.cat([base, base], 1)
        means = (cells[..., 1:] + prior * both[:, None]) / torch.where(known, n + prior, 1.0)[..., None]
        y, its = torch.where(some, (a[..., None] * means).sum(1), both).chunk(2, 1)
        return y, its, (a * n).sum(1, keepdim=True) / scale

    def _error(self, said: Tensor, y: Tensor, its: Tensor, n: Tensor, gamma: float) -> Tensor:
        return torch.where(n > 0, gamma * (y - said) + (1 - gamma) * (y - its), 0.0)

    def _directions(self, said: Tensor, z: Tensor, y: Tensor, its: Tensor, n: Tensor) -> Tensor:
        """u, float64[B, E, W]."""
        parts = []
        for gamma in (1.0, 0.0) if self.hedged else (self.how.gamma,):
            target = said + n / (n + 2) * self._error(said, y, its, n, gamma)
            if not self.click:
                target = target.clamp(0.0, 1.0)
                target = target / target.sum(1, keepdim=True)
            parts.append(torch.where(n > 0, lift(target, self.click) - z, 0.0))
        return torch.stack(parts, 1)

    def _fixed(self, said: Tensor, y: Tensor, its: Tensor, n: Tensor) -> Tensor:
        moved = self.how.lam * self._error(said, y, its, n, self.how.gamma)
        p = (said + moved).clamp(0.0, 1.0)
        p = p if self.click else p / p.sum(1, keepdim=True)
        return torch.where((moved != 0).any(1, keepdim=True), p, said)

    def _moved(self, said: Tensor, z: Tensor, u: Tensor, lam: Tensor, trust: Tensor) -> Tensor:
        found = [settled(z + lam[e] * u[:, e], self.click) for e in range(u.shape[1])]
        if self.hedged:
            mixed = trust[0] * said + sum(trust[1 + e] * p for e, p in enumerate(found))
            return torch.where((u != 0).flatten(1).any(1, keepdim=True), mixed, said)
        return torch.where((u[:, 0] * lam[0] != 0).any(1, keepdim=True), found[0], said)


def places(memory: SketchMemory, slot: Tensor, buckets: Tensor) -> Tensor:
    """Where the buckets int64[..., K] lie in a table laid flat."""
    return (slot * memory.arrays + torch.arange(memory.arrays)) * 2**memory.bits + buckets


def lift(p: Tensor, click: bool) -> Tensor:
    """As ``strength.lift``."""
    held = p.clamp(CLIP, 1 - CLIP)
    return torch.log(held / (1 - held)) if click else torch.log(held)


def settled(z: Tensor, click: bool) -> Tensor:
    """As ``strength.settle``."""
    return 1 / (1 + torch.exp(-z)) if click else torch.softmax(z, 1)


# --- labels -------------------------------------------------------------------------------------------------------


class Label(nn.Module):
    """(trace, y, *state) of one row to (outcome, *state): lambda learns, and the row goes into its buckets."""

    def __init__(self, learner: ReLoop2, memory: SketchMemory) -> None:
        super().__init__()
        self.memory, self.how, self.click = memory, learner.params, learner._kind == "click"
        self.ways, self.width = len(learner._strength.lam), memory.values

    def forward(self, trace: Tensor, y: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        at = [self.memory.arrays, self.width, self.ways * self.width, 1]
        buckets, said, u, sound = trace.split(at, 1)
        label = y.double()[:, None] if self.click else F.one_hot(y, self.width).double()
        u = u.reshape(1, self.ways, self.width)
        new = (*self._written(buckets.long(), label, said, *state[:3]), *self._learnt(said, u, label, *state[3:]))
        kept = [torch.where((sound > 0).all(), a, b) for a, b in zip(new, state, strict=True)]
        return (torch.ones(1), *kept)

    def _learnt(
        self, said: Tensor, u: Tensor, label: Tensor, lam: Tensor, hess: Tensor, trust: Tensor
    ) -> tuple[Tensor, ...]:
        """lambda, its curvature and the shares of the hedge, after ``strength._learn`` of one row."""
        z, lams, curves = lift(said, self.click), [], []
        losses = [self._loss(settled(z, self.click), label)]
        for e in range(self.ways):
            way = u[:, e]
            q = settled(z + lam[e] * way, self.click)
            g = ((q - label) * way).sum()
            h = (q * (1 - q) * way * way).sum() if self.click else (q * way * way).sum() - (q * way).sum() ** 2
            losses.append(self._loss(q, label))
            curves.append(self.how.forget * hess[e] + h)
            lams.append((lam[e] - g / curves[-1].clamp(min=FIRST)).clamp(0.0, self.how.cap))
        loss = torch.stack(losses)
        trust = trust * torch.exp(loss.min() - loss)
        return torch.stack(lams), torch.stack(curves), (1 - SHARED) * trust / trust.sum() + SHARED / len(losses)

    def _loss(self, q: Tensor, label: Tensor) -> Tensor:
        there = label * q + (1 - label) * (1 - q) if self.click else label * q
        return -torch.log(there.sum().clamp(min=1e-12))

    def _written(
        self, buckets: Tensor, label: Tensor, said: Tensor, table: Tensor, slots: Tensor, clock: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As ``SketchMemory.write`` of one row, the slot that follows included."""
        memory, (now, filled, scale) = self.memory, clock.unbind()
        row = scale * torch.cat([torch.ones_like(said[:, :1]), label, said], 1)
        at = places(memory, now.long(), buckets)[0]
        flat = table.reshape(-1, table.shape[-1])
        table = flat.index_put((at,), row.expand(memory.arrays, -1), accumulate=True).reshape(table.shape)
        order = torch.arange(memory.slots)
        slots = slots + scale * (order == now)
        filled = filled + 1
        full = filled == memory.slot
        if memory.keep == "cumulative":
            return table, slots, torch.stack([now, filled, scale])
        filled = torch.where(full, 0.0, filled)
        if memory.keep == "ring":
            now = torch.where(full, (now + 1) % memory.slots, now)
            emptied = full & (order == now)
            table = torch.where(emptied[:, None, None, None], 0.0, table)
            return table, torch.where(emptied, 0.0, slots), torch.stack([now, filled, scale])
        scale = torch.where(full, scale / memory.rho, scale)
        by = torch.where(scale > RESCALED, scale, 1.0)
        return table / by, slots / by, torch.stack([now, filled, scale / by])
