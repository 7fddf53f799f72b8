"""Labelled rows of new classes on a stream that otherwise has no labels: calibrated prototypes, and fine-tuning.

Prototypes and their calibration: ``models/prototypes.py``. Ours, since the paper on CSFA (arXiv 2506.05736) is known to
us by its abstract only: labelled rows are embedded by the weights as they are then, adapted or not; where batch norms
use the statistics of the rows at hand, in company of the latest rows without labels, because a few rows of two classes
say little of a stream, and by the source's statistics as long as there are none; a labelled row teaches by its label
alone, no step is made on it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ...models.adaptive_norm import AdaptiveNorm, using
from ...models.inputs import Columns, Pixels
from ...models.networks import Network
from ...models.prototypes import Calibration, Prototypes
from ...streams import Array, InputError, StreamSpec
from ..given_source import given_source
from ..learner import State
from ..source_model import Progress, Training, class_count, source_model, tell
from ..source_prototypes import prototype_source, prototypes_of

SANE = 100.0
"""No pixel and no standardised column is farther from its mean, in deviations; rows that are keep no company."""


@dataclass(frozen=True, slots=True)
class Shots:
    """A cosine classifier of prototypes takes labelled rows in without training.

    rule: how strongly a new class is drawn to the base classes it resembles: ``fixed`` by lam, ``shrink`` by
    kappa / (kappa + shots), ``tuned`` as shrink with a kappa chosen on the source's side. tau_s: how sharply it prefers
    the nearest. company: rows without labels that labelled ones are embedded together with, at most.
    """

    rule: Literal["fixed", "shrink", "tuned"] = "fixed"
    lam: float = 0.1
    kappa: float = 0.5
    tau_s: float = 16.0
    company: int = 64

    def __post_init__(self) -> None:
        self.calibration()
        if self.company < 0:
            raise ValueError("company must be at least 0")

    def calibration(self) -> Calibration:
        """Of new classes, as long as no other strength has been chosen."""
        if self.rule == "fixed":
            return Calibration("fixed", self.lam, self.tau_s)
        return Calibration("shrink", self.kappa, self.tau_s)


@dataclass(frozen=True, slots=True)
class Finetuning:
    """All weights follow the cross-entropy of the labelled rows among all classes seen: expect forgetting."""

    steps: int = 50
    lr: float = 0.01
    momentum: float = 0.9
    company: int = 64

    def __post_init__(self) -> None:
        if self.steps < 0 or self.company < 0 or not (self.lr >= 0 and 0 <= self.momentum < 1):
            raise ValueError("steps, company and lr must be at least 0, momentum in 0..1")


class Taught(Protocol):
    """What labels have taught. net: body and head; its logits are those of ``codes``, int64[C], in order."""

    net: nn.Module

    @property
    def codes(self) -> Tensor: ...
    def meet(self, x: Tensor) -> None:
        """Rows without labels, float[B, ...], that later labelled rows may be seen in company of."""
        ...

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Labelled rows: float[n, ...] and int64[n]."""
        ...

    def state(self) -> State: ...
    def load(self, state: State) -> None: ...


class Company:
    """The latest rows, ``size`` at most.

    >>> company = Company(2)
    >>> company.take(torch.tensor([[1.0], [float("nan")], [2.0], [3.0]]))
    >>> company.rows
    tensor([[2.],
            [3.]])
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.rows: Tensor | None = None

    def take(self, x: Tensor) -> None:
        """Rows that could be rows of a stream; others are not kept."""
        sane = x[(x.flatten(1).abs() <= SANE).all(1)]
        if self.size and len(sane):
            old = sane[:0] if self.rows is None else self.rows
            self.rows = torch.cat([old, sane])[-self.size :].clone()

    def through(self, net: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """function(x), a pass through ``net`` that sees the company too where its norms look at the rows at hand."""
        modes = {m.statistics for m in net.modules() if isinstance(m, AdaptiveNorm)}
        if modes <= {"source", "running"}:
            return function(x)
        if self.rows is None:
            with using(net, "source"):
                return function(x)
        return function(torch.cat([x, self.rows]))[: len(x)]


class Prototyped:
    """Prototypes in the place of a head. ``refused`` counts rows whose features have no direction."""

    def __init__(self, how: Shots, body: nn.Module, prototypes: Prototypes) -> None:
        self.prototypes = prototypes
        self.net: nn.Module = nn.Sequential(OrderedDict(body=body, head=prototypes))
        self._body = body
        self._company = Company(how.company)
        self.refused = 0

    @property
    def codes(self) -> Tensor:
        return self.prototypes.classes

    def meet(self, x: Tensor) -> None:
        self._company.take(x)

    def learn(self, x: Tensor, y: Tensor) -> None:
        with torch.no_grad():
            features = self._company.through(self.net, self._body, x)
        self.refused += self.prototypes.add(features.flatten(1), y)

    def state(self) -> State:
        return {"prototypes": self.prototypes.state(), "company": self._company.rows, "refused": self.refused}

    def load(self, state: State) -> None:
        self.prototypes.load(state["prototypes"])
        _load_company(self._company, state["company"], self.prototypes.rows.device)
        self.refused = int(state["refused"])


class Seen(nn.Module):
    """The logits of a linear head for the classes seen so far. codes: int64[C]."""

    codes: Tensor

    def __init__(self, linear: nn.Module, codes: Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.register_buffer("codes", codes, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        z: Tensor = self.linear(features)
        return z[:, self.codes]


class Finetuned:
    """A linear head among the classes seen so far, and a body that follows its loss."""

    def __init__(self, how: Finetuning, net: Network, codes: Tensor) -> None:
        self.how = how
        self._head = Seen(net.head, codes)
        self.net: nn.Module = nn.Sequential(OrderedDict(body=net.body, head=self._head))
        self._company = Company(how.company)

    @property
    def codes(self) -> Tensor:
        return self._head.codes

    def meet(self, x: Tensor) -> None:
        self._company.take(x)

    def learn(self, x: Tensor, y: Tensor) -> None:
        self._head.codes = torch.unique(torch.cat([self.codes, y.to(self.codes.device)]))
        place = torch.searchsorted(self.codes, y.to(self.codes.device))
        mine = dict(self.net.named_parameters())
        weights = {n: w.detach().clone().requires_grad_(True) for n, w in mine.items()}
        optimiser = torch.optim.SGD(weights.values(), self.how.lr, self.how.momentum)
        for _ in range(self.how.steps):
            z = self._company.through(self.net, lambda rows: functional_call(self.net, weights, (rows,)), x)
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(z, place).backward()
            optimiser.step()
        if all(bool(w.isfinite().all()) for w in weights.values()):
            with torch.no_grad():
                for name, weight in mine.items():
                    weight.copy_(weights[name])

    def state(self) -> State:
        return {"codes": self.codes, "company": self._company.rows}

    def load(self, state: State) -> None:
        self._head.codes = torch.as_tensor(state["codes"]).to(self.codes.device, copy=True)
        _load_company(self._company, state["company"], self.codes.device)


def _load_company(company: Company, rows: Any, device: torch.device) -> None:
    company.rows = None if rows is None else torch.as_tensor(rows).to(device, copy=True)


def start(
    how: Shots | Finetuning | None,
    spec: StreamSpec,
    inputs: Pixels | Columns,
    training: Training,
    *,
    source: str = "",
    model: nn.Module | None = None,
    keep: bool = True,
    progress: Progress = tell,
) -> tuple[nn.Module, Taught | None]:
    """The network that adaptation starts from, and what labels will teach it.

    source: as ``given_source`` takes it; none trains a model on the stream's clean rows. model: one that is there
    already. Prototypes are those of the model where it has them, else class means of the stream's clean rows.
    """
    if isinstance(how, Shots):
        return _prototyped(how, spec, inputs, training, source, model, keep, progress)
    if model is None and source:
        model = given_source(source, spec, inputs, training, keep=keep, progress=progress)
    elif model is None:
        model = source_model(spec, inputs, training, keep=keep, progress=progress)
    if how is None:
        return model, None
    if not isinstance(model, Network):
        raise InputError("fine-tuning on labelled rows needs a model with a body and a linear head")
    known = range(class_count(spec)) if spec.source is None else sorted(spec.source.classes)
    taught = Finetuned(how, model, torch.tensor(list(known), dtype=torch.int64))
    return taught.net, taught


def _prototyped(
    how: Shots,
    spec: StreamSpec,
    inputs: Pixels | Columns,
    training: Training,
    source: str,
    model: nn.Module | None,
    keep: bool,
    progress: Progress,
) -> tuple[nn.Module, Taught]:
    calibration = how.calibration()
    if model is None:
        shots = int(spec.notes.get("shots", 0)) if how.rule == "tuned" else 0
        if how.rule == "tuned" and not shots:
            raise InputError(f"rule tuned: stream {spec.name} does not say how many labelled rows a new class brings")
        body, head = prototype_source(
            spec, inputs, training, calibration, shots, source=source, keep=keep, progress=progress
        )
    else:
        body, head = prototypes_of(model, "the model", spec, inputs, calibration)
    taught = Prototyped(how, body, head)
    return taught.net, taught


def by_code(scores: Array, codes: Array, classes: int) -> Array:
    """float64[B, classes] of float64[B, C] for these codes: a class that is not among them has probability 0."""
    wide = np.zeros((len(scores), max(classes, int(codes.max()) + 1)))
    wide[:, codes] = scores
    return wide
