"""Floor 1: what arrives. Events, sources, and drift as values one composes. NumPy only, never torch."""

from .events import NO_LABEL, Array, Batch, Boundary, Event, Forget, Labels, Rejected, concatenate
from .spec import MAX_CLASSES, Column, InputError, Stream, StreamSpec

__all__ = [
    "MAX_CLASSES",
    "NO_LABEL",
    "Array",
    "Batch",
    "Boundary",
    "Column",
    "Event",
    "Forget",
    "InputError",
    "Labels",
    "Rejected",
    "Stream",
    "StreamSpec",
    "concatenate",
]
