"""NamedTuples of arrays, as compiled code takes them, to and from plain dicts, as states are kept."""

from __future__ import annotations

from typing import Any, TypeVar, get_type_hints

import numpy as np

T = TypeVar("T")


def to_dict(arrays: Any) -> dict[str, Any]:
    """A (nested) NamedTuple of arrays as a dict, by reference."""
    return {k: to_dict(v) if hasattr(v, "_asdict") else v for k, v in arrays._asdict().items()}


def from_dict(kind: type[T], kept: dict[str, Any]) -> T:
    """The NamedTuple again, with arrays of its own (contiguous, as compiled code expects)."""
    hints = get_type_hints(kind)
    parts = {
        name: from_dict(hints[name], value) if hasattr(hints[name], "_fields") else np.array(value, order="C")
        for name, value in kept.items()
    }
    return kind(**parts)
