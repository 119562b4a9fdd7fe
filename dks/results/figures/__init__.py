"""Figures of a sweep: learning curves, errors with intervals, error against cost.

Only drawing imports matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dks.config.errors import RequestError
from dks.results.figures.cost import cost
from dks.results.figures.curves import curves, spread
from dks.results.figures.dots import dots
from dks.results.figures.files import FORMATS, image, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dks.results.model import Table
    from dks.tracking.source import Source

__all__ = ["FORMATS", "KINDS", "draw", "image", "write"]

KINDS: dict[str, Callable[[Table, Source], Figure]] = {
    "curves": curves,
    "spread": spread,
    "dots": dots,
    "cost": cost,
}


def draw(kind: str, table: Table, source: Source) -> Figure:
    """One figure of a table.

    Raises:
        RequestError: there is no such kind, or nothing to draw yet.
    """
    if kind not in KINDS:
        raise RequestError(f"there is no kind of figure {kind!r}; choose one of {', '.join(KINDS)}")
    return KINDS[kind](table, source)
