"""Networks as frozen feature maps: any torch module, those of torchvision among them, and ONNX models.

The network runs in evaluation mode, without gradients, in single precision, on pieces of always the same number of
rows, the last one filled up: kernels are chosen by shape, so a row's features do not depend on its company, and what
is computed today can be compared with what was learnt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .feature_maps import DRAWN, Array, Plain

PIECE = 16
"""Rows that go through a network together."""


class TorchMap:
    """The outputs of a module, flattened.

    inputs: from the rows of a batch to the module's input. provenance: see ``FeatureMap``; what it was trained on is
    declared, not checked.
    """

    def __init__(self, module: nn.Module, inputs: Callable[[Array], Tensor], provenance: str = DRAWN) -> None:
        self.module = module.eval().requires_grad_(False)
        self.inputs = inputs
        self.provenance = provenance
        self.digest = module_digest(module)
        self.width = 0

    def sized(self, columns: int) -> TorchMap:
        """The same, once the number of features is known: from one row of zeros."""
        self.width = self(np.zeros((1, columns))).shape[1]
        return self

    def __call__(self, x: Array) -> Array:
        with torch.inference_mode():
            return in_pieces(x, lambda piece: self.module(self.inputs(piece)).flatten(1).float().numpy(), self.width)


class OnnxMap:
    """The output of an ONNX model for its one input, flattened; one thread, on the processor.

    shape: of one row as the model takes it. ``digest`` is the sha256 of the file. A model that was exported for a fixed
    number of rows is given as many at a time. Raises ``ValueError`` in one line where there is no such model, it has
    several inputs or outputs, or takes other rows.
    """

    def __init__(self, path: str | Path, shape: Sequence[int], provenance: str = "unknown") -> None:
        import onnxruntime

        said = f"backbone onnx:{path}"
        try:
            body = Path(path).read_bytes()
        except OSError as fault:
            raise ValueError(f"{said}: {fault.strerror}") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(body, options, providers=["CPUExecutionProvider"])
        except Exception as fault:
            raise ValueError(f"{said}: not an ONNX model that runs here ({_first_line(fault)})") from None
        taken, given = self._session.get_inputs(), self._session.get_outputs()
        if len(taken) != 1 or len(given) != 1:
            raise ValueError(f"{said}: has {len(taken)} inputs and {len(given)} outputs, expected one of each")
        self._input, self._shape = taken[0].name, tuple(shape)
        fixed = taken[0].shape[0] if taken[0].shape else None
        self._piece = fixed if isinstance(fixed, int) and fixed > 0 else PIECE
        self.provenance = provenance
        self.digest = hashlib.sha256(body).hexdigest()
        self.width = 0
        try:
            self.width = self(np.zeros((1, int(np.prod(self._shape))))).shape[1]
        except Exception as fault:
            wanted = f"{taken[0].type} {taken[0].shape}"
            raise ValueError(
                f"{said}: takes {wanted}, not rows of shape {self._shape} ({_first_line(fault)})"
            ) from None

    def __call__(self, x: Array) -> Array:
        return in_pieces(x, self._run, self.width, self._piece)

    def _run(self, piece: Array) -> Array:
        rows = np.ascontiguousarray(piece, np.float32).reshape(len(piece), *self._shape)
        found: Array = self._session.run(None, {self._input: rows})[0]
        if found.ndim < 1 or len(found) != len(piece):
            raise ValueError(f"gives an output of shape {found.shape} for {len(piece)} rows")
        return found.reshape(len(piece), -1)


def _first_line(fault: Exception) -> str:
    return (str(fault).splitlines() or [type(fault).__name__])[0]


def in_pieces(x: Array, run: Callable[[Array], Array], width: int, size: int = PIECE) -> Array:
    """run on pieces of ``size`` rows each, the last filled up with zeros; float64[B, width]."""
    found: list[Array] = []
    for at in range(0, len(x), size):
        piece = x[at : at + size]
        short = size - len(piece)
        filled = np.concatenate([piece, np.zeros((short, x.shape[1]))]) if short else piece
        found.append(run(filled)[: len(piece)].astype(np.float64))
    return np.concatenate(found) if found else np.zeros((0, width))


def plain_inputs(fan: Sequence[int]) -> Callable[[Array], Tensor]:
    """Rows of a table as a network's inputs: those of ``Plain``."""
    plain = Plain(fan)

    def tensor(x: Array) -> Tensor:
        return torch.from_numpy(plain(x)).float()

    return tensor


def module_digest(module: nn.Module) -> str:
    """sha256 over names, shapes and bytes of all parameters and buffers, and the layers' printed form."""
    sha = hashlib.sha256(repr(module).encode())
    state: dict[str, Any] = module.state_dict()
    for name in sorted(state):
        array = state[name].detach().cpu().contiguous()
        sha.update(f"{name} {array.dtype} {tuple(array.shape)};".encode())
        sha.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
