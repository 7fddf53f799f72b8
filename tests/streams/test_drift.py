"""Joined and sliding concepts: which rows come when, where boundaries stand, and what is refused."""

from __future__ import annotations

from typing import Any

import driftway as dw
import numpy as np
import pytest


def constant(value: float, n: int = 1000, name: str = "s") -> Any:
    """Rows that tell where they come from: x = (value, row of the part)."""
    x = np.column_stack([np.full(n, value), np.arange(n)])
    return dw.from_arrays(x, np.arange(n) % 2, name=name)


def boundaries(stream: Any) -> list[int]:
    stream.seek({})
    return [int(e.time) for e in stream if isinstance(e, dw.Boundary)]


def test_abrupt(table: Any) -> None:
    stream = dw.concat(constant(0, 700), constant(1, 300), constant(2, 500))
    ids, x, _ = table(stream)
    assert ids.tolist() == list(range(1500))
    assert x[:, 0].tolist() == [0] * 700 + [1] * 300 + [2] * 500
    assert stream.spec.length == 1500
    assert stream.spec.drifts == (700, 1000) == tuple(boundaries(stream))


def test_gradual_uses_every_row_once_and_follows_the_sigmoid(table: Any) -> None:
    width, n = 400, 20_000
    stream = dw.concat(constant(0, n), constant(1, n), width=width, seed=1)
    ids, x, _ = table(stream)
    assert ids.tolist() == list(range(2 * n)) == list(range(stream.spec.length))
    for value in (0, 1):
        assert x[x[:, 0] == value, 1].tolist() == list(range(n))
    assert stream.spec.drifts == (n - width // 2,) == tuple(boundaries(stream))
    shares = []
    for seed in range(30):
        _, x, _ = table(
            dw.take(dw.concat(constant(0, 2000), constant(1, 2000), width=width, position=1000, seed=seed), 1500)
        )
        shares.append(x[:, 0])
    mean = np.mean(shares, axis=0)
    for offset in (-300, -200, 0, 200, 300):
        rows = slice(1000 + offset - 20, 1000 + offset + 20)
        assert abs(mean[rows].mean() - 1 / (1 + np.exp(-4 * offset / width))) < 0.05
    assert mean[: 1000 - width].max() == 0
    assert mean[1000 + width :].min() == 1


def test_linear_ramp(table: Any) -> None:
    _, x, _ = table(dw.concat(constant(0, 5000), constant(1, 5000), width=2000, ramp="linear", position=2500))
    assert x[:1500, 0].max() == 0
    assert x[3500:, 0].min() == 1
    assert abs(x[1500:3500, 0].mean() - 0.5) < 0.05


def test_recurring_parts_go_on_and_start_again_once_they_have_ended(table: Any) -> None:
    a, b = constant(0), constant(1)
    _, x, _ = table(dw.concat(a, b, a, position=[300, 500]))
    assert x[:, 0].tolist() == [0] * 300 + [1] * 200 + [0] * 700
    assert x[500:, 1].tolist() == list(range(300, 1000))
    a, b = constant(0), constant(1)
    stream = dw.concat(a, b, a)
    _, x, _ = table(stream)
    assert x[2000:, 1].tolist() == list(range(1000))
    assert stream.spec.length == 3000


def test_parts_may_share_their_source(table: Any) -> None:
    a = constant(1)
    _, x, _ = table(dw.concat(a, dw.corrupt(a, "scaling", 4), width=100))
    assert x[x[:, 0] == 1, 1].tolist() == list(range(1000))
    assert x[x[:, 0] == 2, 1].tolist() == [2.0 * k for k in range(1000)]


def test_rejected_rows_keep_their_number_and_say_where_they_come_from() -> None:
    x = np.zeros((10, 1))
    x[3] = np.inf
    part = dw.from_arrays(x, np.zeros(10, int), classes=("a", "b"), name="torn")
    events = list(dw.concat(dw.from_arrays(np.zeros((5, 1)), np.zeros(5, int), classes=("a", "b")), part))
    (rejected,) = (e for e in events if isinstance(e, dw.Rejected))
    assert "row 3 of torn" in rejected.reason
    ids = np.concatenate([e.ids for e in events if isinstance(e, dw.Batch)])
    assert len({*ids, rejected.row}) == 15
    assert max(ids) == 14


def test_what_concat_refuses() -> None:
    with pytest.raises(dw.InputError, match="differ in columns"):
        dw.concat(constant(0), dw.from_arrays(np.zeros((5, 3)), np.zeros(5, int)))
    with pytest.raises(dw.InputError, match="overlap"):
        dw.concat(constant(0), constant(1), constant(2), position=[500, 600], width=200)
    with pytest.raises(dw.InputError, match="rising"):
        dw.concat(constant(0), constant(1), constant(2), position=[500, 100])
    with pytest.raises(dw.InputError, match="no known length"):
        dw.concat(dw.stream("river:synth.SEA"), dw.stream("river:synth.SEA"), width=10)
    with pytest.raises(dw.InputError, match="delay labels after"):
        list(dw.concat(dw.delay_labels(constant(0), 10), constant(1)))
    with pytest.raises(dw.InputError, match="no stream"):
        dw.concat()


def test_incremental_slides(table: Any) -> None:
    stream = dw.incremental(constant(0), constant(1), start=200, span=500)
    ids, x, _ = table(stream)
    np.testing.assert_allclose(x[:, 0], np.clip((ids - 200) / 500, 0, 1))
    assert (x[:, 1] == ids).all()
    assert stream.spec.drifts == (200,) == tuple(boundaries(stream))
    _, x, _ = table(dw.incremental(constant(0), constant(1), constant(5)))
    assert abs(x[499, 0] - 1) < 0.01
    assert abs(x[749, 0] - 3) < 0.01
    with pytest.raises(dw.InputError, match="two or more"):
        dw.incremental(constant(0))
    with pytest.raises(dw.InputError, match="no rows for the change"):
        dw.incremental(constant(0), constant(1), start=1000)


def test_incremental_mixes_labels_and_nominal_columns(table: Any) -> None:
    columns = (dw.Column("kind", ("a", "b")), dw.Column("size"))
    spec = dw.StreamSpec("s", columns, classes=("0", "1"), length=4000)

    def part(value: int) -> Any:
        return dw.from_arrays(np.full((4000, 2), float(value)), np.full(4000, value), spec=spec)

    _, x, y = table(dw.incremental(part(0), part(1)))
    assert set(x[:, 0]) == {0.0, 1.0}
    assert (x[:, 0] == y).all()
    assert 0.2 < y[1000:2000].mean() < 0.55
    assert y[3000:].mean() > 0.8
