"""What tests of kernels share: a script that runs in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture
def agrees_in_the_interpreter() -> Callable[..., None]:
    """Runs a script that prints "agrees", in a process of its own: the interpreter is chosen when Triton is imported.

    warn: what becomes of warnings there, as in ``python -W``. Skips where there is no Triton.
    """
    if find_spec("triton") is None:
        pytest.skip("needs Triton")

    def run(script: str, warn: str = "error") -> None:
        done = subprocess.run(
            [sys.executable, "-W", warn, "-c", script], capture_output=True, text=True, timeout=200, check=False,
            env=os.environ | {"TRITON_INTERPRET": "1"}, cwd=Path(__file__).parent,
        )  # fmt: skip
        assert done.stdout.strip() == "agrees", done.stderr[-3000:]

    return run
