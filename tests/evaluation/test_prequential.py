"""Prequential scores against slow references, scikit-learn, river and hand-worked numbers."""

from __future__ import annotations

import doctest
from itertools import pairwise
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.evaluation import metrics, prequential
from hypothesis import given, settings
from hypothesis import strategies as st
from river import metrics as river_metrics
from river import utils
from sklearn import metrics as sk_metrics

COLUMNS = (dw.Column("x"),)


def classes_spec(n: int | None = 3) -> dw.StreamSpec:
    return dw.StreamSpec("made", COLUMNS, classes=None if n is None else tuple(map(str, range(n))))


NUMBERS = dw.StreamSpec("made", COLUMNS, target="regression")


def answers(seed: int, rows: int = 700, classes: int = 3, right: float = 0.7) -> tuple[np.ndarray, ...]:
    """Labels in runs, answers that are often right, scores that are probabilities."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, rows)
    y = np.where(rng.random(rows) < 0.5, np.roll(y, 1), y)
    scores = rng.dirichlet(np.ones(classes), rows)
    scores[np.arange(rows), y] += right
    scores /= scores.sum(axis=1, keepdims=True)
    return y, scores.argmax(axis=1), scores


def same(one: Any, other: Any) -> bool:
    """Whether two state trees are equal bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    return bool(one == other) and type(one) is type(other)


# --- by hand ----------------------------------------------------------------------------------------------------


def test_the_example() -> None:
    assert doctest.testmod(prequential).failed == 0


def test_the_worked_example_of_the_prequential_note() -> None:
    watch = dw.Prequential(classes_spec(2), fading=0.9)
    watch.update_rows(np.array([0, 0, 1, 1, 1, 0]), np.array([0, 1, 1, 1, 0, 0]), None)
    row = watch.row()
    assert row["labelled"] == 6
    assert row["accuracy"] == row["accuracy_window"] == 4 / 6
    assert row["kappa"] == pytest.approx(1 / 3)
    assert row["majority"] == 1 / 6
    assert row["no_change"] == 3 / 6
    assert row["kappa_t"] == pytest.approx((4 / 6 - 3 / 6) / (1 - 3 / 6))
    assert row["kappa_m"] == pytest.approx((4 / 6 - 1 / 6) / (1 - 1 / 6))
    assert row["logloss"] is None


def test_the_fading_example_of_the_note() -> None:
    watch = dw.Prequential(classes_spec(2), fading=0.9)
    seen = []
    for label in (0, 1, 0):
        watch.update_rows(np.array([label]), np.array([0]), None)
        seen.append(1.0 - watch.row()["accuracy_fading"])
    assert seen == pytest.approx([0.0, 0.52632, 0.33210], abs=1e-5)


def test_before_the_first_label() -> None:
    for spec in (classes_spec(), NUMBERS):
        watch = dw.Prequential(spec)
        row = watch.row()
        assert tuple(row) == watch.columns
        assert row["labelled"] == row["alarms"] == 0
        assert all(v is None for k, v in row.items() if k not in ("labelled", "alarms"))
        summary = watch.summary()
        assert summary["accuracy"] is summary["mae"] is None
        assert summary["baseline"] == {"majority": None, "no_change": None}


def test_baselines_know_only_labels_that_had_come() -> None:
    """Labels delayed by two rows: what the baselines said at the prediction counts, not what they know by now."""
    watch = dw.Prequential(classes_spec(3))
    y = np.array([2, 1, 1, 0, 1])
    kept = []
    for i in range(len(y) + 2):
        if i < len(y):
            kept.append(watch.baseline(1))
        if i >= 2:
            watch.update(y[i - 2 : i - 1], np.array([0]), None, kept[i - 2])
    assert [k[0, 0] for k in kept] == [-1, -1, -1, 2, 1]
    assert [k[0, 1] for k in kept] == [-1, -1, -1, 2, 1]
    assert watch.row()["majority"] == watch.row()["no_change"] == 1 / 5
    assert watch.baseline(3)[:, :2].tolist() == [[1, 1]] * 3


def test_ties_of_the_majority_go_to_the_lowest_class() -> None:
    watch = dw.Prequential(classes_spec(3))
    said = []
    for label in [2, 1, 0, 1, 2, 2]:
        watch.update_rows(np.array([label]), np.array([0]), None)
        said.append(int(watch.baseline(1)[0, 0]))
    assert said == [2, 1, 0, 1, 1, 2]


# --- against references -------------------------------------------------------------------------------------------


def expected(y: np.ndarray, output: np.ndarray, scores: np.ndarray, majority: np.ndarray, last: np.ndarray) -> dict:
    return {
        "accuracy": metrics.accuracy(y, output),
        "balanced_accuracy": metrics.balanced_accuracy(y, output),
        "kappa": metrics.kappa(y, output),
        "kappa_m": metrics.kappa_m(y, output, majority),
        "kappa_t": metrics.kappa_t(y, output, last),
        "logloss": metrics.logloss(y, scores),
        "majority": metrics.accuracy(y, majority),
        "no_change": metrics.accuracy(y, last),
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("window", [1, 50, 1000])
def test_cumulative_and_window_are_the_pure_functions(seed: int, window: int) -> None:
    y, output, scores = answers(seed)
    majority, last = metrics.majority_answers(y), metrics.no_change_answers(y)
    watch = dw.Prequential(classes_spec(), window=window)
    at = 0
    for stop in (1, 2, 49, 50, 51, 333, 700):
        watch.update_rows(y[at:stop], output[at:stop], scores[at:stop])
        at, row = stop, watch.row()
        for part, way in ((slice(0, stop), ""), (slice(max(0, stop - window), stop), "_window")):
            wanted = expected(y[part], output[part], scores[part], majority[part], last[part])
            assert {k: row[k + way] for k in wanted} == pytest.approx(wanted, nan_ok=False)


@pytest.mark.parametrize("fading", [1.0, 0.999, 0.5])
def test_faded_scores_are_weighted_means(fading: float) -> None:
    y, output, scores = answers(7)
    watch = dw.Prequential(classes_spec(), fading=fading)
    watch.update_rows(y, output, scores)
    row, w = watch.row(), fading ** np.arange(len(y))[::-1]
    majority, last = metrics.majority_answers(y), metrics.no_change_answers(y)
    loss = -np.log(scores[np.arange(len(y)), y])
    assert row["accuracy_fading"] == pytest.approx(np.average(y == output, weights=w))
    assert row["accuracy_fading"] == pytest.approx(metrics.faded(y == output, fading)[-1])
    assert row["balanced_accuracy_fading"] == pytest.approx(
        sk_metrics.balanced_accuracy_score(y, output, sample_weight=w), rel=1e-6
    )
    assert row["kappa_fading"] == pytest.approx(sk_metrics.cohen_kappa_score(y, output, sample_weight=w))
    assert row["logloss_fading"] == pytest.approx(np.average(loss, weights=w))
    assert row["majority_fading"] == pytest.approx(np.average(y == majority, weights=w))
    assert row["no_change_fading"] == pytest.approx(np.average(y == last, weights=w))


def test_fading_over_many_rows_keeps_its_numbers_small() -> None:
    y, output, scores = answers(1, rows=60_000)
    watch = dw.Prequential(classes_spec(), fading=0.99)
    watch.update_rows(y, output, scores)
    assert watch.row()["accuracy_fading"] == pytest.approx(metrics.faded(y == output, 0.99)[-1])
    assert all(np.abs(a).max() < 1e34 for a in watch.state().values() if isinstance(a, np.ndarray))


def test_scores_are_rivers() -> None:
    y, output, scores = answers(3, rows=500)
    watch = dw.Prequential(classes_spec(), window=100)
    theirs = {
        "accuracy": river_metrics.Accuracy(),
        "balanced_accuracy": river_metrics.BalancedAccuracy(),
        "kappa": river_metrics.CohenKappa(),
        "accuracy_window": utils.Rolling(river_metrics.Accuracy, window_size=100),
        "kappa_window": utils.Rolling(river_metrics.CohenKappa, window_size=100),
    }
    loss = river_metrics.CrossEntropy()
    for i, (label, answer) in enumerate(zip(y.tolist(), output.tolist(), strict=True)):
        watch.update_rows(y[i : i + 1], output[i : i + 1], scores[i : i + 1])
        loss.update(label, dict(enumerate(scores[i].tolist())))
        for metric in theirs.values():
            metric.update(label, answer)
        if i in (30, 99, 100, 101, 499):
            row = watch.row()
            assert {k: row[k] for k in theirs} == pytest.approx({k: m.get() for k, m in theirs.items()})
            assert row["logloss"] == pytest.approx(loss.get())


def test_regression_is_scikit_learns() -> None:
    rng = np.random.default_rng(11)
    y, output = rng.normal(5.0, 2.0, 600), rng.normal(5.0, 2.0, 600)
    watch = dw.Prequential(NUMBERS, window=100)
    watch.update_rows(y, output, None)
    row = watch.row()
    last = np.concatenate([[0.0], y[:-1]])
    mean = np.concatenate([[0.0], np.cumsum(y)[:-1] / np.arange(1, 600)])
    for part, way in ((slice(None), ""), (slice(500, None), "_window")):
        assert row["mae" + way] == pytest.approx(sk_metrics.mean_absolute_error(y[part], output[part]))
        assert row["rmse" + way] == pytest.approx(sk_metrics.root_mean_squared_error(y[part], output[part]))
        assert row["majority" + way] == pytest.approx(sk_metrics.mean_absolute_error(y[part], mean[part]))
        assert row["no_change" + way] == pytest.approx(sk_metrics.mean_absolute_error(y[part], last[part]))
    assert row["mae_fading"] == pytest.approx(metrics.faded(np.abs(y - output))[-1])
    assert watch.summary()["accuracy"] is None
    assert watch.summary()["rmse"] == row["rmse"]


# --- how rows are cut makes no difference ---------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_cuts_make_no_difference(data: st.DataObject) -> None:
    """One call, many calls, one row a call with baselines kept beforehand: the same bits, alarms and drifts too."""
    n = data.draw(st.integers(1, 1500), label="rows")
    seed = data.draw(st.integers(0, 99), label="seed")
    regression = data.draw(st.booleans(), label="regression")
    drift = data.draw(st.integers(0, n), label="drift")
    cuts = sorted({0, n, drift, *data.draw(st.lists(st.integers(0, n), max_size=8), label="cuts")})
    y, output, scores = answers(seed, n, classes=9)
    rng = np.random.default_rng(seed)
    output = np.where((np.arange(n) >= drift) & (rng.random(n) < 0.7), -1, output)
    if regression:
        y, output = y + rng.normal(size=n), output.astype(float)
    kind: Any = None if regression else scores
    spec = NUMBERS if regression else classes_spec(None)
    one, cut, single = (dw.Prequential(spec, window=64, fading=0.97, refractory=50) for _ in range(3))
    for start, stop in ((0, drift), (drift, n)):
        if start == drift:
            for watch in (one, cut, single):
                watch.boundary("new", drift)
        one.update_rows(y[start:stop], output[start:stop], None if kind is None else kind[start:stop])
        inside = [c for c in cuts if start <= c <= stop]
        for a, b in pairwise(inside):
            cut.update_rows(y[a:b], output[a:b], None if kind is None else kind[a:b])
        for i in range(start, stop):
            part = None if kind is None else kind[i : i + 1]
            single.update(y[i : i + 1], output[i : i + 1], part, single.baseline(1))
    assert same(one.state(), cut.state())
    assert same(one.state(), single.state())
    assert one.row() == cut.row() == single.row()
    assert one.summary() == cut.summary() == single.summary()
    assert one.alarms() == cut.alarms() == single.alarms()


@pytest.mark.parametrize("regression", [False, True])
def test_saved_in_the_middle_and_restored(regression: bool) -> None:
    y, output, scores = answers(2, rows=1500)
    kind: Any = None if regression else scores
    if regression:
        y, output = y.astype(float), output.astype(float)
    spec = NUMBERS if regression else classes_spec(None)
    first = dw.Prequential(spec, window=100)
    first.update_rows(y[:700], output[:700], None if kind is None else kind[:700])
    first.boundary("new", 700)
    first.update_rows(y[700:777], output[700:777], None if kind is None else kind[700:777])
    second = dw.Prequential(spec, window=100)
    second.load(first.state())
    assert same(first.state(), second.state())
    for watch in (first, second):
        watch.update_rows(y[777:], 1 - output[777:], None if kind is None else kind[777:])
    assert same(first.state(), second.state())
    assert first.summary() == second.summary()
    assert first.alarms() == second.alarms() != []


def test_a_loaded_state_is_not_shared() -> None:
    y, output, scores = answers(2, rows=100)
    first, second = dw.Prequential(classes_spec()), dw.Prequential(classes_spec())
    first.update_rows(y, output, scores)
    second.load(first.state())
    before = first.row()
    second.update_rows(y, 1 - output, scores)
    second.boundary("new", 100)
    assert first.row() == before
    assert first.summary()["drifts"] == []


def test_a_state_of_another_window_is_refused() -> None:
    with pytest.raises(ValueError, match="window of 10 rows, not 20"):
        dw.Prequential(classes_spec(), window=20).load(dw.Prequential(classes_spec(), window=10).state())


# --- odd input ------------------------------------------------------------------------------------------------------


def test_scores_that_are_no_numbers_are_counted_and_poison_nothing() -> None:
    y, output, scores = answers(4, rows=300)
    bad = scores.copy()
    bad[[3, 50, 299], y[[3, 50, 299]]] = [np.nan, np.inf, -np.inf]
    watch = dw.Prequential(classes_spec())
    watch.update_rows(y, output, bad)
    assert watch.summary()["not_finite"] == 3
    assert watch.row()["logloss"] == pytest.approx(metrics.logloss(y, bad))
    assert all(np.isfinite(a).all() for a in watch.state().values() if isinstance(a, np.ndarray))


def test_answers_that_are_no_numbers_count_as_the_running_mean() -> None:
    watch, wanted = dw.Prequential(NUMBERS), dw.Prequential(NUMBERS)
    y = np.array([1.0, 3.0, 5.0, 7.0])
    watch.update_rows(y, np.array([np.nan, 2.0, np.inf, 6.0]), None)
    wanted.update_rows(y, np.array([0.0, 2.0, 2.0, 6.0]), None)
    assert watch.row() == wanted.row()
    assert watch.summary()["not_finite"] == 2


def test_enormous_errors_stay_finite() -> None:
    watch = dw.Prequential(NUMBERS, fading=0.5)
    for _ in range(300):
        watch.update_rows(np.array([1e308, -1e308, 1.0]), np.array([-1e308, 1e308, 1.0]), None)
    assert all(np.isfinite(a).all() for a in watch.state().values() if isinstance(a, np.ndarray))
    watch.update_rows(np.ones(1000), np.ones(1000), None)
    assert watch.row()["mae_window"] == watch.row()["rmse_window"] == 0.0


def test_rows_without_a_label_are_passed_over() -> None:
    y, output, scores = answers(5, rows=200)
    known = np.arange(200) % 3 > 0
    watch, wanted = dw.Prequential(classes_spec()), dw.Prequential(classes_spec())
    watch.update_rows(np.where(known, y, dw.NO_LABEL), output, scores)
    wanted.update_rows(y[known], output[known], scores[known])
    assert same(watch.state(), wanted.state())
    numbers, wanted = dw.Prequential(NUMBERS), dw.Prequential(NUMBERS)
    numbers.update_rows(np.where(known, y, np.nan), output.astype(float), None)
    wanted.update_rows(y[known].astype(float), output[known].astype(float), None)
    assert same(numbers.state(), wanted.state())


def test_classes_may_grow_and_the_model_may_lag_behind() -> None:
    """Labels of classes that the scores have no column for, and answers of no class at all."""
    y = np.array([0, 1, 700, 2, 4095, 3])
    output = np.array([0, 5, -1, 10**9, 4095, -(10**9)])
    scores = np.full((6, 2), 0.5)
    watch = dw.Prequential(classes_spec(None), window=4)
    watch.update_rows(y, output, scores)
    row = watch.row()
    assert row["accuracy"] == 2 / 6
    assert row["accuracy_window"] == 1 / 4
    assert row["logloss"] == pytest.approx(metrics.logloss(y, scores))
    assert row["kappa"] == pytest.approx(metrics.kappa(y, output))
    assert row["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy(y, output))
    watch.update_rows(np.zeros(4, dtype=np.int64), np.zeros(4, dtype=np.int64), None)
    assert watch.row()["accuracy_window"] == 1.0
    assert watch.row()["kappa_window"] is None


def test_any_kind_of_array_will_do() -> None:
    y, output, scores = answers(6, rows=50)
    plain, odd = dw.Prequential(classes_spec()), dw.Prequential(classes_spec())
    plain.update_rows(y, output, scores)
    frozen = y.copy()
    frozen.flags.writeable = False
    strided = np.repeat(output, 2)[::2].astype(np.int32)
    odd.update_rows(frozen, strided, np.asfortranarray(scores))
    assert same(plain.state(), odd.state())
    plain.update_rows(y[:0], output[:0], scores[:0])
    assert same(plain.state(), odd.state())


def test_some_rows_with_and_some_without_scores() -> None:
    y, output, scores = answers(8, rows=100)
    watch = dw.Prequential(classes_spec(), window=10)
    watch.update_rows(y[:60], output[:60], scores[:60])
    watch.update_rows(y[60:], output[60:], None)
    assert watch.row()["logloss"] == pytest.approx(metrics.logloss(y[:60], scores[:60]))
    assert watch.row()["logloss_window"] is None


@pytest.mark.parametrize("wrong", [{"window": 0}, {"fading": 0.0}, {"fading": 1.1}, {"refractory": -1}])
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="window is at least 1"):
        dw.Prequential(classes_spec(), **wrong)
