"""Driftway keeps a deployed model right while the world drifts.

The names below are loaded when first used, so that ``import driftway`` stays quick and pulls in no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "streams": (
        "Batch Labels Forget Boundary Rejected Column StreamSpec Experience Impressions Stream InputError NO_LABEL "
        "STREAMS DATASETS ask_to_forget stream open_file from_arrays from_experiences concat incremental corrupt "
        "delay_labels drop_labels keep_asking split_classes take rebatch shuffle_within"
    ),
    "adapt.loop": "Loop",
    "adapt.record": "Record",
    "adapt.request_queue": "RequestQueue",
    "adapt.learner": "Learner Prediction Receipt CannotForget CannotCheckpoint",
    "adapt.learners": "learner=make_learner",
    "adapt.learners.acu": "ACU",
    "adapt.learners.gradient": "GradientLearner",
    "adapt.learners.replay": "Finetune ER ERACE DERpp AGEM Joint",
    "adapt.learners.adab2n": "AdaB2N",
    "adapt.learners.migu": "MIGU",
    "adapt.learners.dymoe": "DyMoE DyMoETag IncMoELoRA MoELoRA",
    "adapt.learners.lora": "LoRA IncLoRA OLoRA",
    "adapt.learners.regularisers": "EWC LwF",
    "adapt.learners.sparcl": "SparCL",
    "adapt.learners.sparse_controls": "MagnitudeMask RandomMask RigL SET SNIP",
    "models.lora": "fold_lora=fold",
    "models.networks": "Network",
    "models.cluster_entropy": "ClusterEntropy",
    "models.cluster_training": "ClusterEntropyTTT",
    "adapt.edge.export": "export",
    "adapt.guard": "Guard Rollback",
    "adapt.ledger": "Ledger",
    "adapt.checkpoint": "Checkpointer",
    "adapt.avalanche_bridge": "import_avalanche from_avalanche to_avalanche continual_plugin",
    "evaluation": "metrics",
    "evaluation.prequential": "Prequential",
    "evaluation.continual": "Continual",
    "evaluation.calibration": "Calibration",
    "evaluation.clicks": "ClickScores",
    "evaluation.shifts": "Shifts Sessions",
}
_HOME = {
    name.partition("=")[0]: (home, name.split("=")[-1]) for home, names in _HOMES.items() for name in names.split()
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        home, real = _HOME[name]
        return getattr(importlib.import_module(f".{home}", __name__), real)
    raise AttributeError(f"module 'driftway' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
