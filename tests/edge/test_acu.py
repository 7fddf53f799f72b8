"""ACU on a device: rank-one learning and forgetting beside the learner that keeps sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt.edge.runner import BundleError, Runner
from driftway.adapt.edge.steps import CannotExport, steps_of
from driftway.adapt.state import copy_state
from numpy.testing import assert_allclose

COLUMNS = (dw.Column("a"), dw.Column("colour", ("red", "green", "blue")), dw.Column("town", ("x", "y"), open=True))
SPEC = dw.StreamSpec("table", COLUMNS, classes=("n", "m", "p"))


def table(n: int, seed: int = 0) -> dw.Batch:
    rng = np.random.default_rng(seed)
    x = np.c_[rng.normal(2, 2, n), rng.integers(0, 3, n), rng.integers(0, 9, n)].astype(np.float64)
    x[rng.random(n) < 0.2, 0] = np.nan
    return dw.Batch(np.arange(n) + 100 * seed, x, 0.0, ((np.nan_to_num(x[:, 0]) > 2) + (x[:, 1] == 2)).astype(np.int64))


def learnt(**settings: Any) -> Any:
    learner = dw.learner("acu", SPEC, width=24, **settings)
    for i in range(3):
        batch = table(7, i)
        learner.learn(batch, learner.predict(batch))
    return learner


@pytest.fixture(name="acu", scope="module")
def acu_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    learner = learnt()
    return dw.export(learner, SPEC, tmp_path_factory.mktemp("acu") / "bundle")  # type: ignore[no-any-return]


def test_it_learns_and_forgets_as_the_learner_does(acu: Path) -> None:
    learner, runner = learnt(), Runner(acu)
    asked = table(40, 50)
    assert_allclose(runner.predict(asked.x), learner.predict(asked).scores, atol=1e-6)
    for i in range(3, 30):
        batch = table(4, i)
        learner.learn(batch, learner.predict(batch))
        runner.adapt(batch.x, batch.ids.tolist())
        assert runner.label(batch.ids.tolist(), batch.y.tolist()) == 4  # type: ignore[union-attr]
    assert_allclose(runner.predict(asked.x), learner.predict(asked).scores, atol=1e-6)
    gone = [300, 303, 1201, 2902]
    learner.forget(np.array(gone))
    runner.forget(gone)
    assert_allclose(runner.now["head"], learner.head.weights(), atol=1e-10)
    assert_allclose(runner.predict(asked.x), learner.predict(asked).scores, atol=1e-6)


def test_forgetting_what_was_learnt_gives_back_what_was(acu: Path) -> None:
    runner = Runner(acu)
    before = {k: v.copy() for k, v in runner.now.items()}
    batch = table(20, 9)
    runner.adapt(batch.x, batch.ids.tolist())
    runner.label(batch.ids.tolist(), batch.y.tolist())  # type: ignore[union-attr]
    runner.forget(batch.ids.tolist())
    assert runner.waiting == {}
    assert set(runner.learnt) == {100 * i + j for i in range(3) for j in range(7)}  # of before the export
    for name, value in runner.now.items():
        assert_allclose(value, before[name], atol=1e-10)


def test_rows_of_before_the_export_can_be_forgotten(acu: Path, tmp_path: Path) -> None:
    learner, runner = learnt(), Runner(acu)
    gone = [3, 104, 200]
    learner.forget(np.array(gone))
    runner.forget(gone)
    assert_allclose(runner.now["head"], learner.head.weights(), atol=1e-10)
    runner.save(tmp_path / "saved")
    again = Runner(acu, state=tmp_path / "saved")
    with pytest.raises(BundleError, match="not kept as learnt"):
        again.forget([104])


def test_rows_that_are_not_kept_or_too_many_stay_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    from driftway.adapt.edge import acu

    assert set(steps_of(learnt()).learnt) == {"learnt.ids", "learnt.x"}
    assert not steps_of(learnt(keep="digests", salt="s")).learnt
    monkeypatch.setattr(acu, "MOST", 100)
    assert not steps_of(learnt()).learnt


def test_requests_are_refused_as_a_whole(acu: Path) -> None:
    runner = Runner(acu)
    batch = table(3, 9)
    runner.adapt(batch.x, batch.ids.tolist())
    runner.label(batch.ids.tolist(), [0, 1, 0])
    before = {k: v.copy() for k, v in runner.now.items()}
    for ids in ([900, 17], [900, 900], []):
        with pytest.raises(BundleError, match="refused"):
            runner.forget(ids)
    with pytest.raises(BundleError, match="class code"):
        runner.learn(batch.x, [0, 1, 7])
    assert runner.label(batch.ids.tolist(), [7, -1, 3]) == 0
    far = np.array([[40.0, 0, 0], [50.0, 1, 1]])
    with pytest.raises(BundleError, match="not in the sums"):
        runner.learn(np.concatenate([batch.x[:1], far]), [0, 0, 0], "forget")
    for name, value in runner.now.items():
        assert_allclose(value, before[name], rtol=0, atol=0)


def test_what_was_saved_can_still_be_forgotten(acu: Path, tmp_path: Path) -> None:
    runner = Runner(acu)
    batch = table(5, 9)
    runner.adapt(batch.x, batch.ids.tolist())
    runner.label(batch.ids.tolist()[:3], batch.y.tolist()[:3])  # type: ignore[union-attr]
    runner.save(tmp_path / "saved")
    other = Runner(acu, state=tmp_path / "saved")
    other.forget([901])
    assert other.label([903], [1]) == 1
    assert other.label([901], [1]) == 0


def test_in_the_loop_it_forgets_by_a_receipt(acu: Path) -> None:
    edge, ours = dw.learner(f"edge:{acu}", SPEC), learnt()
    batch = table(6, 9)
    for learner in (edge, ours):
        learner.learn(batch, learner.predict(batch))
        receipt = learner.forget(np.array([901, 904]))
        assert receipt.ids == (901, 904)
        assert receipt.before != receipt.after
    assert_allclose(edge.predict(batch).scores, ours.predict(batch).scores, atol=1e-6)  # type: ignore[arg-type]
    with pytest.raises(dw.CannotForget, match="nothing was changed"):
        edge.forget(np.array([901]))


def test_rows_that_are_barred_go_and_stay_away(acu: Path) -> None:
    edge, ours = dw.learner(f"edge:{acu}", SPEC), learnt()
    batch = table(6, 9)
    for learner in (edge, ours):
        learner.learn(batch, learner.predict(batch))
        learner.bar(np.array([901, 904]))
    other = dw.learner(f"edge:{acu}", SPEC)
    other.load(copy_state(edge.state()))
    for learner in (other, ours):
        learner.learn(batch.rows(slice(1, 2)), learner.predict(batch.rows(slice(1, 2))))
    assert_allclose(other.predict(batch).scores, ours.predict(batch).scores, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "words"), [({"exact": "bitwise"}, "exact=float"), ({"engine": "float32"}, "engine=statistics")]
)
def test_what_has_no_graph_is_said(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CannotExport, match=words):
        steps_of(dw.learner("acu", SPEC, width=8, **settings))
    with pytest.raises(CannotExport, match="names its classes"):
        steps_of(dw.learner("acu", dw.StreamSpec("open", COLUMNS), width=8))


def test_on_a_network(tmp_path: Path) -> None:
    spec = dw.stream("digits-c").spec
    learner = dw.learner("acu", spec, backbone="convnet:4-8", width=0)
    x = np.random.default_rng(0).random((12, 64))
    batch = dw.Batch(np.arange(12), x, 0.0, np.arange(12) % 10)
    learner.learn(batch, learner.predict(batch))
    runner = Runner(dw.export(learner, spec, tmp_path / "bundle"))
    assert_allclose(runner.predict(x), learner.predict(batch).scores, atol=1e-4)
