"""Streams of our own that need no file: ``two-regimes`` and ``digits``."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .corruption import corrupt
from .drift import concat
from .events import Array, Batch
from .sources import BLOCK, Block, BlockStream, Position, from_arrays
from .spec import Column, InputError, Stream, StreamSpec


@dataclass(frozen=True)
class TwoRegimes:
    """n: rows in all."""

    n: int = 10_000


class TwoRegimeBlocks:
    """Rows drawn block by block, each block from a generator of its own."""

    def __init__(self, n: int, seed: int) -> None:
        self.start: Position = {"row": 0}
        self.n, self.seed = n, seed
        self.weights = np.random.default_rng([seed, 0]).normal(size=(2, 8))

    def read(self, at: Position) -> Block:
        row = at["row"]
        size = min(BLOCK, self.n - row)
        if size <= 0:
            return Block([], None)
        x = np.random.default_rng([self.seed, 1 + row // BLOCK]).uniform(-1.0, 1.0, (BLOCK, 9))[:size]
        scores: Array = x[:, 1:] @ self.weights.T
        y = (np.where(x[:, 0] > 0, scores[:, 1], scores[:, 0]) > 0).astype(np.int64)
        batch = Batch(np.arange(row, row + size, dtype=np.int64), x, float(row), y)
        return Block([batch], {"row": row + size} if row + size < self.n else None)


def two_regimes(params: TwoRegimes, seed: int) -> Stream:
    """x ~ U(-1, 1)^9; the sign of x_0 says which of two linear rules decides: y = 1 if x_1..8 . W_k > 0, W ~ N(0, 1).

    No drift in time: it shows whether a learner can route rows to experts. Source: the third check stream of our
    DriftMoE note.
    """
    columns = tuple(Column(f"x{j}", missing=False) for j in range(9))
    spec = StreamSpec("two-regimes", columns, classes=("0", "1"), length=max(0, params.n))
    return BlockStream(spec, TwoRegimeBlocks(params.n, seed))


@dataclass(frozen=True)
class Digits:
    """severity: 1 to 5, of the corruptions. width: rows over which the gradual change spreads. rows: of each of the
    five parts (at most 1797, the number of images).
    """

    severity: int = 4
    width: int = 600
    rows: int = 1797


def digits(params: Digits, seed: int) -> Stream:
    """Scikit-learn's 1,797 handwritten digits (8 x 8 pixels, 0..16), passed five times, each time in a new order.

    Clean; wires of the sensor swapped (abrupt: 40 to 100 % of the pixels change places); contrast inverted and noise
    (gradual); clean again (abrupt, recurring); wires swapped again, the same ones (abrupt, recurring). Every image
    comes once in each part, so a learner that remembers images gains from the second part on.
    """
    from sklearn.datasets import load_digits

    if not 1 <= params.rows <= 1797:
        raise InputError(f"digits: rows must be 1 to 1797, not {params.rows}")
    images, labels = load_digits(return_X_y=True)
    names = [f"pixel {r}.{c}" for r in range(8) for c in range(8)]
    columns = tuple(Column(name, missing=False) for name in names)
    parts: list[Stream] = []
    for k in range(5):
        order = np.random.default_rng([seed, k]).permutation(len(images))[: params.rows]
        spec = StreamSpec(
            "digits", columns, classes=tuple("0123456789"), length=params.rows, shape=(8, 8), target_name="digit"
        )
        parts.append(from_arrays(images[order], labels[order], spec=spec))
    level = params.severity
    swapped = [corrupt(parts[k], "permute", level, seed=seed) for k in (1, 4)]
    inverted = corrupt(corrupt(parts[2], "invert", 5, seed=seed), "gaussian_noise", level, seed=seed)
    names = ["clean", "wires swapped", "inverted and noisy", "clean again", "wires swapped again"]
    sequence = [parts[0], swapped[0], inverted, parts[3], swapped[1]]
    stream = concat(*sequence, width=[0, params.width, 0, 0], seed=seed, names=names)
    stream.spec = replace(stream.spec, name="digits")
    return stream
