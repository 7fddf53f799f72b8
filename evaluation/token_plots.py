"""Drawings of what tokens do in a language model: which are new, which bank they go to, which rows of weights move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import plots
from .continual_plots import MOST_NAMES, ramp
from .plots import Plot

Floats = NDArray[np.float64]

COLUMNS = 150
"""Columns of a map over updates."""
MOST_LABELS = 32
"""Layers past which not every one has its name beside the map."""
MOST_FIGURES = 12
"""Tasks up to which a matrix has its figures written into its cells."""
BESIDE, BETWEEN = 1.35, 0.18
"""Inches for the layers' names, and between two maps."""


def short_names(names: Sequence[str]) -> list[str]:
    """Layers by number and last word, where that tells them apart; else without the beginning that all share.

    >>> short_names(["body.layers.0.attn.q_proj", "body.layers.1.attn.q_proj"])
    ['0 q_proj', '1 q_proj']
    >>> short_names(["body.0", "body.2"])
    ['0', '2']
    """
    parts = [name.split(".") for name in names]
    brief = [" ".join(dict.fromkeys([p for p in part if p.isdigit()] + part[-1:])) for part in parts]
    if len(set(brief)) == len(names):
        return brief
    same = 0
    while all(len(part) > same + 1 and part[same] == parts[0][same] for part in parts):
        same += 1
    return [".".join(part[same:]) for part in parts]


def over_updates(updates: Floats, values: Floats, columns: int) -> Floats:
    """float64[layers, columns]: means of values (float64[n, layers]) over equal stretches of updates; a stretch
    without any has those of the one before it."""
    place = np.minimum((updates / max(float(updates[-1]), 1.0) * columns).astype(np.int64), columns - 1)
    total, count = np.zeros((columns, values.shape[1])), np.zeros(columns)
    np.add.at(total, place, values)
    np.add.at(count, place, 1.0)
    last = np.maximum.accumulate(np.where(count > 0, np.arange(columns), place.min()))
    return (total[last] / count[last, None]).T


def share_maps(
    updates: Floats, shares: dict[str, Floats], layers: Sequence[str], begins: Sequence[float], *, prefix: str
) -> Plot:
    """Side by side a map for each kind of tokens: its share by colour, layers down, updates across.

    updates: float64[n]. shares: float64[n, layers] of each kind. begins: updates at which an experience begins. Above
    each map its mean since the first of them: before, there is no old bank.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    height = 0.95 + min(5.5, max(0.9, 0.17 * len(layers)))
    figure, axes = plots.new_axes(height, top=0.62)
    box, width, inch = axes.get_position(), plots.WIDTH, 1 / plots.WIDTH
    axes.remove()
    each = (width - BESIDE - 0.19 - BETWEEN * (len(shares) - 1)) / len(shares)
    right, image = float(updates[-1]), None
    for k, (name, values) in enumerate(shares.items()):
        panel = figure.add_axes(((BESIDE + k * (each + BETWEEN)) * inch, box.y0, each * inch, box.height))
        image = panel.imshow(over_updates(updates, values, COLUMNS), cmap="viridis", vmin=0, vmax=1, aspect="auto",
                             interpolation="none", extent=(0, right, len(layers) - 0.5, -0.5))  # fmt: skip
        plots.tidy(panel, percent=False)
        panel.grid(visible=False)
        mean = float(values[updates >= begins[0]].mean())
        panel.set_title(f"{name} · {100 * mean:.0f} %", fontsize=12, color=plots.INK, loc="left", pad=5)
        panel.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        panel.vlines(begins, -0.5, len(layers) - 0.5, color="white", linewidth=0.9)
        step = -(-len(layers) // MOST_LABELS)
        panel.set_yticks(range(0, len(layers), step), short_names(layers)[::step] if k == 0 else [])
        panel.tick_params(axis="y", labelsize=10 if len(layers) <= 16 else 8.5)
        if k:
            panel.yaxis.set_major_formatter(FuncFormatter(lambda _v, _: ""))
    _scale(figure, image, "share of tokens 0 %", "100 %")
    return Plot(plots.to_svg(figure, prefix))


def drift_plot(
    own: Sequence[Sequence[float | None]], means: dict[str, list[float | None]], names: Sequence[str], *, prefix: str
) -> Plot:
    """A line for each experience that has a later one: what newer banks have of its own tokens after each experience.

    own: a row for the end of each experience. means: thinner lines beside them, a figure for each row; none without.
    """
    last = len(own)
    colours = ramp(last)
    figure, axes = plots.new_axes(3.0, right=0.4)
    styles = {name: style for name, style in zip(means, ("dashed", "dotted")) if set(means[name]) - {None}}
    for name, style in styles.items():
        x, y = _known([(t + 1, v) for t, v in enumerate(means[name])])
        axes.plot(
            x, y, "o", color=plots.FAINT, linewidth=1.4, linestyle=plots.DASHES[style], markersize=3, zorder=2,
            clip_on=False,
        )  # fmt: skip
    for e in range(last - 1):
        x, y = _known([(t + 1, own[t][e]) for t in range(e, last)])
        axes.plot(x, y, "o-", color=colours[e], linewidth=1.9, markersize=4, zorder=3, clip_on=False)
    axes.set_xlim(1, last)
    axes.set_ylim(bottom=0.0)
    plots.tidy(axes, percent=True)
    axes.set_xticks(range(1, last + 1), [f"after {t + 1}" for t in range(last)])
    named = [(colours[e], "solid", f"{e + 1} · {names[e]}") for e in range(last - 1)]
    if len(named) > MOST_NAMES:
        named = [named[0], (colours[last // 2], "solid", "…"), named[-1]]
    beside = [(plots.FAINT, style, name) for name, style in styles.items()]
    return Plot(plots.to_svg(figure, prefix), [*named, *beside])


def overlap_plot(overlap: Floats, names: Sequence[str], *, prefix: str) -> Plot:
    """A matrix of tasks by tasks as a map, with its figures where there are few."""
    n = len(overlap)
    figure, axes = plots.new_axes(1.05 + n * (0.34 if n <= MOST_FIGURES else 0.15), top=0.55)
    box, inch = axes.get_position(), 1 / plots.WIDTH
    axes.set_position((2.2 * inch, box.y0, min(0.62, n * 0.09), box.height))
    image = axes.imshow(overlap, cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="none")
    plots.tidy(axes, percent=False)
    axes.grid(visible=False)
    axes.set_xticks(range(n), [str(k + 1) for k in range(n)])
    axes.set_yticks(range(n), [f"{k + 1} · {name}" for k, name in enumerate(names)])
    if n <= MOST_FIGURES:
        for i, row in enumerate(overlap):
            for j, value in enumerate(row.tolist()):
                if value == value:
                    axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=10.5,
                              color="white" if value < 0.6 else plots.INK)  # fmt: skip
    _scale(figure, image, "rows in common 0 %", "100 %")
    return Plot(plots.to_svg(figure, prefix))


def _known(points: Sequence[tuple[int, float | None]]) -> tuple[list[int], list[float]]:
    kept = [(x, y) for x, y in points if y is not None]
    return [x for x, _ in kept], [y for _, y in kept]


def _scale(figure: Any, image: Any, low: str, high: str) -> None:
    """The colours, at the top on the right, with their ends written beside them."""
    inch = 1 / figure.get_figheight()
    bar = figure.colorbar(image, cax=figure.add_axes((0.75, 1 - 0.2 * inch, 0.18, 0.12 * inch)),
                          orientation="horizontal", ticks=[])  # fmt: skip
    bar.outline.set_visible(False)
    for x, side, words in ((-0.03, "right", low), (1.03, "left", high)):
        bar.ax.text(x, 0.5, words, transform=bar.ax.transAxes, ha=side, va="center_baseline", fontsize=10.5,
                    color=plots.FAINT)  # fmt: skip
