"""ACU: a closed-form head on frozen features, learnt and truly forgotten by adding and subtracting sums.

    learn (x, y):   A += x x^T,  B += x y^T,  note the row     x = relu(phi(row) P), y one-hot
    forget (ids):   find the rows, or refuse;  A -= x x^T,  B -= x y^T,  erase the row
    predict:        argmax_c x^T W over the classes that have rows,  A W = B

From the paper (arXiv 2505.12239 v1, Tang, Zhuang, Fang et al.; its abstract, the body was not readable to us): a
frozen backbone, forgetting as the recursion of analytic continual learning run backwards, equality with training anew
on what remains. From the code of ACIL / G-ACIL: the ridge head, gamma 0.1, the random ReLU expansion, no bias. Ours:
the list of learnt rows that a request is checked against, the certificate, retired classes, everything under
"Our choices" in ``models/analytic.py``, and answers as softmax(x^T W / temperature).

What is kept to forget by id alone (keep="rows", the default): the base features z of every learnt row, 4 bytes a
number (3.1 kB a row of 784 pixels, 188 MB for 60,000), its label, group and digest: personal data for as long as the
row is not forgotten. keep="digests" keeps 40 bytes a row and no features; whoever asks then hands the rows over
(``forget_rows``), which are compared with the digests. groups=True then keeps a record of each group as well, at most
d x d numbers, by which the group can be forgotten without its rows.

The head equals the one trained on the remaining rows. The backbone is another matter: it is said where it comes from,
and nothing is called exact where it may have been trained on what is to be forgotten. A state before and one after a
request give the forgotten rows' features away: keep states confidential and delete old ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from ...models.analytic import NotContained, Record, StateCorrupt
from ...models.analytic_inverse import SHARE
from ...models.feature_maps import Expansion, FeatureMap
from ...streams import Array, Batch, Boundary, InputError, StreamSpec
from ..learner import CannotForget, Learner, Prediction, Receipt, State
from ..learnt import Learnt
from ..state import copy_state
from .acu_parts import engine, feature_map, guarantee


class ACU(Learner):
    """Learns and forgets rows, classes and groups exactly; see the text at the head of this file.

    features: a frozen map of one's own instead of the named backbone.
    """

    @dataclass(frozen=True)
    class Params:
        """Settings of ACU."""

        backbone: str = "identity"
        """Base features: identity, onnx:PATH, or a network such as convnet:16-32 or torchvision:resnet18."""
        weights: str = ""
        """Safetensors file with the backbone's weights; without it they are drawn."""
        provenance: Literal["auto", "public", "disjoint", "contains_user_data"] = "auto"
        """What the backbone was trained on; auto: drawn, or unknown."""
        width: int = 512
        """Features after the random expansion; 0: the base features themselves."""
        projection: Literal["gaussian", "uniform"] = "gaussian"
        """How the expansion is drawn."""
        gamma: float = 0.1
        """Of the ridge."""
        exact: Literal["float", "bitwise"] = "float"
        """bitwise: sums of integers, equal in every bit to never having learnt."""
        bits: int = 8
        """Features are multiples of 2^-bits where sums are integers."""
        engine: Literal["statistics", "low-latency", "float32"] = "statistics"
        """What is kept: the sums, the inverse as well, or the factor in single precision."""
        weighting: Literal["none", "air"] = "none"
        """air: every class counts alike, whatever its number of rows."""
        keep: Literal["rows", "digests"] = "rows"
        """What is kept of a learnt row to take it out again."""
        groups: bool = False
        """Tell the rows between two boundaries apart, so that they can be forgotten together; without kept rows by a
        record of each group."""
        salt: str = ""
        """Secret of the digests; needed where rows are not kept."""
        certificate: Literal["full", "quick"] = "full"
        """full: digests of the sums and the residual's bound; quick: digests of the list of learnt rows, no bound."""
        alert: int = 5
        """A certificate names the classes that a request leaves with fewer rows than this."""
        temperature: float = 0.15
        """Of the softmax that turns the head's answers into scores."""

        def __post_init__(self) -> None:
            if not (0 < self.gamma < np.inf and 0 < self.temperature < np.inf and self.width >= 0):
                raise ValueError("gamma and temperature are above 0, width is at least 0")
            if not 0 <= self.bits <= 12:
                raise ValueError("bits lie between 0 and 12")
            if self.engine != "statistics" and (self.exact == "bitwise" or self.weighting == "air"):
                raise ValueError("bitwise sums and class weights need the engine statistics")
            if self.keep == "digests" and not self.salt:
                raise ValueError("keep=digests needs a salt: digests alone could be guessed")
            plain = self.engine != "float32" and self.exact == "float" and self.weighting == "none"
            if self.groups and self.keep == "digests" and not plain:
                raise ValueError("records of groups are kept in float64, for the engines statistics and low-latency")

    def __init__(
        self, spec: StreamSpec, params: Params | None = None, seed: int = 0, *, features: FeatureMap | None = None
    ) -> None:
        super().__init__(spec, params, seed)
        p: ACU.Params = self.params
        if features is None:
            features = feature_map(spec, p.backbone, p.weights, p.provenance, seed)
        self.features = features
        bitwise = p.exact == "bitwise"
        self.expand = Expansion(features.width, p.width, drawn=p.projection, seed=seed, exact=bitwise)
        self.head: Any = self._new_head()
        self.learnt = Learnt(features.width if p.keep == "rows" else None, f"{seed} {p.salt}".encode())
        self.records: dict[int, Record] = {}
        self.group = 0
        """How many boundaries there were: the group of the rows that are learnt now."""
        self.changes = 0
        self._keeps_records = p.groups and p.keep == "digests"
        if p.groups:
            self.needs = frozenset({"boundaries"})

    def _new_head(self) -> Any:
        p = self.params
        bits = p.bits if p.exact == "bitwise" else None
        return engine(p.engine, self.expand.width, self.spec.n_classes or 0, p.gamma, bits, p.weighting == "air")

    # --- the algorithm ------------------------------------------------------------------------------------------

    def predict(self, batch: Batch) -> Prediction:
        scores = self._scores(self.expand(self.features(_rows(batch))))
        return Prediction(scores.argmax(axis=1), scores)

    def learn(self, batch: Batch, prediction: Prediction) -> None:
        assert batch.y is not None
        if self.learnt.barred:
            batch = batch.rows(
                np.array([i for i, row in enumerate(batch.ids.tolist()) if row not in self.learnt.barred], int)
            )
        if not len(batch):
            return
        z, y = self.features(_rows(batch)), np.asarray(batch.y)
        x, targets = self.expand(z), self._targets(y)
        self._sound(partial(self.head.learn, x, targets))
        self.learnt.add(batch.ids, z, y, self.group)
        if self._keeps_records:
            self.records.setdefault(self.group, Record(self.expand.width)).add(x, targets)
        self.changes += 1

    def forget(self, ids: Array) -> Receipt:
        """Take these rows out, all of them or none; ``CannotForget`` with the reason."""
        places = self.learnt.find(ids)
        return self._take_out("ids", places, *self.learnt.rows(places))

    def forget_rows(self, batch: Batch) -> Receipt:
        """The same, with the rows and labels handed over and compared with what was learnt."""
        places = self.learnt.find(batch.ids)
        if batch.y is None or len(places) != len(batch):
            raise CannotForget("every row is to be handed over once, with its label, and was learnt once")
        shape = _rows(batch).shape
        if shape != (len(batch), self.spec.n_features):
            raise CannotForget(f"rows have shape {shape[1:]}, those learnt have {self.spec.n_features} columns")
        z, y = self.features(_rows(batch)), np.asarray(batch.y)
        self.learnt.check(places, z, y)
        return self._take_out("rows", places, z, y)

    def forget_whole(self, kind: str, number: int) -> Receipt:
        """Take out all rows of a class or group."""
        if kind not in ("class", "group") or (kind == "group" and not self.params.groups):
            raise CannotForget(f"there are no {kind}s here" + "; groups=true tells them apart" * (kind == "group"))
        places = self.learnt.everywhere(**{"label" if kind == "class" else "group": number})
        if not len(places):
            raise CannotForget(f"there are no learnt rows of {kind} {number}")
        if self.params.keep == "rows":
            return self._take_out(kind, places, *self.learnt.rows(places))
        return self._take_out_whole(kind, number, places)

    # --- taking out ---------------------------------------------------------------------------------------------

    def _take_out(self, kind: str, places: Array, z: Array, y: Array) -> Receipt:
        before, counts = self._digest(), self.head.counts.copy()
        if len(places):
            x, targets = self.expand(z), self._targets(y)
            forget = partial(self.head.forget, x, targets, sure=True)
            kept = self.params.engine == "statistics" or len(places) > self.expand.width // SHARE
            rebuilt = self._out_of_head(places, forget, kept=kept)
            if self._keeps_records:
                self._out_of_records(places, x, targets)
        else:
            rebuilt = False
        return self._receipt(kind, places, before, counts, rebuilt)

    def _out_of_head(self, places: Array, work: Callable[[], None], *, kept: bool) -> bool:
        """Do the work on the head, or, where its numbers are damaged, make it anew from the rows that are kept; returns
        whether it had to be.

        kept: take a copy first, for work that leaves something behind where it fails and no rows to make it anew from.
        """
        before = copy_state(self.head.state()) if kept and self.params.keep == "digests" else None
        try:
            work()
            if self.params.engine == "statistics":
                self.head.weights()
        except NotContained as fault:
            raise CannotForget(f"the model does not contain these rows: {fault}") from None
        except StateCorrupt as fault:
            if self.params.keep == "rows":
                self._rebuild(places)
                return True
            if before is not None:
                self.head.load(before)
            raise CannotForget(f"the model is damaged, and no rows are kept to make it anew from: {fault}") from None
        return False

    def _take_out_whole(self, kind: str, number: int, places: Array) -> Receipt:
        """Without the rows: a class whose sums are apart, or a group that has a record."""
        before, counts = self._digest(), self.head.counts.copy()
        if kind == "class" and self.params.weighting == "air":
            self.head.forget_class(number)
        elif kind == "group" and number in self.records:
            record = self.records[number]
            subtract = partial(self.head.subtract, record.rows, record.cross, record.counts)
            self._out_of_head(places, subtract, kept=True)
            del self.records[number]
        else:
            raise CannotForget(f"rows are not kept, and nothing else by which a {kind} could be forgotten")
        return self._receipt(kind, places, before, counts, False)

    def _out_of_records(self, places: Array, x: Array, targets: Array) -> None:
        groups = self.learnt.groups(places)
        for group in np.unique(groups).tolist():
            some = groups == group
            self.records[group].remove(x[some], targets[some])
            if not self.records[group].counts.any():
                del self.records[group]

    def _rebuild(self, places: Array) -> None:
        """The sums anew from the rows that are kept, but for those to be forgotten."""
        others = np.setdiff1d(self.learnt.everywhere(), places)
        self.head = self._new_head()
        for at in range(0, len(others), 1024):
            z, y = self.learnt.rows(others[at : at + 1024])
            self.head.learn(self.expand(z), self._targets(y))

    def _receipt(self, kind: str, places: Array, before: str, counts: Array, rebuilt: bool) -> Receipt:
        p = self.params
        ids, digests = self.learnt.ids(places), self.learnt.hex_digests(places)
        by_id: dict[str, list[str]] = {}
        for row, digest in zip(ids.tolist(), digests):
            by_id.setdefault(str(row), []).append(digest)
        copies = self.learnt.erase(places)
        self.changes += 1
        certificate = {
            "kind": kind,
            "rows": len(places),
            "digests": by_id,
            "equal_rows_left": copies,
            "thin_classes": np.flatnonzero((self.head.counts < counts) & (self.head.counts < p.alert)).tolist(),
            "counts_before": counts.tolist(),
            "counts_after": self.head.counts.tolist(),
            "bound": self.head.bound() if p.certificate == "full" else None,
            "smallest_pivot": float(self.head.pivot) if np.isfinite(self.head.pivot) else None,
            "followed_error": getattr(self.head, "error", None),
            "rebuilt": rebuilt,
            "engine": p.engine,
            "exact": p.exact,
            "gamma": p.gamma,
            "features": self.features.digest,
            "provenance": self.features.provenance,
            "expansion": self.expand.digest,
            "numpy": np.__version__,
        }
        said = guarantee(p.exact, p.engine, self.features.provenance)
        return Receipt(tuple(dict.fromkeys(ids.tolist())), before, self._digest(), said, certificate)

    def _digest(self) -> str:
        """Of the sums, or, where that would take longer than the request, of what they are sums of."""
        found: str = self.head.digest() if self.params.certificate == "full" else self.learnt.digest()
        return found

    def bar(self, ids: Array) -> None:
        there = self.learnt.known(ids)
        if len(there):
            self.forget(there)
        self.learnt.barred |= set(np.asarray(ids).tolist())

    def boundary(self, event: Boundary) -> None:
        self.group += 1

    # --- rows and answers ---------------------------------------------------------------------------------------

    def _targets(self, y: Array) -> Array:
        """One-hot, float64[m, C]."""
        classes = max(self.head.classes, int(y.max()) + 1)
        targets = np.zeros((len(y), classes))
        targets[np.arange(len(y)), y] = 1.0
        return targets

    def _scores(self, x: Array) -> Array:
        """softmax(x W / temperature) over the classes that have rows; all classes alike where none has."""
        there = self.head.counts > 0
        scores = np.zeros((len(x), max(1, self.head.classes)))
        if not there.any():
            scores[...] = 1 / scores.shape[1]
            return scores
        z = (x @ self._sound(self.head.weights)[:, there]) / self.params.temperature
        z = np.exp(z - z.max(axis=1, keepdims=True))
        scores[:, there] = z / z.sum(axis=1, keepdims=True)
        return scores

    def _sound(self, work: Callable[[], Any]) -> Any:
        """What the work on the head returns; ``InputError`` where rounding leaves no head to compute."""
        try:
            return work()
        except StateCorrupt as fault:
            g = self.params.gamma
            raise InputError(f"acu: gamma {g:g} is too small for features of this size ({fault})") from None

    def probe(self, x: Array) -> Any:
        rows = self.expand(self.features(x))
        return lambda: self._scores(rows)

    def version(self) -> int | None:
        return self.changes

    # --- state --------------------------------------------------------------------------------------------------

    def telemetry(self) -> dict[str, float]:
        return {"learnt": float(self.head.n), "forgotten": float(sum(self.learnt.forgotten.values()))}

    def facts(self) -> dict[str, Any]:
        return {
            "features": self.features.width,
            "provenance": self.features.provenance,
            "learnt_sha256": self.learnt.digest(),
            "head_sha256": None if self.params.engine == "low-latency" else self.head.digest(),
        }

    def state(self) -> State:
        return {
            "head": self.head.state(),
            "learnt": self.learnt.state(),
            "records": {str(k): r.state() for k, r in self.records.items()},
            "features": self.features.digest,
            "expansion": self.expand.digest,
            "group": self.group,
            "changes": self.changes,
        }

    def load(self, state: State) -> None:
        if state["features"] != self.features.digest:
            raise InputError("acu: the backbone is not the one that the state was made with; its features differ")
        if state["expansion"] != self.expand.digest:
            raise InputError(
                "acu: the expansion is not the one that the state was made with: other width, seed or grid"
            )
        self.head.load(state["head"])
        self.learnt.load(state["learnt"])
        self.records = {int(k): Record.from_state(r) for k, r in state["records"].items()}
        self.group, self.changes = int(state["group"]), int(state["changes"])


def _rows(batch: Batch) -> Array:
    assert isinstance(batch.x, np.ndarray)
    return batch.x
