"""Where the tensors of many parameters lie: a table of addresses, so that one call or one launch updates all of them.

table: int64[P, COLUMNS], one line a parameter. Where a parameter has no such tensor its address is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numba import carray, types
from numba.extending import intrinsic
from torch import Tensor
from torch.autograd.graph import increment_version

from ..compiled import inner

WEIGHT, FIRST, SECOND, COUNT, GRAD, WIDTH, START, SEED, EXTRA, MORE, LAST = range(11)
"""Addresses of weight, moments, counts and gradient; entries of a row; where a compact gradient's first row stands
among all active ones (-1: the gradient is dense); the seed of the rounding; three columns for each op's own use."""
COLUMNS = 11
LIKE = {torch.float32: np.empty(0, np.float32), torch.float64: np.empty(0, np.float64)}
"""Arrays by which compiled code knows the type of what lies at addresses."""


def upload(values: Tensor, device: torch.device) -> Tensor:
    """A small table of the CPU on a GPU without waiting for it; also while a CUDA graph is being captured.

    Within a graph the numbers become arguments of kernels, since memory of the CPU may change until it is replayed.
    """
    if values.device == device:
        return values
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        table = torch.zeros(values.numel(), dtype=values.dtype, device=device)
        torch._foreach_add_(list(table.unbind()), values.flatten().tolist())
        return table.view(values.shape)
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


def layout(tensor: Tensor) -> torch.memory_format | None:
    """In which order the entries of each row lie in memory, if rows are dense and follow one another."""
    if tensor.is_contiguous():
        return torch.contiguous_format
    order = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    return order if order is not None and tensor.is_contiguous(memory_format=order) else None


def known(weight: Tensor, *moments: Tensor) -> bool:
    """Whether compiled code (on a GPU: Triton kernels) knows the weight's type, and all are laid out alike."""
    order, dtype = layout(weight), weight.dtype
    for moment in moments:
        if layout(moment) is not order:
            return False
    return order is not None and dtype in (torch.float32, torch.bfloat16, torch.float64 if weight.is_cpu else None)


def refuse(path: str | None) -> Literal["torch"]:
    """The path of tensors that are not ``known``: the contract, or ``ValueError`` where another was asked for."""
    if path not in (None, "torch"):
        raise ValueError(f"path {path} needs weight and moments in one layout without gaps, of a type it knows")
    return "torch"


def laid_out(tensor: Tensor, order: torch.memory_format) -> Tensor:
    """The tensor in this order, itself where it lies so."""
    return tensor if layout(tensor) is order else tensor.contiguous(memory_format=order)


def lines(tensor: Tensor, order: torch.memory_format | None) -> Tensor:
    """[rows, entries] in the order of ``order``; a view of a tensor that lies so."""
    plain = order is None or order is torch.contiguous_format
    return (tensor if plain else tensor.movedim(1, -1)).reshape(len(tensor), -1 if tensor.numel() else 0)


def addresses(weight: Tensor, moments: Sequence[Tensor], count: Tensor | None) -> tuple[int, int, int, int]:
    """The first four columns."""
    first = moments[0].data_ptr() if moments else 0
    second = moments[1].data_ptr() if len(moments) == 2 else 0
    return weight.data_ptr(), first, second, 0 if count is None else count.data_ptr()


def written(updates: Sequence[Any]) -> None:
    """Tell autograd, and whoever keeps copies of weights: what is written to an address leaves no trace otherwise."""
    increment_version([tensor for update in updates for tensor in (update.weight, *update.moments)])


def rates_of(rates: Sequence[Sequence[float] | Tensor], device: torch.device) -> Tensor:
    """float64[P, 5] on the device, of numbers or of tensors float64[5]."""
    if any(isinstance(each, Tensor) for each in rates):
        return torch.stack([torch.as_tensor(each, dtype=torch.float64).to(device) for each in rates])
    return upload(torch.from_numpy(np.array(rates, np.float64)), device)


def aligned(*tensors: Tensor) -> bool:
    """Whether all begin at multiples of 16 bytes."""
    return all(tensor.data_ptr() % 16 == 0 for tensor in tensors)


@intrinsic
def pointer(_typing: Any, _address: Any, like: Any) -> Any:
    """In compiled code, an address (int64) as a pointer to entries of the type of the array ``like``."""
    kind = types.CPointer(like.dtype)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

    return kind(types.int64, like), generate


@inner
def array_at(address: int, first: int, n: int, like: np.ndarray) -> np.ndarray:
    """In compiled code, the entries first .. first + n - 1 of what lies at an address, of the type of ``like``."""
    return carray(pointer(address + first * like.itemsize, like), n)  # type: ignore[call-arg]
