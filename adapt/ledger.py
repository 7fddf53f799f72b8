"""The ledger: what was forgotten, when, and with what proof; JSON lines that are only ever appended.

Every line holds the hash of the one before it and its own, so a changed byte, a line taken out or put in shows when
the file is next opened; every checkpoint holds the number of lines and the last hash, so a shortened file shows too.
The chain tells of changes, it does not prevent them: whoever may write to the whole folder can write a new one.

A request is on the disk once the checkpoint that holds its outcome is renamed into place. That checkpoint also holds
the request's line, which is appended to the file after it; a process killed between the two appends it when it is
resumed. So ledger and state agree after any kill, and no line is ever taken back.

Digests of forgotten rows are keyed once more with the folder's own secret (``ledger.key``, readable by its owner
only): equal rows cannot be found by guessing without it, and without any key once it is deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from ..streams import Array, InputError
from .learner import Receipt, State

START = "0" * 64
"""The hash before the first line."""
KEY_BYTES = 32

Entry = dict[str, Any]


class Ledger:
    """One file of requests. Nothing is written before the first one.

    Raises ``InputError``, one line, for a file that was altered or does not belong to the state it is opened with.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count, self.head = 0, START
        """Lines, and the hash of the last one, with those that are still to be appended."""
        self.outbox: list[str] = []

    # --- writing ------------------------------------------------------------------------------------------------

    def enter(self, receipt: Receipt, facts: Entry) -> Entry:
        """The line of a request, which ``commit`` will append. facts: plain values beside those of the receipt."""
        proof = dict(receipt.certificate)
        key = self._key()
        digests = proof.get("digests", {})
        proof["digests"] = {row: [_keyed(key, one) for one in found] for row, found in digests.items()}
        entry: Entry = {
            "number": self.count + 1,
            "previous": self.head,
            **facts,
            "ids": list(receipt.ids),
            "before": receipt.before,
            "after": receipt.after,
            "guarantee": receipt.guarantee,
            "certificate": proof,
        }
        entry = json.loads(json.dumps(entry, allow_nan=False))
        entry["hash"] = _hash(entry)
        self.count, self.head = self.count + 1, entry["hash"]
        self.outbox.append(json.dumps(entry))
        return entry

    def commit(self) -> None:
        """Append what is due, on the disk when this returns."""
        if not self.outbox:
            return
        with self.path.open("ab") as file:
            file.write("".join(line + "\n" for line in self.outbox).encode())
            file.flush()
            os.fsync(file.fileno())
        self.outbox = []

    def check(self) -> None:
        """``InputError`` where no line could be entered; to be asked before anything is forgotten."""
        if self._key_file.exists():
            self._key()

    @property
    def _key_file(self) -> Path:
        return self.path.with_suffix(".key")

    def _key(self) -> bytes:
        """The folder's secret, made when it is first needed: whole or not at all, whenever the process dies."""
        place = self._key_file
        try:
            key = bytes.fromhex(place.read_text(encoding="ascii"))
        except FileNotFoundError:
            return self._new_key(place)
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            raise InputError(f"{place}: not a key")
        return key

    def _new_key(self, place: Path) -> bytes:
        key, draft = secrets.token_bytes(KEY_BYTES), place.with_suffix(".key-draft")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(key.hex())
            file.flush()
            os.fsync(file.fileno())
        os.rename(draft, place)
        return key

    # --- reading ------------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """All whole lines of the file, verified; a torn last line is left out."""
        return self._read()[0]

    def _read(self) -> tuple[list[Entry], bytes]:
        """Verified entries, and what stands after the last line's end."""
        try:
            body = self.path.read_bytes()
        except FileNotFoundError:
            return [], b""
        *lines, rest = body.split(b"\n")
        found: list[Entry] = []
        previous = START
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                told = entry["hash"]
                sound = line.decode() == json.dumps(entry) and told == _hash(
                    {k: v for k, v in entry.items() if k != "hash"}
                )
                sound = sound and entry["previous"] == previous and entry["number"] == number
            except (ValueError, KeyError, TypeError):
                sound = False
            if not sound:
                raise InputError(f"{self.path}: line {number} was altered; the ledger is not to be trusted")
            previous = told
            found.append(entry)
        return found, rest

    def reconcile(self) -> Array:
        """Make file and state agree, and return the ids that later lines name, int64[n].

        Lines that the state holds and the file lacks are appended. Lines that the file has beyond the state are
        requests that the state knows nothing of: it is older than they are.
        """
        found, rest = self._read()
        written = self.count - len(self.outbox)
        if len(found) < written:
            raise InputError(f"{self.path}: has {len(found)} lines, the checkpoint knows of {written}")
        hashes = [START, *(entry["hash"] for entry in found)]
        due = [json.loads(line) for line in self.outbox]
        wanted = due[0]["previous"] if due else self.head
        if hashes[written] != wanted or any(a != b for a, b in zip(found[written:], due)):
            raise InputError(f"{self.path}: is not the ledger of this checkpoint")
        missing = self.outbox[len(found) - written :] if len(found) < self.count else []
        if rest:
            if not missing or not (missing[0] + "\n").encode().startswith(rest):
                raise InputError(f"{self.path}: its last line was altered; the ledger is not to be trusted")
            with self.path.open("r+b") as file:
                file.truncate(self.path.stat().st_size - len(rest))
        self.outbox = missing
        self.commit()
        later = found[self.count :]
        if later:
            self.count, self.head = len(found), later[-1]["hash"]
        ids = [row for entry in later for row in entry["ids"]]
        return np.array(sorted(set(ids)), np.int64)

    # --- state --------------------------------------------------------------------------------------------------

    def state(self) -> State:
        return {"count": self.count, "head": self.head, "outbox": list(self.outbox)}

    def load(self, state: State) -> None:
        self.count, self.head = int(state["count"]), str(state["head"])
        self.outbox = list(state["outbox"])


def _hash(entry: Entry) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def _keyed(key: bytes, digest: str) -> str:
    return hashlib.blake2b(bytes.fromhex(digest), key=key, digest_size=16).hexdigest()
