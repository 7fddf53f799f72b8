"""Requests to forget that come in faster than they are served: queued, and carried out together.

A round takes what waits, in order, and hands it to the loop as one change: one update of rank k, one checkpoint, one
solve when the model is next asked, however many requests there are. Each keeps its place in the order, its receipt and
its line in the ledger. Where a round is refused it is halved, so that one bad request does not make the others wait
their turn one by one; it alone is refused, with the reason.

Whoever floods the queue waits: ``most`` requests of a client are taken in a round, the others in later ones. Nothing
lawful is refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from threading import Lock
from typing import TYPE_CHECKING

from ..streams import Forget
from .learner import CannotForget, Receipt

if TYPE_CHECKING:
    from .loop import Loop


@dataclass(slots=True)
class Ticket:
    """A request that waits, or what became of it: receipt, or refusal (the reason). number: its place in the order."""

    number: int
    request: Forget
    client: str = ""
    receipt: Receipt | None = None
    refusal: str | None = None


class RequestQueue:
    """The requests of one loop.

    ``put`` may be called from any thread; ``serve`` by whoever drives the loop, between two events, and then saves.
    most: requests of one client that are taken in one round.

    >>> import driftway as dw, numpy as np
    >>> spec = dw.StreamSpec("s", (dw.Column("a"),), classes=("n", "y"))
    >>> loop = dw.Loop(dw.learner("acu", spec, width=4))
    >>> _ = loop.predict(dw.Batch(np.arange(6), np.arange(6.0)[:, None], 0.0, np.arange(6) % 2))
    >>> queue = RequestQueue(loop)
    >>> tickets = [queue.put(Forget(np.array([row]), 0.0)) for row in (3, 1)]
    >>> [ticket.receipt.certificate["together"] for ticket in queue.serve()]
    [{'request': 1, 'of': 2, 'rows': 2}, {'request': 2, 'of': 2, 'rows': 2}]
    """

    def __init__(self, loop: Loop, *, most: int = 1000) -> None:
        if most < 1:
            raise ValueError("most is at least 1")
        self.loop = loop
        self.most = most
        self._waiting: deque[Ticket] = deque()
        self._lock = Lock()
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, request: Forget, client: str = "") -> Ticket:
        """Let a request wait for the next round."""
        with self._lock:
            self._numbers += 1
            ticket = Ticket(self._numbers, request, client)
            self._waiting.append(ticket)
        return ticket

    def serve(self) -> list[Ticket]:
        """One round: what was taken, in order, each with its receipt or refusal. Save after it.

        Where something else goes wrong, a full disk say, requests without an answer wait again, before all others.
        """
        taken = self._take()
        try:
            for whole, some in groupby(taken, lambda ticket: ticket.request.kind != "ids"):
                if whole:
                    for ticket in some:
                        self._carry_out([ticket])
                else:
                    self._carry_out(list(some))
        except BaseException:
            with self._lock:
                self._waiting.extendleft(t for t in reversed(taken) if t.receipt is None and t.refusal is None)
            raise
        return taken

    def _take(self) -> list[Ticket]:
        """What this round takes off the queue; the requests of one client stay in their order."""
        with self._lock:
            counts: dict[str, int] = {}
            taken: list[Ticket] = []
            later: deque[Ticket] = deque()
            for ticket in self._waiting:
                counts[ticket.client] = counts.get(ticket.client, 0) + 1
                (taken if counts[ticket.client] <= self.most else later).append(ticket)
            self._waiting = later
        return taken

    def _carry_out(self, tickets: Sequence[Ticket]) -> None:
        """All of them as one change, or, where that is refused, each half for itself."""
        try:
            receipts = self.loop.forget_together([ticket.request for ticket in tickets])
        except CannotForget as reason:
            if len(tickets) == 1:
                tickets[0].refusal = str(reason)
                return
            half = len(tickets) // 2
            self._carry_out(tickets[:half])
            self._carry_out(tickets[half:])
        else:
            for ticket, receipt in zip(tickets, receipts, strict=True):
                ticket.receipt = receipt
