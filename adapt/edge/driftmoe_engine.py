"""Runs the trees and the router of a bundle: ``driftmoe`` in both variants, and ``hoeffding-tree``.

The runner calls it in place of graphs. It needs NumPy; with Numba the loops are compiled, as in the package, and
without it ``driftmoe_arrays.py`` takes their place. A bundle holds the package's own sources, in the same folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...models import detectors, encoding, guarded, hoeffding, linear, router, splitting
from ...models.arrays import from_dict, to_dict
from ...models.hoeffding import Rules
from ..learners import driftmoe_data, driftmoe_task, hoeffding_rows
from ..learners.row_model import RowModel

Array = NDArray[Any]

ROWS: dict[str, Any] = {"data": driftmoe_data, "task": driftmoe_task, "tree": hoeffding_rows}
MODULES = (detectors, encoding, guarded, hoeffding, linear, router, splitting, *ROWS.values())
LARGEST_CODE = 2.0**53
"""A category beyond it counts as missing."""


class Engine:
    """The verbs of a bundle over its arrays.

    about: ``engine`` of bundle.json: kind (of ``ROWS``), plan, classes, room and max_bytes (of ``RowModel``), nominal
    (columns with categories).
    now: everything that is learnt, by name, to begin with; it holds the arrays of this moment whenever ``run`` is done.
    A row's trace is the row, what its learning wants back, and the answer.
    """

    def __init__(self, about: Mapping[str, Any], now: dict[str, Array]) -> None:
        self.kind, self.nominal = about["kind"], about["nominal"]
        self.rows = ROWS[self.kind]
        self.plan = self.rows.Plan(**{name: _setting(value) for name, value in about["plan"].items()})
        sizes = {name: about[name] for name in ("classes", "room", "max_bytes")}
        self.model = RowModel(self.rows.pass_rows, self._handle, self._pool(now), **sizes)
        self.now = now
        self.now.update(flat(to_dict(self.model.pool)))
        if not _compiled():
            from .driftmoe_arrays import take_over

            take_over(MODULES)

    def _handle(self, pool: Any) -> Any:
        parts = (self.plan, pool, self.rows.new_desk(pool)) if self.kind == "data" else (self.plan, pool)
        if not _compiled():
            return SimpleNamespace(value=parts)
        from ...models.held import hold

        return hold(parts)

    def _pool(self, state: Mapping[str, Array]) -> Any:
        nested: dict[str, Any] = {}
        for name, array in state.items():
            *folders, last = name.split(".")
            place = nested
            for folder in folders:
                place = place.setdefault(folder, {})
            place[last] = array.view(np.uint64) if last == "generator" else array
        return from_dict(self.rows.Pool, nested)

    def load(self, state: Mapping[str, Array]) -> None:
        """Go on from what ``now`` was once; the arrays are copied."""
        self.model.work_on(self._pool(state), self.model.classes)
        self.now.update(flat(to_dict(self.model.pool)))

    def run(self, verb: str, rows: Mapping[str, Array]) -> dict[str, Array]:
        """predict: x[n, d] to scores[n, C] and trace[n, w]. learn: traces x[n, w] with class codes y[n]; outcome[1]."""
        with np.errstate(all="ignore"):
            return self._predict(rows["x"]) if verb == "predict" else self._learn(rows["x"], rows["y"])

    def _predict(self, x: Array) -> dict[str, Array]:
        noted = self._notes(len(x))
        answers, scores = self.model.predict(self._sound(x), noted)
        behind = scores.argmax(1) != answers  # an expert that knows nothing leaves the answer to the labels so far
        scores[behind, answers[behind]] = np.nextafter(scores[behind].max(1), np.inf)
        parts = [x, *(part.reshape(len(x), -1) for part in noted), answers[:, None]]
        return {"scores": scores, "trace": np.concatenate(parts, axis=1, dtype=np.float64)}

    def _learn(self, trace: Array, y: Array) -> dict[str, Array]:
        noted, at = self._notes(len(trace)), trace.shape[1] - 1
        for part in reversed(noted):
            size = part[0].size
            part[...] = trace[:, at - size : at].reshape(part.shape)
            at -= size
        if not np.isfinite(trace[:, at:]).all():  # a row that was refused
            return {"outcome": np.zeros(1, np.int64)}
        self.model.learn(self._sound(trace[:, :at]), np.ascontiguousarray(y), noted, trace[:, -1].astype(np.int64))
        self.now.update(flat(to_dict(self.model.pool)))
        return {"outcome": np.ones(1, np.int64)}

    def _notes(self, n: int) -> tuple[Array, ...]:
        """What learning wants back of n rows, empty."""
        return driftmoe_data.new_notes(self.model.pool, n) if self.kind == "data" else ()

    def _sound(self, x: Array) -> Array:
        """A copy in C order, in which categories are codes."""
        x = np.array(x, np.float64, order="C")
        columns = x[:, self.nominal]
        x[:, self.nominal] = np.where(np.abs(columns) <= LARGEST_CODE, columns, np.nan)
        return x


def flat(state: Mapping[str, Any], folder: str = "") -> dict[str, Array]:
    """Arrays by their names with dots between, by reference; states of random generators as signed numbers."""
    arrays: dict[str, Array] = {}
    for name, value in state.items():
        if isinstance(value, Mapping):
            arrays |= flat(value, f"{folder}{name}.")
        else:
            arrays[f"{folder}{name}"] = value.view(np.int64) if value.dtype == np.uint64 else value
    return arrays


def _setting(value: Any) -> Any:
    """Of a plan, from JSON."""
    if isinstance(value, Mapping):
        return Rules(**value)
    return np.array(value, np.float64) if isinstance(value, list) else value


def _compiled() -> bool:
    return hasattr(driftmoe_data.pass_rows, "py_func")
