"""How far the tokens of old experiences have moved to banks of experts that came after them.

Routing drift is the mass that new banks take from tokens of old tasks (Zhao et al., LLaVA-DyMoE, CVPR 2026). Measured
over all tokens it misleads, since tokens that all tasks share may rightly move; so it is told apart by what a token is
to its experience (``spec.text.kinds``), and the drift proper is that of its own tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..streams.spec import AMBIGUOUS, OWN, SHARED

Floats = NDArray[np.float64]

TOKENS = {"own": OWN, "ambiguous": AMBIGUOUS, "shared": SHARED}
"""Tokens that are told apart, by name; padding is none of them."""
Drift = dict[str, list[list[float | None]]]
"""By name of ``TOKENS``: a row for the end of each experience, with a figure for each experience so far."""


def newer_mass(kinds: NDArray[np.int8], mass: Floats, bank: int) -> dict[str, float | None]:
    """Mean routing mass on the banks behind ``bank``, of each kind of tokens; None where there is no such token.

    kinds: int8[n, T], what each token of held-out rows is to their experience. mass: float[n, T, banks], the routing
    weights of each token summed within each bank, mean over the adapted layers; a token's masses sum to 1. bank: that
    of the rows' own experience, so the newest bank has 0.

    >>> kinds = np.array([[1, 1, 0, -1]], np.int8)
    >>> mass = np.array([[[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.0, 1.0]]])
    >>> newer_mass(kinds, mass, 0)
    {'own': 0.25, 'ambiguous': None, 'shared': 1.0}
    """
    if kinds.shape != mass.shape[:2]:
        raise ValueError(f"kinds of {list(kinds.shape)} tokens do not fit masses of {list(mass.shape[:2])} tokens")
    newer = np.asarray(mass, np.float64)[..., bank + 1 :].sum(axis=2)
    found = {name: newer[kinds == kind] for name, kind in TOKENS.items()}
    return {name: float(values.mean()) if values.size else None for name, values in found.items()}


def with_row(drift: Drift | None, figures: Sequence[dict[str, float | None]]) -> Drift:
    """``drift`` (None: so far nothing) with what ``newer_mass`` gave for each experience so far, as one more row.

    This is ``learner.facts()["tokens"]["drift"]``.
    """
    before = drift or {name: [] for name in TOKENS}
    return {name: [*before[name], [figure[name] for figure in figures]] for name in TOKENS}


def last_drift(drift: Drift, name: str = "own") -> float | None:
    """Mean of the last row over the experiences that have a figure and a newer bank: all but the last one."""
    rows = drift.get(name) or [[]]
    known = [figure for figure in rows[-1][:-1] if figure is not None]
    return float(np.mean(known)) if known else None
