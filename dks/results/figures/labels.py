"""Names beside points, where they hide neither points nor one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dks.results.figures.style import DPI, GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]
POINT = DPI / 72  # pixels
# Where a name may stand, best first: points to the right and up of its point, and which way it
# grows from there.
_NEAR, _FAR = 5.0, 11.0
_PLACES = [
    (right * distance * shorter, up * distance * shorter, right, up)
    for distance in (_NEAR, _FAR)
    for right, up in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
    for shorter in (0.75 if right and up else 1.0,)
]
_LEADER = {"arrowstyle": "-", "linewidth": 0.4, "color": GREY, "shrinkA": 0, "shrinkB": 3}


@dataclass(frozen=True)
class Name:
    """A text, and the points, joined by lines, beside any of which it may stand."""

    text: str
    points: tuple[tuple[float, float], ...]


def place(axes: Axes, names: Sequence[Name]) -> None:
    """Write every name where it hides least, in the order given.

    The places of the axes must be settled. Boxes are (left, bottom, right, top) in pixels.
    """
    frame = np.array([axes.get_window_extent().extents])
    spots = [np.asarray(axes.transData.transform(name.points), dtype=float) for name in names]
    taken = [box for points in spots for box in _drawn(points)]
    for index, name in enumerate(names):
        others = np.concatenate([*spots[:index], *spots[index + 1 :], np.empty((0, 2))])
        text = axes.text(0, 0, name.text, transform=axes.transAxes)
        width, height = text.get_window_extent().size
        text.remove()
        tried = []
        for rank, (right, up, side, rise) in enumerate(_PLACES):
            for turn, spot in enumerate(spots[index]):
                left = spot[0] + right * POINT + (side - 1) / 2 * width
                bottom = spot[1] + up * POINT + (rise - 1) / 2 * height
                box = np.array([left, bottom, left + width, bottom + height])
                outside = width * height - _overlap(box, frame)
                # it seems to belong to whatever is nearest
                nearest = _distances(box, others).min(initial=np.inf)
                misleads = nearest < 1.3 * _distances(box, spot[None])[0]
                cost = _overlap(box, np.array(taken)) + 4 * outside + misleads * width * height
                tried.append((round(cost), rank, turn, box))
        _, rank, turn, box = min(tried, key=lambda each: each[:3])
        right, up, side, rise = _PLACES[rank]
        axes.annotate(
            name.text,
            name.points[turn],
            xytext=(right, up),
            textcoords="offset points",
            ha=("center", "left", "right")[side],
            va=("center", "bottom", "top")[rise],
            # a line tells which point a name belongs to that stands off
            arrowprops=_LEADER if rank >= len(_PLACES) // 2 else None,
        )
        taken.append(box)


def _drawn(points: Floats) -> list[Floats]:
    """The boxes of points and of the lines between them."""
    dots = [(*point, 2.6 * POINT) for point in points]
    for start, end in pairwise(points):
        steps = int(np.hypot(*(end - start)) / (2 * POINT))
        dots += [(*(start + (end - start) * step / steps), POINT) for step in range(1, steps)]
    return [np.array([x - radius, y - radius, x + radius, y + radius]) for x, y, radius in dots]


def _distances(box: Floats, points: Floats) -> Floats:
    """From a box to each of the points (n, 2)."""
    gaps = np.maximum(np.maximum(box[:2] - points, points - box[2:]), 0)
    return np.asarray(np.hypot(gaps[:, 0], gaps[:, 1]))


def _overlap(box: Floats, others: Floats) -> float:
    """The area that a box shares with each of the others (n, 4), together."""
    shared = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return float(np.prod(np.maximum(shared, 0), axis=1).sum())
