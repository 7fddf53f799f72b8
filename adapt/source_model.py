"""The model that test-time adaptation starts from: trained on a stream's clean rows, once, and kept.

Trained by SGD with momentum, weight decay and a cosine schedule, from the seed alone. Kept in the cache folder under a
hash of the configuration and of every training row, so that a change of either trains anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.inputs import Columns, Pixels
from ..models.networks import Network, build
from ..streams import Array, InputError, StreamSpec, cache_folder

FORMAT = 1
"""Counted up whenever training or the file changes, so that old files are not taken for new ones."""
MOMENTUM, DECAY = 0.9, 5e-4


@dataclass(frozen=True, slots=True)
class Training:
    """What a source model depends on beside its rows.

    model: a name of ``models/networks.py``; ``auto`` is convnet for images and mlp-norm for other rows. norm: batch,
    group or none. epochs, rate, batch: of SGD; the rate falls to 0 along a cosine. seed: of weights and order.
    """

    model: str = "auto"
    norm: str = "batch"
    epochs: int = 25
    rate: float = 0.05
    batch: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch < 1 or not 0 < self.rate < math.inf:
            raise ValueError("epochs are at least 0, batch at least 1, rate is above 0")


Progress = Callable[[str], None]


def tell(line: str) -> None:
    """Progress for a person, on stderr."""
    print(f"driftway: {line}", file=sys.stderr, flush=True)


def source_model(
    spec: StreamSpec, inputs: Pixels | Columns, training: Training, *, keep: bool = True, progress: Progress = tell
) -> Network:
    """The network trained on ``spec.source``, out of the cache or trained now; in evaluation mode.

    inputs: what turns rows into tensors; it observes the training rows. keep: read and write the cache. Raises
    ``InputError`` where the stream has no source, or the model does not suit its rows.
    """
    if spec.source is None:
        raise InputError(f"stream {spec.name} has no clean rows to train a source model on; digits-c, for one, has")
    x, y = spec.source.train()
    if not inputs.fixed:
        inputs.observe(np.ascontiguousarray(x, np.float64))
    net = _network(spec, inputs, training)
    path = cache_folder() / "sources" / f"{_key(spec, x, y, training)}.safetensors"
    if keep and _load(net, path):
        return net.eval()
    train(net, inputs.tensor(x), torch.from_numpy(np.ascontiguousarray(y, np.int64)), training, progress)
    if keep:
        _save(net, path, progress)
    return net.eval()


def _network(spec: StreamSpec, inputs: Pixels | Columns, training: Training) -> Network:
    assert spec.source is not None
    classes = max(2, spec.n_classes or 0, *(c + 1 for c in spec.source.classes))
    name = training.model
    if name == "auto":
        name = "convnet" if len(inputs.shape) == 3 else "mlp-norm:100-100"
    try:
        return build(name, inputs.shape, classes, norm=training.norm, seed=training.seed)
    except ValueError as fault:
        raise InputError(f"{fault}") from None


def train(net: nn.Module, x: Tensor, y: Tensor, training: Training, progress: Progress = tell) -> None:
    """Cross-entropy on shuffled batches, in place. x: float32[n, ...], y: int64[n]."""
    if not len(x):
        return
    optimiser = torch.optim.SGD(net.parameters(), training.rate, MOMENTUM, weight_decay=DECAY, nesterov=False)
    order = torch.Generator().manual_seed(training.seed)
    batches = math.ceil(len(x) / training.batch)
    steps, done = training.epochs * batches, 0
    net.train()
    for epoch in range(training.epochs):
        total = 0.0
        for rows in torch.randperm(len(x), generator=order).split(training.batch):
            for group in optimiser.param_groups:
                group["lr"] = training.rate * 0.5 * (1 + math.cos(math.pi * done / steps))
            loss = F.cross_entropy(net(x[rows]), y[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            total += float(loss.detach())
            done += 1
        progress(f"source model, epoch {epoch + 1} of {training.epochs}: loss {total / batches:.4f}")
    optimiser.zero_grad(set_to_none=True)


def _key(spec: StreamSpec, x: Array, y: Array, training: Training) -> str:
    """Hex digest of everything that the trained weights follow from."""
    facts = {
        "format": FORMAT,
        "training": asdict(training),
        "classes": spec.n_classes,
        "shape": spec.shape,
        "columns": [[c.name, c.categories, c.open] for c in spec.columns],
        "scale": [spec.notes.get(k) for k in ("mean", "std")],
        "rows": [str(x.dtype), list(x.shape), str(y.dtype)],
    }
    sha = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for part in (x, y):
        sha.update(np.ascontiguousarray(part).data)
    return sha.hexdigest()


def _load(net: nn.Module, path: Path) -> bool:
    """Whether the file is there, whole and of this network, which then has its weights."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        weights: dict[str, Any] = load(path.read_bytes())
        net.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError, ValueError):
        return False  # absent, cut short, or not ours: it is trained anew and written over
    return True


def _save(net: nn.Module, path: Path, progress: Progress) -> None:
    """Write the weights so that a reader finds all of them or none; a folder that cannot be written to is no fault."""
    from safetensors.torch import save

    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(save({k: v.detach().contiguous() for k, v in net.state_dict().items()}))
        draft.replace(path)
    except OSError as fault:
        progress(f"the source model could not be kept: {fault.strerror or fault}")
