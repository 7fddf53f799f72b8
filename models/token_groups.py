"""Which experts a token goes to: cosine scores, token assignment guidance (TAG), routing, and its regularisers (RSR).

Zhao, Li, Lu, Gong, LLaVA-DyMoE, CVPR 2026, arXiv 2603.27481, in pure functions of the scores of N tokens for E experts,
the first ``old`` of which belong to earlier tasks. The full text was not at hand: what is marked [D] follows digests of
the paper that agree, [U] the published code as it is seen through a port of it, [OUR CHOICE] is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .kernels.product import product

TINY = 1e-12
"""Vectors shorter than this have no direction: their scores are 0, and no gradient flows through them [OUR CHOICE]."""
NOT_SELECTED = -1e9
"""What a score is replaced by where it is not among the best, for the regularisers: an empty group gets 0 [U]."""


def unit(rows: Tensor) -> Tensor:
    """Each row divided by its length: float32[E, d]; rows without a direction become 0."""
    rows = rows.float()
    return rows * _inverse(rows)


def cosine_scores(x: Tensor, old: Tensor, new: Tensor | None) -> Tensor:
    """cos(x_n, p_e) in [-1, 1], float32[N, E] whatever the type of x [U].

    x: float[N, d]. old: float32[E_o, d], rows of length 1, constants. new: float[E_n, d], of any length, with gradient;
    None: there are none.
    """
    if new is None:
        return product(x.float(), old.t()).mul_(_inverse(x.float()))
    scores: Tensor = _Cosine.apply(x.float(), old, new.float())
    return scores


class _Cosine(torch.autograd.Function):
    """s = x p^T / (|x| |p|) in one product; the gradient is formed for x and the new rows only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, old: Tensor, new: Tensor) -> Tensor:
        across, inverse = _inverse(x), _inverse(new)
        rows = torch.cat([old, new * inverse])
        scores = product(x, rows.t()).mul_(across)
        ctx.save_for_backward(x, across, rows, inverse, scores)
        return scores

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        x, across, rows, inverse, scores = ctx.saved_tensors
        (grad,) = grads
        scaled = grad * across
        of_x = of_new = None
        if ctx.needs_input_grad[0]:
            along = (grad * scores).sum(1, keepdim=True) * across * across
            of_x = torch.addcmul(product(scaled, rows), x, along, value=-1)
        if ctx.needs_input_grad[2]:
            directions = rows[len(rows) - len(inverse) :]
            moved = product(scaled[:, len(rows) - len(inverse) :].t(), x)
            of_new = (moved - directions * (moved * directions).sum(1, keepdim=True)) * inverse
        return of_x, None, of_new


def _inverse(rows: Tensor) -> Tensor:
    """float[n, 1]: 1 / |row|, 0 for rows without a direction."""
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(length > TINY, 1 / length, 0.0)


@dataclass(frozen=True, slots=True)
class TokenGroups:
    """What each token is to the experts: bool[N] each, exactly one of the three holds."""

    new: Tensor
    old: Tensor
    ambiguous: Tensor


def token_groups(old_best: Tensor, new_best: Tensor, tau: float) -> TokenGroups:
    """New, old or ambiguous, by the best score in either group, float[N] each [D][U].

    D = |c_new - c_old| / max(|c_new|, |c_old|); D > tau and c_new > c_old: new; D > tau otherwise: old; else ambiguous.
    Strict, and compared as |c_new - c_old| > tau max(...), so that two zeros (and NaN) are ambiguous.

    >>> groups = token_groups(torch.tensor([0.5, 0.2, 0.375]), torch.tensor([0.52, 0.6, 0.5]), 0.25)
    >>> groups.new.tolist(), groups.ambiguous.tolist()
    ([False, True, False], [True, False, True])
    """
    clear = (new_best - old_best).abs() > tau * torch.maximum(new_best.abs(), old_best.abs())
    ahead = new_best > old_best
    return TokenGroups(clear & ahead, clear & ~ahead, ~clear)


def guided(scores: Tensor, old: int, new_tokens: Tensor, *, exclusive: bool = True) -> Tensor:
    """TAG: scores with -inf where a token may not go; no gradient flows there.

    new_tokens: bool[N]. All others may not go to new experts [D]; exclusive: nor may these go to old ones [U].
    """
    is_new = torch.arange(scores.shape[1], device=scores.device) >= old
    barred = is_new & ~new_tokens[:, None]
    if exclusive:
        barred |= ~is_new & new_tokens[:, None]
    return scores.masked_fill(barred, -torch.inf)


def best(scores: Tensor, k: int) -> Tensor | None:
    """bool[N, E]: the k largest of each row, of equals those of lowest index [OUR CHOICE]; None: all (k < 1 or >= E).

    >>> best(torch.tensor([[1.0, 2.0, 1.0, 1.0]]), 2).tolist()
    [[True, True, False, False]]
    """
    if not 0 < k < scores.shape[1]:
        return None
    last = scores.topk(k, sorted=False).values.amin(1, keepdim=True)
    chosen = scores >= last
    if bool((chosen.sum(1) > k).any()):
        above = scores > last
        room = k - above.sum(1, keepdim=True)
        equal = scores == last
        chosen = above | equal & (equal.cumsum(1) <= room)
    return chosen


def routing(scores: Tensor, k: int, temperature: float) -> Tensor:
    """float[N, E]: softmax(scores / T_r) over the k best, 0 for the others [U]; rows sum to 1.

    >>> [round(w, 3) for w in routing(torch.tensor([[0.0, 0.1, -0.1]]), 2, 0.1)[0].tolist()]
    [0.269, 0.731, 0.0]
    """
    chosen = best(scores, k)
    kept = scores if chosen is None else scores.masked_fill(~chosen, -torch.inf)
    return torch.softmax(kept / temperature, 1)


def routing_score_terms(scores: Tensor, old: int, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """RSR: (L_exc, L_spe) of each token, float32[N] each, from the scores before TAG [U].

    w = softmax(top-k(s) / T_s) over all experts; g_old, g_new = sums of w over the groups.
    L_exc = g_old g_new: either or.
    L_spe = -(y ln g_new + (1 - y) ln(1 - g_new)), y = 1 - max_old w, held constant; logarithms from 1e-8 on. As
    max_old w <= g_old, it can only raise g_new: it is the force for plasticity (our remark).
    """
    chosen = best(scores, k)
    kept = scores if chosen is None else scores.masked_fill(~chosen, NOT_SELECTED)
    w = torch.softmax(kept.float() / temperature, 1)
    of_old, of_new = w[:, :old].sum(1), w[:, old:].sum(1)
    y = (1 - w[:, :old].amax(1)).clamp(0, 1).detach()
    special = y * of_new.clamp(min=1e-8).log() + (1 - y) * (1 - of_new).clamp(min=1e-8).log()
    return of_old * of_new, -special


def balance(scores: Tensor, temperature: float, tokens: Tensor) -> Tensor:
    """L_aux over one group of experts, of the tokens in bool[N]: E sum_j f_j p_j; 0 where there are no tokens.

    f_j: share of the tokens whose best expert is j. p_j: mean of softmax(scores / T_r). Named by the paper [D], absent
    from the code [U]; this form, of Switch transformers (Fedus et al., JMLR 2022), is [OUR CHOICE].
    """
    share = tokens.to(scores.dtype) / tokens.sum().clamp(min=1)
    first = torch.zeros_like(scores).scatter_(1, scores.argmax(1, keepdim=True), 1.0)
    return scores.shape[1] * ((share @ first) * (share @ torch.softmax(scores / temperature, 1))).sum()
