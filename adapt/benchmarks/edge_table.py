"""Bundles on mnist-c, in an environment with NumPy and ONNX Runtime and nothing else, beside the learners in PyTorch.

Every corruption one after the other, nothing set back between them, 16 rows a step. ours: share of right answers that
the bundle's own ``run.py`` wrote, started by the interpreter of a virtual environment into which the distributions of
ONNX Runtime and of what it needs are linked, and no other. peer: the learner that was exported, on the same rows in
PyTorch. ``source`` adapts to nothing: what the others gain is against its line.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import distribution
from pathlib import Path

import numpy as np

from ...streams import Array, Batch, Labels, open_stream
from ..edge.export import export
from ..learner import Learner
from ..learners import make_learner
from . import Row
from .edge import _sizes
from .tta import Differs

LEARNERS = ("source", "bn-adapt", "tent")
MODEL, EPOCHS, BATCH = "convnet:16-32", 3, 16


def measure() -> list[Row]:
    """A line for each learner."""
    stream = open_stream("mnist-c")
    x, y = _rows(list(stream))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = bare(folder / "environment")
        np.savez(folder / "rows.npz", x=x)
        for learner in LEARNERS:
            made = make_learner(learner, stream.spec, model=MODEL, epochs=EPOCHS)
            bundle = export(made, stream.spec, folder / learner, name=learner)
            ours, peer = (float((found == y).mean()) for found in (_bundle(python, bundle, folder), _torch(made, x)))
            rows.append({
                "bench": "edge-table", "case": f"mnist-c, {MODEL}, {learner}, {BATCH} rows a step", "unit": "accuracy",
                "ours": ours, "peer": peer, "peer_name": "the learner in PyTorch", "ratio": ours / peer, "floor": None,
            })  # fmt: skip
    return rows


def bare(folder: Path) -> Path:
    """The interpreter of a new environment that holds ONNX Runtime and what it needs; ``Differs`` if it holds more."""
    venv.create(folder, symlinks=True, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in _sizes("onnxruntime"):
        for file in distribution(name).files or ():
            top = file.parts[0]
            if top != ".." and not (packages / top).exists():
                (packages / top).symlink_to(Path(str(distribution(name).locate_file(top))))
    python = folder / "bin" / Path(sys.executable).name
    for name in ("torch", "onnx", "driftway"):
        if subprocess.run([python, "-c", f"import {name}"], cwd=folder, capture_output=True).returncode == 0:
            raise Differs(f"the bare environment can import {name}")
    return python


def _rows(events: list[object]) -> tuple[Array, Array]:
    """x float32[n, d] and y int64[n], labels that come late in their places."""
    batches = [e for e in events if isinstance(e, Batch)]
    known = {int(i): int(y) for e in events if isinstance(e, Labels) for i, y in zip(e.ids, e.y)}
    for batch in batches:
        known |= {} if batch.y is None else {int(i): int(y) for i, y in zip(batch.ids, batch.y)}
    ids = np.concatenate([b.ids for b in batches])
    return np.concatenate([b.x for b in batches]).astype(np.float32), np.array([known[int(i)] for i in ids])


def _bundle(python: Path, bundle: Path, folder: Path) -> Array:
    """What run.py answers, as class codes."""
    out = folder / "answers.csv"
    paths = [python, bundle / "run.py", "--input", folder / "rows.npz", "--output", out]
    command = [*map(str, paths), "--batch", str(BATCH)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Differs(done.stderr.strip().splitlines()[-1])
    return np.array([int(row["answer"]) for row in csv.DictReader(out.read_text().splitlines())])


def _torch(learner: Learner, x: Array) -> Array:
    found = []
    for start in range(0, len(x), BATCH):
        part = x[start : start + BATCH].astype(np.float64)
        batch = Batch(np.arange(start, start + len(part)), part, float(start))
        prediction = learner.predict(batch)
        learner.adapt(batch, prediction)
        found.append(prediction.output)
    return np.concatenate(found)
