"""LoRA as techniques: the network is frozen, and adapters of low rank beside its linear layers learn.

- ``lora``: one adapter for the whole stream. Hu et al., ICLR 2022.
- ``inc-lora``: a new adapter for every experience, the earlier ones frozen but in the sum.
- ``o-lora``: the same with a penalty for overlap with the earlier ones. Wang et al., Orthogonal subspace learning for
  language model continual learning, Findings of EMNLP 2023, arXiv 2310.14152:

      ortho sum_layers sum |A_old A_new^T| + ortho_l2 sum_layers (||A_new|| + ||B_new||)

  The first term, with the sum of absolute values, and the second, with norms that are not squared, are those of the
  authors' code; 0.5 and 0 are what its scripts begin with.

Adapters attach to any network by name patterns (``models/named.py``). Memory grows by r (d_in + d_out) numbers a layer
and experience with the latter two; time does not (``models/lora.py``). A new adapter begins with fresh moments of the
optimiser (in the published code every task is a process of its own). ``dw.fold_lora(learner.net)`` adds all adapters to
the weights beneath when learning is over, which leaves a plain network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from ...models.lora import LoRALinear
from ..learner import State
from .adapters import HEAD, attach, freeze, seed_of
from .parts import Active, Rows

if TYPE_CHECKING:
    from .gradient import GradientLearner

NOTHING: frozenset[str] = frozenset()
TWICE = "both put adapters beside the same layers"
FROZEN = "adapters leave all weights beneath them as they are"
REFUSED = {"LoRA": TWICE, "IncLoRA": TWICE, "OLoRA": TWICE, "SparCL": FROZEN, "AdaB2N": FROZEN}


@dataclass(frozen=True)
class LoRA:
    """One adapter of low rank beside every chosen linear layer; all else is frozen but for ``train_also``."""

    lora_rank: int = 8
    """Rank of an adapter."""
    lora_alpha: float = 32.0
    """An adapter counts alpha / rank times."""
    lora_dropout: float = 0.05
    """Share of an adapter's inputs that is dropped in training."""
    lora_layers: str = ""
    """Linear layers by name, patterns with commas between, ! takes away; empty: the blocks of a transformer, a body."""
    train_also: str = HEAD
    """Parameters of the network that learn too, by name."""
    needs: ClassVar[frozenset[str]] = NOTHING
    refuses: ClassVar[Mapping[str, str]] = {n: why for n, why in REFUSED.items() if n != "LoRA"}

    def __post_init__(self) -> None:
        if self.lora_rank < 1 or self.lora_alpha <= 0 or not 0 <= self.lora_dropout < 1:
            raise ValueError("lora_rank must be at least 1, lora_alpha above 0, lora_dropout in 0..1, 1 excluded")

    def start(self, learner: GradientLearner) -> Active:
        return _LoRA(learner, self)


@dataclass(frozen=True)
class IncLoRA(LoRA):
    """A new adapter for every experience; the earlier ones stay as they are and count."""

    needs: ClassVar[frozenset[str]] = frozenset({"boundaries"})
    refuses: ClassVar[Mapping[str, str]] = {
        **{n: why for n, why in REFUSED.items() if n != "IncLoRA"},
        "EWC": "it holds weights near where they were, and every adapter begins anew",
    }

    def start(self, learner: GradientLearner) -> Active:
        return _Growing(learner, self)


@dataclass(frozen=True)
class OLoRA(LoRA):
    """A new adapter for every experience, kept orthogonal to the earlier ones."""

    ortho: float = 0.5
    """Weight of the overlap between the new A and the earlier ones."""
    ortho_l2: float = 0.0
    """Weight of the norms of the new A and B."""
    needs: ClassVar[frozenset[str]] = IncLoRA.needs
    refuses: ClassVar[Mapping[str, str]] = {
        **{n: why for n, why in REFUSED.items() if n != "OLoRA"},
        "EWC": IncLoRA.refuses["EWC"],
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.ortho, self.ortho_l2) < 0:
            raise ValueError("ortho and ortho_l2 must be at least 0")

    def start(self, learner: GradientLearner) -> Active:
        return _Orthogonal(learner, self)


class _LoRA(Active):
    def __init__(self, learner: GradientLearner, values: LoRA) -> None:
        self.learner, self.values = learner, values

        def adapted(layer: nn.Module, number: int) -> LoRALinear:
            seed = seed_of(learner, number, 0)
            return LoRALinear(layer, values.lora_rank, values.lora_alpha, values.lora_dropout, seed)

        self.layers = attach(learner, "lora_layers", values.lora_layers, adapted)
        self.learning = [f"{name}.{part}.weight" for name in self.layers for part in ("lora_A", "lora_B")]
        self.adapters = 1
        self._freeze()
        learner.rebuilt()

    def _freeze(self) -> None:
        freeze(self.learner, self.values.train_also, self.learning)

    def before_forward(self, rows: Sequence[Rows]) -> None:
        if self.values.lora_dropout:
            first = seed_of(self.learner, self.learner.updates)
            for number, layer in enumerate(self.layers.values()):
                layer.key = first + number

    def grown(self, name: str, rows: int) -> None:
        self._freeze()
        self.learner.rebuilt()

    def load(self, state: State) -> None:
        self._freeze()


class _Growing(_LoRA):
    reshapes = True

    def boundary(self) -> None:
        for number, layer in enumerate(self.layers.values()):
            layer.grow(seed_of(self.learner, number, self.adapters))
        for name in self.learning:
            self.learner.optimiser.slots.pop(name, None)
        self.adapters += 1

    def telemetry(self) -> dict[str, float]:
        return {"adapters": float(self.adapters)}

    def state(self) -> State:
        return {"adapters": self.adapters}

    def load(self, state: State) -> None:
        super().load(state)
        self.adapters = int(state["adapters"])


class _Orthogonal(_Growing):
    def penalty(self, now: Rows) -> Tensor | None:
        values = self.values
        assert isinstance(values, OLoRA)
        terms: list[Tensor] = []
        for layer in self.layers.values():
            a, b = layer.lora_A.weight, layer.lora_B.weight
            if self.adapters > 1 and values.ortho:
                terms.append(values.ortho * (layer.old_A @ a.t()).abs().sum())
            if values.ortho_l2:
                terms.append(values.ortho_l2 * (torch.linalg.vector_norm(a) + torch.linalg.vector_norm(b)))
        return torch.stack(terms).sum() if terms else None
