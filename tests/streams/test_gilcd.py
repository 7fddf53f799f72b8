"""Few-shot class-incremental streams: what comes with labels and what without, sessions, drifts, seeks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest


def kinds(stream: Any) -> list[str]:
    return [type(e).__name__ for e in stream]


def split_at_boundaries(stream: Any) -> list[list[Any]]:
    sessions: list[list[Any]] = []
    for event in stream:
        if isinstance(event, dw.Boundary):
            sessions.append([])
        sessions[-1].append(event)
    return sessions


def test_sessions_of_digits() -> None:
    stream = dw.stream("digits-gilcd")
    spec = stream.spec
    assert spec.classes == tuple("0123456789")
    assert spec.notes["base"] == 6
    assert [s[2:] for s in spec.notes["sessions"]] == [[[], "noise"], [[6, 7], "contrast"], [[8, 9], "inversion"]]
    sessions = split_at_boundaries(stream)
    assert len(sessions) == 3
    assert sum(len(e) for s in sessions for e in s if isinstance(e, dw.Batch)) == spec.length
    assert [s[0].time for s in sessions] == [0.0, *spec.drifts]
    assert [s[0].name for s in sessions] == ["session 0: base classes", "session 1: classes 6, 7",
                                             "session 2: classes 8, 9"]  # fmt: skip
    for k, (_, *events) in enumerate(sessions):
        labelled = [e for e in events if isinstance(e, dw.Batch) and e.y is not None]
        assert len(labelled) == (k > 0)
        if k:
            assert events[0] is labelled[0]
            assert np.bincount(labelled[0].y, minlength=10).tolist() == [
                5 * (c in (4 + 2 * k, 5 + 2 * k)) for c in range(10)
            ]
            events = events[1:]
        for batch, labels in zip(events[::2], events[1::2], strict=True):
            assert batch.y is None
            assert isinstance(labels, dw.Labels)
            assert not labels.learn
            assert batch.ids.tolist() == labels.ids.tolist()
        told = np.concatenate([e.y for e in events[1::2]])
        assert set(told.tolist()) == set(range(6 + 2 * k))


def test_source_has_base_classes_only_and_shots_are_not_repeated() -> None:
    stream = dw.stream("digits-gilcd", drifts="none")
    source = stream.spec.source
    assert source.classes == tuple(range(6))
    x, y = source.train()
    assert set(y.tolist()) == set(range(6))
    known = {r.tobytes() for r in x}
    batches = [e for e in stream if isinstance(e, dw.Batch)]
    shots = [r.astype(np.float32).tobytes() for b in batches if b.y is not None for r in b.x]
    assert len(set(shots)) == len(shots) == 20
    queries = {r.astype(np.float32).tobytes() for b in batches if b.y is None for r in b.x}
    assert not queries & (known | set(shots))


def test_drifts() -> None:
    def rows(drift: str) -> np.ndarray:
        return np.concatenate([e.x for e in dw.stream("digits-gilcd", drifts=drift) if isinstance(e, dw.Batch)])

    clean = rows("none")
    np.testing.assert_allclose(rows("contrast"), 0.5 + 0.4 * (clean - 0.5), atol=1e-12)
    np.testing.assert_allclose(rows("inversion"), 0.7 * clean + 0.3 * (1 - clean), atol=1e-12)
    middle = (clean > 0.45) & (clean < 0.55)
    assert (rows("noise") - clean)[middle].std() == pytest.approx(0.27, abs=0.02), "0.3, cut at black and white"
    assert np.abs(rows("cifar-c:fog") - clean).mean() > 0.1


def test_order_and_seed() -> None:
    def told(**params: Any) -> np.ndarray:
        return np.concatenate([e.y for e in dw.stream("digits-gilcd", **params) if isinstance(e, dw.Labels)])

    assert (np.diff(told(order="sorted", passes=1)) != 0).sum() < 6 + 8 + 10
    assert (np.diff(told(passes=1)) != 0).mean() > 0.8
    assert len(told()) == 2 * len(told(passes=1))
    assert len(told(rows=50, passes=1)) == 150
    other = dw.stream("digits-gilcd", seed=1).spec
    assert other.classes != tuple("0123456789")
    assert sorted(other.classes) == list("0123456789")


def test_seek(check_seek: Any) -> None:
    check_seek(lambda: dw.stream("digits-gilcd", drifts="noise,cifar-c:glass_blur"))
    check_seek(lambda: dw.rebatch(dw.stream("digits-gilcd", rows=60), 16), range(0, 60, 5))


def test_shots_keep_their_labels_in_other_batches() -> None:
    for n in (1, 4, 16, 64, 1000):
        batches = [e for e in dw.rebatch(dw.stream("digits-gilcd", rows=60), n) if isinstance(e, dw.Batch)]
        shots = [b for b in batches if b.y is not None]
        assert sum(map(len, shots)) == 20
        assert all((b.y >= 6).all() for b in shots)
        assert max(map(len, batches)) == min(n, 120)


def test_labels_for_judging_stay_so() -> None:
    source = dw.stream("digits-gilcd", rows=60)
    for composed in (
        dw.rebatch(source, 16),
        dw.take(source, 300),
        dw.drop_labels(source, 0.5),
        dw.corrupt(source, "offset"),
    ):
        composed.seek({})
        labels = [e for e in composed if isinstance(e, dw.Labels)]
        assert labels
        assert not any(e.learn for e in labels)
        assert composed.spec.source is source.spec.source


def test_omniglot(data: Path) -> None:
    if not (data / "omniglot_small1.npz").exists():
        pytest.skip("omniglot_small1.npz is not in DRIFTWAY_DATA")
    stream = dw.stream("omniglot-gilcd")
    spec = stream.spec
    assert (spec.n_classes, spec.shape, len(spec.notes["sessions"])) == (100, (1, 28, 28), 9)
    x, y = spec.source.train()
    assert np.bincount(y).tolist() == [15] * 60
    assert 0.03 < x.mean() < 0.2
    assert x.max() == pytest.approx(1.0, abs=0.05)
    assert len(spec.source.test()[1]) == 300
    batches = [e for e in stream if isinstance(e, dw.Batch)]
    assert [len(b) for b in batches if b.y is not None] == [25] * 8
    assert sum(len(b) for b in batches) == spec.length
    assert len(dw.stream("mnist-gilcd", rows=30).spec.notes["sessions"]) == 3


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for params, message in [
        ({"drifts": "fog"}, "drifts must be"),
        ({"base": 11}, "1 to 10"),
        ({"ways": 0}, "at least 1"),
        ({"shots": 1000}, "fewer than 1000"),
        ({"severity": 0}, "1 to 5"),
        ({"rows": -1}, "at least 0"),
    ]:
        with pytest.raises(dw.InputError, match=message):
            dw.stream("digits-gilcd", **params)
    monkeypatch.setenv("DRIFTWAY_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(dw.InputError, match="brendenlake/omniglot") as caught:
        dw.stream("omniglot-gilcd")
    assert "\n" not in str(caught.value)
    np.savez(tmp_path / "omniglot_small1.npz", x=np.zeros(3))
    with pytest.raises(dw.InputError, match="not the arrays"):
        dw.stream("omniglot-gilcd")
