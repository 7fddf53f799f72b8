"""Gradient learners as functions: a labelled row, weights and the optimiser's moments in; the same after a step out.

The step is the learner's own (``learners/gradient.py``): cross-entropy of the rows at hand in training mode, weight
decay, the clip of the whole gradient, SGD or AdamW; its gradient is autograd's, written down for one row at a time by
``make_fx``. Weights that do not move (``head_only``) are constants, and get no gradient. Masks of SparCL and its
controls stand as they are at export: entries that are masked keep weight, moments and place under decay bit for bit.

state: ``NAME`` of every weight that moves, ``NAME.momentum``, or ``NAME.m`` and ``NAME.v`` and ``taken`` float32[1];
statistics of batch norms by their names; ``met`` float32[1] of AdaB2N, the last group that was met, whose layers see
one group at a time here, so that psi weighs nothing and stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions, get_decompositions
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from ...models.inputs import Columns, Pixels, Tokens
from ...models.kernels.selection import references
from ...models.norms import ada_loss
from ...models.optimisers import AdamW
from ..learners.adab2n import AdaB2N
from ..learners.gradient import GradientLearner
from ..learners.replay import Finetune
from .steps import CannotExport, Steps, Verb, drawn, over, plain_layers, rows_module

OUTCOME = ("took",)


def steps(learner: GradientLearner) -> Steps:
    """predict and learn; ``CannotExport`` for replay, parts without a graph, and columns whose scale follows."""
    rows = drawn(_inputs(learner), learner.spec.n_features)
    masks = _masks(learner)
    if learner.by_task or learner.params.single_head or learner.spec.n_classes is None:
        raise CannotExport("a gradient learner can be exported for streams that name their classes, with one head")
    if not learner.inputs.fixed:
        raise CannotExport("columns whose scale follows the stream have no form as a graph yet; images have")
    if learner.net.head.out_features < learner.spec.n_classes:
        learner._grow(learner.spec.n_classes)
    step = Step(learner, masks)
    classes = learner.spec.n_classes

    def labelled(n: int, seed: int) -> dict[str, Tensor]:
        return {**rows(n, seed), "y": torch.arange(seed, seed + n) % classes}

    names = tuple(step.state)
    asked = tuple(n for n in names if n in step.values)
    verbs = {
        "predict": Verb(Predict(learner, asked), rows, asked),
        "learn": Verb(step.graph, labelled, names, names, ("outcome",), single=True),
    }
    return Steps(verbs, step.state, {"outcome": OUTCOME})


def _inputs(learner: GradientLearner) -> Pixels | Columns:
    if isinstance(learner.inputs, Tokens):
        raise CannotExport("language models have no form as a graph here: they run where transformers is")
    if learner.params.precision != "float32":
        raise CannotExport("steps are written down in float32: leave precision as it is")
    return learner.inputs


def _masks(learner: GradientLearner) -> dict[str, Tensor]:
    """bool by name of the weights that are masked: the entries that move."""
    found: dict[str, Tensor] = {}
    if not isinstance(learner.policy, type(Finetune().start(learner))):
        raise CannotExport(
            f"{type(learner.policy).__name__.strip('_')} keeps rows to learn from again: export finetune"
        )
    for part in learner.techniques:
        if _balances(part):
            continue
        sparse = getattr(part, "sparse", None)
        if sparse is None or part.reshapes:
            raise CannotExport(
                f"{type(part).__name__.strip('_')} has no form as a graph yet; masks of single weights have"
            )
        found |= {n: m.granules.spread(m.active & m.moving) for n, m in sparse.masks.items()}
    return found


def _balances(part: Any) -> bool:
    """Whether it is AdaB2N; ``CannotExport`` where absent groups take a share, which no row at hand has."""
    values = getattr(part, "values", None)
    if isinstance(values, AdaB2N) and values.reference:
        raise CannotExport("adab2n as in its authors' code has no form as a graph: set reference=false")
    return isinstance(values, AdaB2N)


class Predict(nn.Module):
    """Rows and what moves of the network to softmax(z)."""

    def __init__(self, learner: GradientLearner, names: tuple[str, ...]) -> None:
        super().__init__()
        self.rows, self.net, self.names = rows_module(_inputs(learner)), plain_layers(learner.net), names

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        z = functional_call(self.net, dict(zip(self.names, state)), (self.rows(x),))
        return (torch.softmax(z, 1),)


class Step:
    """A step on one row. graph: (x, y, *state) to (outcome, *state after it)."""

    def __init__(self, learner: GradientLearner, masks: Mapping[str, Tensor]) -> None:
        self.rows, self.net, self.how = rows_module(_inputs(learner)), plain_layers(learner.net), learner.params
        for layer in self.net.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.num_batches_tracked = None  # a count that nothing here follows
        self.optimiser, self.masks = learner.optimiser, masks
        parts: list[Any] = [part for part in learner.techniques if _balances(part)]
        self.balance: Any = parts[0] if parts else None
        still = () if self.balance is None else self.balance.names  # a row at a time is a group at a time
        self.weights = {n: learner.weights[n].detach().clone() for n in learner._trained if n not in still}
        statistics = {} if self.how.head_only else dict(learner.net.named_buffers())
        self.statistics = {n: b.clone() for n, b in statistics.items() if b.is_floating_point()}
        self.values = {**self.weights, **self.statistics}
        self.state = {**self.values, **self._slots()}
        if self.balance is not None:
            self.state["met"] = torch.tensor([float(max(learner.task, len(self.balance.layers[0].psi) - 1))])
        example = {**drawn(_inputs(learner), learner.spec.n_features)(1, 0), "y": torch.zeros(1, dtype=torch.int64)}
        aten: Any = torch.ops.aten
        table = {**core_aten_decompositions(), **get_decompositions([aten.native_batch_norm, aten.native_group_norm])}
        table[aten.convolution_backward.default] = convolution_back
        table.pop(aten.max_pool2d_with_indices_backward.default, None)  # ``tracing.py`` has its form
        self.net.train()
        try:
            given = (*example.values(), *self.state.values())
            with references():
                self.graph = make_fx(self._step, decomposition_table=table)(*given)
        except (ValueError, RuntimeError) as fault:
            raise CannotExport(f"a step on one row: {' '.join(str(fault).split())}") from None

    def _slots(self) -> dict[str, Tensor]:
        """The optimiser's moments, zeros where there are none yet."""
        kinds = ("m", "v") if isinstance(self.optimiser, AdamW) else ("momentum",) if self.how.momentum else ()
        held = self.optimiser.slots
        found = {f"{n}.{k}": held.get(n, {}).get(k, torch.zeros_like(w)).clone() for n, w in self.weights.items()
                 for k in kinds}  # fmt: skip
        if "m" in kinds:
            counts = [slot["t"] for slot in held.values()]
            if any(t.dim() for t in counts):
                raise CannotExport("rows that count their own updates have no form as a graph yet")
            found["taken"] = torch.tensor([float(max((float(t) for t in counts), default=0.0))])
        return found

    def _step(self, x: Tensor, y: Tensor, *state: Tensor) -> list[Tensor]:
        now = dict(zip(self.state, state, strict=True))
        for _ in range(self.how.passes):
            now |= self._update(x, y, now)
        return [torch.ones(1), *(now[n] for n in self.state)]

    def _update(self, x: Tensor, y: Tensor, old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = {n: old[n].detach().requires_grad_(True) for n in self.weights}
        statistics = {n: old[n].clone() for n in self.statistics}
        with torch.enable_grad():
            loss = F.cross_entropy(self._logits(self.rows(x), weights, statistics), y)
            met = None
            if self.balance is not None:
                loss, met = self._balanced(loss, y, old["met"])
            grads = dict(zip(weights, torch.autograd.grad(loss, list(weights.values()))))
        if self.how.clip:
            length = torch.sqrt(sum((g * g).sum() for g in grads.values()))
            scale = torch.clamp(self.how.clip / (length + 1e-6), max=1.0)
            grads = {n: g * scale for n, g in grads.items()}
        new: dict[str, Tensor] = {n: t.detach() for n, t in statistics.items()}
        if met is not None:
            new["met"] = met
        if "taken" in old:
            new["taken"] = old["taken"] + 1
        for name, grad in grads.items():
            moved = self._moved(name, grad, old)
            mask = self.masks.get(name)
            new |= moved if mask is None else {n: torch.where(mask, t, old[n]) for n, t in moved.items()}
        return new

    def _balanced(self, loss: Tensor, y: Tensor, met: Tensor) -> tuple[Tensor, Tensor]:
        """With the loss of AdaB2N's layers, from the group on that it counts from; the last group that was met."""
        how: AdaB2N = self.balance.values
        met = torch.maximum(met, y.to(met.dtype)) if how.ids == "classes" else met
        apart = ada_loss(self.net)
        share = how.ada * (met >= how.ada_from).to(loss.dtype)
        return (loss if apart is None else loss + (share * apart).sum()), met

    def _logits(self, x: Tensor, weights: Mapping[str, Tensor], statistics: Mapping[str, Tensor]) -> Tensor:
        if not self.how.head_only:
            z: Tensor = functional_call(self.net, {**weights, **statistics}, (x,))
            return z
        body: Any = self.net.body
        features = body.eval()(x).detach()
        return F.linear(features, weights["head.weight"], weights["head.bias"])

    def _moved(self, name: str, grad: Tensor, old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weight and its moments after the step."""
        weight, how = old[name], self.how
        decay = 0.0 if name in self.optimiser.undecayed else how.weight_decay
        if isinstance(self.optimiser, AdamW):
            b1, b2 = self.optimiser.betas
            taken = old["taken"] + 1
            m = old[f"{name}.m"] + (1 - b1) * (grad - old[f"{name}.m"])
            v = b2 * old[f"{name}.v"] + (1 - b2) * grad * grad
            length = torch.sqrt(v) / torch.sqrt(1 - b2**taken)
            moved = weight * (1 - self.optimiser.lr * decay) - (self.optimiser.lr / (1 - b1**taken)) * over(
                m, length, self.optimiser.eps
            )
            return {name: moved, f"{name}.m": m, f"{name}.v": v}
        grad = grad + decay * weight if decay else grad
        if not how.momentum:
            return {name: weight - self.optimiser.lr * grad}
        velocity = how.momentum * old[f"{name}.momentum"] + grad
        return {name: weight - self.optimiser.lr * velocity, f"{name}.momentum": velocity}


def convolution_back(
    dy: Tensor, x: Tensor, weight: Tensor, _: Any, stride: list[int], padding: list[int], dilation: list[int],
    transposed: bool, output_padding: list[int], groups: int, wanted: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """The gradients of a convolution as convolutions: for x the transposed one, for the weight one over the rows."""
    if transposed or groups != 1 or any(output_padding):
        raise CannotExport("a transposed or grouped convolution has no gradient as a graph")
    dx = dw = db = None
    kernel = weight.shape[2:]
    if wanted[0]:
        sizes = zip(x.shape[2:], dy.shape[2:], stride, padding, dilation, kernel)
        rest = [n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for n, m, s, p, d, k in sizes]
        dx = torch.ops.aten.convolution(dy, weight, None, stride, padding, dilation, True, rest, groups)
    if wanted[1]:
        across = x.transpose(0, 1), dy.transpose(0, 1)
        dw = torch.ops.aten.convolution(*across, None, dilation, padding, stride, False, [0] * len(kernel), 1)
        dw = dw[:, :, : kernel[0], : kernel[1]].transpose(0, 1)
    if wanted[2]:
        db = dy.sum([0, *range(2, dy.dim())])
    return dx, dw, db
