"""Click models that learn in one pass: a step on every batch of labels, after training on the stream's source if any.

The models are those of ``models/ctr.py``. A step is Adam on the mean log loss of the batch; only the rows of the
embedding table that the batch looks up are read and moved (their moments too: lazy Adam), so that a step costs the same
whatever the table's size. Its epsilon stands beside the root of the moment as it is, not yet corrected (Kingma, Ba,
ICLR 2015, end of section 2). Numbers are standardised by running moments and clipped to 5 deviations.

``din`` keeps the items of each user's last clicks. A click enters when its label comes, and a row is learnt with the
history that its prediction saw, so that late labels leak nothing. Histories lie in a table of bounded size, users share
places by a hash.

Sources: as in ``models/ctr.py``; one pass: Wang et al., A practical incremental method to train deep CTR models,
arXiv 2009.02147 (its rival, IncCTR), without its distillation. Ours: lazy moments, histories that respect the delay.
"""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from ...models.ctr import ClickModel, Field, Places, table_size
from ...streams import Array, Batch, InputError, StreamSpec
from ..learner import Learner, Prediction, State

TABLES = ("first.weight", "vectors.weight")
BETAS, EPS, CLIP = (0.9, 0.999), 1e-8, 5.0
HELD_OUT, PATIENCE = 0.1, 2


class ClickLearner(Learner):
    """A click model learnt on line, for streams of two classes: ``ctr-lr``, ``fm``, ``deepfm``, ``dcnv2``, ``din``."""

    needs: frozenset[str] = frozenset({"labels"})

    @dataclass(frozen=True)
    class Params:
        """Settings of the model and its training."""

        dim: int = 16
        """Numbers in an embedding."""
        widths: str = "64-32"
        """Hidden widths of the MLP."""
        embedding_bytes: int = 4 << 20
        """Bound on the table of embeddings; their optimiser's moments take twice as much beside it."""
        lr: float = 1e-3
        """Step length."""
        weight_decay: float = 0.0
        """Decay of the MLP's weights and of the embeddings a batch looks up, decoupled."""
        epochs: int = 20
        """Most passes over the stream's source before it begins; stopped by the last tenth of the source."""
        source_batch: int = 256
        """Rows of a step then."""
        user: str = ""
        """Column of the user (din; default: what the stream calls so)."""
        item: str = ""
        """Column of the item (din; default: what the stream calls so)."""
        history: int = 10
        """Clicks of a user that are kept (din)."""
        history_bytes: int = 1 << 20
        """Bound on the table of histories (din)."""
        kind: ClassVar[str] = "deepfm"

        def __post_init__(self) -> None:
            if min(self.dim, self.source_batch, self.history) < 1 or self.epochs < 0:
                raise ValueError("dim, source_batch and history are at least 1, epochs at least 0")
            if not (self.lr > 0 and self.weight_decay >= 0):
                raise ValueError("lr must be above 0, weight_decay at least 0")
            if min(_widths(self.widths), default=0) < 1:
                raise ValueError("widths are numbers above 0 with - between")

    def __init__(self, spec: StreamSpec, params: Params | None = None, seed: int = 0) -> None:
        super().__init__(spec, params, seed)
        p = self.params
        if spec.n_classes != 2:
            found = "classes not known beforehand" if spec.n_classes is None else f"{spec.n_classes} classes"
            raise InputError(f"{p.kind} tells a click from none, stream {spec.name!r} has {found}")
        fields = [Field(c.name, len(c.categories or ()), c.categories is not None and c.open) for c in spec.columns]
        size = table_size(p.kind, p.dim, p.embedding_bytes)
        try:
            self._places = Places(fields, size)
        except ValueError as fault:
            raise InputError(f"{p.kind}: {fault} (embedding_bytes)") from None
        self._numbers = np.array([c.categories is None for c in spec.columns])
        self._moments = np.zeros((3, len(fields)))  # count, mean, sum of squared deviations
        self._user, self._item = (self._column(w) for w in ("user", "item")) if p.kind == "din" else (0, 0)
        users = max(1, p.history_bytes // (8 * p.history)) if p.kind == "din" else 0
        self._history = np.full((users, p.history), -1)
        state = torch.random.get_rng_state()
        torch.manual_seed(seed)
        self.net = ClickModel(p.kind, len(fields), size, p.dim, _widths(p.widths), item=self._item).eval()
        torch.random.set_rng_state(state)
        self._weights = dict(self.net.named_parameters())
        self._slots = {n: (torch.zeros_like(w.data), torch.zeros_like(w.data)) for n, w in self._weights.items()}
        self._steps = 0
        self._source_rows = 0
        if spec.source is not None and p.epochs:
            self.needs = frozenset({"labels", "source"})
            self._fit_source(*spec.source.train())

    @classmethod
    def params_for(cls, kind: str) -> type[Params]:
        """The parameters of the model of that kind."""
        made: type[ClickLearner.Params] = make_dataclass(
            "Params", [], bases=(cls.Params,), namespace={"kind": kind}, frozen=True
        )
        return made

    def _column(self, role: str) -> int:
        names = [c.name for c in self.spec.columns]
        name = getattr(self.params, role) or self.spec.notes.get(role, "")
        if name not in names:
            raise InputError(f"din: which column is the {role}? --set {role}=NAME, one of {', '.join(names)}")
        return names.index(name)

    # --- rows ---------------------------------------------------------------------------------------------------

    def _observe(self, x: Array) -> None:
        """Take numbers into the running moments (Chan, Golub, LeVeque 1983)."""
        value = np.clip(np.where(self._numbers, x, np.nan), -1e100, 1e100)
        there = np.isfinite(value)
        more = there.sum(0)
        value = np.where(there, value, 0.0)
        centre = value.sum(0) / np.maximum(more, 1)
        count, mean, squares = self._moments
        total = np.maximum(count + more, 1)
        delta = np.where(more > 0, centre - mean, 0.0)
        squares += (there * (value - centre) ** 2).sum(0) + delta**2 * (count * more / total)
        mean += delta * more / total
        count += more

    def _inputs(self, x: Array) -> tuple[Tensor, Tensor]:
        """Places int64[B, F] and values float32[B, F]."""
        count, mean, squares = self._moments
        value = np.where(np.isnan(x), 0.0, 1.0)
        value[:, ~self._numbers] = 1.0
        if self._numbers.any():
            deviation = np.sqrt(squares / np.maximum(count, 1))
            scale = np.where(deviation > 0, deviation, np.inf)
            value[:, self._numbers] *= np.nan_to_num(((x - mean) / scale).clip(-CLIP, CLIP))[:, self._numbers]
        return torch.from_numpy(self._places.rows(x)), torch.from_numpy(value.astype(np.float32))

    def _seats(self, x: Array) -> Array:
        """int64[B]: where each user's history lies."""
        word = (np.nan_to_num(x[:, self._user], nan=-1.0).astype(np.int64) + 2).astype(np.uint64)
        return ((word * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)).astype(np.int64) % len(self._history)

    def _past(self, x: Array) -> Array:
        return self._history[self._seats(x)]

    def _clicked(self, x: Array, y: Array) -> None:
        """Enter the rows' clicks into the histories, newest first."""
        clicks = np.flatnonzero(y == 1)
        items = self._places.of(x[clicks, self._item], self._item)
        for seat, item in zip(self._seats(x[clicks]), items, strict=True):
            self._history[seat, 1:] = self._history[seat, :-1].copy()
            self._history[seat, 0] = item

    # --- answers ------------------------------------------------------------------------------------------------

    def predict(self, batch: Batch) -> Prediction:
        return self.represent(batch)[0]

    def represent(self, batch: Batch) -> tuple[Prediction, Array | None]:
        x = np.asarray(batch.x, np.float64)
        past = self._past(x) if self.params.kind == "din" else None
        with torch.inference_mode():
            z, hidden = self.net(*self._inputs(x), None if past is None else torch.from_numpy(past))
            p = torch.sigmoid(z.double()).numpy()
        scores = np.stack([1 - p, p], 1)
        trace = {} if past is None else {"past": past}
        return Prediction((p > 0.5).astype(np.int64), scores, trace), hidden.numpy()

    # --- learning -----------------------------------------------------------------------------------------------

    def learn(self, batch: Batch, prediction: Prediction) -> None:
        x, y = np.asarray(batch.x, np.float64), batch.y
        assert y is not None
        self._observe(x)
        past = prediction.trace.get("past")
        rows, value = self._inputs(x)
        self._step(rows, value, None if past is None else torch.from_numpy(past), torch.from_numpy(y))
        if past is not None:
            self._clicked(x, y)

    def _step(self, rows: Tensor, value: Tensor, past: Tensor | None, y: Tensor) -> None:
        """One step of Adam. The embeddings in use are taken out of the table as a small one of their own."""
        looked = rows if past is None else torch.cat([rows.flatten(), past[past >= 0]])
        used, compact = torch.unique(looked, return_inverse=True)
        places = compact.flatten()[: rows.numel()].reshape(rows.shape)
        if past is not None:
            there, past = past >= 0, past.clone()
            past[there] = compact[rows.numel() :]
        weights = {n: (w.data[used] if n in TABLES else w.data).requires_grad_() for n, w in self._weights.items()}
        z, _ = functional_call(self.net, weights, (places, value, past))
        loss = F.binary_cross_entropy_with_logits(z, y.to(z.dtype))
        grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        self._steps += 1
        rate = self.params.lr * (1 - BETAS[1] ** self._steps) ** 0.5 / (1 - BETAS[0] ** self._steps)
        with torch.no_grad():
            for (name, weight), grad in zip(self._weights.items(), grads, strict=True):
                if grad is None:
                    continue
                at = used if name in TABLES else slice(None)
                m, v = (slot[at] for slot in self._slots[name])
                m = BETAS[0] * m + (1 - BETAS[0]) * grad
                v = BETAS[1] * v + (1 - BETAS[1]) * grad * grad
                self._slots[name][0][at], self._slots[name][1][at] = m, v
                kept = 1 - self.params.lr * self.params.weight_decay * (weight.dim() > 1)
                weight.data[at] = kept * weight.data[at] - rate * m / (v.sqrt() + EPS)

    def _fit_source(self, x: Array, y: Array) -> None:
        """Passes over the source until the log loss of its last tenth has not fallen for two; the best weights stay."""
        x, y = np.asarray(x, np.float64), np.asarray(y)
        self._source_rows = len(x)
        self._observe(x)
        rows, value = self._inputs(x)
        past = self._histories(x, y)
        train = len(x) - int(HELD_OUT * len(x))
        order = torch.Generator().manual_seed(self.seed)
        best, kept, worse = np.inf, {n: w.data.clone() for n, w in self._weights.items()}, 0
        for _ in range(self.params.epochs):
            for i in torch.randperm(train, generator=order).split(self.params.source_batch):
                self._step(rows[i], value[i], None if past is None else past[i], torch.from_numpy(y)[i])
            loss = self._loss(rows, value, past, y, train)
            worse = 0 if loss < best else worse + 1
            if loss < best:
                best, kept = loss, {n: w.data.clone() for n, w in self._weights.items()}
            if worse == PATIENCE:
                break
        for name, weight in self._weights.items():
            weight.data.copy_(kept[name])

    def _histories(self, x: Array, y: Array) -> Tensor | None:
        """What each row of the source would have seen, in its order."""
        if self.params.kind != "din":
            return None
        past = np.empty((len(x), self.params.history), np.int64)
        for i in range(len(x)):
            past[i] = self._past(x[i : i + 1])[0]
            self._clicked(x[i : i + 1], y[i : i + 1])
        return torch.from_numpy(past)

    def _loss(self, rows: Tensor, value: Tensor, past: Tensor | None, y: Array, start: int) -> float:
        """Mean log loss of the rows from ``start`` on; of all where there are none."""
        start = start if start < len(y) else 0
        with torch.inference_mode():
            z, _ = self.net(rows[start:], value[start:], None if past is None else past[start:])
            return float(F.binary_cross_entropy_with_logits(z, torch.from_numpy(y[start:]).to(z.dtype)))

    # --- state --------------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        table = sum(self._weights[n].numel() * 4 for n in TABLES if n in self._weights)
        return {"embedding_bytes": table, "source_rows": self._source_rows}

    def state(self) -> State:
        return {
            "net": {n: w.data for n, w in self._weights.items()},
            "slots": {n: list(pair) for n, pair in self._slots.items()},
            "steps": self._steps,
            "moments": self._moments,
            "history": self._history,
            "source_rows": self._source_rows,
        }

    def load(self, state: State) -> None:
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(torch.as_tensor(state["net"][name]))
                for slot, had in zip(self._slots[name], state["slots"][name], strict=True):
                    slot.copy_(torch.as_tensor(had))
        self._steps, self._source_rows = int(state["steps"]), int(state["source_rows"])
        self._moments, self._history = np.array(state["moments"]), np.array(state["history"])


def _widths(text: str) -> tuple[int, ...]:
    return tuple(int(w) if w.isdecimal() else 0 for w in text.split("-"))
