"""The guard beside the source: what it calls a collapse, how far it goes back, and that it has no say until then."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt.loop import Loop
from driftway.adapt.record import Record
from driftway.adapt.source_watch import SourceWatch
from driftway.adapt.state import digest, join, split
from driftway.evaluation.label_free import estimated_gain

CLASSES = 5
SPEC = dw.StreamSpec("s", (dw.Column("a"), dw.Column("b")), classes=tuple("uvwxy"))


def one_hot(classes: Any, sure: float = 0.9) -> Any:
    p = np.full((len(classes), CLASSES), (1 - sure) / (CLASSES - 1))
    p[np.arange(len(classes)), classes] = sure
    return p


class Drifting(dw.Learner):
    """The truth is column a; who errs at a rate errs where column b is below it. What adapts is a pull, the share of
    rows that are answered with class 0; every step adds ``rate`` to it."""

    needs = frozenset({"source"})

    def __init__(self, rate: float = 0.0, error: float = 0.3, mine: float = 0.2) -> None:
        super().__init__(SPEC)
        self.rate, self.error, self.mine = rate, error, mine
        self.pull = np.zeros(1)
        self.adaptations = self.calls = self.gentle = 0
        self.skips = False

    def said(self, batch: dw.Batch, error: float, pull: float) -> np.ndarray:
        """The truth but for errors where column b is small, then all too often class 0; as sure as it is right."""
        truth, b = batch.x[:, 0].astype(int), batch.x[:, 1]
        answer = np.where(b < error, (truth + 1 + (b * 1e4).astype(int) % (CLASSES - 1)) % CLASSES, truth)
        answer = np.where((b * 7919) % 1 < pull, 0, answer)
        return one_hot(answer, 1 - error)

    def predict(self, batch: dw.Batch) -> dw.Prediction:
        scores = self.said(batch, self.mine, float(np.nan_to_num(self.pull[0])))
        return dw.Prediction(scores.argmax(1), scores)

    def source_scores(self, batch: dw.Batch) -> Any:
        self.calls += 1
        return self.said(batch, self.error, 0.0)

    def adapt(self, batch: dw.Batch, prediction: dw.Prediction) -> None:  # noqa: ARG002
        self.adaptations += 1
        self.pull = self.pull + self.rate

    def adapted(self) -> Any:
        return {"pull": self.pull}

    def restore(self, adapted: Any) -> None:
        self.pull = np.array(adapted["pull"])

    def gentler(self) -> None:
        self.gentle += 1
        self.rate /= 2

    def telemetry(self) -> dict[str, float]:
        return {"skipped": float(self.adaptations if self.skips else 0)}

    def state(self) -> Any:
        return {"pull": self.pull, "adaptations": self.adaptations, "rate": self.rate, "gentle": self.gentle}

    def load(self, state: Any) -> None:
        self.restore(state)
        self.adaptations, self.gentle = int(state["adaptations"]), int(state["gentle"])
        self.rate = float(state["rate"])


class Still(Drifting):
    """Nothing moves."""

    def adapted(self) -> Any:
        return None


class Sourceless(Drifting):
    def source_scores(self, batch: dw.Batch) -> Any:  # noqa: ARG002
        return None


class Rows:
    """So many rows in batches, labels at once, late, or for judging only."""

    spec = SPEC

    def __init__(self, n: int, size: int = 16, truth: Any = None, labels: str = "now") -> None:
        rng = np.random.default_rng(3)
        self.truth = rng.integers(0, CLASSES, n) if truth is None else np.asarray(truth)
        self.x = np.c_[self.truth, rng.random(n)]
        self.size, self.labels, self.at = size, labels, 0

    def __iter__(self) -> Iterator[Any]:
        events: list[Any] = []
        for at in range(0, len(self.x), self.size):
            part = slice(at, min(at + self.size, len(self.x)))
            ids, y = np.arange(len(self.x))[part], self.truth[part].astype(np.int64)
            events.append(dw.Batch(ids, self.x[part], float(at), y if self.labels == "now" else None))
            if self.labels != "now":
                events.append(dw.Labels(ids, y, float(at), learn=self.labels == "late"))
        for event in events[self.at :]:
            self.at += 1
            yield event

    def cursor(self) -> dict[str, Any]:
        return {"at": self.at}

    def seek(self, cursor: dict[str, Any]) -> None:
        self.at = cursor["at"]


def run(learner: Drifting, rows: Rows, watch: SourceWatch | None = None, **options: Any) -> tuple[Loop, list[Record]]:
    watch = SourceWatch() if watch is None else watch
    loop = Loop(learner, evaluators=[dw.Prequential(SPEC)], source_watch=watch, every=100, **options)
    return loop, list(loop.steps(rows))


def happened(records: list[Record]) -> list[str]:
    return [r.kind for r in records if r.kind in ("rollback", "frozen", "warning")]


# --- signs ------------------------------------------------------------------------------------------------------


def test_one_batch_in_eight_is_in_shadow_the_first_included() -> None:
    loop, _ = run(Drifting(), Rows(16 * 17))
    assert loop.learner.calls == 3
    assert loop.summary()["source"]["shadow_rows"] == 48


@pytest.mark.parametrize("size", [1, 16, 64])
def test_a_better_learner_is_left_alone(size: int) -> None:
    learner = Drifting()
    loop, records = run(learner, Rows(3000, size))
    assert happened(records) == []
    found = loop.summary()["source"]
    assert found["gain"] > 0.05
    assert found["estimated_gain"] > 0
    assert found["rollbacks"] == 0


@pytest.mark.parametrize("truth", ["sorted", "one class", "runs"])
@pytest.mark.parametrize("size", [1, 16])
def test_labels_in_order_are_no_collapse(truth: str, size: int) -> None:
    """The learner is right and the source less often: only beside uniform would this look like a collapse."""
    n = 8000
    ys = {"sorted": np.arange(n) * CLASSES // n, "one class": np.full(n, 2), "runs": np.arange(n) // 40 % CLASSES}
    loop, records = run(Drifting(mine=0.02, error=0.25), Rows(n, size, ys[truth]))
    assert happened(records) == []
    assert loop.summary()["source"]["gain"] > 0.15


def test_collapse_goes_back_to_the_last_good_snapshot() -> None:
    """Well behaved for 4,000 rows, then every step pulls: not back to the beginning, but to where all was well."""

    class Late(Drifting):
        def adapt(self, batch: dw.Batch, prediction: dw.Prediction) -> None:
            self.rate = 0.005 if self.adaptations > 250 else 1e-5
            super().adapt(batch, prediction)

    learner = Late()
    loop, records = run(learner, Rows(9600))
    notes = [r.values["note"] for r in records if r.kind == "rollback"]
    assert 1 <= len(notes) == loop.rollbacks
    to = int(notes[0].split()[3].rstrip(":"))
    assert 800 < to < 4200
    assert learner.pull[0] < 1


def test_the_second_collapse_calms_and_the_third_freezes() -> None:
    learner = Drifting(rate=0.02)
    loop, records = run(learner, Rows(12_000))
    assert happened(records).count("rollback") == 3 == loop.rollbacks
    assert happened(records).count("frozen") == 1
    frozen = loop.summary()["source"]["frozen_at"]
    assert frozen == next(r.step for r in records if r.kind == "frozen")
    assert learner.gentle == 1
    assert learner.adaptations == frozen // 16
    assert learner.pull[0] == 0


@pytest.mark.parametrize("standing", [True, False])
def test_rollback_is_worth_points(standing: bool) -> None:
    def accuracy(watch: SourceWatch | None) -> float:
        loop = Loop(Drifting(rate=0.01), evaluators=[dw.Prequential(SPEC)], source_watch=watch)
        for _ in loop.steps(Rows(12_000)):
            pass
        return float(loop.summary()["accuracy"])

    assert accuracy(SourceWatch(stand_in=standing)) > accuracy(None) + 0.2


def test_what_is_not_finite_goes_back_to_the_newest_snapshot() -> None:
    class Breaks(Drifting):
        def adapt(self, batch: dw.Batch, prediction: dw.Prediction) -> None:
            super().adapt(batch, prediction)
            if self.adaptations == 200:
                self.pull = self.pull * np.nan

    learner = Breaks(rate=1e-5)
    _, records = run(learner, Rows(4000))
    notes = [r.values["note"] for r in records if r.kind == "rollback"]
    assert len(notes) == 1
    assert notes[0].endswith("state.pull is not finite")
    assert 1600 <= int(notes[0].split()[3].rstrip(":")) < 3200
    assert np.isfinite(learner.pull).all()


# --- doubt ------------------------------------------------------------------------------------------------------


def test_a_learner_that_looks_worse_is_named_once_and_its_source_answers() -> None:
    worse = {"mine": 0.6, "error": 0.1}
    loop, records = run(Still(**worse), Rows(6000), SourceWatch(stand_in=True))
    assert happened(records) == ["warning"]
    found = loop.summary()["source"]
    assert found["gain"] < -0.4
    assert found["estimated_gain"] < -0.05
    assert found["stood_in"] > 4000
    alone, _ = run(Still(**worse), Rows(6000), SourceWatch(stand_in=False))
    assert alone.summary()["source"]["gain"] == found["gain"]
    assert alone.summary()["source"]["stood_in"] == 0
    assert loop.summary()["accuracy"] > alone.summary()["accuracy"] + 0.3


def test_nothing_to_adapt_to_is_said_once() -> None:
    learner = Drifting()
    learner.skips = True
    _, records = run(learner, Rows(4000))
    notes = [r.values["note"] for r in records if r.kind == "warning"]
    assert notes == ["50 of the last 50 batches had no row to adapt to"]


def test_without_a_source_it_is_silent() -> None:
    loop, records = run(Sourceless(rate=0.02), Rows(3000))
    assert happened(records) == []
    assert loop.summary()["source"] is None
    assert loop.learner.pull[0] > 1


# --- figures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["now", "late", "judging"])
@pytest.mark.parametrize("row_by_row", [True, False])
def test_the_true_gain_is_that_of_the_same_rows(labels: str, row_by_row: bool) -> None:
    size = 1 if row_by_row else 16
    learner, rows = Drifting(), Rows(1600, size, labels=labels)
    loop, records = run(learner, rows, row_by_row=row_by_row)
    shadow = (np.arange(1600) // size) % 8 == 0
    batch = dw.Batch(np.arange(1600), rows.x, 0.0)
    both = (learner.predict(batch).scores, learner.source_scores(batch))
    mine, its = (s.argmax(1)[shadow] == rows.truth[shadow] for s in both)
    won = mine.astype(float) - its
    found = loop.summary()["source"]
    assert found["judged_rows"] == shadow.sum()
    assert found["adapted"] == pytest.approx(mine.mean())
    assert found["source"] == pytest.approx(its.mean())
    assert found["gain"] == pytest.approx(won.mean())
    assert found["gain_se"] == pytest.approx(won.std() / np.sqrt(len(won)))
    last = records[-1].values
    assert last["source_gain"] == pytest.approx(won[-256:].mean() if len(won) > 256 else won.mean())
    assert -1 <= last["source_gain_estimated"] <= 1


def test_no_label_no_gain() -> None:
    class Unlabelled(Rows):
        def __iter__(self) -> Iterator[Any]:
            return (e for e in super().__iter__() if isinstance(e, dw.Batch))

    loop, _ = run(Drifting(), Unlabelled(3000, labels="late"))
    found = loop.summary()["source"]
    assert found["gain"] is found["gain_se"] is found["adapted"] is None
    assert found["estimated_gain"] is not None


# --- no say until then, and over a restart ----------------------------------------------------------------------


@pytest.mark.parametrize("row_by_row", [True, False])
def test_where_nothing_fires_nothing_changes(row_by_row: bool) -> None:
    rows = {"size": 1 if row_by_row else 16}
    watched, seen = run(Drifting(rate=1e-5), Rows(2000, **rows), row_by_row=row_by_row)
    alone = Loop(Drifting(rate=1e-5), evaluators=[dw.Prequential(SPEC)], every=100, row_by_row=row_by_row)
    unseen = list(alone.steps(Rows(2000, **rows)))
    assert digest(watched.learner.state()) == digest(alone.learner.state())
    strip = [{k: v for k, v in r.values.items() if k not in SourceWatch.columns} for r in seen]
    assert strip == [r.values for r in unseen]


@pytest.mark.parametrize("labels", ["now", "late"])
def test_stopped_anywhere_and_resumed_equals_undisturbed(labels: str) -> None:
    """Over rollbacks, gentler steps, freezing and the source's answers; through what a checkpoint writes."""
    whole, expected = run(Drifting(rate=0.02), Rows(12_000, labels=labels))
    found, kept, at = [], None, 0
    for stop in (16, 800, 1600, 2400, 5000, 9000, 12_000):
        loop = Loop(Drifting(rate=0.02), evaluators=[dw.Prequential(SPEC)], source_watch=SourceWatch(), every=100)
        rows = Rows(12_000, labels=labels)
        rows.seek({"at": at})
        if kept is not None:
            loop.load(join(*kept))
        for record in loop.steps(rows):
            found.append(record)
            if record.step >= stop and stop < 12_000:
                loop.stop()
        kept, at = split(loop.state()), rows.at
        kept = (kept[0], {k: v.copy() for k, v in kept[1].items()})
    assert found == expected
    assert digest(loop.state()) == digest(whole.state())
    assert loop.summary()["source"] == whole.summary()["source"]
    assert "frozen" in happened(expected)


# --- the estimate -----------------------------------------------------------------------------------------------


def test_the_estimate_is_not_taken_in_by_confidence() -> None:
    rng = np.random.default_rng(0)
    source = one_hot(rng.integers(0, CLASSES, 400), 0.7)
    collapsed = one_hot(np.zeros(400, int), 0.999)
    assert collapsed.max(1).mean() > source.max(1).mean() + 0.2
    assert estimated_gain(collapsed, source) < -0.3
    assert estimated_gain(source, source) == 0


def test_the_estimate_sees_runs_that_were_lost() -> None:
    """As sure and as spread as the source, but the runs that the source finds are gone."""
    rng = np.random.default_rng(0)
    runs = np.arange(400) // 20 % CLASSES
    assert estimated_gain(one_hot(rng.permutation(runs)), one_hot(runs)) < -0.3
    assert estimated_gain(one_hot(runs), one_hot(rng.permutation(runs))) == pytest.approx(0, abs=1e-6)


def test_the_estimate_is_within_the_share_of_rows_that_differ() -> None:
    its = np.arange(400) % CLASSES
    mine = its.copy()
    mine[:8] = 0
    differ = float((mine != its).mean())
    assert estimated_gain(one_hot(mine, 0.99), one_hot(its, 0.4)) == pytest.approx(differ)
    assert estimated_gain(one_hot(its, 0.4), one_hot(mine, 0.99)) == pytest.approx(-differ)


@pytest.mark.parametrize("options", [{"every": 0}, {"window": 63}, {"keep": 0}, {"apart": 0}])
def test_options_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        SourceWatch(**options)
