"""Requests to forget, carried out wherever a row may lie: learner, waiting rows, snapshots, checkpoints, ledger."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..streams import Array, Batch, Forget, InputError
from .anew import Anew
from .checkpoint import Checkpointer
from .learner import CannotForget, Learner, Receipt, State
from .ledger import Entry, Ledger
from .pending import Pending

if TYPE_CHECKING:
    from .loop import Loop

LEDGER = "ledger.jsonl"
NUMBER = re.compile(r"-?[0-9]{1,18}")


class Requests:
    """Carries out requests for one loop.

    ledger: where they are written down; None writes nothing. ``open``: a request was carried out that no checkpoint
    holds yet; whoever drives the loop saves at once. ``last`` is the ledger's line of the last request. anew: compares
    the learner with one trained anew after every request; ``gap``: what it last found.
    """

    def __init__(self, ledger: Ledger | None = None, anew: Anew | None = None) -> None:
        self.ledger = ledger
        self.anew = anew
        self.gap: dict[str, float] = {}
        self.open = False
        self.last: Entry | None = None

    def carry_out(self, loop: Loop, requests: Sequence[Forget], rows: Pending) -> list[Receipt]:
        """Forget, all that the requests name or nothing; ``CannotForget`` with the reason.

        Several are carried out as one change of the model, and each has its own receipt and line in the ledger, in
        order. rows: those of the loop that wait for their label; they are dropped if named, and of the others their
        labels are. So are the guard's snapshots: what it could roll back to would bring the data back.
        """
        if self.ledger is not None:
            self.ledger.check()
        whole, waiting = self._by_learner(loop.learner, _merged(requests), rows)
        rows.drop(waiting)
        rows.erase(np.array(whole.ids, np.int64))
        if loop.guard is not None:
            loop.guard.forget_snapshots()
        if loop.continual is not None:
            loop.continual.answers.forget()
        purged = [] if loop.checkpoint is None else loop.checkpoint.names()
        found: dict[str, Any] = {} if self.anew is None else {"kept_to_compare": True}
        if purged or len(waiting):
            found |= {"purged": purged, "waiting_rows_dropped": waiting.tolist()}
        whole = replace(whole, certificate={**whole.certificate, **found})
        receipts = [whole] if len(requests) == 1 else [_share(whole, requests, k) for k in range(len(requests))]
        if self.ledger is not None:
            for request, receipt in zip(requests, receipts):
                facts = {"step": loop.step, "time": float(request.time), "reason": request.reason, "written": _now()}
                self.last = self.ledger.enter(receipt, facts)
        if self.anew is not None:
            self.gap = self.anew.forgot(loop.learner, whole.ids)
        self.open = True
        if loop.checkpoint is None:
            self.settle(None)
        return receipts

    def told(self, receipt: Receipt) -> dict[str, Any]:
        """What a record says of a request that was just carried out."""
        return {**self.gap, "note": f"{len(receipt.ids)} rows: {receipt.guarantee}"}

    def learnt(self, batch: Batch, *, row_by_row: bool = False) -> None:
        """Note what the learner was just taught, where anyone wants to know."""
        if self.anew is not None:
            self.anew.learnt(batch, row_by_row=row_by_row)

    def _by_learner(self, learner: Learner, request: Forget, rows: Pending) -> tuple[Receipt, Array]:
        """The learner's receipt with the waiting rows in it, and their ids."""
        ids = np.asarray(request.ids)
        if request.kind != "ids":
            if len(ids) != 1:
                raise CannotForget(f"a request for a {request.kind} names one, not {len(ids)}")
            return learner.forget_whole(request.kind, int(ids[0])), ids[:0]
        waiting = ids[[row in rows for row in ids.tolist()]] if len(ids) else ids
        if len(np.unique(waiting)) < len(waiting):
            raise CannotForget("a row that waits for its label is named twice in the request")
        receipt = learner.forget(ids[~np.isin(ids, waiting)])
        return replace(receipt, ids=(*receipt.ids, *waiting.tolist())), waiting

    def settle(self, checkpoint: Checkpointer | None) -> None:
        """After the outcome was saved: older checkpoints go, then the ledger gets its line."""
        if not self.open:
            return
        if checkpoint is not None:
            checkpoint.purge()
        if self.ledger is not None:
            self.ledger.commit()
        self.open = False

    def recover(self, learner: Learner, checkpoint: Checkpointer | None, rows: Pending) -> list[str]:
        """After a checkpoint was loaded, or none was found: finish what a kill cut short, and let no request be undone.

        rows: as in ``carry_out``. Returns a line for a person where the ledger has requests that the checkpoint is
        older than. Raises ``InputError`` where the learner cannot take their rows out again.
        """
        later = np.empty(0, np.int64) if self.ledger is None else self.ledger.reconcile()
        if self.open and checkpoint is not None:
            checkpoint.purge()
            self.open = False
        if not len(later):
            return []
        try:
            learner.bar(later)
        except CannotForget as reason:
            raise InputError(
                f"the checkpoint is older than requests in the ledger, and cannot follow them ({reason}):"
                f" delete {'it' if checkpoint is None else checkpoint.directory} to begin anew without these rows"
            ) from None
        rows.drop(later[[row in rows for row in later.tolist()]])
        rows.erase(later)
        if self.anew is not None:
            self.anew.forgotten |= set(later.tolist())
        self.open = True
        return [f"the ledger names {len(later)} rows that were forgotten after this checkpoint: they stay forgotten"]

    def state(self) -> State:
        return {
            "ledger": None if self.ledger is None else self.ledger.state(),
            "open": self.open,
            "anew": None if self.anew is None else self.anew.state(),
        }

    def load(self, state: State) -> None:
        self.open = bool(state["open"])
        if self.ledger is not None and state["ledger"] is not None:
            self.ledger.load(state["ledger"])
        if self.anew is not None and state["anew"] is not None:
            self.anew.load(state["anew"])


def _merged(requests: Sequence[Forget]) -> Forget:
    """One request for all that several name; ``CannotForget`` where one of several is for a class or group."""
    if len(requests) == 1:
        return requests[0]
    if any(request.kind != "ids" for request in requests):
        raise CannotForget("requests for a class or group are carried out alone")
    return replace(requests[0], ids=np.concatenate([np.asarray(request.ids, np.int64) for request in requests]))


def _share(whole: Receipt, requests: Sequence[Forget], k: int) -> Receipt:
    """The receipt of one of several requests that were carried out as one change."""
    ids = tuple(np.asarray(requests[k].ids).tolist())
    found = dict(whole.certificate)
    found["rows"] = len(ids)
    if "digests" in found:
        digests = {str(row): found["digests"][str(row)] for row in ids if str(row) in found["digests"]}
        found |= {"digests": digests, "rows": sum(map(len, digests.values()))}
    if "waiting_rows_dropped" in found:
        found["waiting_rows_dropped"] = [row for row in found["waiting_rows_dropped"] if row in ids]
    found["together"] = {"request": k + 1, "of": len(requests), "rows": whole.certificate.get("rows")}
    return replace(whole, ids=ids, certificate=found)


def read_ids(text: str) -> Array:
    """int64[n] from numbers with commas, spaces or line ends between them; ``InputError`` for anything else."""
    words = text.replace(",", " ").split()
    wrong = next((word for word in words if not NUMBER.fullmatch(word)), None)
    if wrong is not None:
        raise InputError(f"{wrong[:40]!r} is not the number of a row")
    return np.array([int(word) for word in words], np.int64)


def forget_in_folder(folder: Path, request: Forget, *, name: str = "") -> tuple[Receipt, Entry]:
    """Carry out a request on a finished or paused run; the receipt, and its line in the ledger.

    name: of the class to be forgotten, where the request is for one. Raises ``InputError``, one line, where there is
    no such run or the learner refuses.
    """
    from .config import resolve
    from .folder import CONFIG
    from .runs import Run

    if not (folder / CONFIG).exists():
        raise InputError(f"{folder}: holds no run")
    run = Run(resolve({}, config=folder / CONFIG), folder, resume=True, command="driftway forget")
    try:
        if name:
            request = replace(request, ids=np.array([_class_code(run.stream.spec.classes, name)]))
        receipt = run.forget(request)
    except CannotForget as reason:
        raise InputError(f"refused, nothing was changed: {reason}") from None
    finally:
        run.close()
    assert run.loop.requests.last is not None
    return receipt, run.loop.requests.last


def _class_code(classes: tuple[str, ...] | None, name: str) -> int:
    if classes is not None and name in classes:
        return classes.index(name)
    if classes is None and name.isdigit():
        return int(name)
    there = "numbers" if classes is None else ", ".join(classes)
    raise InputError(f"--class {name}: there is no such class ({there})")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def receipt_lines(receipt: Receipt, entry: Entry, folder: Path) -> list[str]:
    """A receipt for a person."""
    found: dict[str, Any] = dict(receipt.certificate)
    some = ", ".join(map(str, receipt.ids[:10])) + ", ..." * (len(receipt.ids) > 10)
    lines = [
        f"forgotten: {len(receipt.ids)} rows ({some})",
        f"guarantee: {receipt.guarantee}",
        f"state before {receipt.before}",
        f"state after  {receipt.after}",
    ]
    if found.get("bound") is not None:
        lines.append(f"distance to the exact head of the sums that remain: at most {found['bound']:.3g}")
    if found.get("smallest_pivot") is not None:
        lines.append(f"smallest pivot {found['smallest_pivot']:.3g}")
    if found.get("equal_rows_left"):
        lines.append(f"{found['equal_rows_left']} equal rows are still learnt under other ids")
    if found.get("kept_to_compare"):
        lines.append("still in the folder: these rows themselves, kept by --forget-gap for its comparison")
    lines.append("not changed: records of the past, and scores that count these rows' answers and labels")
    lines.append(f"older checkpoints purged: {', '.join(found.get('purged', [])) or 'there were none'}")
    lines.append(f"line {entry['number']} of {folder / LEDGER}")
    return lines
