"""Torchvision: the one way to import it, and its classifiers as bodies of our networks.

The torchvision of the package registry is built for the torch beside it there. Next to another build of torch, such as
the one for processors only, it cannot load its compiled operators, and its import ends with ``operator
torchvision::nms does not exist``. Nothing of ours needs those operators (they choose boxes in detection), so where,
and only where, that happens their schemas are defined and the import is tried once more.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from types import ModuleType
from typing import Any

import torch
from torch import nn

from .norms import make_norm

NO_OPERATORS = "operator torchvision::nms does not exist"
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
OUTPUTS = 1000
"""Classes of every classifier as torchvision builds it; tells the classifying layer from others."""


def import_torchvision() -> ModuleType:
    """Torchvision, imported whatever build of torch it lies beside.

    Raises ``ImportError`` in one line that names the extra where it is not installed.
    """
    before = set(sys.modules)
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as fault:
        if fault.name != "torchvision":
            raise
        raise ImportError('this needs torchvision: pip install "driftway[vision]"') from None
    except RuntimeError as fault:
        if NO_OPERATORS not in str(fault):
            raise
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "torchvision":
            del sys.modules[name]
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", SCHEMA)
    return importlib.import_module("torchvision")


def torchvision_body(name: str, shape: Sequence[int], norm: str = "batch") -> tuple[nn.Module, int]:
    """A classifier of torchvision without its last layer, and how many features it then gives.

    name: as torchvision has it (resnet18, mobilenet_v2, densenet121, ...); the weights are drawn, not loaded. shape:
    (channels, height, width); where it has other than three channels the first convolution is made anew for them.
    norm: anything but batch takes the place of every batch norm. Dropout and stochastic depth are taken out: they draw
    from torch's global generator, and what a learner draws must come from its own.

    Raises ``ValueError`` where torchvision is not installed, for a name that it does not have, a model that has no
    linear last layer, and a size of image that the model cannot take.
    """
    models = _models(name)
    from torchvision import ops

    channels, height, width = shape
    body: nn.Module = models.get_model(name, weights=None, **_fitted(name, height, width))
    features = _behead(name, body).in_features
    if channels != 3:
        _take_channels(body, channels)
    for path, layer in list(body.named_modules()):
        if isinstance(layer, nn.Dropout | ops.StochasticDepth):
            body.set_submodule(path, nn.Identity())
        elif norm != "batch" and isinstance(layer, nn.BatchNorm2d):
            body.set_submodule(path, make_norm(norm, layer.num_features))
    _try_out(name, body, shape)
    return body, features


def published(name: str, shape: Sequence[int]) -> tuple[nn.Module, nn.Linear]:
    """A classifier of torchvision with its newest published weights, as a body and its last layer; in evaluation mode.

    The weights are those of torch's cache, or fetched. Raises ``ValueError`` where there are none to be had, and
    otherwise as ``torchvision_body`` does; images must have three channels.
    """
    models = _models(name)
    if shape[0] != 3:
        raise ValueError(f"torchvision:{name} has weights for images of 3 channels, not {shape[0]}")
    try:
        body: nn.Module = models.get_model(name, weights="DEFAULT")
    except (OSError, RuntimeError, KeyError, ValueError) as fault:
        reason = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
        where = "neither in torch's cache nor to be fetched"
        raise ValueError(f"torchvision:{name}: published weights are {where}: {reason}") from None
    last = _behead(name, body)
    _try_out(name, body, shape)
    return body.eval(), last


def _models(name: str) -> Any:
    """Torchvision's module of classifiers, once it is sure that it has this one."""
    try:
        import_torchvision()
    except ImportError as fault:
        raise ValueError(f"model torchvision:{name}: {fault}") from None
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        near = get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "such as resnet18 or mobilenet_v2"
        raise ValueError(f"torchvision has no classifier {name!r}: {hint}")
    return models


def _fitted(name: str, height: int, width: int) -> dict[str, Any]:
    """What some models have to be told: the size of the images, and that only one output is wanted."""
    if name.startswith("vit_"):
        return {"image_size": height}
    if name.startswith("maxvit"):
        return {"input_size": (height, width)}
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": False}
    return {}


def _behead(name: str, body: nn.Module) -> nn.Linear:
    """Take the classifying layer out and return it."""
    linear = {path: layer for path, layer in body.named_modules() if isinstance(layer, nn.Linear)}
    if not linear or list(linear.values())[-1].out_features != OUTPUTS:
        raise ValueError(f"torchvision:{name} does not end in a linear layer, so it has no features to learn from")
    path, last = list(linear.items())[-1]
    body.set_submodule(path, nn.Identity())
    return last


def _take_channels(body: nn.Module, channels: int) -> None:
    """Give the first convolution weights for so many channels."""
    first = next(m for m in body.modules() if isinstance(m, nn.Conv2d))
    first.in_channels = channels
    first.weight = nn.Parameter(torch.empty(first.out_channels, channels, *first.kernel_size))
    first.reset_parameters()


def _try_out(name: str, body: nn.Module, shape: Sequence[int]) -> None:
    """One blank image through the body, so that a size it cannot take is found before any row comes."""
    body.eval()
    try:
        with torch.inference_mode():
            body(torch.zeros(1, *shape))
    except (RuntimeError, AssertionError, ValueError) as fault:
        reason = str(fault).splitlines()[0]
        raise ValueError(f"torchvision:{name} cannot take images of {'x'.join(map(str, shape))}: {reason}") from None
    body.train()
