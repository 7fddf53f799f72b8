"""Streams of experiences: every row once an epoch, in an order that is a pure function of the position."""

from __future__ import annotations

from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.streams.experiences import BLOCK_CELLS, exchanged, stratified

SIZES = (700, 530, 40)


def arrays(sizes: tuple[int, ...] = SIZES) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Experience k has classes 2k and 2k + 1; column 0 says which row it is, over all experiences."""
    first = np.cumsum([0, *sizes])
    return [
        (f"part {k}", np.c_[np.arange(a, a + n), np.full(n, k)].astype(np.float32), 2 * k + np.arange(n) % 2)
        for k, (a, n) in enumerate(zip(first, sizes, strict=False))
    ]


def held_out(sizes: tuple[int, ...] = SIZES) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(-1 - x[: n // 2], y[: n // 2]) for (_, x, y), n in zip(arrays(sizes), sizes, strict=True)]


def stream(**settings: Any) -> dw.Stream:
    return dw.from_experiences(arrays(), held_out(), **settings)


def stretches(source: Any) -> list[dw.Batch]:
    """What comes between the boundaries, each stretch as one batch."""
    parts: list[list[dw.Batch]] = [[]]
    for event in source:
        if isinstance(event, dw.Boundary):
            parts.append([])
        else:
            assert isinstance(event, dw.Batch), event
            parts[-1].append(event)
    return [
        dw.Batch(*(np.concatenate([getattr(b, f) for b in part]) for f in ("ids", "x")), 0.0, _labels(part))
        for part in parts
    ]


def _labels(part: list[dw.Batch]) -> np.ndarray:
    return np.concatenate([b.y for b in part if b.y is not None])


@pytest.mark.parametrize("epochs", [1, 3])
def test_every_row_once_an_epoch_in_a_new_order(epochs: int) -> None:
    source = stream(epochs=epochs, seed=5)
    assert source.spec.length == sum(SIZES) * epochs
    parts = stretches(source)
    np.testing.assert_array_equal(np.concatenate([p.ids for p in parts]), np.arange(sum(SIZES) * epochs))
    assert [int(p.ids[0]) for p in parts[1:]] == list(source.spec.drifts)
    for (_, x, y), part in zip(arrays(), parts, strict=True):
        passes = np.split(part.x, epochs)
        for one in passes:
            np.testing.assert_array_equal(one[np.argsort(one[:, 0])], x)
        assert len({one.tobytes() for one in passes}) == epochs
        np.testing.assert_array_equal(part.y, y[(part.x[:, 0] - x[0, 0]).astype(int)])


def test_boundaries_names_and_facts() -> None:
    source = stream(epochs=2)
    marks = [(e.name, e.time) for e in source if isinstance(e, dw.Boundary)]
    assert marks == [("part 1", 1400.0), ("part 2", 2460.0)]
    spec = source.spec
    assert spec.notes == {"epochs": 2, "scenario": "class", "per_task": 2}
    assert [(e.name, e.rows, e.classes) for e in spec.experiences] == [
        (f"part {k}", n, (2 * k, 2 * k + 1)) for k, n in enumerate(SIZES)
    ]
    for experience, (x, y) in zip(spec.experiences, held_out(), strict=True):
        assert experience.x.dtype == np.float32
        assert experience.y.dtype == np.int64
        np.testing.assert_array_equal(experience.x, x)
        np.testing.assert_array_equal(experience.y, y)
    assert dw.from_experiences(arrays()).spec.experiences == ()
    domain = dw.from_experiences([(n, x, y % 2) for n, x, y in arrays()], scenario="domain").spec
    assert (domain.notes["per_task"], domain.n_classes) == (2, 2)
    uneven = dw.from_experiences([(n, x, y // 3) for n, x, y in arrays()]).spec
    assert "per_task" not in uneven.notes


def test_the_seed_decides_all_chance() -> None:
    a, b, c = (stretches(stream(seed=s, blur=0.2, train_rows=300, test_rows=50)) for s in (1, 1, 2))
    for p, q, r in zip(a, b, c, strict=True):
        assert p.x.tobytes() == q.x.tobytes()
        assert p.x.tobytes() != r.x.tobytes()
    held = [stream(seed=s, test_rows=50, epochs=e).spec.experiences[0].x for s, e in ((1, 1), (1, 4), (2, 1))]
    np.testing.assert_array_equal(held[0], held[1])
    assert not np.array_equal(held[0], held[2])


@pytest.mark.parametrize("settings", [{"epochs": 2}, {"blur": 0.3, "seed": 3}, {"train_rows": 100, "epochs": 3}])
def test_seek(settings: dict[str, Any], check_seek: Any) -> None:
    check_seek(lambda: dw.rebatch(stream(**settings), 64), np.arange(0, 60, 3))
    check_seek(lambda: stream(**settings))


def test_limits_keep_every_class_in_its_share() -> None:
    source = stream(train_rows=100, test_rows=31)
    assert source.spec.length == 240
    assert [e.rows for e in source.spec.experiences] == [100, 100, 40]
    for part, experience, n in zip(stretches(source), source.spec.experiences, (31, 31, 20), strict=True):
        assert np.ptp(np.bincount(part.y)[-2:]) == 0
        assert len(experience.y) == n
        assert np.ptp(np.bincount(experience.y)[-2:]) <= 1
    skewed = np.repeat([3, 7, 9], [70, 20, 10])
    drawn = stratified(skewed, 20, np.random.default_rng(0))
    assert np.bincount(skewed[drawn])[[3, 7, 9]].tolist() == [14, 4, 2]
    assert (np.diff(drawn) > 0).all()


def test_blur_exchanges_that_share() -> None:
    sizes = (500, 400, 300)
    parts = stretches(dw.from_experiences(arrays(sizes), blur=0.1, epochs=2))
    for k, (part, n) in enumerate(zip(parts, sizes, strict=True)):
        first, second = np.split(part.x, 2)
        np.testing.assert_array_equal(np.unique(first[:, 0]), np.unique(second[:, 0]), "exchanged once for all epochs")
        assert (first[:, 1] != k).sum() == n // 10
        np.testing.assert_array_equal(part.y, 2 * part.x[:, 1] + part.x[:, 0] % 2)
    seen = np.sort(np.concatenate([np.split(p.x[:, 0], 2)[0] for p in parts]))
    np.testing.assert_array_equal(seen, np.arange(sum(sizes)))


@pytest.mark.parametrize(("sizes", "share"), [((10, 10), 1.0), ((100, 10), 0.5), ((5, 7, 90), 1.0), ((30,) * 5, 0.5)])
def test_exchange_keeps_sizes_and_returns_nothing(sizes: tuple[int, ...], share: float) -> None:
    mixed = exchanged(sizes, share, np.random.default_rng(0))
    everything = sorted((int(o), int(r)) for origin, row in mixed for o, r in zip(origin, row, strict=True))
    assert everything == [(k, r) for k, n in enumerate(sizes) for r in range(n)]
    away = [int((origin != k).sum()) for k, (origin, _) in enumerate(mixed)]
    wanted = [round(share * n) for n in sizes]
    assert [len(origin) for origin, _ in mixed] == list(sizes)
    assert away == [min(n, sum(wanted) - n) for n in wanted]


def test_images_are_shown_from_zero_to_one_channels_first() -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 3, 4, 5)).astype(np.uint8)
    source = dw.from_experiences([("a", x, np.arange(20) % 2)], [(x, np.arange(20) % 2)])
    assert source.spec.shape == (3, 4, 5)
    assert source.spec.n_features == len({c.name for c in source.spec.columns}) == 60
    (part,) = stretches(source)
    assert part.x.dtype == np.float64
    np.testing.assert_array_equal(np.sort(part.x, axis=0), np.sort(x.reshape(20, 60) / 255, axis=0))
    np.testing.assert_array_equal(source.spec.experiences[0].x, (x.reshape(20, 60) / 255).astype(np.float32))
    np.testing.assert_allclose(source.spec.notes["mean"], x.mean((0, 2, 3)) / 255)
    np.testing.assert_allclose(source.spec.notes["std"], x.std((0, 2, 3)) / 255)
    grey = dw.from_experiences([("a", x[:, 0], np.arange(20) % 2)]).spec
    assert (grey.shape, grey.columns[7].name) == ((1, 4, 5), "pixel 1.2")
    wide = np.zeros((600, 3, 40, 40), np.uint8)
    events = list(dw.from_experiences([("a", wide, np.zeros(600, int))]))
    assert max(len(e) for e in events if isinstance(e, dw.Batch)) == BLOCK_CELLS // 4800


def test_what_does_not_fit() -> None:
    x, y = np.zeros((4, 3)), np.array([0, 1, 0, 1])
    good = [("a", x, y), ("b", x, y)]
    for train, test, settings, message in [
        ([], None, {}, "0 experiences"),
        (good, [(x, y)], {}, "2 experiences and 1 held out"),
        ([("a", np.zeros(4), y)], None, {}, "a: x must be numbers"),
        ([("a", np.array([["q"]] * 4), y)], None, {}, "a: x must be numbers"),
        ([("a", x[:0], y[:0])], None, {}, "a: x must be numbers"),
        ([("a", x, y[:3])], None, {}, "a: x has 4 rows"),
        ([("a", x, y * 0.5)], None, {}, "4 integers"),
        ([("a", x, y - 1)], None, {}, "class codes"),
        ([("a", x + np.nan, y)], None, {}, "not finite"),
        (good, [(x, y), (x[:, :2], y)], {}, "different shapes"),
        (good, None, {"classes": ["only"]}, "class code 1 is out of range"),
        (good, None, {"scenario": "world"}, "scenario must be"),
        (good, None, {"epochs": 0}, "epochs must be at least 1"),
        (good, None, {"test_rows": -1}, "at least 0"),
        (good, None, {"blur": 1.5}, "blur must lie"),
        (good[:1], None, {"blur": 0.1}, "two experiences"),
    ]:
        with pytest.raises(dw.InputError, match=message) as caught:
            dw.from_experiences(train, test, **settings)
        assert "\n" not in str(caught.value)


KEEPING = {
    "take": lambda s: dw.take(s, 900),
    "rebatch": lambda s: dw.rebatch(s, 10),
    "shuffle": lambda s: dw.shuffle_within(s, 100),
    "drop labels": lambda s: dw.drop_labels(s, 0.5),
    "delay": lambda s: dw.delay_labels(s, 20),
    "nested": lambda s: dw.delay_labels(dw.rebatch(dw.take(dw.drop_labels(s, 0.1), 500), 7), 3),
}


@pytest.mark.parametrize("name", KEEPING)
def test_compositions_keep_experiences(name: str) -> None:
    source = stream()
    assert KEEPING[name](source).spec.experiences is source.spec.experiences


def test_compositions_that_change_experiences() -> None:
    source = stream()
    joined = dw.concat(source, stream(seed=1))
    assert [e.name for e in joined.spec.experiences] == ["part 0", "part 1", "part 2"] * 2
    assert sum(isinstance(e, dw.Boundary) for e in joined) == 5
    assert dw.concat(stream(), stream(), position=800).spec.experiences == ()
    alone = [dw.from_experiences(arrays()[:1], held_out()[:1]) for _ in range(2)]
    assert len(dw.concat(*alone, position=100).spec.experiences) == 2
    assert dw.concat(stream(), dw.from_experiences(arrays())).spec.experiences == ()
    assert dw.incremental(stream(), stream()).spec.experiences == ()
    assert dw.corrupt(stream(), "offset", 3, start=10).spec.experiences == ()
    damaged = dw.corrupt(stream(), "scaling", 5).spec.experiences
    for before, after in zip(source.spec.experiences, damaged, strict=True):
        np.testing.assert_array_equal(after.x, before.x * 3)
        assert after.x.dtype == np.float32


def test_split_classes_splits_what_is_held_out() -> None:
    split = dw.split_classes(stream(), 3)
    assert [e.classes for e in split.spec.experiences] == [(0, 1, 2), (3, 4, 5)]
    assert [e.name for e in split.spec.experiences][1:] == [e.name for e in split if isinstance(e, dw.Boundary)]
    for experience in split.spec.experiences:
        assert set(experience.y.tolist()) == set(experience.classes)
        assert len(experience.x) == len(experience.y)
    assert sum(len(e.y) for e in split.spec.experiences) == sum(n // 2 for n in SIZES)
    assert dw.split_classes(dw.from_experiences(arrays()), 3).spec.experiences == ()
