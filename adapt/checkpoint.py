"""Checkpoints: directories written whole, verified whole.

A checkpoint is a folder ``00000007-000000012000`` (sequence number, step) with ``manifest.json`` and one safetensors
file per part that has arrays. It is written under a temporary name beside its place, every file and the folder are
fsynced, and only then is it renamed; so a folder of that form is complete, whenever the process died. What the disk
did to it afterwards is found by the sha256 of every file, and of the manifest itself, before anything is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from ..streams import Array, InputError
from .learner import State
from .state import join, split

FORMAT = 1
MANIFEST = "manifest.json"
_WHOLE = re.compile(r"\d{8}-\d{12}")
_PART = re.compile(r"[a-z][a-z0-9_]*")
_SHARE = 0.05
"""Saving by the clock takes at most this share of the time: a save of 0.2 s is followed by at least 3.8 s of work."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a checkpoint held. cursor: where the stream goes on. meta: what the caller had kept beside the state.

    notes: one line for every newer checkpoint that was refused, with the reason.
    """

    step: int
    parts: dict[str, State]
    cursor: dict[str, Any]
    meta: dict[str, Any]
    path: Path
    notes: tuple[str, ...] = ()


class Checkpointer:
    """Saves and finds checkpoints in one folder.

    seconds: how long to work between two saves (longer where saving itself is slow). every: save at this many steps
    instead, whatever the clock says. keep: how many checkpoints stay; the newest whole ones do.
    Raises ``InputError`` (one line) where the folder cannot be written, the disk is full, or a saved state is unusable.
    """

    def __init__(self, directory: str | Path, *, seconds: float = 1.0, every: int | None = None, keep: int = 2) -> None:
        if keep < 1 or (every is not None and every < 1) or seconds < 0:
            raise ValueError("keep and every are at least 1, seconds at least 0")
        self.directory = Path(directory)
        self.seconds = seconds
        self.every = every
        self.keep = keep
        self.notes: list[str] = []
        self._refused: set[str] = set()
        self._last_step = 0
        self._due_at = monotonic() + seconds

    def due(self, step: int) -> bool:
        """Whether it is time to save."""
        if self.every is not None:
            return step // self.every > self._last_step // self.every
        return step > self._last_step and monotonic() >= self._due_at

    def save(
        self, step: int, parts: dict[str, State], cursor: dict[str, Any], meta: dict[str, Any] | None = None
    ) -> Path:
        """Write a whole checkpoint, then drop those beyond ``keep``. cursor and meta are JSON."""
        started = monotonic()
        existing = self._whole()
        number = 1 + max((int(p.name[:8]) for p in existing), default=0)
        place = self.directory / f"{number:08d}-{step:012d}"
        draft = self.directory / f".draft-{place.name}"
        try:
            self._clear_drafts()
            draft.mkdir(parents=True)
            _write(draft, step, parts, cursor, meta or {})
            os.rename(draft, place)
            _sync(self.directory)
            self._drop([*existing, place])
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise InputError(f"cannot write the checkpoint {place}: {error.strerror or error}") from None
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        now = monotonic()
        self._last_step = step
        self._due_at = now + max(self.seconds, (now - started) * (1 / _SHARE - 1))
        return place

    def load_newest(self) -> Saved | None:
        """The newest checkpoint that is whole and unaltered; None where there is none.

        ``notes`` (here, and on what is returned) say in one line each which ones were refused and why.
        """
        self.notes = []
        for place in reversed(self._whole()):
            try:
                saved = _read(place)
            except (OSError, ValueError, KeyError, TypeError) as fault:
                reason = f"{MANIFEST} lacks {fault}" if isinstance(fault, KeyError) else str(fault)
                self.notes.append(f"checkpoint {place.name} refused: {reason}")
                self._refused.add(place.name)
                continue
            self._last_step = saved.step
            self._due_at = monotonic() + self.seconds
            return Saved(saved.step, saved.parts, saved.cursor, saved.meta, place, tuple(self.notes))
        return None

    def names(self) -> list[str]:
        """Checkpoints that are there, oldest first."""
        return [place.name for place in self._whole()]

    def purge(self) -> None:
        """Delete every checkpoint but the newest that was not refused, and what a killed process left of others."""
        places = self._whole()
        stays = [place for place in places if place.name not in self._refused][-1:]
        for place in places:
            if place not in stays:
                self._delete(place)
        self._clear_drafts()
        _sync(self.directory)

    def _whole(self) -> list[Path]:
        """Folders with the name of a finished checkpoint, oldest first."""
        try:
            return sorted(p for p in self.directory.iterdir() if _WHOLE.fullmatch(p.name) and p.is_dir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"cannot read the checkpoints in {self.directory}: {error.strerror}") from None

    def _drop(self, places: list[Path]) -> None:
        """Refused checkpoints and those beyond ``keep`` go; renamed first, so that no half of one looks whole."""
        sound = [p for p in places if p.name not in self._refused]
        for place in [p for p in places if p.name in self._refused] + sound[: -self.keep]:
            self._delete(place)

    def _delete(self, place: Path) -> None:
        grave = self.directory / f".draft-{place.name}"
        os.rename(place, grave)
        shutil.rmtree(grave, ignore_errors=True)
        self._refused.discard(place.name)

    def _clear_drafts(self) -> None:
        """What a killed process left half written."""
        for draft in self.directory.glob(".draft-*"):
            shutil.rmtree(draft, ignore_errors=True)


def _write(draft: Path, step: int, parts: dict[str, State], cursor: dict[str, Any], meta: dict[str, Any]) -> None:
    """Every file of a checkpoint, on the disk when this returns."""
    from safetensors.numpy import save

    files, skeletons = {}, {}
    for part, state in parts.items():
        if not _PART.fullmatch(part):
            raise ValueError(f"{part!r} is no name for a part: lower-case letters, digits and _")
        skeletons[part], arrays = split(state)
        if arrays:
            files[f"{part}.safetensors"] = save(arrays)
    manifest = {
        "format": FORMAT,
        "driftway": _version(),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "step": step,
        "cursor": cursor,
        "meta": meta,
        "files": {n: {"sha256": hashlib.sha256(b).hexdigest(), "bytes": len(b)} for n, b in files.items()},
        "state": skeletons,
    }
    manifest = json.loads(json.dumps(manifest, allow_nan=False))  # as it will be read: the seal must not differ
    manifest["sha256"] = _seal(manifest)
    files[MANIFEST] = json.dumps(manifest, indent=1).encode()
    with ExitStack() as stack:
        written = [stack.enter_context(open(draft / name, "wb")) for name in files]
        for file, body in zip(written, files.values(), strict=True):
            file.write(body)
            file.flush()
        for file in written:  # all written first, so that the system can bring them to the disk together
            os.fsync(file.fileno())
    _sync(draft)


def _read(place: Path) -> Saved:
    """A verified checkpoint; OSError, ValueError, KeyError or TypeError with the reason where it is not as written."""
    try:
        manifest = json.loads((place / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST} is missing") from None
    except ValueError:
        raise ValueError(f"{MANIFEST} is torn") from None
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _seal(manifest):
        raise ValueError(f"{MANIFEST} was altered")
    if manifest["format"] != FORMAT:
        raise ValueError(f"it has format {manifest['format']}, this version reads format {FORMAT}")
    parts = {}
    for part, skeleton in manifest["state"].items():
        name = f"{part}.safetensors"
        arrays = _arrays(place / name, manifest["files"][name]) if name in manifest["files"] else {}
        parts[part] = join(skeleton, arrays)
    return Saved(manifest["step"], parts, manifest["cursor"], manifest["meta"], place)


def _arrays(path: Path, promise: dict[str, Any]) -> dict[str, Array]:
    """The arrays of one part, copied so that they are aligned and writable."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return {name: np.array(array) for name, array in load(_verified(path, promise)).items()}
    except SafetensorError as error:
        raise ValueError(f"{path.name}: {error}") from None


def _verified(path: Path, promise: dict[str, Any]) -> bytes:
    try:
        body = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing") from None
    if len(body) != promise["bytes"]:
        raise ValueError(f"{path.name} has {len(body)} bytes, not {promise['bytes']}")
    if hashlib.sha256(body).hexdigest() != promise["sha256"]:
        raise ValueError(f"{path.name} was altered: its sha256 differs")
    return body


def _seal(manifest: dict[str, Any]) -> str:
    """sha256 of the manifest without its own seal."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _version() -> str:
    from .. import __version__

    return __version__


def _sync(directory: Path) -> None:
    """Bring a directory's entries to the disk (where the system has no handle for that, renaming must do)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
