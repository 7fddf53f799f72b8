"""Cluster entropy: how torn a model is between kinds of answers, rather than between single answers.

Source: Sima et al., Centaur, arXiv 2503.11650, 2025: the entropy of a planner's scores summed over groups of
trajectories, as the objective of adaptation at test time and as a measure of uncertainty. The paper's idea fits every
model that scores a fixed set of answers with a distance between them. The paper gives no code: the rules of
clustering, the temperature, soft assignments, ``balance`` and ``within`` are our choice.

With p = softmax(z / T) over the entries and q_k the mass of cluster k,

    H_c = -sum_k q_k ln q_k,     dH_c/dz_i = -(p_i / T) (ln q_{a(i)} + H_c),

and H_full = H_c + sum_k q_k H(p within k): the second term, which cluster entropy leaves out, punishes harmless spread
over entries that mean the same.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .kernels.cluster_entropy import Clusters, finite, log_masses, log_softmax, reference, value_and_slope

Reduction = Literal["mean", "sum", "none"]


class ClusterEntropy(nn.Module):
    """H_c + within (H_full - H_c) in nats of logits [..., M]; M entries fall into K clusters, fixed from the start.

    cluster_ids: int64[M], each entry's cluster, from 0 on; clusters may be empty. assign: instead of it, [M, K] of
    non-negative shares whose rows sum to 1. temperature: T above. balance: entries of cluster k count 1 / n_k, so that
    a cluster's size is no prior for it. within: in 0..1, from cluster entropy (0) to the entropy over all entries (1).
    reduction: over the leading axes. Raises ``ValueError`` for values that cannot be, and where all entries are in one
    cluster: the objective would be zero whatever the model says.

    Logits may be -inf (an entry that is ruled out: no mass, no gradient). The gradient is the closed form above;
    second derivatives are refused.

    >>> objective = ClusterEntropy(torch.tensor([0, 0, 1, 1]))
    >>> round(float(objective(torch.tensor([4.0, 2, 1, 1]).log())), 6)
    0.562335
    """

    cluster_ids: Tensor | None
    order: Tensor | None
    starts: Tensor | None
    assign: Tensor | None
    prior: Tensor | None

    def __init__(
        self,
        cluster_ids: Tensor | None = None,
        *,
        assign: Tensor | None = None,
        temperature: float = 1.0,
        balance: bool = False,
        within: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        if (cluster_ids is None) == (assign is None):
            raise ValueError("give either cluster_ids or assign")
        if not temperature > 0 or not 0 <= within <= 1:
            raise ValueError(f"temperature must be above 0 and within in 0..1; they are {temperature} and {within}")
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be mean, sum or none, not {reduction!r}")
        self.temperature, self.within, self.reduction = temperature, within, reduction
        if cluster_ids is not None:
            shares, prior = None, self._hard(cluster_ids)
        else:
            assert assign is not None
            shares, prior = self._soft(assign, balance)
        sorted_by = None if cluster_ids is None else Clusters.of(cluster_ids, self.clusters)
        self.register_buffer("cluster_ids", cluster_ids)
        self.register_buffer("order", None if sorted_by is None else sorted_by.order, persistent=False)
        self.register_buffer("starts", None if sorted_by is None else sorted_by.starts, persistent=False)
        self.register_buffer("assign", shares)
        self.register_buffer("prior", prior if balance else None)

    def _hard(self, ids: Tensor) -> Tensor:
        """ln 1 / n of each entry's cluster."""
        if ids.dim() != 1 or ids.is_floating_point() or not len(ids) or int(ids.min()) < 0:
            raise ValueError("cluster_ids must be whole numbers from 0 on, one per entry")
        sizes = torch.bincount(ids)
        self.clusters = len(sizes)
        self._refuse_one(int((sizes > 0).sum()))
        return -sizes[ids].double().log()

    def _soft(self, assign: Tensor, balance: bool) -> tuple[Tensor, Tensor]:
        """Shares as they are used, and the entries' prior: R_ik / n_k is split into its sum over k and the rest."""
        rows = assign.double().sum(-1) if assign.dim() == 2 else torch.zeros(1)
        if bool((rows - 1).abs().max() > 1e-4) or bool((assign < 0).any()):
            raise ValueError("assign must be [M, K] of shares that are not negative, each row summing to 1")
        sizes = assign.double().sum(0)
        self.clusters = len(sizes)
        self._refuse_one(int((sizes > 0).sum()))
        if not balance:
            return assign, torch.zeros(len(assign))
        weighed = assign.double() / sizes.clamp(min=torch.finfo(torch.float64).tiny)
        total = weighed.sum(-1)
        return (weighed / total[:, None]).to(assign.dtype), total.log()

    @staticmethod
    def _refuse_one(used: int) -> None:
        if used < 2:
            raise ValueError("all entries are in one cluster: its entropy is zero and says nothing")

    def forward(self, logits: Tensor) -> Tensor:
        """The objective: a scalar, or [...] with ``reduction="none"``."""
        u, measure = self._u(logits), self._measure(self.reduction)
        value: Tensor = _ClosedForm.apply(u, measure)[0] if _inside_transform() else _Plain.apply(u, measure)
        return value

    def value_and_slope(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The objective of each row, [...], and its slope by the logits, [..., M]; nothing is recorded for autograd."""
        u = self._u(logits.detach())
        value, slope = _ClosedForm.forward(u, self._measure("none"))
        return value, slope if self.temperature == 1 else slope / self.temperature

    def masses(self, logits: Tensor) -> Tensor:
        """q, [..., K]: the probability of each cluster; differentiable only in the ordinary way, term by term."""
        log_p = log_softmax(self._u(logits))
        return log_masses(log_p, self.cluster_ids, self.assign, self.clusters).exp()

    def _measure(self, reduction: Reduction) -> _Measure:
        return _Measure(self.cluster_ids, self.order, self.starts, self.assign, self.clusters, self.within, reduction)

    def _u(self, logits: Tensor) -> Tensor:
        u = logits if self.temperature == 1 else logits / self.temperature
        return u if self.prior is None else u + self.prior.to(u.dtype)

    def extra_repr(self) -> str:
        return f"clusters={self.clusters}, temperature={self.temperature}, within={self.within}"


class _Measure(NamedTuple):
    """What ``ClusterEntropy`` computes, beside the logits."""

    ids: Tensor | None
    order: Tensor | None
    starts: Tensor | None
    shares: Tensor | None
    clusters: int
    within: float
    reduction: Reduction


def _reduced(value: Tensor, slope: Tensor, reduction: Reduction, lead: int = 0) -> tuple[Tensor, Tensor]:
    """Over all axes of ``value`` but the first ``lead``."""
    if reduction == "none" or value.dim() == lead:
        return value, slope
    axes = tuple(range(lead, value.dim()))
    if reduction == "sum":
        return value.sum(axes), slope
    mean = value.mean(axes)
    return mean, slope * (max(1, mean.numel()) / max(1, value.numel()))


def _inside_transform() -> bool:
    """Whether ``torch.func`` is at work; only then is the longer way through it taken."""
    return bool(torch._C._are_functorch_transforms_active())


class _Plain(torch.autograd.Function):
    """H of u [..., M], outside of ``torch.func``."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, measure: _Measure) -> Tensor:
        value, slope = _ClosedForm.forward(u, measure)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        if not torch.compiler.is_compiling():
            if torch.is_grad_enabled():
                raise RuntimeError("cluster entropy has no second derivative; leave create_graph out")
            if not grad.dim() and grad.device.type == "cpu" and float(grad) == 1:
                return slope, None
        return grad[..., None] * slope, None


class _ClosedForm(torch.autograd.Function):
    """(H, dH/du) of u [..., M]; the second output is what the backward pass multiplies with."""

    @staticmethod
    def forward(u: Tensor, measure: _Measure) -> tuple[Tensor, Tensor]:
        ids, order, starts, shares, clusters, within, reduction = measure
        if ids is None or order is None or starts is None:
            return _reduced(*reference(u, ids, shares, clusters, within), reduction)
        return _reduced(*value_and_slope(u, Clusters(ids, order, starts), within), reduction)

    @staticmethod
    def vmap(_info: Any, in_dims: tuple[int | None, ...], u: Tensor, measure: _Measure) -> tuple[Any, tuple[int, int]]:
        """Rows are apart from each other, whatever axes they lie along; only the reduction must leave this one."""
        assert in_dims[0] is not None
        value, slope = _ClosedForm.apply(u.movedim(in_dims[0], 0), measure._replace(reduction="none"))
        return _reduced(value, slope, measure.reduction, lead=1), (0, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG004
        ctx.save_for_backward(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad, second = grads
        if second is not None:
            raise RuntimeError("cluster entropy has no second derivative")
        (slope,) = ctx.saved_tensors
        return None if grad is None else grad[..., None] * slope, None


def full_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """[...]: -sum_i p_i ln p_i in nats, the objective of Tent (Wang et al., ICLR 2021). Logits may be -inf."""
    log_p = torch.log_softmax(logits / temperature, -1)
    return -(log_p.exp() * finite(log_p)).sum(-1)


def uniform_divergence(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """[...]: KL(U || p) = -ln M - mean ln p over the M entries that are not ruled out; to be maximised.

    It grows as the model gets sure; its gradient is (p_i - 1 / M) / T.
    """
    log_p = torch.log_softmax(logits / temperature, -1)
    open_to = logits > -torch.inf
    count = open_to.sum(-1).to(log_p.dtype)
    return -count.log() - torch.where(open_to, log_p, 0.0).sum(-1) / count


def semantic_entropy(
    logits: Tensor,
    distance: Tensor,
    *,
    radius: float = 2.0,
    draws: int = 64,
    temperature: float = 1.0,
    by: Literal["frequency", "mass"] = "frequency",
    generator: torch.Generator | None = None,
) -> Tensor:
    """The entropy, in nats, of groups among drawn entries (after Kuhn et al., ICLR 2023; formulas are our choice).

    logits: [M]. distance: [M, M]. ``draws`` entries are drawn from p with replacement and grouped greedily: a draw
    joins the first group whose first member is nearer than ``radius``. by: the groups' shares of the draws
    (no gradient), or the masses p of their distinct entries, renormalised (has a gradient).
    """
    log_p = torch.log_softmax(logits / temperature, -1)
    drawn = torch.multinomial(log_p.detach().exp(), draws, replacement=True, generator=generator)
    groups = _greedy_groups(drawn, distance, radius)
    if by == "frequency":
        shares = torch.bincount(groups).to(log_p.dtype) / draws
        return -(shares * shares.log()).sum()
    entries, first = _first_of_each(drawn)
    log_q = log_masses(torch.log_softmax(log_p[entries], -1), groups[first], None, int(groups.max()) + 1)
    return -(log_q.exp() * finite(log_q)).sum()


def _first_of_each(drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct entries, and a place where each was drawn (all draws of an entry are in one group)."""
    entries, inverse = torch.unique(drawn, return_inverse=True)
    places = torch.empty_like(entries)
    places[inverse] = torch.arange(len(drawn), device=drawn.device)
    return entries, places


def _greedy_groups(drawn: Tensor, distance: Tensor, radius: float) -> Tensor:
    near = (distance[drawn][:, drawn] < radius).tolist()
    heads: list[int] = []
    groups = []
    for i, row in enumerate(near):
        group = next((g for g, head in enumerate(heads) if row[head]), len(heads))
        if group == len(heads):
            heads.append(i)
        groups.append(group)
    return torch.tensor(groups, device=drawn.device)
