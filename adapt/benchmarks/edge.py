"""A step of an exported bundle beside the same step in PyTorch: time, memory, start, and what has to be installed.

The step is Tent by SGD with momentum 0.9. ours: ``Runner.adapt`` of ``adapt/edge/runner.py``, all of it: checks of the
rows, guard, answer. peer: the published loop in plain PyTorch (``tta.py``), and for one row on one thread our own
learner compiled as a whole, where there is a C++ compiler. Both run on the same rows in one process, in rounds in which
they take turns, every other round backwards; medians, of processor time on one thread, of the clock on two. Before
that one step from the same state must agree to 1e-4.

Memory and start are those of processes of their own that make 30 steps on one row: the highest resident memory, and the
time from the first import to the first answer. PyTorch's process loads the network from a TorchScript file, so that it
imports nothing but PyTorch. Installed sizes are those of NumPy and ONNX Runtime, and of PyTorch, with what each needs.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from shutil import which
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...models.networks import Network, build
from ...streams import Batch, Column, StreamSpec
from ..edge.export import export
from ..edge.footprint import STEPS, TELL, process
from ..edge.runner import Runner
from ..learners.test_time import TestTimeLearner
from ..learners.test_time_recipes import Tent
from . import Row
from .tta import CLASSES, CLOSE, RATE, Differs, Plain, network

MODELS = {"convnet:16-32": (1, 8, 8), "resnet18:20": (3, 32, 32), "resnet18:64": (3, 32, 32)}
BATCHES, THREADS = (1, 16), (1, 2)
ROUNDS, ROUND_SECONDS, PROCESSES = 9, 0.25, 3

PEER = """
import json, sys, time, warnings
start = time.perf_counter()
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
net = torch.jit.load(sys.argv[1])
moving = [p for n, p in net.named_parameters() if p.dim() == 1 and not n.startswith("head")]
for p in net.parameters():
    p.requires_grad_(any(p is m for m in moving))
optimiser = torch.optim.SGD(moving, 1e-4, momentum=0.9)
x = torch.rand(json.loads(sys.argv[2]))
def step():
    z = net(x)
    loss = -(z.softmax(1) * z.log_softmax(1)).sum(1).mean()
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()
step()
first = time.perf_counter() - start
for _ in range(int(sys.argv[3])):
    step()
"""


def measure() -> list[Row]:
    """Every network, number of rows and threads; then processes and sizes."""
    rows: list[Row] = []
    before = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        try:
            for model, shape in MODELS.items():
                net = _network(model, shape)
                bundle = export(_learner(net, shape), _spec(shape), Path(folder) / model.replace(":", "-"))
                for threads in [t for t in THREADS if t <= (os.cpu_count() or 1)]:
                    torch.set_num_threads(threads)
                    rows += [_latency(model, net, shape, bundle, batch, threads) for batch in BATCHES]
                torch.set_num_threads(1)
                rows += _compiled(model, net, shape, bundle)
                rows += _processes(model, net, shape, bundle)
        finally:
            torch.set_num_threads(before)
    return [*rows, _installed()]


# --- one step ---------------------------------------------------------------------------------------------------


def _network(model: str, shape: tuple[int, ...]) -> Network:
    return network(model) if len(shape) == 3 and shape[0] == 3 else build(model, shape, CLASSES).eval()


def _spec(shape: tuple[int, ...]) -> StreamSpec:
    columns = tuple(Column(f"x{j}", missing=False) for j in range(math.prod(shape)))
    notes = {"mean": [0.0] * shape[0], "std": [1.0] * shape[0]}
    return StreamSpec("random images", columns, classes=tuple("0123456789"), shape=shape, notes=notes)


def _learner(net: Network, shape: tuple[int, ...], way: Any = "manual") -> TestTimeLearner:
    return TestTimeLearner(_spec(shape), Tent(optimizer="sgd", lr=RATE, step=way), model=copy.deepcopy(net))


def _rows(shape: tuple[int, ...], batch: int) -> list[Any]:
    rng = np.random.default_rng(batch)
    return list(rng.standard_normal((4, batch, math.prod(shape)), np.float32))


def _latency(model: str, net: Network, shape: tuple[int, ...], bundle: Path, batch: int, threads: int) -> Row:
    runner, plain = Runner(bundle, threads=threads), Plain(net, "tent", batch, RATE)
    given = _rows(shape, batch)
    images = [torch.from_numpy(x).reshape(-1, *shape) for x in given]
    _agree(model, plain, runner, given[0], images[0])
    clock = time.process_time if threads == 1 else time.perf_counter
    ours, peer = _in_turn(runner.adapt, given, plain.step, images, clock)
    return _line(f"{_case(model, batch)}, {_threads(threads)}", "ms/step", 1e3 * ours, 1e3 * peer, "plain PyTorch loop")


def _agree(model: str, plain: Plain, runner: Runner, x: Any, image: Tensor) -> None:
    scores = torch.from_numpy(runner.adapt(x))
    gap = float((scores - plain.step(image).detach().softmax(1)).abs().max())
    moved = torch.cat([p.detach() for p in plain.params.values()])
    gap = max(gap, float((torch.from_numpy(runner.now["moving"]) - moved).abs().max()))
    if not gap <= CLOSE:
        raise Differs(f"{model}: one step {gap:.1e} apart")


def _in_turn(
    ours: Callable[[Any], Any], mine: list[Any], peer: Callable[[Any], Any], its: list[Any], clock: Callable[[], float]
) -> tuple[float, float]:
    """Median seconds a step of both."""

    def timed(step: Callable[[Any], Any], given: list[Any], n: int) -> float:
        start = clock()
        for i in range(n):
            step(given[i % len(given)])
        return (clock() - start) / n

    sides = ((ours, mine), (peer, its))
    often = [max(2, int(ROUND_SECONDS / max(1e-6, timed(*side, 8)))) for side in sides]
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS):
        for k in (0, 1) if turn % 2 else (1, 0):
            seconds[k].append(timed(*sides[k], often[k]))
    return median(seconds[0]), median(seconds[1])


def _compiled(model: str, net: Network, shape: tuple[int, ...], bundle: Path) -> list[Row]:
    """Beside our own learner compiled as a whole; nothing where there is no C++ compiler."""
    if not (which("g++") or which("clang++")):
        return []
    learner, runner = _learner(net, shape, "compiled"), Runner(bundle)
    given = _rows(shape, 1)
    batches = [Batch(np.arange(1), x.astype(np.float64), 0.0) for x in given]

    def step(batch: Batch) -> None:
        learner.adapt(batch, learner.predict(batch))

    ours, peer = _in_turn(runner.adapt, given, step, batches, time.process_time)
    return [_line(f"{_case(model, 1)}, 1 thread", "ms/step", 1e3 * ours, 1e3 * peer, "our learner, compiled")]


def _case(model: str, batch: int) -> str:
    return f"{model} tent, {batch} row{'s' * (batch > 1)}"


def _threads(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"


def _line(case: str, unit: str, ours: float, peer: float, name: str) -> Row:
    return {
        "bench": "edge", "case": case, "unit": unit, "ours": ours, "peer": peer, "peer_name": name,
        "ratio": peer / ours, "floor": None,
    }  # fmt: skip


# --- processes and sizes ----------------------------------------------------------------------------------------


def _processes(model: str, net: Network, shape: tuple[int, ...], bundle: Path) -> list[Row]:
    file = bundle.with_suffix(".pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is on its way out; it is what loads without our code
        torch.jit.trace(net.train(), torch.rand(2, *shape), check_trace=False).save(str(file))
    net.eval()
    mine = [process(bundle) for _ in range(PROCESSES)]
    its = [_told(PEER + TELL, str(file), json.dumps([1, *shape]), str(STEPS)) for _ in range(PROCESSES)]
    (our_memory, _, our_start), (its_memory, _, its_start) = ([median(v) for v in zip(*told)] for told in (mine, its))
    return [
        _line(f"{model} tent, 1 row, whole process", "MB resident", our_memory, its_memory, "PyTorch alone"),
        _line(f"{model} tent, import to first answer", "s", our_start, its_start, "PyTorch alone"),
    ]


def _told(code: str, *arguments: str) -> list[float]:
    """What a process of its own says of itself."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise Differs(done.stderr.strip().splitlines()[-1])
    found: list[float] = json.loads(done.stdout)
    return found


def _installed() -> Row:
    ours, peer = (sum(_sizes(name).values()) / 1e6 for name in ("onnxruntime", "torch"))
    return _line("installed, with what it needs", "MB", ours, peer, "PyTorch")


def _sizes(name: str, found: dict[str, int] | None = None) -> dict[str, int]:
    """Bytes on the disk of a distribution and of those it needs, by name."""
    found = {} if found is None else found
    try:
        about = distribution(name)
    except PackageNotFoundError:
        return found
    if about.name.lower() not in found:
        files = [Path(str(file.locate())) for file in about.files or ()]
        found[about.name.lower()] = sum(f.stat().st_size for f in files if f.is_file())
        for need in about.requires or ():
            if "extra ==" not in need:
                _sizes(re.split(r"[^\w.-]", need)[0], found)
    return found
