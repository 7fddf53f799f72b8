"""A planner that scores a fixed vocabulary of trajectories: frozen features of the scene, a decoder that may adapt.

Source: Li et al., Hydra-MDP, arXiv 2406.06978, 2024, as the method note on Centaur gives it: entries as queries over
scene tokens, one head for imitation and one per sub-metric, their distillation losses and the rule of selection.
Ours: its small size, one layer of attention (entries do not attend to each other), the pooled scene that scales each
entry's embedding, sigma in the metres of poses with 5 m per radian.

``features`` is what stays frozen when the planner adapts at test time; all that may move is ``decoder``, and a graph is
needed only there: ``torch.func.functional_call(planner.decoder, params, (*features, planner.entries()))``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .trajectories import pose_features

Array = np.ndarray[Any, np.dtype[Any]]
Features = tuple[Tensor, Tensor]
"""Scene tokens float[B, L, d] and the pooled scene float[B, d]."""

HEADS = ("imitation", "nc", "dac", "ttc", "ep", "c")
LOSS_WEIGHTS = (1.0, 3.0, 3.0, 3.0, 2.0, 1.0)
"""Of the heads' losses; the note gives ranges for TTC (2 to 4) and EP (1 to 2), from public code."""
WEIGHTS = (0.05, 0.5, 0.5, 4.0)
"""Of selection, until they are fitted: imitation, NC, DAC, the weighted mean of the rest."""
SIGMA = 20.0
"""m^2, summed over 8 poses."""


class Planner(nn.Module):
    """Scores of M trajectories for scenes given as flat rows of tokens.

    trajectories: float[M, 41, >=3], the vocabulary (a buffer, saved with the weights). layout: the groups of tokens in
    a row, (how many, numbers in each). width: d below. weights (a buffer): of the selection rule, see ``combine``.
    """

    poses: Tensor
    trajectories: Tensor
    weights: Tensor

    def __init__(self, trajectories: Array, layout: Sequence[tuple[int, int]], width: int = 96, seed: int = 0) -> None:
        super().__init__()
        self.layout = tuple(layout)
        poses = torch.as_tensor(pose_features(trajectories), dtype=torch.float32)
        self.register_buffer("trajectories", torch.as_tensor(trajectories, dtype=torch.float32))
        self.register_buffer("poses", poses / 10)
        self.register_buffer("weights", torch.tensor(WEIGHTS))
        inputs = sum(count * size for count, size in self.layout)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.tokens = nn.ModuleList([_mlp(size, width, width) for _, size in self.layout])
            self.scene = _mlp(inputs, 2 * width, width)
            self.embedding = _mlp(poses.shape[1], width, width)
            self.decoder = Decoder(width)

    def features(self, x: Tensor) -> Features:
        """Tokens and pooled scene of rows float[B, D]; no token is left out: what is not there says so by its zeros."""
        found = []
        at = 0
        for embed, (count, size) in zip(self.tokens, self.layout, strict=True):
            found.append(embed(x[:, at : at + count * size].reshape(-1, count, size)))
            at += count * size
        return torch.cat(found, 1), self.scene(x)

    def entries(self) -> Tensor:
        """float[M, d]: the embedded vocabulary, the same for every scene."""
        embedded: Tensor = self.embedding(self.poses)
        return embedded

    def forward(self, x: Tensor) -> Tensor:
        """Selection scores float[B, M] of rows float[B, D]; the highest is the plan."""
        return self.combine(self.heads(x))

    def heads(self, x: Tensor) -> Tensor:
        """One logit per entry and head, float[B, M, 6] in the order of ``HEADS``."""
        logits: Tensor = self.decoder(*self.features(x), self.entries())
        return logits

    def combine(self, logits: Tensor) -> Tensor:
        """S = w1 log softmax(imitation) + w2 log NC + w3 log DAC + w4 log(5 TTC + 2 C + 5 EP), float[..., M].

        Metrics are sigmoids of their logits float[..., M, 6].
        """
        return combined(logits, self.weights)


class Decoder(nn.Module):
    """What may adapt: entries attend to the tokens of the scene, then a normed layer and the heads."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.parts = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.norm, self.last_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.layer = _mlp(width, 2 * width, width)
        self.head = _mlp(width, width, len(HEADS))

    def forward(self, tokens: Tensor, scene: Tensor, entries: Tensor) -> Tensor:
        """float[B, M, 6] from tokens [B, L, d], scene [B, d] and entries [M, d]."""
        asked = self.query(entries).unflatten(-1, (self.parts, -1)).transpose(0, 1)
        keys = self.key(tokens).unflatten(-1, (self.parts, -1)).transpose(1, 2)
        values = self.value(tokens).unflatten(-1, (self.parts, -1)).transpose(1, 2)
        share = torch.softmax(asked @ keys.transpose(-1, -2) / asked.shape[-1] ** 0.5, -1)
        read = self.out((share @ values).transpose(1, 2).flatten(-2))
        u = self.norm(scene[:, None] * (1 + entries) + entries + read)
        u = self.last_norm(u + self.layer(u))
        logits: Tensor = self.head(u)
        return logits


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def combined(logits: Tensor, weights: Tensor | Sequence[float]) -> Tensor:
    """The selection rule of ``Planner.combine`` with four given weights."""
    w1, w2, w3, w4 = weights
    imitation = torch.log_softmax(logits[..., 0], -1)
    nc, dac = F.logsigmoid(logits[..., 1]), F.logsigmoid(logits[..., 2])
    ttc, ep, c = (torch.sigmoid(logits[..., k]) for k in (3, 4, 5))
    rest = (5 * ttc + 2 * c + 5 * ep).clamp(min=1e-12).log()
    return w1 * imitation + w2 * nc + w3 * dac + w4 * rest


def imitation_targets(poses: Tensor, expert: Tensor, sigma: float = SIGMA) -> Tensor:
    """float[B, M]: softmax over entries of -(squared distance to the expert's poses) / sigma.

    poses: float[M, 24], metres; expert: float[B, 24], or int64[B], the entry that it is.
    """
    meant = poses[expert] if expert.dim() == 1 else expert
    return torch.softmax(-(torch.cdist(meant, poses, compute_mode="donot_use_mm_for_euclid_dist") ** 2) / sigma, -1)


def planner_loss(logits: Tensor, target: Tensor, metrics: Tensor) -> Tensor:
    """Cross-entropy of the imitation head to ``target`` [B, M], and of each metric's head to ``metrics`` [B, M, 5].

    Weighed by ``LOSS_WEIGHTS``; metrics, in 0..1, are NC, DAC, TTC, EP and C.
    """
    imitation = -(target * torch.log_softmax(logits[..., 0], -1)).sum(-1).mean()
    apart = F.binary_cross_entropy_with_logits(logits[..., 1:], metrics, reduction="none").mean((0, 1))
    return LOSS_WEIGHTS[0] * imitation + (apart * apart.new_tensor(LOSS_WEIGHTS[1:])).sum()


def train_planner(
    trajectories: Array,
    layout: Sequence[tuple[int, int]],
    x: Array,
    metrics: Array,
    expert: Array,
    *,
    steps: int = 600,
    batch: int = 64,
    lr: float = 3e-3,
    width: int = 96,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Planner:
    """A planner fitted to scenes: Adam, ``steps`` batches of scenes drawn by ``seed``, then the weights of selection.

    x: float[n, D], observed rows. metrics: float[n, M, >=5], what the rules say of each entry: NC, DAC, TTC, EP, C, and
    the PDM score if the weights are to be fitted, which is done on the last eighth of the scenes, unseen by the heads
    (ours: on scenes that they know by heart, too little weight would go to safety). expert: int64[n], the entry to
    imitate. lr: in the beginning; it falls along a cosine to a twentieth. progress: is told how far it is.
    """
    planner = Planner(trajectories, layout, width, seed)
    rows, truth = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(metrics, dtype=torch.float32)
    targets = imitation_targets(10 * planner.poses, torch.as_tensor(expert))
    optimiser = torch.optim.Adam(planner.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps), lr / 20)
    draw = torch.Generator().manual_seed(seed)
    fitted = len(rows) - (len(rows) // 8 if truth.shape[-1] > 5 else 0)
    for step in range(1, steps + 1):
        which = torch.randint(fitted, (batch,), generator=draw)
        loss = planner_loss(planner.heads(rows[which]), targets[which], truth[which, :, :5])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            progress(f"planner, step {step} of {steps}: loss {float(loss.detach()):.4f}")
    optimiser.zero_grad(set_to_none=True)
    planner.requires_grad_(False).eval()
    if fitted < len(rows):
        fit_weights(planner, rows[fitted:], truth[fitted:, :, 5])
    return planner


def fit_weights(planner: Planner, x: Tensor, pdms: Tensor) -> float:
    """Set the weights of selection to those of a small grid that earn most on these scenes; returns that mean.

    x: float[n, D]; pdms: float[n, M], the score of every entry.
    """
    with torch.no_grad():
        logits = planner.heads(x)
        grid = list(product((0.01, 0.03, 0.1), (0.1, 0.5, 1.0), (0.1, 0.5, 1.0), (1.0, 3.0, 10.0)))
        earned = [float(pdms.gather(1, combined(logits, w).argmax(-1, keepdim=True)).mean()) for w in grid]
    best = int(np.argmax(earned))
    planner.weights.copy_(torch.tensor(grid[best]))
    return earned[best]


def fit_temperature(logits: Tensor, expert: Tensor) -> float:
    """The T in 0.1 to 10 under which softmax(logits / T), [n, M], gives the expert's entries int64[n] most likelihood.

    Fitted once, on clean validation scenes: selection scores are sums of logs, and calibrated to nothing.
    """
    grid = torch.logspace(-1, 1, 81)
    lost = [float(F.cross_entropy(logits / t, expert)) for t in grid]
    return float(grid[int(np.argmin(lost))])
