"""Replay policies: where the loss of a step comes from, the rows at hand alone or rows of the past too.

Sources. ER: Chaudhry et al., On tiny episodic memories, arXiv 1902.10486. ER-ACE: Caccia et al., New insights on
reducing abrupt representation change in online continual learning, ICLR 2022. DER++: Buzzega et al., Dark experience
for general continual learning, NeurIPS 2020. A-GEM: Chaudhry et al., ICLR 2019. All draw a fresh replay batch at every
update and insert the rows at hand after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models.optimisers import Only, RowSet
from ..learner import State
from .memory import Kind, Memory
from .parts import Active, Loss, Rows

if TYPE_CHECKING:
    from .gradient import GradientLearner

NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Finetune:
    """The rows at hand and nothing else: the lower bound."""

    needs: ClassVar[frozenset[str]] = NOTHING
    refuses: ClassVar[Mapping[str, str]] = {}
    is_policy: ClassVar[bool] = True

    def start(self, learner: GradientLearner) -> Active:
        return _Finetune(learner)


class _Finetune(Active):
    def __init__(self, learner: GradientLearner) -> None:
        self.learner = learner

    def loss(self, now: Rows) -> Loss:
        (z,) = self.learner.logits(now)
        return Loss(self.learner.cross_entropy(z, now))


@dataclass(frozen=True)
class ER:
    """Experience replay: CE(rows at hand) + CE(rows drawn from a memory).

    With ``lam`` it is lam CE(at hand) + (1 - lam) CE(memory), the first term alone while the memory is empty.
    """

    memory: int = 200
    """Rows that are kept."""
    replay_batch: int = 10
    """Rows drawn for an update."""
    buffer: Kind = "reservoir"
    """Who stays in a full memory."""
    lam: float | None = None
    """Weight of the rows at hand, the memory having the rest; none: both count once."""
    needs: ClassVar[frozenset[str]] = NOTHING
    refuses: ClassVar[Mapping[str, str]] = {}
    is_policy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_sizes(self.memory, self.replay_batch)
        if self.lam is not None and not 0 < self.lam < 1:
            raise ValueError("lam must lie between 0 and 1")

    def start(self, learner: GradientLearner) -> Active:
        return _ER(learner, self)


class _ER(Active):
    def __init__(self, learner: GradientLearner, values: ER) -> None:
        self.learner, self.values = learner, values
        learner.memory = memory_for(learner, values.memory, values.buffer)

    def loss(self, now: Rows) -> Loss:
        learner, lam = self.learner, self.values.lam
        old = self.learner.recall(self.values.replay_batch)
        if old is None:
            loss = learner.cross_entropy(learner.logits(now)[0], now)
            return Loss(loss if lam is None else lam * loss)
        z, z_old = learner.logits(now, old)
        loss, loss_old = learner.cross_entropy(z, now), learner.cross_entropy(z_old, old)
        return Loss(loss, loss_old) if lam is None else Loss(lam * loss, (1 - lam) * loss_old)

    def learnt(self, now: Rows) -> None:
        self.learner.remember(now)


@dataclass(frozen=True)
class ERACE:
    """ER with asymmetric cross-entropy: the loss of the rows at hand leaves out the classes that were met before and
    are absent from this batch, so that learning new classes does not push the old ones down.

    This is the paper's form, which needs no boundaries. The code of AdaB2N's authors neither masks nor replays in the
    first experience.
    """

    memory: int = 200
    """Rows that are kept."""
    replay_batch: int = 10
    """Rows drawn for an update."""
    buffer: Kind = "reservoir"
    """Who stays in a full memory."""
    needs: ClassVar[frozenset[str]] = NOTHING
    refuses: ClassVar[Mapping[str, str]] = {}
    is_policy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_sizes(self.memory, self.replay_batch)

    def start(self, learner: GradientLearner) -> Active:
        return _ERACE(learner, self)


class _ERACE(Active):
    def __init__(self, learner: GradientLearner, values: ERACE) -> None:
        self.learner, self.values = learner, values
        learner.memory = memory_for(learner, values.memory, values.buffer)
        self.met = torch.zeros(learner.net.head.out_features, dtype=torch.bool, device=learner.device)

    def loss(self, now: Rows) -> Loss:
        learner = self.learner
        old = self.learner.recall(self.values.replay_batch)
        z, *z_old = learner.logits(now) if old is None else learner.logits(now, old)
        absent = self.met.clone()
        absent[now.y] = False
        loss = learner.cross_entropy(z.masked_fill(absent, torch.finfo(z.dtype).min), now)
        return Loss(loss, None if old is None else learner.cross_entropy(z_old[0], old))

    def learnt(self, now: Rows) -> None:
        self.met[now.y] = True
        self.learner.remember(now)

    def grown(self, name: str, rows: int) -> None:
        self.met = torch.nn.functional.pad(self.met, (0, rows - len(self.met)))

    def state(self) -> State:
        return {"met": self.met}

    def load(self, state: State) -> None:
        self.met = state["met"].clone().to(self.learner.device)


@dataclass(frozen=True)
class DERpp:
    """Dark experience replay: CE(rows at hand) + alpha MSE(logits, logits kept in memory) + beta CE(memory).

    The two replay terms draw a batch each. Logits are those of the training pass in which the row was met; for classes
    that came later they count as 0.
    """

    memory: int = 200
    """Rows that are kept."""
    replay_batch: int = 10
    """Rows in each of the two draws."""
    buffer: Kind = "reservoir"
    """Who stays in a full memory."""
    alpha: float = 0.2
    """Weight of the logits' term."""
    beta: float = 0.5
    """Weight of the labels' term."""
    needs: ClassVar[frozenset[str]] = NOTHING
    refuses: ClassVar[Mapping[str, str]] = {}
    is_policy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_sizes(self.memory, self.replay_batch)
        if min(self.alpha, self.beta) < 0:
            raise ValueError("alpha and beta must be at least 0")

    def start(self, learner: GradientLearner) -> Active:
        return _DERpp(learner, self)


class _DERpp(Active):
    def __init__(self, learner: GradientLearner, values: DERpp) -> None:
        self.learner, self.values = learner, values
        learner.memory = memory_for(learner, values.memory, values.buffer, logits=True)

    def loss(self, now: Rows) -> Loss:
        learner, values = self.learner, self.values
        dark = self.learner.recall(values.replay_batch)
        old = self.learner.recall(values.replay_batch)
        if dark is None or old is None or dark.logits is None:
            return Loss(learner.cross_entropy(learner.logits(now)[0], now))
        z, z_dark, z_old = learner.logits(now, dark, old)
        kept = F.pad(dark.logits, (0, z.shape[1] - dark.logits.shape[1]))
        past = values.alpha * F.mse_loss(z_dark.float(), kept) + values.beta * learner.cross_entropy(z_old, old)
        return Loss(learner.cross_entropy(z, now), past)

    def learnt(self, now: Rows) -> None:
        self.learner.remember(now, self.learner.said)


@dataclass(frozen=True)
class AGEM:
    """Averaged gradient episodic memory: the gradient g of the rows at hand, projected where it would raise the loss on
    rows of the memory (gradient r): g - (g.r / r.r) r if g.r < 0."""

    memory: int = 200
    """Rows that are kept."""
    replay_batch: int = 64
    """Rows drawn for the gradient of the past."""
    buffer: Kind = "ring"
    """Who stays in a full memory."""
    needs: ClassVar[frozenset[str]] = NOTHING
    refuses: ClassVar[Mapping[str, str]] = {}
    is_policy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_sizes(self.memory, self.replay_batch)

    def start(self, learner: GradientLearner) -> Active:
        return _AGEM(learner, self)


class _AGEM(Active):
    def __init__(self, learner: GradientLearner, values: AGEM) -> None:
        self.learner, self.values = learner, values
        learner.memory = memory_for(learner, values.memory, values.buffer)
        self._past: dict[str, Tensor | None] = {}
        self._projected = self._updates = 0

    def loss(self, now: Rows) -> Loss:
        learner = self.learner
        old = self.learner.recall(self.values.replay_batch)
        self._past = {}
        if old is not None:
            (z_old,) = learner.logits(old)
            self._past = learner.gradients_of(learner.cross_entropy(z_old, old))
        return Loss(learner.cross_entropy(learner.logits(now)[0], now))

    def gradients(self, grads: dict[str, Tensor | None], only: dict[str, Only]) -> None:
        pairs = []
        for name, g in grads.items():
            r, some = self._past.get(name), only.get(name)
            if g is None or r is None:
                continue
            if isinstance(some, RowSet) and some.compact:
                r = r.index_select(0, some.index)
            pairs.append((name, g, r))
        self._updates += 1
        dot = sum(float((g * r).sum()) for _, g, r in pairs)
        if dot >= 0:
            return
        self._projected += 1
        scale = dot / sum(float((r * r).sum()) for _, _, r in pairs)
        for name, g, r in pairs:
            grads[name] = g - scale * r

    def learnt(self, now: Rows) -> None:
        self.learner.remember(now)

    def telemetry(self) -> dict[str, float]:
        return {"projected": self._projected / max(1, self._updates)}

    def state(self) -> State:
        return {"projected": self._projected, "updates": self._updates}

    def load(self, state: State) -> None:
        self._projected, self._updates = int(state["projected"]), int(state["updates"])


@dataclass(frozen=True)
class Joint:
    """The upper bound: every row ever met is kept, and each update learns from rows drawn evenly from all of them.

    It needs the past: its memory grows with the stream without limit, which no other learner here does.
    """

    replay_batch: int = 20
    """Rows of an update, those at hand among the ones that may be drawn."""
    needs: ClassVar[frozenset[str]] = NOTHING
    refuses: ClassVar[Mapping[str, str]] = {
        "LwF": "every update draws its rows from the whole past, so there are none at hand that a teacher could judge"
    }
    is_policy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_sizes(1, self.replay_batch)

    def start(self, learner: GradientLearner) -> Active:
        return _Joint(learner, self)


class _Joint(Active):
    def __init__(self, learner: GradientLearner, values: Joint) -> None:
        self.learner, self.values = learner, values
        learner.memory = memory_for(learner, 1024, "reservoir")

    def loss(self, now: Rows) -> Loss:
        memory = self.learner.memory
        assert memory is not None
        if memory.size + len(now) > memory.capacity:
            memory.enlarge(2 * memory.capacity + len(now))
        memory.insert(now)
        rows = self.learner.recall(self.values.replay_batch)
        assert rows is not None
        (z,) = self.learner.logits(rows)
        return Loss(None, self.learner.cross_entropy(z, rows))


def memory_for(learner: GradientLearner, capacity: int, kind: Kind, *, logits: bool = False) -> Memory:
    """An empty memory for the rows of a learner."""
    return Memory(capacity, kind, learner.inputs.shape, learner.classes, logits=logits, seed=learner.seed)


def _check_sizes(memory: int, replay_batch: int) -> None:
    if memory < 1 or replay_batch < 1:
        raise ValueError("memory and replay_batch must be at least 1")
