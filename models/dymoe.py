"""A linear layer with a growing bank of low-rank experts behind a cosine router (LLaVA-DyMoE), and its fixed relative.

y = x W0^T + b + alpha / r_task [(dropout(x) A^T) * w] B, w = softmax(top-k(cos(x, P)) / T_r) repeated over each
expert's rank. W0 and b are the frozen layer's. The bank is one concatenation, oldest expert first: A [R, d_in],
B [R, d_out] (the notes' B, transposed, so that all three grow along their first axis), P [E, d_in], R = E rank. The old
part consists of buffers: no gradient is formed for it (only the one that goes through it to x), and no optimiser knows
it. The new part consists of parameters. Sources and marks: ``models/token_groups.py``.

Nowhere is there a loop over experts: the whole bank is two products with a multiplication between. In training under
exclusive TAG a token needs one group's bank only, so tokens are sorted by group and each group makes two products on
its own rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .kernels.inference_linear import PLAIN
from .kernels.product import frozen_linear, product
from .named import sizes
from .router_start import router_rows
from .token_groups import TokenGroups, balance, cosine_scores, guided, routing, routing_score_terms, token_groups, unit


@dataclass(frozen=True, slots=True)
class Routing:
    """How tokens find experts, in training and after it.

    top_k: of all experts, below 1: all. temperature: T_r. kind: cosine [U], or linear, a plain product (CoIN). start:
    of a new bank's rows, random [U] or tokens, at those of its first batch (``models/router_start.py``).
    """

    top_k: int = 16
    temperature: float = 0.01
    kind: Literal["cosine", "linear"] = "cosine"
    start: Literal["random", "tokens"] = "random"


@dataclass(frozen=True, slots=True)
class Guidance:
    """What holds in training only, once there are old experts.

    tag: assign tokens to groups; exclusive: old experts are barred for new tokens too [U]; tau: the relative difference
    from which a token is new or old. rsr_temperature: T_s.
    """

    tag: bool = True
    exclusive: bool = True
    tau: float = 0.2
    rsr_temperature: float = 0.1


@dataclass(slots=True)
class Found:
    """What one layer found in one training pass, as means over its real tokens.

    tokens: how many there were, float[]. shares: float[3], of new, old and ambiguous tokens. mass: float[banks], mean
    routing weight of each; None where it was not asked for. rsr, balance: the terms with their graph, None where off.
    """

    tokens: Tensor
    shares: Tensor
    mass: Tensor | None = None
    rsr: Tensor | None = None
    balance: Tensor | None = None


@dataclass(slots=True)
class Pass:
    """What a training pass asks of all layers that share it, and what they found.

    A layer that is computed once more while gradients are formed (checkpointing without re-entrance) does the same
    again, and reports nothing: ``recording`` is over by then. So the terms that join the loss are those of the
    first computation, whose graph the checkpoint knows how to fill.

    step: number of the update, which dropout is drawn from.
    context: that of a language network (``valid``, ``again``: ``models/language.py``), None where all tokens are real.
    """

    regularised: bool = False
    balanced: bool = False
    watched: bool = False
    recording: bool = False
    step: int = 0
    context: Any = None
    found: dict[int, list[Found]] = field(default_factory=dict)

    def real(self, x: Tensor) -> Tensor | None:
        """bool[N] for x float[B, T, d]; None where all tokens are real, or x has no axis of tokens."""
        mask = None if self.context is None or x.dim() != 3 else self.context.valid(x.shape[0], x.shape[1])
        return None if mask is None else mask.reshape(-1)

    def record(self, number: int, found: Found) -> None:
        if self.recording and not (self.context is not None and self.context.again):
            self.found.setdefault(number, []).append(found)


def joined(found: list[Found]) -> Found:
    """The passes of one layer as one: means over all their tokens (of ``balance``, a product of means, the mean)."""
    if len(found) == 1:
        return found[0]
    tokens = torch.stack([each.tokens for each in found])
    share = tokens / tokens.sum().clamp(min=1)

    def mean(values: list[Tensor | None]) -> Tensor | None:
        there = [value for value in values if value is not None]
        return torch.tensordot(share, torch.stack(there), 1) if there else None

    shares = mean([each.shares for each in found])
    assert shares is not None
    return Found(
        tokens.sum(),
        shares,
        mean([each.mass for each in found]),
        mean([each.rsr for each in found]),
        mean([each.balance for each in found]),
    )


class ExpertLinear(nn.Module):
    """A linear layer ``base`` (of either kind, see ``models/named.py``), frozen, and its experts: x float[..., d_in] to
    float[..., d_out].

    number: of the layer among those that share a ``Pass``. experts, rank: of one task's bank. Without ``guidance``
    (moe-lora, inc-moe-lora) tokens are grouped for statistics only.
    """

    old_a: Tensor
    old_b: Tensor
    old_router: Tensor
    old_unit: Tensor

    def __init__(
        self,
        base: nn.Module,
        number: int = 0,
        *,
        experts: int = 16,
        rank: int = 4,
        alpha: float = 128.0,
        dropout: float = 0.0,
        routing: Routing | None = None,
        guidance: Guidance | None = None,
        shared: Pass | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.in_features, self.out_features = sizes(base)
        self.number, self.experts, self.rank, self.seed = number, experts, rank, seed
        self.scale, self.dropout = alpha / (experts * rank), dropout
        self.routing = Routing() if routing is None else routing
        self.guidance = Guidance(tag=False) if guidance is None else guidance
        self.shared = Pass() if shared is None else shared
        self._kept: tuple[Any, tuple[Tensor, Tensor, Tensor]] | None
        self.resize(0)
        self.new_a = nn.Parameter(self.weight.new_empty(experts * rank, self.in_features))
        self.new_b = nn.Parameter(self.weight.new_empty(experts * rank, self.out_features))
        self.new_router = nn.Parameter(self.weight.new_empty(experts, self.in_features))
        self._draw()

    @property
    def weight(self) -> Tensor:
        """That of the frozen layer: transformers ask it for its type."""
        return self.base.get_parameter("weight")

    # --- growth -------------------------------------------------------------------------------------------------

    @property
    def banks(self) -> int:
        """Task banks, the new one included."""
        return len(self.old_router) // self.experts + 1

    def resize(self, banks: int) -> None:
        """Room for so many old banks, all zero: before a state is loaded."""
        rows = banks * self.experts
        self.register_buffer("old_a", self.weight.new_zeros(rows * self.rank, self.in_features))
        self.register_buffer("old_b", self.weight.new_zeros(rows * self.rank, self.out_features))
        self.register_buffer("old_router", self.weight.new_zeros(rows, self.in_features))
        self._norm()

    def grow(self) -> None:
        """Fold the new bank into the old one, bit for bit and in order of time, and begin another."""
        with torch.no_grad():
            self.old_a = torch.cat([self.old_a, self.new_a])
            self.old_b = torch.cat([self.old_b, self.new_b])
            self.old_router = torch.cat([self.old_router, self.new_router])
            self._draw()
        self._norm()

    def _draw(self) -> None:
        """A and P uniform within 1 / sqrt(d_in) (Kaiming, a = sqrt 5), B = 0 [U], from (seed, layer, bank) alone."""
        generator = torch.Generator().manual_seed((self.seed * 1_009 + self.number) * 4_099 + self.banks)
        edge = self.in_features**-0.5
        with torch.no_grad():
            for weight in (self.new_a, self.new_router):
                weight.copy_((torch.rand(weight.shape, generator=generator) * 2 - 1) * edge)
            self.new_b.zero_()
        self.placed = self.routing.start == "random"

    def _place(self, tokens: Tensor, real: Tensor | None) -> None:
        """The new router's rows at the first real tokens that the bank learns from, those of the first piece where a
        batch goes in pieces. Nothing of it is kept for the gradient: a repeated pass does not do it again."""
        with torch.no_grad():
            first = tokens if real is None else tokens[real]
            self.new_router.copy_(router_rows(first, self.old_unit, self.experts))
        self.placed = True

    def _norm(self) -> None:
        """The old router's directions, once for every task; what was kept of other banks is no longer true."""
        self._kept = None
        self.register_buffer("old_unit", unit(self.old_router), persistent=False)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._norm()

    # --- the layer ----------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        y = self.beneath(x)
        tokens = x.reshape(-1, x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            out = self._trained(tokens, self.shared.real(x), y.dtype) if self.training else self._plain(tokens, y.dtype)
        return y + out.view(y.shape)

    def beneath(self, x: Tensor) -> Tensor:
        """What the frozen layer says."""
        base = self.base
        if isinstance(base, nn.Linear) and type(base) in PLAIN and not torch.is_autocast_enabled(x.device.type):
            return frozen_linear(x, base.weight, base.bias)
        y: Tensor = base(x)
        return y

    def scores(self, tokens: Tensor) -> Tensor:
        """float32[N, E] before any guidance, old experts first."""
        if self.routing.kind == "cosine":
            return cosine_scores(tokens, self.old_unit, self.new_router)
        return F.linear(tokens.float(), torch.cat([self.old_router, self.new_router]).float())

    def weights(self, scores: Tensor) -> Tensor:
        """float32[N, E], rows sum to 1."""
        return routing(scores, self.routing.top_k, self.routing.temperature)

    def _plain(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """The function of a layer that learns nothing just now; the bank as one, kept until a weight moves."""
        if torch.is_grad_enabled():
            w = self.weights(self.scores(tokens))
            return self.mixed(tokens.to(dtype), w, "both")
        a, b, directions = self._whole(dtype)
        if self.routing.kind == "cosine":
            scores = cosine_scores(tokens, directions, None)
        else:
            scores = F.linear(tokens.float(), directions)
        w = (self.weights(scores) * self.scale).to(dtype)
        return product(_weighted(product(tokens.to(dtype), a.t()), w).flatten(1), b)

    def _trained(self, tokens: Tensor, real: Tensor | None, dtype: torch.dtype) -> Tensor:
        self._kept = None
        if not self.placed:
            self._place(tokens, real)
        scores, old = self.scores(tokens), len(self.old_router)
        if not old:
            w = self.weights(scores)
            self._report(scores, w, None, real)
            return self.mixed(self._dropped(tokens, dtype), w, "both")
        rules = self.guidance
        seen = scores.detach()
        groups = token_groups(seen[:, :old].amax(1), seen[:, old:].amax(1), rules.tau)
        if not rules.tag or not rules.exclusive:
            given = guided(scores, old, groups.new, exclusive=False) if rules.tag else scores
            w = self.weights(given)
            self._report(scores, w, groups, real)
            return self.mixed(self._dropped(tokens, dtype), w, "both")
        return self._sorted(tokens, scores, groups, real, dtype)

    def _sorted(
        self, tokens: Tensor, scores: Tensor, groups: TokenGroups, real: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """Exclusive TAG: new tokens meet the new bank, all others the old one, each group in products of its own."""
        old, new = len(self.old_router), groups.new
        x = self._dropped(tokens, dtype)
        parts, order = [], []
        mass = scores.new_zeros(len(tokens), scores.shape[1]) if self.shared.watched else None
        for bank, index, columns in (
            ("new", new.nonzero()[:, 0], slice(old, None)),
            ("old", (~new).nonzero()[:, 0], slice(0, old)),
        ):
            w = self.weights(scores.index_select(0, index)[:, columns])
            parts.append(self.mixed(x.index_select(0, index), w, bank))
            order.append(index)
            if mass is not None:
                mass[index, columns] = w.detach()
        self._report(scores, mass, groups, real)
        out = x.new_empty(len(x), self.out_features)
        return out.index_copy(0, torch.cat(order), torch.cat(parts))

    def mixed(self, x: Tensor, w: Tensor, bank: str) -> Tensor:
        """alpha / r_task [(x A^T) * w] B of the old bank, the new one, or both as one."""
        w = (w * self.scale).to(x.dtype)
        old = (None, None) if bank == "new" or self.banks == 1 else (self.old_a.to(x.dtype), self.old_b.to(x.dtype))
        new = (None, None) if bank == "old" else (self.new_a.to(x.dtype), self.new_b.to(x.dtype))
        out: Tensor = _Experts.apply(x, w, *old, *new)
        return out

    def _dropped(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """The input of A; the router's stays whole [U]. The mask depends on (seed, layer, update) alone."""
        x = tokens.to(dtype)
        if not self.dropout:
            return x
        generator = torch.Generator(x.device)
        generator.manual_seed((self.seed * 1_009 + self.number) * 1_000_003 + self.shared.step)
        kept = torch.rand(x.shape, generator=generator, device=x.device) >= self.dropout
        return x * kept / (1 - self.dropout)

    def _whole(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """A, B and the router's rows of all experts, made anew where a weight has moved since, as its version tells."""
        tensors = (self.old_a, self.new_a, self.old_b, self.new_b, self.old_router, self.new_router)
        key = (dtype, *((t.data_ptr(), t._version) for t in tensors))
        if self._kept is None or self._kept[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                a, b = torch.cat(tensors[:2]).to(dtype), torch.cat(tensors[2:4]).to(dtype)
                cosine = self.routing.kind == "cosine"
                rows = (self.old_unit, unit(self.new_router)) if cosine else tensors[4:]
                self._kept = key, (a, b, torch.cat(rows).float())
        return self._kept[1]

    def _report(self, scores: Tensor, w: Tensor | None, groups: TokenGroups | None, real: Tensor | None) -> None:
        """Terms for the loss and figures for whoever watches, of real tokens."""
        shared, old, rules = self.shared, len(self.old_router), self.guidance
        mean = _Mean(real)
        if groups is None:
            new_tokens = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
            shares = scores.new_tensor([1.0, 0.0, 0.0])
        else:
            new_tokens = groups.new
            shares = mean(torch.stack([groups.new, groups.old, groups.ambiguous], 1).float())
        found = Found(scores.new_tensor(len(scores)) if real is None else real.sum().to(scores.dtype), shares)
        if shared.watched and w is not None:
            found.mass = mean(w.detach()).view(-1, self.experts).sum(1)
        if shared.regularised and old:
            terms = routing_score_terms(scores, old, self.routing.top_k, rules.rsr_temperature)
            found.rsr = mean(terms[0] + terms[1])
        if shared.balanced:
            counted = new_tokens if real is None else new_tokens & real
            found.balance = balance(scores[:, old:], self.routing.temperature, counted)
        shared.record(self.number, found)


class _Mean:
    """Means over the tokens of float[N, ...] that are real."""

    def __init__(self, real: Tensor | None) -> None:
        self.share = None if real is None else real.float() / real.sum().clamp(min=1)

    def __call__(self, values: Tensor) -> Tensor:
        return values.mean(0) if self.share is None else self.share @ values.float()


class _Experts(torch.autograd.Function):
    """y = [(x A^T) * w] B over old and new experts as one bank; gradients for x, w and the new experts only."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, old_a: Tensor | None, old_b: Tensor | None, *new: Tensor | None
    ) -> Tensor:
        a, b = _joined(old_a, new[0]), _joined(old_b, new[1])
        h = product(x, a.t())
        ctx.save_for_backward(x, w, a, b, h)
        ctx.first = None if new[0] is None else len(a) - len(new[0])
        return product(_weighted(h, w).flatten(1), b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, w, a, b, h = ctx.saved_tensors
        (grad,) = grads
        through = product(grad, b.t()).view(*w.shape, h.shape[1] // w.shape[1])
        of_w = (through * h.view(through.shape)).sum(2) if ctx.needs_input_grad[1] else None
        of_h = (through * w[:, :, None]).flatten(1)
        of_x = product(of_h, a) if ctx.needs_input_grad[0] else None
        if ctx.first is None:
            return of_x, of_w, None, None, None, None
        first, experts = ctx.first, ctx.first // through.shape[2]
        weighted = _weighted(h[:, first:], w[:, experts:]).flatten(1)
        return of_x, of_w, None, None, product(of_h[:, first:].t(), x), product(weighted.t(), grad)


def _weighted(h: Tensor, w: Tensor) -> Tensor:
    """float[N, E, rank]: each expert's part of h float[N, R] times its weight."""
    return h.unflatten(1, (w.shape[1], h.shape[1] // w.shape[1])) * w[:, :, None]


def _joined(old: Tensor | None, new: Tensor | None) -> Tensor:
    """Both along the first axis."""
    if old is None or new is None:
        there = new if old is None else old
        assert there is not None
        return there
    return torch.cat([old, new])
