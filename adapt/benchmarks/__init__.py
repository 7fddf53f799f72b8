"""``driftway bench NAME``: one file each, ours against a named peer in the same process; medians."""

from __future__ import annotations

import importlib
from typing import Any

from ...streams import InputError

BENCHMARKS = {
    "loop": (
        "loop:measure",
        "events a second of a loop whose learner does nothing, beside river's own evaluation loop",
    ),
    "hoeffding-tree": ("hoeffding_tree:measure", "our Hoeffding tree beside river's, same settings"),
    "row-sparse": ("row_sparse:measure", "a training step whose weight gradient and update are of active rows only"),
    "kernels": ("kernels:measure", "every op for sparse updates beside its dense rival and its floor (minutes)"),
    "kernels-end-to-end": ("kernels_end_to_end:measure", "steps of five learners with these ops on and off"),
    "adab2n": ("adab2n:measure", "a layer of AdaB2N beside PyTorch's batch norm, and beside its own formulas"),
    "sparcl": ("sparcl:measure", "a training step under masks of rows, blocks and weights beside the dense one"),
    "continual-eval": ("continual_eval:measure", "evaluation at every update, and a training step, beside Avalanche's"),
    "tta": ("tta:measure", "a step of test-time adaptation beside plain PyTorch loops"),
    "tta-compiled": ("tta:measure_compiled", "the same, compiled, for one row (minutes of compiling)"),
    "edge": ("edge:measure", "a step of an exported bundle beside PyTorch: time, memory, start (five minutes)"),
    "edge-table": ("edge_table:measure", "bundles on mnist-c without PyTorch beside the learners in it (minutes)"),
    "edge-deviation": (
        "edge_deviation:measure",
        "how far bundles of all kinds go from double precision in 2,000 steps (forty minutes)",
    ),
    "dymoe": ("dymoe:measure", "a layer of experts that grow beside the loop over experts (two minutes)"),
    "dymoe-toy": ("dymoe_toy:measure", "forgetting of experts that grow, with guidance and without (three minutes)"),
    "driftmoe": ("driftmoe:measure", "DriftMoE beside river's adaptive random forest of ten trees"),
    "centaur": ("centaur:measure", "a planner's answer with the gradient of the last frame in the background"),
    "centaur-study": ("centaur_study:measure", "driving under shift: centaur and its controls, five planners"),
    "acu": ("acu:measure", "requests to forget beside training anew (five minutes)"),
    "acu-baselines": ("acu_baselines:measure", "gradient methods that forget, their gap to training anew"),
    "driftmoe-table": ("driftmoe_table:measure", "every stream, label delay, peer and control of DriftMoE (an hour)"),
    "reloop2": ("reloop2:measure", "one batch through the sketch memory beside its floor and a loop over rows"),
    "reloop2-table": ("reloop2_table:measure", "every rule for lambda, ways to forget, controls (twenty minutes)"),
}
"""name -> (``module:function`` in this folder, what it measures)."""

SLOW = (
    "kernels",
    "kernels-end-to-end",
    "acu",
    "acu-baselines",
    "centaur-study",
    "driftmoe-table",
    "edge",
    "edge-table",
    "edge-deviation",
    "tta-compiled",
    "reloop2-table",
    "dymoe",
    "dymoe-toy",
)
"""Run only when asked for by name."""

Row = dict[str, Any]
"""{bench, case, unit, ours, peer, peer_name, ratio, floor}; a ratio above 1 means that ours is better."""


ON_DEVICES = ("kernels", "dymoe")
"""Those that measure another device than the CPU when asked to."""


def measure(name: str | None = None, device: str | None = None) -> list[Row]:
    """The rows of one benchmark, or of all quick ones; ``InputError`` for an unknown name, or one without a device."""
    if name is not None and name not in BENCHMARKS:
        raise InputError(f"unknown benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    if device is not None and name not in ON_DEVICES:
        raise InputError(f"--device is for the benchmarks {', '.join(ON_DEVICES)}; the others run on the CPU")
    given = {} if device is None else {"device": device}
    rows: list[Row] = []
    for chosen in [n for n in BENCHMARKS if n not in SLOW] if name is None else [name]:
        module, _, function = BENCHMARKS[chosen][0].partition(":")
        rows += getattr(importlib.import_module(f".{module}", __name__), function)(**given)
    return rows


def row(
    bench: str, case: str, unit: str, ours: float, peer: float, peer_name: str, *, more_is_better: bool = True
) -> Row:
    """One line of a benchmark that has no physical floor."""
    ratio = ours / peer if more_is_better else peer / ours
    return {
        "bench": bench,
        "case": case,
        "unit": unit,
        "ours": ours,
        "peer": peer,
        "peer_name": peer_name,
        "ratio": ratio,
        "floor": None,
    }
