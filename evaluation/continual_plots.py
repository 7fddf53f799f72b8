"""Drawings of a continual evaluation: the curve that made the stability gap known, and accuracy as a map.

An experience is known by its number everywhere: on its stretch of the strip above, at the end of its line, in the
table. Its colour runs from dark (the first) to light (the last), so that the order is seen without seeing hues.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ..streams import Array
from . import plots
from .curves import Curve
from .gaps import Switch, after_switches, envelope, lowest_grid, mean_accuracy, shape_of, switches
from .plots import Plot

RAMP = ("#3a1283", "#2459c8", "#0a8385", "#4f8f1c", "#e8a000")
FALL = "#b42318"
MOST_POINTS = 6000
"""Points of all lines together; each has at least ``FEWEST_POINTS``."""
FEWEST_POINTS = 120
STRETCHES = 300
"""Evaluations past which the mean is drawn as a band from lowest to highest with a line of medians."""
MOST_NUMBERS = 26
"""Experiences whose lines have their number at the end; more would not fit beside the axes."""
BESIDE = 0.52
"""Inches to the right of the axes, the same in both drawings so that one can be read below the other."""
MOST_NAMES = 8
"""Experiences that the legend tells by name."""
COLUMNS = 318
"""Columns of the map: two dots of the screen each."""
CLOSE = 100
"""Updates after a switch that are drawn again, larger."""
LEAST_FALL = 0.005
"""Drops that would be written as 0 points are not drawn."""


def ramp(n: int) -> list[str]:
    """n colours from dark to light."""
    anchors = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in RAMP], np.float64)
    at = np.linspace(0, len(RAMP) - 1, n) if n > 1 else np.ones(1)
    channels = [np.interp(at, np.arange(len(RAMP)), anchors[:, c]) for c in range(3)]
    return ["#" + "".join(f"{round(v):02x}" for v in colour) for colour in np.transpose(channels)]


def gap_plot(curve: Curve, *, prefix: str) -> Plot:
    """Accuracy of each experience from its start on, their mean, and the deepest drop after each switch."""
    seen, accuracy = int(curve.experience[-1]) + 1, curve.accuracy
    costs, colours, right = switches(curve), ramp(int(curve.experience[-1]) + 1), float(curve.update[-1])
    figure, axes = plots.new_axes(4.6 if seen <= MOST_NAMES else 5.6, top=0.42, right=BESIDE)
    axes.set_xlim(0, right)
    axes.set_ylim(0, 1.01)
    plots.tidy(axes, percent=True)
    few = len(curve.update) <= 3 * seen
    for switch in costs:
        axes.axvline(switch.update, color=plots.DRIFT, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
    marked = [place for s in costs for place in (s.place, s.place + 1, s.deepest.place)]
    limit, width = max(FEWEST_POINTS, MOST_POINTS // seen), 1.4 if len(curve.update) <= STRETCHES else 0.9
    for i, colour in enumerate(colours):
        at = shape_of(accuracy[:, i], limit, marked)
        axes.plot(curve.update[at], accuracy[at, i], color=colour, linewidth=width, zorder=3 + i / seen,
                  solid_joinstyle="round", marker="o" if few else None, clip_on=not few)  # fmt: skip
    if seen > 1:
        _draw_mean(axes, curve)
    _mark_falls(axes, costs, right)
    _strip(axes, [0.0, *(float(s.update) for s in costs), right], colours)
    if 1 < seen <= MOST_NUMBERS:
        ends = [*((y, str(i + 1), colours[i]) for i, y in enumerate(accuracy[-1, :seen].tolist()))]
        _end_labels(axes, [*ends, (float(mean_accuracy(curve)[-1]), "ACC", plots.INK)])
    note = ""
    if seen > 1 and len(curve.update) > STRETCHES:
        note = (
            "ACC is the median of each short stretch, the grey band around it reaches from the lowest to the highest."
        )
    return Plot(plots.to_svg(figure, prefix), _legend(curve, colours, bool(costs)), note)


def close_up(curve: Curve, *, prefix: str) -> Plot | None:
    """The experiences before, on average, in the first updates after each switch, all switches over one another; None
    where the curve as a whole shows them well enough."""
    places = [0, *curve.update[curve.switches].tolist(), int(curve.update[-1])]
    lines = [(x, y) for x, y in after_switches(curve, CLOSE) if len(x) > 4]
    if not lines or len(lines) < len(places) - 2 or np.median(np.diff(places)) < 2 * CLOSE:
        return None
    colours = ramp(len(places) - 1)[1:]
    figure, axes = plots.new_axes(3.2, right=BESIDE)
    for (x, y), colour in zip(lines, colours):
        axes.plot(x, y, color=colour, linewidth=1.8 if len(lines) < MOST_NAMES else 1.2, solid_joinstyle="round")
    low = min(float(y.min()) for _, y in lines)
    axes.set_ylim(max(0.0, low - 0.05), 1.01)
    axes.set_xlim(0, CLOSE)
    plots.tidy(axes, percent=True)
    if len(lines) <= MOST_NUMBERS:
        _end_labels(axes, [(float(y[-1]), str(i), c) for i, ((_, y), c) in enumerate(zip(lines, colours), start=2)])
    named = [(c, "solid", f"{i} begins") for i, c in enumerate(colours, start=2)]
    return Plot(plots.to_svg(figure, prefix), named if len(named) < MOST_NAMES else [named[0], named[-1]])


def _draw_mean(axes: Any, curve: Curve) -> None:
    """ACC as the strongest line, white around it."""
    x, (low, middle, high) = envelope(curve, mean_accuracy(curve), STRETCHES)
    if len(curve.update) > STRETCHES:
        axes.fill_between(x, low, high, color=plots.INK, alpha=0.22, linewidth=0, zorder=4.5)
    for colour, width in (("#ffffff", 4.2), (plots.INK, 2.3)):
        axes.plot(x, middle, color=colour, linewidth=width, zorder=5, solid_joinstyle="round")


def _legend(curve: Curve, colours: Sequence[str], switched: bool) -> list[tuple[str, str, str]]:
    named = [(c, "solid", f"{i} · {name}") for i, (c, name) in enumerate(zip(colours, curve.names), start=1)]
    if len(colours) > MOST_NAMES:
        last = len(colours)
        named = [(colours[0], "solid", "experience 1"), (colours[last // 2], "solid", "…"),
                 (colours[-1], "solid", f"experience {last}")]  # fmt: skip
    mean = [(plots.INK, "solid", "ACC, the mean of those seen")] if len(colours) > 1 else []
    marks = [(plots.DRIFT, "drift", "switch"), (FALL, "fall", "deepest drop after it")] if switched else []
    return [*mean, *named, *marks]


def _mark_falls(axes: Any, costs: Sequence[Switch], right: float) -> None:
    """An arrow from where the experience stood to where it fell, with the points that it lost."""
    room = [b.update - a.update for a, b in pairwise(costs)] + [right - s.update for s in costs[-1:]]
    for switch, width in zip(costs, room):
        fall = switch.deepest
        if fall.depth < LEAST_FALL:
            continue
        x = float(switch.update + fall.updates)
        axes.plot([switch.update, x], [fall.before] * 2, color=FALL, linewidth=0.9, linestyle=(0, (1, 1.5)), zorder=6)
        arrow = {"arrowstyle": "-|>", "color": FALL, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9}
        axes.annotate("", (x, fall.lowest), (x, fall.before), arrowprops=arrow, zorder=7)
        dots = width / right * 600
        if dots >= 22:
            words = f"−{100 * fall.depth:.0f}" + (" points" if dots >= 90 else "")
            left = x > 0.9 * right
            axes.annotate(
                words, (x, (fall.before + fall.lowest) / 2), (-5 if left else 5, 0), textcoords="offset points",
                ha="right" if left else "left", va="center", fontsize=11 if dots >= 90 else 9, color=FALL, zorder=8,
                bbox={"boxstyle": "round,pad=0.12", "fc": "white", "ec": "none", "alpha": 0.9},
            )  # fmt: skip


def _strip(axes: Any, edges: Sequence[float], colours: Sequence[str]) -> None:
    """Above the axes: which experience was being learnt, a bar of its colour with its number."""
    from matplotlib.transforms import blended_transform_factory

    beside = blended_transform_factory(axes.transData, axes.transAxes)
    for i, (start, stop, colour) in enumerate(zip(edges, edges[1:], colours), start=1):
        gap = min(0.002 * edges[-1], 0.2 * (stop - start))
        axes.plot([start + gap, stop - gap], [1.03] * 2, color=colour, linewidth=4, solid_capstyle="butt",
                  transform=beside, clip_on=False)  # fmt: skip
        if stop - start >= edges[-1] / 45:
            axes.text((start + stop) / 2, 1.055, str(i), transform=beside, ha="center", va="bottom", fontsize=10,
                      color=plots.DRIFT)  # fmt: skip


def _end_labels(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Words beside the ends of lines: (height, words, colour), moved apart where they would meet."""
    from matplotlib.transforms import blended_transform_factory

    beside = blended_transform_factory(axes.transData, axes.transAxes)
    size = 10.5 if len(ends) <= 12 else 8.5
    step = 1.02 * size / 72 / axes.figure.get_figheight() / axes.get_position().height
    low, high = axes.get_ylim()
    order = sorted(range(len(ends)), key=lambda i: ends[i][0])
    heights = apart([(ends[i][0] - low) / (high - low) for i in order], step)
    for i, y in zip(order, heights):
        _, words, colour = ends[i]
        axes.annotate(words, (axes.get_xlim()[1], y), (6, 0), xycoords=beside, textcoords="offset points",
                      va="center_baseline", fontsize=size, color=colour, fontweight="bold",
                      annotation_clip=False)  # fmt: skip


def apart(heights: Sequence[float], step: float) -> list[float]:
    """Rising heights from 0 to 1, moved as little as possible (least squares) to be at least ``step`` apart; at most 1.

    >>> apart([0.5, 0.5, 1.0], 0.25)
    [0.375, 0.625, 1.0]
    """
    blocks: list[tuple[float, int]] = []
    for i, y in enumerate(heights):
        total, n = y - i * step, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / n:
            total, n = total + blocks[-1][0], n + blocks.pop()[1]
        blocks.append((total, n))
    levels = [total / n for total, n in blocks for _ in range(n)]
    last = len(levels) - 1
    return [min(level + i * step, 1.0 - (last - i) * step) for i, level in enumerate(levels)]


def mean_plot(learners: Sequence[plots.Curve], like: Curve, *, prefix: str) -> Plot:
    """ACC of several learners over the updates of one of their runs, whose experiences the strip above shows."""
    figure, axes = plots.new_axes(4.2, top=0.42)
    for learner in learners:
        plots.draw(axes, learner)
    low, high = plots.limits(learners, percent=True)
    right = float(like.update[-1])
    axes.set_ylim(max(low, 0.0), min(high, 1.01))
    axes.set_xlim(0, right)
    plots.tidy(axes, percent=True)
    edges = [0.0, *like.update[like.switches].astype(float).tolist(), right]
    for edge in edges[1:-1]:
        axes.axvline(edge, color=plots.DRIFT, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
    _strip(axes, edges, [plots.MAJORITY] * (len(edges) - 1))
    marks = [(plots.DRIFT, "drift", "switch")] if len(edges) > 2 else []
    return Plot(plots.to_svg(figure, prefix), [*((c.colour, c.style, c.name) for c in learners[::-1]), *marks])


def heat_plot(curve: Curve, *, prefix: str, ends_only: bool = False) -> Plot:
    """Accuracy of each experience (down) over updates (across) by colour; where there is a column for several
    evaluations, it shows the lowest. ends_only: one column for each experience that was learnt, with figures."""
    from matplotlib import colormaps

    seen = int(curve.experience[-1]) + 1
    grid = (curve.accuracy.T if ends_only else lowest_grid(curve, curve.accuracy, COLUMNS))[:seen]
    right = float(len(grid[0])) if ends_only else float(curve.update[-1])
    figure, axes = plots.new_axes(0.75 + seen * (0.3 if seen <= 8 else 0.17), top=0.4, right=BESIDE)
    colours = colormaps["viridis"]
    image = axes.imshow(grid, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="none",
                        extent=(0, right, seen + 0.5, 0.5))  # fmt: skip
    plots.tidy(axes, percent=False)
    axes.grid(visible=False)
    axes.yaxis.set_major_formatter(lambda v, _: f"{v:.0f}")
    axes.set_yticks(range(1, seen + 1, 1 if seen <= 24 else 5))
    axes.tick_params(axis="y", labelsize=10 if seen <= 8 else 8)
    axes.hlines(np.arange(1.5, seen), 0, right, color="white", linewidth=1.2 if seen <= 8 else 0.6)
    if ends_only:
        axes.set_xticks(np.arange(len(grid[0])) + 0.5, [f"after {j + 1}" for j in range(len(grid[0]))])
        if seen <= 12:
            _write_cells(axes, grid)
    else:
        axes.vlines([s.update for s in switches(curve)], 0.5, seen + 0.5, color="white", linewidth=0.8)
    _colour_bar(figure, axes, image)
    return Plot(plots.to_svg(figure, prefix))


def _write_cells(axes: Any, grid: Array) -> None:
    for i, row in enumerate(grid):
        for j, value in enumerate(row.tolist()):
            if value == value:
                axes.text(j + 0.5, i + 1, f"{100 * value:.0f}", ha="center", va="center", fontsize=10.5,
                          color="white" if value < 0.6 else plots.INK)  # fmt: skip


def _colour_bar(figure: Any, axes: Any, image: Any) -> None:
    """Above the axes, on the right, with its ends written beside it."""
    box, inch = axes.get_position(), 1 / figure.get_figheight()
    place = (box.x1 - 0.26, box.y1 + 0.13 * inch, 0.2, 0.13 * inch)
    bar = figure.colorbar(image, cax=figure.add_axes(place), orientation="horizontal", ticks=[])
    bar.outline.set_visible(False)
    for x, side, words in ((-0.03, "right", "accuracy 0 %"), (1.03, "left", "100 %")):
        bar.ax.text(x, 0.5, words, transform=bar.ax.transAxes, ha=side, va="center_baseline", fontsize=10.5,
                    color=plots.FAINT)  # fmt: skip
