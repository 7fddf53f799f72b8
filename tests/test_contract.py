"""What every learner promises, checked for each line of one table.

Adding a learner adds a line to ``CASES``. Each line runs on three small streams: a table with nominal columns and
missing values, one whose classes appear on the way, and, where the learner can, a numeric target.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt.learner import stack
from driftway.adapt.learners import LEARNERS, learner_class
from driftway.adapt.loop import Loop
from driftway.adapt.record import Record
from driftway.adapt.state import all_finite, copy_state, digest, join, split
from numpy.testing import assert_allclose, assert_array_equal

ROWS = 600


@dataclass(frozen=True)
class Case:
    """A learner and its settings.

    ``saves`` is False for foreign objects that have no ``State``. ``exact`` is False where a matrix product gives a row
    other last bits in company than alone. ``scale`` divides the numbers of rows, for learners that take long.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    saves: bool = True
    exact: bool = True
    scale: int = 1

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{k}={v}" for k, v in self.settings.items())])


def _network(name: str, **settings: Any) -> Case:
    """A gradient learner, small enough to be checked row by row."""
    return Case(name, {"model": "mlp:8", **settings}, exact=False, scale=8)


def _clicks(name: str, **settings: Any) -> Case:
    """A click model, small enough to be checked row by row."""
    roles = {"user": "town", "item": "colour", "history_bytes": 800} if name == "din" else {}
    small = {"dim": 4, "widths": "8", "embedding_bytes": 4000, "lr": 0.01}
    return Case(name, small | roles | settings, exact=False, scale=8)


CASES = [
    Case("majority"),
    Case("no-change"),
    Case("logistic", {"rate": 0.1, "l2": 0.001}),
    Case("frozen:logistic", {"after": 150}),
    Case("hoeffding-tree", {"grace": 40}),
    Case("hoeffding-tree", {"grace": 40, "adaptive": True}),
    Case("driftmoe"),
    Case("driftmoe", {"lean": True}),
    Case("driftmoe", {"faithful": True}),
    Case("driftmoe", {"variant": "task"}),
    Case("driftmoe", {"variant": "task", "faithful": True}),
    _network("finetune", momentum=0.9, weight_decay=0.01),
    _network("er", memory=20, optimizer="adamw", lr=0.01),
    _network("er-ace", memory=20, buffer="balanced"),
    _network("derpp", memory=20, split_gradients=True),
    _network("agem", memory=20, clip=1.0),
    _network("joint", head_only=True),
    _network("ewc", passes=2),
    _network("lwf", single_head=True),
    _network("adab2n", model="mlp-norm:8", ids="classes", ada_from=0, weight_decay=0.01),
    _network("migu", migu_select="random", optimizer="adamw", lr=0.01),
    _network("er+migu", memory=20, migu_mode="lazy", momentum=0.9, migu_layers="*", migu_bias=True),
    _network("lora", model="mlp:8-8", lora_rank=2, optimizer="adamw", lr=0.01),
    _network("er+lora+migu", model="mlp:8-8", lora_rank=2, lora_alpha=4.0, memory=20, momentum=0.9, lr=0.05),
    _network("inc-lora", model="mlp:8-8", lora_rank=2, lora_alpha=4.0, lora_dropout=0.2, lr=0.05),
    _network("o-lora", model="mlp:8-8", lora_rank=2, lora_alpha=4.0, ortho_l2=0.1, lr=0.05),
    _network("moe-lora", experts=3, expert_rank=2, expert_dropout=0.2, optimizer="adamw", lr=0.01),
    _network("er+inc-moe-lora", memory=20, expert_alpha=6.0, experts=3, expert_rank=2, top_k=2),
    _network("dymoe-tag", experts=3, expert_rank=2, base_expert=True, weight_decay=0.01, optimizer="adamw", lr=0.01),
    _network("dymoe", experts=3, expert_rank=2, base_expert=True, expert_alpha=6.0, balance=0.01, exclusive=False),
    Case("avalanche:Replay", {"model": "mlp:8", "mem_size": 20}, saves=False, exact=False, scale=8),
    _network("sparcl", model="mlp:40-40", sparsity=0.5, task_free=True, delta_updates=20, refresh=5),
    _network("sparcl", model="mlp:40-40", granularity="row", task_free=True, delta_updates=20, momentum=0.9),
    _network("random-mask", model="mlp:40-40", sparsity=0.5),
    _network("magnitude-mask", model="mlp:40-40", sparsity=0.5),
    _network("snip", model="mlp:40-40", sparsity=0.5, optimizer="adamw", lr=0.01),
    _network("set", model="mlp:40-40", sparsity=0.5),
    _network("rigl", model="mlp:40-40", sparsity=0.5, momentum=0.9),
    Case("acu", {"width": 12}, exact=False, scale=3),
    Case("acu", {"width": 12, "exact": "bitwise", "weighting": "air"}, exact=False, scale=3),
    Case("acu", {"width": 12, "engine": "low-latency", "keep": "digests", "salt": "s"}, exact=False, scale=3),
    _network("unlearn:scrub"),
    _network("unlearn:retrain"),
    Case("reloop2:logistic", {"warmup": 100, "slot": 50, "arrays": 8, "bits": 4, "centre": 40}),
    Case("reloop2:majority", {"warmup": 60, "strength": "hedge", "keep": "decay", "slot": 40, "arrays": 4, "bits": 3}),
    Case(
        "logistic+reloop2",
        {"warmup": 90, "base": "incremental", "renew": 130, "strength": "fixed", "memory": "exact", "capacity": 100},
    ),
    *(_clicks(name) for name in ("ctr-lr", "fm", "deepfm", "dcnv2", "din")),
    _clicks("deepfm+reloop2", warmup=20, slot=20, arrays=4, bits=3, code="colour"),
    Case("platt:logistic", {"warmup": 150}),
    Case("majority+platt", {"base": "incremental"}),
    Case("river:tree.HoeffdingTreeClassifier", saves=False),
    Case("river:tree.HoeffdingTreeRegressor", {"leaf_prediction": "mean"}, saves=False),
]

COLUMNS = (
    dw.Column("a", missing=False),
    dw.Column("colour", ("red", "green", "blue")),
    dw.Column("b"),
    dw.Column("town", ("x", "y"), open=True),
)
SPECS = {
    "table": dw.StreamSpec("table", COLUMNS, classes=("n", "m", "p")),
    "growing": dw.StreamSpec("growing", (dw.Column("a", missing=False), dw.Column("b"), dw.Column("c"))),
    "regression": dw.StreamSpec("regression", COLUMNS, target="regression"),
    "clicks": dw.StreamSpec("clicks", COLUMNS, classes=("no", "yes")),
}


def rows_of(case: Case, kind: str, n: int = ROWS, seed: int = 7) -> dw.Batch:
    """n labelled rows (fewer, by the case's scale) with a concept that changes half way."""
    n //= case.scale
    rng = np.random.default_rng(seed)
    a, b = rng.normal(2, 1.5, n), rng.exponential(3, n)
    late = np.arange(n) >= n // 2
    signal = np.where(late, b - a, a) + rng.normal(0, 0.2, n)
    if kind == "growing":
        x = np.c_[a, b, rng.normal(size=n)]
        y: Any = (signal > 2).astype(np.int64) + 2 * (np.arange(n) > n // 3) * (b > 4) + 3 * late * (a > 3)
    else:
        x = np.c_[a, rng.integers(0, 3, n), b, rng.integers(0, 9, n)]
        y = (
            signal * 10
            if kind == "regression"
            else (signal > 1.5).astype(np.int64) + (x[:, 1] == 2) * (kind == "table")
        )
    holes = rng.random(x.shape) < 0.05
    holes[:, 0] = False
    x[holes] = np.nan
    return dw.Batch(np.arange(n), x, 0.0, y)


def suits(case: Case, kind: str) -> bool:
    """River's class decides; ours say it. Click models know nothing but clicks, and nobody else needs those."""
    clicks = bool({*case.name.replace(":", "+").split("+")} & {n for n, e in LEARNERS.items() if e.given})
    if clicks or kind == "clicks":
        return clicks and kind == "clicks"
    if case.name.startswith("river:"):
        return (kind == "regression") == case.name.endswith("Regressor")
    return kind != "regression" or "regression" in learner_class(case.name).targets


def missing(case: Case) -> list[pytest.MarkDecorator]:
    """Skips what needs an extra that is not installed."""
    absent = case.name.startswith("avalanche:") and find_spec("avalanche") is None
    return [pytest.mark.skip("needs the extra avalanche")] if absent else []


def grid(saved_only: bool = False) -> list[Any]:
    """Every learner on every stream that it can do."""
    return [
        pytest.param(case, kind, id=f"{case}-{kind}", marks=missing(case))
        for case in CASES
        for kind in SPECS
        if suits(case, kind) and (case.saves or not saved_only)
    ]


every = pytest.mark.parametrize(("case", "kind"), grid())
every_saved = pytest.mark.parametrize(("case", "kind"), grid(saved_only=True))


def build(case: Case, kind: str, seed: int = 3) -> dw.Learner:
    return dw.learner(case.name, SPECS[kind], seed=seed, **case.settings)


class Events:
    """A list of events as a stream."""

    def __init__(self, kind: str, events: list[Any]) -> None:
        self.spec = SPECS[kind]
        self.events = events
        self.at = 0

    def __iter__(self) -> Iterator[Any]:
        while self.at < len(self.events):
            self.at += 1
            yield self.events[self.at - 1]

    def cursor(self) -> dict[str, Any]:
        return {"at": self.at}

    def seek(self, cursor: dict[str, Any]) -> None:
        self.at = cursor["at"]


def cut(batch: dw.Batch, sizes: list[int]) -> list[dw.Batch]:
    """The batch in pieces of these sizes, over and over."""
    pieces, at, i = [], 0, 0
    while at < len(batch):
        pieces.append(batch.rows(slice(at, at + sizes[i % len(sizes)])))
        at, i = at + sizes[i % len(sizes)], i + 1
    return pieces


def run(case: Case, kind: str, events: list[Any], **options: Any) -> tuple[Loop, list[Record], list[dict[str, Any]]]:
    """The loop after all events, its records, and the rows that it refused. ``watch=False``: without evaluators."""
    seen = [dw.Prequential(SPECS[kind], window=100)] if options.pop("watch", True) else []
    loop = Loop(build(case, kind), evaluators=seen, every=50, **options)
    records = list(loop.steps(Events(kind, events)))
    refused = [r.values for r in records if r.kind == "quarantine"]
    return loop, [r for r in records if r.kind != "quarantine"], refused


def outcome(loop: Loop) -> dict[str, Any]:
    """The summary without what the clock said, and the digest of the learner's state where it has one."""
    found = {k: v for k, v in loop.summary().items() if k not in ("seconds", "latency_ms", "ms_per_batch")}
    try:
        return found | {"state": digest(loop.learner.state())}
    except dw.CannotCheckpoint:
        return found


def same_answers(one: dw.Prediction, other: dw.Prediction) -> None:
    """Bit for bit, dtypes too; traces are the learner's own affair."""
    assert one.output.dtype == other.output.dtype
    assert_array_equal(one.output, other.output)
    assert (one.scores is None) == (other.scores is None)
    if one.scores is not None:
        assert_array_equal(one.scores, other.scores)


# --- the table --------------------------------------------------------------------------------------------------


def test_every_learner_has_a_case() -> None:
    """Recipes that start from a source model need clean rows: learners/test_test_time.py has their cases, and
    learners/test_centaur.py those of centaur, which has a class for plans and one for classes; edge/ has those of
    bundles."""
    adapting = {n for n, entry in LEARNERS.items() if entry.recipe or entry.classes or entry.takes == "bundle"}
    assert {part for case in CASES for part in case.name.partition(":")[0].split("+")} == set(LEARNERS) - adapting


# --- predict ----------------------------------------------------------------------------------------------------


@every
def test_answers_have_the_promised_form(case: Case, kind: str) -> None:
    learner, batch = build(case, kind), rows_of(case, kind)
    for prediction in (learner.predict(batch), learner.test_then_train(batch), learner.predict(batch)):
        assert prediction.output.shape == (len(batch),)
        if kind == "regression":
            assert prediction.output.dtype == np.float64
            assert prediction.scores is None
            assert np.isfinite(prediction.output).all()
            continue
        assert prediction.output.dtype == np.int64
        assert prediction.scores is not None
        assert prediction.scores.shape[0] == len(batch)
        assert (prediction.scores >= 0).all()
        assert np.isfinite(prediction.scores).all()
        assert ((prediction.output >= 0) & (prediction.output < prediction.scores.shape[1])).all()
    assert set(learner.telemetry()) == set(build(case, kind).telemetry())
    assert all(np.isfinite(list(learner.telemetry().values())))


@every_saved
def test_predict_changes_nothing(case: Case, kind: str) -> None:
    learner, batch = build(case, kind), rows_of(case, kind)
    learner.test_then_train(batch)
    before, given = digest(learner.state()), digest([batch.x, batch.y])
    first, second = learner.predict(batch), learner.predict(batch)
    same_answers(first, second)
    assert digest(learner.state()) == before
    assert digest([batch.x, batch.y]) == given


@every
def test_a_row_is_answered_alike_alone_and_in_company(case: Case, kind: str) -> None:
    learner, batch = build(case, kind), rows_of(case, kind)
    learner.test_then_train(batch)
    some = batch.rows(slice(0, 40))
    together, alone = learner.predict(some), stack([learner.predict(row) for row in cut(some, [1])])
    if case.exact:
        same_answers(together, alone)
    else:
        assert together.scores is not None
        assert_allclose(together.scores, alone.scores, rtol=1e-4, atol=1e-6)


# --- state ------------------------------------------------------------------------------------------------------


@every_saved
def test_state_is_a_state_and_finite(case: Case, kind: str) -> None:
    learner = build(case, kind)
    assert all_finite(copy_state(learner.state())) is None
    learner.test_then_train(rows_of(case, kind))
    assert all_finite(copy_state(learner.state())) is None


@every_saved
def test_saved_loaded_and_continued_equals_uninterrupted(case: Case, kind: str) -> None:
    """Saved at the start, early and late; what it is loaded into has been elsewhere, and must lose all of that."""
    batch, at = rows_of(case, kind), [n // case.scale for n in (0, 37, 450)]
    straight, saved, answers = build(case, kind), [], []
    for start, stop in zip(at, [*at[1:], len(batch)], strict=True):
        skeleton, arrays = split(straight.state())
        saved.append((json.dumps(skeleton), {k: np.array(v) for k, v in arrays.items()}, digest(straight.state())))
        answers.append(straight.test_then_train(batch.rows(slice(start, stop))))
    restored = build(case, kind)
    restored.test_then_train(rows_of(case, kind, 80, seed=99))
    for i, (text, arrays, before) in enumerate(saved):
        restored.load(join(json.loads(text), {k: np.array(v) for k, v in arrays.items()}))
        assert digest(restored.state()) == before
        same_answers(stack(answers[i:]), restored.test_then_train(batch.rows(slice(at[i], None))))
        assert digest(restored.state()) == digest(straight.state())


@every_saved
def test_loading_copies(case: Case, kind: str) -> None:
    first, second = build(case, kind), build(case, kind)
    first.test_then_train(rows_of(case, kind, 100))
    second.load(first.state())
    before = digest(second.state())
    first.test_then_train(rows_of(case, kind, 300, seed=8))
    assert digest(second.state()) == before


# --- one order of events, many ways to cut it -------------------------------------------------------------------


@every
def test_then_train_equals_predict_adapt_learn_row_by_row(case: Case, kind: str) -> None:
    batch, plain = rows_of(case, kind), build(case, kind)
    wanted = dw.Learner.test_then_train(plain, batch)
    for sizes in ([ROWS], [1, 7, 64], [100]):
        compiled = build(case, kind)
        same_answers(stack([compiled.test_then_train(piece) for piece in cut(batch, sizes)]), wanted)
        if case.saves:
            assert digest(compiled.state()) == digest(plain.state())


@every
def test_the_same_rows_in_other_events_leave_the_same_records(case: Case, kind: str) -> None:
    """One row at a time; in blocks, row by row; labels that come at once but apart, through the pending rows."""
    batch, apart = rows_of(case, kind), []
    for row in cut(batch, [1]):
        apart += [dw.Batch(row.ids, row.x, row.time), dw.Labels(row.ids, row.y, row.time)]
    singles = run(case, kind, cut(batch, [1]))
    for sizes in ([130], [1, 5, 90]):
        loop, records, _ = run(case, kind, cut(batch, sizes), row_by_row=True)
        assert records == singles[1]
        assert outcome(loop) == outcome(singles[0])
    assert outcome(run(case, kind, apart)[0]) == outcome(singles[0])


@every
@pytest.mark.parametrize("batch_size", [1, 8])
def test_late_and_missing_labels_are_learnt_in_the_order_they_come(case: Case, kind: str, batch_size: int) -> None:
    events: list[Any] = []
    pieces = cut(rows_of(case, kind, 300 if case.scale == 1 else 120 * case.scale), [batch_size])
    for i, piece in enumerate(pieces):
        events.append(dw.Batch(piece.ids, piece.x, piece.time))
        if i >= 10 and i % 7:
            late = pieces[i - 10]
            events.append(dw.Labels(late.ids, late.y, piece.time))
    loop, _, refused = run(case, kind, events, row_by_row=batch_size == 1)
    again, _, _ = run(case, kind, events, row_by_row=batch_size == 1)
    assert not refused
    assert 0 < loop.labelled < sum(map(len, pieces))
    assert outcome(loop) == outcome(again)


@every
def test_being_watched_changes_nothing(case: Case, kind: str) -> None:
    events = cut(rows_of(case, kind), [1, 30])
    watched, alone = run(case, kind, events, row_by_row=True), run(case, kind, events, row_by_row=True, watch=False)
    answer = [loop.learner.predict(rows_of(case, kind, 50, seed=1)) for loop in (watched[0], alone[0])]
    same_answers(*answer)
    assert outcome(watched[0]).get("state") == outcome(alone[0]).get("state")


# --- bad input --------------------------------------------------------------------------------------------------


def spoiled(kind: str, good: dw.Batch) -> list[tuple[Any, int, str]]:
    """Events that are wrong in one way each, how many rows of each are to be refused, and a word of the reason."""
    d, x, y = good.x.shape[1], good.x[:2], good.y[:2]  # type: ignore[union-attr, index]

    def changed(column: int, value: float) -> Any:
        cells = np.array(x)
        cells[0, column] = value
        return cells[:1]

    n = iter(range(10_000, 20_000))
    one: Any = lambda cells, label=y[:1]: dw.Batch(np.array([next(n)]), cells, 0.0, label)  # noqa: E731
    bad: list[tuple[Any, int, str]] = [
        (one(changed(0, np.nan)), 1, "column a: missing value"),
        (one(changed(2, np.inf)), 1, "infinite"),
        (one(changed(0, -np.inf)), 1, "column a: infinite"),
        (one(np.zeros((1, d + 1))), 1, "wrong width"),
        (one(np.array([["red"] * d])), 1, "not numbers"),
        (dw.Batch(good.ids[:1], x[:1], 0.0, y[:1]), 1, "duplicate id"),
        (dw.Labels(np.array([777_777]), y[:1], 0.0), 1, "unknown id"),
        (one(x[:1], np.array([np.inf])), 1, "label"),
        (one(x[:1], np.array(["spam"])), 1, "label: not a number"),
        (dw.Batch(np.empty(0, np.int64), np.empty((0, d)), 0.0, y[:0]), 1, "empty batch"),
        (dw.Rejected(55, "column b: 'abc' is no number", 0.0), 1, "'abc' is no number"),
        (dw.Batch(np.array([next(n), next(n)]), x, 0.0, y[:1]), 2, "label: 1 rows for 2 ids"),
    ]
    if kind != "regression":
        outside = {"table": 3, "clicks": 2}.get(kind, 4096)
        bad += [(one(x[:1], np.array([code])), 1, "out of range") for code in (outside, -2)]
        bad.append((one(x[:1], np.array([0.5])), 1, "not a class code"))
    if kind != "growing":
        bad += [(one(changed(1, code)), 1, "column colour: unknown category") for code in (3, -1, 0.5)]
    return bad


@every
@pytest.mark.parametrize("row_by_row", [True, False])
def test_bad_input_is_put_aside_and_touches_nothing(case: Case, kind: str, row_by_row: bool) -> None:
    batch = rows_of(case, kind, 300)
    good = cut(batch, [8])
    bad = spoiled(kind, batch)
    mixed: list[Any] = list(good)
    for i, (event, _, _) in enumerate(bad):
        mixed.insert(2 * i + 1, event)
    clean, dirty = (run(case, kind, e, row_by_row=row_by_row) for e in (good, mixed))
    reasons = [str(r["reason"]) for r in dirty[2]]
    expected = [reason for _, times, reason in bad for _ in range(times)]
    assert len(reasons) == len(expected)
    assert all(word in reason for word, reason in zip(expected, reasons, strict=True)), reasons
    assert all(isinstance(r["row"], int) for r in dirty[2])
    assert dirty[0].quarantined == len(expected)
    assert clean[1] == dirty[1]
    assert outcome(clean[0]) | {"quarantined": 0} == outcome(dirty[0]) | {"quarantined": 0}


@every
def test_good_rows_of_a_spoiled_batch_are_learnt(case: Case, kind: str) -> None:
    batch = rows_of(case, kind, 120)
    x = np.array(batch.x)
    x[5::10, 0] = np.inf
    kept = batch.rows(np.flatnonzero(np.isfinite(x[:, 0])))
    whole = dw.Batch(batch.ids, x, 0.0, batch.y)
    dirty, clean = run(case, kind, [whole], row_by_row=True), run(case, kind, [kept], row_by_row=True)
    assert len(dirty[2]) == len(batch) - len(kept)
    assert outcome(dirty[0]) | {"quarantined": 0} == outcome(clean[0])


# --- the guard, on every learner --------------------------------------------------------------------------------


@every_saved
def test_the_guard_brings_back_a_state_that_works(case: Case, kind: str) -> None:
    guard, learner = dw.Guard(every=100), build(case, kind)
    guard.begin(learner)
    learner.test_then_train(rows_of(case, kind, 200))
    assert guard.check(200, learner, {}) is None
    kept = digest(learner.state())
    learner.test_then_train(rows_of(case, kind, 100, seed=5))
    broken, arrays = split(learner.state())
    hurt = next((k for k, v in arrays.items() if v.dtype.kind == "f" and v.size), None)
    if hurt is None:
        pytest.skip("no floating-point array that could break")
    arrays = {k: np.array(v) for k, v in arrays.items()}
    arrays[hurt].reshape(-1)[0] = np.nan
    learner.load(join(broken, arrays))
    rollback = guard.check(300, learner, {})
    assert rollback is not None
    assert rollback.to_step == 200
    assert digest(learner.state()) == kept
    learner.test_then_train(rows_of(case, kind, 50, seed=6))


@pytest.mark.parametrize("case", [c for c in CASES if not c.saves], ids=str)
def test_what_cannot_be_saved_says_so(case: Case) -> None:
    learner = build(case, "regression" if suits(case, "regression") else "table")
    with pytest.raises(dw.CannotCheckpoint, match=case.name):
        learner.state()
