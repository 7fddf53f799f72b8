"""A driving scene from above as inline SVG: the lanes, other road users with their logs, and two plans."""

from __future__ import annotations

import numpy as np

from ..streams import Array
from ..streams.driving import PAST, STATIC, Scene
from ..streams.kinematics import from_lane, placed, to_lane
from ..streams.pdm import EGO, corners
from .plots import LEARNER, NO_CHANGE, Plot

WIDTH, MOST_HEIGHT, MARGIN = 960.0, 520.0, 14.0
"""Of the drawing, in its own units."""
BEHIND, BEYOND = 5.0, 14.0
"""Metres of lane that are drawn behind the car, and beyond the farther plan."""
MOST_TURN = 2.0
"""Radians after which a lane is no longer drawn: it would come back on itself."""
EACH = 10
"""Steps between two boxes: 1 s."""
ROAD, EDGE, MIDDLE = "#eef1f4", "#b9c0c9", "#c9d0d8"
CAR, OTHER, THING = "#22262b", "#8d3f74", "#8a929c"


def scene_picture(scene: Scene, before: Array, after: Array) -> Plot:
    """The scene with the plan of the trained weights and the one that was driven, float[41, 4] in the car's frame.

    Boxes are the car every second; other road users are drawn where they are now, their logs over the next 4 s as
    lines with an outline at their end.
    """
    plans = [placed(plan, scene.ego) for plan in (before, after)]
    lanes = [_lane(scene, k, plans) for k in range(len(scene.curvature))]
    shown = [*(lane for lane, _ in lanes), *(corners(plan, EGO).reshape(-1, 2) for plan in plans)]
    view = _View(np.concatenate([part.reshape(-1, 2) for part in shown]))
    parts = [f'<rect width="{WIDTH:g}" height="{view.height:.0f}" rx="8" fill="#fbfcfd"/>']
    parts += [view.polygon(lane, f'fill="{ROAD}" stroke="{EDGE}" stroke-width="1.2"') for lane, _ in lanes]
    parts += [view.polygon(lane, f'fill="{ROAD}"') for lane, _ in lanes[1:]]
    parts += [view.line(middle, f'stroke="{MIDDLE}" stroke-width="1.4" stroke-dasharray="9 8"') for _, middle in lanes]
    for agent, size, kind in zip(scene.agents[:, PAST:], scene.sizes, scene.kinds, strict=True):
        parts += _agent(view, agent[:41], size, OTHER if kind != STATIC else THING)
    for plan, colour, dashed in zip(plans, (NO_CHANGE, LEARNER), (True, False), strict=True):
        parts += _plan(view, plan, colour, dashed)
    parts.append(view.polygon(corners(scene.ego, EGO), f'fill="{CAR}" stroke="#fff" stroke-width="1"'))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {view.height:.0f}" role="img">'
    name = f"view{scene.number}"
    clip = f'<clipPath id="{name}"><rect width="{WIDTH:g}" height="{view.height:.0f}" rx="8"/></clipPath>'
    legend = [
        (NO_CHANGE, "dashed", "plan of the trained weights"),
        (LEARNER, "solid", "plan after the step"),
        (CAR, "area", "the car now"),
    ]
    if bool((scene.kinds != STATIC).any()):
        legend.append((OTHER, "area", "other road users now, and their next 4 s"))
    if bool((scene.kinds == STATIC).any()):
        legend.append((THING, "area", "things in the way"))
    return Plot(f'{head}{clip}<g clip-path="url(#{name})">{"".join(parts)}</g></svg>', legend)


class _View:
    """From metres to the drawing: x to the right, y upwards, the same scale for both."""

    def __init__(self, points: Array) -> None:
        low, high = points.min(0) - 2.0, points.max(0) + 2.0
        room = WIDTH - 2 * MARGIN
        self.scale = float(min(room / (high[0] - low[0]), (MOST_HEIGHT - 2 * MARGIN) / (high[1] - low[1])))
        self.height = float((high[1] - low[1]) * self.scale + 2 * MARGIN)
        spare = (room - (high[0] - low[0]) * self.scale) / 2
        self.left, self.top = low[0] - spare / self.scale, high[1]

    def __call__(self, points: Array) -> Array:
        x = MARGIN + (points[..., 0] - self.left) * self.scale
        y = MARGIN + (self.top - points[..., 1]) * self.scale
        return np.stack([x, y], -1)

    def path(self, points: Array) -> str:
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in self(points).tolist())

    def polygon(self, points: Array, style: str) -> str:
        return f'<path d="{self.path(points)}Z" stroke-linejoin="round" {style}/>'

    def line(self, points: Array, style: str) -> str:
        return f'<path d="{self.path(points)}" fill="none" stroke-linecap="round" {style}/>'

    def text(self, point: Array, words: str, colour: str) -> str:
        x, y = self(point).tolist()
        style = (
            f'font-size="13" text-anchor="middle" fill="{colour}" stroke="#fff" stroke-width="3" paint-order="stroke"'
        )
        return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{words}</text>'


def _lane(scene: Scene, arm: int, plans: list[Array]) -> tuple[Array, Array]:
    """The outline of a lane, and its middle, as far as the plans go and a little beyond."""
    bend, half = float(scene.curvature[arm]), float(scene.half_width[arm])
    far = max(float(to_lane(plan[-1, :2], bend)[0]) for plan in plans)
    end = min(max(far, 18.0) + BEYOND, MOST_TURN / max(abs(bend), 1e-6))
    s = np.linspace(-BEHIND, end, 60)
    left, middle, right = (from_lane(s, np.full_like(s, d), bend)[:, :2] for d in (half, 0.0, -half))
    return np.concatenate([left, right[::-1]]), middle


def _agent(view: _View, log: Array, size: Array, colour: str) -> list[str]:
    found = [view.polygon(corners(log[0], size), f'fill="{colour}" fill-opacity="0.85"')]
    if float(np.hypot(*(log[-1, :2] - log[0, :2]))) > 0.5:
        found.append(view.line(log[:, :2], f'stroke="{colour}" stroke-width="1.6" stroke-dasharray="2 4"'))
        found.append(view.polygon(corners(log[-1], size), f'fill="none" stroke="{colour}" stroke-width="1.3"'))
    return found


def _plan(view: _View, plan: Array, colour: str, dashed: bool) -> list[str]:
    dash = ' stroke-dasharray="7 5"' if dashed else ""
    found = [view.line(plan[:, :2], f'stroke="{colour}" stroke-width="3"{dash}')]
    for step in range(EACH, len(plan), EACH):
        style = f'fill="{colour}" fill-opacity="0.13" stroke="{colour}" stroke-width="1.5"{dash}'
        found.append(view.polygon(corners(plan[step], EGO), style))
    beside = np.array([-np.sin(plan[-1, 2]), np.cos(plan[-1, 2])]) * (2.2 if dashed else -2.8)
    found.append(view.text(plan[-1, :2] + beside, "4 s", colour))
    return found
