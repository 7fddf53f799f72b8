"""LoRA: a frozen linear layer plus adapters of low rank, of which the last one learns.

    y = x W^T + b + (alpha / r) sum_k dropout(x) A_k^T B_k^T,    A_k [r, d_in], B_k [d_out, r]

Hu et al., LoRA: low-rank adaptation of large language models, ICLR 2022: A is drawn, B begins at 0, so that a new
adapter changes nothing until it learns. Several adapters in a sum, one per task, are those of incremental LoRA and of
O-LoRA (Wang et al., Findings of EMNLP 2023, arXiv 2310.14152). The frozen ones lie in one bank, A [K r, d_in] and
B [d_out, K r]: two products, however many tasks there were, no gradient and no optimiser state for them.

Ours: dropout draws its own numbers, a function of ``key`` and the input's shape alone, so that PyTorch's generator is
left alone and a pass that checkpointing runs again drops the same entries.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .named import is_transposed, replace, sizes


class LoRALinear(nn.Module):
    """A linear layer ``base`` (either kind), frozen, and its adapters: x [..., d_in] to [..., d_out].

    lora_A, lora_B: the adapter that learns. old_A float[K r, d_in], old_B float[d_out, K r]: those that are frozen, in
    the order in which they came. scale: alpha / r. key: what dropout draws from.
    """

    old_A: Tensor
    old_B: Tensor

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.rank, self.scale, self.dropout, self.key = rank, alpha / rank, dropout, 0
        weight = base.get_parameter("weight")
        d_in, d_out = sizes(base)
        self.lora_A = nn.Linear(d_in, rank, bias=False, device=weight.device, dtype=weight.dtype)
        self.lora_B = nn.Linear(rank, d_out, bias=False, device=weight.device, dtype=weight.dtype)
        self.register_buffer("old_A", weight.new_zeros((0, d_in)))
        self.register_buffer("old_B", weight.new_zeros((d_out, 0)))
        self.begin(seed)

    @property
    def weight(self) -> Tensor:
        """That of the layer beneath: models that look at its type or shape find it here."""
        return self.base.get_parameter("weight")

    @property
    def bias(self) -> Tensor | None:
        """Likewise."""
        return dict(self.base.named_parameters()).get("bias")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        x = self._dropped(x)
        low = self.lora_B(self.lora_A(x))
        if len(self.old_A):
            low = low + F.linear(F.linear(x, self.old_A), self.old_B)
        return y + self.scale * low

    def begin(self, seed: int) -> None:
        """A new adapter that changes nothing yet: A uniform in +-1 / sqrt(d_in), as in the published code, B 0."""
        a = self.lora_A.weight
        drawn = torch.empty(a.shape).uniform_(-1, 1, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            a.copy_(drawn * a.shape[1] ** -0.5)
            self.lora_B.weight.zero_()

    def grow(self, seed: int) -> None:
        """Freeze the adapter that learnt and begin another."""
        self.old_A = torch.cat([self.old_A, self.lora_A.weight.detach()])
        self.old_B = torch.cat([self.old_B, self.lora_B.weight.detach()], 1)
        self.begin(seed)

    def change(self) -> Tensor:
        """What all adapters together add to the weight, float[d_out, d_in], computed in float32 at least."""
        real = torch.promote_types(self.lora_A.weight.dtype, torch.float32)
        a = torch.cat([self.old_A, self.lora_A.weight]).to(real)
        return self.scale * (torch.cat([self.old_B, self.lora_B.weight], 1).to(real) @ a)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Banks take the size of those in the state."""
        for name in ("old_A", "old_B"):
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(self, name, getattr(self, name).new_zeros(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _dropped(self, x: Tensor) -> Tensor:
        if not self.training or not self.dropout:
            return x
        generator = torch.Generator(x.device).manual_seed(self.key)
        kept = torch.rand(x.shape, generator=generator, device=x.device) >= self.dropout
        return x * kept / (1 - self.dropout)


def fold(net: nn.Module) -> int:
    """Add all adapters to the weights beneath and take them out; returns how many layers there were.

    Outputs stay within 1e-5 of the largest in float32; a bfloat16 weight is rounded once.
    """
    layers = [layer for layer in net.modules() if isinstance(layer, LoRALinear)]
    with torch.no_grad():
        for layer in layers:
            change = layer.change()
            weight = layer.weight
            weight.copy_(weight.to(change.dtype) + (change.t() if is_transposed(layer.base) else change))
    replace(net, {layer: layer.base for layer in layers})
    return len(layers)
