"""What a bundle weighs: bytes of its files, and the memory and start of a process that runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

STEPS = 30
PROGRAM = """
import json, sys, time
start = time.perf_counter()
sys.path.insert(0, sys.argv[1])
import run
import numpy as np
runner = run.Runner(sys.argv[1])
x = np.random.default_rng(0).random((1, runner.width)).astype(runner.dtype)
runner.adapt(x)
first = time.perf_counter() - start
for _ in range(int(sys.argv[2])):
    runner.adapt(x)
"""
TELL = """
lines = open("/proc/self/status").read()
print(json.dumps([*(int(lines.split(k)[1].split()[0]) / 1024 for k in ("VmHWM:", "VmRSS:")), first]))
"""


def files(bundle: Path) -> dict[str, int]:
    """Bytes by name, those of a folder together, the largest first."""
    found: dict[str, int] = {}
    for path in bundle.rglob("*"):
        name = path.relative_to(bundle).parts[0]
        found[name] = found.get(name, 0) + (path.stat().st_size if path.is_file() else 0)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def process(bundle: Path) -> tuple[float, float, float]:
    """Highest and last resident memory in MB, and seconds from the first import to the first answer.

    Of a process that runs the bundle alone for some steps on one row, without Numba. ``OSError`` where the system does
    not tell (there is /proc on Linux only).
    """
    if not Path("/proc/self/status").exists():
        raise OSError("this system has no /proc to read the memory of a process from")
    command = [sys.executable, "-B", "-c", PROGRAM + TELL, str(bundle), str(STEPS)]
    alone = {"OMP_NUM_THREADS": "1", "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | alone)
    if done.returncode:
        raise OSError(done.stderr.strip().splitlines()[-1])
    peak, last, first = json.loads(done.stdout)
    return peak, last, first


def table(bundle: Path) -> str:
    """Both in a few lines for a person."""
    sizes = files(bundle)
    lines = [f"{name:<20}{size / 1e3:>12,.1f} kB" for name, size in sizes.items()]
    lines.append(f"{'together':<20}{sum(sizes.values()) / 1e3:>12,.1f} kB")
    try:
        peak, last, first = process(bundle)
        lines.append(
            f"{'its process':<20}{last:>12,.0f} MB resident, {peak:,.0f} at most; first answer after {first:.2f} s"
        )
    except OSError as fault:
        lines.append(f"{'its process':<20}not measured: {fault}")
    return "\n".join(lines)
