"""Schedules of sparsity as values: when a mask shrinks and grows within an experience, and to what.

A row (from, prune to, grow to) holds from that epoch of an experience on; at an update the mask shrinks to the one
sparsity and then grows to the other, where it is not there already. Updates fall on every ``every``-th epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

Row = tuple[float, float, float]
EDGE = 1e-9


@dataclass(frozen=True, slots=True)
class Schedule:
    """rows: by rising start. sparsity: what the mask comes back to. first: the row before the first update, for the
    beginning of an experience (``at_start``), which the first experience has not.

    >>> s = sparcl_schedule(0.75, 0.01, 0.01, every=5, epochs=50)
    >>> [s.at(e) for e in (5, 40, 45)]
    [(0.76, 0.75), (0.76, 0.75), (0.75, 0.75)]
    >>> s.at_start
    (0.75, 0.74)
    """

    sparsity: float
    rows: tuple[Row, ...]
    at_start: tuple[float, float]

    def __post_init__(self) -> None:
        starts = [start for start, _, _ in self.rows]
        levels = [level for row in self.rows for level in row[1:]] + [self.sparsity, *self.at_start]
        if starts != sorted(starts) or not all(0 <= level < 1 for level in levels):
            raise ValueError("a schedule has rows by rising start, and sparsities from 0 to below 1")

    def at(self, epoch: float) -> tuple[float, float]:
        """(prune to, grow to) of an update at this epoch."""
        found = (self.sparsity, self.sparsity)
        for start, prune_to, grow_to in self.rows:
            if epoch >= start - EDGE:
                found = (prune_to, grow_to)
        return found


def sparcl_schedule(sparsity: float, p_intra: float, p_inter: float, *, every: float, epochs: float | None) -> Schedule:
    """SparCL's: shrink by p_intra and grow back; after a boundary first grow by p_inter, and shrink again with the next
    update. In the last tenth of ``epochs`` (None: no end is known) the mask stands still, as in the authors' code."""
    above, below = min(sparsity + p_intra, 1 - EDGE), max(sparsity - p_inter, 0.0)
    rows: list[Row] = [(every, round(above, 12), sparsity)]
    if epochs is not None and 0.9 * epochs > every:
        rows.append((0.9 * epochs, sparsity, sparsity))
    return Schedule(sparsity, tuple(rows), (sparsity, round(below, 12)))


def read_schedule(text: str, sparsity: float, p_inter: float) -> Schedule:
    """A schedule written as ``start:prune:grow`` with commas between, such as 0:.77:.75,25:.76:.75,40:.75:.75.

    Raises ``ValueError`` where it is none.
    """
    try:
        rows = [tuple(float(part) for part in row.split(":")) for row in text.split(",")]
        table = tuple((start, prune, grow) for start, prune, grow in rows)
    except ValueError:
        raise ValueError(f"schedule {text!r} is not start:prune:grow with commas between") from None
    return Schedule(sparsity, table, (sparsity, max(0.0, round(sparsity - p_inter, 12))))


def worth(n: int, level: float, sparsity: float) -> float:
    """``level``, or ``sparsity`` where between the two lies less than one of n: such an update is left out."""
    return level if abs(level - sparsity) * n >= 1 - EDGE else sparsity


def smallest_p(sparsity: float, most: float = 0.01) -> float:
    """The default of p_intra and p_inter: min(most, 0.2 (1 - s))."""
    return min(most, 0.2 * (1 - sparsity))
