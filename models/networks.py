"""Networks as a body and a head, built by name.

A name may carry sizes after a colon: ``mlp:400-400`` (hidden widths; ``mlp-norm`` has a norm after each linear layer),
``convnet:16-32-32`` (channels), ``resnet18:20`` (channels of the first stage; 64 is the usual net, 20 the slim one of
continual learning), ``torchvision:resnet18`` (any classifier of torchvision, untrained).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn

from .kernels.inference_linear import Linear
from .norms import make_norm
from .resnet import ResNet18

DEFAULTS = {"mlp": "400-400", "mlp-norm": "400-400", "convnet": "16-32-32", "resnet18": "64", "torchvision": "resnet18"}


class Network(nn.Module):
    """``head(body(x))``: x float[B, *shape] to features float[B, F] to one logit per class, float[B, C]."""

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


class MLP(nn.Sequential):
    """Linear layers with ReLU between and after them, a norm before each if asked; flattens what it is given."""

    def __init__(self, inputs: int, widths: Sequence[int], norm: str = "none") -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for width in widths:
            norms = [] if norm == "none" else [make_norm(norm, width)]
            layers += [Linear(inputs, width, bias=not norms), *norms, nn.ReLU()]
            inputs = width
        super().__init__(*layers)


class ConvNet(nn.Sequential):
    """3x3 convolutions, each with norm and ReLU, a 2x2 maximum after all but the last, then the mean over positions."""

    def __init__(self, shape: Sequence[int], widths: Sequence[int], norm: str) -> None:
        channels, height, across = shape
        layers: list[nn.Module] = []
        for i, width in enumerate(widths):
            plain = norm == "none"
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=plain), make_norm(norm, width), nn.ReLU()]
            if i < len(widths) - 1 and min(height, across) >= 2:
                layers.append(nn.MaxPool2d(2))
                height, across = height // 2, across // 2
            channels = width
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _mlp(sizes: str, shape: Sequence[int], norm: str) -> tuple[nn.Module, int]:  # noqa: ARG001 - has none
    return _normed_mlp(sizes, shape, "none")


def _normed_mlp(sizes: str, shape: Sequence[int], norm: str) -> tuple[nn.Module, int]:
    widths = _numbers("mlp", sizes)
    return MLP(prod(shape), widths, norm), widths[-1]


def _convnet(sizes: str, shape: Sequence[int], norm: str) -> tuple[nn.Module, int]:
    widths = _numbers("convnet", sizes)
    return ConvNet(_image("convnet", shape), widths, norm), widths[-1]


def _resnet18(sizes: str, shape: Sequence[int], norm: str) -> tuple[nn.Module, int]:
    (width,) = _numbers("resnet18", sizes)[:1]
    return ResNet18(_image("resnet18", shape)[0], width, norm), 8 * width


def _torchvision(name: str, shape: Sequence[int], norm: str) -> tuple[nn.Module, int]:
    from .vision import torchvision_body

    return torchvision_body(name, _image(f"torchvision:{name}", shape), norm)


_BODIES: dict[str, Callable[[str, Sequence[int], str], tuple[nn.Module, int]]] = {
    "mlp": _mlp,
    "mlp-norm": _normed_mlp,
    "convnet": _convnet,
    "resnet18": _resnet18,
    "torchvision": _torchvision,
}


def build(name: str, shape: Sequence[int], classes: int, *, norm: str = "batch", seed: int = 0) -> Network:
    """A network for inputs of ``shape`` ((d,) for a table row, (channels, height, width) for an image).

    norm: batch, group, continual or none, where the body has norms. The weights are drawn from ``seed`` alone; torch's
    global generator is left as it was. Raises ``ValueError`` for a name, a size or a shape that does not fit.

    >>> net = build("mlp:100-50", (64,), 10)
    >>> net.head.weight.shape, net(torch.zeros(2, 64)).shape
    (torch.Size([10, 50]), torch.Size([2, 10]))
    """
    kind, _, sizes = name.partition(":")
    if kind not in _BODIES:
        raise ValueError(f"unknown model {name!r}: there are {', '.join(DEFAULTS)}, each with sizes after a colon")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body, features = _BODIES[kind](sizes or DEFAULTS[kind], tuple(shape), norm)
        return Network(body, Linear(features, classes))


def tensors_of(net: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; what has several (an embedding that is the head, too) once, by the first."""
    named = net.state_dict(keep_vars=True)
    return {name: named[name] for name, first in _first_names(named).items() if name == first}


def load_tensors(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Take over a copy of what ``tensors_of`` gave."""
    others = {n: one for n, one in _first_names(net.state_dict(keep_vars=True)).items() if n != one}
    net.load_state_dict({**tensors, **{name: tensors[first] for name, first in others.items()}})


def _first_names(named: Mapping[str, Tensor]) -> dict[str, str]:
    """The first name of each tensor by all of its names."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named.items()}


def grow_head(net: Network, classes: int, seed: int) -> None:
    """Give the head rows for ``classes`` classes. Old rows keep their bits; row k is drawn from (seed, k) alone."""
    old = net.head
    new = Linear(old.in_features, classes, device=old.weight.device, dtype=old.weight.dtype)
    edge = old.in_features**-0.5
    with torch.no_grad():
        new.weight[: old.out_features] = old.weight
        new.bias[: old.out_features] = old.bias
        for k in range(old.out_features, classes):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + k)
            drawn = torch.empty(old.in_features + 1).uniform_(-edge, edge, generator=generator)
            new.weight[k] = drawn[:-1]
            new.bias[k] = drawn[-1]
    net.head = new


def _numbers(kind: str, sizes: str) -> list[int]:
    try:
        numbers = [int(n) for n in sizes.split("-")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        example = f"{kind}:{DEFAULTS[kind]}"
        raise ValueError(f"model {kind}:{sizes}: sizes are whole numbers with - between, such as {example}")
    return numbers


def _image(name: str, shape: Sequence[int]) -> Sequence[int]:
    if len(shape) != 3:
        raise ValueError(f"model {name} needs images of shape (channels, height, width), rows here have {list(shape)}")
    return shape
