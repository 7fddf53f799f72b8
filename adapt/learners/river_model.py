"""Any classifier or regressor of river, by its name: the peers to compare with, and a way in for their users.

Rows become dicts by column name, nominal values become their category's name, missing values are left out. River's
objects hold state of their own kind, so such a learner can be neither checkpointed nor rolled back.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, ClassVar

import numpy as np

from ...streams import Array, Batch, InputError, StreamSpec
from ..learner import CannotCheckpoint, Learner, Prediction, State


class RiverModel(Learner):
    """``river:module.Class``, such as ``river:forest.ARFClassifier``; settings go to the class's constructor.

    It is given the seed where its constructor takes one. Predicting asks for probabilities and answers with the
    likeliest class. Whether predicting leaves the model unchanged is river's promise, not ours.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"classification", "regression"})

    @dataclass(frozen=True)
    class Params:
        """model: ``module.Class`` below river. settings: plain values for its constructor."""

        model: str
        settings: dict[str, Any] = field(default_factory=dict)

    def __init__(self, spec: StreamSpec, params: Params | None = None, seed: int = 0) -> None:
        if params is None:
            raise InputError("river: say which model, as in river:tree.HoeffdingTreeClassifier")
        super().__init__(spec, params, seed)
        kind = _find_class(params.model)
        _check_target(kind, params.model, spec)
        taken = inspect.signature(kind).parameters
        settings = {k: _converted(taken, k, v, params.model) for k, v in params.settings.items()}
        if "seed" in taken:
            settings.setdefault("seed", seed)
        try:
            self._model = kind(**settings)
        except (TypeError, ValueError) as fault:
            raise InputError(f"river:{params.model} cannot be built: {fault}") from None
        if spec.target == "classification" and spec.n_classes != 2 and not self._model._multiclass:
            many = "unknown classes" if spec.n_classes is None else f"{spec.n_classes} classes"
            raise InputError(f"river:{params.model} knows two classes, stream {spec.name!r} has {many}")
        self._names = [c.name for c in spec.columns]
        self._categories = [c.categories for c in spec.columns]
        self._classes = max(1, spec.n_classes or 0)

    @classmethod
    def gather(cls, rest: str, settings: Mapping[str, Any]) -> Params:
        """Parameters out of ``river:REST`` and the settings for the model's constructor."""
        if not rest:
            raise InputError("river: say which model, as in river:tree.HoeffdingTreeClassifier")
        return cls.Params(rest, dict(settings))

    def predict(self, batch: Batch) -> Prediction:
        rows = self._rows(batch)
        if self.spec.target == "regression":
            values = [float(self._model.predict_one(row) or 0.0) for row in rows]
            return Prediction(np.array([v if math.isfinite(v) else 0.0 for v in values]))
        scores = np.zeros((len(rows), self._classes))
        output = np.zeros(len(rows), np.int64)
        for i, row in enumerate(rows):
            share = self._shares(row)
            for code, p in share.items():
                scores[i, int(code)] = p
            output[i] = int(max(share, key=share.__getitem__)) if share else 0
        return Prediction(output, scores)

    def _shares(self, row: dict[str, Any]) -> dict[Any, float]:
        """Class code to probability; certain of its one answer where the model knows no probabilities."""
        try:
            share = self._model.predict_proba_one(row)
        except NotImplementedError:
            code = self._model.predict_one(row)
            return {} if code is None else {code: 1.0}
        return {code: p for code, p in share.items() if code is not None and math.isfinite(p)}

    def learn(self, batch: Batch, prediction: Prediction) -> None:
        assert batch.y is not None
        for row, y in zip(self._rows(batch), batch.y.tolist()):
            self._model.learn_one(row, y)
        if self.spec.target == "classification":
            self._classes = max(self._classes, int(batch.y.max()) + 1)

    def _rows(self, batch: Batch) -> list[dict[str, Any]]:
        table: Array = np.asarray(batch.x)
        return [
            {
                name: value if categories is None else _category(categories, int(value))
                for name, categories, value in zip(self._names, self._categories, row)
                if not math.isnan(value)
            }
            for row in table.tolist()
        ]

    def state(self) -> State:
        raise CannotCheckpoint(
            f"river:{self.params.model} keeps its state in objects of its own, which cannot be written as plain arrays"
        )

    def load(self, state: State) -> None:
        raise CannotCheckpoint(f"river:{self.params.model} cannot take over a saved state")


def _category(categories: tuple[str, ...], code: int) -> str:
    return categories[code] if code < len(categories) else f"category {code}"


def _find_class(name: str) -> type[Any]:
    """The class that ``module.Class`` names below river."""
    module, _, last = name.rpartition(".")
    parts = [*module.split("."), last] if module else []
    if not parts or not all(p.isidentifier() and not p.startswith("_") for p in parts):
        raise InputError(f"river:{name}: expected module.Class, as in river:tree.HoeffdingTreeClassifier")
    try:
        home = importlib.import_module(f"river.{module}")
    except ModuleNotFoundError:
        raise InputError(f"river:{name}: river has no module {module!r}") from None
    kind = getattr(home, last, None)
    if not inspect.isclass(kind):
        near = get_close_matches(last, [n for n in vars(home) if inspect.isclass(getattr(home, n))], n=3, cutoff=0.5)
        hint = f": did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"river:{name}: river.{module} has no class {last!r}{hint}")
    return kind


def _check_target(kind: type[Any], name: str, spec: StreamSpec) -> None:
    from river import base

    wanted = base.Regressor if spec.target == "regression" else base.Classifier
    if not issubclass(kind, wanted):
        raise InputError(f"river:{name} is no {wanted.__name__.lower()}, stream {spec.name!r} is {spec.target}")


def _converted(taken: Mapping[str, Any], key: str, value: Any, model: str) -> Any:
    """A setting in the type of the parameter's default, or, where that is None, as the plainest thing the text is."""
    import msgspec

    if key not in taken:
        near = get_close_matches(key, taken, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it takes: {', '.join(taken)}"
        raise InputError(f"river:{model} has no parameter {key!r}: {hint}")
    default = taken[key].default
    plain = bool | int | float | str | None
    kind = type(default) if isinstance(default, bool | int | float | str) else plain
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as fault:
        raise InputError(f"river:{model}: {fault} for `{key}`") from None
