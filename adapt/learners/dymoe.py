"""Mixtures of low-rank experts as techniques: the network is frozen, experts beside its linear layers learn.

- ``moe-lora``: one bank, a dense softmax router without cosines, all of it trained in every experience. After CoIN
  (Chen et al., NeurIPS 2024 datasets and benchmarks); its own sizes are 8 experts of rank 16.
- ``inc-moe-lora``: a new bank for every experience, all earlier ones frozen, a cosine router over all experts.
- ``dymoe-tag``: the same with token assignment guidance in training: tokens that are old or ambiguous to the router go
  to old experts, new ones to the new bank.
- ``dymoe``: the same with routing score regularisation in the second half of an experience.

Zhao, Li, Lu, Gong, LLaVA-DyMoE, CVPR 2026, arXiv 2603.27481; formulas and the sources of each: ``models/dymoe.py`` and
``models/token_groups.py``. Answers never use the number of the experience, guidance or regularisation. They do use the
new bank, also in the midst of an experience (the published code leaves it out until it is folded), because a stream is
answered batch by batch.

Ours: the progress that the ramp of the regularisation follows is rows learnt by rows there are (all epochs), as the
stream's spec tells them; where it does not, regularisation is on from the start. A base without experts can be guarded
as a first group (``base_expert``), and router rows can begin at tokens (``models/router_start.py``). Left out: merging
of banks, growth without boundaries, thresholds on routing weights. Batch norms of a frozen network still gather their
statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...models.dymoe import ExpertLinear, Found, Guidance, Pass, Routing, joined
from ...models.language import context_of
from ...streams import InputError
from ..learner import State
from .adapters import HEAD, attach, freeze
from .parts import Active, Rows
from .sparse_net import MASKING
from .token_probe import TokenProbe
from .token_series import TokenSeries

if TYPE_CHECKING:
    from .gradient import GradientLearner

FROZEN = "experts leave all weights beneath them as they are"
ALONE = "both put adapters beside the same layers"
ADAPTERS = ("LoRA", "IncLoRA", "OLoRA", "MoELoRA", "IncMoELoRA", "DyMoETag", "DyMoE")
GROWING = {
    "EWC": "it holds weights near where they were, and every bank begins anew",
    "LwF": "its teacher is a copy of the network, whose layers change their sizes",
}


def _refused(me: str) -> dict[str, str]:
    found = {name: ALONE for name in ADAPTERS if name != me} | dict.fromkeys((*MASKING, "AdaB2N", "MIGU"), FROZEN)
    return found if me == "MoELoRA" else found | GROWING


@dataclass(frozen=True)
class MoELoRA:
    """A fixed bank of experts beside every chosen linear layer, mixed by a dense softmax router."""

    experts: int = 16
    """Experts of a bank."""
    expert_rank: int = 4
    """Rank of an expert."""
    expert_alpha: float = 128.0
    """A bank counts alpha / (experts expert_rank) times."""
    expert_dropout: float = 0.0
    """Share of the experts' inputs (not the router's) that is dropped in training."""
    expert_layers: str = ""
    """Linear layers by name, patterns with commas between, ! takes away; empty: the blocks of a transformer, a body."""
    train_also: str = HEAD
    """Parameters of the network that learn too, by name."""
    needs: ClassVar[frozenset[str]] = frozenset()
    refuses: ClassVar[Mapping[str, str]] = _refused("MoELoRA")

    def __post_init__(self) -> None:
        if min(self.experts, self.expert_rank) < 1 or self.expert_alpha <= 0 or not 0 <= self.expert_dropout < 1:
            raise ValueError(
                "experts, expert_rank must be at least 1, expert_alpha above 0, expert_dropout in 0..1, 1 excluded"
            )

    def start(self, learner: GradientLearner) -> Active:
        return _Experts(learner, self, Routing(0, 1.0, "linear"), Guidance(tag=False))


@dataclass(frozen=True)
class DyMoE:
    """A bank of experts for every experience, earlier ones frozen; guidance and regularisation in training."""

    experts: int = 16
    """Experts of one experience's bank."""
    expert_rank: int = 4
    """Rank of an expert."""
    expert_alpha: float = 128.0
    """A bank counts alpha / (experts expert_rank) times."""
    expert_dropout: float = 0.0
    """Share of the experts' inputs (not the router's) that is dropped in training."""
    expert_layers: str = ""
    """Linear layers by name, patterns with commas between, ! takes away; empty: the blocks of a transformer, a body."""
    train_also: str = HEAD
    """Parameters of the network that learn too, by name."""
    max_experts: int = 0
    """A layer has so many experts at most; 0: no limit. A stream that needs more is refused."""
    top_k: int = 16
    """Experts that a token reaches, of all there are; 0: all."""
    routing_temperature: float = 0.01
    """Temperature of the router's softmax over cosines."""
    router_start: Literal["random", "tokens"] = "random"
    """Router rows of a new bank begin at random, or (ours) at what its first tokens have that old rows do not."""
    tag: bool = True
    """Token assignment guidance: in training old and ambiguous tokens go to old experts only."""
    tau: float = 0.2
    """Relative difference of the best scores from which a token is new or old, and not ambiguous."""
    exclusive: bool = True
    """New tokens go to new experts only, as in the published code."""
    rsr: float = 1e-3
    """Weight of the routing score regularisation (either-or and specialisation, both)."""
    rsr_temperature: float = 0.1
    """Temperature of its softmax."""
    rsr_from: float = 0.5
    """Share of an experience from which it rises from 0 to its full weight at the end."""
    balance: float = 0.0
    """Weight of the load-balancing loss on the new experts; absent from the published code."""
    base_expert: bool = False
    """The bare network counts as a first bank, so that the first experience is guided too."""
    needs: ClassVar[frozenset[str]] = frozenset({"boundaries"})
    refuses: ClassVar[Mapping[str, str]] = _refused("DyMoE")

    def __post_init__(self) -> None:
        if min(self.experts, self.expert_rank) < 1 or self.expert_alpha <= 0 or not 0 <= self.expert_dropout < 1:
            raise ValueError(
                "experts, expert_rank must be at least 1, expert_alpha above 0, expert_dropout in 0..1, 1 excluded"
            )
        if min(self.routing_temperature, self.rsr_temperature) <= 0:
            raise ValueError("routing_temperature and rsr_temperature must be above 0")
        if min(self.tau, self.rsr, self.balance, self.top_k, self.max_experts) < 0 or not 0 <= self.rsr_from < 1:
            raise ValueError("tau, rsr, balance, top_k, max_experts at least 0, rsr_from in 0..1, 1 excluded")

    def start(self, learner: GradientLearner) -> Active:
        guidance = Guidance(self.tag, self.exclusive, self.tau, self.rsr_temperature)
        return _Growing(learner, self, Routing(self.top_k, self.routing_temperature, start=self.router_start), guidance)


@dataclass(frozen=True)
class DyMoETag(DyMoE):
    """DyMoE without regularisation: growth and guidance."""

    rsr: float = 0.0
    """Weight of the routing score regularisation (either-or and specialisation, both)."""
    refuses: ClassVar[Mapping[str, str]] = _refused("DyMoETag")


@dataclass(frozen=True)
class IncMoELoRA(DyMoE):
    """DyMoE without guidance and regularisation: growth alone."""

    tag: bool = False
    """Token assignment guidance: in training old and ambiguous tokens go to old experts only."""
    rsr: float = 0.0
    """Weight of the routing score regularisation (either-or and specialisation, both)."""
    refuses: ClassVar[Mapping[str, str]] = _refused("IncMoELoRA")


class _Experts(Active):
    reshapes = True

    def __init__(self, learner: GradientLearner, values: MoELoRA | DyMoE, routing: Routing, guidance: Guidance) -> None:
        self.learner, self.values = learner, values
        self.shared = Pass(context=context_of(learner.net))

        def beside(layer: nn.Module, number: int) -> ExpertLinear:
            return ExpertLinear(
                layer,
                number,
                experts=values.experts,
                rank=values.expert_rank,
                alpha=values.expert_alpha,
                dropout=values.expert_dropout,
                routing=routing,
                guidance=guidance,
                shared=self.shared,
                seed=learner.seed,
            )

        self.layers = attach(learner, "expert_layers", values.expert_layers, beside)
        self.series = TokenSeries(len(self.layers))
        self.last = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])
        """Shares of new, old and ambiguous tokens, mass of the newest bank, regularisation: of the last update."""
        self._freeze()

    def _freeze(self) -> None:
        learning = {f"{name}.{part}" for name in self.layers for part in ("new_a", "new_b", "new_router")}
        freeze(self.learner, self.values.train_also, learning)
        self.learner.rebuilt()

    def grown(self, name: str, rows: int) -> None:
        self._freeze()

    def before_forward(self, rows: Sequence[Rows]) -> None:
        """Layers report of passes with rows at hand (A-GEM's pass over its memory has a graph of its own)."""
        shared, update = self.shared, self.learner.updates
        if shared.step != update:
            shared.found.clear()
        shared.step, shared.recording = update, any(part.current for part in rows)
        shared.watched = self.series.due(update)

    def penalty(self, now: Rows) -> Tensor | None:
        self.shared.recording = False
        found = [joined(each) for _, each in sorted(self.shared.found.items())]
        self.shared.found.clear()
        if not found:
            return None
        regularised, balanced = _mean([each.rsr for each in found]), _mean([each.balance for each in found])
        self._look(found, regularised)
        return self._weighed(regularised, balanced)

    def _look(self, found: list[Found], regularised: Tensor | None) -> None:
        shares = torch.stack([each.shares for each in found])
        mass = _mean([each.mass for each in found])
        newest = self.last[3:4]
        if mass is not None:
            self.series.add(self.learner.updates, self.learner.task, shares, mass)
            newest = mass[-1:]
        term = shares.new_zeros(1) if regularised is None else regularised.detach().view(1)
        self.last = torch.cat([shares.mean(0), newest.to(shares.device), term])

    def _weighed(self, regularised: Tensor | None, balanced: Tensor | None) -> Tensor | None:
        """What joins the loss."""
        return None

    def telemetry(self) -> dict[str, float]:
        names = ("share_new", "share_old", "share_ambiguous", "newest_mass", "rsr_terms")
        return dict(zip(names, self.last.tolist()))

    def facts(self) -> dict[str, Any]:
        return {"tokens": self.series.facts(list(self.layers))}

    def state(self) -> State:
        return {"series": self.series.state(), "last": self.last}

    def load(self, state: State) -> None:
        self.series.load(state["series"])
        self.last = state["last"].clone()
        self.shared.found.clear()
        self._freeze()


class _Growing(_Experts):
    values: DyMoE

    def __init__(self, learner: GradientLearner, values: DyMoE, routing: Routing, guidance: Guidance) -> None:
        super().__init__(learner, values, routing, guidance)
        self.probe = TokenProbe(learner, self.layers, first=int(values.base_expert))
        if values.base_expert:
            self._grow()
        self._check(len(learner.spec.experiences) + values.base_expert)

    def _check(self, banks: int) -> None:
        wanted, most = banks * self.values.experts, self.values.max_experts
        if most and wanted > most:
            raise InputError(
                f"{banks} banks of {self.values.experts} experts are {wanted} a layer, max_experts is {most}: "
                "allow more, or take fewer experts"
            )

    def _grow(self) -> None:
        slots = self.learner.optimiser.slots
        for name, layer in self.layers.items():
            layer.grow()
            for part in ("new_a", "new_b", "new_router"):
                slots.pop(f"{name}.{part}", None)

    @property
    def banks(self) -> int:
        """Of each layer, the new one included."""
        return next(iter(self.layers.values())).banks

    def boundary(self) -> None:
        self._check(self.banks + 1)
        self.probe.ended(self.learner.task)
        self._grow()
        self.series.begin()

    def before_forward(self, rows: Sequence[Rows]) -> None:
        super().before_forward(rows)
        self.shared.regularised = self.values.rsr > 0 and self._ramp() > 0
        self.shared.balanced = self.values.balance > 0

    def _ramp(self) -> float:
        """0 up to ``rsr_from`` of the experience, then in a line to 1 at its end; 1 where its rows are not known."""
        learner, first = self.learner, self.values.rsr_from
        known = learner.spec.experiences[learner.task : learner.task + 1]
        rows = known[0].rows * int(learner.spec.notes.get("epochs", 1)) if known else 0
        return min(1.0, max(0.0, (learner.seen / rows - first) / (1 - first))) if rows else 1.0

    def _weighed(self, regularised: Tensor | None, balanced: Tensor | None) -> Tensor | None:
        terms = [] if regularised is None else [self._ramp() * self.values.rsr * regularised]
        terms += [] if balanced is None else [self.values.balance * balanced]
        return sum(terms[1:], terms[0]) if terms else None

    def facts(self) -> dict[str, Any]:
        return {"tokens": super().facts()["tokens"] | self.probe.facts(self.learner.task + 1)}

    def state(self) -> State:
        placed = [layer.placed for layer in self.layers.values()]
        return super().state() | {"banks": self.banks, "placed": placed, "drift": self.probe.state()}

    def load(self, state: State) -> None:
        for layer in self.layers.values():
            layer.resize(int(state["banks"]) - 1)
        for layer, placed in zip(self.layers.values(), state["placed"], strict=True):
            layer.placed = bool(placed)
        self.probe.load(state["drift"])
        super().load(state)


def _mean(terms: Sequence[Tensor | None]) -> Tensor | None:
    """Over the layers."""
    there = [term for term in terms if term is not None]
    return torch.stack(there).mean(0) if there else None
