"""Where the tokens of held-out rows are routed to, told apart by what they are to their experience, for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ...evaluation.token_drift import TOKENS, Drift, last_drift, newer_mass, with_row
from ...models.dymoe import ExpertLinear
from ...models.language import Prompts
from ...streams import Array

if TYPE_CHECKING:
    from .gradient import GradientLearner

ROWS = 64
"""Held-out rows of an experience that are looked at, the first ones."""


class TokenProbe:
    """Passes over held-out rows that only look. layers: all of one bank count, so the same banks in each.

    first: the bank of the first experience. drift: a row for each experience that has ended.
    """

    def __init__(self, learner: GradientLearner, layers: Mapping[str, ExpertLinear], first: int = 0) -> None:
        self.learner, self.layers, self.first = learner, list(layers.values()), first
        self.drift: Drift | None = None

    def ended(self, experiences: int) -> None:
        """Look at the end of an experience, so many in all; before there is another bank."""
        if self.able:
            self.drift = with_row(self.drift, self.figures(experiences))

    def facts(self, experiences: int) -> dict[str, Any]:
        """``drift`` with a row for now, and what it ends at, ``drifted``; nothing where nobody knows the tokens."""
        if not self.able:
            return {}
        now = with_row(self.drift, self.figures(experiences))
        return {"drift": now, "drifted": last_drift(now)}

    def state(self) -> Tensor:
        """float64[kinds, ended, ended], -1 where there is no figure: states are finite."""
        rows = next(iter(self.drift.values())) if self.drift is not None else []
        widest = max(map(len, rows), default=0)
        kept = torch.full((len(TOKENS), len(rows), widest), -1.0, dtype=torch.float64)
        for k, table in enumerate((self.drift or {}).values()):
            for t, row in enumerate(table):
                kept[k, t, : len(row)] = kept.new_tensor([-1.0 if figure is None else figure for figure in row])
        return kept

    def load(self, state: Tensor) -> None:
        """Of ``state()``; a row has one figure more than the one before it."""
        self.drift = None
        for t in range(state.shape[1]):
            rows = [dict(zip(TOKENS, (None if v < 0 else v for v in of))) for of in state[:, t, : t + 1].t().tolist()]
            self.drift = with_row(self.drift, rows)

    @property
    def able(self) -> bool:
        """Whether the stream knows what its tokens are, and the network reads them as tokens."""
        spec = self.learner.spec
        return self.learner.writes and spec.text is not None and spec.text.kinds is not None

    def figures(self, experiences: int) -> list[dict[str, float | None]]:
        """For each of the first experiences what banks behind its own have of its tokens (``newer_mass``)."""
        spec = self.learner.spec
        assert spec.text is not None
        assert spec.text.kinds is not None
        found = []
        for k, held in enumerate(spec.experiences[:experiences]):
            x = held.x[:ROWS]
            mass = self._mass(torch.from_numpy(x), torch.from_numpy(held.y[:ROWS]))
            found.append(newer_mass(spec.text.kinds(x, k)[:, : mass.shape[1]], mass, self.first + k))
        return found

    def _mass(self, x: Tensor, y: Tensor) -> Array:
        """float64[n, T, banks]: mean over the layers that see patches and prompt, as many as the longest prompt has."""
        learner = self.learner
        x, y = x.to(learner.device), y.to(learner.device)
        layout = learner.net.layout
        patches = int(np.prod(layout.image[1:])) // layout.patch**2 if layout.image is not None else 0
        shape = (len(x), patches + Prompts.of(x, layout).ids.shape[1])
        seen: list[Tensor] = []

        def look(layer: nn.Module, given: Sequence[Tensor]) -> None:
            if given[0].shape[:2] == shape:
                assert isinstance(layer, ExpertLinear)
                w = layer.weights(layer.scores(given[0].flatten(0, 1)))
                seen.append(w.view(*shape, layer.banks, layer.experts).sum(3))

        hooks = [layer.register_forward_pre_hook(look) for layer in self.layers]
        try:
            with torch.no_grad(), learner.through.around():
                learner.net.eval()(x, y, tokens=1)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(seen).mean(0).double().numpy(force=True)
