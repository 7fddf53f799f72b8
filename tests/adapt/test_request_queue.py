"""Requests that wait are carried out as one change, in order, each with its own receipt and line in the ledger."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
from driftway.adapt.checkpoint import Checkpointer

RNG = np.random.default_rng(4)
X = RNG.normal(size=(200, 4))
Y = (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 1)
SPEC = dw.StreamSpec("s", tuple(dw.Column(c) for c in "abcd"), classes=("l", "m", "n"))


def rows(first: int, last: int, *, labels: bool = True) -> dw.Batch:
    at = np.arange(first, last)
    return dw.Batch(at, X[at], 0.0, Y[at] if labels else None)


def taught(ledger: Path | None = None, checkpoint: Path | None = None) -> dw.Loop:
    loop = dw.Loop(
        dw.learner("acu", SPEC, seed=0, width=16, exact="bitwise"),
        ledger=None if ledger is None else dw.Ledger(ledger),
        checkpoint=None if checkpoint is None else Checkpointer(checkpoint),
    )
    loop.predict(rows(0, 200))
    return loop


def never(*gone: int) -> str:
    learner: Any = dw.learner("acu", SPEC, seed=0, width=16, exact="bitwise")
    keep = np.setdiff1d(np.arange(200), gone)
    learner.learn(dw.Batch(keep, X[keep], 0.0, Y[keep]), dw.Prediction(Y[keep]))
    found: str = learner.head.digest()
    return found


def ask(*ids: int, reason: str = "") -> dw.Forget:
    return dw.Forget(np.array(ids, np.int64), 0.0, reason)


def head(loop: dw.Loop) -> str:
    learner: Any = loop.learner
    found: str = learner.head.digest()
    return found


def count_updates(loop: dw.Loop, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of every change of the head from now on."""
    learner: Any = loop.learner
    sizes: list[int] = []
    forget = learner.head.forget

    def counted(x: Any, y: Any, **how: Any) -> None:
        forget(x, y, **how)
        sizes.append(len(x))

    monkeypatch.setattr(learner.head, "forget", counted)
    return sizes


def test_what_waits_is_one_update_with_a_line_for_each_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = taught(tmp_path / "ledger.jsonl", tmp_path / "c")
    queue, sizes = dw.RequestQueue(loop), count_updates(loop, monkeypatch)
    before = head(loop)
    asked = [ask(7, 3, reason="first"), ask(), ask(100, reason="third"), ask(50, 51, 52)]
    tickets = [queue.put(request) for request in asked]
    assert len(queue) == 4
    assert queue.serve() == tickets
    assert (len(queue), sizes) == (0, [6])
    loop.save({})
    entries = dw.Ledger(tmp_path / "ledger.jsonl").entries()
    assert [entry["ids"] for entry in entries] == [[7, 3], [], [100], [50, 51, 52]]
    assert [entry["reason"] for entry in entries] == ["first", "", "third", ""]
    assert [list(entry["certificate"]["digests"]) for entry in entries] == [["7", "3"], [], ["100"], ["50", "51", "52"]]
    assert [entry["certificate"]["together"] for entry in entries] == [
        {"request": k, "of": 4, "rows": 6} for k in (1, 2, 3, 4)
    ]
    assert {entry["before"] for entry in entries} == {before}
    assert {entry["after"] for entry in entries} == {head(loop)} == {never(3, 7, 50, 51, 52, 100)}
    assert len(list((tmp_path / "c").iterdir())) == 1
    assert [t.receipt.ids for t in tickets if t.receipt is not None] == [(7, 3), (), (100,), (50, 51, 52)]


def test_a_learner_without_digests_counts_the_rows_of_each_request() -> None:
    loop = dw.Loop(dw.learner("unlearn:retrain", SPEC, model="mlp:4"))
    loop.predict(rows(0, 20))
    queue = dw.RequestQueue(loop)
    tickets = [queue.put(ask(3, 4)), queue.put(ask(9))]
    queue.serve()
    assert [t.receipt.certificate["rows"] for t in tickets if t.receipt is not None] == [2, 1]


def test_a_bad_request_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = taught()
    queue, sizes = dw.RequestQueue(loop), count_updates(loop, monkeypatch)
    tickets = [queue.put(ask(*ids)) for ids in ([1], [2, 900], [3], [4], [5, 3], [6], [7], [8])]
    queue.serve()
    assert [t.refusal for t in tickets] == [
        None,
        "row 900 was never learnt",
        None,
        None,
        "row 3 was forgotten already",
        None,
        None,
        None,
    ]
    assert head(loop) == never(1, 3, 4, 6, 7, 8)
    assert sum(sizes) == 6
    assert len(sizes) < 6


def test_a_class_goes_alone_and_in_its_place() -> None:
    loop = taught()
    queue = dw.RequestQueue(loop)
    of_two = int(np.flatnonzero(Y == 2)[0])
    others = np.flatnonzero(Y != 2)[:3].tolist()
    tickets = [
        queue.put(ask(others[0])),
        queue.put(ask(others[1])),
        queue.put(dw.Forget(np.array([2]), 0.0, kind="class")),
        queue.put(ask(of_two)),
        queue.put(ask(others[2])),
    ]
    queue.serve()
    assert [t.refusal for t in tickets] == [None, None, None, f"row {of_two} was forgotten already", None]
    assert head(loop) == never(*np.flatnonzero(Y == 2), *others)
    with pytest.raises(dw.CannotForget, match="carried out alone"):
        loop.forget_together([ask(9), dw.Forget(np.array([0]), 0.0, kind="class")])


def test_rows_that_wait_for_a_label_are_told_of_where_they_belong() -> None:
    loop = dw.Loop(dw.learner("acu", SPEC, seed=0, width=16))
    loop.predict(rows(0, 10))
    loop.predict(rows(10, 20, labels=False))
    one, two = loop.forget_together([ask(3, 12), ask(4, 15)])
    assert (one.ids, two.ids) == ((3, 12), (4, 15))
    assert one.certificate["waiting_rows_dropped"] == [12]
    assert two.certificate["waiting_rows_dropped"] == [15]
    assert (one.certificate["rows"], one.certificate["together"]["rows"]) == (1, 2)
    with pytest.raises(dw.CannotForget, match="named twice"):
        loop.forget(ask(5, 14, 14))
    queue = dw.RequestQueue(loop)
    tickets = [queue.put(ask(*ids)) for ids in ([5, 14], [14])]
    queue.serve()
    assert [t.refusal for t in tickets] == [None, "row 14 was never learnt"]


def test_whoever_floods_the_queue_waits_and_nobody_else_does() -> None:
    loop = taught()
    queue = dw.RequestQueue(loop, most=3)
    flood = [queue.put(ask(row), client="flood") for row in range(8)]
    other = queue.put(ask(100), client="other")
    assert queue.serve() == [*flood[:3], other]
    assert queue.serve() == flood[3:6]
    assert queue.serve() == flood[6:]
    assert queue.serve() == []
    assert all(ticket.receipt is not None for ticket in [*flood, other])
    assert head(loop) == never(*range(8), 100)
    with pytest.raises(ValueError, match="most"):
        dw.RequestQueue(loop, most=0)


def test_many_threads_may_ask_while_requests_are_served() -> None:
    loop = taught()
    queue = dw.RequestQueue(loop)

    def asking(first: int) -> None:
        for row in range(first, first + 30):
            queue.put(ask(row), client=str(first))

    threads = [threading.Thread(target=asking, args=(first,)) for first in (0, 30, 60, 90)]
    for thread in threads:
        thread.start()
    served: list[Any] = []
    while any(thread.is_alive() for thread in threads) or len(queue):
        served += queue.serve()
    for thread in threads:
        thread.join()
    served += queue.serve()
    assert sorted(ticket.number for ticket in served) == list(range(1, 121))
    assert not any(ticket.refusal for ticket in served)
    assert head(loop) == never(*range(120))


def test_requests_wait_again_where_the_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = taught()
    queue = dw.RequestQueue(loop)
    tickets = [queue.put(ask(row)) for row in (3, 1)]

    def full(_: Any) -> Any:
        raise OSError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(loop, "forget_together", full)
        with pytest.raises(OSError, match="no space"):
            queue.serve()
    late = queue.put(ask(7))
    assert [ticket.number for ticket in queue.serve()] == [1, 2, 3]
    assert all(ticket.receipt is not None for ticket in (*tickets, late))
    learner: Any = loop.learner
    assert learner.head.digest() == never(1, 3, 7)
