"""Where the router rows of a new bank begin: at what its first tokens have that the old rows do not.

The published code draws them at random [U]. In thousands of dimensions random rows are far from every token; in a small
model they are not: whichever random row happens to lie along the tokens' common direction takes them all, old or new.
Method note, section 4, names this cure without a formula; the formula is [OUR CHOICE].
"""

from __future__ import annotations

import torch
from torch import Tensor

from .token_groups import unit

ROUNDS = 8
"""Of k-means: its centres only begin a training."""
LONG = 3**-0.5
"""Length of a row as it is drawn at random: uniform within 1 / sqrt(d) in each of d coordinates."""


def router_rows(tokens: Tensor, old: Tensor, count: int) -> Tensor:
    """Centres of spherical k-means over r_n = u_n - (u_n . p) p: float32[count, d], all of length ``LONG``.

    tokens: float[N, d], of the first batch; u_n is the direction of one, p the old row that is nearest to it. old:
    float32[E_o, d] of length 1, may have no rows (then r_n = u_n). So a token is nearer to the old row than to the
    centre at its own r_n exactly if it lies less than 45 degrees from the old row. The first centre is the first token,
    each next one the token farthest from all before it; fewer tokens than ``count`` are taken more than once.

    >>> router_rows(torch.eye(2), torch.eye(2)[:1], 1).abs().mul(3**0.5).round().tolist()
    [[0.0, 1.0]]
    """
    u = unit(tokens)
    if len(old):
        nearest = old[(u @ old.t()).argmax(1)]
        u = unit(u - (u * nearest).sum(1, keepdim=True) * nearest)
    u = u[u.any(1)] if bool(u.any()) else unit(tokens)
    centres, near = u[:1], u @ u[0]
    while len(centres) < count:
        farthest = u[near.argmin()]
        centres, near = torch.cat([centres, farthest[None]]), torch.maximum(near, u @ farthest)
    for _ in range(ROUNDS):
        own = torch.zeros(len(u), count, device=u.device).scatter_(1, (u @ centres.t()).argmax(1, keepdim=True), 1.0)
        mean = unit(own.t() @ u)
        centres = torch.where(mean.any(1, keepdim=True), mean, centres)
    return centres * LONG
