"""A linear layer, and a convolution, whose weight gradient is computed for some output rows only.

The rows are known once the output is (``row_choice``), so the backward pass multiplies the active columns of the output
gradient alone: of the three products of a training step (output, input gradient, weight gradient) the third shrinks to
the share of active rows. The gradient of the weight is not in ``.grad``: it waits, compact, in the layer's ``RowSlot``.
Gradients of input and bias are those of the plain layer.

``path``: "dense" is the contract, the plain layer, whose whole gradient the caller cuts. "compact" (any device)
gathers the active columns and lets the library multiply. "triton" (CUDA) sums the score where the output is formed, if
that pays, and loads the active columns through the rows' numbers, without a gathered copy. None chooses by device.

For ``torch.compile`` and CUDA graphs two steps are operators of PyTorch: ``driftway::row_sparse_linear``, output and
score, whose derivative knows nothing of the weight, and ``driftway::row_gradient``. A slot that is ``prepare``d then
gets the gradient through its ``tap``, and nothing changes anything behind the compiler's back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .row_choice import RowSlot, row_score
from .selection import choose

Path = Literal["dense", "compact", "triton"]
TRITON_TYPES = (torch.bfloat16, torch.float16)
"""Types for which None chooses Triton on a GPU. Its products of float32 are exact and slow; the library has better."""


def path_for(path: Path | None, x: Tensor) -> Path:
    """The asked path, else by device and type."""
    if path is None and x.dtype not in TRITON_TYPES:
        return "compact"
    return choose(path, "row_sparse_linear", x, "compact", "compact")


def row_sparse_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    slot: RowSlot,
    path: Path | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """x weight^T + bias for x [..., d_in], weight [d_out, d_in]; the outputs are added to the slot's score.

    keep: bool[...], the tokens that count in it; None for all.
    """
    if path == "dense":
        y = F.linear(x, weight, bias)
        slot.see(y.detach().reshape(-1, len(weight)), keep)
        return y
    x, weight, bias = _as_autocast(x, weight, bias)
    if torch.compiler.is_compiling():
        return _compiled(x, weight, bias, slot, keep)
    out: Tensor = _RowLinear.apply(x, weight, bias, slot, path, keep)
    return out


def row_sparse_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    slot: RowSlot,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    path: Path | None = None,
) -> Tensor:
    """A convolution without groups, zeros beyond the edge: x [n, c_in, *positions], weight [c_out, c_in, *kernel].

    Of the paths only the score differs: both products are the library's.
    """
    geometry = (list(stride), list(padding), list(dilation), False, [0] * len(stride), 1)
    if path != "dense":
        x, weight, bias = _as_autocast(x, weight, bias)
    if path == "dense" or torch.compiler.is_compiling():
        y: Tensor = torch.ops.aten.convolution(x, weight if path == "dense" else weight.detach(), bias, *geometry)
        if path == "dense":
            slot.see(y.detach())
            return y
        tap = _tap(slot)
        return _Tapped.apply(y, x, slot.first_rows(row_score(y, slot.choice.score)), tap, geometry)
    out: Tensor = _RowConv.apply(x, weight, bias, slot, geometry, path)
    return out


def _as_autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """All in the type of autocast, where it is on: what happens behind its back has to happen in one type."""
    if not torch.is_autocast_enabled(x.device.type):
        return x, weight, bias
    short = torch.get_autocast_dtype(x.device.type)
    return x.to(short), weight.to(short), None if bias is None else bias.to(short)


# --- the steps --------------------------------------------------------------------------------------------------------


def scored_linear(x: Tensor, weight: Tensor, bias: Tensor | None, path: Path | None = None) -> tuple[Tensor, Tensor]:
    """(y, score) for x [n, d_in]: y = x weight^T + bias, and the sum of |y| over the n rows, in float32 at least."""
    if path_for(path, x) == "triton":
        from . import row_sparse_linear_triton

        return row_sparse_linear_triton.linear(x, weight, bias)
    y = x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())
    return y, output_score(y, path)


def output_score(y: Tensor, path: Path | None = None) -> Tensor:
    """The sum of |y| over tokens, of outputs [n, d] or [n, d, *positions]; on a GPU in one pass, of float32 too."""
    if y.dtype.itemsize <= 4 and choose(path, "row_sparse_linear", y, "compact", "compact") == "triton":
        from . import row_sparse_linear_triton

        return row_sparse_linear_triton.score(y)
    return row_score(y)


def row_gradient(grad: Tensor, x: Tensor, index: Tensor, path: Path | None = None, out: Tensor | None = None) -> Tensor:
    """The rows ``index`` (int64[k]) of grad^T x: float[k, d_in] from grad [n, d_out] and x [n, d_in], in ``out``."""
    if path_for(path, grad) == "triton":
        from . import row_sparse_linear_triton

        return row_sparse_linear_triton.row_gradient(grad, x, index, out)
    return torch.mm(grad.index_select(1, index).t(), x, out=out)


def conv_row_gradient(grad: Tensor, x: Tensor, index: Tensor, like: Tensor, geometry: Any) -> Tensor:
    """The same for a convolution: [k, c_in, *kernel]. like: any tensor of that shape; only the shape is looked at."""
    some = grad.index_select(1, index)
    backward = torch.ops.aten.convolution_backward
    found: Tensor = backward(some, x, like, None, *geometry, [False, True, False])[1]
    return found


# --- eager: the slot chooses in the first backward pass ---------------------------------------------------------------


class _RowLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        slot: RowSlot,
        path: Path | None,
        keep: Tensor | None,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if slot.choice.score == "sum_abs" and keep is None:
            y, score = scored_linear(rows, weight, bias, path)
            slot.add(score)
        else:
            y = F.linear(rows, weight, bias)
            slot.see(y, keep)
        ctx.save_for_backward(rows, weight)
        ctx.slot, ctx.shape, ctx.path = slot, x.shape, path_for(path, x)
        return y.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g = grad.reshape(-1, grad.shape[-1])
        if ctx.needs_input_grad[1]:
            rows = ctx.slot.rows()
            if ctx.path == "triton":
                ctx.slot.give_rows(row_gradient(g, x, rows, ctx.path, ctx.slot.room(len(rows))))
            else:
                ctx.slot.give(g.index_select(1, rows), x)
        dx = (g @ weight).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return dx, None, g.sum(0) if ctx.needs_input_grad[2] else None, None, None, None


class _RowConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, slot: RowSlot, geometry: Any, path: Path | None
    ) -> Tensor:
        y: Tensor = torch.ops.aten.convolution(x, weight, bias, *geometry)
        slot.add(output_score(y, path) if slot.choice.score == "sum_abs" else row_score(y, "token_l1"))
        ctx.save_for_backward(x, weight)
        ctx.slot, ctx.geometry = slot, geometry
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            rows = ctx.slot.rows()
            ctx.slot.give_rows(conv_row_gradient(grad, x, rows, weight[: len(rows)], ctx.geometry))
        dx = None
        if ctx.needs_input_grad[0]:
            backward = torch.ops.aten.convolution_backward
            dx = backward(grad, x, weight, None, *ctx.geometry, [True, False, False])[0]
        positions = [axis for axis in range(grad.dim()) if axis != 1]
        return dx, None, grad.sum(positions) if ctx.needs_input_grad[2] else None, None, None, None


# --- compiled: operators, and a tap whose gradient is the compact one -------------------------------------------------


def _compiled(x: Tensor, weight: Tensor, bias: Tensor | None, slot: RowSlot, keep: Tensor | None) -> Tensor:
    flat, tap = x.reshape(-1, x.shape[-1]), _tap(slot)
    y, score = torch.ops.driftway.row_sparse_linear(flat, weight.detach(), bias)
    if slot.choice.score == "token_l1" or keep is not None:
        score = row_score(y, slot.choice.score, keep)
    y = _Tapped.apply(y, flat, slot.first_rows(score), tap, None)
    return y.view(*x.shape[:-1], len(weight))


def _tap(slot: RowSlot) -> Tensor:
    if slot.tap is None:
        raise ValueError("a compiled layer needs a slot made ready for it: call slot.prepare(weight) before compiling")
    return slot.tap


class _Tapped(torch.autograd.Function):
    """The output as it is; the gradient of ``tap`` is the compact gradient of the weight."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, index: Tensor, tap: Tensor, geometry: Any) -> Tensor:
        ctx.save_for_backward(x, index, tap)
        ctx.geometry = geometry
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, index, tap = ctx.saved_tensors
        if ctx.geometry is None:
            rows = torch.ops.driftway.row_gradient(grad, x, index)
        else:
            rows = conv_row_gradient(grad, x, index, tap, ctx.geometry)
        return grad, None, None, rows, None


@torch.library.custom_op("driftway::row_sparse_linear", mutates_args=())
def _linear_op(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    return scored_linear(x, weight, bias)


@_linear_op.register_fake
def _(x: Tensor, weight: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor]:
    y = x.new_empty((x.shape[0], weight.shape[0]))
    return y, y.new_empty((weight.shape[0],), dtype=torch.float32 if y.dtype.itemsize < 4 else y.dtype)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.mark_non_differentiable(output[1])


def _derivative(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    (weight,) = ctx.saved_tensors
    return grad @ weight, None, grad.sum(0) if ctx.needs_input_grad[2] else None


_linear_op.register_autograd(_derivative, setup_context=_keep)


@torch.library.custom_op("driftway::row_gradient", mutates_args=())
def _row_gradient_op(grad: Tensor, x: Tensor, index: Tensor) -> Tensor:
    return row_gradient(grad, x, index)


@_row_gradient_op.register_fake
def _(grad: Tensor, x: Tensor, index: Tensor) -> Tensor:
    return grad.new_empty((index.shape[0], x.shape[1]))
