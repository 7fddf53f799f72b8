"""Layers of any network by name patterns: which of its linear layers a method works on.

A pattern is one of ``fnmatch`` (``*``, ``?``, ``[0-9]``), several stand with commas between, and ``!`` in front takes
away what matches: ``*.q, *.v, !decoder.*``. Without any pattern it is the body of a ``Network``, and of other networks
the layers of their blocks: those with a number in their name, but none of a vision tower or a projector. Embeddings,
heads and norms are none of these.

Linear layers are ``nn.Linear`` and the transposed kind of some published models (``Conv1D`` of Hugging Face's GPT-2,
weight [d_in, d_out]). Those within ``nn.MultiheadAttention`` do not count: PyTorch reads their weights past them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from torch import nn

from .networks import Network

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BODY = "body.*"
BLOCKS = "*.[0-9]*.*, !*vision*, !*projector*"
SHOWN = 12
"""An error message lists so many names at most."""


def linears(net: nn.Module, patterns: str = "", *, convolutions: bool = False) -> dict[str, nn.Module]:
    """Linear layers (on request convolutions too) whose names match, in the network's order.

    A layer that has several names goes by its first. Raises ``ValueError`` in one line that says which names there
    are.

    >>> from driftway.models.networks import build
    >>> list(linears(build("mlp:8-4", (16,), 3))), list(linears(build("mlp:8-4", (16,), 3), "*, !body.1"))
    (['body.1', 'body.3'], ['body.3', 'head'])
    """
    wanted = patterns or (BODY if isinstance(net, Network) else BLOCKS)
    there = _there(net, convolutions)
    found = {name: layer for name, layer in there.items() if matches(name, wanted)}
    if not found:
        kind = "linear or convolution" if convolutions else "linear"
        raise ValueError(f"{wanted!r} names no {kind} layer: there are {shortened(there) or 'none'}")
    return found


def matches(name: str, patterns: str) -> bool:
    """Whether one of the patterns holds for the name, and none of those with ``!``.

    >>> [matches(name, "body.*, !*.2.*") for name in ("body.1.q", "body.2.q", "head")]
    [True, False, False]
    """
    words = [word.strip() for word in patterns.split(",")]
    if any(fnmatchcase(name, word[1:].strip()) for word in words if word.startswith("!")):
        return False
    return any(fnmatchcase(name, word) for word in words if not word.startswith("!"))


def shortened(names: Iterable[str]) -> str:
    """Names with commas between; where there are many, numbers become ``*`` and what is then alike is said once.

    >>> shortened(f"block.{n}.{part}" for n in range(20) for part in "qkv")
    'block.*.q, block.*.k, block.*.v'
    """
    given = list(names)
    if len(given) > SHOWN:
        given = list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in given))
    more = f" and {len(given) - SHOWN} more" if len(given) > SHOWN else ""
    return ", ".join(given[:SHOWN]) + more


def is_transposed(layer: nn.Module) -> bool:
    """Whether it is a linear layer with weight [d_in, d_out]."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


def sizes(layer: nn.Module) -> tuple[int, int]:
    """(d_in, d_out) of a linear layer of either kind."""
    first, second = layer.get_parameter("weight").shape
    return (first, second) if is_transposed(layer) else (second, first)


def replace(net: nn.Module, layers: Mapping[nn.Module, nn.Module]) -> None:
    """Put other layers in the place of some, wherever the network has them.

    A ``nn.TransformerEncoderLayer`` then goes without its shortcut of evaluation, which reads weights past the layers.
    """
    for parent in list(net.modules()):
        if parent in layers.values():
            continue
        for name, child in list(parent.named_children()):
            if child in layers:
                setattr(parent, name, layers[child])
                if isinstance(parent, nn.TransformerEncoderLayer):
                    parent.activation_relu_or_gelu = 0


def _there(net: nn.Module, convolutions: bool) -> dict[str, nn.Module]:
    kinds = (nn.Linear, *CONVOLUTIONS) if convolutions else (nn.Linear,)
    found: dict[str, nn.Module] = {}
    inside: set[nn.Module] = set()
    for name, layer in net.named_modules():
        if isinstance(layer, nn.MultiheadAttention):
            inside |= set(layer.modules())
        elif layer not in inside and (isinstance(layer, kinds) or is_transposed(layer)):
            found[name] = layer
    return found
