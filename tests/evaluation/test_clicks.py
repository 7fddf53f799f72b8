"""Click scores against pairs counted one by one, and scikit-learn's AUC; the evaluator against the functions."""

from __future__ import annotations

from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.evaluation import clicks
from driftway.evaluation.clicks import COLUMNS, ClickScores, auc, binned_auc, by_slot, calibration, click_scores, gauc
from driftway.streams.feed import uniform
from sklearn.metrics import roc_auc_score


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, n), rng.integers(0, 9, n) / 8, rng.integers(0, 6, n)


def test_auc_is_the_share_of_pairs() -> None:
    y, p, _ = drawn(60)
    pairs = [(p[i] > p[j]) + 0.5 * (p[i] == p[j]) for i in np.flatnonzero(y) for j in np.flatnonzero(y == 0)]
    assert auc(y, p) == pytest.approx(np.mean(pairs))
    assert auc(y, p) == pytest.approx(roc_auc_score(y, p))
    assert auc(y, 1 - p) == pytest.approx(1 - np.mean(pairs))


def test_gauc_drops_users_of_one_class_and_weighs_by_rows() -> None:
    y, p, user = drawn(200)
    y[user == 2] = 1
    parts = [(roc_auc_score(y[user == u], p[user == u]), (user == u).sum()) for u in (0, 1, 3, 4, 5)]
    assert gauc(y, p, user) == pytest.approx(sum(a * n for a, n in parts) / sum(n for _, n in parts))
    assert gauc(y, p, np.arange(200)) is None
    assert gauc(y, p, np.zeros(200)) == pytest.approx(auc(y, p))


def test_what_is_not_defined_is_none() -> None:
    none = dict.fromkeys(("auc", "gauc", "logloss", "calibration"))
    assert click_scores([], [], []) == none
    assert calibration([0, 0], [0.1, 0.2]) is None


def test_slots_are_scored_alone() -> None:
    y, p, user = drawn(300)
    slot = np.repeat([7, 3, 5], 100)
    found = by_slot(y, p, slot, user)
    assert list(found) == [3, 5, 7]
    assert found[3] == click_scores(y[100:200], p[100:200], user[100:200])
    assert by_slot(y, p, slot)[3]["gauc"] is None
    assert found[7]["logloss"] == pytest.approx(
        -np.mean(np.log(np.where(y == 1, p, 1 - p).clip(1e-15))[:100]), rel=1e-6
    )


# --- the evaluator --------------------------------------------------------------------------------------------------

SCORES = ("auc", "gauc", "logloss", "calibration")


def spec(n: int | None, users: Any = None, times: Any = None) -> dw.StreamSpec:
    impressions = dw.Impressions(users, times)
    return dw.StreamSpec("shop", (dw.Column("x"),), classes=("no", "click"), length=n, impressions=impressions)


def show(watch: ClickScores, ids: Any, y: np.ndarray, p: np.ndarray, cut: int = 10_000) -> ClickScores:
    """Rows as the loop hands them over, in calls of at most ``cut``."""
    for rows in np.split(np.asarray(ids), range(cut, len(ids), cut)):
        watch.rows(rows, y[rows], np.column_stack([1 - p[rows], p[rows]]))
    return watch


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for score in SCORES:
        assert found[score] == (None if expected[score] is None else pytest.approx(expected[score], rel=1e-12)), score


def test_two_users_in_two_slots_by_hand() -> None:
    y, p = np.array([1, 0, 0, 1, 0, 1, 1, 1]), np.array([0.8, 0.4, 0.6, 0.6, 0.5, 0.2, 0.5, 0.9])
    users, times = np.array([0, 0, 1, 1, 0, 0, 1, -1]), np.array([0.0, 1, 2, 49, 50, 60, 99, 100])
    watch = show(ClickScores(spec(8, users, times), 2), [7, 0, 2, 1, 5, 3, 4, 6], y, p)  # labels come in any order
    told = watch.summary()
    first, second = told["clicks"]["slots"]
    assert [first["from"], first["to"], second["to"]] == [0.0, 50.0, 100.0]
    assert [first["rows"], first["clicks"], second["rows"], second["clicks"]] == [4, 2, 4, 3]
    assert first["auc"] == 3.5 / 4  # .8 > .4, .8 > .6, .6 > .4, .6 = .6
    assert first["gauc"] == (2 * 1.0 + 2 * 0.5) / 4  # user 0: .8 > .4; user 1: .6 = .6
    assert second["auc"] == 1.5 / 3  # .2 < .5, .5 = .5, .9 > .5
    assert second["gauc"] == 0.0  # user 0: .2 < .5; user 1 has clicks only; nobody's row counts for no user
    assert first["calibration"] == pytest.approx(2.4 / 2)
    assert second["calibration"] == pytest.approx(2.1 / 3)
    assert first["logloss"] == pytest.approx(-np.log(0.8 * 0.6 * 0.4 * 0.6) / 4)
    assert told["auc"] == told["clicks"]["auc"] == pytest.approx(10 / 15) == roc_auc_score(y, p)
    assert told["gauc"] == pytest.approx((4 * 2 / 4 + 3 * 0.5 / 2) / 7)  # user 1: .6 = .6, .5 < .6
    assert told["clicks"]["auc_margin"] == 0.0
    assert told["clicks"]["users_share"] == 1.0


@pytest.mark.parametrize("cut", [1, 7, 10_000])
def test_the_evaluator_says_what_the_functions_say(cut: int) -> None:
    rng = np.random.default_rng(3)
    n = 900
    y, p, users = rng.integers(0, 2, n), rng.integers(1, 40, n) / 40, rng.integers(-1, 30, n)
    times = np.sort(rng.exponential(1.0, n)) * 3600
    slot = np.minimum((times - times[0]) / (times[-1] - times[0]) * 7, 6).astype(int)
    watch = show(ClickScores(spec(n, users, times), 7), rng.permutation(n), y, p, cut)
    told, known = watch.summary(), users >= 0
    for s, found in enumerate(told["clicks"]["slots"]):
        here = slot == s
        same(
            found,
            click_scores(y[here], p[here]) | {"gauc": gauc(y[here & known], p[here & known], users[here & known])},
        )
        both = 0 < y[here].sum() < here.sum()
        assert found["auc"] == (pytest.approx(roc_auc_score(y[here], p[here])) if both else None)
    same(told["clicks"], click_scores(y, p) | {"gauc": gauc(y[known], p[known], users[known])})
    assert told["auc"] == pytest.approx(roc_auc_score(y, p))


def test_empty_slots_and_slots_of_one_class_have_no_scores() -> None:
    y, p = np.array([1, 1, 0, 0, 1]), np.array([0.5, 0.6, 0.2, 0.3, 0.4])
    watch = show(ClickScores(spec(5, np.zeros(5, int), np.array([0.0, 1, 90, 91, 99])), 10), np.arange(5), y, p)
    slots = watch.summary()["clicks"]["slots"]
    assert [s["rows"] for s in slots] == [2, *[0] * 8, 3]
    assert slots[4] | {"from": 0, "to": 0} == {
        "from": 0,
        "to": 0,
        "rows": 0,
        "clicks": 0,
        "auc_margin": 0.0,
    } | dict.fromkeys(SCORES)
    assert (slots[0]["auc"], slots[0]["gauc"]) == (None, None)
    assert slots[0]["calibration"] == pytest.approx(0.55)
    assert slots[9]["auc"] == 1.0


def test_rows_without_label_or_probability_are_passed_over() -> None:
    watch = ClickScores(spec(6), 2)
    assert watch.summary() == {"auc": None, "gauc": None, "clicks": None}
    watch.rows(np.arange(2), np.array([0, 1]), None)
    watch.rows(np.arange(2), np.array([-1, 1]), np.array([[0.5, 0.5], [np.nan, np.nan]]))
    assert watch.summary()["clicks"] is None
    assert watch.row() == dict.fromkeys(COLUMNS)
    watch.rows(np.arange(3), np.array([0, 1, -1]), np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]))
    told = watch.summary()
    assert (told["auc"], told["gauc"], told["clicks"]["rows"], told["clicks"]["users_share"]) == (1.0, None, 2, None)
    assert told["clicks"]["logloss"] == pytest.approx(0.0, abs=1e-14)


def test_records_tell_of_the_slot_that_is_over() -> None:
    rng = np.random.default_rng(0)
    y, p, users = rng.integers(0, 2, 40), rng.random(40), rng.integers(0, 3, 40)
    watch = show(ClickScores(spec(40, users), 4), np.arange(10), y, p)
    assert watch.row() == {"auc": pytest.approx(auc(y[:10], p[:10]), abs=0.05)} | dict.fromkeys(COLUMNS[1:])
    show(watch, np.arange(10, 25), y, p)
    told = watch.row()
    assert told["slot"] == 2
    same({s: told[f"slot_{s}"] for s in SCORES}, click_scores(y[10:20], p[10:20], users[10:20]))
    show(watch, np.arange(25, 29), y, p)
    assert {k: v for k, v in watch.row().items() if k != "auc"} == {k: v for k, v in told.items() if k != "auc"}
    show(watch, np.arange(29, 40), y, p)
    assert watch.row()["slot"] == 4


def test_a_stream_of_unknown_length_is_one_slot() -> None:
    y, p, _ = drawn(50)
    told = show(ClickScores(spec(None), 10), np.arange(50), y, p).summary()
    assert [s["rows"] for s in told["clicks"]["slots"]] == [50]
    assert told["auc"] == pytest.approx(roc_auc_score(y, p))


def test_ids_beyond_the_stream_count_for_the_last_slot_and_no_user() -> None:
    watch = ClickScores(spec(4, np.array([0, 0, 1, 1]), np.arange(4.0)), 2)
    watch.rows(np.array([900, -7]), np.array([1, 0]), np.array([[0.2, 0.8], [0.7, 0.3]]))
    told = watch.summary()
    assert [s["rows"] for s in told["clicks"]["slots"]] == [1, 1]
    assert (told["auc"], told["gauc"]) == (1.0, None)


@pytest.mark.parametrize("cut", [1, 250, 10_000])
def test_past_the_bound_auc_is_binned_and_gauc_is_of_users_drawn(monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    monkeypatch.setattr(clicks, "KEPT", 500)
    rng = np.random.default_rng(5)
    n = 6000
    users = rng.integers(0, 200, n)
    logit = rng.normal(size=n) + rng.normal(size=200)[users]
    y, p = (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(int), 1 / (1 + np.exp(-logit - rng.normal(size=n)))
    watch = show(ClickScores(spec(n, users), 2), np.arange(n), y, p, cut)
    told = watch.summary()["clicks"]
    share = told["users_share"]
    assert share in (1 / 16, 1 / 32)
    mine = uniform(0, users) < share
    assert 0 < mine.sum() <= 500
    assert told["gauc"] == pytest.approx(gauc(y[mine], p[mine], users[mine]))
    halves = [mine & (np.arange(n) // 3000 == s) for s in (0, 1)]
    assert [s["gauc"] for s in told["slots"]] == [pytest.approx(gauc(y[m], p[m], users[m])) for m in halves]
    assert 0 < told["auc_margin"] < 2e-3
    assert abs(told["auc"] - roc_auc_score(y, p)) < 1e-5 < told["auc_margin"]
    assert told["logloss"] == pytest.approx(click_scores(y, p)["logloss"])


def test_past_the_bound_nobodys_rows_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clicks, "KEPT", 64)
    y, p, _ = drawn(1000)
    watch = show(ClickScores(spec(1000), 4), np.arange(1000), y, p, 100)
    told = watch.summary()["clicks"]
    assert told["gauc"] is None
    assert told["auc"] == pytest.approx(roc_auc_score(y, p), abs=told["auc_margin"])
    assert len(watch.state()["p"]) == 0


def test_the_bound_of_binned_auc_holds_where_all_is_one_bin() -> None:
    counts = np.zeros((8, 2), np.int64)
    counts[3] = 5, 7
    assert binned_auc(counts) == (0.5, 0.5)
    counts[3, 1] = 0
    assert binned_auc(counts) == (None, 0.0)


@pytest.mark.parametrize("kept", [90, 10_000])
def test_saved_and_restored_goes_on_the_same(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    monkeypatch.setattr(clicks, "KEPT", kept)
    rng = np.random.default_rng(8)
    y, p, users = rng.integers(0, 2, 400), rng.random(400), rng.integers(0, 40, 400)
    at_once, first, second = (ClickScores(spec(400, users), 5) for _ in range(3))
    for start in (0, 130):
        show(at_once, np.arange(start, 400 if start else 130), y, p)
        at_once.row()
    show(first, np.arange(130), y, p).row()
    second.load(first.state())
    show(first, np.arange(130, 400), y, p)  # the copy keeps its own
    assert show(second, np.arange(130, 400), y, p, 33).row() == at_once.row()
    assert second.summary() == at_once.summary()
    assert all(np.array_equal(a, b) for a, b in zip(second.state().values(), at_once.state().values(), strict=True))
    with pytest.raises(ValueError, match="5 time slots, not 6"):
        ClickScores(spec(400, users), 6).load(first.state())


def test_what_is_no_click_stream_is_refused() -> None:
    plain = dw.StreamSpec("plain", (dw.Column("x"),), classes=("no", "yes"))
    with pytest.raises(ValueError, match="plain is no click stream"):
        ClickScores(plain)
    for slots in (0, 201):
        with pytest.raises(dw.InputError, match=f"time-slots: must be 1 to 200, not {slots}"):
            ClickScores(spec(10), slots)
