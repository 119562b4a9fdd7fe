"""Error against what the training costs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dks.config.errors import RequestError
from dks.results.figures.labels import Name, place
from dks.results.figures.layout import TOGETHER, Series, layout
from dks.results.figures.runs import finished
from dks.results.figures.style import (
    DOUBLE,
    GREY,
    SINGLE,
    legends_below,
    looks,
    new_figure,
    sample,
    settle,
    styled,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from dks.results.model import Table
    from dks.tracking.source import Source

FLOPS, SECONDS = "cost/training_flops", "cost/seconds"
WIDE = 10.0  # the largest cost over the smallest from which on the axis is logarithmic
# The smallest time that is told in a unit, in seconds, and the unit.
_TIMES = (
    (2 * 86400.0, 86400.0, "days"),
    (7200.0, 3600.0, "hours"),
    (120.0, 60.0, "minutes"),
    (0.0, 1.0, "seconds"),
)
NAMED = 6  # configurations without a result that are named one by one
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

# A name, and the configurations of which it is: what is joined by a line.
_Row = tuple[str, Sequence[Series]]
_Points = dict[Series, tuple[float, float]]  # mean cost and error of the finished runs


def cost(table: Table, source: Source) -> Figure:
    """Error against training cost, means over the runs, in FLOPs and in time.

    The points of a row of the table are joined.

    Raises:
        RequestError: no finished run says what it cost, or the table is too large for a figure.
    """
    laid = layout(table)
    # a configuration that stands for itself has its own name
    rows: list[_Row] = [(each.label, [each]) for each in laid.beside]
    for group in laid.groups:
        own = [(each.label, [each]) for each in group.series]
        rows += [(group.title, group.series)] if group.title else own
    every = [series for _, row in rows for series in row]
    runs = source.runs(
        list(dict.fromkeys(cell_id for series in every for cell_id in series.cell.cell_ids))
    )
    runs = runs[runs["cell_id"].isin(finished(runs))]
    panels = {name: found for name in (FLOPS, SECONDS) if (found := _points(every, runs, name))}
    if not panels:
        raise RequestError(f"{table.name}: no finished run says what its training cost")
    look_of = looks(series.label for series in every)
    # Points that stand for themselves have their name beside them, unless they are too many.
    crowd = len(every) > TOGETHER and len(every) == len(rows)
    with styled():
        figure = new_figure(table.title, DOUBLE if len(panels) > 1 else SINGLE, 2.6)
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)
        beside: list[tuple[Axes, list[Name]]] = []
        for axes, (name, points) in zip(grid.flat, panels.items(), strict=True):
            costs = [cost for cost, _ in points.values()]
            unit, word = _unit(name, costs)
            names = []
            for title, row in rows:
                at = [(points[each][0] / unit, points[each][1]) for each in row if each in points]
                if len(at) > 1:
                    axes.plot(*zip(*at, strict=True), color=GREY, linewidth=0.5, zorder=1.9)
                for series, (x, y) in zip(
                    (each for each in row if each in points), at, strict=True
                ):
                    look = look_of[series.label]
                    told = "" if series.label == title else f"{title} "
                    axes.plot(
                        [x],
                        [y],
                        look.marker,
                        color=look.colour,
                        markersize=4.5,
                        gid=f"point-{every.index(series)}",
                        label=f"{told}{series.label}: {y:.2f} %, {x:.3g} {word}",
                    )
                names += [Name(title, tuple(reversed(at)))] if at else []
            beside.append((axes, names))
            _scale(axes, costs)
            devices = runs["device"].nunique() if name == SECONDS else 1
            what = f"time ({word})" if name == SECONDS else f"cost ({word})"
            on = f", on {devices} kinds of device" if devices > 1 else ""
            axes.set_xlabel(f"training {what}{on}")
        grid[0, 0].set_ylabel(f"{table.metrics[0].label} test error (%)")
        listed = dict.fromkeys(
            series.label for name, row in rows for series in row if crowd or name != series.label
        )
        samples = [sample(look_of[each], each, linestyle="", markersize=4.5) for each in listed]
        shown = {series for points in panels.values() for series in points}
        legends_below(figure, samples, _words(rows, shown, 90 if len(panels) > 1 else 42))
        settle(figure)
        for axes, names in beside if not crowd else []:
            place(axes, names)
    return figure


def _points(every: Sequence[Series], runs: pd.DataFrame, name: str) -> _Points:
    """The configurations of which the cost of this name is known."""
    if name not in runs:
        return {}
    costs = runs.set_index("cell_id")[name]
    costs = costs[(costs > 0) & (costs < math.inf)]
    points = {}
    for series in every:
        known = costs[costs.index.isin(series.cell.cell_ids)]
        error = series.cell.numbers[0].mean
        if len(known) and error is not None:
            points[series] = float(known.mean()), error
    return points


def _unit(name: str, costs: Sequence[float]) -> tuple[float, str]:
    """What the numbers of the axis count, and how it is called."""
    middle = math.sqrt(min(costs) * max(costs))
    if name == SECONDS:
        _, unit, word = next(each for each in _TIMES if middle >= each[0])
        return unit, word
    power = 3 * math.floor(math.log10(middle) / 3)
    return 10.0**power, f"10{str(power).translate(_RAISED)} FLOPs" if power else "FLOPs"


def _scale(axes: Axes, costs: Sequence[float]) -> None:
    """A logarithmic axis where costs differ much, with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.grid(True)
    spread = max(costs) / min(costs)
    if spread >= WIDE:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if spread < 100 * WIDE else (1,)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.margins(x=0.15, y=0.12)  # room for the names


def _words(rows: Sequence[_Row], shown: set[Series], width: int) -> list[Line2D]:
    """Which configurations have no point, and the points of which are of several codes."""
    from matplotlib.lines import Line2D

    told: dict[str, list[str]] = {"no result yet": [], "of several codes": []}
    for title, row in rows:
        for series in row:
            name = series.label if title == series.label else f"{title} {series.label}"
            if series not in shown:
                told["no result yet"].append(name)
            elif len(series.cell.codes) > 1:
                told["of several codes"].append(name)
    lines = []
    for what, names in told.items():
        if names:
            more = f"; {len(names) - NAMED} more" if len(names) > NAMED else ""
            text = textwrap.fill(f"{what}: {'; '.join(names[:NAMED])}{more}", width)
            lines.append(Line2D([], [], linestyle="", label=text))
    return lines
