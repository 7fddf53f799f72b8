"""Gradient learners as functions: labelled rows, weights and the optimiser's moments in; the same after a step out.

The step is the learner's own (``learners/gradient.py``): cross-entropy of the rows at hand in training mode, weight
decay, the clip of the whole gradient, SGD or AdamW; its gradient is autograd's, written down by ``make_fx`` for any
number of rows, or, where a network has statistics that follow them, for one at a time: late labels come in groups by
chance, and statistics are not to depend on that. Weights that do not move (``head_only``) are constants, and get no
gradient. Masks of SparCL and its controls stand as they are at export: entries that are masked keep weight, moments and
place under decay bit for bit. Where only some rows of a weight move, MIGU's or those of masks, see ``row_sparse.py``.

state: ``NAME`` of every weight that moves, ``NAME.momentum``, or ``NAME.m`` and ``NAME.v`` and ``taken`` float32[1],
and ``NAME.t`` float32[rows] of a weight whose rows count their own updates; statistics of batch norms by their names;
``met`` float32[1] of AdaB2N, the last group that was met, whose layers see one group at a time here, so that psi weighs
nothing and stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions, get_decompositions
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn import functional as F

from ...models.inputs import Columns, Pixels, Tokens
from ...models.kernels.selection import references
from ...models.norms import ada_loss
from ...models.optimisers import AdamW
from ..learners.adab2n import AdaB2N
from ..learners.gradient import GradientLearner
from ..learners.migu import _MIGU
from ..learners.replay import Finetune
from .row_sparse import Limit, RowGradients, limits_of_masks, limits_of_migu
from .steps import CannotExport, Draw, Steps, Verb, drawn, labelled, over, plain_layers, rest_of, rows_module

OUTCOME = ("took",)
SLOTS = ("momentum", "m", "v", "t")
TRACED = 7
"""Rows of the example, where any number may come."""


def steps(learner: GradientLearner) -> Steps:
    """predict and learn; ``CannotExport`` for replay, parts without a graph, and columns whose scale follows."""
    rows = drawn(_inputs(learner), learner.spec.n_features)
    limits = _limits(learner)
    if learner.spec.n_classes is None:
        raise CannotExport("a gradient learner can be exported for streams that name their classes alone")
    if learner.by_task or learner.params.single_head:
        why = "a stream whose rows tell their experience" if learner.by_task else "single_head"
        raise CannotExport(f"{why} has no form as a graph: a device does not know a row's experience")
    if not learner.inputs.fixed:
        raise CannotExport("columns whose scale follows the stream have no form as a graph yet; images have")
    if learner.net.head.out_features < learner.spec.n_classes:
        learner._grow(learner.spec.n_classes)
    teach = labelled(rows, learner.spec.n_classes)
    step = Step(learner, limits, teach)
    asked = tuple(n for n in step.state if n in step.values)
    verbs = {"predict": Verb(Predict(learner, asked), rows, asked), "learn": step.verb(teach)}
    return Steps(verbs, step.state, {"outcome": OUTCOME})


def _inputs(learner: GradientLearner) -> Pixels | Columns:
    if isinstance(learner.inputs, Tokens):
        raise CannotExport("language models have no form as a graph here: they run where transformers is")
    if learner.params.precision != "float32":
        raise CannotExport("steps are written down in float32: leave precision as it is")
    return learner.inputs


def _limits(learner: GradientLearner) -> dict[str, Limit]:
    """What an update may touch, by name of the parameters of which that is not everything."""
    found: dict[str, Limit] = {}
    if not isinstance(learner.policy, type(Finetune().start(learner))):
        raise CannotExport(
            f"{type(learner.policy).__name__.strip('_')} keeps rows to learn from again: export finetune"
        )
    for part in learner.techniques:
        sparse = getattr(part, "sparse", None)
        if isinstance(part, _MIGU):
            found |= limits_of_migu(part)
        elif sparse is not None:
            found |= limits_of_masks(sparse, learner)
        elif not _balances(part):
            raise CannotExport(f"{type(part).__name__.strip('_')} has no form as a graph yet; masks have one")
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
    """A step as a graph: (x, y, *state) to (outcome, rows of layers, what becomes of them, *the other state after it).

    apart: names of the state of which only rows come back, and the layer whose they are. single: it takes one row at a
    time.
    """

    def __init__(self, learner: GradientLearner, limits: Mapping[str, Limit], rows: Draw) -> None:
        self.rows, self.net, self.how = rows_module(_inputs(learner)), plain_layers(learner.net), learner.params
        for layer in self.net.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.num_batches_tracked = None  # a count that nothing here follows
        self.optimiser, self.limits = learner.optimiser, limits
        parts: list[Any] = [part for part in learner.techniques if _balances(part)]
        self.balance: Any = parts[0] if parts else None
        still = () if self.balance is None else self.balance.names  # a row at a time is a group at a time
        self.weights = {n: _plain(learner.weights[n]) for n in learner._trained if n not in still}
        statistics = {} if self.how.head_only else dict(learner.net.named_buffers())
        self.statistics = {n: b.clone() for n, b in statistics.items() if b.is_floating_point()}
        self.values = {**self.weights, **self.statistics}
        self.state = {**self.values, **self._slots()}
        if self.balance is not None:
            self.state["met"] = torch.tensor([float(max(learner.task, len(self.balance.layers[0].psi) - 1))])
        self.some = RowGradients(self.net, limits)
        once = self.how.passes == 1  # two updates would move other rows each: then whole weights come back
        self.apart = {n: at.layer for name, at in limits.items() if at.compact and once for n in self._of(name)}
        self.single = bool(self.statistics) or self.balance is not None
        self.graph = self._traced(rows)

    def verb(self, rows: Draw) -> Verb:
        """learn. rows: examples of labelled rows."""
        whole = tuple(n for n in self.state if n not in self.apart)
        which = {n: f"rows.{layer}" for n, layer in self.apart.items()}
        answers = ("outcome", *dict.fromkeys(which.values()), *(f"some.{n}" for n in which))
        return Verb(self.graph, rows, tuple(self.state), whole, answers, self.single, which)

    def _traced(self, rows: Draw) -> nn.Module:
        """The step written down, for any number of rows unless it is for one at a time."""
        mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        length = DimDynamic.STATIC if self.single else DimDynamic.DYNAMIC
        given = [_fake(mode, t, length) for t in rows(1 if self.single else TRACED, 0).values()]
        state = [_fake(mode, t, DimDynamic.STATIC) for t in self.state.values()]
        aten: Any = torch.ops.aten
        table = {**core_aten_decompositions(), **get_decompositions([aten.native_batch_norm, aten.native_group_norm])}
        table[aten.convolution_backward.default] = convolution_back
        table.pop(aten.max_pool2d_with_indices_backward.default, None)  # ``tracing.py`` has its form
        self.net.train()
        try:
            with references(), mode:
                traced = make_fx(self._step, decomposition_table=table, _allow_non_fake_inputs=True)(*given, *state)
        except (ValueError, RuntimeError) as fault:
            raise CannotExport(f"a step: {' '.join(str(fault).split())}") from None
        return traced

    def _of(self, name: str) -> list[str]:
        """A parameter and what the optimiser keeps of it, by name."""
        return [n for n in (name, *(f"{name}.{kind}" for kind in SLOTS)) if n in self.state]

    def _slots(self) -> dict[str, Tensor]:
        """The optimiser's moments and counts, zeros where there are none yet."""
        kinds = ("m", "v") if isinstance(self.optimiser, AdamW) else ("momentum",) if self.how.momentum else ()
        held = self.optimiser.slots
        found = {f"{n}.{k}": _plain(held.get(n, {}).get(k, torch.zeros_like(w)))
                 for n, w in self.weights.items() for k in kinds}  # fmt: skip
        if "m" in kinds:
            counts = {n: held.get(n, {}).get("t", torch.zeros(())) for n in self.weights}
            alone = [n for n, t in counts.items() if t.dim() or (n in self.limits and self.limits[n].compact)]
            found |= {f"{n}.t": counts[n].expand(len(self.weights[n])).clone() for n in alone}
            found["taken"] = torch.tensor([max((float(t) for t in counts.values() if not t.dim()), default=0.0)])
        return found

    def _step(self, x: Tensor, y: Tensor, *state: Tensor) -> list[Tensor]:
        now = dict(zip(self.state, state, strict=True))
        for _ in range(self.how.passes):
            new, rows = self._update(x, y, now)
            now |= new
        which = [rows[layer] for layer in dict.fromkeys(self.apart.values())]
        some = [now[n] for n in self.apart]
        return [torch.ones(1), *which, *some, *(t for n, t in now.items() if n not in self.apart)]

    def _update(self, x: Tensor, y: Tensor, old: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What moves after an update, of names in ``apart`` their rows alone; which rows these are, by layer."""
        weights = {n: old[n].detach().requires_grad_(True) for n in self.weights}
        statistics = {n: old[n].clone() for n in self.statistics}
        with torch.enable_grad():
            loss = F.cross_entropy(self._logits(self.rows(x), weights, statistics), y)
            met = None
            if self.balance is not None:
                loss, met = self._balanced(loss, y, old["met"])
            grads, rows = self.some.gradients(loss, weights)
        grads = self._held(grads)
        new: dict[str, Tensor] = {n: t.detach() for n, t in statistics.items()}
        if met is not None:
            new["met"] = met
        if "taken" in old:
            new["taken"] = old["taken"] + 1
        for name, grad in grads.items():
            new |= self._limited(name, grad, old, rows)
        return new, rows

    def _held(self, grads: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scaled so that their joint norm is at most ``clip``; entries that are masked do not count."""
        if not self.how.clip:
            return grads
        masks = {n: limit.mask for n, limit in self.limits.items() if limit.mask is not None}
        held = {n: g * masks[n] if n in masks else g for n, g in grads.items()}
        length = torch.stack([(g * g).sum() for g in held.values()]).sum().sqrt()
        scale = torch.clamp(self.how.clip / (length + 1e-6), max=1.0)
        return {n: g * scale for n, g in held.items()}

    def _limited(
        self, name: str, grad: Tensor, old: Mapping[str, Tensor], at: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The parameter and what the optimiser keeps of it after a step: whole, or their rows where they are apart."""
        limit, mine = self.limits.get(name), {n: old[n] for n in self._of(name)}
        if limit is None or limit.reference:
            return self._moved(name, grad, mine, old.get("taken"))
        if limit.mask is not None:
            mask, moved = limit.mask, self._moved(name, grad, mine, old.get("taken"))
            return {n: torch.where(mask, t, old[n]) for n, t in moved.items()}
        rows = at[limit.layer]
        some = self._moved(name, grad, {n: t.index_select(0, rows) for n, t in mine.items()}, old.get("taken"))
        return some if name in self.apart else {n: old[n].index_put((rows,), t) for n, t in some.items()}

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
        head: Any = self.net.head
        own = {n.removeprefix("head."): w for n, w in weights.items()}
        scores: Tensor = functional_call(head, own, (body.eval()(x).detach(),))
        return scores

    def _moved(self, name: str, grad: Tensor, old: Mapping[str, Tensor], taken: Tensor | None) -> dict[str, Tensor]:
        """The weight, or rows of it, and what the optimiser keeps of them after the step."""
        weight, how = old[name], self.how
        decay = 0.0 if name in self.optimiser.undecayed else how.weight_decay
        if isinstance(self.optimiser, AdamW):
            b1, b2 = self.optimiser.betas
            own = {n: old[n] + 1 for n in (f"{name}.t",) if n in old}
            assert taken is not None
            times = own[f"{name}.t"].reshape(-1, *(1,) * (weight.dim() - 1)) if own else taken + 1
            m = old[f"{name}.m"] + (1 - b1) * (grad - old[f"{name}.m"])
            v = b2 * old[f"{name}.v"] + (1 - b2) * grad * grad
            length = torch.sqrt(v) / torch.sqrt(rest_of(b2, times))
            moved = weight * (1 - self.optimiser.lr * decay) - (self.optimiser.lr / rest_of(b1, times)) * over(
                m, length, self.optimiser.eps
            )
            return {name: moved, f"{name}.m": m, f"{name}.v": v, **own}
        grad = grad + decay * weight if decay else grad
        if not how.momentum:
            return {name: weight - self.optimiser.lr * grad}
        velocity = how.momentum * old[f"{name}.momentum"] + grad
        return {name: weight - self.optimiser.lr * velocity, f"{name}.momentum": velocity}


def _plain(tensor: Tensor) -> Tensor:
    """A copy in row-major order: graphs know no other."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _fake(mode: FakeTensorMode, tensor: Tensor, first: DimDynamic) -> Tensor:
    """A stand-in for a tensor whose first axis has any length, or the one that it has."""
    sizes = [first, *(DimDynamic.STATIC,) * (tensor.dim() - 1)] if tensor.dim() else []
    return mode.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(sizes))


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
