"""How a test-time learner's passes are made: the fastest way for each size of batch, or the one asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import nn

from ...models.fastest_passes import FastestPasses
from ...streams import InputError, cache_folder

Way = Literal["auto", "plain", "manual", "channels-last", "fused", "packed", "packed-fused", "captured", "compiled"]


def passes_for(net: nn.Module, names: Iterable[str], way: Way) -> FastestPasses:
    """Passes of ``net`` for the parameters ``names``; choices are kept in the cache folder, so that runs repeat.

    Raises ``InputError`` for a way that there is not for this model.
    """
    try:
        return FastestPasses(net, names, folder=cache_folder() / "steps", only=None if way == "auto" else way)
    except ValueError as fault:
        raise InputError(f"{fault}") from None
