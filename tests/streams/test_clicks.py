"""Click streams: the drifts that ctr-drift says it has, time stamps, late conversions, what is kept for the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.streams.clicks import waits


def rows(stream: Any) -> tuple[np.ndarray, np.ndarray]:
    batches = [e for e in stream if isinstance(e, dw.Batch)]
    return np.concatenate([b.x for b in batches]), np.concatenate([b.y for b in batches])


def weights(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of a logistic fit."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression().fit(np.c_[x, x[:, 0] * x[:, 1]], y).coef_[0]


@pytest.mark.parametrize(
    ("concepts", "drifts", "turned"),
    [
        ("none", (), ()),
        ("drift", (8000,), (6,)),
        ("second", (8000, 40_000), (6, 12)),
        ("return", (8000, 40_000), (6, 0)),
    ],
)
def test_weights_turn_where_the_spec_says(concepts: str, drifts: tuple[int, ...], turned: tuple[int, ...]) -> None:
    stream = dw.stream("ctr-drift", seed=4, slot=2000, concepts=concepts)
    assert stream.spec.drifts == drifts
    assert stream.spec.length == (80_000 if len(drifts) > 1 else 40_000)
    assert stream.spec.source is not None
    first = weights(*stream.spec.source.train())
    x, y = rows(stream)
    edges = [0, *drifts, len(y)]
    for k, many in enumerate((0, *turned)):
        part = slice(edges[k], edges[k + 1])
        expected = np.where(np.arange(17) < many, -first, first)
        assert np.abs(weights(x[part], y[part]) - expected).max() < 0.25


def test_the_first_rows_do_not_depend_on_the_drift() -> None:
    (x, y), (x2, y2) = (rows(dw.stream("ctr-drift", seed=1, concepts=c)) for c in ("none", "drift"))
    assert (x == x2).all()
    assert (y == y2)[:2000].all()
    assert not (y == y2)[2000:].all()


def test_waits_by_the_clock() -> None:
    times = np.array([0.0, 10.0, 20.0, 30.0, 40.0])
    assert waits(times, np.array([0, 1, 0, 1, 0]), 0.0, 0.0, 0).tolist() == [0] * 5
    assert waits(times, np.zeros(5), 0.0, 15.0, 0).tolist() == [2, 2, 2, 2, 1]
    late = waits(np.arange(20_000.0), np.ones(20_000), 100.0, 0.0, 0)[:15_000]
    assert late.mean() == pytest.approx(100, rel=0.05)
    assert waits(np.arange(20_000.0), np.ones(20_000), 100.0, 50.0, 0).max() == 50


def test_conversions_come_late_and_all_come(data: Path) -> None:
    if not (data / "obd_random_men.csv.gz").exists():
        pytest.skip("obd_random_men.csv.gz is not in DRIFTWAY_DATA")
    stream = dw.stream("open-bandit", conversion=3600, window=7200)
    seen, known, apart = {}, {}, []
    for event in stream:
        if isinstance(event, dw.Batch):
            assert event.y is None
            seen |= dict.fromkeys(event.ids.tolist(), event.time)
        else:
            apart += [event.time - seen[i] for i in event.ids.tolist()]
            known |= dict(zip(event.ids.tolist(), event.y.tolist(), strict=True))
    assert len(known) == len(seen) == 10_000
    assert sum(known.values()) == 46
    assert np.median(apart) == pytest.approx(7200, rel=0.05)
    assert min(apart[:9000]) > 0


def test_time_stamps_and_the_part_kept_back(data: Path) -> None:
    if not (data / "movielens_100k.npz").exists():
        pytest.skip("movielens_100k.npz is not in DRIFTWAY_DATA")
    stream = dw.stream("movielens", source=0.5)
    source = stream.spec.source
    assert source is not None
    x, _ = rows(stream)
    assert (len(x), len(source.train()[0]), len(source.test()[0])) == (50_000, 45_000, 5000)
    times = [e.time for e in dw.stream("movielens", source=0.5) if isinstance(e, dw.Batch)]
    assert times == sorted(times)
    assert times[0] > 874_724_710
    all_x, all_y = rows(dw.stream("movielens"))
    assert (all_x[50_000:] == x)[~np.isnan(x)].all()
    assert all_y.mean() == pytest.approx(0.55375)


def test_what_cannot_be_is_one_line(data: Path) -> None:
    if (data / "criteo_sample.tsv.gz").exists():
        with pytest.raises(dw.InputError, match="criteo has no time stamps"):
            dw.stream("criteo", conversion=5)
        with pytest.raises(dw.InputError, match=r"source must be in \[0, 1\)"):
            dw.stream("criteo", source=1)
    with pytest.raises(dw.InputError, match="concepts='third'"):
        dw.stream("ctr-drift", concepts="third")
    with pytest.raises(dw.InputError, match="slot must be above 0"):
        dw.stream("ctr-drift", slot=0)


def test_impressions_are_the_users_and_times_of_the_rows() -> None:
    stream = dw.stream("movielens", conversion=1.0, source=0.5)
    told = stream.spec.impressions
    assert told is not None
    first = [e for e in dw.take(stream, 300) if isinstance(e, dw.Batch)]
    assert [e.time for e in first] == told.times[:300].tolist()
    assert [e.x[0, 0] for e in first] == told.users[:300].tolist()
    assert len(told.users) == len(told.times) == stream.spec.length == 50_000


def test_impressions_of_streams_without_users_or_times() -> None:
    avazu, bandit, ctr = (dw.stream(name).spec.impressions for name in ("avazu", "open-bandit", "ctr-drift"))
    assert avazu.times is None
    assert len(avazu.users) == 8087
    assert bandit.users is None
    assert (np.diff(bandit.times) >= 0).all()
    assert (ctr.users, ctr.times) == (None, None)
    assert dw.stream("digits").spec.impressions is None


def test_joined_click_streams_have_rows_for_their_clock() -> None:
    a, b = (dw.take(dw.stream("avazu"), 50) for _ in range(2))
    both = dw.concat(a, b)
    assert dw.take(a, 20).spec.impressions is a.spec.impressions
    assert (both.spec.impressions.users, both.spec.impressions.times, both.spec.length) == (None, None, 100)
    rows = np.zeros((20, 2))
    plain, spec = dw.from_arrays(rows, np.arange(20) % 2), dw.stream("ctr-drift", slot=10, train=0)
    assert dw.concat(plain, plain).spec.impressions is None
    assert dw.incremental(spec, dw.stream("ctr-drift", seed=1, slot=10, train=0)).spec.impressions.times is None
