"""A verb as an ONNX file: written down by PyTorch's exporter, then held against what a bundle promises.

Promised are operators of the standard domain only, an axis of rows of any length, and numbers equal to PyTorch's on
rows that were not used for tracing. A trap this guards against: what a module keeps in buffers is read while it is
traced and becomes a constant, and answers to the traced rows still agree; statistics must come in as functions of the
rows or of the state.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...streams import InputError
from .steps import CannotExport, Verb

if TYPE_CHECKING:
    import onnx

OPSET = 20
MOST_ROWS = 4096
TRACED = 2
"""Rows of the example: of one row the exporter would take the number for a constant."""
COMPARED, DRAWS = (1, 3, 17), 5
CLOSE = 1e-4
"""How far a graph may be from PyTorch for so many rows, absolutely, or relative to the largest number where above 1. In
one draw in ten a ReLU or a maximum stands at its edge and rounding decides: most of the draws must be near."""


def traced(name: str, verb: Verb, state: Mapping[str, Tensor]) -> onnx.ModelProto:
    """The graph of a verb, checked; ``CannotExport`` names the operator that has no ONNX form."""
    try:
        import onnx
        import onnxscript  # noqa: F401 - PyTorch's exporter needs it
    except ImportError:
        raise InputError("exporting needs the extra export: pip install 'driftway[export]'") from None
    example = verb.rows(1 if verb.single else TRACED, 0)
    rows, given = list(example.values()), [state[n] for n in verb.reads]
    inputs = [*example, *(f"old.{n}" for n in verb.reads)]
    module = _Positional(verb).eval()
    axis = torch.export.Dim("rows", min=1, max=MOST_ROWS)
    shapes = {"given": tuple([None if verb.single else {0: axis}] * len(rows) + [None] * len(given))}
    outputs = [*verb.answers, *(f"new.{n}" for n in verb.writes)]
    try:
        with warnings.catch_warnings(), quiet(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (*rows, *given),
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=inputs,
                output_names=outputs,
                opset_version=OPSET,
                custom_translation_table=_translations(),
                verbose=False,
            )
    except Exception as fault:
        raise CannotExport(f"{name}: {_reason(fault)}") from None
    assert program is not None
    model = program.model_proto
    _fold_transposes(model.graph)
    _strip(model)
    _check(name, model, inputs, outputs)
    onnx.checker.check_model(model, full_check=True)
    return model


def compare(name: str, verb: Verb, model: bytes, state: Mapping[str, Tensor]) -> float:
    """How far graph and module are apart on most draws of rows that were not traced; ``CannotExport`` above CLOSE."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    except Exception as fault:
        raise CannotExport(f"{name}: ONNX Runtime refuses the graph: {_reason(fault)}") from None
    worst = 0.0
    for rows in COMPARED[:1] if verb.single else COMPARED:
        gaps = sorted(_gap(verb, session, state, verb.rows(rows, seed)) for seed in range(1, 1 + DRAWS))
        gap, what = gaps[DRAWS // 2]
        if not gap <= CLOSE:
            raise CannotExport(f"{name}: {what} differs from PyTorch by {gap:.1e} on {rows} rows")
        worst = max(worst, gap)
    return worst


def _gap(verb: Verb, session: Any, state: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest difference of an output between module and graph, and which output that is."""
    with torch.no_grad():
        ours = verb.module(*given.values(), *(state[n] for n in verb.reads))
    fed = {n: t.numpy() for n, t in given.items()} | {f"old.{n}": state[n].numpy() for n in verb.reads}
    found = []
    for what, mine, its in zip((*verb.answers, *verb.writes), ours, session.run(None, fed), strict=True):
        a, b = mine.double().numpy(), np.asarray(its, np.float64)
        apart = (
            np.abs(a - b).max(initial=0.0) / max(1.0, np.abs(a).max(initial=0.0)) if a.shape == b.shape else math.inf
        )
        found.append((float(apart) if apart == apart else math.inf, what))
    return max(found)


class _Positional(torch.nn.Module):
    """The verb's module, taking its inputs as one list."""

    def __init__(self, verb: Verb) -> None:
        super().__init__()
        self.module = verb.module

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.module(*given))


class quiet:
    """PyTorch's exporter tells its progress by logging; a person wants a line when it fails."""

    def __enter__(self) -> None:
        self.before = logging.root.manager.disable
        logging.disable(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.disable(self.before)


def _reason(fault: BaseException) -> str:
    """The innermost cause in one line."""
    while fault.__cause__ is not None:
        fault = fault.__cause__
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return f"{type(fault).__name__}: {lines[0] if lines else ''}"[:300]


def _check(name: str, model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Standard operators only, and the names that the bundle says."""
    foreign = sorted({f"{n.domain}.{n.op_type}" for n in _nodes(model.graph) if n.domain not in ("", "ai.onnx")})
    if foreign or model.functions:
        raise CannotExport(f"{name}: operators outside the standard domain: {', '.join(foreign)}")
    found = [i.name for i in model.graph.input], [o.name for o in model.graph.output]
    if found != (list(inputs), list(outputs)):
        raise CannotExport(f"{name}: the graph has inputs and outputs {found}, not {inputs} and {outputs}")


def _fold_transposes(graph: onnx.GraphProto) -> None:
    """Products take turned weights of the state as they are: ONNX Runtime sees to that in some graphs only, and copies
    whole weights in every step of the others. Products of anything else it joins with sums if they are left alone."""
    made = {o: n.input[0] for n in graph.node if n.op_type == "Transpose" for o in n.output}
    ranks = {i.name: len(i.type.tensor_type.shape.dim) for i in [*graph.input, *graph.value_info, *graph.output]}
    given = {i.name for i in graph.input if ranks[i.name] == 2}
    for node in graph.node:
        for i, side in enumerate(("transA", "transB")) if node.op_type in ("Gemm", "MatMul") else ():
            root, turns = node.input[i], 0
            while root in made:
                root, turns = made[root], turns + 1
            flat = node.op_type == "Gemm" or ranks.get(node.input[1 - i]) == 2
            if root not in given or (turns % 2 and not flat):
                continue
            node.input[i] = root
            if turns % 2:
                node.op_type = "Gemm"
                there = [a for a in node.attribute if a.name == side]
                flag = there[0] if there else node.attribute.add(name=side, type=2)  # an integer
                flag.i = 1 - flag.i
    read = {o.name for o in graph.output} | {name for n in _nodes(graph) for name in n.input}
    for node in [n for n in reversed(graph.node) if n.op_type == "Transpose"]:
        if not read & set(node.output):
            graph.node.remove(node)
            read = {o.name for o in graph.output} | {name for n in _nodes(graph) for name in n.input}


def _strip(model: onnx.ModelProto) -> None:
    """Leave out what the exporter tells of the program it read: paths of this machine, and more than the weights."""
    graph = model.graph
    nodes = _nodes(graph)
    inner = [a.g for n in nodes for a in n.attribute if a.HasField("g")]
    for whole in (graph, *inner):
        for part in (whole, *whole.input, *whole.output, *whole.initializer):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
        whole.ClearField("value_info")
    for part in (model, *nodes):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    _drop_unused(graph)
    model.ClearField("producer_version")
    for i, node in enumerate(graph.node):
        node.name = f"{node.op_type}.{i}"


def _drop_unused(graph: Any) -> set[str]:
    """Without constants that no node reads, in graphs inside nodes too; returns the names that it reads."""
    read = {o.name for o in graph.output} | {name for n in graph.node for name in n.input}
    for inner in [a.g for n in graph.node for a in n.attribute if a.HasField("g")]:
        made = {name for n in inner.node for name in n.output} | {i.name for i in inner.initializer}
        read |= _drop_unused(inner) - made
    kept = [i for i in graph.initializer if i.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return read


def _nodes(graph: Any) -> list[Any]:
    """Of a graph and of those inside its nodes."""
    inner = [a.g for n in graph.node for a in n.attribute if a.HasField("g")]
    return [*graph.node, *(n for g in inner for n in _nodes(g))]


# --- operators that PyTorch's exporter has no ONNX form for, or a slow one ----------------------------------------


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Maximum pooling whose indices stay ONNX's own, from the pass forward to its gradient; plain numbers beside
    double precision, which would go through single."""
    import onnxscript
    from onnxscript import ir

    op: Any = onnxscript.opset20

    def number(value: Any, kind: Any) -> Any:
        return op.Constant(value=ir.tensor(np.array(value, ir.DataType(kind).numpy())))

    def scalar(value: Any, dtype: int = -1, **_: Any) -> Any:
        kind = ir.DataType.FLOAT if dtype == -1 else dtype
        return number(value, kind) if isinstance(value, (bool, int, float)) else op.Cast(value, to=int(kind))

    def full(shape: Any, value: Any, dtype: int = -1, **_: Any) -> Any:
        return op.Expand(scalar(value, dtype), shape)

    def full_like(x: Any, value: Any, dtype: int = -1, **_: Any) -> Any:
        return op.Expand(scalar(value, x.dtype if dtype == -1 else dtype), op.Shape(x))

    def clamp(x: Any, low: float | None = None, high: float | None = None) -> Any:
        return op.Clip(x, *(None if bound is None else number(bound, x.dtype) for bound in (low, high)))

    def pool(x: Any, kernel: Any, stride: Any = (), padding: Any = (0, 0), dilation: Any = (1, 1),
             ceil: bool = False) -> Any:  # fmt: skip
        pads = [*padding, *padding]
        return op.MaxPool(
            x, kernel_shape=kernel, strides=stride or kernel, pads=pads, dilations=dilation, ceil_mode=int(ceil)
        )

    def pool_back(dy: Any, x: Any, *how: Any) -> Any:
        flat = op.Constant(value_ints=[-1])
        zeros, at = op.Reshape(op.Sub(x, x), flat), op.Reshape(how[-1], flat)
        return op.Reshape(op.ScatterElements(zeros, at, op.Reshape(dy, flat), axis=0, reduction="add"), op.Shape(x))

    aten: Any = torch.ops.aten
    return {
        aten.scalar_tensor.default: scalar,
        aten.full.default: full,
        aten.full_like.default: full_like,
        aten.clamp.default: clamp,
        aten.max_pool2d_with_indices.default: pool,
        aten.max_pool2d_with_indices_backward.default: pool_back,
    }
