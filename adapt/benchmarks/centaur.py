"""What a planner's answer costs while the gradient of the frame before is taken in the background.

Ours and the peer alternate in one process, frame by frame: the same planner with and without ``ClusterEntropyTTT``'s
thread. Frames come every 50 ms, ten times as often as a planner is asked at 2 Hz, and so that an answer begins at once
after the gradient has (``at once``: the worst there can be; the thread is then busy throughout the answer, which uses
what was ready). Medians, and the 99th percentile; a row whose answer waits for the thread says what waiting costs.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from time import perf_counter, sleep
from typing import Any

import numpy as np
import torch

from ...models.cluster_entropy import ClusterEntropy
from ...models.cluster_training import Background, ClusterEntropyTTT
from ...models.planner import Planner
from ...models.trajectories import manoeuvres
from ...streams import Array
from ...streams.driving import LAYOUT, scenes
from ...streams.kinematics import random_drives
from ...streams.vocabulary import vocabulary
from . import Row, row

PLANS, FRAMES, EVERY, OVERLAP = 64, 300, 0.05, 0.0005
PEER = "the same without gradients"


def measure() -> list[Row]:
    """Rows in milliseconds of an answer; the peer is the answer with no gradient at any time."""
    rows = []
    for threads in (1, 2) if (os.cpu_count() or 1) > 1 else (1,):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            for case, background, pause in (
                ("a frame every 50 ms", "wait", EVERY),
                ("half a millisecond into the gradient, live", "live", OVERLAP),
                ("half a millisecond into the gradient, waiting", "wait", OVERLAP),
            ):
                ours, peer = latencies(background, pause)  # type: ignore[arg-type]
                for words, level in (("median", 50), ("p99", 99)):
                    mine, its = (float(np.percentile(times, level)) for times in (ours, peer))
                    title = f"{case}, {threads} torch threads, {words}"
                    rows.append(row("centaur", title, "ms/answer", mine, its, PEER, more_is_better=False))
        finally:
            torch.set_num_threads(before)
    return rows


def latencies(background: Background, pause: float, frames: int | None = None) -> tuple[Array, Array]:
    """Milliseconds of every answer with gradients in the background, and without any, in turn."""
    planner = Planner(vocabulary(random_drives(1500), PLANS), LAYOUT).requires_grad_(False).eval()
    x = torch.from_numpy(scenes([0], severity=2)[0].observations)
    ours, peer = trained(planner, background), trained(planner, "no")
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(FRAMES if frames is None else frames):
        frame, time = x[i % len(x)][None], 0.5 * i
        sleep(pause)
        started = perf_counter()
        answer = ours.answer(frame, time)
        times[0].append(1e3 * (perf_counter() - started))
        ours.settle()
        sleep(pause)
        started = perf_counter()
        peer.answer(frame, time)
        times[1].append(1e3 * (perf_counter() - started))
        ours.observe(answer.features, time)
    ours.close()
    return tuple(np.array(t[len(t) // 10 :]) for t in times)  # type: ignore[return-value]


def trained(planner: Planner, background: Background) -> ClusterEntropyTTT:
    """The step for this planner, cluster entropy of three headings."""
    from torch.func import functional_call

    entries = planner.entries()

    def of(decoder: torch.nn.Module) -> Callable[[Any, Any], torch.Tensor]:
        return lambda w, features: planner.combine(functional_call(decoder, dict(w), (*features, entries)))

    clusters = torch.from_numpy(manoeuvres(planner.trajectories.numpy()))
    return ClusterEntropyTTT(
        planner.features,
        dict(planner.decoder.named_parameters()),
        of(planner.decoder),
        ClusterEntropy(clusters),
        1e-3,
        background=background,
        behind=of(copy.deepcopy(planner.decoder)),
    )
