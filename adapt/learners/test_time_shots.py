"""Labelled rows of new classes on a stream that otherwise has no labels: calibrated prototypes, and fine-tuning.

Prototypes and their calibration: ``models/prototypes.py``. Ours, since the paper on CSFA (arXiv 2506.05736) is known to
us by its abstract only: labelled rows are embedded by the weights as they are then, adapted or not, and a labelled row
teaches by its label alone, no step is made on it. Where batch norms use the statistics of the rows at hand, a few rows
of two classes say little of a stream, so they are embedded in company of rows without labels: of those that came
before, or of those that come after, under the same drift. For the latter the labelled rows are kept until enough have
come, and the prototypes of that session alone are made anew.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ...models.adaptive_norm import AdaptiveNorm, using
from ...models.inputs import Columns, Pixels, Tokens
from ...models.networks import Network
from ...models.prototypes import Calibration, Prototypes
from ...streams import Array, InputError, StreamSpec
from ..given_source import check_fit, given_source
from ..learner import State
from ..source_model import Progress, Training, class_count, clean_rows, source_model, tell
from ..source_prototypes import prototype_source, prototypes_of
from .gradient import inputs_of

CompanyRule = Literal["after", "before"]
COMPANY = 64
"""Rows of company at most."""
SANE = 100.0
"""No pixel and no standardised column is farther from its mean, in deviations; rows that are keep no company."""


@dataclass(frozen=True, slots=True)
class Shots:
    """A cosine classifier of prototypes takes labelled rows in without training.

    rule: how strongly a new class is drawn to the base classes it resembles: ``fixed`` by lam, ``shrink`` by
    kappa / (kappa + shots), ``tuned`` as shrink with a kappa chosen on the source's side. tau_s: how sharply it prefers
    the nearest. company: of up to 64 rows without labels; ``after``: those that follow, and none at first; ``before``:
    the latest ones, the source's statistics where there are none.
    """

    rule: Literal["fixed", "shrink", "tuned"] = "fixed"
    lam: float = 0.1
    kappa: float = 0.5
    tau_s: float = 16.0
    company: CompanyRule = "after"

    def __post_init__(self) -> None:
        self.calibration()

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

    def __post_init__(self) -> None:
        if self.steps < 0 or not (self.lr >= 0 and 0 <= self.momentum < 1):
            raise ValueError("steps and lr must be at least 0, momentum in 0..1")


class Taught(Protocol):
    """What labels have taught. net: body and head; its logits are those of ``codes``, int64[C], in order."""

    net: nn.Module

    @property
    def codes(self) -> Tensor: ...
    def meet(self, x: Tensor) -> bool:
        """Rows without labels, float[B, ...], company of labelled ones; whether anything was made anew by them."""
        ...

    def learn(self, x: Tensor, y: Tensor) -> None:
        """Labelled rows: float[n, ...] and int64[n]."""
        ...

    def state(self) -> State: ...
    def load(self, state: State) -> None: ...


class Company:
    """The latest rows without labels, 64 at most."""

    def __init__(self) -> None:
        self.rows: Tensor | None = None

    def __len__(self) -> int:
        return 0 if self.rows is None else len(self.rows)

    def take(self, x: Tensor) -> None:
        """Rows that could be rows of a stream; others are not kept.

        >>> company = Company()
        >>> company.take(torch.tensor([[1.0], [float("nan")], [2.0]]))
        >>> company.rows.tolist()
        [[1.0], [2.0]]
        """
        sane = x[(x.flatten(1).abs() <= SANE).all(1)]
        if len(sane):
            old = sane[:0] if self.rows is None else self.rows
            self.rows = torch.cat([old, sane])[-COMPANY:].clone()

    def load(self, rows: Any, device: torch.device) -> None:
        self.rows = None if rows is None else torch.as_tensor(rows).to(device, copy=True)


def looks_at_rows(net: nn.Module) -> bool:
    """Whether the statistics of a norm are those of the rows at hand, in part at least."""
    modes = {m.statistics for m in net.modules() if isinstance(m, AdaptiveNorm)}
    return not modes <= {"source", "running"}


class Prototyped:
    """Prototypes in the place of a head. ``refused`` counts rows whose features have no direction."""

    def __init__(self, how: Shots, body: nn.Module, prototypes: Prototypes) -> None:
        self.how = how
        self.prototypes = prototypes
        self.net: nn.Module = nn.Sequential(OrderedDict(body=body, head=prototypes))
        self._body = body
        self._company = Company()
        self._open: dict[str, Any] | None = None
        """Labelled rows whose company has not all come, the prototypes before them, and how much had come last time."""
        self.refused = 0

    @property
    def codes(self) -> Tensor:
        return self.prototypes.classes

    def meet(self, x: Tensor) -> bool:
        self._company.take(x)
        waiting, come = self._open, len(self._company)
        if waiting is None or come < min(COMPANY, 2 * max(1, waiting["come"])):
            return False
        self.prototypes.load(waiting["before"])
        self._add(waiting["x"], waiting["y"])
        self._open = None if come == COMPANY else {**waiting, "come": come}
        return True

    def learn(self, x: Tensor, y: Tensor) -> None:
        if self.how.company == "before" or not looks_at_rows(self.net):
            self._add(x, y)
            return
        waiting = self._open
        if waiting is not None and not len(self._company):  # more of the same session
            x, y = torch.cat([waiting["x"], x]), torch.cat([waiting["y"], y])
            self.prototypes.load(waiting["before"])
        self._open = {"x": x, "y": y, "before": self.prototypes.state(), "come": 0}
        self._company.rows = None
        self._add(x, y)

    def _add(self, x: Tensor, y: Tensor) -> None:
        with torch.no_grad():
            features = self._features(x)
        self.refused = self.prototypes.add(features.flatten(1), y)

    def _features(self, x: Tensor) -> Tensor:
        rows = self._company.rows
        if not looks_at_rows(self.net):
            found: Tensor = self._body(x)
        elif rows is not None:
            found = self._body(torch.cat([x, rows]))[: len(x)]
        else:
            with using(self.net, "source" if self.how.company == "before" else "batch"):
                found = self._body(x)
        return found

    def state(self) -> State:
        return {
            "prototypes": self.prototypes.state(),
            "company": self._company.rows,
            "open": None if self._open is None else dict(self._open),
            "refused": self.refused,
        }

    def load(self, state: State) -> None:
        device = self.prototypes.rows.device
        self.prototypes.load(state["prototypes"])
        self._company.load(state["company"], device)
        kept = state["open"]
        if kept is not None:
            before = copy.deepcopy(self.prototypes)
            before.load(kept["before"])
            x, y = (torch.as_tensor(kept[k]).to(device, copy=True) for k in ("x", "y"))
            kept = {"x": x, "y": y, "before": before.state(), "come": int(kept["come"])}
        self._open = kept
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

    @property
    def codes(self) -> Tensor:
        return self._head.codes

    def meet(self, x: Tensor) -> bool:
        return False

    def learn(self, x: Tensor, y: Tensor) -> None:
        self._head.codes = torch.unique(torch.cat([self.codes, y.to(self.codes.device)]))
        place = torch.searchsorted(self.codes, y.to(self.codes.device))
        mine = dict(self.net.named_parameters())
        weights = {n: w.detach().clone().requires_grad_(True) for n, w in mine.items()}
        optimiser = torch.optim.SGD(weights.values(), self.how.lr, self.how.momentum)
        mode = "batch" if looks_at_rows(self.net) else "source"
        for _ in range(self.how.steps):
            with using(self.net, mode):
                z = functional_call(self.net, weights, (x,))
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(z, place).backward()
            optimiser.step()
        if all(bool(w.isfinite().all()) for w in weights.values()):
            with torch.no_grad():
                for name, weight in mine.items():
                    weight.copy_(weights[name])

    def state(self) -> State:
        return {"codes": self.codes}

    def load(self, state: State) -> None:
        self._head.codes = torch.as_tensor(state["codes"]).to(self.codes.device, copy=True)


def inputs_for(spec: StreamSpec) -> Pixels | Columns:
    """What turns rows of the stream into tensors; columns that no clean rows say the scale of go in as they are."""
    if spec.text is not None:
        raise InputError(f"stream {spec.name} asks for texts: without labels there is nothing to learn from here")
    inputs = inputs_of(spec)
    assert not isinstance(inputs, Tokens)
    return inputs if inputs.fixed or spec.source is not None else Pixels(spec.shape or (spec.n_features,), [0.0], [1.0])


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
    already. Prototypes are those of the model where it has them, else class means of the stream's clean rows. Raises
    ``InputError`` where a model does not fit.
    """
    if model is not None:
        _handed(model, source, spec, inputs)
    if isinstance(how, Shots):
        return _prototyped(how, spec, inputs, training, source, model, keep, progress)
    if model is None and source:
        model = given_source(source, spec, inputs, training, keep=keep, progress=progress)
    elif model is None:
        model = source_model(spec, inputs, training, keep=keep, progress=progress)
    else:
        check_fit(model, "the model", spec, inputs)
    if how is None:
        return model, None
    if not isinstance(model, Network):
        raise InputError("fine-tuning on labelled rows needs a model with a body and a linear head")
    known = range(class_count(spec)) if spec.source is None else sorted(spec.source.classes)
    taught = Finetuned(how, model, torch.tensor(list(known), dtype=torch.int64))
    return taught.net, taught


def _handed(model: Any, source: str, spec: StreamSpec, inputs: Pixels | Columns) -> None:
    """A model of a person's own sees rows scaled by the clean ones, where there are any."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch module or the name of a network, not {type(model).__name__}")
    if source:
        raise InputError("there are two source models: give model or source, not both")
    if spec.source is not None and not inputs.fixed:
        clean_rows(spec, inputs)


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
