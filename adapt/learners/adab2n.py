"""AdaB2N: batch norms whose statistics balance old and new rows, and adapt to a stream.

Source: Lyu et al., Overcoming Recency Bias of Normalization Statistics in Continual Learning: Balance and Adaptation,
NeurIPS 2023, and its authors' code; the layer and what is ours in it: ``models/norms.py``.

From the paper: one forward pass for rows at hand and replayed rows; groups are the tasks in which rows came; lambda
(``ada``) times the sum of the layers' losses from task t0 (``ada_from``) on; psi has the learning rate of the weights
and no weight decay; at the end of a task nothing is reset. Ours: groups that need no boundaries (``ids``), psi that
grows, and the restart of the schedule as an option. The controls: the same learner without this part, with ``joint``
true and with false, since one forward pass for all rows changes batch norm by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from ...models.norms import ada_loss, balanced_layers, grow_groups, replace_norms, set_groups
from ...models.optimisers import grow_slots
from ...streams import InputError
from .parts import Active, Rows

if TYPE_CHECKING:
    from .gradient import GradientLearner


@dataclass(frozen=True)
class AdaB2N:
    """Every batch norm of the network becomes an AdaB2N layer; their losses join the stability part.

    What is balanced (``ids``): "groups", the rows at hand and the replayed ones; "boundaries", the experiences in which
    rows came; "classes"; "none", which leaves ordinary batch statistics, so that only the schedule acts.
    """

    kappa: float = 0.7
    """Running statistics between the average of all batches (0) and batch norm's moving average (1)."""
    eta: float = 0.1
    """Rate of that moving average."""
    ada: float = 0.1
    """Weight of the loss that ties the statistics of a batch to the running ones."""
    ada_from: int = 1
    """First experience, or number of groups met before, from which that loss counts: 0 or 1."""
    ada_clip: float = 10.0
    """Largest such loss of one layer."""
    ids: Literal["groups", "boundaries", "classes", "none"] = "groups"
    """What is balanced: rows at hand and replayed rows, experiences, classes, or nothing."""
    reference: bool = False
    """Groups absent from a batch take their share too, as in the authors' code."""
    restart: bool = False
    """Begin the schedule of the running statistics anew at every boundary."""
    refuses: ClassVar[Mapping[str, str]] = {
        "AGEM": "its rows at hand and its memory go through the network in passes of their own, so nothing is balanced"
    }

    def __post_init__(self) -> None:
        if not (0 <= self.kappa <= 1 and 0 < self.eta < 1):
            raise ValueError("kappa must lie in 0..1 and eta between 0 and 1")
        if self.ada < 0 or self.ada_from < 0 or self.ada_clip <= 0:
            raise ValueError("ada and ada_from must be at least 0, ada_clip above 0")

    @property
    def needs(self) -> frozenset[str]:
        """Boundaries, where experiences are balanced or begin anew."""
        return frozenset({"boundaries"} if self.ids == "boundaries" or self.restart else ())

    def start(self, learner: GradientLearner) -> Active:
        return _AdaB2N(learner, self)


class _AdaB2N(Active):
    def __init__(self, learner: GradientLearner, values: AdaB2N) -> None:
        if not learner.params.joint:
            raise InputError("adab2n balances rows at hand and replayed rows in one forward pass: joint must be true")
        if learner.params.precision == "bfloat16":
            raise InputError("adab2n keeps its statistics in single precision: set precision=autocast or float32")
        self.learner, self.values = learner, values
        replace_norms(
            learner.net, kappa=values.kappa, momentum=values.eta, reference=values.reference, clip=values.ada_clip
        )
        self.layers = balanced_layers(learner.net)
        if not self.layers:
            given = "the model" if learner.params.model == "auto" else f"model {learner.params.model}"
            given += f" with norm {learner.params.norm}"
            raise InputError(f"adab2n balances batch norms; {given} has none: take convnet, resnet18 or mlp-norm")
        self.names = [n for n, _ in learner.net.named_parameters() if n.rpartition(".")[2] == "psi"]
        learner.optimiser.undecayed |= set(self.names)
        self._apart = torch.zeros(())

    def boundary(self) -> None:
        if self.values.restart:
            for layer in self.layers:
                layer.restart()

    def before_forward(self, rows: Sequence[Rows]) -> None:
        kind = self.values.ids
        if kind == "none":
            return
        if kind == "groups":
            ids = torch.cat([torch.full((len(part),), int(not part.current)) for part in rows])
        else:
            ids = torch.cat([part.task if kind == "boundaries" else part.y for part in rows]).cpu()
        self._make_room(int(ids.max()) + 1)
        set_groups(self.layers, ids)

    def _make_room(self, groups: int) -> None:
        """psi of groups that were never met begins at 0, and so do its moments."""
        if grow_groups(self.layers, groups):
            grow_slots(self.learner.optimiser.slots, self.names, groups)
            self.learner.rebuilt()

    def penalty(self, now: Rows) -> Tensor | None:
        set_groups(self.layers, None)
        loss = ada_loss(self.layers)
        if loss is None:
            return None
        self._apart = loss.detach()
        met = max(self.learner.task, len(self.layers[0].psi) - 1)
        return self.values.ada * loss if self.values.ada and met >= self.values.ada_from else None

    def telemetry(self) -> dict[str, float]:
        psi = torch.stack([layer.psi.detach() for layer in self.layers])
        return {
            "psi_spread": float((psi.amax(1) - psi.amin(1)).max()),
            "norm_rate": float(self.layers[0].rate),
            "ada_loss": float(self._apart),
        }
