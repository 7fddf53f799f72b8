"""Gradient methods that forget approximately, and ACU, beside training anew: the gap after every request.

Scikit-learn's digits, 1,257 training rows; an MLP 64-100-10 trained by SGD, then requests, one after the other, each
method going on from where its last request left it: ten of 25 random rows, and three of a whole class. The gap is the
mean absolute difference to the model trained anew on what remains (accuracy on retained, forgotten and held-out rows,
membership AUC), the network from the same first weights and order of rows for the gradient methods, the ridge head for
ACU; the membership difference (the model's AUC minus that of training anew) stands beside it. "anew, other seed" is
what two trainings of the network differ by: nearer than that no one needs to be.

Each method has the best of six settings (``GRID``), chosen for each kind of request by its mean gap on seeds 10 and 11:
by the distance to training anew, which nobody who wants to avoid training anew knows. Figures are means over seeds 0,
1, 2. ours is ACU's, peer the method's; ratio peer / ours of a gap where ACU's is not zero.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ...evaluation.unlearning import Standing, average_gap
from ...models.analytic import Array, Statistics
from ...models.approximate_unlearning import METHODS, Rows, Steps, train
from ...models.feature_maps import Expansion
from ...streams.images import digits_images
from . import Row

SEEDS, TUNED_ON = (0, 1, 2), (10, 11)
TRAINING = Steps(epochs=40, rate=0.05)
GRID: dict[str, tuple[Steps, ...]] = {
    "finetune": tuple(Steps(e, r) for e in (1, 3, 6) for r in (0.02, 0.1)),
    "neg-grad": tuple(Steps(e, climb=c) for e in (1, 3) for c in (0.0005, 0.003, 0.02)),
    "neg-grad+": tuple(Steps(3, r, alpha=a) for r in (0.02, 0.05) for a in (0.5, 0.8, 0.95)),
    "scrub": tuple(Steps(3, r, climb=c) for r in (0.02, 0.05) for c in (0.005, 0.02, 0.1)),
    "salun": tuple(Steps(3, r, share=s) for r in (0.02, 0.05) for s in (0.1, 0.5, 1.0)),
}
OTHER = "anew, other seed"
CLASSES = (3, 8, 1)

Curves = dict[str, list[tuple[float, float]]]
"""Of every method the gap and the membership difference after every request."""


@dataclass(frozen=True)
class Kind:
    """Requests of one kind. count, size: how many there are, and of how many random rows. tuned: how many of them
    settings are chosen by. A size of 0 stands for whole classes."""

    name: str
    count: int
    size: int
    tuned: int


KINDS = (Kind("random rows", 10, 25, 4), Kind("class", len(CLASSES), 0, 2))


def measure() -> list[Row]:
    """Two rows for every kind of request, request and method: about three minutes."""
    return [row for kind in KINDS for row in _measure(kind)]


def _measure(kind: Kind) -> list[Row]:
    chosen = tuned(kind)
    found = [curves(_Data(seed, kind), seed, chosen) for seed in SEEDS]
    means = {name: np.mean([np.array(one[name]) for one in found], axis=0) for name in found[0]}
    ours = means.pop("acu")
    return [
        {
            "bench": "acu-baselines",
            "case": f"{name}, {kind.name}, request {k + 1}",
            "unit": unit,
            "ours": float(ours[k, j]),
            "peer": float(mean[k, j]),
            "peer_name": f"{name}: {_words(name, chosen)}" if name in METHODS else name,
            "ratio": float(mean[k, j] / ours[k, j]) if unit == "gap" and ours[k, j] else None,
            "floor": None,
        }
        for name, mean in means.items()
        for k in range(len(mean))
        for j, unit in enumerate(("gap", "membership difference"))
    ]


def _words(name: str, chosen: dict[str, Steps]) -> str:
    """The setting of a method, as far as it depends on it."""
    steps = chosen[name]
    more = {"neg-grad+": f", alpha {steps.alpha}", "scrub": f", climb {steps.climb}", "salun": f", share {steps.share}"}
    rate = f"climb {steps.climb}" if name == "neg-grad" else f"rate {steps.rate}"
    return f"{steps.epochs} epochs, {rate}{more.get(name, '')}"


def tuned(kind: Kind, seeds: Sequence[int] | None = None) -> dict[str, Steps]:
    """Of every method the setting of the least mean gap."""
    gaps: dict[str, list[Array]] = {name: [] for name in METHODS}
    for seed in TUNED_ON if seeds is None else seeds:
        data = _Data(seed, kind)
        first = _network(data.retained(0), seed, TRAINING)
        anew = [data.standing(_network(data.retained(k), seed, TRAINING), k) for k in range(1, kind.tuned + 1)]
        for name, settings in GRID.items():
            means = [np.mean([g for g, _ in _course(data, first, name, s, seed, anew)]) for s in settings]
            gaps[name].append(np.array(means))
    return {name: GRID[name][int(np.sum(found, axis=0).argmin())] for name, found in gaps.items()}


def curves(data: _Data, seed: int, chosen: dict[str, Steps], training: Steps | None = None) -> Curves:
    """Of every method, of training with another seed, and of ACU."""
    training = training or TRAINING
    first = _network(data.retained(0), seed, training)
    anew = [data.standing(_network(data.retained(k), seed, training), k) for k in range(1, data.requests + 1)]
    found = {name: _course(data, first, name, chosen[name], seed, anew) for name in METHODS}
    others = [_network(data.retained(k + 1), seed + 100, training) for k in range(data.requests)]
    found[OTHER] = [_gap(data.standing(net, k), anew[k - 1]) for k, net in enumerate(others, start=1)]
    found["acu"] = _exact(data, seed)
    return found


def _course(
    data: _Data, first: nn.Module, name: str, steps: Steps, seed: int, anew: list[Standing]
) -> list[tuple[float, float]]:
    """One method through as many requests as there are models trained anew."""
    net = copy.deepcopy(first)
    found = []
    for k, reference in enumerate(anew, start=1):
        generator = torch.Generator().manual_seed(1_000 * seed + k)
        METHODS[name](net, data.retained(k), data.rows(data.gone[k - 1], data.gone[k]), steps, generator)
        found.append(_gap(data.standing(net, k), reference))
    return found


def _exact(data: _Data, seed: int) -> list[tuple[float, float]]:
    """The ridge head that forgets, beside one that learns what remains."""
    head, expand = Statistics(256, 10), Expansion(64, 256, seed=seed)

    def features(first: int, last: int) -> tuple[Array, Array]:
        return expand(data.x[first:last].astype(np.float64)), np.eye(10)[data.y[first:last]]

    head.learn(*features(0, len(data.y)))
    found = []
    for k in range(1, data.requests + 1):
        head.forget(*features(data.gone[k - 1], data.gone[k]), sure=True)
        fresh = Statistics(256, 10)
        fresh.learn(*features(data.gone[k], len(data.y)))
        found.append(_gap(*(data.standing_of(expand, h, k) for h in (head, fresh))))
    return found


def _gap(one: Standing, anew: Standing) -> tuple[float, float]:
    return average_gap(one, anew), one.membership - anew.membership


class _Data:
    """Training rows in the order in which they are forgotten, and held-out rows.

    gone: how many rows are forgotten after 0, 1, 2, ... requests.
    """

    def __init__(self, seed: int, kind: Kind) -> None:
        images = digits_images()
        x, self.x_test = (part.reshape(len(part), -1).astype(np.float32) for part in (images.x, images.x_test))
        order = np.random.default_rng(seed).permutation(len(x))
        self.requests = kind.count
        self.gone = [kind.size * k for k in range(kind.count + 1)]
        if not kind.size:
            last = len(CLASSES)
            place = np.full(10, last)
            place[list(CLASSES)] = np.arange(last)
            of = place[images.y[order]]
            order = order[np.argsort(of, kind="stable")]
            self.gone = [0, *np.cumsum([(of == k).sum() for k in range(kind.count)]).tolist()]
        self.x, self.y, self.y_test = x[order], images.y[order], images.y_test

    def rows(self, first: int, last: int) -> Rows:
        return Rows(torch.from_numpy(self.x[first:last]), torch.from_numpy(self.y[first:last]))

    def retained(self, k: int) -> Rows:
        """What remains after k requests."""
        return self.rows(self.gone[k], len(self.y))

    def standing(self, net: nn.Module, k: int) -> Standing:
        """Of a network after k requests."""

        def ask(x: Array) -> Array:
            with torch.inference_mode():
                found: Array = torch.softmax(net(torch.from_numpy(x)).double(), 1).numpy()
            return found

        return self._standing(ask(self.x), ask(self.x_test), k)

    def standing_of(self, expand: Expansion, head: Statistics, k: int) -> Standing:
        """Of a ridge head; its answers as probabilities as the learner gives them."""

        def ask(x: Array) -> Array:
            z = expand(x.astype(np.float64)) @ head.weights() / 0.15
            z[:, head.counts == 0] = -np.inf
            z = np.exp(z - z.max(axis=1, keepdims=True))
            found: Array = z / z.sum(axis=1, keepdims=True)
            return found

        return self._standing(ask(self.x), ask(self.x_test), k)

    def _standing(self, p: Array, p_test: Array, k: int) -> Standing:
        gone = self.gone[k]
        return Standing.of(p[gone:], p[:gone], p_test, [self.y[gone:], self.y[:gone], self.y_test])


def _network(rows: Rows, seed: int, training: Steps) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    train(net, rows, training, torch.Generator().manual_seed(seed))
    return net
