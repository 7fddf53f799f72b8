"""A handle on a tuple of arrays, made once, so that a call of compiled code need not look at every array again.

Numba takes about half a microsecond to unpack each array of a nested NamedTuple that is passed from Python; with
dozens of them that is dearer than the work on one row. A handle is unpacked as one pointer.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.experimental import structref

from .compiled import compiled


@structref.register
class HeldType(types.StructRef):
    """The type of a handle, as compiled code sees it."""

    def preprocess_fields(self, fields: Any) -> Any:
        return tuple((name, types.unliteral(kind)) for name, kind in fields)


class Held(structref.StructRefProxy):
    """A handle; compiled code reads the tuple as ``handle.value``. The arrays are shared, not copied."""

    value: Any

    def __new__(cls, value: Any) -> Held:
        return structref.StructRefProxy.__new__(cls, value)


structref.define_proxy(Held, HeldType, ["value"])


@compiled
def hold(value: Any) -> Any:
    """A handle on a tuple. Whoever replaces an array of it makes a new one."""
    return Held(value)
