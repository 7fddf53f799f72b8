"""A language model's first training: on the rows that a stream keeps for it, once, before the stream begins.

A model built from a configuration knows nothing that it could forget. It is taught to read and to answer on
``spec.source``, a broad mix that shares no row with the stream: next-token cross-entropy of the answers, and of up to
16 tokens of the prompt behind a cut drawn for each batch. AdamW, warm-up and cosine, everything from one seed; a
vision tower learns too, and stands still afterwards. What comes out is kept in the cache folder under a hash of the
untrained weights, the plan and every row.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.language import LanguageNetwork
from ..models.networks import Network
from ..models.optimisers import AdamW
from ..streams import InputError, StreamSpec
from .source_model import Progress, Training, keep_tensors, kept_at, kept_tensors, source_key, tell

FORMAT = 1
"""Counted up whenever training changes, so that old files are not taken for new ones."""
BATCH = 32
DECAY = 0.01


@dataclass(frozen=True, slots=True)
class Pretraining:
    """How long and how. updates: 0 for none. rate: the highest learning rate. seed: of weights, order and cuts."""

    updates: int = 0
    rate: float = 1e-3
    seed: int = 0


def pretrained(
    net: LanguageNetwork | Network, name: str, spec: StreamSpec, plan: Pretraining, progress: Progress = tell
) -> LanguageNetwork | Network:
    """The network, trained on ``spec.source`` now or long ago; ``InputError`` where the stream keeps no such rows."""
    if spec.source is None:
        raise InputError(f"stream {spec.name} keeps no rows to pretrain a model on: leave pretrain at 0")
    x, y = spec.source.train()
    training = Training(name, rate=plan.rate, batch=BATCH, seed=plan.seed)
    path = kept_at(source_key(spec, x, y, training, "language", FORMAT, asdict(plan), _digest(net.state_dict()), DECAY))
    kept = kept_tensors(path)
    if kept is not None and all(bool(t.isfinite().all()) for t in kept.values()) and _fits(net, kept):
        return net
    rows, codes = torch.from_numpy(np.asarray(x, np.float32)), torch.from_numpy(np.asarray(y, np.int64))
    if not len(rows):
        raise InputError(f"stream {spec.name} keeps no rows to pretrain a model on: leave pretrain at 0")
    _train(net, rows, codes, plan, progress)
    tensors = {name: tensor for name, tensor in net.state_dict().items() if name not in _tied(net)}
    keep_tensors(tensors, path, progress)
    return net


def _train(net: LanguageNetwork | Network, x: Tensor, y: Tensor, plan: Pretraining, progress: Progress) -> None:
    """In place; ``InputError`` where it does not stay finite."""
    tower = [w for name, w in net.named_parameters() if "vision_tower." in name]
    for weight in tower:
        weight.requires_grad_(True)
    weights = {name: w for name, w in net.named_parameters() if w.requires_grad}
    optimiser = AdamW(plan.rate, weight_decay=DECAY)
    draw = torch.Generator().manual_seed(plan.seed)
    order = torch.randperm(len(x), generator=draw)
    warm, told, total = max(1, min(100, plan.updates // 10)), max(1, plan.updates // 10), 0.0
    net.train()
    for update in range(plan.updates):
        if len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(x), generator=draw)])
        some, order = order[:BATCH], order[BATCH:]
        cut = float(torch.rand((), generator=draw))
        loss = _loss(net, x[some], y[some], cut)
        grads = dict(zip(weights, torch.autograd.grad(loss, list(weights.values()), allow_unused=True)))
        done = update / plan.updates
        optimiser.lr = plan.rate * min(1.0, (update + 1) / warm) * 0.5 * (1 + math.cos(math.pi * done))
        optimiser.step(weights, grads, {})
        total += float(loss.detach())
        if (update + 1) % told == 0:
            progress(f"pretraining, update {update + 1} of {plan.updates}: loss {total / told:.4f}")
            if not math.isfinite(total):
                raise InputError(f"pretraining diverged: a learning rate of {plan.rate:g} is too high")
            total = 0.0
    for weight in tower:
        weight.requires_grad_(False)
    net.eval()


def _loss(net: LanguageNetwork | Network, x: Tensor, y: Tensor, cut: float) -> Tensor:
    if isinstance(net, LanguageNetwork):
        return net.loss(net(x, y), y) + net.reading_loss(x, cut)
    return F.cross_entropy(net(x), y)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name, tensor in tensors.items():
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _tied(net: torch.nn.Module) -> set[str]:
    """Names of tensors that are others under another name."""
    first: dict[int, str] = {}
    return {n for n, t in net.state_dict(keep_vars=True).items() if first.setdefault(id(t), n) != n}


def _fits(net: torch.nn.Module, kept: Mapping[str, Tensor]) -> bool:
    """Whether these are the network's own, which it then has."""
    there: Any = net.state_dict()
    if set(kept) != set(there) - _tied(net) or any(kept[n].shape != there[n].shape for n in kept):
        return False
    net.load_state_dict(kept, strict=False)
    return True
