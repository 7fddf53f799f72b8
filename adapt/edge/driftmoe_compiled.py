"""What ``models/compiled.py`` is inside a bundle: compiled where there are Numba and SciPy, else plain Python.

``export`` puts this file in that one's place. The sources of a bundle do not change, so that Numba's own cache beside
them is enough. ``NUMBA_DISABLE_JIT=1`` counts as no Numba.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

COMPILES = os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"
if COMPILES:
    try:
        import numba
        import scipy.linalg  # noqa: F401 - where Numba finds its BLAS
    except ImportError:
        COMPILES = False


def compiled(function: Callable[..., Any]) -> Any:
    """By IEEE rules, as in the package."""
    return numba.njit(cache=True, error_model="numpy")(function) if COMPILES else function


def inner(function: Callable[..., Any]) -> Any:
    """For functions that only compiled code calls."""
    options: Any = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return numba.njit(**options)(function) if COMPILES else function


def inlined(function: Callable[..., Any]) -> Any:
    """Put into every compiled caller."""
    return numba.njit(cache=True, error_model="numpy", forceinline=True)(function) if COMPILES else function
