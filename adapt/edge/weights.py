"""How a bundle keeps the weights that stay: once for all its graphs, and in half precision or eight bits where asked.

Weights that several graphs hold are taken out of them into one file, by the standard's external data: a graph names the
file, the place and the length, and ONNX Runtime maps it into memory. float16 is a matter of storage alone: a Cast in
the graph, which ONNX Runtime carries out once when it loads, gives single precision back. int8 is ONNX Runtime's own
static quantisation of convolutions and products with weights that stay, in the forward pass: scales of weights by
channel, those of activations as calibration rows have them. What moves is state, and stays in single precision.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from .bundle import WEIGHTS
from .steps import CannotExport, Verb
from .tracing import quiet

if TYPE_CHECKING:
    import onnx

LEAST = 1024
"""Bytes; smaller tensors stay as they are, where they are."""
WORTH = 2**18
"""Bytes that must be saved for a file of their own: small graphs are simpler whole."""
ALIGNED = 64
QUANTISED = ("Conv", "Gemm", "MatMul")
BATCH = 32


def apart(models: Mapping[str, onnx.ModelProto]) -> dict[str, bytes]:
    """The file of weights that several graphs hold, which then only name it; nothing where it is not worth it."""
    from onnx import TensorProto, numpy_helper

    places: dict[bytes, list[TensorProto]] = {}
    for model in models.values():
        for tensor in model.graph.initializer:
            raw = numpy_helper.to_array(tensor).tobytes()
            if len(raw) >= LEAST:
                places.setdefault(hashlib.sha256(raw).digest(), []).append(tensor)
    shared = [tensors for tensors in places.values() if len(tensors) > 1]
    sizes = [numpy_helper.to_array(tensors[0]).nbytes for tensors in shared]
    if sum(n * (len(tensors) - 1) for n, tensors in zip(sizes, shared)) < WORTH:
        return {}
    body = bytearray()
    for tensors in shared:
        raw = numpy_helper.to_array(tensors[0]).tobytes()
        body += b"\0" * (-len(body) % ALIGNED)
        for tensor in tensors:
            _name_place(tensor, len(body), len(raw))
        body += raw
    return {WEIGHTS: bytes(body)}


def _name_place(tensor: onnx.TensorProto, offset: int, length: int) -> None:
    for field in ("raw_data", "float_data", "double_data", "int32_data", "int64_data"):
        tensor.ClearField(field)
    tensor.data_location = tensor.EXTERNAL
    for key, value in (("location", WEIGHTS), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def halve(model: onnx.ModelProto) -> None:
    """Keep matrices and kernels in float16; one with a number that float16 has not stays as it is."""
    from onnx import helper, numpy_helper

    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype != np.float32 or array.ndim < 2 or array.nbytes < LEAST or np.abs(array).max() > 65504:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), f"{name}.half"))
        node = helper.make_node(
            "Cast", [tensor.name], [name], name=f"Cast.{name}", to=helper.np_dtype_to_tensor_dtype(array.dtype)
        )
        model.graph.node.insert(0, node)


def quantised(name: str, verb: Verb, model: onnx.ModelProto, state: Mapping[str, Tensor], rows: Any) -> onnx.ModelProto:
    """The graph with its frozen convolutions and products in eight bits. rows: float[n, d], to calibrate with."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    held = {t.name for t in model.graph.initializer if np.prod(t.dims) * 4 >= LEAST}
    readers = [n for n in model.graph.node if n.op_type in QUANTISED and n.input[1] in held]
    chosen = list(
        {n.input[1]: n.name for n in reversed(readers)}.values()
    )  # the first of each weight: later ones go back
    if not chosen:
        return model

    class Rows(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = _fed(verb, state, rows)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    with tempfile.TemporaryDirectory() as folder, quiet():
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        onnx.save(model, before)
        quantize_static(
            before, after, Rows(), quant_format=QuantFormat.QDQ, per_channel=True, nodes_to_quantize=chosen,
            activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, op_types_to_quantize=list(QUANTISED),
            extra_options={"QuantizeBias": False},
        )  # fmt: skip
        made = onnx.load(after)
    _one_copy(made, model)
    foreign = {n.domain for n in made.graph.node} - {""}
    if foreign:
        raise CannotExport(f"{name}: the quantised graph has operators of {', '.join(sorted(foreign))}")
    return made


def _fed(verb: Verb, state: Mapping[str, Tensor], rows: Any) -> Iterator[dict[str, Any]]:
    """What the graph is given for the rows, by input name, one batch after the other."""
    example, size = verb.rows(1, 0), 1 if verb.single else BATCH
    old = {f"old.{n}": state[n].numpy() for n in verb.reads}
    for start in range(0, len(rows) - size + 1, size):
        x = np.asarray(rows[start : start + size], example["x"].numpy().dtype)
        more = {n: t.numpy() for n, t in verb.rows(size, start).items() if n != "x"}
        yield {"x": x, **more, **old}


def _one_copy(made: onnx.ModelProto, before: onnx.ModelProto) -> None:
    """Let gradients read the weights of eight bits too: the tool keeps a second copy in single precision for them."""
    again = {
        n.input[0].removesuffix("_quantized"): n.output[0] for n in made.graph.node if n.op_type == "DequantizeLinear"
    }
    spare = {t.name for t in before.graph.initializer} & set(again)
    for node in made.graph.node:
        for i, name in enumerate(node.input):
            if name in spare:
                node.input[i] = again[name]
    for tensor in [t for t in made.graph.initializer if t.name in spare]:
        made.graph.initializer.remove(tensor)
