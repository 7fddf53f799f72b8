"""``compiled`` and ``inner``: the one way functions of this package are compiled to machine code.

Numba keeps compiled code on disk, but notices only a change of the very file a function stands in, not of the
functions it calls. A stale caller would then go on running old code. So the cache lies in a folder named after a
digest of all sources of the package: any change of any file starts a fresh one, and folders of former versions go
after a day (another process may still be running one).
``NUMBA_CACHE_DIR``, where set, is respected, as is ``NUMBA_DISABLE_JIT=1`` for stepping through in a debugger.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numba

PACKAGE = Path(__file__).resolve().parent.parent
FLOORS = ("models", "evaluation", "adapt")
DAY = 86_400.0


def sources_digest() -> str:
    """Digest of name, size and time of change of every source file that may hold compiled code."""
    files = sorted(path for floor in FLOORS for path in (PACKAGE / floor).rglob("*.py"))
    facts = [(str(p.relative_to(PACKAGE)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    return hashlib.sha256(repr((numba.__version__, facts)).encode()).hexdigest()[:16]


def _use_own_cache() -> None:
    """Point Numba's cache at this version's folder: beside the sources, or in the user's cache if that is read-only."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        return
    home = PACKAGE / "models" / "__pycache__"
    if not os.access(home if home.exists() else home.parent, os.W_OK):
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "driftway"
    folder = home / f"compiled-{sources_digest()}"
    for former in home.glob("compiled-*"):
        if former != folder and time.time() - former.stat().st_mtime > DAY:
            shutil.rmtree(former, ignore_errors=True)
    settings: Any = numba.config
    settings.CACHE_DIR = str(folder)


_use_own_cache()


def compiled(function: Callable[..., Any] | None = None, *, fastmath: bool = False) -> Any:
    """Compile on first call, strictly by IEEE rules (no reordering), so that every path gives the same bits.

    ``@compiled(fastmath=True)`` lets sums be reordered and products fused, as vector units want it: for sums over many
    numbers whose contract is a tolerance and no bit pattern. Such a function must not rely on NaN or infinity. It also
    runs without the interpreter's lock.
    """
    if function is None:
        return partial(compiled, fastmath=fastmath)
    return numba.njit(cache=True, error_model="numpy", fastmath=fastmath, nogil=fastmath)(function)


def inner(function: Callable[..., Any]) -> Any:
    """As ``compiled``, for functions that only compiled code calls: half the work of compiling.

    There is no entry for Python: calling one from there ends the process.
    """
    options: Any = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return numba.njit(**options)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """As ``compiled``, and its code is put into every compiled caller: for small functions over many arrays, where
    passing the arrays at every call would cost more than the work."""
    return numba.njit(cache=True, error_model="numpy", forceinline=True)(function)
