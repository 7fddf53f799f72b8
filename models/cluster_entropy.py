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

from typing import Any, Literal

import torch
from torch import Tensor, nn

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
        self.register_buffer("cluster_ids", cluster_ids)
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
        values: Tensor = _ClosedForm.apply(self._u(logits), self.cluster_ids, self.assign, self.clusters, self.within)[
            0
        ]
        if self.reduction == "none":
            return values
        return values.mean() if self.reduction == "mean" else values.sum()

    def value_and_slope(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The objective of each row, [...], and its slope by the logits, [..., M]; nothing is recorded for autograd."""
        u = self._u(logits.detach())
        value, slope = _ClosedForm.forward(u, self.cluster_ids, self.assign, self.clusters, self.within)
        return value, slope if self.temperature == 1 else slope / self.temperature

    def masses(self, logits: Tensor) -> Tensor:
        """q, [..., K]: the probability of each cluster; differentiable only in the ordinary way, term by term."""
        log_p = _log_softmax(self._u(logits))
        return _log_masses(log_p, self.cluster_ids, self.assign, self.clusters).exp()

    def _u(self, logits: Tensor) -> Tensor:
        u = logits if self.temperature == 1 else logits / self.temperature
        return u if self.prior is None else u + self.prior.to(u.dtype)

    def extra_repr(self) -> str:
        return f"clusters={self.clusters}, temperature={self.temperature}, within={self.within}"


class _ClosedForm(torch.autograd.Function):
    """(H, dH/du) of u [..., M]; the second output is what the backward pass multiplies with."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        u: Tensor, ids: Tensor | None, shares: Tensor | None, clusters: int, within: float
    ) -> tuple[Tensor, Tensor]:
        log_p = _log_softmax(u)
        p = log_p.exp()
        log_q = _finite(_log_masses(log_p, ids, shares, clusters))
        entry = log_q[..., ids] if ids is not None else log_q @ _there(shares).to(u.dtype).T
        value = -(p * entry).sum(-1)
        surprise = entry + value[..., None]
        if within:
            log_p = _finite(log_p)
            full = -(p * log_p).sum(-1)
            surprise = torch.lerp(surprise, log_p + full[..., None], within)
            value = torch.lerp(value, full, within)
        return value, -p * surprise

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG004
        ctx.save_for_backward(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None, None, None]:
        grad, second = grads
        if second is not None:
            raise RuntimeError("cluster entropy has no second derivative")
        (slope,) = ctx.saved_tensors
        return None if grad is None else grad[..., None] * slope, None, None, None, None


def _log_softmax(u: Tensor) -> Tensor:
    """As torch's, but all -inf where nothing is left to choose from."""
    total = torch.logsumexp(u, -1, keepdim=True)
    return u - torch.where(total == -torch.inf, 0.0, total)


def _log_masses(log_p: Tensor, ids: Tensor | None, shares: Tensor | None, clusters: int) -> Tensor:
    """ln q [..., K], -inf for a cluster without mass: the log-sum-exp of each segment, its own maximum taken out."""
    if ids is None:
        return (log_p.exp() @ _there(shares).to(log_p.dtype)).log()
    where = ids.expand(log_p.shape)
    room = (*log_p.shape[:-1], clusters)
    lost = torch.full(room, -torch.inf, dtype=log_p.dtype, device=log_p.device)
    top = torch.scatter_reduce(lost, -1, where, log_p.detach(), "amax")
    top = torch.where(top == -torch.inf, 0.0, top)
    parts = (log_p - top[..., ids]).exp()
    return top + torch.scatter_add(torch.zeros_like(lost), -1, where, parts).log()


def _finite(log: Tensor) -> Tensor:
    """Logarithms of masses; those of nothing become 0, since 0 ln 0 is 0."""
    return torch.where(log == -torch.inf, 0.0, log)


def _there(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def full_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """[...]: -sum_i p_i ln p_i in nats, the objective of Tent (Wang et al., ICLR 2021). Logits may be -inf."""
    log_p = torch.log_softmax(logits / temperature, -1)
    return -(log_p.exp() * _finite(log_p)).sum(-1)


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
    log_masses = _log_masses(torch.log_softmax(log_p[entries], -1), groups[first], None, int(groups.max()) + 1)
    return -(log_masses.exp() * _finite(log_masses)).sum()


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
