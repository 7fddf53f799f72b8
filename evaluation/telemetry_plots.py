"""Drawings of what gradient learners tell of themselves: sparsity, active rows, gradients, memory, operations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import plots
from .plots import Curve, Marks, Plot
from .run_data import RunData


@dataclass(frozen=True, slots=True)
class Group:
    """Columns of the records that are drawn in one plot. columns: how each is written, nothing where the heading
    says it. percent: they are shares."""

    heading: str
    columns: dict[str, str]
    percent: bool = False
    height: float = 1.9
    bottom: float = 0.0
    top: float | None = None


GROUPS = (
    Group(
        "Sparsity and active rows",
        {
            "sparsity": "weights that are not there",
            "gradient_density": "weights that an update may move",
            "active_rows": "rows of weights that an update moves",
        },
        percent=True,
        height=2.5,
        top=1.02,
    ),
    Group("Updates whose gradient was projected, so far", {"projected": ""}, percent=True, top=1.02),
    Group(
        "Size of the gradient’s two parts",
        {"gradient_plasticity": "of the rows at hand", "gradient_stability": "of the past"},
        height=2.2,
    ),
    Group(
        "Do the two parts agree?",
        {"gradient_cosine": "cosine: 1 the same direction, 0 across, −1 against each other"},
        bottom=-1.05,
        top=1.05,
    ),
    Group("Rows in memory", {"memory_rows": ""}),
    Group("Rows removed from the experience at hand", {"removed_rows": ""}),
    Group("Operations so far", {"paper_flops": "as papers count them", "true_flops": "as really done"}),
    Group(
        "Weights of the tasks in AdaB²N",
        {"psi_spread": "largest spread within a layer", "norm_rate": "rate of the running statistics"},
    ),
    Group("AdaB²N’s loss", {"ada_loss": ""}),
    Group("Rows of weights not finite", {"rows_not_finite": ""}),
)
STYLES = ("solid", "dashed", "dotted")


def telemetry_plots(run: RunData, marks: Marks) -> list[tuple[str, Plot]]:
    """Heading and plot of every group of which something is known; what is 0 throughout is left out."""
    has, drawn = set(run.columns()), []
    for number, group in enumerate(GROUPS):
        curves: list[Curve] = []
        for column, words in group.columns.items():
            x, y = run.curve(column) if column in has else (np.empty(0), np.empty((0, 1)))
            if len(x) > 1 and np.nan_to_num(y).any():
                turn = len(curves)
                curves.append(Curve(words, x, y[:, 0], plots.PALETTE[turn], STYLES[turn], 1.8))
        if curves:
            drawn.append((group.heading, _draw(group, curves, number, marks)))
    return drawn


def _draw(group: Group, curves: list[Curve], number: int, marks: Marks) -> Plot:
    plot = plots.line_plot(
        curves,
        prefix=f"telemetry{number}",
        percent=group.percent,
        marks=Marks(drifts=marks.drifts),
        height=group.height,
        bottom=group.bottom,
        top=group.top,
    )
    return Plot(plot.svg, [entry for entry in plot.legend if entry[1] != "drift"])
