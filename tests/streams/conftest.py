"""What the stream tests share: events as comparable values, the seek check, and where staged data is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest


def value(event: Any) -> tuple[Any, ...]:
    """An event as a tuple that can be compared, arrays bit by bit."""
    fields = (getattr(event, name) for name in event.__dataclass_fields__)
    return (
        type(event).__name__,
        *((f.shape, f.dtype.str, f.tobytes()) if isinstance(f, np.ndarray) else f for f in fields),
    )


def check_seek(make: Callable[[], Any], at: Iterable[int] | None = None) -> list[Any]:
    """Seeking to the cursor behind event k gives exactly the events after it, on a fresh stream and on the used one."""
    stream = make()
    cursors = [json.dumps(stream.cursor())]
    events = []
    for event in stream:
        events.append(value(event))
        cursors.append(json.dumps(stream.cursor()))
    assert list(stream) == [], "a stream that has ended stays ended"
    assert max(map(len, cursors)) < 3000
    for k in range(len(cursors)) if at is None else sorted({k % len(cursors) for k in at}):
        for target in (make(), stream):
            target.seek(json.loads(cursors[k]))
            assert json.loads(json.dumps(target.cursor())) == json.loads(cursors[k])
            assert [value(e) for e in target] == events[k:], f"after event {k}"
    stream.seek({})
    assert [value(e) for e in stream] == events, "from the beginning"
    return events


@pytest.fixture(name="check_seek")
def check_seek_fixture() -> Callable[..., list[Any]]:
    return check_seek


def table(stream: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids, x and y of all batches."""
    batches = [e for e in stream if isinstance(e, dw.Batch)]
    return tuple(np.concatenate([getattr(b, name) for b in batches]) for name in ("ids", "x", "y"))  # type: ignore[return-value]


@pytest.fixture(name="table")
def table_fixture() -> Callable[[Any], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    return table


@pytest.fixture
def data() -> Path:
    """The folder of staged data sets; tests that need it are skipped without it."""
    folder = os.environ.get("DRIFTWAY_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("DRIFTWAY_DATA does not name a folder with data sets")
    return Path(folder)
