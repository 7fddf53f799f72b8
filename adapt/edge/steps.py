"""A learner's verbs as functions of rows and state: what can be written down as graphs.

Each verb is a module without buffers that change: ``forward(rows, state) -> (answers, new state)``, for any number of
rows. All that a learner decides is in it, filters and thresholds as choices between values, so that whoever runs the
graph decides nothing. Which file makes the verbs of which learner is said by one table.
"""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...models.encoding import LARGEST_PLAIN, Encoder
from ...models.inputs import Columns, Pixels
from ...models.kernels.inference_linear import Linear
from ...models.kernels.sliced_gradient import SlicedConv2d, SlicedLinear
from ...streams import InputError
from ..learner import Learner


class CannotExport(InputError):
    """The learner, or a layer of its model, has no form as a graph; the message names it and says what to do."""


Draw = Callable[[int, int], dict[str, Tensor]]


@dataclass(frozen=True)
class Verb:
    """One graph of a bundle. module: ``forward(*rows, *state) -> (*answers, *new state)``.

    rows: (how many, seed) to examples of the inputs that have an axis of rows, by name. reads, writes: names of the
    state that it takes and gives anew. answers: names of the other outputs; ``scores`` has a row for each row.
    single: it takes one row at a time. some: names of the state of which only rows come back, and the answer that says
    which, int64[k]; what becomes of them is the answer ``some.NAME`` [k, ...].
    """

    module: nn.Module
    rows: Draw
    reads: tuple[str, ...]
    writes: tuple[str, ...] = ()
    answers: tuple[str, ...] = ("scores",)
    single: bool = False
    some: Mapping[str, str] = field(default_factory=dict)

    @torch.no_grad()
    def step(
        self, rows: Mapping[str, Tensor], state: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Without a graph: the answers by name, and the state after it, as the runner would have it."""
        found = self.module(*rows.values(), *(state[n] for n in self.reads))
        answers = dict(zip((*self.answers, *self.writes), found, strict=True))
        new = {n: answers.pop(n) if n in self.writes else t for n, t in state.items()}
        for n, which in self.some.items():
            new[n] = new[n].clone()
            new[n][answers[which]] = answers[f"some.{n}"]
        return answers, new


@dataclass(frozen=True)
class Steps:
    """A learner as graphs. verbs: by name (predict, adapt, learn, forget). state: what moves, as it is now.

    facts: plain values that the runner needs beside the graphs; see ``bundle.py``. learnt: ``learnt.ids`` int64[n] and
    ``learnt.x`` [n, w + 1], what ``forget`` takes of rows that were learnt before, their class codes behind. beside:
    names of columns that a row has behind those of the stream. guard: its limits, where not those of ``bundle.py``.
    """

    verbs: Mapping[str, Verb]
    state: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)
    learnt: Mapping[str, Tensor] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    guard: Mapping[str, float] = field(default_factory=dict)


HOMES = {
    "TestTimeLearner": "test_time:steps",
    "Centaur": "centaur:steps",
    "ACU": "acu:steps",
    "GradientLearner": "gradient:steps",
    "ReLoop2": "reloop2:steps",
    "Platt": "platt:steps",
}
"""Class of the learner -> ``module:function`` in this folder, which gives its ``Steps``."""


def steps_of(learner: Learner) -> Steps:
    """The verbs of a learner; ``CannotExport`` where there are none for it."""
    kind = type(learner).__name__
    if kind not in HOMES:
        raise CannotExport(f"{kind} has no form as graphs; README, On a device, tells which learners have one")
    module, _, function = HOMES[kind].partition(":")
    found: Steps = getattr(importlib.import_module(f".{module}", __package__), function)(learner)
    return found


# --- rows -------------------------------------------------------------------------------------------------------


class PixelRows(nn.Module):
    """float32[B, d], images as they come, to float32[B, *shape] with mean 0 and deviation 1 (``models/inputs.py``)."""

    mean: Tensor
    scale: Tensor

    def __init__(self, inputs: Pixels) -> None:
        super().__init__()
        self.shape = inputs.shape
        self.register_buffer("mean", inputs._mean)
        self.register_buffer("scale", inputs._scale)
        self.plain = not bool(inputs._mean.any()) and bool((inputs._scale == 1).all())

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(x.shape[0], *self.shape)
        return x if self.plain else (x - self.mean) * self.scale


class ColumnRows(nn.Module):
    """float64[B, d], table rows as they come, to float32[B, *shape] by moments that stay (``models/encoding.py``)."""

    def __init__(self, inputs: Columns) -> None:
        super().__init__()
        self.shape = inputs.shape
        encoder = Encoder(**inputs.state())
        self.clip = float(encoder.clip[0])
        numeric = encoder.slots == 0
        seen = np.where(numeric & (encoder.seen > 0), encoder.seen, 1.0)
        variance = np.where(encoder.seen > 0, encoder.squares / seen, 0.0)
        self.slots = encoder.slots.tolist()
        self.mean = _double(encoder.mean)
        self.scale = _double(np.where(variance > 0, 1 / np.sqrt(np.where(variance > 0, variance, 1.0)), 0.0))
        self.codes = [_double(np.arange(n)) for n in self.slots]

    def forward(self, x: Tensor) -> Tensor:
        filled = torch.where(torch.isnan(x), self.mean, x)
        if self.clip:
            numbers = ((filled - self.mean) * self.scale).clamp(-self.clip, self.clip)
        else:
            numbers = filled.clamp(-LARGEST_PLAIN, LARGEST_PLAIN)
        if not any(self.slots):
            return numbers.float().reshape(x.shape[0], *self.shape)
        parts = [
            ((x[:, f : f + 1] % n) == self.codes[f]).double() if n else numbers[:, f : f + 1]
            for f, n in enumerate(self.slots)
        ]
        return torch.cat(parts, 1).float().reshape(x.shape[0], *self.shape)


def plain_layers(net: nn.Module) -> nn.Module:
    """A copy whose layers are PyTorch's own: ours choose a library by the number of rows, unknown in a graph, or watch
    what goes through them."""
    copied = copy.deepcopy(net)
    for layer in copied.modules():
        vars(layer).pop("forward", None)
        for ours, plain in ((Linear, nn.Linear), (SlicedLinear, nn.Linear), (SlicedConv2d, nn.Conv2d)):
            if isinstance(layer, ours):
                object.__setattr__(layer, "__class__", plain)
    return copied.eval().requires_grad_(False)


def rows_module(inputs: Pixels | Columns) -> PixelRows | ColumnRows:
    """What turns rows as they come into what the network takes."""
    return PixelRows(inputs) if isinstance(inputs, Pixels) else ColumnRows(inputs)


def drawn(inputs: Pixels | Columns, columns: int) -> Draw:
    """Rows of the right type under the name x: random, whole numbers from 0 to 2 where there are categories."""

    def draw(rows: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        if isinstance(inputs, Pixels):
            return {"x": torch.rand((rows, columns), generator=generator)}
        return {"x": torch.randint(0, 3, (rows, columns), generator=generator).double()}

    return draw


def labelled(rows: Draw, classes: int) -> Draw:
    """The same rows with class codes under the name y."""

    def draw(n: int, seed: int) -> dict[str, Tensor]:
        return {**rows(n, seed), "y": torch.arange(seed, seed + n) % classes}

    return draw


def over(above: Tensor, below: Tensor, least: float) -> Tensor:
    """above / (below + least), written so that the exporter's optimiser, for which 1e-8 is 0, leaves the sum alone."""
    return above * (1 / least) / (below * (1 / least) + 1)


def rest_of(beta: float, taken: Tensor) -> Tensor:
    """1 - beta^taken, by which Adam takes the bias out of its moments, through double precision: in single, the 0.001
    of a first step is off by 3e-5 of itself, and so is the step. (In a power the exporter would round beta.)"""
    return (1 - torch.exp(taken.double() * math.log(beta))).to(taken.dtype)


def _double(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values, np.float64))
