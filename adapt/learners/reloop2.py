"""ReLoop2: a memory of a deployed model's errors corrects its answers as soon as labels come; no gradient is taken.

    h, b = base model(x)       bucket ids of h        y, b', n = memory (what neighbours' labels and answers were)
    err  = gamma (y - b) + (1 - gamma) (y - b')
    fixed   p = clamp(b + lambda err, 0, 1)                                          (several classes: then / sum p)
    newton  t = b + n / (n + 2) err,  u = logit t - logit b,  p = sigmoid(logit b + lambda u)     (b where n = 0)
    hedge   the mix of b and of newton's p for gamma = 1 and gamma = 0, by what they were worth

A row's label goes into the buckets that were found when it was predicted, however late it comes. Its own label is never
known to its prediction. When the base model is replaced, vectors and answers mean something else: the memory starts
anew, and rows predicted before that are not written.

From the paper (Zhu et al., ReLoop2, KDD 2023, arXiv 2306.08808): memory, hashing, compensation, reset. Its code is not
public. Ours: vectors centred by the mean of the base's training rows; lambda learnt from every label; slots of time;
shrinkage of thin buckets; several classes (a vector of sums per bucket) and values; the code of a column (a user, an
item) as part of the address; base models without hidden layers are addressed by their standardised columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ...streams import Array, Batch, Boundary, InputError, StreamSpec
from ..learner import CannotCheckpoint, Learner, Prediction, State
from .error_memory import Found, make_memory
from .row_vectors import RowVectors
from .strength import Kind, Strength
from .wrapped import given_back, kept, make_inner, wrapped_params


class ReLoop2(Learner):
    """A base learner and the memory of its errors. Named ``reloop2:LEARNER`` or ``LEARNER+reloop2``.

    The base learns from the first ``warmup`` labels (from none where it was trained on the stream's source) and is then
    deployed: it stands still, or learns on (``base=incremental``), with addresses from the deployed copy.
    """

    targets: ClassVar[frozenset[str]] = frozenset({"classification", "regression"})

    @dataclass(frozen=True)
    class Params:
        """Settings of the memory; those of the base learner stand beside them."""

        base: Literal["frozen", "incremental"] = "frozen"
        """What becomes of the base once it is deployed."""
        warmup: int = 1000
        """Labels that the base learns from before it is deployed, unless it was trained on the stream's source."""
        renew: int = 0
        """The base learns beside its deployed copy and replaces it every so many labels; 0: never."""
        strength: Literal["newton", "hedge", "fixed"] = "newton"
        """How lambda comes about."""
        lam: float = 0.4
        """Lambda, where it is fixed."""
        cap: float = 1.5
        """Largest lambda that is learnt."""
        forget: float = 0.999
        """What the curvature of lambda keeps a label; a memory of at least two delays."""
        gamma: float = 1.0
        """1: labels of neighbours against the own score; 0: against theirs."""
        tau: float = 0.1
        """Temperature of the attention over arrays (exact: over neighbours)."""
        thin: float = 0.0
        """Rows of the own score that every bucket is taken to hold."""
        memory: Literal["sketch", "exact"] = "sketch"
        """Buckets, or the rows themselves: the control."""
        arrays: int = 32
        """Arrays of buckets, K."""
        bits: int = 8
        """Bits of a bucket's number, L: 8 for up to 1e5 rows, 12 to 16 for millions."""
        uniform: bool = False
        """Equal weights of arrays instead of weights by their counts."""
        precision: Literal["float64", "float32"] = "float64"
        """Of the buckets."""
        keep: Literal["cumulative", "decay", "ring"] = "ring"
        """What leaves the memory: nothing, older rows bit by bit, or rows older than all slots."""
        slot: int = 500
        """Labels to a slot of time."""
        slots: int = 4
        """Slots of the ring."""
        rho: float = 0.8
        """What a slot leaves of older rows where they decay."""
        capacity: int = 10_000
        """Rows of the exact memory."""
        neighbours: int = 32
        """Neighbours read from the exact memory."""
        code: str = ""
        """A column whose value is part of the address beside the hidden vector, such as the user."""
        centre: int = 512
        """Rows whose mean is the origin of the addresses."""
        learner: ClassVar[str] = "logistic"

        def __post_init__(self) -> None:
            if min(self.warmup, self.renew, self.thin) < 0:
                raise ValueError("warmup, renew and thin are at least 0")
            if min(self.arrays, self.slot, self.slots, self.capacity, self.neighbours, self.centre) < 1:
                raise ValueError("arrays, slot, slots, capacity, neighbours and centre are at least 1")
            if not (1 <= self.bits <= 24 and 0 < self.rho <= 1 and 0 < self.forget <= 1 and self.tau > 0):
                raise ValueError("bits is 1 to 24, rho and forget in (0, 1], tau above 0")
            if not (0 <= self.gamma <= 1 and 0 <= self.lam <= 1 and self.cap > 0):
                raise ValueError("gamma and lam are in [0, 1], cap is above 0")

    def __init__(self, spec: StreamSpec, params: Params | None = None, seed: int = 0) -> None:
        super().__init__(spec, params, seed)
        if type(self.params) is ReLoop2.Params:
            self.params = self.params_for("")()
        p = self.params
        self._trained = self._make_base()
        self._deployed: Learner | None = None
        if p.base == "incremental" or p.renew > 0:
            self._check_copies()
        self.needs = self._trained.needs
        self._kind: Kind = "value" if spec.target == "regression" else "click" if spec.n_classes == 2 else "class"
        values = max(2, spec.n_classes or 0) if self._kind == "class" else 1
        self._memory = make_memory(p, values, seed)
        self._strength = Strength(
            self._kind, 2 if p.strength == "hedge" else 1, fade=p.forget, cap=p.cap, mix=p.strength == "hedge"
        )
        self._vectors = RowVectors(spec, p.code, p.centre, seed)
        self._seen = self._epoch = self._skipped = self._late = 0
        if spec.source is not None and "source" in self._trained.needs:
            self._vectors.keep(np.asarray(spec.source.train()[0], np.float64))
            self.deploy()

    @classmethod
    def params_for(cls, learner: str) -> type[Params]:
        """The parameters of ``reloop2:LEARNER``: the memory's, and the base learner's beside them."""
        made: type[ReLoop2.Params] = wrapped_params(cls.Params, learner or cls.Params.learner)
        return made

    def _make_base(self) -> Learner:
        return make_inner(ReLoop2.Params, self.params, self.spec, self.seed)

    def _check_copies(self) -> None:
        """``InputError`` for a base of which there can be no deployed copy."""
        try:
            self._trained.state()
        except CannotCheckpoint as fault:
            raise InputError(f"reloop2: base=incremental and renew need a copy of the base, but {fault}") from None

    # --- the base model -----------------------------------------------------------------------------------------

    @property
    def _learns(self) -> bool:
        """Whether the base still learns."""
        return self._deployed is None or self.params.base == "incremental" or self.params.renew > 0

    def deploy(self) -> None:
        """Deploy the base as it is now; what the memory held belongs to the former one and is forgotten."""
        p = self.params
        if p.base == "incremental" or p.renew > 0:
            self._deployed = self._make_base()
            self._deployed.load(self._trained.state())
        else:
            self._deployed = self._trained
        self._vectors.centre_on(self._deployed)
        self._memory.reset()
        self._epoch += 1

    def adopt(self, state: State, x: Array) -> None:
        """Deploy a base that was trained elsewhere: its state, and rows float[n, d] that it was trained on."""
        self._trained.load(state)
        self._vectors.keep(np.asarray(x, np.float64))
        self.deploy()

    def _answers(self, batch: Batch) -> tuple[Prediction, Array]:
        """What the base says, and the address vectors of the rows, float32[B, d]."""
        if self._deployed is None or self._deployed is self._trained:
            return self._vectors.of(batch, self._trained)
        if self.params.base == "incremental":
            return self._trained.predict(batch), self._vectors.of(batch, self._deployed)[1]
        return self._vectors.of(batch, self._deployed)

    # --- answers ------------------------------------------------------------------------------------------------

    def predict(self, batch: Batch) -> Prediction:
        answer, h = self._answers(batch)
        said = self._said(answer)
        sound = np.isfinite(h.sum(1) + said.sum(1)) & (self._deployed is not None)
        at = self._memory.address(np.where(sound[:, None], h, 0.0).astype(np.float32))
        found = self._read(at, said, sound)
        u = self._directions(said, found)
        if self.params.strength == "fixed":
            p = self._fixed(said, found)
        else:
            p = np.where(sound[:, None], self._strength.answer(np.where(sound[:, None], said, 0.5), u), said)
        trace = kept(answer) | at | {"epoch": np.where(sound, self._epoch, -1).astype(np.int32), "u": u}
        return self._prediction(answer, said, p, trace)

    def _said(self, answer: Prediction) -> Array:
        """float64[B, W]: the click's probability, every class's, or the value."""
        if answer.scores is None:
            return np.asarray(answer.output, np.float64)[:, None]
        return answer.scores[:, 1:2] if self._kind == "click" else answer.scores

    def _read(self, at: dict[str, Array], said: Array, sound: Array) -> Found:
        """What the memory holds, as wide as the answers: classes that one of the two does not know have nothing."""
        own, wide = said.shape[1], self._memory.values
        asked = np.zeros((len(said), wide))
        asked[:, : min(own, wide)] = np.where(sound[:, None], said, 0.5)[:, :wide]
        found = self._memory.read(at, asked)
        y, its = (np.zeros(said.shape) for _ in range(2))
        y[:, :wide], its[:, :wide] = found.y[:, :own], found.said[:, :own]
        return Found(y, its, np.where(sound, found.n, 0.0))

    def _error(self, said: Array, found: Found, gamma: float) -> Array:
        error = gamma * (found.y - said) + (1 - gamma) * (found.y - found.said)
        return np.where(found.n[:, None] > 0, error, 0.0)

    def _directions(self, said: Array, found: Found) -> Array:
        """u: float64[B, E, W], from the answer to what the memory makes of it; 0 where it knows nothing."""
        hedged = self.params.strength == "hedge"
        gammas = (1.0, 0.0) if hedged else (self.params.gamma,)
        share = (found.n / (found.n + 2.0))[:, None]
        parts = []
        for gamma in gammas:
            target = said + share * self._error(said, found, gamma)
            parts.append(np.where(found.n[:, None] > 0, self._strength.direction(said, target), 0.0))
        return np.stack(parts, 1)

    def _fixed(self, said: Array, found: Found) -> Array:
        error = self._error(said, found, self.params.gamma)
        if self._kind == "value":
            return said + self.params.lam * error
        p = np.clip(said + self.params.lam * error, 0.0, 1.0)
        if self._kind == "class":
            p = p / p.sum(1, keepdims=True)
        return np.where((self.params.lam * error).any(1)[:, None], p, said)

    def _prediction(self, answer: Prediction, said: Array, p: Array, trace: dict[str, Array]) -> Prediction:
        if self._kind == "value":
            return Prediction(p[:, 0], None, trace)
        scores = np.concatenate([1 - p, p], 1) if self._kind == "click" else p
        moved = (p != said).any(1)
        assert answer.scores is not None
        scores = np.where(moved[:, None], scores, answer.scores)
        return Prediction(np.where(moved, scores.argmax(1), answer.output), scores, trace)

    # --- learning -----------------------------------------------------------------------------------------------

    def adapt(self, batch: Batch, prediction: Prediction) -> None:
        if self._learns:
            self._trained.adapt(batch, given_back(prediction.trace))

    def boundary(self, event: Boundary) -> None:
        if self._learns:
            self._trained.boundary(event)

    def learn(self, batch: Batch, prediction: Prediction) -> None:
        assert batch.y is not None
        self._remember(batch.y, prediction)
        if self._learns:
            self._trained.learn(batch, given_back(prediction.trace))
            self._vectors.keep(np.asarray(batch.x, np.float64))
        before, self._seen = self._seen, self._seen + len(batch)
        if self._deployed is None:
            if self._seen >= self.params.warmup:
                self.deploy()
        elif self.params.renew and self._seen // self.params.renew > before // self.params.renew:
            self.deploy()

    def _remember(self, y: Array, prediction: Prediction) -> None:
        """Write rows that were predicted by the base as it is deployed, and let lambda learn from them."""
        if self._deployed is None:
            return
        epoch = prediction.trace["epoch"]
        self._skipped += int((epoch < 0).sum())
        self._late += int(((epoch >= 0) & (epoch != self._epoch)).sum())
        rows = np.flatnonzero(epoch == self._epoch)
        if not len(rows):
            return
        trace = {k: v[rows] for k, v in prediction.trace.items()}
        said, u, y = self._said(given_back(trace)), trace["u"], y[rows]
        if self._kind == "class":
            wide = max(self._memory.values, said.shape[1], int(y.max()) + 1)
            self._memory.fit(wide)
            said = np.pad(said, ((0, 0), (0, wide - said.shape[1])))
            u = np.pad(u, ((0, 0), (0, 0), (0, wide - u.shape[2])))
            labels = (y[:, None] == np.arange(wide)).astype(np.float64)
        else:
            labels = y.astype(np.float64)[:, None]
        self._strength.learn(said, u, y)
        self._memory.write(trace, labels, said)

    # --- state --------------------------------------------------------------------------------------------------

    def telemetry(self) -> dict[str, float]:
        lam = self.params.lam if self.params.strength == "fixed" else float(self._strength.lam[0])
        own = {"lambda": lam, "memory_rows": self._memory.rows, "deployed": float(self._epoch)}
        return own | {"unsound": float(self._skipped), "too_late": float(self._late), **self._trained.telemetry()}

    def facts(self) -> dict[str, Any]:
        return {"memory_bytes": self._memory.size(), **self._trained.facts()}

    def state(self) -> State:
        apart = self._deployed is not None and self._deployed is not self._trained
        return {
            "base": self._trained.state(),
            "deployed": self._deployed.state() if apart and self._deployed is not None else None,
            "memory": self._memory.state(),
            "strength": self._strength.state(),
            "vectors": self._vectors.state(),
            "counts": {"seen": self._seen, "epoch": self._epoch, "unsound": self._skipped, "late": self._late},
        }

    def load(self, state: State) -> None:
        counts = state["counts"]
        self._seen, self._epoch = int(counts["seen"]), int(counts["epoch"])
        self._skipped, self._late = int(counts["unsound"]), int(counts["late"])
        self._trained.load(state["base"])
        self._deployed = self._trained if self._epoch else None
        if state["deployed"] is not None:
            self._deployed = self._make_base()
            self._deployed.load(state["deployed"])
        self._memory.load(state["memory"])
        self._strength.load(state["strength"])
        self._vectors.load(state["vectors"])
