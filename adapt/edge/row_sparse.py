"""Steps that move some rows of a weight: those that MIGU chooses in every step, those that masks of rows leave.

The gradient of such a weight is formed for these rows alone, from the layer's inputs and the active columns of the
gradient of its outputs; the optimiser takes these rows, their moments and counts; and nothing else leaves the graph:
``rows.LAYER`` int64[k] says which they are, ``some.NAME`` [k, ...] what becomes of them, and the runner writes them
into the state. All other rows stay as they are bit for bit. (Put back among the others by ScatterND they would be
copied whole, which costs what the smaller product saves.)

MIGU's rows are chosen in the graph, by the learner's own score and count; among equal scores ONNX's TopK takes the
lowest, as the learner does. A bundle masks as in the experience in which it is exported: before ``migu_from`` never,
from it on always. Where a score is not finite the learner moves all rows; a bundle refuses that step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.forms import layer_of
from ...models.kernels.block_sparse_linear import BlockLinear
from ...models.kernels.masked_optimizer import unpack_mask
from ...models.kernels.row_choice import Choice, active_count, row_score
from ...models.kernels.sliced_gradient import conv_geometry
from ...models.optimisers import Entries
from .steps import CannotExport

if TYPE_CHECKING:
    from ..learners.gradient import GradientLearner
    from ..learners.migu import _MIGU
    from ..learners.sparse_net import SparseNet


@dataclass(frozen=True)
class Limit:
    """What an update may touch of a parameter: entries by ``mask``, or else rows.

    mask: bool, of the parameter's shape. rows: int64[k], rising, that stand. choice: of rows by the outputs of
    ``layer`` in the step. reference: only the gradient of other rows is 0, and the optimiser takes all.
    """

    layer: str
    mask: Tensor | None = None
    rows: Tensor | None = None
    choice: Choice | None = None
    reference: bool = False

    @property
    def compact(self) -> bool:
        """Whether only rows of the parameter, of its moments and counts are changed."""
        return self.mask is None and not self.reference


def limits_of_migu(part: _MIGU) -> dict[str, Limit]:
    """By name of the parameter; ``CannotExport`` for rows of which nobody knows the number, and for ``lazy``."""
    learner, values = part.learner, part.values
    if values.migu_mode == "lazy":
        raise CannotExport("migu_mode=lazy has no form as a graph: take strict or reference")
    found: dict[str, Limit] = {}
    for name, at in part.layers.items() if learner.task >= part.first else ():
        if f"{name}.weight" not in learner._trained:
            continue
        choice = at.slot.choice
        if choice.count(len(learner.weights[f"{name}.weight"])) is None:
            raise CannotExport(f"{name}: rows by quantile, at random, or in blocks that leave a rest have no graph")
        if at.layer is not learner.net.get_submodule(name):
            raise CannotExport(f"{name}: rows of an adapter have no form as a graph")
        _check(name, at.layer)
        limit = Limit(name, choice=choice, reference=values.migu_mode == "reference")
        masked = [f"{name}.weight", f"{name}.bias"] if values.migu_bias else [f"{name}.weight"]
        found |= {n: limit for n in masked if n in learner.weights}
    return found


def limits_of_masks(sparse: SparseNet, learner: GradientLearner) -> dict[str, Limit]:
    """By name of the weight, as masks are now; ``CannotExport`` for layers that keep their blocks only."""
    found: dict[str, Limit] = {}
    for name in sparse.masks:
        if isinstance(learner.net.get_submodule(layer_of(name)), BlockLinear):
            raise CannotExport(f"{layer_of(name)} keeps blocks only: export it with granularity=element or row")
    for name, only in sparse.form.limits().items():
        if isinstance(only, Entries):
            found[name] = Limit(layer_of(name), mask=unpack_mask(only.words, learner.weights[name]).contiguous())
        else:
            _check(layer_of(name), learner.net.get_submodule(layer_of(name)))
            found[name] = Limit(layer_of(name), rows=only.index.clone())
    return found


def _check(name: str, layer: nn.Module) -> None:
    """``CannotExport`` for a layer whose gradient of some rows is not known."""
    if isinstance(layer, nn.Conv2d):
        try:
            conv_geometry(layer)
        except ValueError as fault:
            raise CannotExport(f"{name}: {fault}") from None
    elif not isinstance(layer, nn.Linear):
        raise CannotExport(f"{name}: rows of a {type(layer).__name__} have no form as a graph")


class Watched:
    """The forward function of a layer whose weight gets no gradient by itself: keeps inputs and outputs instead."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.x, self.y = torch.empty(0), torch.empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight.detach(), self.layer.bias
        linear = isinstance(self.layer, nn.Linear)
        y: Tensor = F.linear(x, weight, bias) if linear else self.layer._conv_forward(x, weight, bias)
        self.x, self.y = x.detach(), y if y.requires_grad else y.requires_grad_()
        return y

    def gradient(self, dy: Tensor, rows: Tensor) -> Tensor:
        """Of these rows of the weight, [k, ...], from that of the outputs."""
        some = dy.index_select(1, rows)
        if isinstance(self.layer, nn.Linear):
            return some.t() @ self.x
        like, how = self.layer.weight.detach()[: rows.shape[0]], conv_geometry(self.layer)
        found: Tensor = torch.ops.aten.convolution_backward(some, self.x, like, None, *how, [False, True, False])[1]
        return found


class RowGradients:
    """The layers of a network of which only some rows get a gradient. net: its layers are watched from here on."""

    def __init__(self, net: nn.Module, limits: Mapping[str, Limit]) -> None:
        self.limits = {n: limit for n, limit in limits.items() if limit.mask is None}
        self.watched = {limit.layer: Watched(net.get_submodule(limit.layer)) for limit in self.limits.values()}
        for watched in self.watched.values():
            watched.layer.forward = watched

    def gradients(self, loss: Tensor, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The gradient of every parameter by name, [k, ...] of those limited to rows; which rows, by layer."""
        held = {n for n, limit in self.limits.items() if n == f"{limit.layer}.weight"}
        plain = [n for n in weights if n not in held]
        outputs = [watched.y for watched in self.watched.values()]
        found = torch.autograd.grad(loss, [*(weights[n] for n in plain), *outputs])
        grads, behind = dict(zip(plain, found)), dict(zip(self.watched, found[len(plain) :]))
        rows: dict[str, Tensor] = {}
        for name, limit in self.limits.items():
            at = limit.layer
            if at not in rows:
                rows[at] = self._rows(limit)
            some = self.watched[at].gradient(behind[at], rows[at]) if name in held else grads[name][rows[at]]
            grads[name] = some if limit.compact else torch.zeros_like(weights[name]).index_put((rows[at],), some)
        return {n: grads[n] for n in weights}, rows

    def _rows(self, limit: Limit) -> Tensor:
        """Those that stand, or those of this step."""
        if limit.choice is None:
            assert limit.rows is not None
            return limit.rows
        return chosen(limit.choice, self.watched[limit.layer].y.detach())


def chosen(choice: Choice, y: Tensor) -> Tensor:
    """The rows of a step by a layer's outputs [n, d] or [n, d, *positions], int64[k], rising."""
    score, size = row_score(y, choice.score), choice.block_rows
    score = score if size == 1 else score.reshape(-1, size).mean(1)
    k = active_count(score.shape[0], choice.ratio)
    best = torch.topk(score if choice.select == "top" else -score, k)[1]
    best = torch.topk(best, k, largest=False)[0]
    return best if size == 1 else (best[:, None] * size + torch.arange(size)).flatten()
