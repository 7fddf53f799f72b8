"""The whole table of DriftMoE: streams x label delays x learners, accuracies in per cent. Takes about an hour.

Delay 0 flatters every learner on streams whose labels come in runs (no-change tells), so delays of 1, 10 and 100 rows
stand beside it. Peers: river's ARF(10) and a lone online logistic regression. Controls: the same pool by vote only,
and the router fed with noise. Settings were tuned on seeds 11 to 14 of electricity, gas-sensors, outdoor, keystroke,
sea and two-regimes; on the other streams nothing was tuned. Reported seeds are 1, 2, 3 (ARF under delay: 1).
"""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

from ...streams import InputError
from . import Row
from .driftmoe import PEER, PEER_NAME, summary

STREAMS = {
    "electricity": None,
    "gas-sensors": None,
    "outdoor": None,
    "keystroke": None,
    "sea": None,
    "two-regimes": 10_000,
    "covertype": None,
    "airlines": 20_000,
    "led-drift": 20_000,
    "rbf-drift": 20_000,
    "spam": None,
    "employment": 20_000,
}
"""Stream -> how many of its first rows."""

DELAYS = (0, 1, 10, 100)
SEEDS = (1, 2, 3)
LEARNERS: dict[str, tuple[str, dict[str, Any]]] = {
    "no-change": ("no-change", {}),
    "majority": ("majority", {}),
    "logistic": ("logistic", {}),
    "hoeffding-tree": ("hoeffding-tree", {}),
    "driftmoe faithful": ("driftmoe", {"faithful": True}),
    "driftmoe task faithful": ("driftmoe", {"variant": "task", "faithful": True}),
    "driftmoe lean": ("driftmoe", {"lean": True}),
    "driftmoe vote only": ("driftmoe", {"answer": "vote"}),
    "driftmoe, router on noise": ("driftmoe", {"noise": True}),
    "driftmoe": ("driftmoe", {}),
}
SEEDLESS = ("no-change", "majority", "logistic", "hoeffding-tree")
OWN_ROWS = ("two-regimes", "led-drift", "rbf-drift")
"""Streams that draw other rows for another seed."""


def measure() -> list[Row]:
    """One row per stream, delay and learner: ours is its mean accuracy, the peer's is that of river's ARF(10)."""
    rows: list[Row] = []
    for stream, length in STREAMS.items():
        for delay in DELAYS:
            try:
                rows += _cell(stream, length, delay)
            except InputError as missing:
                print(f"left out {stream}: {missing}")
                break
    return rows


def _cell(stream: str, length: int | None, delay: int) -> list[Row]:
    forest = _accuracies(stream, length, delay, PEER, {"n_models": 10}, SEEDS if delay == 0 else SEEDS[:1])
    peer = mean(forest)
    rows = [_row(PEER_NAME, stream, delay, forest, peer)]
    for name, (learner, settings) in LEARNERS.items():
        seeds = SEEDS[:1] if name in SEEDLESS and stream not in OWN_ROWS else SEEDS
        rows.append(_row(name, stream, delay, _accuracies(stream, length, delay, learner, settings, seeds), peer))
    return rows


def _accuracies(
    stream: str, length: int | None, delay: int, learner: str, settings: dict[str, Any], seeds: tuple[int, ...]
) -> list[float]:
    return [
        100 * summary(stream, learner, rows=length, delay=delay, seed=seed, **settings)["accuracy"] for seed in seeds
    ]


def _row(name: str, stream: str, delay: int, ours: list[float], peer: float) -> Row:
    spread = f" ± {stdev(ours):.2f}" if len(ours) > 1 else ""
    return {
        "bench": "driftmoe-table",
        "case": f"{stream}, delay {delay}, {name}{spread}",
        "unit": "% accuracy",
        "ours": mean(ours),
        "peer": peer,
        "peer_name": PEER_NAME,
        "ratio": mean(ours) / peer,
        "floor": None,
    }
