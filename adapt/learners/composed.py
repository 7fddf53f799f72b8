"""Gradient learners by name: parts with ``+`` between them, such as ``er+adab2n+sparcl``.

At most one part is a replay policy (``finetune`` where none is). The parameters of all parts and of the step itself
stand side by side in one dataclass, so their names are unique.
"""

from __future__ import annotations

from dataclasses import MISSING, field, fields, make_dataclass
from functools import lru_cache
from typing import Any, get_type_hints

from ...streams import InputError, StreamSpec
from . import LEARNERS, find_learner
from .gradient import GradientLearner
from .parts import check_parts, is_policy


def parts_of(name: str) -> list[type[Any]]:
    """The classes of the parts, the policy first; ``InputError`` for names that are no parts or do not go together."""
    kinds = []
    for word in name.split("+"):
        entry, _ = find_learner(word)
        if not entry.part:
            combined = ", ".join(n for n, e in LEARNERS.items() if e.part)
            raise InputError(f"learner {name!r}: {word} cannot be combined with +; parts that can are {combined}")
        kinds.append(entry.load_part())
    kinds.sort(key=lambda kind: not is_policy(kind))
    if not is_policy(kinds[0]):
        kinds.insert(0, LEARNERS["finetune"].load_part())
    check_parts([kind() for kind in kinds])
    return kinds


@lru_cache(maxsize=256)
def composed_params(name: str) -> type[Any]:
    """One dataclass with the step's parameters and those of every part."""
    kinds: list[type[Any]] = [GradientLearner.Params, *parts_of(name)]
    rows: dict[str, Any] = {}
    for kind in kinds:
        types = get_type_hints(kind)
        for f in fields(kind):
            if f.name in rows:
                raise ValueError(f"two parts of {name} have a parameter {f.name}")
            factory: Any = {} if f.default_factory is MISSING else {"default_factory": f.default_factory}
            default: Any = {} if f.default is MISSING else {"default": f.default}
            rows[f.name] = (f.name, types[f.name], field(**factory, **default))
    made = make_dataclass("Params", rows.values(), frozen=True, namespace={"__post_init__": _check, "kinds": kinds})
    made.__doc__ = f"Parameters of {name}."
    return made


def _check(self: Any) -> None:
    """Build every part once, so that a value out of range is found where all others are."""
    for kind in self.kinds:
        _pick(kind, self)


def compose(name: str, spec: StreamSpec, params: Any, seed: int, **placed: Any) -> GradientLearner:
    """The learner of these parts; it keeps the parameters of all of them as its own. placed: its model, its device."""
    policy, *techniques = (_pick(kind, params) for kind in parts_of(name))
    return GradientLearner(spec, params, seed, replay=policy, techniques=techniques, **placed)


def _pick(kind: type[Any], params: Any) -> Any:
    """The part's own fields out of the whole."""
    return kind(**{f.name: getattr(params, f.name) for f in fields(kind)})
