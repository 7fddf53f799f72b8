"""The planner that test-time training starts from: trained on a stream's clean scenes, once, and kept.

Kept in the cache folder as source models are (``source_model.py``), under a hash of the configuration, the vocabulary
and the first scenes: the others follow from the same seed by the same rules.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..models.planner import Planner, train_planner
from ..streams import StreamSpec, Worth, cache_folder
from .source_model import Progress, tell

FORMAT = 1
"""Counted up whenever training or the file changes, so that old files are not taken for new ones."""
FINGERPRINT = 32
"""Scenes whose rows and judgements go into the key."""


@dataclass(frozen=True, slots=True)
class PlannerTraining:
    """What a planner depends on beside its scenes: steps of Adam on so many scenes each, rate, width, seed."""

    steps: int = 1000
    batch: int = 64
    rate: float = 3e-3
    width: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch < 1 or self.width < 4 or self.width % 4 or not 0 < self.rate < math.inf:
            raise ValueError("planner: steps at least 0, batch at least 1, width a multiple of 4, rate above 0")


def source_planner(
    spec: StreamSpec, training: PlannerTraining, *, keep: bool = True, progress: Progress = tell
) -> Planner:
    """The planner trained on the clean scenes of ``spec.worth``, out of the cache or trained now; nothing in it moves.

    Names of sub-metrics are those of the stream driving: the score, then NC, DAC, TTC, EP, C. keep: read and write the
    cache.
    """
    worth = spec.worth
    assert worth is not None, "a stream without a vocabulary of plans"
    path = cache_folder() / "planners" / f"{_key(worth, training)}.safetensors"
    if keep:
        kept = _load(Planner(worth.vocabulary, worth.layout, training.width, training.seed), path)
        if kept is not None:
            return kept
    progress(f"planner: judging all {worth.vocabulary.shape[0]} plans in {worth.training} clean scenes")
    x, metrics, expert = worth.train(None)
    planner = train_planner(
        worth.vocabulary,
        worth.layout,
        x,
        np.roll(metrics, -1, -1),
        expert,
        steps=training.steps,
        batch=training.batch,
        lr=training.rate,
        width=training.width,
        seed=training.seed,
        progress=progress,
    )
    if keep:
        _save(planner, path, progress)
    return planner


def _key(worth: Worth, training: PlannerTraining) -> str:
    """Hex digest of everything that the trained weights follow from."""
    first = worth.train(FINGERPRINT)
    facts = {"format": FORMAT, "training": asdict(training), "layout": worth.layout, "scenes": worth.training}
    sha = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for part in (worth.vocabulary, *first):
        sha.update(f"{part.dtype}{part.shape}".encode())
        sha.update(np.ascontiguousarray(part).data)
    return sha.hexdigest()


def _load(planner: Planner, path: Path) -> Planner | None:
    """The planner with the file's weights; None where it is not there, or not whole, or not of this planner."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        weights: dict[str, Any] = load(path.read_bytes())
        planner.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError, ValueError):
        return None  # trained anew and written over
    return planner.requires_grad_(False).eval()


def _save(planner: torch.nn.Module, path: Path, progress: Progress) -> None:
    """Write the weights so that a reader finds all of them or none; a folder that cannot be written to is no fault."""
    from safetensors.torch import save

    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(save({k: v.detach().contiguous() for k, v in planner.state_dict().items()}))
        draft.replace(path)
    except OSError as fault:
        progress(f"the planner could not be kept: {fault.strerror or fault}")
