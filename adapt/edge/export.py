"""``dw.export``: a learner as an edge bundle, whole or not at all.

Every graph is written down, checked, and compared with PyTorch on rows that were not used for tracing; all files are
written to a folder beside the place and brought to the disk, and only then is that renamed. What cannot be exported is
told before the first byte is written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...streams import Array, InputError, StreamSpec
from ..learner import Learner
from .bundle import MANIFEST, RUNNER, STATE, described, headed, sealed

KEPT = ("float32", "float16", "int8")
CALIBRATING = 256
SOURCES = ("DriftMoE", "HoeffdingTree")
"""Learners that go into a bundle as sources (``driftmoe.py``); all others as graphs."""


def export(learner: Learner, spec: StreamSpec, path: str | Path, *, name: str = "", weights: str = "float32") -> Path:
    """Write the learner, as it is now, to the folder ``path`` as an edge bundle; returns the path.

    spec: of the rows that it will meet. name: of the learner, where it has one in the table. weights: how those that
    stay are kept (``weights.py``): float32, float16, or int8, which is calibrated on the source's rows. Raises
    ``InputError``, in one line, where the folder has something in it, the extra ``export`` is missing, or the learner
    or a layer of its model has no form as a graph; then nothing is written.
    """
    place = Path(path)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise InputError(f"--to {place}: there is something already; name a new folder")
    if weights not in KEPT:
        raise InputError(f"weights={weights}: there is {', '.join(KEPT)}")
    said = {"learner": name or type(learner).__name__, "settings": _settings(learner), "weights": weights}
    manifest, files = (_sources if type(learner).__name__ in SOURCES else _graphs)(learner, spec, said)
    files[RUNNER] = (Path(__file__).parent / "runner.py").read_bytes()
    _write(place, {**files, MANIFEST: sealed(manifest, files)})
    return place


def _graphs(learner: Learner, spec: StreamSpec, said: dict[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """bundle.json without its files, and the files, of a learner whose verbs are graphs."""
    from .steps import steps_of
    from .tracing import compare, traced
    from .weights import apart, halve, quantised

    rows = _calibrating(spec) if said["weights"] == "int8" else None
    steps = steps_of(learner)
    if rows is not None and steps.beside:
        raise InputError(f"int8 is calibrated on the source's rows, which have no {steps.beside[0]}: use float16")
    models: dict[str, Any] = {}
    answers: dict[str, Any] = {}
    for verb, what in steps.verbs.items():
        model = traced(verb, what, steps.state)
        compare(verb, what, model.SerializeToString(deterministic=True), steps.state)
        answers[verb] = {n: _shape(model, n) for n in what.answers}
        models[verb] = model if rows is None else quantised(verb, what, model, steps.state, rows)
        if said["weights"] == "float16":
            halve(model)
    files = apart(models)
    files |= {f"{verb}.onnx": model.SerializeToString(deterministic=True) for verb, model in models.items()}
    from safetensors.torch import save

    files[STATE] = save({n: t.contiguous() for n, t in {**steps.state, **steps.learnt}.items()})
    return described(steps, spec, said, answers), files


def _sources(learner: Learner, spec: StreamSpec, said: dict[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The same of a learner whose own sources go with it."""
    from .driftmoe import parts

    if said["weights"] != "float32":
        raise InputError(f"weights={said['weights']}: {said['learner']} has none that stay; leave them float32")
    more, files, state = parts(learner)
    from safetensors.numpy import save

    files[STATE] = save(state)
    return {**headed(spec, said), **more}, files


def export_run(folder: Path, to: Path, weights: str = "float32") -> Path:
    """The learner of a finished or paused run, as its newest checkpoint has it, as a bundle."""
    from ..config import resolve
    from ..folder import CONFIG
    from ..runs import Run

    if not (folder / CONFIG).exists():
        raise InputError(f"{folder}: holds no run")
    run = Run(resolve({}, config=folder / CONFIG), folder, resume=True)
    try:
        return export(run.learner, run.stream.spec, to, name=run.config.learner, weights=weights)
    finally:
        run.close()


def _calibrating(spec: StreamSpec) -> Array:
    """The source's first rows, float[n, d], from which the ranges of activations are taken."""
    if spec.source is None:
        raise InputError("int8 is calibrated on the source's rows, and this stream has no source: use float16")
    rows: Array = np.asarray(spec.source.test()[0][:CALIBRATING])
    return rows


def _shape(model: Any, name: str) -> dict[str, Any]:
    """dtype and shape of an output, null for an axis of any length."""
    import onnx

    (found,) = [o.type.tensor_type for o in model.graph.output if o.name == name]
    sizes = [d.dim_value if d.HasField("dim_value") else None for d in found.shape.dim]
    return {"dtype": np.dtype(onnx.helper.tensor_dtype_to_np_dtype(found.elem_type)).name, "shape": sizes}


def _settings(learner: Learner) -> dict[str, Any]:
    params = learner.params
    return asdict(params) if is_dataclass(params) and not isinstance(params, type) else {}


def _write(place: Path, files: Mapping[str, bytes]) -> None:
    """All files, or none: under another name beside the place first."""
    draft = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        draft.mkdir(parents=True)
        for name, body in files.items():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            with (draft / name).open("wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
        if place.exists():
            place.rmdir()
        draft.rename(place)
    except OSError as fault:
        raise InputError(f"--to {place}: {fault.strerror or fault}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
