"""Source models that a person brings: a file of weights, a published network, or a function of theirs."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..models.inputs import Columns, Pixels
from ..models.networks import Network
from ..models.vision import published
from ..streams import InputError, StreamSpec
from .source_model import (
    Progress,
    Training,
    class_count,
    clean_rows,
    keep_tensors,
    kept_at,
    kept_tensors,
    source_key,
    tell,
    train,
    untrained,
)

TORCHVISION = "torchvision:"
CHECKPOINT = "state.net."
"""What stands before the names of a network's weights in a run's ``learner.safetensors``."""
COUNTED = "num_batches_tracked"
"""A count of PyTorch's norms that no answer depends on."""
AT_ONCE = 256


def given_source(
    name: str,
    spec: StreamSpec,
    inputs: Pixels | Columns,
    training: Training,
    *,
    keep: bool = True,
    progress: Progress = tell,
) -> nn.Module:
    """The model that ``name`` stands for, in evaluation mode; it gives one logit for each class of the stream.

    name: a safetensors file of ours (a kept source model, or ``learner.safetensors`` of a run's checkpoint; the network
    is that of ``training``); ``torchvision:NAME`` with published weights, whose last layer, unless the stream has as
    many classes, gives way to one that is trained on the stream's clean rows; or ``package.module:function``, also of
    the working folder, whose call returns a module. What goes into it is what ``inputs`` makes of rows: images scaled
    by the stream's mean and deviation. Raises ``InputError`` in one line that names what does not fit.
    """
    if spec.source is not None:
        clean_rows(spec, inputs)
    if name.startswith(TORCHVISION):
        return _published(name, spec, inputs, training, keep, progress)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name) and not Path(name).exists():
        return _called(name, spec, inputs)
    net = untrained(inputs, training, class_count(spec))
    fit(net, read_tensors(Path(name)), f"{name}: model {training.model}")
    return net.eval()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; of a checkpoint those of its network. ``InputError`` where it is none."""
    try:
        path.read_bytes()
    except OSError as fault:
        raise InputError(f"{path}: {fault.strerror or fault}") from None
    found = kept_tensors(path)
    if found is None:
        raise InputError(f"{path}: not a safetensors file, or not a whole one")
    inside = {k.removeprefix(CHECKPOINT): v for k, v in found.items() if k.startswith(CHECKPOINT)}
    return inside or found


def fit(net: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Give the network these weights; ``InputError`` for the first one that is missing, too many or of another shape.

    where: the file, and what the network is, for the message.
    """
    wanted = {k: v for k, v in net.state_dict().items() if not k.endswith(COUNTED)}
    for name, value in wanted.items():
        if name not in weights:
            raise InputError(f"{where} has {name}, which is not in the file")
        if weights[name].shape != value.shape:
            there, here = ("x".join(map(str, t.shape)) for t in (weights[name], value))
            raise InputError(f"{where} needs {name} of {here} here, the file has {there}")
        if not bool(weights[name].isfinite().all()):
            raise InputError(f"{where}: {name} in the file is not finite")
    for name in weights:
        if name not in wanted and not name.endswith(COUNTED):
            raise InputError(f"{where} has no {name}, which is in the file")
    net.load_state_dict({k: weights[k] for k in wanted}, strict=False)


def _published(
    name: str, spec: StreamSpec, inputs: Pixels | Columns, training: Training, keep: bool, progress: Progress
) -> nn.Module:
    if len(inputs.shape) != 3:
        raise InputError(f"source {name} is for images, stream {spec.name} has none")
    try:
        body, last = published(name.removeprefix(TORCHVISION), inputs.shape)
    except ValueError as fault:
        raise InputError(f"source: {fault}") from None
    if last.out_features == class_count(spec):
        return Network(body, last).eval()
    if spec.source is None:
        raise InputError(f"source {name} knows {last.out_features} classes, stream {spec.name} has {class_count(spec)}")
    x, y = clean_rows(spec, inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        head = nn.Linear(last.in_features, class_count(spec))
    path = kept_at(source_key(spec, x, y, training, name))
    found = kept_tensors(path) if keep else None
    if found is not None:
        fit(head, found, f"{path}: the head of {name}")
    else:
        progress(f"source {name}: a head for {class_count(spec)} classes on {len(x)} clean rows")
        features = embedded(body, inputs.tensor(x))
        train(head, features, torch.from_numpy(np.ascontiguousarray(y, np.int64)), training, progress)
        if keep:
            keep_tensors(head.state_dict(), path, progress)
    return Network(body, head).eval()


def embedded(body: nn.Module, x: Tensor) -> Tensor:
    """Features float[n, d] of rows float[n, ...] in evaluation mode, piece by piece."""
    body.eval()
    with torch.no_grad():
        return torch.cat([body(part).flatten(1) for part in x.split(AT_ONCE)])


def _called(name: str, spec: StreamSpec, inputs: Pixels | Columns) -> nn.Module:
    module, _, function = name.partition(":")
    sys.path.insert(0, "")
    try:
        net = getattr(importlib.import_module(module), function)()
    except Exception as fault:
        reason = " ".join(str(fault).split())
        raise InputError(f"source {name}: {type(fault).__name__}: {reason}") from None
    finally:
        sys.path.remove("")
    if not isinstance(net, nn.Module):
        raise InputError(f"source {name} returned {type(net).__name__}, not a torch module")
    check_fit(net, f"source {name}", spec, inputs)
    return net


def check_fit(net: nn.Module, name: str, spec: StreamSpec, inputs: Pixels | Columns) -> None:
    """``InputError`` where a network cannot take the stream's rows, or has not one logit for each of its classes."""
    answer = asked(net, name, inputs)
    shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
    if shape != (2, class_count(spec)):
        raise InputError(f"{name} gives {shape} for 2 rows, stream {spec.name} needs (2, {class_count(spec)})")


def asked(net: nn.Module, name: str, inputs: Pixels | Columns) -> Any:
    """What a network, from then on in evaluation mode, makes of two rows; ``InputError`` where it cannot take them."""
    net.eval()
    at = next((p.device for p in net.parameters()), None)
    try:
        with torch.no_grad():
            return net(torch.zeros(2, *inputs.shape, device=at))
    except Exception as fault:
        reason = " ".join(str(fault).split())
        raise InputError(f"{name} cannot take rows of {'x'.join(map(str, inputs.shape))}: {reason}") from None
