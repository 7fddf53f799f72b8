"""Batch normalisation whose statistics balance groups of samples: forward, running statistics and loss in one op.

Let a be [N, C, ...] with P positions a channel and every sample in one of K groups, N_k samples in group k:

    phi_k  = exp(psi_k),   pi_k = (phi_k + N_k) / sum_j (phi_j + N_j),   w_i = pi_k / N_k  for i in group k
    mean   = sum_i w_i mean_P(a_i),   var = sum_i w_i mean_P (a_i - mean)^2
    y      = gamma (a - mean) / sqrt(var + eps) + beta
    running_mean <- (1 - rate) running_mean + rate mean,   running_var likewise                   (no gradient)
    loss   = mean_C (mean - running_mean)^2 + mean_C (var - running_var)^2     (running: updated, constants)

Source: Lyu et al., Overcoming Recency Bias of Normalization Statistics in Continual Learning: Balance and Adaptation,
NeurIPS 2023, and the authors' code. j runs over the groups that are present in the batch (ours), or over all groups
seen (``reference=True``, the authors' code: with groups absent the weights sum to less than 1 and the statistics shrink
towards 0). Without groups w_i = 1/N. The loss is held at ``clip`` (ours): beyond it value and gradient shrink by the
same factor.

``balanced_batch_norm_plain`` is the contract, ordinary autograd. ``balanced_batch_norm`` does the same by the closed
form of the gradient: compiled on a CPU, from torch's own batch norm where the weights are equal, a few torch calls
elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import balanced_batch_norm_compiled as loops
from .selection import choose, ops_on


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """The group of each sample of a batch: ids int64[N], counts int64[seen], and how many groups are present."""

    ids: Tensor
    counts: Tensor
    present: int

    @classmethod
    def of(cls, ids: Any, seen: int = 0, device: torch.device | str = "cpu") -> Groups:
        """From ids >= 0 (array, list or tensor); ``seen`` groups are known at least."""
        numbers = torch.as_tensor(ids, dtype=torch.int64, device="cpu")
        counts = torch.bincount(numbers, minlength=seen)
        return cls(numbers.to(device), counts.to(device), int(torch.count_nonzero(counts)))


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """What the op reads and moves besides its inputs: float[C] twice, and the rate of this update (0: they stay)."""

    mean: Tensor
    var: Tensor
    rate: float | Tensor
    eps: float = 1e-5
    clip: float = math.inf


def balanced_batch_norm(
    a: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    psi: Tensor,
    groups: Groups | None,
    running: Running,
    *,
    reference: bool = False,
    path: str | None = None,
) -> tuple[Tensor, Tensor]:
    """y, like ``a``, and the loss, a scalar; moves ``running``.

    a: float[N, C, ...]; gamma, beta: float[C] or None; psi: float[at least as many as groups seen]. ``path`` is one of
    "plain", "torch", "native" (equal weights only), "compiled" (CPU only) and "triton" (GPU; no float64); left out, the
    fastest that can, and inside ``torch.compile`` on a CPU the plain formulas, which it fuses itself.
    """
    chosen = path or _fastest(a, groups, reference)
    if a.dtype in (torch.float16, torch.bfloat16) and chosen != "triton":
        y, loss = balanced_batch_norm(a.float(), gamma, beta, psi, groups, running, reference=reference, path=path)
        return y.to(a.dtype), loss
    if chosen == "plain":
        return balanced_batch_norm_plain(a, gamma, beta, psi, groups, running, reference=reference)
    scale = a.new_ones(a.shape[1]) if gamma is None else gamma
    shift = a.new_zeros(a.shape[1]) if beta is None else beta
    if chosen == "triton":
        given = (None, None) if groups is None else (groups.ids, groups.counts)
        rates, rate = (running.rate, 0.0) if isinstance(running.rate, Tensor) else (None, running.rate)
        moved = (running.mean, running.var, rates, rate, running.eps, running.clip)
        return _Triton.apply(a, scale, shift, psi, *given, *moved, reference)
    return _OPS[chosen].apply(a, scale, shift, psi, groups, running, reference)


def _fastest(a: Tensor, groups: Groups | None, reference: bool) -> str:
    if not ops_on():
        return "plain"
    rest = "native" if equal_weights(groups, reference) else "torch"
    if a.dtype == torch.float64 and a.device.type != "cpu":
        return rest
    return choose(None, "balanced_batch_norm", a, "plain" if torch.compiler.is_compiling() else "compiled", rest)


def equal_weights(groups: Groups | None, reference: bool) -> bool:
    """Whether every sample counts the same whatever psi is: no groups, or one only."""
    return groups is None or (len(groups.counts) if reference else groups.present) == 1


def shares(psi: Tensor, groups: Groups, reference: bool) -> tuple[Tensor, Tensor]:
    """pi_k and phi_k / Z, both [seen], safe for large psi: numerator and denominator are scaled by the same exp."""
    seen = len(groups.counts)
    known = psi[:seen]
    counted = torch.ones_like(groups.counts, dtype=torch.bool) if reference else groups.counts > 0
    top = known.detach()[counted].max().clamp(min=0)
    phi = (known - top).masked_fill(~counted, -math.inf).exp()
    total = phi + torch.exp(-top) * groups.counts
    z = total.sum()
    return total / z, phi / z


def sample_weights(psi: Tensor, groups: Groups | None, n: int, reference: bool) -> Tensor:
    """w [N]."""
    if groups is None:
        return psi.new_full((n,), 1 / n)
    pi, _ = shares(psi, groups, reference)
    return (pi / groups.counts.clamp(min=1))[groups.ids]


def balanced_batch_norm_plain(
    a: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    psi: Tensor,
    groups: Groups | None,
    running: Running,
    *,
    reference: bool = False,
) -> tuple[Tensor, Tensor]:
    """The op in the words of its formulas, differentiated by autograd."""
    w = sample_weights(psi, groups, len(a), reference)
    x_NCP = a.flatten(2) if a.dim() > 2 else a.unsqueeze(2)
    mean = w @ x_NCP.mean(2)
    var = w @ (x_NCP - mean[:, None]).square().mean(2)
    y = (x_NCP - mean[:, None]) / (var[:, None] + running.eps).sqrt()
    if gamma is not None:
        y = y * gamma[:, None]
    if beta is not None:
        y = y + beta[:, None]
    _move(running, mean, var)
    loss = (mean - running.mean.clone()).square().mean() + (var - running.var.clone()).square().mean()
    return y.reshape(a.shape), loss * _damping(loss.detach(), running.clip)


def _move(running: Running, mean: Tensor, var: Tensor) -> None:
    kind = running.mean.dtype
    rate = running.rate.to(kind) if isinstance(running.rate, Tensor) else running.rate
    with torch.no_grad():
        running.mean.lerp_(mean.to(kind), rate)
        running.var.lerp_(var.to(kind), rate)


def _damping(loss: Tensor, clip: float) -> Tensor:
    """min(1, clip / loss), and 1 for a loss of 0."""
    return torch.where(loss > clip, clip / loss, 1.0)


def _pull(running: Running, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Move the running statistics; d loss / d (mean, var) [2, C], and the loss."""
    _move(running, mean, var)
    apart = torch.stack((mean - running.mean, var - running.var))
    loss = apart.square().mean(1).sum()
    damping = _damping(loss, running.clip)
    return apart * (damping * 2 / len(mean)), loss * damping


def _wide(values: Tensor, a: Tensor) -> Tensor:
    """[C] or [N, C] as [1 or N, C, 1, ...], to stand beside a."""
    return values.reshape(-1, a.shape[1], *(1,) * (a.dim() - 2))


def _over_positions(a: Tensor) -> Tensor:
    """The mean of each channel of each sample, [N, C]."""
    return a.flatten(2).mean(2) if a.dim() > 2 else a


def _sums(dy: Tensor, a: Tensor, gamma: Tensor, mean: Tensor, inverse: Tensor, which: list[bool]) -> Any:
    """(da, dgamma, dbeta) of torch's batch norm, those that ``which`` asks for; eps is in ``inverse`` already."""
    return torch.ops.aten.native_batch_norm_backward(dy, a, gamma, None, None, mean, inverse, True, 0.0, which)


class _Native(torch.autograd.Function):
    """Equal weights: torch's own batch norm and its gradient, and beside it that of the loss."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, gamma: Tensor, beta: Tensor, _psi: Tensor, _groups: Any, running: Running, _reference: bool
    ) -> tuple[Tensor, Tensor]:
        y, mean, inverse = torch.native_batch_norm(a, gamma, beta, None, None, True, 0.0, running.eps)
        var = (inverse.pow(-2) - running.eps).clamp(min=0)
        pull, loss = _pull(running, mean, var)
        ctx.save_for_backward(a, gamma, mean, inverse, pull)
        ctx.set_materialize_grads(False)
        return y, loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dloss: Tensor | None) -> tuple[Tensor | None, ...]:
        a, gamma, mean, inverse, pull = ctx.saved_tensors
        dy = torch.zeros_like(a) if dy is None else dy
        da, dgamma, dbeta = _sums(dy, a, gamma, mean, inverse, [True, True, True])
        if dloss is not None:
            to_mean, to_var = pull * (dloss * a.shape[1] / a.numel())
            da = da + torch.addcmul(_wide(to_mean - 2 * to_var * mean, a), a, _wide(2 * to_var, a))
        return da, dgamma, dbeta, None, None, None, None


class _Torch(torch.autograd.Function):
    """Any weights, device and layout: few passes over a, each one torch call."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, gamma: Tensor, beta: Tensor, psi: Tensor, groups: Any, running: Running, reference: bool
    ) -> tuple[Tensor, Tensor]:
        w = sample_weights(psi, groups, len(a), reference)
        m = _over_positions(a)
        mean = w @ m
        centred = a - _wide(mean, a)
        q = _over_positions(centred.square())
        var = w @ q
        inverse = (var + running.eps).rsqrt()
        pull, loss = _pull(running, mean, var)
        ctx.save_for_backward(a, gamma, psi, w, m, q, mean, inverse, pull)
        ctx.groups, ctx.reference = groups, reference
        ctx.set_materialize_grads(False)
        return torch.addcmul(_wide(beta, a), centred, _wide(gamma * inverse, a)), loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dloss: Tensor | None) -> tuple[Tensor | None, ...]:
        a, gamma, psi, w, m, q, mean, inverse, pull = ctx.saved_tensors
        dy = torch.zeros_like(a) if dy is None else dy
        _, dgamma, dbeta = _sums(dy, a, gamma, mean, inverse, [False, True, True])
        to_mean, to_var = -gamma * dbeta * inverse, -gamma * dgamma * inverse.square() / 2
        if dloss is not None:
            to_mean, to_var = to_mean + dloss * pull[0], to_var + dloss * pull[1]
        to_mean = to_mean - 2 * to_var * mean * (1 - w.sum())
        each = w[:, None] * (len(a) * a.shape[1] / a.numel())
        da = torch.addcmul(_wide(each * (to_mean - 2 * to_var * mean), a), a, _wide(each * 2 * to_var, a))
        da = torch.addcmul(da, dy, _wide(gamma * inverse, a))
        dpsi = None
        if ctx.groups is not None and ctx.needs_input_grad[3]:
            counts = ctx.groups.counts
            pi, slope = shares(psi, ctx.groups, ctx.reference)
            h = torch.zeros_like(pi).index_add_(0, ctx.groups.ids, m @ to_mean + q @ to_var) / counts.clamp(min=1)
            dpsi = torch.zeros_like(psi)
            dpsi[: len(counts)] = slope * (h - pi @ h)
        return da, dgamma, dbeta, dpsi, None, None, None


class _Compiled(torch.autograd.Function):
    """On a CPU: one call forward and one back, for maps stored channel by channel or pixel by pixel."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, gamma: Tensor, beta: Tensor, psi: Tensor, groups: Any, running: Running, reference: bool
    ) -> tuple[Tensor, Tensor]:
        by_pixel = _by_pixel(a)
        a = _packed(a, by_pixel)
        y = torch.empty_like(a)
        n, channels = a.shape[:2]
        w, rest, balance = _weights(psi, groups, n, reference)
        m, q = np.empty((2, n, channels) if by_pixel else (2, channels, n), running.mean.numpy().dtype)
        table = np.empty((4, channels))
        loss = (loops.forward_pixels if by_pixel else loops.forward_planes)(
            _array(a, by_pixel), w, rest, gamma.detach().numpy(), beta.detach().numpy(), running.mean.numpy(),
            running.var.numpy(), float(running.rate), running.eps, m, q, table, _array(y, by_pixel),
        )  # fmt: skip
        damping = running.clip / loss if loss > running.clip else 1.0
        ctx.save_for_backward(a, gamma, psi)
        ctx.kept = by_pixel, groups, w, rest, balance, m, q, table, damping
        ctx.set_materialize_grads(False)
        return y, a.new_full((), loss * damping)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dloss: Tensor | None) -> tuple[Tensor | None, ...]:
        a, gamma, psi = ctx.saved_tensors
        by_pixel, groups, w, rest, balance, m, q, table, damping = ctx.kept
        dy = torch.zeros_like(a) if dy is None else _packed(dy, by_pixel)
        da, dgamma, dbeta, dpsi = torch.empty_like(a), torch.empty_like(gamma), torch.empty_like(gamma), None
        dw = np.zeros(len(w))
        (loops.backward_pixels if by_pixel else loops.backward_planes)(
            _array(a, by_pixel), _array(dy, by_pixel), w, rest, gamma.detach().numpy(), m, q, table,
            0.0 if dloss is None else float(dloss) * damping, _array(da, by_pixel), dgamma.numpy(), dbeta.numpy(), dw,
        )  # fmt: skip
        if groups is not None and ctx.needs_input_grad[3]:
            dpsi = torch.zeros_like(psi)
            loops.to_psi(dw, groups.ids.numpy(), groups.counts.numpy(), balance, dpsi.numpy())
        return da, dgamma, dbeta, dpsi, None, None, None


def _weights(
    psi: Tensor, groups: Groups | None, n: int, reference: bool
) -> tuple[NDArray[Any], float, NDArray[Any] | None]:
    """w [N], 1 - their sum, and (pi, phi / Z) [2, seen]."""
    if groups is None:
        return np.full(n, 1 / n), 0.0, None
    w, balance = np.empty(n), np.empty((2, len(groups.counts)))
    rest = loops.weigh(psi.detach().numpy(), groups.ids.numpy(), groups.counts.numpy(), reference, w, balance)
    return w, rest, balance


def _launch_forward(
    a: Tensor, gamma: Tensor, beta: Tensor, psi: Tensor, ids: Tensor | None, counts: Tensor | None,
    running_mean: Tensor, running_var: Tensor, rates: Tensor | None, rate: float, eps: float, clip: float,
    reference: bool, by_pixel: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """y, the loss, and what is kept for the way back."""
    from . import balanced_batch_norm_triton as kernels

    y, loss, kept = kernels.forward(
        a, gamma, beta, psi, ids, counts, running_mean, running_var, rates, rate, eps, clip, reference, by_pixel
    )
    return y, loss, *kept


def _launch_backward(
    a: Tensor, dy: Tensor, gamma: Tensor, psi: Tensor, ids: Tensor | None, counts: Tensor | None, m: Tensor, q: Tensor,
    table: Tensor, damping: Tensor, dloss: Tensor | None, reference: bool, by_pixel: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """da, dgamma, dbeta, dpsi."""
    from . import balanced_batch_norm_triton as kernels

    return kernels.backward(
        a, dy, gamma, psi, ids, counts, kernels.Kept(m, q, table, damping), dloss, reference, by_pixel
    )


_forward_op = torch.library.custom_op(
    "driftway::balanced_batch_norm", _launch_forward, mutates_args=("running_mean", "running_var")
)
_backward_op = torch.library.custom_op("driftway::balanced_batch_norm_backward", _launch_backward, mutates_args=())
"""What a graph that is being compiled holds; run directly, the functions save their dispatch."""


@_forward_op.register_fake
def _(a: Tensor, *_rest: Any) -> tuple[Tensor, ...]:
    n, channels = a.shape[:2]
    shapes = ((), (channels, n), (channels, n), (5, channels), ())
    return torch.empty_like(a), *(a.new_empty(shape, dtype=torch.float32) for shape in shapes)


@_backward_op.register_fake
def _(a: Tensor, _dy: Tensor, gamma: Tensor, psi: Tensor, *_rest: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(a), torch.empty_like(gamma), torch.empty_like(gamma), torch.empty_like(psi)


class _Triton(torch.autograd.Function):
    """On a GPU: one launch forward and one back, for maps stored channel by channel or pixel by pixel."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, gamma: Tensor, beta: Tensor, psi: Tensor, ids: Tensor | None, counts: Tensor | None,
        running_mean: Tensor, running_var: Tensor, rates: Tensor | None, rate: float, eps: float, clip: float,
        reference: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        by_pixel = _by_pixel(a)
        a = _packed(a, by_pixel)
        launch = _forward_op if torch.compiler.is_compiling() else _launch_forward
        y, loss, *kept = launch(
            a, gamma, beta, psi, ids, counts, running_mean, running_var, rates, rate, eps, clip, reference, by_pixel
        )
        ctx.save_for_backward(a, gamma, psi, ids, counts, *kept)
        ctx.reference, ctx.by_pixel = reference, by_pixel
        ctx.set_materialize_grads(False)
        return y, loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dloss: Tensor | None) -> tuple[Tensor | None, ...]:
        a, gamma, psi, ids, counts, m, q, table, damping = ctx.saved_tensors
        dy = torch.zeros_like(a) if dy is None else _packed(dy, ctx.by_pixel)
        launch = _backward_op if torch.compiler.is_compiling() else _launch_backward
        kept = (m, q, table, damping)
        slopes = launch(a, dy, gamma, psi, ids, counts, *kept, dloss, ctx.reference, ctx.by_pixel)
        return *slopes, *(None,) * 9


_OPS = {"native": _Native, "torch": _Torch, "compiled": _Compiled}


def _by_pixel(a: Tensor) -> bool:
    """Whether the channels of one position lie side by side in memory: channels last, or one position only."""
    if a.numel() == a.shape[0] * a.shape[1]:
        return True
    return a.dim() == 4 and not a.is_contiguous() and a.is_contiguous(memory_format=torch.channels_last)


def _packed(a: Tensor, by_pixel: bool) -> Tensor:
    """``a`` itself where it is laid out so already, else a copy."""
    return a.contiguous(memory_format=torch.channels_last if by_pixel and a.dim() == 4 else torch.contiguous_format)


def _array(a: Tensor, by_pixel: bool) -> NDArray[Any]:
    """The memory of a packed tensor as [N, P, C] or [N, C, P]."""
    n, channels = a.shape[:2]
    if not by_pixel:
        return a.detach().reshape(n, channels, -1).numpy()
    return (a.detach().permute(0, 2, 3, 1) if a.dim() == 4 else a.detach()).reshape(n, -1, channels).numpy()
