"""Strategies of Avalanche as learners: the peers to compare with, and a way in for their users.

Avalanche (avalanche-lib 0.6) trains on whole experiences: it asks for all rows of one, shuffles them and iterates. A
stream brings rows as they come and cannot be read ahead. So the loop is ours and everything else is the strategy's own
code: when the first batch of an experience comes, what the strategy does before an experience; for every batch one
training iteration on its rows, in their order; at the Boundary, what it does after an experience, on all of its rows.
For rows that are not shuffled that is what ``strategy.train`` does, to the last bit (a test compares).

Two things differ. A replay loader is made anew for every batch, so what it replays is drawn from the whole memory each
time, where Avalanche goes through the memory in passes. And what follows the last experience of a stream never happens,
as no Boundary says that it is over; nothing would come after it.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, make_dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ...models.networks import grow_head
from ...streams import Array, Batch, Boundary, InputError, StreamSpec
from ..avalanche_bridge import dataset_of, import_avalanche
from ..learner import CannotCheckpoint, Learner, Prediction, State
from .gradient import GradientLearner

REQUIRED = MISSING
STRATEGIES: dict[str, dict[str, tuple[Any, Any]]] = {
    "Naive": {},
    "Replay": {"mem_size": (int, 200)},
    "DER": {
        "mem_size": (int, 200),
        "batch_size_mem": (int | None, None),
        "alpha": (float, 0.1),
        "beta": (float, 0.5),
    },
    "MIR": {"mem_size": (int, REQUIRED), "subsample": (int, REQUIRED), "batch_size_mem": (int, 1)},
    "AGEM": {"patterns_per_exp": (int, REQUIRED), "sample_size": (int, 64)},
    "GEM": {"patterns_per_exp": (int, REQUIRED), "memory_strength": (float, 0.5)},
    "LwF": {"alpha": (float, REQUIRED), "temperature": (float, REQUIRED)},
    "EWC": {
        "ewc_lambda": (float, REQUIRED),
        "mode": (Literal["separate", "online"], "separate"),
        "decay_factor": (float | None, None),
    },
    "MAS": {"lambda_reg": (float, 1.0), "alpha": (float, 0.5)},
}
"""Those that need of an experience, before it is over, only rows that have come: name -> parameter -> type, default.

SynapticIntelligence would be one, but in 0.6 it does nothing on a processor: what it keeps of the weights to see how
they move are views, which move along, so every importance is 0.
"""

Build = Callable[[nn.Module, int], Any]


class AvalancheStrategy(Learner):
    """``avalanche:Strategy``, such as ``avalanche:Replay``: its own parameters beside those of the network.

    The network, its first weights and what it is given are those of our own learners with the same parameters and
    seed. build: makes a strategy out of the network and the size of a batch, for one that is not in the table or needs
    more than a flag can say; evaluation, if it has any, runs as it would in Avalanche. The rows of an experience are
    kept until it is over. Whatever the strategy draws comes from generators seeded by ``seed``.
    """

    needs = frozenset({"labels", "boundaries"})

    @dataclass(frozen=True)
    class Params:
        """Settings of the network and of SGD; see ``params_for`` for the strategy's own."""

        strategy: ClassVar[str] = ""
        model: str = "mlp"
        """mlp, convnet, resnet18 (sizes after a colon: mlp:400-400, resnet18:20) or torchvision:NAME."""
        norm: Literal["batch", "group", "continual", "none"] = "batch"
        """Normalisation in the body, where it has any."""
        lr: float = 0.1
        """Learning rate of SGD."""
        momentum: float = 0.0
        """Momentum of SGD."""
        weight_decay: float = 0.0
        """Weight decay of SGD."""
        passes: int = 1
        """Training iterations for every batch."""

    def __init__(
        self, spec: StreamSpec, params: Params | None = None, seed: int = 0, *, build: Build | None = None
    ) -> None:
        super().__init__(spec, params, seed)
        p = self.params
        if build is None and not p.strategy:
            raise InputError(f"learner 'avalanche': expected avalanche:Strategy; there are {', '.join(STRATEGIES)}")
        import_avalanche()
        self._ours = GradientLearner(spec, GradientLearner.Params(model=p.model, norm=p.norm, lr=p.lr), seed)
        self.net = self._ours.net
        self._build = self._named if build is None else build
        self.strategy: Any = None  # made when the first batch tells its size
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._experience = self._updates = 0
        self._random = (torch.Generator().manual_seed(seed).get_state(), random.Random(seed).getstate())

    @classmethod
    def params_for(cls, strategy: str) -> type[Params]:
        """The parameters of ``avalanche:STRATEGY``; those without a default must be given."""
        if not strategy:
            return cls.Params
        if strategy not in STRATEGIES:
            near = get_close_matches(strategy, STRATEGIES, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(STRATEGIES)}"
            raise InputError(f"no strategy avalanche:{strategy} can learn from a stream as it comes: {hint}")
        own = [
            (name, kind, field(default=default, kw_only=True, metadata={"doc": f"As in Avalanche's {strategy}."}))
            for name, (kind, default) in STRATEGIES[strategy].items()
        ]
        return make_dataclass("Params", own, bases=(cls.Params,), namespace={"strategy": strategy}, frozen=True)

    def _named(self, net: nn.Module, batch: int) -> Any:
        """The strategy of the parameters."""
        from avalanche.training import supervised

        p = self.params
        given = asdict(p)
        own = {f.name: given[f.name] for f in fields(p) if f.name in STRATEGIES[p.strategy]}
        try:
            return getattr(supervised, p.strategy)(
                model=net,
                optimizer=torch.optim.SGD(net.parameters(), p.lr, p.momentum, weight_decay=p.weight_decay),
                criterion=nn.CrossEntropyLoss(),
                train_mb_size=batch,
                evaluator=None,
                **own,
            )
        except (AssertionError, TypeError, ValueError) as fault:
            raise InputError(f"avalanche:{p.strategy} cannot be built: {fault}") from None

    # --- answers ------------------------------------------------------------------------------------------------

    def predict(self, batch: Batch) -> Prediction:
        return self._ours.predict(batch)

    def probe(self, x: Array) -> Callable[[], Array]:
        return self._ours.probe(x)

    def version(self) -> int:
        return self._updates

    # --- learning -----------------------------------------------------------------------------------------------

    def learn(self, batch: Batch, prediction: Prediction) -> None:
        assert batch.y is not None
        ours = self._ours
        table: Array = np.asarray(batch.x)
        ours.inputs.observe(table)
        x = ours.inputs.tensor(table)
        y = torch.from_numpy(np.ascontiguousarray(batch.y, np.int64))
        with self._its_own_draws():
            self._grow(int(y.max()) + 1)
            if self.strategy is None:
                self.strategy = self._build(self.net, len(y))
            if not self._rows:
                self._begin(x, y)
            self.strategy.train_mb_size = max(self.strategy.train_mb_size, len(y))
            for _ in range(self.params.passes):
                self._iterate(x, y)
        self._rows.append((x, y))
        self._updates += 1

    def _begin(self, x: Tensor, y: Tensor) -> None:
        """What ``strategy.train`` does before the first iteration on an experience."""
        from avalanche.benchmarks import DatasetExperience

        strategy = self.strategy
        strategy.is_training = True
        strategy.model.train()
        strategy._eval_streams = []
        strategy._before_training()
        strategy.experience = DatasetExperience(dataset=dataset_of(x, y), current_experience=self._experience)
        strategy._before_training_exp(shuffle=False)
        strategy._before_training_epoch()

    def _iterate(self, x: Tensor, y: Tensor) -> None:
        """One training iteration on these rows, with what the strategy puts beside them."""
        from avalanche.training.plugins import ReplayPlugin

        strategy = self.strategy
        strategy.dataloader = [[x, y, torch.zeros_like(y)]]
        for plugin in strategy.plugins:
            if isinstance(plugin, ReplayPlugin):  # it makes the loader, with rows of its memory
                strategy.adapted_dataset = dataset_of(x, y)
                plugin.before_training_exp(strategy)
        strategy.model.train()
        strategy.training_epoch()
        strategy.model.eval()

    def boundary(self, event: Boundary) -> None:
        """What ``strategy.train`` does after the last iteration on an experience."""
        from avalanche.benchmarks import DatasetExperience

        strategy = self.strategy
        if self._rows:
            x, y = (torch.cat(parts) for parts in zip(*self._rows))
            strategy.experience = DatasetExperience(dataset=dataset_of(x, y), current_experience=self._experience)
            strategy.adapted_dataset = strategy.experience.dataset
            with self._its_own_draws():
                strategy._after_training_epoch()
                strategy._after_training_exp()
                strategy._after_training()
                strategy._train_cleanup()
            strategy.model.eval()
        self._rows.clear()
        self._experience += 1
        self._ours.boundary(event)

    def _grow(self, classes: int) -> None:
        if classes > self.net.head.out_features:
            grow_head(self.net, classes, self.seed)
            self._ours.rebuilt()
            if self.strategy is not None:
                self.strategy.make_optimizer()

    @contextmanager
    def _its_own_draws(self) -> Iterator[None]:
        """While inside, the global generators, which Avalanche draws from, are this learner's."""
        before = torch.get_rng_state(), random.getstate()
        torch.set_rng_state(self._random[0])
        random.setstate(self._random[1])
        try:
            with warnings.catch_warnings(record=True):  # no loggers; what it will rename, whatever the filters say
                warnings.simplefilter("ignore")
                yield
        except InputError:
            raise
        except Exception as fault:  # foreign code may raise anything: one line instead
            where = f"avalanche:{self.params.strategy} failed in experience {self._experience}"
            raise InputError(f"{where}: {type(fault).__name__}: {fault}") from fault
        finally:
            self._random = (torch.get_rng_state(), random.getstate())
            torch.set_rng_state(before[0])
            random.setstate(before[1])

    # --- state --------------------------------------------------------------------------------------------------

    def state(self) -> State:
        raise CannotCheckpoint(
            f"avalanche:{self.params.strategy} keeps its state in objects of its own, which cannot be written as plain "
            "arrays"
        )

    def load(self, state: State) -> None:
        raise CannotCheckpoint(f"avalanche:{self.params.strategy} cannot take over a saved state")
