"""The fastest way to make a network's passes, found by trying all of them on the batch at hand, once for each size.

Which way wins depends on network, size of batch and machine: ways that halve the time of one lose a tenth of another.
The ways agree within rounding, but not in their bits, so a run that is to repeat must choose as it did before: choices
are kept in a folder, by all that they depend on, and are part of a learner's state. The first batch of a size goes by
autograd, so that a size that comes once costs nothing; ``choose`` is asked after each.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .compiled_passes import CapturedPasses, CompiledPasses
from .manual_passes import How, ManualPasses, Plan
from .passes import AutogradPasses, Pass, Passes

FORMAT = 1
"""Counted up whenever a way changes, so that choices among older ones do not count."""
PLAIN = "plain"
WAYS = {
    "manual": How(),
    "channels-last": How(channels_last=True),
    "fused": How("plain", "compiled", True),
    "packed": How("packed", "torch", True),
    "packed-fused": How("packed", "compiled", True),
}
"""Without autograd: images as PyTorch lays them, channels last, norms in one pass, packed weights, or both of these."""
BUDGET, ROUNDS, HOPELESS = 0.5, 9, 1.3
"""A trial goes on for so many seconds or rounds; a way that much slower than the best so far takes no part in more."""
SIZES = 4
"""So many sizes get a choice, the first that come twice: each may keep weights in an order of its own."""
FAR = 1e-3
"""A way whose logits are off by more than this share of the largest is not taken, whatever it costs."""


class FastestPasses:
    """``Passes`` by the way chosen for the size of x; ``plain``, by autograd, where none is.

    folder: where choices are kept; without one they hold for this object alone, and follow the clock. only: one way for
    all sizes instead, of ``ways()``, or ``compiled``, which serves sizes from the third batch on. chosen: size and
    threads to way; empty: seen once. Networks that
    have no ``Plan`` go by autograd always.

    Raises ``ValueError`` for a way that there is not for this network.
    """

    def __init__(
        self, net: nn.Module, names: Iterable[str], *, folder: Path | None = None, only: str | None = None
    ) -> None:
        names = list(names)
        self.net, self.folder, self.only = net, folder, only
        self.plan = Plan.of(net, names)
        self.chosen: dict[str, str] = {}
        self.plain = AutogradPasses(net, names)
        self._made: dict[str, Passes] = {PLAIN: self.plain}
        there = [PLAIN, *self.ways(), *(["compiled"] if self.plan is not None else [])]
        if only is not None and only not in there:
            raise ValueError(f"a step of this model cannot be {only!r}: it can be {', '.join(there)}")

    def ways(self) -> list[str]:
        """Those that can be for this network, where it lies."""
        weight = next(self.net.parameters())
        if self.plan is None:
            return []
        if weight.device.type == "cuda":
            return ["manual", "channels-last", "captured"]
        return list(WAYS) if weight.device.type == "cpu" and weight.dtype == torch.float32 else ["manual"]

    def __call__(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Pass:
        return self.by(self.way(x))(x, weights)

    def way(self, x: Tensor) -> str:
        """The way for x."""
        if self.plan is None or not self.plan.fits or not len(x):
            return PLAIN
        if self.only not in (None, "compiled"):
            return self.only
        return self.chosen.get(size_of(x)) or PLAIN

    def by(self, way: str) -> Passes:
        """The passes of this way; made when first asked for."""
        if way not in self._made:
            assert self.plan is not None
            if way == "compiled":
                self._made[way] = CompiledPasses(self.net, self.plan, WAYS["packed"])
            elif way == "captured":
                self._made[way] = CapturedPasses(self.net, self.plan, WAYS["channels-last"])
            else:
                self._made[way] = ManualPasses(self.net, self.plan, WAYS[way])
        return self._made[way]

    def choose(self, x: Tensor) -> None:
        """To be told of every batch after its pass: the second of a size makes the choice, on finite numbers."""
        size = size_of(x)
        if self.only not in (None, "compiled") or self.chosen.get(size) or self.plan is None or not self.plan.fits:
            return
        if sum(map(bool, self.chosen.values())) >= SIZES:
            return
        if size not in self.chosen:
            self.chosen[size] = ""
        elif bool(torch.isfinite(x).all()):
            self.chosen[size] = self.only or self._kept(size, x)

    def load(self, chosen: Mapping[str, str]) -> None:
        """Take over choices; a way that there is not here is autograd's."""
        known = {PLAIN, "", self.only, *self.ways()}
        self.chosen = {size: way if way in known else PLAIN for size, way in chosen.items()}

    def facts(self) -> dict[str, Any]:
        """What was chosen, and what compiling cost, for a record."""
        one_way = self.only not in (None, "compiled")
        found: dict[str, Any] = {"chosen": self.only if one_way else {k: way for k, way in self.chosen.items() if way}}
        compiled = self._made.get("compiled")
        if isinstance(compiled, CompiledPasses):
            found["warm_up_seconds"] = {size: round(s, 1) for size, s in compiled.warm_up.items()}
        return found

    # --- the choice ---------------------------------------------------------------------------------------------

    def _kept(self, size: str, x: Tensor) -> str:
        """The choice in the folder; without one, that of a trial, which is kept. Whoever is first decides for all."""
        if self.folder is None:
            return fastest(self._trial(x))
        path = self.folder / f"{self._key(size)}.json"
        known = self.ways()
        way = _read(path)
        if way is None:
            seconds = self._trial(x)
            if len(seconds) <= 1:  # rows on which rounding is all there is: they say nothing of others
                return PLAIN
            _write(path, {"way": fastest(seconds), "milliseconds": {w: 1e3 * s for w, s in seconds.items()}})
            way = _read(path)
        return way if way in known else PLAIN

    def _key(self, size: str) -> str:
        """Hex digest of all that the time of a pass follows from."""
        assert self.plan is not None
        weights = [(n, list(w.shape), str(w.dtype)) for n, w in self.net.named_parameters()]
        modes = [(at, m.statistics, m.prior) for at, m in self.plan.norms.items()]
        moving = sorted(self.plan.moving)
        machine = [torch.__version__, torch.backends.cpu.get_cpu_capability(), next(self.net.parameters()).device.type]
        facts = [FORMAT, repr(self.plan.units), weights, modes, moving, size, machine]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _trial(self, x: Tensor) -> dict[str, float]:
        """Seconds of a pass there and back by each way that answers right; all ways take turns."""
        wanted = self.plain(x)
        slope = torch.full_like(wanted.z, 1 / wanted.z.numel())
        slope[:, ::2] *= -1
        wanted.pull(slope)
        if not bool(torch.isfinite(wanted.z).all()):
            return {}
        limit = FAR * float(wanted.z.abs().max())
        seconds: dict[str, float] = {}
        for way in (PLAIN, *self.ways()):
            passes = self.by(way)
            if _off(passes, x, slope, wanted.z) <= limit or way == PLAIN:
                seconds[way] = _timed(passes, x, slope)
        start = time.perf_counter()
        for _ in range(ROUNDS):
            best = min(seconds.values())
            for way in [w for w, s in seconds.items() if s <= HOPELESS * best]:
                seconds[way] = min(seconds[way], _timed(self.by(way), x, slope))
            if time.perf_counter() - start > BUDGET:
                break
        for way in set(self._made) - {PLAIN, fastest(seconds), *self.chosen.values()}:
            del self._made[way]
        return seconds


def size_of(x: Tensor) -> str:
    """What choices are kept by: the sizes of x and the number of threads, such as ``16x3x32x32 1``."""
    return f"{'x'.join(map(str, x.shape))} {torch.get_num_threads()}"


def fastest(seconds: Mapping[str, float]) -> str:
    """The way that takes the least, autograd where there is none."""
    return min(seconds, key=seconds.__getitem__, default=PLAIN)


def _off(passes: Passes, x: Tensor, slope: Tensor, z: Tensor) -> float:
    """How far the logits are from z; infinite for a way that fails. Also makes it ready."""
    try:
        found = passes(x)
        found.pull(slope)
    except RuntimeError:  # one of PyTorch's private operations refused
        return float("inf")
    return float((found.z - z).abs().max())


def _timed(passes: Passes, x: Tensor, slope: Tensor) -> float:
    alone = torch.get_num_threads() == 1 and not x.is_cuda
    clock = time.thread_time if alone else time.perf_counter  # the former goes by this thread's work, not by others'
    start = clock()
    found = passes(x)
    found.pull(slope)
    if x.is_cuda:
        torch.cuda.synchronize()
    return clock() - start


def _read(path: Path) -> str | None:
    try:
        way = json.loads(path.read_text(encoding="utf-8"))["way"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return way if isinstance(way, str) else None


def _write(path: Path, choice: Mapping[str, Any]) -> None:
    """Whole or not at all, and only where there is none yet; a folder that cannot be written to is no fault."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(choice), encoding="utf-8")
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    except OSError:
        return
