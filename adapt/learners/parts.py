"""What a gradient learner is put together of: rows, and the moments of a step at which a part may act.

A part is a frozen dataclass, a value: its fields are its parameters (flags of the command line, keys of a file; their
names are unique among all parts that may meet). ``start(learner)`` makes the object that acts. There are two kinds:
one policy per learner (where the loss comes from: the rows at hand alone, or rows out of a memory too), and any number
of techniques. ``refuses`` names the parts it cannot be combined with, each with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from ...models.optimisers import Only
from ...streams import Array, InputError
from ..learner import State

if TYPE_CHECKING:
    from .gradient import GradientLearner


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows for one forward pass, as the network takes them.

    x: float32[B, *shape]; y: int64[B]; task: int64[B], the experience in which each row came (all 0 where the learner
    is told of none); logits: float32[B, C], what the network said when the row was stored (DER++); current: whether
    they are the rows at hand and not out of a memory; ids: int64[B] of the rows at hand.
    """

    x: Tensor
    y: Tensor
    task: Tensor
    logits: Tensor | None = None
    current: bool = False
    ids: Array | None = None

    def __len__(self) -> int:
        return len(self.y)

    def keep(self, mask: Tensor) -> Rows:
        """The rows where bool[B] holds."""
        logits = None if self.logits is None else self.logits[mask]
        ids = None if self.ids is None else self.ids[mask.numpy(force=True)]
        return Rows(self.x[mask], self.y[mask], self.task[mask], logits, self.current, ids)


@dataclass(frozen=True, slots=True)
class Loss:
    """The two halves of what is minimised: plasticity (the rows at hand), stability (the past), None where absent."""

    plasticity: Tensor | None
    stability: Tensor | None = None

    def total(self) -> Tensor | None:
        """Their sum."""
        if self.plasticity is None or self.stability is None:
            return self.stability if self.plasticity is None else self.plasticity
        return self.plasticity + self.stability


class Active:
    """A part at work. Every method may be left as it is: it then does nothing.

    Order within a step: ``choose``, then for each forward pass ``before_forward``, then ``penalty``, ``gradients``,
    the optimiser's update, ``after_step``; after all passes ``learnt``. The policy comes after the techniques.
    """

    reshapes: bool = False
    """Whether parameters of the network change their shapes on the way, or layers keep copies of them in another form:
    nobody can then predict elsewhere with these arrays alone."""

    def loss(self, now: Rows) -> Loss:
        """What is minimised; a policy's part alone."""
        raise TypeError(f"{type(self).__name__} is no policy")

    def boundary(self) -> None:
        """A new experience begins; ``learner.task`` is its number already. Rows of the old one are all learnt."""

    def choose(self, now: Rows) -> Tensor | None:
        """bool[B]: which of the rows at hand to learn from; None for all."""
        return None

    def before_forward(self, rows: Sequence[Rows]) -> None:
        """These rows, in this order, go through the network in training mode in one pass."""

    def penalty(self, now: Rows) -> Tensor | None:
        """A term of the loss that belongs to stability."""
        return None

    def gradients(self, grads: dict[str, Tensor | None], only: dict[str, Only]) -> None:
        """Change the gradients (by parameter name), or say which entries alone the update may touch."""

    def after_step(self, now: Rows) -> None:
        """The parameters have moved."""

    def learnt(self, now: Rows) -> None:
        """All updates on the rows at hand are done; the place to keep rows for later."""

    def rebuilt(self) -> None:
        """Parameters or layers of the network were replaced by others; also once before the first step."""

    def grown(self, name: str, rows: int) -> None:
        """A parameter of the head got new rows (first axis)."""

    def telemetry(self) -> dict[str, float]:
        """Figures worth a column of the records, always the same keys."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Plain values worth a line in the summary of a run."""
        return {}

    def state(self) -> State:
        """What later steps depend on."""
        return {}

    def load(self, state: State) -> None:
        """Take over a copy of a state. Called before the network's tensors are loaded."""


class Part(Protocol):
    """A part as a value. ``needs``: as of a learner, and it may depend on the parameters. One whose class says
    ``is_policy`` is the policy."""

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def refuses(self) -> Mapping[str, str]: ...

    def start(self, learner: GradientLearner) -> Active: ...


def is_policy(part: Any) -> bool:
    """Whether a part, or its class, is a replay policy."""
    return bool(getattr(part, "is_policy", False))


def check_parts(parts: Sequence[Part]) -> None:
    """Raise ``InputError`` for two policies, a part given twice, and parts that refuse one another."""
    names = [type(part).__name__ for part in parts]
    policies = [name for name, part in zip(names, parts) if is_policy(part)]
    if len(policies) > 1:
        raise InputError(f"a learner has one replay policy, not {' and '.join(policies)}")
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InputError(f"{name} is given twice")
        for other in names:
            if other in parts[i].refuses:
                raise InputError(f"{name} cannot be combined with {other}: {parts[i].refuses[other]}")
