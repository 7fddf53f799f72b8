"""Forward passes of a network in pieces that fit into memory, and in the precision that is asked for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...models.language import LanguageNetwork, context_of
from ...streams import InputError

Precision = Literal["float32", "autocast", "bfloat16"]


class Passes:
    """How rows go through a network.

    micro_batch: in training more rows than this go in pieces, each computed a second time when its gradient is formed:
    activations of one piece at once, and the very gradient of the whole batch whatever the loss is made of (ours;
    adding up gradients of losses of pieces needs no second pass, and is right for some losses only). checkpointing: the
    same within a piece, block by block. precision: autocast runs what gains from it in bfloat16; with bfloat16 the
    weights are so too.
    """

    def __init__(
        self, net: nn.Module, micro_batch: int, checkpointing: bool, precision: Precision, device: torch.device
    ) -> None:
        self.net: Any = net
        self.device, self.micro_batch, self.precision = device, micro_batch, precision
        self.writes = isinstance(net, LanguageNetwork)
        if micro_batch and any(name.endswith("running_mean") for name, _ in net.named_buffers()):
            raise InputError("micro_batch: a piece of a batch has other batch statistics; take norm=group or norm=none")
        if checkpointing and not isinstance(net, LanguageNetwork):
            raise InputError("checkpointing is for language models that write their answers: leave it out")
        if isinstance(net, LanguageNetwork) and checkpointing:
            net.checkpoint()
        if precision == "bfloat16":
            net.to(torch.bfloat16)

    def around(self) -> AbstractContextManager[Any]:
        """What every pass goes on in."""
        if self.precision != "autocast":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def cast(self, x: Tensor) -> Tensor:
        """Rows as the network takes them; those of a language stream are counted in whole numbers, and stay."""
        return x.to(torch.bfloat16) if self.precision == "bfloat16" and not self.reads_tokens else x

    @property
    def reads_tokens(self) -> bool:
        """Whether rows are token ids."""
        return self.writes or hasattr(getattr(self.net, "body", None), "layout")

    def run(self, x: Tensor, y: Tensor) -> Tensor:
        """The network's outputs: float[B, C], or of one that writes float[B, A, V]. y: int64[B], read by the latter."""
        with self.around():
            if self.writes:
                tokens = self.net.longest(y)
                return self._pieces(lambda *part: self.net(*part, tokens), x, y)
            return self._pieces(lambda part, _: self.net(self.cast(part)), x, y)

    def _pieces(self, run: Any, x: Tensor, y: Tensor) -> Tensor:
        if not self.micro_batch or len(x) <= self.micro_batch or not torch.is_grad_enabled():
            out: Tensor = run(x, y)
            return out
        context = context_of(self.net)
        again: dict[str, Any] = {} if context is None else {"context_fn": context.repeats}
        pairs = zip(x.split(self.micro_batch), y.split(self.micro_batch))
        return torch.cat([checkpoint(run, *pair, use_reentrant=False, **again) for pair in pairs])
