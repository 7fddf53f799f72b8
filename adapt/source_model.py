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
from collections.abc import Callable, Mapping
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
    group or none. epochs, rate, batch: of SGD; the rate falls to 0 along a cosine; epochs None is 25, or fewer where
    rows are many: as many as make 300,000 rows, and 5 at least. seed: of weights and order.
    """

    model: str = "auto"
    norm: str = "batch"
    epochs: int | None = None
    rate: float = 0.05
    batch: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.epochs or 0) < 0 or self.batch < 1 or not 0 < self.rate < math.inf:
            raise ValueError("epochs are at least 0, batch at least 1, rate is above 0")

    def epochs_over(self, rows: int) -> int:
        """How often so many rows are gone through."""
        return min(25, max(5, 300_000 // max(1, rows))) if self.epochs is None else self.epochs


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
    x, y = clean_rows(spec, inputs)
    net = untrained(inputs, training, class_count(spec))
    path = kept_at(source_key(spec, x, y, training))
    if keep and _load(net, path):
        return net.eval()
    train(net, inputs.tensor(x), torch.from_numpy(np.ascontiguousarray(y, np.int64)), training, progress)
    if keep:
        keep_tensors(net.state_dict(), path, progress)
    return net.eval()


def clean_rows(spec: StreamSpec, inputs: Pixels | Columns) -> tuple[Array, Array]:
    """x and y of ``spec.source``'s training rows, which ``inputs`` has then observed; ``InputError`` without any."""
    if spec.source is None:
        raise InputError(f"stream {spec.name} has no clean rows to train a source model on; digits-c, for one, has")
    x, y = spec.source.train()
    if not inputs.fixed:
        inputs.observe(np.ascontiguousarray(x, np.float64))
    return x, y


def class_count(spec: StreamSpec) -> int:
    """How many logits a source model for the stream has."""
    return max(2, spec.n_classes or 0, *(c + 1 for c in (() if spec.source is None else spec.source.classes)))


def untrained(inputs: Pixels | Columns, training: Training, classes: int) -> Network:
    """The network of these settings, its weights drawn from their seed; ``InputError`` where it does not suit rows."""
    name = training.model
    if name == "auto":
        name = "convnet" if len(inputs.shape) == 3 else "mlp-norm:100-100"
    try:
        return build(name, inputs.shape, classes, norm=training.norm, seed=training.seed)
    except ValueError as fault:
        raise InputError(f"{fault}") from None


def train(net: nn.Module, x: Tensor, y: Tensor, training: Training, progress: Progress = tell) -> None:
    """Cross-entropy on shuffled batches, in place. x: float32[n, ...], y: int64[n].

    Raises ``InputError`` where it does not stay finite.
    """
    if not len(x):
        return
    optimiser = torch.optim.SGD(net.parameters(), training.rate, MOMENTUM, weight_decay=DECAY, nesterov=False)
    order = torch.Generator().manual_seed(training.seed)
    batches = math.ceil(len(x) / training.batch)
    epochs = training.epochs_over(len(x))
    steps, done = epochs * batches, 0
    net.train()
    for epoch in range(epochs):
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
        if not (math.isfinite(total) and _finite(net.state_dict())):
            raise InputError(f"training of the source model diverged: a first step of {training.rate:g} is too long")
        progress(f"source model, epoch {epoch + 1} of {epochs}: loss {total / batches:.4f}")
    optimiser.zero_grad(set_to_none=True)


def source_key(spec: StreamSpec, x: Array, y: Array, training: Training, *more: Any) -> str:
    """Hex digest of everything that the trained weights follow from; more: plain values that matter beside that."""
    facts = {
        "format": FORMAT,
        "training": {**asdict(training), "epochs": training.epochs_over(len(x))},
        "classes": spec.n_classes,
        "shape": spec.shape,
        "columns": [[c.name, c.categories, c.open] for c in spec.columns],
        "scale": [spec.notes.get(k) for k in ("mean", "std")],
        "rows": [str(x.dtype), list(x.shape), str(y.dtype)],
    }
    if more:
        facts["more"] = more
    sha = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for part in (x, y):
        sha.update(np.ascontiguousarray(part).data)
    return sha.hexdigest()


def kept_at(key: str) -> Path:
    """Where the cache has what belongs to this key."""
    return cache_folder() / "sources" / f"{key}.safetensors"


def kept_tensors(path: Path) -> dict[str, Tensor] | None:
    """What a file of the cache holds; None where there is none, or not a whole one."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        found: dict[str, Tensor] = load(path.read_bytes())
    except (OSError, SafetensorError, ValueError):
        return None
    return found


def _finite(tensors: Mapping[str, Tensor]) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors.values())


def _load(net: nn.Module, path: Path) -> bool:
    """Whether the file is there, whole and of this network, which then has its weights."""
    weights = kept_tensors(path)
    if weights is not None and not _finite(weights):
        return False
    try:
        net.load_state_dict({} if weights is None else weights)
    except RuntimeError:
        return False  # absent, cut short, or not ours: it is trained anew and written over
    return True


def keep_tensors(tensors: Mapping[str, Tensor], path: Path, progress: Progress) -> None:
    """Write them so that a reader finds all or nothing; a folder that cannot be written to is no fault."""
    from safetensors.torch import save

    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(save({k: v.detach().contiguous() for k, v in tensors.items()}))
        draft.replace(path)
    except OSError as fault:
        progress(f"the source model could not be kept: {fault.strerror or fault}")
