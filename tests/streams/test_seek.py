"""Every composition, and nestings of them, can be sought to any event and goes on identically."""

from __future__ import annotations

from typing import Any

import driftway as dw
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def rows(seed: int = 0, n: int = 900, *, faults: bool = True) -> Any:
    """A small table with a boundary inside and, perhaps, rows that are rejected."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    if faults:
        x[[5, n // 2 + 1], [1, 0]] = np.inf
    return dw.from_arrays(x, rng.integers(0, 4, n), boundaries={n // 3: "third"}, name=f"rows{seed}")


def images() -> Any:
    return dw.from_arrays(np.random.default_rng(0).uniform(size=(700, 4, 4)), np.arange(700) % 3)


def lag(batch: dw.Batch) -> np.ndarray:
    return batch.ids * 37 % 200


def shared_source() -> Any:
    a = rows(faults=False)
    return dw.concat(a, dw.corrupt(a, "invert", 5), a, width=100)


def recurring() -> Any:
    a, b = rows(), rows(1)
    return dw.concat(a, b, a, b, position=[300, 600, 900], width=60)


CASES = {
    "arrays": rows,
    "take": lambda: dw.take(rows(), 777),
    "rebatch small": lambda: dw.rebatch(rows(), 37),
    "rebatch large": lambda: dw.rebatch(rows(), 2000),
    "shuffle": lambda: dw.shuffle_within(rows(), 300),
    "drop labels": lambda: dw.drop_labels(rows(), 0.5),
    "delay": lambda: dw.delay_labels(dw.rebatch(rows(), 10), 25),
    "delay by lot": lambda: dw.delay_labels(dw.rebatch(rows(), 50), lag),
    "delay past the end": lambda: dw.delay_labels(rows(), 5000),
    "split": lambda: dw.split_classes(rows(), 3),
    "abrupt": lambda: dw.concat(rows(), rows(1)),
    "gradual": lambda: dw.concat(rows(), rows(1), width=200),
    "linear": lambda: dw.concat(rows(), rows(1), width=400, ramp="linear", position=500),
    "recurring": recurring,
    "shared source": shared_source,
    "corrupt": lambda: dw.corrupt(rows(), "gaussian_noise", 5, start=100, stop=600),
    "blur": lambda: dw.corrupt(images(), "blur", 2),
    "incremental": lambda: dw.incremental(rows(faults=False), rows(3, faults=False), start=200, span=500),
    "rebatch behind labels": lambda: dw.rebatch(dw.delay_labels(dw.rebatch(rows(), 10), 25), 64),
    "two-regimes": lambda: dw.stream("two-regimes", n=1300, seed=3),
    "digits": lambda: dw.stream("digits", rows=300, width=100),
    "sea-drift": lambda: dw.stream("sea-drift", n=1400, width=40),
    "river": lambda: dw.stream("river:Phishing"),
}


@pytest.mark.parametrize("name", CASES)
def test_any_event(name: str, check_seek: Any) -> None:
    rng = np.random.default_rng(0)
    events = check_seek(CASES[name], rng.integers(0, 10_000, 25).tolist())
    assert events


WRAPS = st.sampled_from(
    [
        lambda s: dw.take(s, 700),
        lambda s: dw.rebatch(s, 33),
        lambda s: dw.rebatch(s, 1),
        lambda s: dw.shuffle_within(s, 150, seed=2),
        lambda s: dw.drop_labels(s, 0.4, seed=1),
        lambda s: dw.split_classes(s, 2),
        lambda s: dw.corrupt(s, "missing", 3, start=50, stop=400),
        lambda s: dw.corrupt(s, "permute", 2),
        lambda s: dw.concat(s, rows(7, 400)),
        lambda s: dw.concat(rows(8, 400), s, width=90, position=250),
        lambda s: dw.incremental(s, rows(9, 500), span=300),
    ]
)
LABELS = st.sampled_from([lambda s: s, lambda s: dw.delay_labels(s, 40), lambda s: dw.delay_labels(s, lag)])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    wraps=st.lists(WRAPS, min_size=1, max_size=4),
    label=LABELS,
    last=st.sampled_from([0, 20, 900]),
    at=st.lists(st.integers(0, 10**6), min_size=3, max_size=6),
)
def test_nestings(wraps: list[Any], label: Any, last: int, at: list[int], check_seek: Any) -> None:
    def make() -> Any:
        stream = rows(n=600)
        for wrap in wraps:
            stream = wrap(stream)
        stream = label(stream)
        return dw.rebatch(stream, last) if last else stream

    check_seek(make, at)


def test_iterating_twice_goes_on() -> None:
    """A loop that is broken off can be taken up by another one, wherever it stood."""
    for make in CASES.values():
        whole = [type(e).__name__ for e in make()]
        stream, seen = make(), []
        while True:
            part = [type(e).__name__ for _, e in zip(range(3), stream, strict=False)]
            if not part:
                break
            seen += part
        assert len(seen) <= len(whole)  # zip may read one event ahead
        stream.seek({})
        first = next(iter(stream))
        rest = list(stream)
        assert [type(first).__name__, *(type(e).__name__ for e in rest)] == whole
