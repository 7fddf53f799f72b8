"""Learners around another learner: one dataclass with the parameters of both, and the rows handed on to the inner one.

Parameters of the inner learner stand beside those of the outer one; where both have a name, the inner one's is called
``base_NAME``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, field, fields, make_dataclass
from typing import Any, get_type_hints

from ...streams import Array, InputError, StreamSpec
from ..learner import Learner, Prediction

INNER = "base."
"""Prefix of the inner learner's entries in the outer one's trace."""


def wrapped_params(own: type[Any], learner: str) -> type[Any]:
    """A dataclass derived from ``own`` with the inner learner's parameters added; ``learner`` is its class variable.

    ``InputError`` where two parameters would have one name.
    """
    from . import learner_params

    theirs = learner_params(learner)
    types, taken = get_type_hints(theirs), {f.name for f in fields(own)}
    added = [
        (
            f"base_{f.name}" if f.name in taken else f.name,
            types[f.name],
            field(default=f.default, default_factory=f.default_factory, metadata=f.metadata),
        )
        for f in fields(theirs)
    ]
    names = [name for name, *_ in added]
    twice = next((name for name in names if name in taken or names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{learner} cannot be wrapped once more: there would be two parameters {twice}")
    return make_dataclass("Params", added, bases=(own,), namespace={"learner": learner}, frozen=True)


def make_inner(own: type[Any], params: Any, spec: StreamSpec, seed: int) -> Learner:
    """The inner learner with its share of the parameters. own: the outer one's parameters alone."""
    from . import learner_params, make_learner

    values, taken = asdict(params), {f.name for f in fields(own)}
    names = [f.name for f in fields(learner_params(params.learner))]
    settings = {n: values[f"base_{n}" if n in taken else n] for n in names if n in values or n in taken}
    return make_learner(params.learner, spec, seed=seed, **settings)


def kept(prediction: Prediction) -> dict[str, Array]:
    """The inner learner's answer as entries of a trace."""
    answer = {} if prediction.scores is None else {f"{INNER}scores": prediction.scores}
    return {
        f"{INNER}output": prediction.output,
        **answer,
        **{f"{INNER}trace.{k}": v for k, v in prediction.trace.items()},
    }


def given_back(trace: Mapping[str, Array]) -> Prediction:
    """The inner learner's answer out of a trace."""
    start = f"{INNER}trace."
    inner = {k.removeprefix(start): v for k, v in trace.items() if k.startswith(start)}
    return Prediction(trace[f"{INNER}output"], trace.get(f"{INNER}scores"), inner)
