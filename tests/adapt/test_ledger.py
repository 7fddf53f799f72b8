"""The ledger: chained, only ever appended, in agreement with the state after a kill, refused when altered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest


def receipt(*ids: int) -> dw.Receipt:
    return dw.Receipt(ids, "before", "after", "words", {"digests": {str(i): ["ab" * 16] for i in ids}, "bound": 1e-12})


def written(path: Path, n: int = 3) -> dw.Ledger:
    ledger = dw.Ledger(path)
    for i in range(n):
        ledger.enter(receipt(i, 10 + i), {"step": i})
    ledger.commit()
    return ledger


def reopened(path: Path, state: dict[str, Any]) -> dw.Ledger:
    ledger = dw.Ledger(path)
    ledger.load(state)
    return ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def test_lines_are_chained_and_digests_are_keyed(path: Path, tmp_path: Path) -> None:
    first = written(path)
    entries = first.entries()
    assert [e["number"] for e in entries] == [1, 2, 3]
    assert [e["previous"] for e in entries[1:]] == [e["hash"] for e in entries[:-1]]
    assert entries[-1]["hash"] == first.head
    assert path.with_suffix(".key").stat().st_mode & 0o077 == 0
    other = written(tmp_path / "other.jsonl").entries()
    assert entries[0]["certificate"]["digests"] != other[0]["certificate"]["digests"]
    assert "ab" * 16 not in path.read_text()


def test_nothing_is_written_before_the_first_request(path: Path) -> None:
    ledger = dw.Ledger(path)
    assert len(ledger.reconcile()) == 0
    ledger.commit()
    assert list(path.parent.iterdir()) == []


def test_one_changed_byte_is_refused(path: Path) -> None:
    state = written(path).state()
    body = path.read_bytes()
    rng = np.random.default_rng(0)
    places = {*rng.choice(len(body), 60, replace=False).tolist(), len(body) - 1, body.index(b"\n")}
    for at in places:
        changed = bytearray(body)
        changed[at] ^= 1 << int(rng.integers(0, 7))
        path.write_bytes(bytes(changed))
        with pytest.raises(dw.InputError, match=r"altered|has \d lines"):
            reopened(path, state).reconcile()
    path.write_bytes(body)
    assert len(reopened(path, state).reconcile()) == 0


def test_a_line_taken_out_or_added_is_refused(path: Path) -> None:
    state = written(path).state()
    lines = path.read_bytes().splitlines(keepends=True)
    for wrong in (lines[1:], lines[:1] + lines[2:], [*lines, lines[-1]], [lines[1], lines[0], lines[2]]):
        path.write_bytes(b"".join(wrong))
        with pytest.raises(dw.InputError, match="altered"):
            reopened(path, state).reconcile()
    path.write_bytes(b"".join(lines[:2]))
    with pytest.raises(dw.InputError, match="has 2 lines, the checkpoint knows of 3"):
        reopened(path, state).reconcile()
    path.unlink()
    with pytest.raises(dw.InputError, match="has 0 lines"):
        reopened(path, state).reconcile()


def test_another_run_s_ledger_is_refused(path: Path, tmp_path: Path) -> None:
    state = written(path).state()
    other = tmp_path / "other.jsonl"
    written(other)
    with pytest.raises(dw.InputError, match="not the ledger of this checkpoint"):
        reopened(other, state).reconcile()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99, 1.0])
def test_what_a_kill_left_unwritten_is_appended(path: Path, share: float) -> None:
    """The checkpoint holds the line; the process died before, while, or after it was appended."""
    ledger = written(path)
    ledger.enter(receipt(7), {"step": 9})
    state, (line,) = ledger.state(), ledger.outbox
    whole = path.read_bytes() + (line + "\n").encode()
    cut = len(path.read_bytes()) + int(share * (len(line) + 1))
    path.write_bytes(whole[:cut])
    again = reopened(path, state)
    assert len(again.reconcile()) == 0
    assert path.read_bytes() == whole
    assert again.entries()[-1]["ids"] == [7]
    again.enter(receipt(8), {"step": 10})
    again.commit()
    assert len(again.entries()) == 5


def test_lines_beyond_the_state_name_their_rows(path: Path) -> None:
    """The state is that of an older checkpoint, or of none."""
    old = written(path, 1).state()
    later = reopened(path, old)
    later.reconcile()
    later.enter(receipt(5, 6), {"step": 3})
    later.enter(receipt(6), {"step": 4})
    later.commit()
    assert reopened(path, old).reconcile().tolist() == [5, 6]
    fresh = dw.Ledger(path)
    assert fresh.reconcile().tolist() == [0, 5, 6, 10]
    assert fresh.count == 3


@pytest.mark.parametrize("words", ["no key", "", "ab", "ab" * 70])
def test_a_broken_key_is_one_line_before_anything_is_forgotten(path: Path, words: str) -> None:
    path.with_suffix(".key").write_text(words)
    with pytest.raises(dw.InputError, match="not a key"):
        dw.Ledger(path).enter(receipt(1), {})
    loop = dw.Loop(dw.learner("acu", dw.StreamSpec("s", (dw.Column("a"),), classes=("n", "y"))), ledger=dw.Ledger(path))
    loop.predict(dw.Batch(np.arange(6), np.arange(6.0)[:, None], 0.0, np.arange(6) % 2))
    with pytest.raises(dw.InputError, match="not a key"):
        loop.forget(dw.Forget(np.array([3]), 0.0))
    assert loop.learner.telemetry()["forgotten"] == 0
