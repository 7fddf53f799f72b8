"""Covariate shift as composition: the same rows, seen through worse sensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .cifar_c import CIFAR_C, need_images, weathered
from .events import Array, Batch, Boundary, Event
from .feed import Feed, Mapped, normal, uniform
from .spec import Experience, InputError, Stream, StreamSpec

SHARES = (0.05, 0.1, 0.2, 0.35, 0.5)


@dataclass(frozen=True)
class Scale:
    """What is normal for each column, from the first batch: centre, spread, least and greatest (float64[d])."""

    spec: StreamSpec
    centre: Array
    spread: Array
    low: Array
    high: Array

    @property
    def numeric(self) -> Array:
        return np.array([c.categories is None for c in self.spec.columns])

    def clip(self, x: Array) -> Array:
        """Images keep to their range; other columns may go anywhere."""
        return x if self.spec.shape is None else np.clip(x, self.low.min(), self.high.max())

    @property
    def light(self) -> tuple[float, float]:
        """What black and white are in images: 0 and 1, or where values leave these, the least and the greatest."""
        low, high = float(self.low.min()), float(self.high.max())
        return (0.0, 1.0) if low >= 0.0 and high <= 1.0 else (low, high)


def _gaussian_noise(x: Array, ids: Array, k: int, seed: int, scale: Scale) -> Array:
    level = (0.2, 0.4, 0.7, 1.0, 1.5)[k]
    return x + level * scale.spread * normal(seed, ids, np.arange(x.shape[1]))


def _impulse_noise(x: Array, ids: Array, k: int, seed: int, scale: Scale) -> Array:
    lanes = np.arange(x.shape[1])
    hit = uniform(seed, ids, lanes) < (0.02, 0.05, 0.1, 0.2, 0.35)[k]
    high = uniform(seed + 1, ids, lanes) < 0.5
    return np.where(hit, np.where(high, scale.high, scale.low), x)


def _scaling(x: Array, ids: Array, k: int, seed: int, scale: Scale) -> Array:  # noqa: ARG001
    return x * (1.2, 1.4, 1.7, 2.0, 3.0)[k]


def _offset(x: Array, ids: Array, k: int, seed: int, scale: Scale) -> Array:  # noqa: ARG001
    return x + (0.25, 0.5, 1.0, 1.5, 2.0)[k] * scale.spread


def _dropout(x: Array, ids: Array, k: int, seed: int, scale: Scale) -> Array:  # noqa: ARG001
    return np.where(_broken(x.shape[1], SHARES[k], seed), scale.low, x)


def _missing(x: Array, ids: Array, k: int, seed: int, scale: Scale) -> Array:  # noqa: ARG001
    return np.where(uniform(seed, ids, np.arange(x.shape[1])) < SHARES[k], np.nan, x)


def _permute(x: Array, ids: Array, k: int, seed: int, scale: Scale) -> Array:  # noqa: ARG001
    wires = np.flatnonzero(_broken(x.shape[1], 2 * SHARES[k], seed) & scale.numeric)
    swapped = x.copy()
    swapped[:, wires] = x[:, np.roll(wires, 1)]
    return swapped


def _invert(x: Array, ids: Array, k: int, seed: int, scale: Scale) -> Array:  # noqa: ARG001
    low, high = (scale.low, scale.high) if scale.spec.shape is None else (scale.low.min(), scale.high.max())
    return np.where(_broken(x.shape[1], 0.2 * (k + 1), seed), low + high - x, x)


def _contrast(x: Array, ids: Array, k: int, seed: int, scale: Scale) -> Array:  # noqa: ARG001
    return scale.centre + (0.75, 0.5, 0.35, 0.2, 0.1)[k] * (x - scale.centre)


def _blur(x: Array, ids: Array, k: int, seed: int, scale: Scale) -> Array:  # noqa: ARG001
    shape = scale.spec.shape or ()
    image = x.reshape(len(x), *shape)
    first = image.ndim - 2 if shape[0] <= min(shape[1:]) else 1  # channels come first, or (in files) perhaps last
    for _ in range(k + 1):
        for axis in (first, first + 1):
            pads = [(1, 1) if a == axis else (0, 0) for a in range(image.ndim)]
            wide = np.pad(image, pads, mode="edge")
            n = image.shape[axis]
            image = (np.take(wide, range(n), axis) + 2 * image + np.take(wide, range(2, n + 2), axis)) / 4
    return image.reshape(x.shape)


def _broken(width: int, share: float, seed: int) -> Array:
    """Which columns are hit: always the same for one seed, at least one, more with a greater share."""
    lots = uniform(seed, np.arange(width))
    return lots <= np.sort(lots)[max(1, min(width, round(share * width))) - 1]


def _cifar_c(kind: str) -> Damage:
    def damage(x: Array, ids: Array, k: int, seed: int, scale: Scale) -> Array:
        low, high = scale.light
        shape = scale.spec.shape or ()
        images = np.clip((x.reshape(len(x), -1, *shape[-2:]) - low) / (high - low), 0.0, 1.0)
        return (low + (high - low) * weathered(images, kind, k + 1, ids, seed)).reshape(x.shape)

    return damage


Damage = Callable[[Array, Array, int, int, Scale], Array]
KINDS: dict[str, Damage] = {
    "gaussian_noise": _gaussian_noise,
    "impulse_noise": _impulse_noise,
    "scaling": _scaling,
    "offset": _offset,
    "dropout": _dropout,
    "missing": _missing,
    "permute": _permute,
    "invert": _invert,
    "contrast": _contrast,
    "blur": _blur,
    **{f"cifar-c:{kind}": _cifar_c(kind) for kind in CIFAR_C},
}
"""The first ten are for any table; those of CIFAR-C are for images, and some share a name but not their meaning."""


def corrupt(
    stream: Stream, kind: str, severity: int = 3, start: int = 0, stop: int | None = None, seed: int = 0
) -> Stream:
    """The rows with ids from ``start`` up to ``stop`` (end: None) as a damaged sensor would give them; labels stay.

    Severity 1..5. What happens to a row depends on the seed and its id only. Kinds: ``gaussian_noise`` (0.2, 0.4,
    0.7, 1, 1.5 standard deviations), ``impulse_noise`` (2, 5, 10, 20, 35 % of cells read least or greatest),
    ``scaling`` (times 1.2, 1.4, 1.7, 2, 3), ``offset`` (0.25, 0.5, 1, 1.5, 2 standard deviations), ``dropout`` (5,
    10, 20, 35, 50 % of columns stuck at their least value), ``missing`` (that share of cells is NaN), ``permute`` (10
    to 100 % of the columns change places), ``invert`` (20 to 100 % of the columns upside down), ``contrast`` (pulled
    to the centre by 0.75, 0.5, 0.35, 0.2, 0.1), ``blur`` (1 to 5 passes of [1 2 1]/4 both ways; images only). Nominal
    columns are touched by ``missing`` only. ``cifar-c:NAME``, for images of 1 or 3 channels (first), is one of the
    fifteen of CIFAR-C (``CIFAR_C`` lists them; Hendrycks, Dietterich, ICLR 2019), black and white being 0 and 1, or
    in images that leave these the least and greatest of the first batch.

    Standard deviation, centre, least and greatest of a column are those of the first batch of the stream. A Boundary
    stands at start and stop (where they are not the ends), and spec.drifts lists them. Held-out rows of
    ``spec.experiences`` are damaged likewise if all rows are; a Boundary more leaves the stream without them. Raises
    InputError for an unknown kind, a severity outside 1..5, blur on rows without a shape of 2 or 3 axes, and one of
    CIFAR-C on rows that are no such images.
    """
    if kind not in KINDS:
        raise InputError(f"corrupt: unknown kind {kind!r}; known are {', '.join(KINDS)}")
    if severity not in range(1, 6):
        raise InputError(f"corrupt: severity must be 1 to 5, not {severity}")
    if kind == "blur" and len(stream.spec.shape or ()) not in (2, 3):
        raise InputError(f"corrupt: blur needs images, and {stream.spec.name} has no rows with a shape of 2 or 3 axes")
    ours = kind.startswith("cifar-c:")
    if ours:
        need_images(f"corrupt: {kind}", stream.spec.shape)
    scale, damage = _measure(stream), KINDS[kind]
    numeric = scale.numeric | (kind == "missing")

    def damaged(event: Event) -> Event:
        if not isinstance(event, Batch):
            return event
        hit = (event.ids >= start) & (stop is None or event.ids < stop)
        if not hit.any():
            return event
        x = np.array(event.x, dtype=np.float64)
        x[hit] = worse(x[hit], event.ids[hit])
        return Batch(event.ids, x, event.time, event.y)

    def worse(x: Array, ids: Array) -> Array:
        worn = damage(x, ids, severity - 1, seed, scale)
        return worn if ours else np.where(numeric, scale.clip(worn), x)

    def held_out(experience: Experience, k: int) -> Experience:
        ids = np.arange(len(experience.y)) + ((k + 1) << 40)  # no row of the stream has such a number
        return replace(experience, x=worse(experience.x.astype(np.float64), ids).astype(np.float32))

    marks = {row: name for row, name in ((start, f"{kind} {severity}"), (stop, f"{kind} ends")) if row}
    marked = mark(stream, marks) if marks else stream
    spec = marked.spec
    if start <= 0 and stop is None and spec.experiences:
        spec = replace(spec, experiences=tuple(held_out(e, k) for k, e in enumerate(spec.experiences)))
    if kind == "missing":
        spec = replace(spec, columns=tuple(replace(c, missing=True) for c in spec.columns))
    return Mapped(spec, marked, damaged)


def _measure(stream: Stream) -> Scale:
    """The scale of the columns over the first batch; the stream is put back to where it stood."""
    place = stream.cursor()
    stream.seek({})
    batch = next((e for e in stream if isinstance(e, Batch)), None)
    stream.seek(place)
    if batch is None or not isinstance(batch.x, np.ndarray):
        raise InputError(f"corrupt: {stream.spec.name} has no rows of numbers")
    x = np.where(np.isnan(batch.x).all(axis=0), 0.0, batch.x)
    return Scale(stream.spec, np.nanmean(x, axis=0), np.nanstd(x, axis=0), np.nanmin(x, axis=0), np.nanmax(x, axis=0))


def mark(stream: Stream, boundaries: dict[int, str]) -> Stream:
    """Boundaries put before the first row whose id is at least the given one (ids must rise along the stream)."""
    return _Marked(stream, boundaries)


class _Marked:
    """Cursor: the feed's place, and how many marks are out."""

    def __init__(self, source: Stream, boundaries: dict[int, str]) -> None:
        drifts = sorted({*source.spec.drifts, *(int(r) for r in boundaries if r > 0)})
        length = source.spec.length
        marked = tuple(d for d in drifts if length is None or d < length)
        self.spec = replace(source.spec, drifts=marked, experiences=())
        self._feed = Feed(source)
        self._marks = sorted((int(r), name) for r, name in boundaries.items())
        self._out = 0

    def __iter__(self) -> Iterator[Event]:
        feed = self._feed
        while (event := feed.peek()) is not None:
            if not isinstance(event, Batch):
                feed.drop()
                yield event
                continue
            row, name = self._marks[self._out] if self._out < len(self._marks) else (None, "")
            if row is not None and event.ids[0] >= row:
                self._out += 1
                yield Boundary(name, float(event.ids[0]))
                continue
            later = event.ids >= row if row is not None else np.zeros(1, dtype=bool)
            yield feed.take(int(np.argmax(later)) if later.any() else len(event))

    def cursor(self) -> dict[str, Any]:
        return {**self._feed.place(), "out": self._out}

    def seek(self, cursor: dict[str, Any]) -> None:
        self._feed.seek(cursor)
        self._out = cursor.get("out", 0)
