"""MIGU: of every layer only the rows whose outputs are large in the present step are updated.

Du et al., Unlocking continual learning abilities in language models, EMNLP Findings 2024, arXiv 2406.17245.

From the paper: the score (sum of |output| over a step's tokens, before any activation), k = rows - floor(ratio rows),
one mask per layer and step, no memory and no labels; of LoRA, A by the outputs of its rank and B by those of the whole
layer that it belongs to. From the authors' code: no mask in the first experience (``migu_from``; a stream that tells no
boundaries is masked from its first step on), clipping after the mask, bias included in the score and left out of the
mask, the choice by a quantile (``migu_quantile``), padding that counts (``migu_padding``), and ``reference``: masked
gradients go to an ordinary optimiser, whose momentum and weight decay keep moving masked rows.

Ours: ``strict``, where a masked row keeps weight, moments and place under decay bit for bit, and every row counts its
own updates; the weight gradient is then formed for the active rows alone and the optimiser touches only those.
``lazy``, which is strict but makes up for missed decay when a row wakes. Convolutions (the score is summed over
positions), ``token_l1``, blocks, the controls ``random`` and ``bottom``, tokens without padding. In a step whose score
is not finite all rows are active, and that is counted. The authors' code masks the head too; here that takes
``migu_layers=body.*,head``, and it begins every task with a fresh optimiser, where moments go on here. A weight that an
embedding shares is never masked; queries, keys and values in one weight are chosen apart (``c_attn``, ``qkv``).

Layers are found by name in any network, LoRA of ours or of PEFT included, and only those that learn are masked. A batch
that goes through the network in pieces has one mask, since all of them have been scored when the first gradient is
formed; a pass that activation checkpointing repeats is not scored again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ...models.kernels.inference_linear import PLAIN
from ...models.kernels.row_choice import Choice, RowSlot, Together
from ...models.kernels.row_sparse_linear import row_sparse_conv, row_sparse_linear
from ...models.kernels.row_sparse_optimizer import FACTORS
from ...models.language import Context, context_of
from ...models.named import CONVOLUTIONS, is_transposed, linears, shortened, sizes
from ...models.optimisers import AdamW, Entries, Only, Optimiser, RowSet
from ...streams import InputError
from ..learner import State
from .parts import Active, Rows
from .row_overlap import RowOverlap

if TYPE_CHECKING:
    from .gradient import GradientLearner


@dataclass(frozen=True)
class MIGU:
    """Magnitude-based gradient updating: the share ``mask_ratio`` of every layer's rows is left out of an update."""

    mask_ratio: float = 0.7
    """Share of rows that are masked; 0: the technique is absent, to the bit."""
    migu_mode: Literal["strict", "reference", "lazy"] = "strict"
    """strict: masked rows stand still. reference: only their gradient is 0. lazy: strict, with decay made up for."""
    migu_score: Literal["sum_abs", "token_l1"] = "sum_abs"
    """What is summed over tokens: |output|, or |output| divided by the token's own sum."""
    migu_select: Literal["top", "random", "bottom"] = "top"
    """Rows of the largest score; the controls: rows drawn anew in every step, rows of the smallest score."""
    migu_layers: str = ""
    """Linear and convolution layers by name, patterns with commas between, ! takes away; empty: the blocks of a
    transformer, a body; the head of a network is called head."""
    migu_from: int = -1
    """First experience with masks; -1: 1 where the stream tells its boundaries, as in the authors' code, else 0."""
    migu_block_rows: int = 1
    """So many neighbouring rows are chosen together: cheaper, coarser."""
    migu_bias: bool = False
    """Mask biases too."""
    migu_quantile: bool = False
    """Choose the rows at or above the score's quantile, as the authors' code does."""
    migu_padding: bool = False
    """Count padding as tokens, as the authors' code does."""
    refuses: ClassVar[Mapping[str, str]] = {
        "AGEM": "A-GEM projects whole gradients, and MIGU forms only part of one",
        "SparCL": "both say which weights of a layer an update may touch",
    }

    def __post_init__(self) -> None:
        if not 0 <= self.mask_ratio < 1:
            raise ValueError("mask_ratio must be in 0..1, 1 excluded")
        if self.migu_from < -1 or self.migu_block_rows < 1:
            raise ValueError("migu_from must be at least -1 and migu_block_rows at least 1")

    @property
    def needs(self) -> frozenset[str]:
        """Boundaries, where masks begin with a later experience."""
        return frozenset({"boundaries"} if self.migu_from > 0 else ())

    def start(self, learner: GradientLearner) -> Active:
        return _MIGU(learner, self)


class MaskedLayer:
    """The forward function of a layer at work: plain, unless a training step has armed its slot.

    layer: whose outputs are scored. Most often it is the layer whose weight is masked; the weight of lora_B is masked
    by the outputs of the whole layer that it is part of. real: says which tokens are no padding. masks: whether rows
    are to be masked, or looked at only. It holds no more than these, so that a network can be copied with it.
    """

    def __init__(
        self, layer: nn.Module, slot: RowSlot, path: Literal["dense", "compact"], real: Context | None = None
    ) -> None:
        self.layer, self.slot, self.real, self.masks = layer, slot, real, True
        self.plain: Callable[..., Tensor] = layer.forward
        self.path: Literal["dense", "compact"] = path if _is_simple(layer) else "dense"

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer: Any = self.layer
        if self.slot.step is None or not (layer.training and torch.is_grad_enabled()):
            return self.plain(x, *args, **kwargs)
        keep = None if self.real is None or x.dim() != 3 else self.real.valid(*x.shape[:2])
        if self.path == "dense" or not self.masks:
            y = self.plain(x, *args, **kwargs)
            seen = y.detach()
            self.slot.see(seen if isinstance(layer, CONVOLUTIONS) else seen.reshape(-1, seen.shape[-1]), keep)
            return y
        if isinstance(layer, nn.Linear):
            return row_sparse_linear(x, layer.weight, layer.bias, self.slot, keep=keep)
        geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        return row_sparse_conv(x, layer.weight, layer.bias, self.slot, **geometry)


class _MIGU(Active):
    def __init__(self, learner: GradientLearner, values: MIGU) -> None:
        self.learner, self.values = learner, values
        bounded = values.migu_from > 0 or (values.migu_from < 0 and len(learner.spec.experiences) > 1)
        if bounded:
            learner.needs |= {"boundaries"}
        self.first = values.migu_from if values.migu_from >= 0 else int(bounded)
        self.layers: dict[str, MaskedLayer] = {}
        self.last: dict[str, Tensor] = {}
        self.overlap = RowOverlap(values.mask_ratio)
        self.share = 1.0
        self.not_finite: int | Tensor = 0
        self.together = Together()

    def rebuilt(self) -> None:
        """Give every chosen layer that learns and has none a slot of its own (heads are made anew, adapters come)."""
        values, learner = self.values, self.learner
        if not values.mask_ratio:
            return
        choice = Choice(
            values.mask_ratio, values.migu_score, values.migu_select, values.migu_block_rows, values.migu_quantile
        )
        whole = values.migu_mode == "reference" or learner.params.split_gradients
        factors = FACTORS if isinstance(learner.optimiser, AdamW) and not learner.params.clip else 0
        real = None if values.migu_padding else context_of(learner.net)
        chosen = _chosen(learner, values.migu_layers)
        if values.migu_mode == "lazy":
            _check_lazy(chosen)
        for number, (name, layer) in enumerate(chosen.items()):
            owner, adapter, _ = name.partition(".lora_B")
            scored = learner.net.get_submodule(owner) if adapter else layer
            if name not in self.layers or self.layers[name].layer is not scored:
                one = replace(choice, parts=3) if _is_fused(name, layer) else choice
                slot = RowSlot(one, (learner.seed, number), factors, self.together if one is choice else None)
                self.layers[name] = MaskedLayer(scored, slot, "dense" if whole else "compact", real)
                scored.forward = self.layers[name]

    def grown(self, name: str, rows: int) -> None:
        if name in self.last:
            old = self.last[name]
            self.last[name] = torch.cat([old, old.new_full((rows - len(old),), self.learner.updates - 1)])

    def boundary(self) -> None:
        self.overlap.updates = 0

    def before_forward(self, rows: Sequence[Rows]) -> None:
        masks = self.learner.task >= self.first
        if masks or self.overlap.due(self.learner.task):
            for layer in self.layers.values():
                layer.masks = masks
                layer.slot.arm(self.learner.updates)

    def gradients(self, grads: dict[str, Tensor | None], only: dict[str, Only]) -> None:
        active = rows = 0
        task, due = self.learner.task, self.overlap.due(self.learner.task)
        for name, layer in self.layers.items():
            index, given = layer.slot.take()
            self.not_finite = self.not_finite + layer.slot.not_finite
            layer.slot.not_finite = 0
            if index is None:
                continue
            columns = is_transposed(layer.layer)
            n = self.learner.weights[f"{name}.weight"].shape[int(columns)]
            if due:
                self.overlap.count(name, task, index, n)
            if not layer.masks:
                continue
            active, rows = active + len(index), rows + n
            if columns:
                self._mask_columns(f"{name}.weight", index, grads, only)
            else:
                self._mask_rows(f"{name}.weight", index, given, grads, only)
            if self.values.migu_bias:
                self._mask_rows(f"{name}.bias", index, None, grads, only)
        self.share = active / rows if rows else 1.0
        self.overlap.updates += 1

    def _mask_rows(
        self,
        name: str,
        index: Tensor,
        given: Tensor | tuple[Tensor, Tensor] | None,
        grads: dict[str, Tensor | None],
        only: dict[str, Only],
    ) -> None:
        """Hold the update of a parameter to these rows. given: their gradient, as far as a slot has it."""
        if given is None and grads.get(name) is None:
            return
        if self.values.migu_mode == "reference":
            grads[name] = masked_gradient(grads[name], index)
            return
        if self.values.migu_mode == "lazy":
            self._wake(name, index)
        grads[name], inputs = together(given, grads[name], index)
        only[name] = RowSet(index, compact=True, inputs=inputs)

    def _mask_columns(self, name: str, index: Tensor, grads: dict[str, Tensor | None], only: dict[str, Only]) -> None:
        """The same for a weight [d_in, d_out], whose columns are what others call rows."""
        grad = grads.get(name)
        if grad is None:
            return
        mask = torch.zeros(grad.shape[1], dtype=torch.bool, device=grad.device)
        mask[index] = True
        grads[name] = grad * mask
        if self.values.migu_mode != "reference":
            only[name] = Entries.where(mask.expand_as(grad))

    def _wake(self, name: str, index: Tensor) -> None:
        """Make up for the decay that rows missed since their last update."""
        weight, now = self.learner.weights[name], self.learner.updates
        last = self.last.setdefault(name, torch.full((len(weight),), now - 1, device=weight.device))
        missed = now - 1 - last[index]
        late = missed > 0
        if bool(late.any()):
            catch_up(self.learner.optimiser, name, weight, index[late], missed[late])
        last[index] = now

    def telemetry(self) -> dict[str, float]:
        return {"active_rows": self.share, "rows_not_finite": float(self.not_finite)}

    def facts(self) -> dict[str, Any]:
        return self.overlap.facts()

    def state(self) -> State:
        kept = {"last": dict(self.last), "share": self.share, "not_finite": int(self.not_finite)}
        return kept | {"overlap": self.overlap.state()}

    def load(self, state: State) -> None:
        self.last = {name: tensor.clone().to(self.learner.device) for name, tensor in state["last"].items()}
        self.share, self.not_finite = float(state["share"]), int(state["not_finite"])
        self.overlap.load(state["overlap"], self.learner.device)


def _chosen(learner: GradientLearner, patterns: str) -> dict[str, nn.Module]:
    """The layers that match and learn. One whose weight belongs to an embedding, too, is left out."""
    try:
        found = linears(learner.net, patterns, convolutions=True)
    except ValueError as fault:
        raise InputError(f"migu_layers: {fault}") from None
    learning = {n for n, weight in learner.weights.items() if weight.requires_grad}
    chosen = {name: layer for name, layer in found.items() if f"{name}.weight" in learning}
    if not chosen:
        raise InputError(f"migu_layers: none of these learns: {shortened(found)}")
    return chosen


def _check_lazy(layers: Mapping[str, nn.Module]) -> None:
    """``InputError`` where a weight's rows are not its layer's: what decay made of columns is not made up for."""
    for name, layer in layers.items():
        if is_transposed(layer):
            raise InputError(f"migu_mode=lazy knows rows only, and {name} has its outputs in columns: take strict")


def _is_fused(name: str, layer: nn.Module) -> bool:
    """Whether queries, keys and values lie one behind the other in one weight, as in GPT-2 and ViT."""
    if name.rpartition(".")[2] not in ("c_attn", "qkv"):
        return False
    d_in, d_out = sizes(layer)
    return d_out == 3 * d_in


def together(
    given: Tensor | tuple[Tensor, Tensor] | None, dense: Tensor | None, index: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """(gradient of the rows, inputs): what a slot held, and what came by another way (a penalty on the weights)."""
    if dense is None and isinstance(given, tuple):
        return given
    rows = given[0].t() @ given[1] if isinstance(given, tuple) else given
    if dense is None:
        return rows, None
    some = dense.index_select(0, index)
    return some if rows is None else rows + some, None


def masked_gradient(grad: Tensor | None, index: Tensor) -> Tensor | None:
    """The gradient with all other rows at 0."""
    if grad is None:
        return None
    out = torch.zeros_like(grad)
    out[index] = grad[index]
    return out


def catch_up(optimiser: Optimiser, name: str, weight: Tensor, index: Tensor, missed: Tensor) -> None:
    """What weight decay and the decay of moments would have done to these rows in ``missed`` updates (int64[k]).

    w (1 - lr decay)^n; SGD: v momentum^n; AdamW: m b1^n, v b2^n, t + n. A moving average does not move the weight here:
    neither plain Adam nor strict, but the right moments for the next update.
    """
    decay = 0.0 if name in optimiser.undecayed else optimiser.weight_decay
    slot = optimiser.slots.get(name, {})
    faded = [(weight.detach(), 1 - optimiser.lr * decay)]
    if isinstance(optimiser, AdamW):
        faded += [(slot[key], beta) for key, beta in zip(("m", "v"), optimiser.betas)]
        slot["t"][index] += missed
    elif "momentum" in slot:
        faded.append((slot["momentum"], optimiser.momentum))
    times = missed.reshape(-1, *[1] * (weight.dim() - 1))
    for tensor, factor in faded:
        tensor[index] *= (factor ** times.double()).to(tensor.dtype)


def _is_simple(layer: nn.Module) -> bool:
    """Whether the compact path knows the layer: a plain linear one; a convolution without groups, zeros beyond the
    edge."""
    if not isinstance(layer, CONVOLUTIONS):
        return type(layer) in PLAIN
    return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
