"""Accuracy curves that change only on purpose.

``golden.csv`` holds the accuracy in windows of 500 rows on 5,000 rows of ``sea-drift`` for the learners below. After a
change that is meant to move them: ``DRIFTWAY_RENEW_GOLDEN=1 pytest tests/learners/test_golden.py``, look at the
difference, and commit it with the reason. The tolerance is there for other machines, whose last bits differ.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import driftway as dw
import numpy as np
import pytest
from numpy.testing import assert_allclose

CURVES = Path(__file__).with_name("golden.csv")
ROWS, WINDOW = 5_000, 500
TOLERANCE, TOLERANCE_OF_MEAN = 0.02, 0.005
LEARNERS: dict[str, tuple[str, dict[str, Any]]] = {
    "logistic": ("logistic", {}),
    "hoeffding-tree": ("hoeffding-tree", {"grace": 50}),
    "hoeffding-tree adaptive": ("hoeffding-tree", {"grace": 50, "adaptive": True}),
    "driftmoe": ("driftmoe", {}),
    "driftmoe lean": ("driftmoe", {"lean": True}),
    "driftmoe faithful": ("driftmoe", {"faithful": True}),
    "driftmoe task": ("driftmoe", {"variant": "task"}),
    "driftmoe task faithful": ("driftmoe", {"variant": "task", "faithful": True}),
}


@pytest.fixture(scope="module")
def golden(first_rows: Any) -> dict[str, list[float]]:
    """The committed curves, written anew first where that was asked for."""
    if os.environ.get("DRIFTWAY_RENEW_GOLDEN") == "1":
        curves = {name: curve(name, first_rows) for name in LEARNERS}
        with CURVES.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["rows", *curves])
            for k in range(ROWS // WINDOW):
                writer.writerow([(k + 1) * WINDOW, *(f"{points[k]:.3f}" for points in curves.values())])
    with CURVES.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return {name: [float(line[name]) for line in lines] for name in lines[0] if name != "rows"}


def curve(name: str, first_rows: Any) -> list[float]:
    """Accuracy of a learner, tested then trained row by row, in every window."""
    spec, batch = first_rows("sea-drift", ROWS, seed=7, n=ROWS)
    kind, settings = LEARNERS[name]
    answers = dw.learner(kind, spec, seed=7, **settings).test_then_train(batch).output
    points: list[float] = (answers == batch.y).reshape(-1, WINDOW).mean(axis=1).tolist()
    return points


def test_there_is_a_curve_for_every_learner(golden: dict[str, list[float]]) -> None:
    assert {name: len(points) for name, points in golden.items()} == dict.fromkeys(LEARNERS, ROWS // WINDOW)


@pytest.mark.parametrize("name", LEARNERS)
def test_curve_is_as_it_was(name: str, golden: dict[str, list[float]], first_rows: Any) -> None:
    now = curve(name, first_rows)
    assert_allclose(now, golden[name], atol=TOLERANCE, rtol=0)
    assert_allclose(np.mean(now), np.mean(golden[name]), atol=TOLERANCE_OF_MEAN, rtol=0)
