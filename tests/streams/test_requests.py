"""Requests to forget among the events of a stream."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from typing import Any

import driftway as dw
import numpy as np
import pytest


def asked(at: dict[str, object] | None = None) -> dw.Stream:
    rows = dw.rebatch(dw.streams.from_arrays(np.arange(10.0)[:, None], np.arange(10) % 2), 3)
    stream = dw.ask_to_forget(rows, {3: np.array([0]), 4: np.array([1, 2]), 6: np.array([5]), 10: np.array([9])})
    if at is not None:
        stream.seek(at)
    return stream


def told(event: object) -> object:
    return event.ids.tolist() if isinstance(event, dw.Forget) else len(event.ids)  # type: ignore[attr-defined]


EVENTS = [3, [0], 3, [1, 2], [5], 3, 1, [9]]


def test_requests_come_where_they_were_put() -> None:
    assert [told(event) for event in asked()] == EVENTS


def test_any_event_can_be_gone_on_from() -> None:
    for stop in range(len(EVENTS)):
        stream = asked()
        for i, _ in enumerate(stream):
            if i == stop:
                break
        assert [told(event) for event in asked(stream.cursor())] == EVENTS[stop + 1 :]  # type: ignore[arg-type]


def test_a_place_before_the_first_row_is_refused() -> None:
    with pytest.raises(dw.InputError, match="0 rows or more"):
        dw.ask_to_forget(asked(), {-1: np.array([0])})


def test_requests_that_keep_coming_name_rows_met_before_and_none_twice() -> None:
    rows = dw.rebatch(dw.streams.from_arrays(np.zeros((400, 1)), np.zeros(400, np.int64)), 7)
    met, named = 0, []
    for event in dw.keep_asking(rows, 50, 9, seed=3):
        if isinstance(event, dw.Batch):
            met += len(event)
        else:
            assert isinstance(event, dw.Forget)
            assert event.ids.max() < met
            assert 0 <= met % 50 < 7
            named.append(event.ids.tolist())
    assert [len(ids) for ids in named] == [9] * 8
    assert len({row for ids in named for row in ids}) == 72
    assert max(max(ids) for ids in named[-1:]) - min(named[-1]) > 100  # old rows as well as new ones


def test_requests_that_keep_coming_go_on_from_a_cursor() -> None:
    def events(stream: Iterable[Any]) -> list[tuple[str, list[int]]]:
        return [(type(event).__name__, event.ids.tolist()) for event in stream]

    def asking() -> dw.Stream:
        return dw.keep_asking(
            dw.rebatch(dw.streams.from_arrays(np.zeros((3000, 1)), np.zeros(3000, np.int64)), 100), 500, 4
        )

    whole = events(asking())
    for at in (1, 5, 6, 17, 30):
        stream = asking()
        taken = events(islice(iter(stream), at))
        later = asking()
        later.seek(json.loads(json.dumps(stream.cursor())))
        assert taken + events(later) == whole


def test_late_labels_make_a_row_one_that_may_be_asked_for() -> None:
    rows = dw.delay_labels(dw.rebatch(dw.streams.from_arrays(np.zeros((60, 1)), np.zeros(60, np.int64)), 1), 30)
    labelled: set[int] = set()
    asked = 0
    for event in dw.keep_asking(rows, 10, 2):
        if isinstance(event, dw.Labels):
            labelled |= set(event.ids.tolist())
        elif isinstance(event, dw.Forget):
            asked += 1
            assert set(event.ids.tolist()) <= labelled
    assert asked == 4


def test_requests_that_cannot_be_are_refused() -> None:
    rows = dw.streams.from_arrays(np.zeros((4, 1)), np.zeros(4, np.int64))
    for every, size in ((0, 1), (1, 0)):
        with pytest.raises(dw.InputError, match="1 row or more"):
            dw.keep_asking(rows, every, size)
