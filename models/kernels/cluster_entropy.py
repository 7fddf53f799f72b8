"""The entropy of the masses of clusters of entries, and its slope, in one pass over the logits.

With p = softmax(u) over M entries, q_k the mass of cluster k, a(i) the cluster of entry i,

    H_c = -sum_k q_k ln q_k,   H = -sum_i p_i ln p_i,   value = H_c + within (H - H_c),
    slope_i = d value / d u_i = -p_i ((1 - within) (ln q_a(i) + H_c) + within (ln p_i + H)).

Source of the closed form: the derivative of the entropy through the softmax; see ``models.cluster_entropy``. Entries of
-inf have no mass and no slope; a row without any other has value 0.

``path``: "reference" is the contract, ln q as the log-sum-exp of each cluster, in any type, also for entries that are
shared among clusters. "compiled" (CPU, float32) takes three passes over a row, with an exponential that runs in
vectors; masses below e^-87 of the row's largest count as none. "triton" (GPU; float32, bfloat16): one program a row,
up to 128 clusters. Left out: by device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..compiled import compiled
from .selection import choose

Path = Literal["reference", "compiled", "triton"]

MOST_CLUSTERS = 128
"""More have no kernel on a GPU: a program compares each entry's cluster with all."""


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """Which entries are in which cluster; built once. ids: int64[M]; order: int64[M], the entries by rising cluster;
    starts: int64[K + 1], cluster k is order[starts[k]] to order[starts[k + 1] - 1]."""

    ids: Tensor
    order: Tensor
    starts: Tensor

    @classmethod
    def of(cls, ids: Tensor, count: int) -> Clusters:
        """From each entry's cluster, 0 to ``count`` - 1."""
        order = torch.argsort(ids, stable=True)
        return cls(ids, order, torch.searchsorted(ids[order], torch.arange(count + 1, device=ids.device)))


def value_and_slope(
    u: Tensor, clusters: Clusters, within: float = 0.0, path: Path | None = None
) -> tuple[Tensor, Tensor]:
    """The value [...] and slope [..., M] of logits u [..., M]; nothing is recorded for autograd."""
    chosen = path or _fastest(u, clusters)
    if chosen == "reference":
        return reference(u, clusters.ids, None, len(clusters.starts) - 1, within)
    rows = u.detach() if u.dim() == 2 else u.detach().reshape(-1, u.shape[-1])
    if chosen == "compiled":
        value, slope = _on_cpu(rows, clusters, within)
    else:
        launch = _launch_op if torch.compiler.is_compiling() else _launch
        value, slope = launch(rows, clusters.ids, len(clusters.starts) - 1, within)
    if u.dim() != 2:
        value, slope = value.reshape(u.shape[:-1]), slope.reshape(u.shape)
    return value.to(u.dtype), slope.to(u.dtype)


def _fastest(u: Tensor, clusters: Clusters) -> Path:
    if u.dtype == torch.float64 or not u.numel():
        return "reference"
    if u.device.type != "cpu" and len(clusters.starts) - 1 > MOST_CLUSTERS:
        return "reference"
    return choose(None, "cluster_entropy", u, "reference" if torch.compiler.is_compiling() else "compiled", "reference")


# --- the contract ---------------------------------------------------------------------------------------------------


def reference(
    u: Tensor, ids: Tensor | None, shares: Tensor | None, clusters: int, within: float
) -> tuple[Tensor, Tensor]:
    """Value and slope by the formulas; ``shares`` [M, K], instead of ids, spreads entries over clusters."""
    log_p = log_softmax(u)
    p = log_p.exp()
    log_q = finite(log_masses(log_p, ids, shares, clusters))
    entry = log_q[..., ids] if ids is not None else log_q @ _there(shares).to(u.dtype).T
    value = -(p * entry).sum(-1)
    surprise = entry + value[..., None]
    if within:
        log_p = finite(log_p)
        full = -(p * log_p).sum(-1)
        surprise = torch.lerp(surprise, log_p + full[..., None], within)
        value = torch.lerp(value, full, within)
    return value, -p * surprise


def log_softmax(u: Tensor) -> Tensor:
    """As torch's, but all -inf where nothing is left to choose from. The largest logit is taken out first: of the sum
    with it, an error as large as its rounding would stay in every mass."""
    top = u.detach().amax(-1, keepdim=True)
    u = u - torch.where(top == -torch.inf, 0.0, top)
    total = torch.logsumexp(u, -1, keepdim=True)
    return u - torch.where(total == -torch.inf, 0.0, total)


def log_masses(log_p: Tensor, ids: Tensor | None, shares: Tensor | None, clusters: int) -> Tensor:
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


def finite(log: Tensor) -> Tensor:
    """Logarithms of masses; those of nothing become 0, since 0 ln 0 is 0."""
    return torch.where(log == -torch.inf, 0.0, log)


def _there(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


# --- on a CPU -------------------------------------------------------------------------------------------------------

LEAST = np.float32(-87.0)
"""exp of less is taken to be 0: it leaves the normal numbers of single precision."""
SINGLE = np.float32
PER_LN2, LN2_HIGH, LN2_LOW = SINGLE(1 / math.log(2)), SINGLE(0.693359375), SINGLE(-2.12194440e-4)
SERIES = tuple(SINGLE(1 / math.factorial(n)) for n in range(8))


def _on_cpu(u: Tensor, clusters: Clusters, within: float) -> tuple[Tensor, Tensor]:
    u = u.float().contiguous()
    value, slope = torch.empty(len(u)), torch.empty_like(u)
    top = u.amax(1)
    given = (clusters.ids.numpy(), clusters.order.numpy(), clusters.starts.numpy())
    _rows(u.numpy(), top.numpy(), *given, SINGLE(within), value.numpy(), slope.numpy())
    return value, slope


@compiled
def _rows(u: Any, top: Any, ids: Any, order: Any, starts: Any, within: Any, value: Any, slope: Any) -> None:
    """Strict, so that NaN stays NaN; only sums over many entries may be reordered. ``top``: each row's maximum."""
    entries, clusters = u.shape[1], len(starts) - 1
    x, entry = np.empty(entries, np.float32), np.empty(clusters, np.float32)
    scale = np.empty(entries, np.int32)
    for i in range(u.shape[0]):
        p = slope[i]
        if not abs(top[i]) < np.inf:
            value[i] = SINGLE(0) if top[i] < 0 else SINGLE(np.nan)
            for j in range(entries):
                p[j] = value[i]
            continue
        _exponentials(u[i], top[i], x, scale, p)
        total = SINGLE(0)
        for k in range(clusters):
            entry[k] = _sum_at(p, order, starts[k], starts[k + 1])
            total += entry[k]
        part, log_total = SINGLE(1) / total, np.log(total)
        coarse = SINGLE(0)
        for k in range(clusters):
            q = entry[k] * part
            entry[k] = np.log(q) if q > 0 else SINGLE(0)
            coarse -= q * entry[k]
        full = log_total - _product(p, x) * part if within > 0 else coarse
        value[i] = coarse + within * (full - coarse)
        for k in range(clusters):
            entry[k] = -part * ((SINGLE(1) - within) * (entry[k] + coarse) + within * (full - log_total))
        if within > 0:
            for j in range(entries):
                p[j] *= entry[ids[j]] - part * within * x[j]
        else:
            for j in range(entries):
                p[j] *= entry[ids[j]]


@compiled
def _exponentials(u: Any, top: Any, x: Any, scale: Any, found: Any) -> None:
    """x = max(u - top, LEAST), and exp(u - top), 0 below LEAST: 2^n by its bits, and seven terms at |r| <= ln 2 / 2."""
    for j in range(len(u)):
        z = u[j] - top
        z = LEAST if z < LEAST else z
        x[j] = z
        n = np.int32(z * PER_LN2 - SINGLE(0.5))
        r = z - SINGLE(n) * LN2_HIGH - SINGLE(n) * LN2_LOW
        e = SERIES[7]
        e = e * r + SERIES[6]
        e = e * r + SERIES[5]
        e = e * r + SERIES[4]
        e = e * r + SERIES[3]
        e = e * r + SERIES[2]
        e = e * r + SERIES[1]
        e = e * r + SERIES[0]
        found[j] = e
        scale[j] = (n + np.int32(127)) << np.int32(23) if z > LEAST else np.int32(0)
    power = scale.view(np.float32)
    for j in range(len(u)):
        found[j] *= power[j]


@compiled(fastmath=True)
def _sum_at(values: Any, order: Any, begin: int, end: int) -> Any:
    total = SINGLE(0)
    for t in range(begin, end):
        total += values[order[t]]
    return total


@compiled(fastmath=True)
def _product(a: Any, b: Any) -> Any:
    total = SINGLE(0)
    for j in range(len(a)):
        total += a[j] * b[j]
    return total


# --- on a GPU -------------------------------------------------------------------------------------------------------


def _launch(u: Tensor, ids: Tensor, clusters: int, within: float) -> tuple[Tensor, Tensor]:
    """Value float32[R] and slope [R, M], in the type of u."""
    from . import cluster_entropy_triton as kernels

    return kernels.value_and_slope(u, ids, clusters, within)


_launch_op = torch.library.custom_op("driftway::cluster_entropy", _launch, mutates_args=())
"""What a graph that is being compiled holds; run directly, the function saves its dispatch."""


@_launch_op.register_fake
def _(u: Tensor, *_rest: Any) -> tuple[Tensor, Tensor]:
    return u.new_empty(len(u), dtype=torch.float32), torch.empty(u.shape, dtype=u.dtype, device=u.device)
