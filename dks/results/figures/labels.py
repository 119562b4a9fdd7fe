"""Names beside points, where they hide neither points nor one another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dks.results.figures.style import DPI, GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

# Where a name may stand, best first: points to the right and up of its point, and which way it
#     grows from there.
_NEAR, _FAR = 5.0, 11.0
_PLACES = [
    (
        right * distance * (0.75 if right and up else 1),
        up * distance * (0.75 if right and up else 1),
        right,
        up,
    )
    for distance in (_NEAR, _FAR)
    for right, up in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
]
_LEADER = {"arrowstyle": "-", "linewidth": 0.4, "color": GREY, "shrinkA": 0, "shrinkB": 3}


@dataclass(frozen=True)
class Name:
    """A text, and the points, joined by lines, beside any of which it may stand."""

    text: str
    points: tuple[tuple[float, float], ...]


def place(axes: Axes, names: Sequence[Name]) -> None:
    """Write every name where it hides least, in the order given.

    The places of the axes must be settled.
    """
    from matplotlib.transforms import Bbox

    frame = axes.get_window_extent()
    spots = [
        [(float(x), float(y)) for x, y in axes.transData.transform(name.points)] for name in names
    ]
    taken = [box for points in spots for box in _drawn(points)]
    for index, name in enumerate(names):
        others = [point for points in (*spots[:index], *spots[index + 1 :]) for point in points]
        text = axes.text(0, 0, name.text, transform=axes.transAxes)
        size = text.get_window_extent()
        text.remove()
        tried = []
        for rank, (right, up, side, rise) in enumerate(_PLACES):
            for turn, (x, y) in enumerate(spots[index]):
                left = x + right * DPI / 72 + (side - 1) / 2 * size.width
                bottom = y + up * DPI / 72 + (rise - 1) / 2 * size.height
                box = Bbox.from_bounds(left, bottom, size.width, size.height)
                hidden = sum(_overlap(box, other) for other in taken)
                area = size.width * size.height
                outside = area - _overlap(box, frame)
                # It seems to belong to whatever is nearest.
                nearest = min((_distance(box, point) for point in others), default=math.inf)
                misleading = area if nearest < 1.3 * _distance(box, (x, y)) else 0
                tried.append((round(hidden + 4 * outside + misleading), rank, turn, box))
        _, rank, turn, box = min(tried, key=lambda one: one[:3])
        right, up, side, rise = _PLACES[rank]
        axes.annotate(
            name.text,
            name.points[turn],
            xytext=(right, up),
            textcoords="offset points",
            ha=("center", "left", "right")[side],
            va=("center", "bottom", "top")[rise],
            # A line tells which point a name belongs to that stands off.
            arrowprops=_LEADER if rank >= len(_PLACES) // 2 else None,
        )
        taken.append(box)


def _drawn(points: Sequence[tuple[float, float]]) -> list[Bbox]:
    """What points and the lines between them cover, all in pixels."""
    from matplotlib.transforms import Bbox

    point = DPI / 72
    spots = [(x, y, 2.6 * point) for x, y in points]
    for (x, y), (other_x, other_y) in itertools.pairwise(points):
        steps = int(math.hypot(other_x - x, other_y - y) / (2 * point))
        spots += [
            (x + (other_x - x) * step / steps, y + (other_y - y) * step / steps, point)
            for step in range(1, steps)
        ]
    return [
        Bbox.from_bounds(x - radius, y - radius, 2 * radius, 2 * radius) for x, y, radius in spots
    ]


def _distance(box: Bbox, point: tuple[float, float]) -> float:
    """Pixels between a box and a point."""
    x, y = point
    return math.hypot(max(box.x0 - x, 0, x - box.x1), max(box.y0 - y, 0, y - box.y1))


def _overlap(box: Bbox, other: Bbox) -> float:
    """Pixels that both cover."""
    width = min(box.x1, other.x1) - max(box.x0, other.x0)
    height = min(box.y1, other.y1) - max(box.y0, other.y0)
    return float(max(width, 0) * max(height, 0))
