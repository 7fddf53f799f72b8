"""DriftMoE and Hoeffding trees in a bundle: no graphs, but the sources that learn them, and NumPy.

Trees grow, which a graph cannot. So the bundle has a folder with the package's own files, as they are, and the runner
calls ``driftmoe_engine.py`` from it. Only ``models/compiled.py`` is another there: ``driftmoe_compiled.py``; and
``start.py`` is ``driftmoe_start.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...models.arrays import to_dict
from ...streams import Array
from ..learners.hoeffding_tree import HoeffdingTree
from .driftmoe_engine import flat

PACKAGE = Path(__file__).resolve().parent.parent.parent
FOLDER = "driftmoe"
MODELS = ("arrays", "detectors", "encoding", "guarded", "held", "hoeffding", "linear", "router", "splitting")
LEARNERS = ("driftmoe_data", "driftmoe_task", "hoeffding_rows", "row_model")
SOURCES = {
    **{f"models/{name}.py": f"models/{name}.py" for name in MODELS},
    **{f"adapt/learners/{name}.py": f"adapt/learners/{name}.py" for name in LEARNERS},
    **{f"adapt/edge/{name}.py": f"adapt/edge/{name}.py" for name in ("driftmoe_engine", "driftmoe_arrays")},
    "models/compiled.py": "adapt/edge/driftmoe_compiled.py",
    "start.py": "adapt/edge/driftmoe_start.py",
}
"""Files of the folder, and which of the package's they are."""


def parts(learner: Any) -> tuple[dict[str, Any], dict[str, bytes], dict[str, Array]]:
    """What bundle.json says besides, the files, and the state by name, of ``DriftMoE`` or ``HoeffdingTree``."""
    kind, of = ("tree", learner) if isinstance(learner, HoeffdingTree) else (learner.params.variant, learner._mixture)
    engine = {
        "file": f"{FOLDER}/start.py",
        "kind": kind,
        "plan": {name: _plain(value) for name, value in of.plan._asdict().items()},
        "classes": of.rows.classes,
        "room": of.rows.room,
        "max_bytes": of.rows.max_bytes,
        "nominal": [f for f, fan in enumerate(of.rows.pool.forest.fan.tolist()) if fan],
    }
    state = flat(to_dict(of.rows.pool))
    said = {
        "made": {"numpy": np.__version__},
        "rows": "float64",
        "verbs": _verbs(of.rows.classes),
        "state": {name: {"dtype": str(array.dtype), "shape": array.shape} for name, array in state.items()},
        "facts": {},
        "guard": {},
        "engine": engine,
    }
    files = {f"{FOLDER}/{name}": (PACKAGE / path).read_bytes() for name, path in SOURCES.items()}
    return said, files, state


def _verbs(classes: int) -> dict[str, Any]:
    """As ``bundle.py`` describes them; what they read and write is the engine's own."""
    scores = {"dtype": "float64", "shape": [None, classes]}
    trace = {"dtype": "float64", "shape": [None, None]}
    plain: dict[str, Any] = {"reads": [], "writes": [], "single": False}
    return {
        "predict": {"rows": ["x"], **plain, "answers": {"scores": scores, "trace": trace}},
        "learn": {"rows": ["x", "y"], **plain, "answers": {"outcome": {"dtype": "int64", "shape": [1]}}},
    }


def _plain(value: Any) -> Any:
    """Of a plan, as JSON has it."""
    if hasattr(value, "_asdict"):
        return value._asdict()
    return value.tolist() if isinstance(value, np.ndarray) else value
