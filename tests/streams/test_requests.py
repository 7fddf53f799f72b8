"""Requests to forget among the events of a stream."""

from __future__ import annotations

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
