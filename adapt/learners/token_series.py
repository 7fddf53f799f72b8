"""What tokens did over the updates of a run, in bounded room: at most so many points for each experience."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..learner import State

MOST = 200
"""Points of one experience; when there are more, every second one is dropped and fewer are taken from then on."""


class TokenSeries:
    """Shares of new, old and ambiguous tokens in every layer, and mean routing mass of every bank, over updates."""

    def __init__(self, layers: int) -> None:
        self.layers, self.stride = layers, 1
        self.updates: list[int] = []
        self.experience: list[int] = []
        self.shares: list[Tensor] = []
        self.mass: list[Tensor] = []

    def due(self, update: int) -> bool:
        """Whether this update is one to look at."""
        return update % self.stride == 0

    def begin(self) -> None:
        """Another experience, whose points are counted anew."""
        self.stride = 1

    def add(self, update: int, experience: int, shares: Tensor, mass: Tensor) -> None:
        """shares: float[layers, 3]; mass: float[banks]."""
        self.updates.append(update)
        self.experience.append(experience)
        self.shares.append(shares.float().cpu())
        self.mass.append(mass.float().cpu())
        if self.experience.count(experience) > MOST:
            self._thin(experience)

    def _thin(self, experience: int) -> None:
        self.stride *= 2
        kept = [i for i, e in enumerate(self.experience) if e != experience or self.due(self.updates[i])]
        for name in ("updates", "experience", "shares", "mass"):
            values = getattr(self, name)
            setattr(self, name, [values[i] for i in kept])

    def facts(self, names: list[str]) -> dict[str, Any]:
        """The series as plain values, by the layers' names."""
        of_kind = [[[round(v, 4) for v in shares[:, kind].tolist()] for shares in self.shares] for kind in range(3)]
        return {
            "layers": names,
            "updates": list(self.updates),
            "experience": list(self.experience),
            **dict(zip(("new", "old", "ambiguous"), of_kind)),
            "mass": [[round(v, 4) for v in mass.tolist()] for mass in self.mass],
        }

    def state(self) -> State:
        widest = max((len(mass) for mass in self.mass), default=0)
        mass = torch.zeros(len(self.mass), widest)
        for row, values in zip(mass, self.mass):
            row[: len(values)] = values
        return {
            "stride": self.stride,
            "updates": torch.tensor(self.updates, dtype=torch.int64),
            "experience": torch.tensor(self.experience, dtype=torch.int64),
            "shares": torch.stack(self.shares) if self.shares else torch.zeros(0, self.layers, 3),
            "banks": torch.tensor([len(mass) for mass in self.mass], dtype=torch.int64),
            "mass": mass,
        }

    def load(self, state: State) -> None:
        self.stride = int(state["stride"])
        self.updates, self.experience = state["updates"].tolist(), state["experience"].tolist()
        self.shares = list(state["shares"].clone())
        self.mass = [row[:n].clone() for row, n in zip(state["mass"], state["banks"].tolist())]
