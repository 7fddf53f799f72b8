"""What the loop asks of whoever watches its predictions."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from ..streams import Array
from .learner import State


class Evaluator(Protocol):
    """Watches predictions and labels; has no say in anything. All of it is exact however rows are cut into calls."""

    columns: tuple[str, ...]
    queries_only: ClassVar[bool]
    """Whether it is shown only rows whose labels are for judging, never those that are then learnt."""

    def baseline(self, n: int) -> Array:
        """float64[n, 2]: what the majority and the no-change baseline would answer now, for n rows."""
        ...

    def update(self, y: Array, output: Array, scores: Array | None, baseline: Array) -> None:
        """Rows with labels, all predicted before any of them was learnt."""
        ...

    def update_rows(self, y: Array, output: Array, scores: Array | None) -> None:
        """Rows tested and then trained on one after the other."""
        ...

    def boundary(self, name: str, step: int) -> None: ...
    def alarms(self) -> list[dict[str, Any]]: ...
    def row(self) -> dict[str, Any]: ...
    def summary(self) -> dict[str, Any]: ...
    def state(self) -> State: ...
    def load(self, state: State) -> None: ...
