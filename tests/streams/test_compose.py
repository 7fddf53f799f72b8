"""What the compositions of compose.py and delay.py do to rows, labels and the places of other events."""

from __future__ import annotations

from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.streams import BlockStream
from driftway.streams.sources import Block


class Listed:
    """A source that gives a fixed list of events as one block."""

    start = {"row": 0}  # noqa: RUF012

    def __init__(self, events: list[Any]) -> None:
        self.events = events

    def read(self, at: dict[str, Any]) -> Block:  # noqa: ARG002
        return Block(self.events, None)


def listed(*events: Any) -> BlockStream:
    return BlockStream(dw.StreamSpec("listed", (dw.Column("a"),), classes=("0", "1")), Listed(list(events)))


def batch(first: int, n: int, labelled: bool = True) -> dw.Batch:
    ids = np.arange(first, first + n)
    return dw.Batch(ids, ids[:, None].astype(float), float(first), ids % 2 if labelled else None)


def plain(n: int = 1200) -> Any:
    return dw.from_arrays(np.arange(n, dtype=float)[:, None], np.arange(n) % 4)


def shape(stream: Any) -> list[Any]:
    return [(e.ids[0], len(e)) if isinstance(e, dw.Batch) else type(e).__name__ for e in stream]


def test_take_counts_rows() -> None:
    stream = dw.take(plain(), 700)
    assert stream.spec.length == 700
    assert sum(len(b) for b in stream) == 700
    assert list(dw.take(plain(), 0)) == []
    assert sum(len(b) for b in dw.take(plain(100), 700)) == 100
    with pytest.raises(dw.InputError, match="whole number"):
        dw.take(plain(), -1)


def test_rebatch_joins_across_rejected_rows_only() -> None:
    bad = dw.Rejected(6, "broken", 6.0)
    forget = dw.Forget(np.array([1]), 9.0)
    stream = listed(batch(0, 6), bad, batch(7, 6), forget, batch(13, 9), dw.Boundary("b", 22.0), batch(22, 3))
    assert shape(dw.rebatch(stream, 4)) == [
        (0, 4),
        "Rejected",
        (4, 4),
        (9, 4),
        "Forget",
        (13, 4),
        (17, 4),
        (21, 1),
        "Boundary",
        (22, 3),
    ]


def test_rebatch_keeps_every_row_in_order(table: Any) -> None:
    for n in (1, 3, 511, 512, 513, 5000):
        ids, x, y = table(dw.rebatch(plain(), n))
        assert ids.tolist() == list(range(1200))
        assert (x[:, 0] == ids).all()
        assert (y == ids % 4).all()


def test_shuffle_within_moves_rows_no_further_than_their_window(table: Any) -> None:
    ids, x, _ = table(dw.shuffle_within(plain(), 300, seed=1))
    assert sorted(ids) == list(range(1200))
    assert (ids // 300 == np.arange(1200) // 300).all()
    assert (x[:, 0] == ids).all()
    assert (ids != np.arange(1200)).mean() > 0.9
    assert ids.tolist() != table(dw.shuffle_within(plain(), 300, seed=2))[0].tolist()


def test_drop_labels_hits_the_same_rows_however_they_are_cut(table: Any) -> None:
    _, _, y = table(dw.drop_labels(plain(), 0.3, seed=5))
    assert 0.25 < (y == dw.NO_LABEL).mean() < 0.35
    assert y.tolist() == table(dw.drop_labels(dw.rebatch(plain(), 7), 0.3, seed=5))[2].tolist()
    later = [e for e in dw.drop_labels(dw.delay_labels(plain(), 10), 0.3, seed=5) if isinstance(e, dw.Labels)]
    assert sorted(np.concatenate([e.ids for e in later])) == np.flatnonzero(y >= 0).tolist()
    with pytest.raises(dw.InputError, match=r"0\.\.1"):
        dw.drop_labels(plain(), 1.5)


def test_drop_labels_of_regression() -> None:
    stream = dw.from_arrays(np.zeros((50, 1)), np.linspace(0, 1, 50))
    (only,) = dw.drop_labels(stream, 1.0)
    assert np.isnan(only.y).all()


@pytest.mark.parametrize("n", [1, 7, 512])
@pytest.mark.parametrize("delay", [1, 5, 100, 10_000])
def test_delay_is_what_it_says(n: int, delay: int) -> None:
    newest, seen = -1, {}
    for event in dw.delay_labels(dw.rebatch(plain(600), n), delay):
        if isinstance(event, dw.Batch):
            assert event.y is None
            newest = int(event.ids[-1])
        else:
            for i, label in zip(event.ids.tolist(), event.y.tolist(), strict=True):
                seen[i] = label
                assert newest >= min(i + delay, 599)
                assert newest < i + delay + n or newest == 599
    assert seen == {i: i % 4 for i in range(600)}


def test_delay_by_a_function_and_rows_without_labels() -> None:
    y = np.arange(300) % 3 - 1  # every third row has no label
    source = dw.rebatch(dw.from_arrays(np.zeros((300, 1)), y, classes=("a", "b"), missing_label="keep"), 1)
    arrivals: list[tuple[int, int]] = []
    newest = -1
    for event in dw.delay_labels(source, lambda b: b.ids % 10):
        newest = int(event.ids[-1]) if isinstance(event, dw.Batch) else newest
        if isinstance(event, dw.Labels):
            arrivals += [(int(i), newest) for i in event.ids]
    assert dict(arrivals) == {i: min(i + i % 10, 299) for i in range(300) if y[i] >= 0}
    assert dw.delay_labels(source, 0) is source
    with pytest.raises(dw.InputError, match="delay"):
        dw.delay_labels(source, -1)
    with pytest.raises(dw.InputError, match="-5 rows"):
        list(dw.delay_labels(plain(), lambda _: -5))


def test_split_classes_gives_every_row_once_task_by_task() -> None:
    events = list(dw.split_classes(plain(), 2, order=[3, 1, 0, 2]))
    names = [e.name for e in events if isinstance(e, dw.Boundary)]
    assert names == ["classes 0, 2"]
    cut = next(k for k, e in enumerate(events) if isinstance(e, dw.Boundary))
    first = np.concatenate([e.y for e in events[:cut]])
    second = np.concatenate([e.y for e in events[cut + 1 :]])
    assert set(first) == {1, 3}
    assert set(second) == {0, 2}
    assert len(first) + len(second) == 1200
    with pytest.raises(dw.InputError, match="order"):
        dw.split_classes(plain(), 2, order=[0, 0, 1, 2])


def test_compositions_begin_where_their_source_stands() -> None:
    source = plain()
    next(iter(source))
    assert shape(dw.take(source, 100)) == [(512, 100)]
