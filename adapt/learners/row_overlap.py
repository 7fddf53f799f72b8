"""How far the rows that different experiences update are the same ones: counts of rows, and shares of them.

Of experience e the top set of a layer of d rows is the k = d - floor(ratio d) rows that were active most often in it
(ties: the lower row). Then

    overlap(e, f) = mean over layers of |top_e and top_f| / k,

1 on the diagonal, and k / d on the mean for sets that know nothing of one another. Counts are taken at the first and
then every eighth update of an experience, of the first 32 experiences: 4 bytes a row and experience.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...models.kernels.row_choice import active_count
from ..learner import State

EVERY = 8
MOST = 32


class RowOverlap:
    """Counts of active rows by layer and experience. ratio: the masked share."""

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self.counts: dict[str, Tensor] = {}
        self.updates = 0
        """Of the present experience."""

    def due(self, experience: int) -> bool:
        """Whether the rows of the present update are to be counted."""
        return self.updates % EVERY == 0 and experience < MOST

    def count(self, layer: str, experience: int, index: Tensor, rows: int) -> None:
        """These rows (int64[k]) of a layer of so many were active."""
        old = self.counts.get(layer)
        if old is None or len(old) <= experience or old.shape[1] < rows:
            new = torch.zeros((experience + 1, rows), dtype=torch.int32, device=index.device)
            if old is not None:
                new[: len(old), : old.shape[1]] = old
            self.counts[layer] = new
        self.counts[layer][experience, index] += 1

    def overlap(self) -> list[list[float | None]]:
        """By experience and experience; None where one of them counted nothing."""
        n = max((len(table) for table in self.counts.values()), default=0)
        total, layers = torch.zeros(n, n), torch.zeros(n, n)
        for table in self.counts.values():
            seen = table.any(1).nonzero().flatten()
            k = active_count(table.shape[1], self.ratio)
            top = torch.zeros(len(seen), table.shape[1])
            top.scatter_(1, table[seen].cpu().argsort(dim=1, descending=True, stable=True)[:, :k], 1)
            where = (seen.cpu()[:, None], seen.cpu()[None, :])
            total[where] += top @ top.t() / k
            layers[where] += 1
        shares = (total / layers).tolist()
        return [[None if share != share else round(share, 4) for share in line] for line in shares]

    def facts(self) -> dict[str, Any]:
        """For the report; nothing where nothing was counted."""
        if not self.counts:
            return {}
        shares = [active_count(table.shape[1], self.ratio) / table.shape[1] for table in self.counts.values()]
        expected = sum(shares) / len(shares)
        return {"rows": {"layers": list(self.counts), "overlap": self.overlap(), "expected": round(expected, 4)}}

    def state(self) -> State:
        """Everything."""
        return {"counts": dict(self.counts), "updates": self.updates}

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take over a copy."""
        self.counts = {name: table.clone().to(device) for name, table in state["counts"].items()}
        self.updates = int(state["updates"])
