"""ACU as functions: the head answers, learns a row and forgets one, in double precision.

The learner keeps sums and solves for the head when it is asked (``models/analytic.py``); a graph has no factorisation,
so here the inverse R = (sum x x^T + gamma I)^-1 and the head W = R sum x y^T are the state, and a row changes them by
rank one (Sherman, Morrison, 1950; the recursion of ACIL, and backwards that of ACU):

    learn   k = R x / (1 + x^T R x)      R <- R - k (R x)^T      W <- W + k (y - x^T W)^T
    forget  k = R x / (1 - x^T R x)      R <- R + k (R x)^T      W <- W - k (y - x^T W)^T

What a row's label needs of the moment of the answer is its base features, the trace of ``predict``: rows that were
learnt before the export, and whose features the learner keeps, go with the bundle up to ``MOST`` bytes, and can be
forgotten on the device by their ids as those that were learnt there; of others the runner says that they cannot.

A row whose share 1 - x^T R x is below 1e-9 is not in the sums, or its forgetting would leave no figure to rely on:
then nothing changes, and the outcome says so.

state: ``inverse`` float64[d, d], ``head`` float64[d, C], ``counts`` float64[C], rows of each class.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.backbones import TorchMap
from ...models.feature_maps import Plain
from ...models.inputs import Pixels
from ...streams import StreamSpec
from ..learners.acu import ACU
from ..learners.acu_parts import SLOTS
from .steps import CannotExport, Draw, PixelRows, Steps, Verb, plain_layers

LEAST = 1e-9
OUTCOME = ("took",)
MOST = 2**26


def steps(learner: ACU) -> Steps:
    """predict, learn and forget; ``CannotExport`` for class weights, integer sums and backbones out of a file."""
    p, classes = learner.params, learner.spec.n_classes
    if p.exact == "bitwise" or p.weighting != "none":
        raise CannotExport(
            "acu with integer sums or class weights has no form as graphs: set exact=float weighting=none"
        )
    if classes is None:
        raise CannotExport("acu can be exported for a stream that names its classes only: their number is fixed")
    if p.engine == "float32":
        raise CannotExport("acu in single precision has no form as graphs: set engine=statistics")
    features, rows = _features(learner)
    learner.head.grow(classes)
    half, cross = (learner.head if p.engine == "statistics" else learner.head.statistics).sums()
    inverse = np.linalg.inv(np.triu(half) + np.triu(half, 1).T + p.gamma * np.eye(len(half)))
    inverse = (inverse + inverse.T) / 2
    state = {
        "inverse": torch.from_numpy(inverse),
        "head": torch.from_numpy(inverse @ cross),
        "counts": torch.from_numpy(np.asarray(learner.head.counts, np.float64)),
    }
    names = tuple(state)
    taught = _taught(features, rows, classes)
    verbs = {
        "predict": Verb(Predict(features, p.temperature), rows, ("head", "counts"), (), ("scores", "trace")),
        "learn": Verb(Change(features, 1.0), taught, names, names, ("outcome",), single=True),
        "forget": Verb(Change(features, -1.0), taught, names, names, ("outcome",), single=True),
    }
    dtype = rows(1, 0)["x"].dtype
    return Steps(verbs, state, {"outcome": OUTCOME, "learnt_before": learner.head.n}, _learnt(learner, dtype))


def _taught(features: Features, rows: Draw, classes: int) -> Draw:
    """Base features of rows, in the rows' own type, and their class codes."""

    def draw(n: int, seed: int) -> dict[str, Tensor]:
        return {"trace": features.trace(rows(n, seed)["x"]), "y": torch.arange(seed, seed + n) % classes}

    return draw


def _learnt(learner: ACU, dtype: torch.dtype) -> dict[str, Tensor]:
    """Ids, and features with class codes behind, of the rows that the learner keeps; nothing where it keeps none."""
    held = learner.learnt
    if held.width is None or not len(held) or len(held) * (held.width + 1) * dtype.itemsize > MOST:
        return {}
    places = held.everywhere()
    z, codes = held.rows(places)
    rows = torch.from_numpy(np.concatenate([z, codes[:, None]], 1)).to(dtype)
    return {"learnt.ids": torch.from_numpy(held.ids(places)), "learnt.x": rows}


class Features(nn.Module):
    """Rows to base features [B, w] of single precision in the rows' own type, and those to float64[B, d]: relu(z P)."""

    def __init__(self, base: nn.Module, projection: np.ndarray | None) -> None:
        super().__init__()
        self.base = base
        self.projection = None if projection is None else torch.from_numpy(np.array(projection))

    def trace(self, x: Tensor) -> Tensor:
        """The base features."""
        return self.base(x).float().to(x.dtype)

    def forward(self, trace: Tensor) -> Tensor:
        z = trace.double()
        return z if self.projection is None else torch.relu(z @ self.projection)


class PlainRows(nn.Module):
    """``Plain``: a column of ones, numbers by asinh, categories one-hot, missing values 0."""

    def __init__(self, fan: list[int]) -> None:
        super().__init__()
        self.fan = fan
        self.codes = [torch.arange(n, dtype=torch.float64) for n in fan]

    def forward(self, x: Tensor) -> Tensor:
        there = torch.isfinite(x)
        numbers = asinh(torch.where(there, x, 0.0))
        parts = [torch.ones_like(x[:, :1])]
        for j, n in enumerate(self.fan):
            column = x[:, j : j + 1]
            one_hot = ((column % n == self.codes[j]) & there[:, j : j + 1]).double() if n else None
            parts.append(numbers[:, j : j + 1] if one_hot is None else one_hot)
        return torch.cat(parts, 1)


def asinh(x: Tensor) -> Tensor:
    """Out of logarithms: ONNX Runtime has no asinh of doubles."""
    far, size = x.abs() > 1e100, x.abs()
    near = torch.where(far, 0.0, size)
    return x.sign() * torch.where(far, torch.log(size) + math.log(2), torch.log(near + torch.sqrt(near * near + 1)))


class Whole(nn.Module):
    """A network's body on rows as its inputs have them, flattened."""

    def __init__(self, rows: nn.Module, body: nn.Module) -> None:
        super().__init__()
        self.rows, self.body = rows, body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.rows(x)).flatten(1)


def _features(learner: ACU) -> tuple[Features, Draw]:
    """The learner's map, and rows to trace it with: float32 pixels, or float64 columns."""
    found, spec = learner.features, learner.spec
    fan = [0 if c.categories is None else SLOTS if c.open else len(c.categories) for c in spec.columns]
    if isinstance(found, Plain):
        base: nn.Module = PlainRows(fan) if found.squeeze else nn.Identity()
        pixels = not found.squeeze
    elif isinstance(found, TorchMap):
        inputs = getattr(found.inputs, "__self__", None)
        pixels = isinstance(inputs, Pixels)
        rows = PixelRows(inputs) if isinstance(inputs, Pixels) else nn.Sequential(PlainRows(fan), _Single())
        base = Whole(rows, plain_layers(found.module))
    else:
        raise CannotExport(f"acu on {type(found).__name__} has no form as graphs: use identity or a network by name")
    return Features(base, learner.expand._p), _drawn(spec, pixels)


class _Single(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


def _drawn(spec: StreamSpec, pixels: bool) -> Draw:
    def draw(n: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        if pixels:
            return {"x": torch.rand((n, spec.n_features), generator=generator)}
        return {"x": torch.randint(0, 3, (n, spec.n_features), generator=generator).double()}

    return draw


class Predict(nn.Module):
    """softmax(x W / temperature) over the classes that have rows, all alike where none has; and the base features."""

    def __init__(self, features: Features, temperature: float) -> None:
        super().__init__()
        self.features, self.temperature = features, temperature

    def forward(self, x: Tensor, head: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
        trace = self.features.trace(x)
        z = (self.features(trace) @ head) / self.temperature
        there = (counts > 0) | (counts.sum() == 0)
        p = torch.softmax(torch.where(there, z, -1e300), 1)
        return torch.where(counts.sum() == 0, 1 / counts.shape[0], p).float(), trace


class Change(nn.Module):
    """One row in (sign 1) or out (-1): (trace, y, inverse, head, counts) to (outcome, the same anew)."""

    def __init__(self, features: Features, sign: float) -> None:
        super().__init__()
        self.features, self.sign = features, sign

    def forward(self, trace: Tensor, y: Tensor, inverse: Tensor, head: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
        row = self.features(trace)
        target = F.one_hot(y, counts.shape[0]).double()
        along = row @ inverse
        share = 1 + self.sign * (along @ row.T)
        held = counts + self.sign * target[0]
        took = (share > LEAST).all() & (held >= 0).all()
        gain = (self.sign * along / torch.where(took, share, 1.0)).T
        new = inverse - gain @ along, head + gain @ (target - row @ head), held
        outcome = took.to(torch.float32).reshape(1)
        return (outcome, *(torch.where(took, a, b) for a, b in zip(new, (inverse, head, counts), strict=True)))
