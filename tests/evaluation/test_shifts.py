"""Errors per shift and figures per session: by hand, with late labels, however rows are cut, saved and restored."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.evaluation.shifts import MOST, START, UNKNOWN, Sessions, Shifts
from driftway.evaluation.source_domain import BATCH, ROWS, SourceDomain
from driftway.streams import Source
from hypothesis import given, settings
from hypothesis import strategies as st

SPEC = dw.StreamSpec("made-up", (dw.Column("x"),), classes=tuple("abcd"), notes={"base": 2})


def tell(watch: Shifts | Sessions, y: list[int], output: list[int]) -> None:
    watch.update(np.array(y), np.array(output), None, watch.baseline(len(y)))


# --- shifts -------------------------------------------------------------------------------------------------------


def test_errors_by_hand() -> None:
    watch = Shifts(SPEC)
    assert watch.summary() == {"shifts": None, "shift_error": None}
    watch.boundary("fog 5", 0)
    tell(watch, [0, 1, 2, 3], [0, 1, 2, 0])
    watch.boundary("snow 5", 4)
    tell(watch, [0, 1], [1, 0])
    watch.boundary("nothing comes", 6)
    watch.boundary("fog 5", 6)
    tell(watch, [0, dw.NO_LABEL], [0, 0])
    assert watch.summary() == {"shifts": {"fog 5": 0.25, "snow 5": 1.0, "fog 5 (2)": 0.0}, "shift_error": 1.25 / 3}


def test_rows_before_any_boundary_have_a_name_of_their_own() -> None:
    watch = Shifts(SPEC)
    tell(watch, [0, 1], [0, 0])
    watch.boundary("fog 5", 2)
    tell(watch, [0], [0])
    assert watch.summary()["shifts"] == {START: 0.5, "fog 5": 0.0}


def test_a_stream_of_endless_shifts_is_held_in_bounded_memory() -> None:
    watch = Shifts(SPEC)
    for k in range(MOST + 50):
        watch.boundary(f"shift {k}", k)
        tell(watch, [0], [k % 2])
    assert len(watch.state()["counts"]) == MOST + 1
    assert len(watch.summary()["shifts"]) == MOST
    assert watch.summary()["shifts"][f"shift {MOST - 1}"] == pytest.approx(26 / 51)


class Parity(dw.Learner):
    """Answers 1 for odd ids of rows, else 0; never learns."""

    def predict(self, batch: dw.Batch) -> dw.Prediction:
        return dw.Prediction(batch.ids % 2, np.eye(4)[batch.ids % 2])

    def state(self) -> Any:
        return {}

    def load(self, state: Any) -> None:
        pass


class Stretched:
    """Two stretches of six and ten rows in one batch each; class 0 in the first, class 1 in the second."""

    spec = dw.StreamSpec("stretched", (dw.Column("x"),), classes=tuple("abcd"), notes={"stretches": []})

    def __iter__(self) -> Iterator[dw.streams.Event]:
        for name, first, last, label in (("one", 0, 6, 0), ("two", 6, 16, 1)):
            ids = np.arange(first, last)
            yield dw.Boundary(name, float(first))
            yield dw.Batch(ids, np.zeros((len(ids), 1)), float(first), np.full(len(ids), label))

    def cursor(self) -> dict[str, Any]:
        return {}

    def seek(self, cursor: dict[str, Any]) -> None:
        pass


@pytest.mark.parametrize("batch", [1, 2, 5, 16])
@pytest.mark.parametrize("delay", [0, 1, 3, 9])
@pytest.mark.parametrize("alone", [False, True])
def test_late_labels_count_where_their_rows_were_answered(batch: int, delay: int, alone: bool) -> None:
    """Half of each stretch is answered rightly, but by rows: a label that counts for the other stretch would show."""
    stream = dw.delay_labels(dw.rebatch(Stretched(), batch), delay)
    watch = Shifts(stream.spec)
    evaluators = [watch] if alone else [dw.Prequential(stream.spec), watch]
    loop = dw.Loop(Parity(stream.spec), evaluators=evaluators, row_by_row=batch == 1)
    for _ in loop.steps(stream):
        pass
    counts = watch.state()["counts"]
    assert counts.tolist() == [[0, 0], [6, 3], [10, 5]]
    assert loop.summary()["shifts"] == {"one": 0.5, "two": 0.5}


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_cuts_and_a_restart_make_no_difference(data: st.DataObject) -> None:
    n, drift = data.draw(st.integers(2, 120), label="rows"), data.draw(st.integers(0, 100), label="drift")
    drift = min(drift, n)
    cuts = sorted({0, n, drift, *data.draw(st.lists(st.integers(0, n), max_size=6), label="cuts")})
    restart = data.draw(st.sampled_from(cuts), label="restart")
    rng = np.random.default_rng(data.draw(st.integers(0, 99), label="seed"))
    y, output = rng.integers(0, 4, n), rng.integers(0, 4, n)
    for kind in (Shifts, Sessions):
        whole, cut = kind(SPEC), kind(SPEC)
        for start, stop in ((0, drift), (drift, n)):
            whole.boundary(f"from {start}", start)
            whole.update(y[start:stop], output[start:stop], None, whole.baseline(stop - start))
        for a, b in pairwise(cuts):
            if a == restart:
                again = kind(SPEC)
                again.load(cut.state())
                cut.boundary("not shared", a)
                cut = again
            for at in {0, drift} & {a}:
                cut.boundary(f"from {at}", at)
                if at == drift == 0:
                    cut.boundary("from 0", 0)
            cut.update(y[a:b], output[a:b], None, cut.baseline(b - a))
        if drift == n:
            cut.boundary(f"from {n}", n)
        assert whole.summary() == cut.summary()
        assert whole.state()["counts"].tolist() == cut.state()["counts"].tolist()


def in_disorder(rows: int) -> Any:
    return dw.stream("digits-c", setting="mixed", kinds=("fog", "contrast", "snow"), rows=rows, severity=4)


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("delay", [0, 5])
def test_rows_of_mixed_shifts_count_for_their_own(batch: int, delay: int) -> None:
    """``Parity`` is right about rows of odd ids whose class is 1 and of even ones whose class is 0."""
    spec = in_disorder(30).spec
    ids, y = (np.concatenate([getattr(e, k) for e in in_disorder(30) if isinstance(e, dw.Batch)]) for k in ("ids", "y"))
    right = y == ids % 2
    wanted = {n: 1 - right[spec.mixed.shift == k].mean() for k, n in enumerate(("fog 4", "contrast 4", "snow 4"))}
    stream = dw.delay_labels(dw.rebatch(in_disorder(30), batch), delay)
    watch = Shifts(stream.spec)
    loop = dw.Loop(Parity(stream.spec), evaluators=[dw.Prequential(stream.spec), watch], row_by_row=batch == 1)
    list(loop.steps(stream))
    assert loop.summary()["shifts"] == pytest.approx(wanted)
    assert list(loop.summary()["shifts"]) == list(wanted)
    assert watch.state()["counts"][:, 0].tolist() == [0, 30, 30, 30]


def test_rows_of_no_known_shift_have_a_name_of_their_own() -> None:
    stream = in_disorder(10)
    loop = dw.Loop(Parity(stream.spec), evaluators=[Shifts(stream.spec)])
    loop.predict(dw.Batch(np.array([500]), np.zeros((1, 64)), 0.0))
    loop.label(dw.Labels(np.array([500]), np.array([0]), 0.0))
    assert loop.summary()["shifts"] == {UNKNOWN: 0.0}


# --- sessions -----------------------------------------------------------------------------------------------------


def test_sessions_by_hand() -> None:
    """Session 0: 3 of 4 base. Session 1: base 1 of 2, new 1 of 4: all 2 of 6, HM 2 (1/2)(1/4) / (3/4) = 1/3."""
    watch = Sessions(SPEC)
    assert watch.summary() == {"few_shot": None}
    watch.boundary("session 0", 0)
    tell(watch, [0, 0, 1, 1], [0, 0, 1, 3])
    watch.boundary("session 1", 4)
    tell(watch, [0, 1, 2, 2, 3, 3], [0, 2, 2, 0, 0, 2])
    found = watch.summary()["few_shot"]
    first, second = found["sessions"]
    assert first == {
        "name": "session 0", "rows": 4, "accuracy": 0.75, "base_accuracy": 0.75, "new_accuracy": None,
        "harmonic_mean": None,
    }  # fmt: skip
    assert second["rows"] == 6
    assert (second["base_accuracy"], second["new_accuracy"]) == (0.5, 0.25)
    assert (second["accuracy"], second["harmonic_mean"]) == pytest.approx((1 / 3, 1 / 3))
    assert found["accuracy"] == pytest.approx((3 / 4 + 1 / 3) / 2)
    assert (found["base_accuracy"], found["new_accuracy"]) == (0.625, 0.25)
    assert found["harmonic_mean"] == pytest.approx(1 / 3)
    assert found["drop"] == pytest.approx(3 / 4 - 1 / 3)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_labelled_rows_that_bring_a_class_are_no_queries(batch: int) -> None:
    stream = dw.take(dw.rebatch(dw.stream("digits-gilcd", rows=30, passes=1), batch), 200)
    watch = Sessions(stream.spec)
    loop = dw.Loop(dw.learner("majority", stream.spec), evaluators=[dw.Prequential(stream.spec), watch],
                   row_by_row=batch == 1)  # fmt: skip
    for _ in loop.steps(stream):
        pass
    shots = 2 * 2 * stream.spec.notes["shots"]
    sessions = loop.summary()["few_shot"]["sessions"]
    assert loop.labelled == stream.spec.length
    assert sum(s["rows"] for s in sessions) == loop.labelled - shots
    assert [s["name"] for s in sessions] == [name for name, *_ in stream.spec.notes["sessions"]]


# --- source domain ------------------------------------------------------------------------------------------------


class Known:
    """Answers class 0 to the first ``right`` of the rows, told by their number, and class 1 to the others."""

    def __init__(self, right: int) -> None:
        self.right = right
        self.asked: list[int] = []

    def probe(self, x: Any) -> Any:
        self.asked += x[:, 0].astype(int).tolist()
        return lambda: np.column_stack([x[:, 0] < self.right, x[:, 0] >= self.right]).astype(float)


def source(rows: int) -> Source:
    x = np.arange(rows, dtype=np.float32)[:, None]
    return Source("clean", (0, 1), lambda: (x, np.zeros(rows, int)), lambda: (x, np.zeros(rows, int)))


def test_forgetting_by_hand() -> None:
    watch = SourceDomain(source(450))
    assert watch.summary() == {"source_domain": None}
    watch.begin(Known(360))
    watch.begin(Known(0))  # a run that goes on does not ask again
    watch.end(Known(90))
    told = watch.summary()["source_domain"]
    assert told == {"before": 0.8, "after": 0.2, "forgotten": pytest.approx(0.6), "rows": 450}


def test_what_was_known_before_survives_a_restart() -> None:
    watch, again = SourceDomain(source(100)), SourceDomain(source(100))
    watch.begin(Known(70))
    again.load(watch.state())
    again.begin(Known(0))
    again.end(Known(80))
    assert again.summary()["source_domain"]["forgotten"] == pytest.approx(-0.1)


def test_many_rows_are_judged_by_the_same_part_of_them_every_time() -> None:
    first, second, small = Known(0), Known(0), []
    SourceDomain(source(ROWS + 500)).begin(first)
    SourceDomain(source(ROWS + 500)).begin(second)
    assert first.asked == second.asked
    assert len(set(first.asked)) == ROWS
    learner = Known(0)
    learner.probe = lambda x: (small.append(len(x)), Known.probe(learner, x))[1]  # type: ignore[method-assign]
    SourceDomain(source(BATCH + 1)).begin(learner)
    assert small == [BATCH, 1]


def test_a_source_without_test_rows_says_nothing() -> None:
    watch = SourceDomain(source(0))
    watch.begin(Known(0))
    watch.end(Known(0))
    assert watch.summary() == {"source_domain": None}
