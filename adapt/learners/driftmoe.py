"""DriftMoE: a mixture of online experts and a neural router that train each other (arXiv 2507.18464).

Two variants. ``data``: every expert knows all classes; the algorithm stands in ``driftmoe_data.py``. ``task``: one
one-vs-rest tree per class; it stands in ``driftmoe_task.py``.

``faithful`` sets what the paper and its code publish, in the corrected order (test, then train; the first public
revision trained first, and its figures are too good). Without it runs what we found better, named in each file.
Differences between paper, code and this are listed in REPRODUCIBILITY.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ...models.arrays import from_dict, to_dict
from ...models.encoding import encoded_width, new_encoder
from ...models.guarded import new_guards
from ...models.held import hold
from ...models.hoeffding import ADAPTIVE, Rules, new_forest, with_classes, with_trees
from ...models.router import new_router, with_outputs
from ...streams import Array, Batch, StreamSpec
from ..learner import Learner, Prediction, State
from . import driftmoe_data as data
from . import driftmoe_task as task
from .hoeffding_tree import category_counts
from .row_model import RowModel
from .segments import classes_in, plain, test_then_train

RULES = ((0, 0, 0.9), (4, 0, 0.9), (8, 0, 0.8), (0, 4, 0.9), (2, 4, 0.9), (8, 4, 0.8))
"""(gamma, kappa, rho) of the answers that compete: three by vote, three with the router's say."""
NOTED = ("z", "p", "said")
"""Names of ``driftmoe_data.new_notes`` in a trace."""


class DriftMoE(Learner):
    """The learner ``driftmoe``: the variant asked for, behind the interface of all learners."""

    @dataclass(frozen=True)
    class Params:
        """Settings of DriftMoE; the defaults are ours, ``faithful=true`` gives the published ones."""

        variant: Literal["data", "task"] = "data"
        """data: multi-class experts, answered by routing. task: one tree per class; of the settings below it takes
        hidden, rate, scale, grace, delta, tau and max_mib."""
        faithful: bool = False
        """The published settings, whatever is said below (but for noise and max_mib)."""
        lean: bool = False
        """For speed: no generalists, ten specialists of which three learn each row."""
        generalists: int = 4
        """Trees that learn every row on sqrt(d) random features per leaf."""
        specialists: int = 6
        """Trees that learn only rows routed to them, on 60 % of the features per leaf (at most 25)."""
        top_k: int = 2
        """How many specialists learn a row."""
        linear_rates: tuple[float, ...] = (0.05, 0.2)
        """One online softmax regression for each rate."""
        answer: Literal["auto", "vote", "top-1"] = "auto"
        """auto: the best of six rules, chosen on line. vote: of the three without router. top-1: the router alone."""
        hidden: int = 256
        """Units of the router's first layer; the second has half as many."""
        router_batch: int = 32
        """Rows per mini-batch of the router."""
        passes: int = 4
        """Adam steps on each mini-batch."""
        rate: float = 0.002
        """Adam's step length."""
        scale: bool = True
        """Standardise the router's input (and one-hot nominal columns); else raw numbers and codes."""
        poisson: float = 6.0
        """Mean of the Poisson weight of each row for each tree; 0: weight 1."""
        guarded: bool = True
        """Replace a tree whose error rises (ADWIN)."""
        warning: float = 0.01
        """ADWIN's delta that starts a background tree."""
        drift: float = 0.001
        """ADWIN's delta that swaps it in."""
        grace: float = 50.0
        """Weight a leaf gathers between two split attempts."""
        delta: float = 0.01
        """Allowed chance of a wrong split."""
        tau: float = 0.05
        """Hoeffding bound below which a tie is broken."""
        floor: float = 1e-3
        """Smallest variance in a leaf, as a share of the feature's variance."""
        contrast: bool = False
        """Leave rows that every expert gets right out of the router's training."""
        balance: bool = False
        """Weigh the router's targets by inverse class frequency, within [0.2, 5]."""
        noise: bool = False
        """Control: the router sees noise in place of the row."""
        max_mib: float = 256.0
        """Bound on the trees' memory; at the bound they stop growing."""

        def __post_init__(self) -> None:
            if min(self.generalists, self.specialists) < 0 or self.experts == 0:
                raise ValueError("generalists and specialists must be at least 0 and leave an expert to ask")
            if min(self.top_k, self.router_batch, self.passes) < 1 or self.hidden < 2:
                raise ValueError("top_k, router_batch and passes must be at least 1, hidden at least 2")
            if not (self.rate > 0 and all(rate > 0 for rate in self.linear_rates)):
                raise ValueError("rate and linear_rates must be above 0")
            if not (0 <= self.poisson <= 50 and self.floor >= 0 and self.max_mib > 0):
                raise ValueError("poisson must be within 0 and 50, floor at least 0, max_mib above 0")
            if not (self.grace > 0 and self.tau >= 0):
                raise ValueError("grace must be above 0, tau at least 0")
            if not all(0 < level < 1 for level in (self.delta, self.warning, self.drift)):
                raise ValueError("delta, warning and drift must be between 0 and 1")

        @property
        def experts(self) -> int:
            """Trees and linear models together."""
            return self.generalists + self.specialists + len(self.linear_rates)

    def __init__(self, spec: StreamSpec, params: Params | None = None, seed: int = 0) -> None:
        super().__init__(spec, params, seed)
        self._settings = effective(self.params)
        if self._settings.variant == "task":
            self._mixture: DataMixture | TaskMixture = TaskMixture(spec, self._settings, seed)
        else:
            self._mixture = DataMixture(spec, self._settings, seed)

    def predict(self, batch: Batch) -> Prediction:
        return self._mixture.predict(batch)

    def learn(self, batch: Batch, prediction: Prediction) -> None:
        self._mixture.learn(batch, prediction)

    def test_then_train(self, batch: Batch) -> Prediction:
        return self._mixture.test_then_train(batch)

    def state(self) -> State:
        return self._mixture.state()

    def load(self, state: State) -> None:
        self._mixture.load(state)

    def telemetry(self) -> dict[str, float]:
        return self._mixture.telemetry()


PUBLISHED: dict[str, Any] = {
    "lean": False,
    "generalists": 0,
    "specialists": 12,
    "top_k": 3,
    "linear_rates": (),
    "answer": "top-1",
    "hidden": 256,
    "router_batch": 256,
    "passes": 1,
    "rate": 0.002,
    "scale": False,
    "poisson": 0.0,
    "guarded": False,
    "grace": 50.0,
    "delta": 1e-7,
    "tau": 0.05,
    "floor": 0.0,
    "contrast": False,
    "balance": False,
}
"""Section 5 of the paper's settings, as its code has them (MoE-Data)."""

LEAN: dict[str, Any] = {"generalists": 0, "specialists": 10, "top_k": 3}


def effective(params: DriftMoE.Params) -> DriftMoE.Params:
    """The settings that apply once ``faithful`` and ``lean`` are taken at their word."""
    if params.faithful:
        return replace(params, **PUBLISHED)
    return replace(params, **LEAN) if params.lean else params


class DataMixture:
    """MoE-Data: owns the arrays, makes room in them, and calls the compiled algorithm."""

    def __init__(self, spec: StreamSpec, s: DriftMoE.Params, seed: int) -> None:
        fan = category_counts(spec)
        d, trees = len(fan), s.generalists + s.specialists
        wide = d if s.faithful else max(1, min(25, round(0.6 * d)))
        widths = [max(1, round(d**0.5))] * s.generalists + [wide] * s.specialists
        rules = [r for r in RULES if s.answer != "vote" or r[1] == 0]
        self.plan = data.Plan(
            rules=Rules(s.grace, s.delta, s.tau, ADAPTIVE, forget_pure=s.faithful, multiway=s.faithful),
            generalists=s.generalists,
            top_k=s.top_k,
            top_one=s.answer == "top-1",
            exponents=np.array(rules, np.float64),
            poisson=s.poisson,
            guarded=s.guarded,
            warning=s.warning,
            drift=s.drift,
            floor=s.floor,
            router_rate=s.rate,
            passes=s.passes,
            linear_rates=np.array(s.linear_rates, np.float64),
            contrast=s.contrast,
            balance=s.balance,
            noise=s.noise,
        )
        classes = max(2, spec.n_classes or 2)
        encoder = new_encoder(fan, clip=5.0 if s.scale else 0.0)
        width, experts = encoded_width(encoder), trees + len(s.linear_rates)
        router_seed, tree_seed = np.random.SeedSequence(seed).spawn(2)
        pool = data.Pool(
            forest=new_forest(widths * 2, fan, classes, int(tree_seed.generate_state(1)[0])),
            guards=new_guards(trees),
            encoder=encoder,
            router=new_router(
                width, (s.hidden, s.hidden // 2), experts, s.router_batch, np.random.default_rng(router_seed)
            ),
            linear=np.zeros((len(s.linear_rates), classes, width + 1)),
            recency=np.full((len(rules), experts), 0.5),
            standing=np.full(len(rules), 0.5),
            labels=np.zeros(classes),
            usage=np.zeros(experts),
            trained=np.zeros(experts, np.int64),
        )
        self.rows = RowModel(
            data.pass_rows,
            lambda pool: hold((self.plan, pool, data.new_desk(pool))),
            pool,
            classes=classes,
            room=(1 + max(2, *fan) if s.faithful else 3) * (s.top_k if s.faithful else 2 * trees),
            max_bytes=int(s.max_mib * 2**20),
        )

    @property
    def pool(self) -> data.Pool:
        """The arrays that the model works on."""
        pool: data.Pool = self.rows.pool
        return pool

    def predict(self, batch: Batch) -> Prediction:
        """Scores of every row; the trace holds z[B, E], p[B, E, C] and said[B, R] (see ``driftmoe_data.pass_rows``)."""
        noted = data.new_notes(self.pool, len(batch))
        return Prediction(*self.rows.predict(plain(batch.x), noted), dict(zip(NOTED, noted, strict=True)))

    def learn(self, batch: Batch, prediction: Prediction) -> None:
        """Learn every row with what was known when it was predicted."""
        assert batch.y is not None
        self._know(classes_in(batch.y))
        z, p, said = (prediction.trace[name] for name in NOTED)
        if p.shape[2] < self.rows.classes:
            p = np.pad(p, [(0, 0), (0, 0), (0, self.rows.classes - p.shape[2])])
        self.rows.learn(plain(batch.x), plain(batch.y), (z, p, said), prediction.output)

    def test_then_train(self, batch: Batch) -> Prediction:
        return test_then_train(self, batch)

    def known_classes(self) -> int:
        return self.rows.classes

    def run(self, x: Array, y: Array, start: int, stop: int) -> Prediction:
        """Test, then train, on rows [start, stop), whose classes are all known."""
        noted = data.new_notes(self.pool, stop - start)
        return Prediction(*self.rows.test_then_train(x[start:stop], y[start:stop], noted))

    def _know(self, classes: int) -> None:
        """Make room for more classes."""
        grow = classes - self.rows.classes
        if grow > 0:
            pool = self.pool._replace(
                forest=with_classes(self.pool.forest, classes),
                linear=np.pad(self.pool.linear, [(0, 0), (0, grow), (0, 0)]),
                labels=np.pad(self.pool.labels, (0, grow)),
            )
            self.rows.work_on(pool, classes)

    def state(self) -> State:
        return to_dict(self.pool)

    def load(self, state: State) -> None:
        pool = from_dict(data.Pool, state)
        self.rows.work_on(pool, len(pool.labels))

    def telemetry(self) -> dict[str, float]:
        """Each expert's decayed share in the answers, missing values filled in, how many trees were replaced."""
        shares = {f"expert_{i}": round(float(share), 6) for i, share in enumerate(self.pool.usage)}
        replaced = float(self.pool.guards.replaced.sum())
        return {**shares, "imputed": float(self.pool.encoder.imputed[0]), "resets": replaced}


class TaskMixture:
    """MoE-Task: owns the arrays, makes room in them, and calls the compiled algorithm."""

    def __init__(self, spec: StreamSpec, s: DriftMoE.Params, seed: int) -> None:
        fan = category_counts(spec)
        classes = max(2, spec.n_classes or 2)
        self.plan = task.Plan(
            rules=Rules(s.grace, s.delta, s.tau, ADAPTIVE, forget_pure=s.faithful, multiway=False),
            trees=not s.faithful,
            dropout=s.faithful,
            rate=s.rate,
            seed=seed,
        )
        encoder = new_encoder(fan, clip=5.0 if s.scale else 0.0)
        pool = task.Pool(
            forest=new_forest([len(fan)] * classes, fan, 2, seed),
            encoder=encoder,
            router=new_router(
                encoded_width(encoder), (s.hidden, s.hidden // 2), classes, 1, np.random.default_rng(seed)
            ),
            labels=np.zeros(classes),
        )
        self.rows = RowModel(
            task.pass_rows,
            lambda pool: hold((self.plan, pool)),
            pool,
            classes=classes,
            room=3 * classes,
            max_bytes=int(s.max_mib * 2**20),
        )

    @property
    def pool(self) -> task.Pool:
        """The arrays that the model works on."""
        pool: task.Pool = self.rows.pool
        return pool

    def predict(self, batch: Batch) -> Prediction:
        return Prediction(*self.rows.predict(plain(batch.x)))

    def learn(self, batch: Batch, prediction: Prediction) -> None:
        assert batch.y is not None
        self._know(classes_in(batch.y))
        self.rows.learn(plain(batch.x), plain(batch.y), (), prediction.output)

    def test_then_train(self, batch: Batch) -> Prediction:
        return test_then_train(self, batch)

    def known_classes(self) -> int:
        return self.rows.classes

    def run(self, x: Array, y: Array, start: int, stop: int) -> Prediction:
        """Test, then train, on rows [start, stop), whose classes are all known."""
        return Prediction(*self.rows.test_then_train(x[start:stop], y[start:stop]))

    def _know(self, classes: int) -> None:
        """Append a tree and a router output for each new class."""
        old = self.rows.classes
        if classes > old:
            rng = np.random.default_rng([self.plan.seed, old])
            pool = self.pool._replace(
                forest=with_trees(self.pool.forest, classes, self.plan.seed),
                router=with_outputs(self.pool.router, classes, rng),
                labels=np.pad(self.pool.labels, (0, classes - old)),
            )
            self.rows.room = 3 * classes
            self.rows.work_on(pool, classes)

    def state(self) -> State:
        return to_dict(self.pool)

    def load(self, state: State) -> None:
        pool = from_dict(task.Pool, state)
        self.rows.room = 3 * len(pool.labels)
        self.rows.work_on(pool, len(pool.labels))

    def telemetry(self) -> dict[str, float]:
        """Leaves in use by all trees, missing values filled in; trees are never thrown away here."""
        leaves = len(self.pool.forest.leaf) - int(self.pool.forest.used[1])
        return {"leaves": float(leaves), "imputed": float(self.pool.encoder.imputed[0]), "resets": 0.0}
