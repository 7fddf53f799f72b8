"""Inline SVG plots for the reports: few inks, safe for colour-blind readers, the same bytes for the same figures.

Words that come from users (class names, drift names, learner names) stay out of the drawings: legends and tables
in the page carry them, where the template escapes them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LIMIT = 1000
"""Most points one drawn curve has."""
WIDTH = 9.6
"""Inches that a drawing is wide; 72 dots make one."""

INK, FAINT, GRID = "#22262b", "#6b7280", "#e6e8eb"
LEARNER, CUMULATIVE, NO_CHANGE, MAJORITY = "#0072b2", "#7fb8d8", "#d55e00", "#8a8f98"
DRIFT, ALARM, ROLLBACK, FORGET = "#4b5563", "#a2407d", "#b42318", "#117864"
PALETTE = ("#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#5b4b9a", "#b8a200", "#7a3b00", "#444b54", "#9c1c38", "#00a5a5")
"""Curves side by side: Okabe and Ito's colours without the oranges, which are the baseline's, then darker ones."""
AREAS = (
    "#0072b2", "#9fd0ee", "#007a5a", "#a8dcc6", "#b45f06", "#f6cf8b",
    "#8d3f74", "#e8bfd8", "#4b4f9e", "#c3c5ea", "#5d6670", "#cfd4da",
)  # fmt: skip
"""Stacked areas: dark and light in turn, so that neighbours differ in lightness too."""

DASHES = {"solid": "-", "dashed": (0, (4, 2.2)), "dotted": (0, (1.2, 1.8))}


@dataclass(frozen=True, slots=True)
class Curve:
    """One line. x: float64[n] steps, rising. y: float64[n], NaN where unknown. sd: float64[n] half-width of a band."""

    name: str
    x: Array
    y: Array
    colour: str
    style: str = "solid"
    width: float = 1.6
    sd: Array | None = None


@dataclass(frozen=True, slots=True)
class Marks:
    """Moments to mark, in steps."""

    drifts: Sequence[float] = ()
    alarms: Sequence[float] = ()
    rollbacks: Sequence[float] = ()
    forgets: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing, what its legend says (colour, kind of mark, words), and what its caption must add."""

    svg: str
    legend: list[tuple[str, str, str]] = field(default_factory=list)
    note: str = ""


def thin(y: Array, limit: int = LIMIT) -> Array:
    """Indices (int64[<= limit], rising) that keep the shape of a curve y: float64[n].

    The first and last points stay, and of every equal stretch between them the lowest and the highest: dips and
    spikes survive, which a mean or a stride would lose. Where y is NaN the stretch's ends stay.

    >>> thin(np.array([0.0, 5.0, 1.0, 1.0, -2.0, 0.0]), 4).tolist()
    [0, 1, 4, 5]
    """
    n = len(y)
    if n <= limit:
        return np.arange(n)
    edges = np.linspace(1, n - 1, (limit - 2) // 2 + 1).astype(np.int64)
    keep = [0, n - 1]
    for start, stop in pairwise(edges.tolist()):
        stretch = y[start:stop]
        if np.isnan(stretch).any():
            keep += [start, stop - 1]
        else:
            keep += [start + int(stretch.argmin()), start + int(stretch.argmax())]
    return np.unique(np.array(keep, dtype=np.int64))


def bucket_means(y: Array, limit: int) -> Array:
    """Means of y: float64[n, k] over at most ``limit`` equal stretches of rows: float64[<= limit, k]."""
    if len(y) <= limit:
        return y
    edges = np.linspace(0, len(y), limit + 1).astype(np.int64)
    return np.add.reduceat(y, edges[:-1], axis=0) / np.diff(edges)[:, None]


def mean_curve(curves: list[tuple[Array, Array]]) -> tuple[Array, Array, Array]:
    """Mean and sample sd over seeds of curves (steps, values), on the steps of the shortest one.

    A curve with other steps is read between its own points. sd is 0 for a single curve.
    """
    x = min((c[0] for c in curves), key=lambda steps: (steps[-1], len(steps)))
    y = np.stack([v if np.array_equal(s, x) else np.interp(x, s, v) for s, v in curves])
    sd = y.std(axis=0, ddof=1) if len(y) > 1 else np.zeros(len(x))
    return x, y.mean(axis=0), sd


def line_plot(
    curves: Sequence[Curve],
    *,
    prefix: str,
    percent: bool = True,
    marks: Marks | None = None,
    height: float = 3.0,
    bottom: float | None = None,
    top: float | None = None,
) -> Plot:
    """Curves over steps, with known drifts, alarms, rollbacks and forget requests where there are any.

    percent: y holds fractions and the axis shows per cent. prefix: makes the ids of this drawing unique in its page.
    height: in inches at a width of 9.6. bottom, top: where the y axis starts and ends, if not around all values.
    """
    marks = marks or Marks()
    figure, axes = new_axes(height)
    for curve in curves:
        draw(axes, curve)
    low, high = limits(curves, percent)
    note = f"What lies below {bottom:g} is not drawn." if bottom is not None and low < bottom else ""
    axes.set_ylim(low if bottom is None else bottom, high if top is None else top)
    right = max((float(c.x[-1]) for c in curves if len(c.x)), default=1.0)
    axes.set_xlim(0, right)
    tidy(axes, percent=percent)
    legend = [(c.colour, c.style, c.name) for c in curves] + _mark(axes, marks, right)
    return Plot(to_svg(figure, prefix), legend, note)


def draw(axes: Any, curve: Curve) -> None:
    """One curve, thinned, with its band."""
    shown = thin(curve.y)
    x, y = curve.x[shown], curve.y[shown]
    axes.plot(x, y, color=curve.colour, linewidth=curve.width, linestyle=DASHES[curve.style], zorder=3)
    if curve.sd is not None:
        sd = curve.sd[shown]
        axes.fill_between(x, y - sd, y + sd, color=curve.colour, alpha=0.16, linewidth=0, zorder=2)


def _mark(axes: Any, marks: Marks, right: float) -> list[tuple[str, str, str]]:
    """Draw the marks; the legend entries of those that there are."""
    from matplotlib.transforms import blended_transform_factory

    beside = blended_transform_factory(axes.transData, axes.transAxes)
    legend = []
    drifts = [d for d in marks.drifts if d <= right]
    for number, step in enumerate(drifts, start=1):
        axes.axvline(step, color=DRIFT, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1)
        if len(drifts) <= 30:
            axes.text(step, 1.025, str(number), transform=beside, ha="center", va="bottom", fontsize=9, color=DRIFT)
    if drifts:
        legend.append((DRIFT, "drift", "known drift"))
    kinds = (
        ("alarm", marks.alarms, ALARM, "^", 0.025, "drift alarm"),
        ("rollback", marks.rollbacks, ROLLBACK, "X", 0.075, "rollback"),
        ("forget", marks.forgets, FORGET, "D", 0.125, "forget request"),
    )
    for kind, steps, colour, shape, y, words in kinds:
        if len(steps):
            axes.plot(
                steps, np.full(len(steps), y), shape, transform=beside, color=colour, markersize=7,
                markeredgecolor="white", markeredgewidth=0.6, zorder=5,
            )  # fmt: skip
            legend.append((colour, kind, words))
    return legend


def area_plot(x: Array, shares: Array, names: Sequence[str], *, prefix: str, marks: Marks | None = None) -> Plot:
    """Stacked shares over steps. x: float64[n]; shares: float64[n, k], rows that sum to 1 (or to 0 where unknown).

    Past twelve columns the smallest are drawn as one, named "others". The legend tells each one's mean share.
    """
    if shares.shape[1] > len(AREAS):
        order = np.argsort(-shares.mean(axis=0), kind="stable")
        first, rest = np.sort(order[: len(AREAS) - 1]), order[len(AREAS) - 1 :]
        shares = np.column_stack([shares[:, first], shares[:, rest].sum(axis=1)])
        names = [*(names[i] for i in first), "others"]
    means = shares.mean(axis=0)
    points = min(LIMIT, 240)
    x, shares = bucket_means(x[:, None], points)[:, 0], bucket_means(shares, points)
    figure, axes = new_axes(2.7)
    axes.stackplot(x, shares.T, colors=AREAS[: shares.shape[1]], edgecolor="white", linewidth=0.5)
    axes.set_ylim(0, 1)
    axes.set_xlim(0, float(x[-1]))
    tidy(axes, percent=True)
    extra = _mark(axes, Marks(drifts=marks.drifts if marks else ()), float(x[-1]))
    legend = [(AREAS[i], "area", f"{name} · {100 * means[i]:.0f} %") for i, name in enumerate(names)]
    return Plot(to_svg(figure, prefix), legend + extra)


def scatter_plot(points: Sequence[tuple[str, float, float, float]], *, prefix: str, percent: bool) -> Plot:
    """Speed against quality: (colour, rows a second, quality, its standard deviation over seeds)."""
    figure, axes = new_axes(2.7)
    for colour, speed, quality, sd in points:
        axes.errorbar(speed, quality, yerr=sd or None, fmt="o", color=colour, markersize=8, capsize=3, linewidth=1.4,
                      markeredgecolor="white", markeredgewidth=1, zorder=3)  # fmt: skip
    speeds, heights = [p[1] for p in points], [p[2] for p in points]
    axes.set_xscale("log")
    axes.set_xlim(min(speeds) / 1.6, max(speeds) * 1.6)
    pad = max(0.25 * (max(heights) - min(heights)), 0.01 * max(heights), 2 * max(p[3] for p in points), 1e-9)
    axes.set_ylim(min(heights) - pad, max(heights) + pad)
    tidy(axes, percent=percent, grid="both")
    return Plot(to_svg(figure, prefix))


def new_axes(height: float, *, top: float = 0.3, right: float = 0.19) -> tuple[Any, Any]:
    """A figure without pyplot (no global state, no display) and its one pair of axes; lengths in inches.

    top, right: room beside the axes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"text.parse_math": False, "path.simplify": False})
        figure = Figure(figsize=(WIDTH, height), dpi=72)
        return figure, figure.add_axes((0.062, 0.32 / height, 0.938 - right / WIDTH, 1 - (0.32 + top) / height))


def limits(curves: Iterable[Curve], percent: bool) -> tuple[float, float]:
    """A y range that shows every curve, bands included, with a little air."""
    low, high = np.inf, -np.inf
    for curve in curves:
        y = curve.y[~np.isnan(curve.y)]
        if len(y):
            sd = 0.0 if curve.sd is None else curve.sd[~np.isnan(curve.y)]
            low, high = min(low, float(np.min(y - sd))), max(high, float(np.max(y + sd)))
    if low > high:
        return 0.0, 1.0
    air = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    floor = 0.0 if low >= 0 else low - air
    bottom = max(low - 2.5 * air, floor)
    return bottom, min(high + air, 1.005) if percent and high <= 1 else high + air


def tidy(axes: Any, *, percent: bool, grid: str = "y") -> None:
    """The looks that all drawings share: few lines, pale grid, short numbers."""
    from matplotlib.ticker import FuncFormatter

    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#b8bec6")
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", which="both", length=0, labelsize=11, labelcolor=FAINT, pad=6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _short(v)))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda _v, _: ""))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g} %" if percent else _short(v)))


def _short(value: float) -> str:
    """A number that fits beside a tick: 0.2, 45k, 1.5M."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def to_svg(figure: Any, prefix: str) -> str:
    """The drawing as an element to set into HTML: no prologue, no metadata, ids of its own, as wide as the page."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "driftway", "path.simplify": False})
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", svg)
    svg = re.sub(r'\s(?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r" font-family: [^;]*;", "", svg).replace("xlink:href", "href")
    svg = re.sub(r'href="data:[^"]*"', lambda raster: re.sub(r"\s", "", raster[0]), svg)
    svg = re.sub(r'(>[^<]+<|transform="matrix[^"]*")|(\d\.\d\d)\d+', lambda m: m[1] or m[2], svg)
    svg = re.sub(r"\s*\n\s*", " ", svg).replace("> <", "><")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return svg.replace("<svg ", '<svg role="img" ', 1).strip()
