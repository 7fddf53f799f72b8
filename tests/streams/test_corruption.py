"""Corruptions: deterministic by row id, stronger with severity, only where asked, labels untouched."""

from __future__ import annotations

from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.streams import KINDS


def images(n: int = 600) -> Any:
    return dw.from_arrays(np.random.default_rng(0).uniform(0, 16, (n, 8, 8)), np.arange(n) % 10)


TABLE_KINDS = [kind for kind in KINDS if not kind.startswith("cifar-c:")]


@pytest.mark.parametrize("kind", TABLE_KINDS)
def test_each_kind(kind: str, table: Any) -> None:
    ids, clean, y = table(images())
    damage = []
    for severity in range(1, 6):
        ids2, x, y2 = table(dw.corrupt(images(), kind, severity))
        assert (ids2 == ids).all()
        assert (y2 == y).all()
        damage.append(np.nanmean(np.abs(np.nan_to_num(x, nan=-8.0) - clean)))
        assert np.nanmin(x) >= 0
        assert np.nanmax(x) <= 16
    assert damage[0] > 0
    assert damage[4] > damage[0]
    assert damage == sorted(damage)


def test_same_rows_same_damage_however_they_are_cut(table: Any) -> None:
    def cut(n: int) -> Any:
        return dw.rebatch(dw.corrupt(images(), "gaussian_noise", 3, start=100, stop=400), n)

    assert table(cut(512))[1].tobytes() == table(cut(7))[1].tobytes()


def test_only_from_start_to_stop(table: Any) -> None:
    stream = dw.corrupt(images(), "offset", 5, start=100, stop=400)
    assert stream.spec.drifts == (100, 400)
    events = list(stream)
    assert [(e.name, e.time) for e in events if isinstance(e, dw.Boundary)] == [
        ("offset 5", 100.0),
        ("offset ends", 400.0),
    ]
    changed = (table(events)[1] != table(images())[1]).any(axis=1)
    assert changed[100:400].all()
    assert not changed[:100].any()
    assert not changed[400:].any()


def test_nominal_columns_and_missing_values() -> None:
    columns = (dw.Column("kind", ("a", "b")), dw.Column("size", missing=False))
    spec = dw.StreamSpec("s", columns, classes=("0",), length=50)
    source = dw.from_arrays(np.tile([1.0, 2.0], (50, 1)), np.zeros(50, int), spec=spec)
    (noisy,) = dw.corrupt(source, "gaussian_noise", 5)
    assert (noisy.x[:, 0] == 1).all()
    source.seek({})
    torn = dw.corrupt(source, "missing", 5)
    assert all(c.missing for c in torn.spec.columns)
    (gone,) = torn
    assert np.isnan(gone.x[:, 0]).any()
    assert np.isnan(gone.x[:, 1]).any()


def test_what_is_refused() -> None:
    with pytest.raises(dw.InputError, match="known are gaussian_noise"):
        dw.corrupt(images(), "fog")
    with pytest.raises(dw.InputError, match="1 to 5"):
        dw.corrupt(images(), "blur", 6)
    with pytest.raises(dw.InputError, match="needs images"):
        dw.corrupt(dw.from_arrays(np.zeros((3, 4)), np.zeros(3, int)), "blur")
