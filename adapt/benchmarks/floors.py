"""What a device can do at best, how time is taken on it, and a line of the kernels' table.

On a CPU ways are timed in turn, a few calls each after one that does not count, the next round the other way round;
medians of processor time, which other programs disturb less than they do the clock on the wall. On a GPU each round is
the median of ``triton.testing.do_bench``, which empties the second-level cache before every call; inputs that are
rotated (``rotated``) do not lie in it either way.

The floor of an op is the larger of bytes / copy bandwidth and operations / rate of a large product, both measured on
the same device in the same process. Bytes are those that must move: each input once, each output once.
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle
from statistics import median
from time import process_time
from typing import Any

import torch

from . import Row

ROUNDS, ROUND_SECONDS = 9, 0.02
GPU_ROUNDS = 3
COPIED = {"cpu": 1 << 26, "cuda": 1 << 30}
"""Bytes of the buffer whose copy is timed: far more than any cache."""
SIDE = {"cpu": 1024, "cuda": 8192}
"""Side of the square matrices whose product is timed."""
CACHE = {"cpu": 0, "cuda": 1 << 27}
"""Rotated inputs take more room than this together; a CPU's are not rotated."""
MOST_TURNS = 64
"""More copies of one step's inputs than this are not made."""
CLOCKS = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"
PACKAGES = ("torch", "triton", "numpy", "numba")

Step = Callable[[], object]


def in_turn(steps: list[Step], rounds: int | None = None) -> list[float]:
    """Median seconds of processor time of a call of each, timed in turn."""
    repeats = []
    for step in steps:
        step()
        started = process_time()
        step()
        repeats.append(max(1, int(ROUND_SECONDS / max(process_time() - started, 1e-7))))
    found: list[list[float]] = [[] for _ in steps]
    for n in range(ROUNDS if rounds is None else rounds):
        for i in range(len(steps))[:: 1 if n % 2 == 0 else -1]:
            steps[i]()
            started = process_time()
            for _ in range(repeats[i]):
                steps[i]()
            found[i].append((process_time() - started) / repeats[i])
    return [median(times) for times in found]


def medians(steps: list[Step], device: str) -> list[float]:
    """Median seconds of each step on a device, the steps in turn."""
    if torch.device(device).type == "cpu":
        return in_turn(steps)
    from triton.testing import do_bench

    found: list[list[float]] = [[] for _ in steps]
    with torch.cuda.device(device):
        for _ in range(GPU_ROUNDS):
            for times, step in zip(found, steps, strict=True):
                times.append(do_bench(step, warmup=10, rep=40, return_mode="median") / 1e3)
    return [median(times) for times in found]


def rotated(make: Callable[[], list[Step]], moved: float, device: str) -> list[Step]:
    """The steps of ``make``, each of which takes the next of so many equal ones that their inputs leave the cache.

    moved: bytes of the inputs and outputs of one. On a CPU, the steps as they are.
    """
    room = CACHE[torch.device(device).type]
    made = [make() for _ in range(min(1 + int(room / max(moved, 1)), MOST_TURNS))]
    return [_next_of(list(turns)) for turns in zip(*made, strict=True)]


def _next_of(steps: list[Step]) -> Step:
    turns = cycle(steps)
    return lambda: next(turns)()


@dataclass(frozen=True, slots=True)
class Floors:
    """A device at its best: bytes a second of a copy (read plus written), operations a second of a product by type."""

    copy: float
    product: dict[torch.dtype, float]

    def seconds(self, moved: float, operations: float = 0.0, dtype: torch.dtype = torch.float32) -> float:
        """The least time for so many bytes and operations (a multiplication and an addition are two)."""
        return max(moved / self.copy, operations / self.product[dtype])


@functools.cache
def floors(device: str) -> Floors:
    """Measured once in a process and for a number of threads as they are: about a second."""
    kind = torch.device(device).type
    buffer = torch.zeros(COPIED[kind], dtype=torch.uint8, device=device)
    to = torch.ones_like(buffer)
    (copy,) = medians([lambda: to.copy_(buffer)], device)
    return Floors(2 * COPIED[kind] / copy, {t: _rate(SIDE[kind], t, device) for t in (torch.float32, torch.bfloat16)})


def _rate(side: int, dtype: torch.dtype, device: str) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    (seconds,) = medians([lambda: a @ b], device)
    return 2 * side**3 / seconds


def facts(device: str) -> dict[str, Any]:
    """Date, device, its clocks as found, its measured floors, versions: what a file of results says of itself."""
    on_gpu = torch.device(device).type == "cuda"
    best = floors(device)
    return {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name(device)
        if on_gpu
        else f"{platform.machine()}, {os.cpu_count()} processors",
        "clocks": _clocks(torch.device(device).index or 0) if on_gpu else None,
        "copy_gb_s": best.copy / 1e9,
        "gflop_s": {str(dtype).removeprefix("torch."): rate / 1e9 for dtype, rate in best.product.items()},
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda} | _versions(),
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _clocks(index: int) -> dict[str, str] | None:
    """Clocks, limits and driver as ``nvidia-smi`` reports them; None without it."""
    command = ["nvidia-smi", f"--id={index}", f"--query-gpu={CLOCKS}", "--format=csv,noheader"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(CLOCKS.split(","), (part.strip() for part in line.split(",")), strict=False))


def kernel_row(
    case: str,
    ours: float,
    peer: float,
    peer_name: str,
    floor: float,
    *,
    times: float | None = None,
    within: float | None = None,
) -> Row:
    """One line of the table; all times in seconds, shown in milliseconds.

    times: the target for peer / ours, at least so much. within: the target for ours / floor, at most so much. ``met``
    says whether all targets there are hold, None without any.
    """
    wanted = [] if times is None else [(f">= {times:.3g}x peer", peer / ours >= times)]
    wanted += [] if within is None else [(f"<= {within:.3g}x floor", ours / floor <= within)]
    return {
        "bench": "kernels",
        "case": case,
        "unit": "ms",
        "ours": 1e3 * ours,
        "peer": 1e3 * peer,
        "peer_name": peer_name,
        "ratio": peer / ours,
        "floor": ours / floor,
        "target": " and ".join(text for text, _ in wanted) or None,
        "met": all(held for _, held in wanted) if wanted else None,
    }
