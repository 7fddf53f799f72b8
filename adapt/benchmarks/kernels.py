"""Every op of ``models.kernels`` beside its dense rival and its floor, on one device: one table.

Each op has a file here with ``measure(device) -> list[Row]``, whose rows ``floors.kernel_row`` makes: our time, the
dense rival's in the same rounds, our time by the floor, and the target with whether it is met. On a CPU all run on one
thread. The whole table takes a few minutes on a CPU and less than ten on a GPU.
"""

from __future__ import annotations

import importlib

import torch

from ...streams import InputError
from . import Row

OPS = (
    "row_sparse_linear",
    "topk_rows",
    "row_sparse_optimizer",
    "masked_optimizer",
    "block_sparse_linear",
    "balanced_batch_norm",
    "cluster_entropy",
    "sketch",
)


def measure(device: str = "cpu") -> list[Row]:
    """The rows of all ops; ``InputError`` for a device that is not there."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device} is not there; leave --device out to measure on the CPU")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [row for op in OPS for row in importlib.import_module(f".{op}", __package__).measure(device)]
    finally:
        torch.set_num_threads(threads)
