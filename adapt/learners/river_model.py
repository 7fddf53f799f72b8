"""Any classifier or regressor of river, by its name: the peers to compare with, and a way in for their users.

Rows become dicts by column name, nominal values become their category's name, missing values are left out. River's
objects hold state of their own kind, so such a learner can be neither checkpointed nor rolled back.
"""

from __future__ import annotations

import importlib
import inspect
import math
from dataclasses import asdict, dataclass, make_dataclass
from difflib import get_close_matches
from functools import reduce
from operator import or_
from typing import Any, ClassVar

import numpy as np

from ...streams import Array, Batch, InputError, StreamSpec
from ..learner import CannotCheckpoint, Learner, Prediction, State

_PLAIN: dict[str, Any] = {"bool": bool, "int": int, "float": float, "str": str, "None": None}


class RiverModel(Learner):
    """``river:module.Class``, such as ``river:forest.ARFClassifier``; parameters are those of the class.

    Those are meant that a flag can say: numbers, text and booleans. The seed is passed on where the class takes one.
    Predicting asks for probabilities and answers with the likeliest class. Whether that leaves the model unchanged is
    river's promise, not ours.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"classification", "regression"})

    @dataclass(frozen=True)
    class Params:
        """What the class takes (see ``params_for``)."""

        model: ClassVar[str] = ""

    def __init__(self, spec: StreamSpec, params: Params | None = None, seed: int = 0) -> None:
        super().__init__(spec, params, seed)
        name = self.params.model
        kind = _find_class(name)
        settings = {k: _number_if_allowed(v, self.params.__annotations__[k]) for k, v in asdict(self.params).items()}
        if "seed" in inspect.signature(kind).parameters:
            settings["seed"] = seed
        try:
            self._model = kind(**settings)
        except (TypeError, ValueError) as fault:
            raise InputError(f"river:{name} cannot be built: {fault}") from None
        _check_target(self._model, name, spec)
        self._names = [c.name for c in spec.columns]
        self._categories = [c.categories for c in spec.columns]
        self._classes = max(1, spec.n_classes or 0)

    @classmethod
    def params_for(cls, model: str) -> type[Params]:
        """The parameters of ``river:MODEL``: those of its constructor whose values are numbers, text or booleans."""
        if not model:
            return cls.Params
        made: list[tuple[str, Any, Any]] = []
        for name, taken in inspect.signature(_find_class(model)).parameters.items():
            if taken.default is inspect.Parameter.empty and taken.kind in (
                taken.POSITIONAL_OR_KEYWORD,
                taken.KEYWORD_ONLY,
            ):
                raise InputError(f"river:{model} needs {name}, which no flag can say")
            plain = _plain_type(taken)
            if plain is not None and name != "seed":
                made.append((name, plain, taken.default))
        return make_dataclass("Params", made, bases=(cls.Params,), namespace={"model": model}, frozen=True)

    def predict(self, batch: Batch) -> Prediction:
        numbers = self.spec.target == "regression"
        scores = np.zeros((len(batch), self._classes))
        output = np.zeros(len(batch), np.float64 if numbers else np.int64)
        for i, row in enumerate(self._rows(batch)):
            try:
                if numbers:
                    output[i] = np.nan_to_num(self._model.predict_one(row) or 0.0)
                    continue
                share = self._shares(row)
            except Exception as fault:
                raise self._failed(int(batch.ids[i]), fault) from fault
            for code, p in share.items():
                scores[i, int(code)] = p
            output[i] = int(max(share, key=share.__getitem__)) if share else 0
        return Prediction(output, None if numbers else scores)

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
        for number, row, y in zip(batch.ids.tolist(), self._rows(batch), batch.y.tolist()):
            try:
                self._model.learn_one(row, y)
            except Exception as fault:
                raise self._failed(number, fault) from fault
        if self.spec.target == "classification":
            self._classes = max(self._classes, int(batch.y.max()) + 1)

    def _failed(self, row: int, fault: Exception) -> InputError:
        """Foreign code may raise anything (a linear model meeting text, say): one line instead."""
        return InputError(f"river:{self.params.model} cannot take row {row}: {type(fault).__name__}: {fault}")

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
        raise InputError(
            f"learner 'river:{name}': expected river:module.Class, as in river:tree.HoeffdingTreeClassifier"
        )
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


def _check_target(model: Any, name: str, spec: StreamSpec) -> None:
    from river import base

    wanted: type[Any] = base.Regressor if spec.target == "regression" else base.Classifier
    if not isinstance(model, wanted):
        raise InputError(f"river:{name} is no {wanted.__name__.lower()}, stream {spec.name!r} is {spec.target}")
    if spec.target == "classification" and spec.n_classes != 2 and not model._multiclass:
        many = "unknown classes" if spec.n_classes is None else f"{spec.n_classes} classes"
        raise InputError(f"river:{name} knows two classes, stream {spec.name!r} has {many}")


def _plain_type(taken: inspect.Parameter) -> Any:
    """The parameter's type as far as flags can say it (int, or int | None, ...); None where they cannot."""
    if taken.default is not None and not isinstance(taken.default, bool | int | float | str):
        return None
    words = [w.strip() for w in str(taken.annotation).split("|")]
    kinds = [_PLAIN[w] for w in words if w in _PLAIN]
    if not kinds and isinstance(taken.default, bool | int | float | str):
        kinds = [type(taken.default)]
    if all(kind is None for kind in kinds):
        return None
    return reduce(or_, sorted(kinds, key=lambda kind: kind is None))


def _number_if_allowed(value: Any, plain: Any) -> Any:
    """Text that reads as a number, where the parameter takes text or numbers, is the number."""
    for kind in (int, float):
        if isinstance(value, str) and kind in getattr(plain, "__args__", ()):
            try:
                return kind(value)
            except ValueError:
                continue
    return value
