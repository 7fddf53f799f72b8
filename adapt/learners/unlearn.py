"""A network that forgets by gradient steps: the rivals of exact forgetting, as learners of a stream.

    learn (x, y):   w -= lr dL/dw over the batch; the rows are kept
    forget (ids):   find the rows, or refuse; one of the methods of ``models/approximate_unlearning.py`` on them and on
                    the rows that remain; erase them
    retrain:        a new network, the remaining rows in the batches in which they came: what the others are measured by

None but ``retrain`` is exact, and all of them need the rows that remain, which exact forgetting does not. Everything
about the stream's side (which rows, how many steps) is ours; the methods' sources stand beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from ...models.approximate_unlearning import METHODS, Rows, Steps
from ...models.inputs import Pixels
from ...models.networks import Network, build, grow_head
from ...streams import Array, Batch, InputError, StreamSpec
from ..learner import CannotForget, Learner, Prediction, Receipt, State
from ..learnt import Learnt
from ..state import digest
from .acu_parts import plain_features

RETRAIN = "retrain"
APPROXIMATE = "approximate: the network was moved away from these rows, nothing is guaranteed"
ANEW = "the network is the one trained anew on the remaining rows"


class Unlearn(Learner):
    """Named ``unlearn:METHOD``: retrain, finetune, neg-grad, neg-grad+, scrub or salun (``unlearn`` alone: finetune).

    Keeps every learnt row until it is forgotten: 4 bytes a number.
    """

    @dataclass(frozen=True)
    class Params:
        """Of learning (model, lr) and of forgetting (the others, see ``Steps``)."""

        model: str = "mlp:100"
        """mlp, convnet, resnet18 (sizes after a colon) or torchvision:NAME, without norms."""
        lr: float = 0.05
        """Of the steps that learn."""
        epochs: int = 3
        """Passes over the remaining rows for every request."""
        rate: float = 0.02
        """Of the steps that descend while forgetting."""
        climb: float = 0.005
        """Of the steps that climb."""
        alpha: float = 0.95
        """neg-grad+: share of the remaining rows' loss."""
        share: float = 0.5
        """salun: share of the weights that move."""
        rows: int = 32
        """Rows of a step while forgetting."""
        method: ClassVar[str] = "finetune"

        def __post_init__(self) -> None:
            if not (min(self.lr, self.rate, self.climb) > 0 and 0 <= self.alpha <= 1 and 0 < self.share <= 1):
                raise ValueError("lr, rate and climb are above 0, alpha lies in 0..1, share in 0..1 and above 0")
            if min(self.epochs, self.rows) < 1:
                raise ValueError("epochs and rows are at least 1")

    def __init__(self, spec: StreamSpec, params: Params | None = None, seed: int = 0) -> None:
        super().__init__(spec, params, seed)
        self._plain = plain_features(spec)
        self._shape = (self._plain.width,) if spec.shape is None else spec.shape
        notes = spec.notes if spec.shape is not None else {}
        self._pixels = Pixels(self._shape, notes["mean"], notes["std"]) if "mean" in notes else None
        self.net = self._new_net()
        self.learnt = Learnt(self._plain.width, f"{seed}".encode())
        self.updates = self.requests = 0

    @classmethod
    def params_for(cls, method: str) -> type[Params]:
        """The parameters of ``unlearn:METHOD``."""
        if not method:
            return cls.Params
        if method not in (RETRAIN, *METHODS):
            raise InputError(f"unlearn:{method}: there are {', '.join((RETRAIN, *METHODS))}")
        return make_dataclass("Params", [], bases=(cls.Params,), namespace={"method": method}, frozen=True)

    def _new_net(self) -> Network:
        try:
            return build(self.params.model, self._shape, max(2, self.spec.n_classes or 0), norm="none", seed=self.seed)
        except ValueError as fault:
            raise InputError(f"{fault}") from None

    # --- learning -----------------------------------------------------------------------------------------------

    def predict(self, batch: Batch) -> Prediction:
        with torch.inference_mode():
            scores = torch.softmax(self.net(self._tensor(self._inputs(batch))).double(), 1).numpy()
        return Prediction(scores.argmax(1), scores)

    def learn(self, batch: Batch, prediction: Prediction) -> None:
        assert batch.y is not None
        z, y = self._inputs(batch), np.asarray(batch.y)
        keep = ~np.isin(batch.ids, list(self.learnt.barred))
        if keep.any():
            self._step(z[keep], y[keep])
            self.learnt.add(batch.ids[keep], z[keep], y[keep], self.updates)
            self.updates += 1

    def _step(self, z: Array, y: Array) -> None:
        if int(y.max()) >= self.net.head.out_features:
            grow_head(self.net, int(y.max()) + 1, self.seed)
        weights = list(self.net.parameters())
        slopes = torch.autograd.grad(F.cross_entropy(self.net(self._tensor(z)), torch.from_numpy(y)), weights)
        with torch.no_grad():
            for weight, slope in zip(weights, slopes):
                weight.sub_(self.params.lr * slope)

    def _inputs(self, batch: Batch) -> Array:
        """The network's inputs, float32 numbers in float64[B, width]."""
        assert isinstance(batch.x, np.ndarray)
        if self._pixels is None:
            return self._plain(batch.x)
        return self._pixels.tensor(batch.x).flatten(1).numpy().astype(np.float64)

    def _tensor(self, z: Array) -> torch.Tensor:
        return torch.from_numpy(z).float().reshape(len(z), *self._shape)

    # --- forgetting ---------------------------------------------------------------------------------------------

    def forget(self, ids: Array) -> Receipt:
        return self._take_out("ids", self.learnt.find(ids))

    def forget_whole(self, kind: str, number: int) -> Receipt:
        if kind != "class":
            raise CannotForget(f"there are no {kind}s here")
        places = self.learnt.everywhere(label=number)
        if not len(places):
            raise CannotForget(f"there are no learnt rows of {kind} {number}")
        return self._take_out(kind, places)

    def bar(self, ids: Array) -> None:
        there = self.learnt.known(ids)
        if len(there):
            self.forget(there)
        self.learnt.barred |= set(np.asarray(ids).tolist())

    def _take_out(self, kind: str, places: Array) -> Receipt:
        before, exact = self._digest(), self.params.method == RETRAIN
        if len(places):
            others = np.setdiff1d(self.learnt.everywhere(), places)
            if exact or not len(others):
                self._train_anew(others)
            else:
                self._move_away(others, places)
            self.requests += 1
        ids = tuple(dict.fromkeys(self.learnt.ids(places).tolist()))
        self.learnt.erase(places)
        certificate = {"kind": kind, "rows": len(places), "method": self.params.method}
        return Receipt(ids, before, self._digest(), ANEW if exact else APPROXIMATE, certificate)

    def _train_anew(self, places: Array) -> None:
        """A new network, taught the rows at these places in the batches in which they came."""
        self.net = self._new_net()
        of = self.learnt.groups(places)
        z, y = self.learnt.rows(places)
        order = np.argsort(of, kind="stable")
        for some in np.split(order, np.flatnonzero(np.diff(of[order])) + 1):
            if len(some):
                self._step(z[some], y[some])

    def _move_away(self, others: Array, places: Array) -> None:
        p = self.params
        steps = Steps(p.epochs, p.rate, p.rows, climb=p.climb, alpha=p.alpha, share=p.share)
        retained, forgotten = (self._as_rows(*self.learnt.rows(at)) for at in (others, places))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.requests)
        METHODS[p.method](self.net, retained, forgotten, steps, generator)

    def _as_rows(self, z: Array, y: Array) -> Rows:
        return Rows(self._tensor(z), torch.from_numpy(y))

    def _digest(self) -> str:
        return digest(dict(self.net.state_dict(keep_vars=True)))

    # --- state --------------------------------------------------------------------------------------------------

    def version(self) -> int | None:
        return self.updates + self.requests

    def telemetry(self) -> dict[str, float]:
        return {"learnt": float(len(self.learnt)), "forgotten": float(sum(self.learnt.forgotten.values()))}

    def state(self) -> State:
        return {
            "net": dict(self.net.state_dict(keep_vars=True)),
            "classes": self.net.head.out_features,
            "learnt": self.learnt.state(),
            "updates": self.updates,
            "requests": self.requests,
        }

    def load(self, state: State) -> None:
        self.net = self._new_net()
        if int(state["classes"]) > self.net.head.out_features:
            grow_head(self.net, int(state["classes"]), self.seed)
        self.net.load_state_dict({name: torch.as_tensor(weight) for name, weight in state["net"].items()})
        self.learnt.load(state["learnt"])
        self.updates, self.requests = int(state["updates"]), int(state["requests"])
