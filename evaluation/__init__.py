"""Floor 2: metrics as pure functions, evaluators, reports."""

from . import metrics

__all__ = ["metrics"]
