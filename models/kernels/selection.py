"""Which path of an op runs: the one asked for, else by device.

Triton is imported only here, and only for an op that has kernels and a device to run them: ``models.kernels.OP_triton``
holds them, and its ``probe(device)`` raises where they and the reference differ on a tiny input. Kernels are launched
under ``torch.cuda.device_of(tensor)``: Triton takes the current device and not the tensor's.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar, cast

import torch
from torch import Tensor

P = TypeVar("P", bound=str)

_OFF = ContextVar("references", default=False)


@contextmanager
def references() -> Iterator[None]:
    """Inside, every op runs its reference unless a path is asked for: to measure what the ops are worth, and to check
    that nothing but time depends on them."""
    token = _OFF.set(True)
    try:
        yield
    finally:
        _OFF.reset(token)


def ops_on() -> bool:
    """Whether faster paths than the references may run; always inside a graph that is being compiled."""
    return torch.compiler.is_compiling() or not _OFF.get()


def choose(path: P | None, op: str, tensor: Tensor, cpu: P, reference: P) -> P:
    """The asked path, else ``cpu`` on a CPU, "triton" on a GPU where that works, and ``reference`` anywhere else."""
    if path is not None:
        return path
    if not ops_on():
        return reference
    if tensor.device.type == "cpu":
        return cpu
    works = tensor.device.type == "cuda" and triton_works(op, tensor.device)
    return cast(P, "triton") if works else reference


@torch.compiler.assume_constant_result
def triton_works(op: str, device: torch.device) -> bool:
    """Whether the Triton kernels of an op agree with its reference on a tiny input here; ``torch.compile`` asks, and
    does not look into the asking.

    Asked once per op and kind of device; one warning and False where they do not, or Triton is missing. On a CPU they
    run in Triton's interpreter only, that is where the environment says TRITON_INTERPRET=1.
    """
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET", "").lower() not in ("1", "true", "yes", "on"):
        return False
    return _probed(op, device.type)


@functools.cache
def _probed(op: str, kind: str) -> bool:
    try:
        importlib.import_module(f".{op}_triton", __package__).probe(torch.device(kind))
    except Exception as fault:  # whatever it is, the reference serves
        warnings.warn(f"{op} runs without its Triton kernels: {fault}", stacklevel=4)
        return False
    return True
