"""Streams that are made: seeds, drifts, replay, and river's sets."""

from __future__ import annotations

from typing import Any

import driftway as dw
import numpy as np
import pytest


def names(stream: Any) -> list[tuple[str, float]]:
    return [(e.name, e.time) for e in stream if isinstance(e, dw.Boundary)]


def test_two_regimes_obeys_its_rules(table: Any) -> None:
    stream = dw.stream("two-regimes", seed=4, n=3000)
    _, x, y = table(stream)
    weights = np.random.default_rng([4, 0]).normal(size=(2, 8))
    chosen = weights[(x[:, 0] > 0).astype(int)]
    assert (y == ((x[:, 1:] * chosen).sum(axis=1) > 0)).all()
    assert abs(x).max() <= 1
    assert table(dw.stream("two-regimes", seed=5, n=3000))[1].tobytes() != x.tobytes()
    assert len(np.unique(x[:, 3])) == 3000


def test_digits_changes_abruptly_gradually_and_returns(table: Any) -> None:
    stream = dw.stream("digits", seed=1)
    ids, x, y = table(stream)
    assert len(ids) == stream.spec.length == 8985
    assert (x >= 0).all()
    assert (x <= 16).all()
    assert stream.spec.drifts == (1797, 3294, 5391, 7188)
    stream.seek({})
    assert [t for _, t in names(stream)] == [1797.0, 3294.0, 5391.0, 7188.0]
    assert (np.bincount(y) == 5 * np.bincount(y[:1797])).all()
    means = [x[k : k + 1000].mean(axis=0) for k in (0, 1797, 4200, 5391, 7188)]
    clean, swapped, inverted, again, swapped_again = means
    assert abs(clean - again).mean() < 0.3
    assert abs(swapped - swapped_again).mean() < 0.3
    assert abs(clean - swapped).mean() > 2
    assert abs(clean - inverted).mean() > 2
    assert table(dw.stream("digits", seed=1))[1].tobytes() == x.tobytes()


@pytest.mark.parametrize("name", ["sea-drift", "led-drift", "agrawal-drift"])
def test_concepts_have_seeds_of_their_own_unless_replayed(name: str, table: Any) -> None:
    def first_rows(**params: Any) -> tuple[np.ndarray, np.ndarray]:
        stream = dw.stream(name, n=1200, width=0, noise=0.0, **params)
        assert stream.spec.drifts == (300, 600, 900)
        _, x, _ = table(stream)
        return x[:300], x[300:600]

    one, two = first_rows()
    assert not any((row == one).all(axis=1).any() for row in two[:20]) or name == "led-drift"
    assert one.tobytes() != two.tobytes()
    one, two = first_rows(replay=True)
    if name == "led-drift":  # the same digits on another wiring
        assert (one.sum(axis=1) == two.sum(axis=1)).all()
    else:
        assert one.tobytes() == two.tobytes()


def test_sea_replay_repeats_labels_of_the_first_concept_in_the_last(table: Any) -> None:
    _, x, y = table(dw.stream("sea-drift", n=1200, width=0, replay=True))
    assert x[:300].tobytes() == x[900:].tobytes()
    assert (y[:300] == y[900:]).all()
    assert (y[:300] != y[600:900]).any()


def test_gradual_width_and_positions() -> None:
    stream = dw.stream("sea-drift", n=2000, width=100, positions="500,1000,1500")
    assert names(stream) == [("concept 1", 450.0), ("concept 2", 950.0), ("concept 3", 1450.0)]
    with pytest.raises(dw.InputError, match="3 rising numbers"):
        dw.stream("sea-drift", positions="500")
    with pytest.raises(dw.InputError, match="overlap"):
        dw.stream("sea-drift", n=100)


@pytest.mark.parametrize("name", ["rbf-drift", "hyperplane"])
def test_moving_concepts(name: str, table: Any, check_seek: Any) -> None:
    stream = dw.stream(name, n=700, features=4)
    ids, x, y = table(stream)
    assert len(ids) == 700
    assert x.shape[1] == 4
    assert set(y) == {0, 1}
    check_seek(lambda: dw.stream(name, n=700, features=4))
    assert x.tobytes() != table(dw.stream(name, n=700, features=4, seed=1))[1].tobytes()


BUNDLED = {
    "AirlinePassengers": (144, 1, "regression"),
    "Bananas": (5300, 2, "classification"),
    "ChickWeights": (578, 3, "regression"),
    "ImageSegments": (2310, 18, "classification"),
    "Phishing": (1250, 9, "classification"),
    "SP500Stocks": (1257, 10, "regression"),
    "TrumpApproval": (1001, 6, "regression"),
    "WaterFlow": (1268, 1, "regression"),
}


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_sets_of_river(name: str, table: Any) -> None:
    rows, columns, target = BUNDLED[name]
    stream = dw.stream(f"river:datasets.{name}")
    assert (stream.spec.length, stream.spec.n_features, stream.spec.target) == (rows, columns, target)
    ids, x, _ = table(stream)
    assert len(ids) == rows
    assert np.isfinite(x).all()


def test_river_generator_with_arguments(table: Any) -> None:
    stream = dw.stream("river:synth.LED", irrelevant_features="true", n=40, seed=2)
    assert stream.spec.n_features == 24
    assert stream.spec.classes == tuple(map(str, range(10)))
    _, x, y = table(stream)
    from river.datasets import synth

    pairs = list(synth.LED(seed=2, irrelevant_features=True).take(40))
    assert x.tolist() == [list(map(float, p.values())) for p, _ in pairs]
    assert y.tolist() == [label for _, label in pairs]
