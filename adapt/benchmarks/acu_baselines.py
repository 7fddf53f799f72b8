"""Gradient methods that forget approximately, and ACU, beside training anew: the gap after every request.

Scikit-learn's digits, 1,257 training rows; an MLP 64-100-10 trained by SGD, then requests of 25 random rows, one after
the other, each method going on from where its last request left it. The gap is the mean absolute difference to the
model trained anew on what remains (accuracy on retained, forgotten and held-out rows, membership AUC), the network
from the same first weights and order of rows for the gradient methods, the ridge head for ACU. "anew, other seed" is
what two trainings of the network differ by: nearer than that no one needs to be.

ours is ACU's gap, peer the method's, ratio peer / ours where ACU's is not zero; means over seeds 0, 1, 2. The steps of
the methods were not tuned on these rows; a method that is tuned for each request would be nearer.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from ...evaluation.unlearning import Standing, average_gap
from ...models.analytic import Array, Statistics
from ...models.approximate_unlearning import METHODS, Rows, Steps, train
from ...models.feature_maps import Expansion
from ...streams.images import digits_images
from . import Row

SEEDS = (0, 1, 2)
REQUESTS, SIZE = 10, 25
TRAINING = Steps(epochs=40, rate=0.05)
FORGETTING = Steps(epochs=3, rate=0.02, climb=0.005)
OTHER = "anew, other seed"


def measure() -> list[Row]:
    """A row for every request and method: about a minute."""
    gaps: dict[str, list[Array]] = {}
    for seed in SEEDS:
        for name, curve in curves(seed).items():
            gaps.setdefault(name, []).append(np.array(curve))
    means = {name: np.mean(found, axis=0) for name, found in gaps.items()}
    ours = means.pop("acu")
    return [
        {
            "bench": "acu-baselines",
            "case": f"{name}, request {k + 1}",
            "unit": "gap",
            "ours": float(ours[k]),
            "peer": float(mean[k]),
            "peer_name": name,
            "ratio": float(mean[k] / ours[k]) if ours[k] else None,
            "floor": None,
        }
        for name, mean in means.items()
        for k in range(len(mean))
    ]


def curves(seed: int, requests: int = REQUESTS, training: Steps = TRAINING) -> dict[str, list[float]]:
    """The gap after every request, of every method."""
    images = digits_images()
    x, x_test = (part.reshape(len(part), -1).astype(np.float32) for part in (images.x, images.x_test))
    order = np.random.default_rng(seed).permutation(len(x))
    data = _Data(x[order], images.y[order], x_test, images.y_test)
    first = _network(data.everything(0), seed, training)
    nets = {name: copy.deepcopy(first) for name in METHODS}
    head, expand = Statistics(256, 10), Expansion(64, 256, seed=seed)
    _learn(head, expand, data.x, data.y)
    found: dict[str, list[float]] = {name: [] for name in (*METHODS, OTHER, "acu")}
    for k in range(requests):
        gone = (k + 1) * SIZE
        retained, request = data.everything(gone), data.rows(gone - SIZE, gone)
        anew = data.standing(_network(retained, seed, training), gone)
        for i, (name, net) in enumerate(nets.items()):
            generator = torch.Generator().manual_seed(1_000 * seed + 100 * i + k)
            METHODS[name](net, retained, request, FORGETTING, generator)
            found[name].append(average_gap(data.standing(net, gone), anew))
        found[OTHER].append(average_gap(data.standing(_network(retained, seed + 100, training), gone), anew))
        features = expand(data.x[gone - SIZE : gone].astype(np.float64))
        head.forget(features, np.eye(10)[data.y[gone - SIZE : gone]], sure=True)
        fresh = Statistics(256, 10)
        _learn(fresh, expand, data.x[gone:], data.y[gone:])
        one, other = (data.standing_of(expand, h.weights(), gone) for h in (head, fresh))
        found["acu"].append(average_gap(one, other))
    return found


class _Data:
    """Training rows in the order in which they are forgotten, and held-out rows."""

    def __init__(self, x: Array, y: Array, x_test: Array, y_test: Array) -> None:
        self.x, self.y, self.x_test, self.y_test = x, y, x_test, y_test

    def rows(self, first: int, last: int) -> Rows:
        return Rows(torch.from_numpy(self.x[first:last]), torch.from_numpy(self.y[first:last]))

    def everything(self, gone: int) -> Rows:
        return self.rows(gone, len(self.y))

    def standing(self, net: nn.Module, gone: int) -> Standing:
        """Of a network after the first ``gone`` rows were forgotten."""

        def ask(x: Array) -> Array:
            with torch.inference_mode():
                found: Array = torch.softmax(net(torch.from_numpy(x)).double(), 1).numpy()
            return found

        return self._standing(ask(self.x), ask(self.x_test), gone)

    def standing_of(self, expand: Expansion, w: Array, gone: int) -> Standing:
        """Of a ridge head; its answers as probabilities as the learner gives them."""

        def ask(x: Array) -> Array:
            z = expand(x.astype(np.float64)) @ w / 0.15
            z = np.exp(z - z.max(axis=1, keepdims=True))
            found: Array = z / z.sum(axis=1, keepdims=True)
            return found

        return self._standing(ask(self.x), ask(self.x_test), gone)

    def _standing(self, p: Array, p_test: Array, gone: int) -> Standing:
        return Standing.of(p[gone:], p[:gone], p_test, [self.y[gone:], self.y[:gone], self.y_test])


def _network(rows: Rows, seed: int, training: Steps) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    train(net, rows, training, torch.Generator().manual_seed(seed))
    return net


def _learn(head: Statistics, expand: Expansion, x: Array, y: Array) -> None:
    head.learn(expand(x.astype(np.float64)), np.eye(10)[y])
