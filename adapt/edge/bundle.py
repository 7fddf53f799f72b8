"""What a bundle says of itself: ``bundle.json``, and the files beside it.

    format, driftway      version of this layout, and of the package that wrote it
    learner, settings     what was exported, for a person
    weights               how those that stay are kept: float32, float16 or int8
    made                  versions of PyTorch and ONNX, opset
    stream                name, columns, classes (names in code order, or null)
    columns               {name, shape, categories, open, missing}, with shape [] for a single one; where all are alike
                          and their names count, as those of pixels do, one entry stands for them: "pixel " with
                          shape [2, 2] for "pixel 0.0", "pixel 0.1", "pixel 1.0" and "pixel 1.1"; of a planner the
                          last is time, in seconds
    rows                  dtype of the rows as the graphs take them (float32 or float64)
    verbs                 name -> {file, rows, reads, writes, some, answers, single}: rows lists the inputs with an
                          axis of rows, which is always 1 where the verb is single; reads and writes name state, input
                          ``old.NAME`` and output ``new.NAME`` of the graph; answers maps the other outputs to {dtype,
                          shape} with null for the axis of rows; some maps state of which only rows come back, as
                          ``some.NAME``, to the answer that says which rows those are
    state                 name -> {dtype, shape}; the values at export are in state.safetensors, and beside them, where
                          the learner kept them, learnt.ids and learnt.x: traces of learnt rows, class codes behind
    guard                 every: steps from one look at the answers to the next, at which the state at export answers
                          the same rows; window: rows that are judged together; share: answers have collapsed where
                          their effective number of classes (exp of the entropy) is below so much of those others'
    engine                file of what runs in place of graphs, where there is one, and its settings: its verbs have no
                          files, and its state is its own (``driftmoe.py``)
    files                 name -> {sha256, bytes} of every other file; weights.bin, where it is there, holds weights
                          that several graphs read (ONNX external data: a graph has the file's name, place and length)
    sha256                of this file without this line, keys sorted

Nothing in it depends on the clock or the machine: the same learner makes the same bundle.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...streams import StreamSpec
from .steps import Steps

FORMAT = 1
MANIFEST, STATE, RUNNER, WEIGHTS = "bundle.json", "state.safetensors", "run.py", "weights.bin"
GUARD = {"every": 8, "window": 32, "share": 0.7}


def described(steps: Steps, spec: StreamSpec, learner: Mapping[str, Any], answers: Mapping[str, Any]) -> dict[str, Any]:
    """bundle.json without its files. learner: its name and settings. answers: per verb, as ``answers`` above."""
    import onnx
    import torch

    from .tracing import OPSET

    verbs = {
        name: {
            "file": f"{name}.onnx",
            "rows": list(verb.rows(1, 0)),
            "reads": list(verb.reads),
            "writes": list(verb.writes),
            "some": dict(verb.some),
            "answers": answers[name],
            "single": verb.single,
        }
        for name, verb in steps.verbs.items()
    }
    example = steps.verbs["predict"].rows(1, 0)["x"]
    return {
        **headed(spec, learner, steps.beside),
        "made": {"torch": torch.__version__, "onnx": onnx.__version__, "opset": OPSET},
        "rows": str(example.dtype).removeprefix("torch."),
        "verbs": verbs,
        "state": {n: {"dtype": _dtype(t), "shape": list(t.shape)} for n, t in steps.state.items()},
        "facts": dict(steps.facts),
        "guard": {**GUARD, **steps.guard},
    }


def headed(spec: StreamSpec, learner: Mapping[str, Any], beside: Sequence[str] = ()) -> dict[str, Any]:
    """What every bundle says first. beside: names of columns that a row has behind those of the stream."""
    from ... import __version__

    columns: list[dict[str, Any]] = [
        {"name": c.name, "shape": [], "categories": c.categories, "open": c.open, "missing": c.missing}
        for c in spec.columns
    ]
    columns += [{"name": n, "shape": [], "categories": None, "open": False, "missing": False} for n in beside]
    stream = {"name": spec.name, "columns": _counted(columns), "classes": spec.classes}
    return {"format": FORMAT, "driftway": __version__, **learner, "stream": stream}


def _counted(columns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry with a shape if it stands for all of them; else as they are."""
    last = re.fullmatch(r"(.*?)(\d+(?:\.\d+)*)", columns[-1]["name"])
    if last is None:
        return columns
    shape = [int(i) + 1 for i in last[2].split(".")]
    if math.prod(shape) != len(columns):
        return columns
    names = (last[1] + ".".join(map(str, place)) for place in np.ndindex(*shape))
    alike = columns == [{**columns[0], "name": name} for name in names]
    return [{**columns[0], "name": last[1], "shape": shape}] if alike else columns


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def sealed(manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes:
    """bundle.json as it is written: the files' digests and its own added."""
    whole = {
        **manifest,
        "files": {n: {"sha256": hashlib.sha256(b).hexdigest(), "bytes": len(b)} for n, b in files.items()},
    }
    whole = json.loads(json.dumps(whole, allow_nan=False))
    whole["sha256"] = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    return (json.dumps(whole, indent=1) + "\n").encode()
