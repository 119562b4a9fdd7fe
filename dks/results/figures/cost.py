"""Error against what the training costs."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dks.config.errors import RequestError
from dks.results.figures.labels import Name, place
from dks.results.figures.layout import TOGETHER, Series, layout
from dks.results.figures.runs import finished
from dks.results.figures.style import (
    DOUBLE,
    GREY,
    SINGLE,
    Look,
    legends_below,
    looks,
    new_figure,
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


@dataclass(frozen=True)
class Point:
    """The means of one configuration over its finished runs."""

    series: Series
    cost: float
    error: float


@dataclass(frozen=True)
class Row:
    """Points that are joined, and the name that is written beside one of them."""

    name: str
    points: tuple[Point, ...]


def cost(table: Table, source: Source) -> Figure:
    """Error against training cost, means over the runs, in FLOPs and in time.

    The points of a row of the table are joined.

    Raises:
        RequestError: no finished run says what it cost, or the table is too large for a figure.
    """
    named = _named(table)
    every = [series for _, group in named for series in group]
    runs = source.runs(
        list(dict.fromkeys(cell_id for series in every for cell_id in series.cell.cell_ids))
    )
    runs = runs[runs["cell_id"].isin(finished(runs))]
    panels = {name: rows for name in (FLOPS, SECONDS) if (rows := _rows(named, runs, name))}
    if not panels:
        raise RequestError(f"{table.name}: no finished run says what its training cost")
    look_of = looks(series.label for series in every)
    with styled():
        figure = new_figure(table.title, DOUBLE if len(panels) > 1 else SINGLE, 2.6)
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)
        drawn = []
        for axes, (name, rows) in zip(grid.flat, panels.items(), strict=True):
            costs = [point.cost for row in rows for point in row.points]
            unit, word = _unit(name, costs)
            for row in rows:
                _draw(axes, row, unit, look_of)
            _scale(axes, costs)
            devices = runs["device"].dropna().nunique() if name == SECONDS else 1
            axes.set_xlabel(
                f"training {word}" + (f", on {devices} kinds of device" if devices > 1 else "")
            )
            drawn.append((axes, rows, unit))
        grid[0, 0].set_ylabel(f"{table.metrics[0].label} test error (%)")
        # Points that stand for themselves have their name beside them, unless they are too many.
        crowd = len(every) > TOGETHER and len(every) == len(named)
        listed = dict.fromkeys(
            series.label
            for name, group in named
            for series in group
            if crowd or name != series.label
        )
        legends_below(
            figure,
            [_sample(look_of[label], label) for label in listed],
            _words(named, panels.values()),
        )
        settle(figure)
        for axes, rows, unit in drawn if not crowd else []:
            at = [
                tuple((point.cost / unit, point.error) for point in reversed(row.points))
                for row in rows
            ]
            place(axes, [Name(row.name, points) for row, points in zip(rows, at, strict=True)])
    return figure


def _named(table: Table) -> list[tuple[str, tuple[Series, ...]]]:
    """What is joined, by its name; a configuration that stands for itself has its own."""
    laid = layout(table)
    single = [
        *laid.beside,
        *(series for group in laid.groups if not group.title for series in group.series),
    ]
    return [(series.label, (series,)) for series in single] + [
        (group.title, group.series) for group in laid.groups if group.title
    ]


def _rows(
    named: Iterable[tuple[str, Sequence[Series]]], runs: pd.DataFrame, name: str
) -> list[Row]:
    """The rows of which the cost of this name is known."""
    if name not in runs:
        return []
    costs = {
        cell_id: value
        for cell_id, value in zip(runs["cell_id"], runs[name], strict=True)
        if 0 < value < math.inf
    }
    rows = []
    for title, group in named:
        points = []
        for series in group:
            values = [costs[cell_id] for cell_id in series.cell.cell_ids if cell_id in costs]
            error = series.cell.numbers[0].mean
            if values and error is not None:
                points.append(Point(series, math.fsum(values) / len(values), error))
        if points:
            rows.append(Row(title, tuple(points)))
    return rows


def _draw(axes: Axes, row: Row, unit: float, look_of: dict[str, Look]) -> None:
    if len(row.points) > 1:
        costs = [point.cost / unit for point in row.points]
        errors = [point.error for point in row.points]
        axes.plot(costs, errors, color=GREY, linewidth=0.5, zorder=1.9)
    for point in row.points:
        look = look_of[point.series.label]
        axes.plot(
            [point.cost / unit], [point.error], look.marker, color=look.colour, markersize=4.5
        )


def _unit(name: str, costs: Sequence[float]) -> tuple[float, str]:
    """What the numbers of the axis count, and how it is called."""
    middle = math.sqrt(min(costs) * max(costs))
    if name == SECONDS:
        _, unit, word = next(each for each in _TIMES if middle >= each[0])
        return unit, f"time ({word})"
    power = 3 * math.floor(math.log10(middle) / 3)
    return (
        10.0**power,
        f"cost (10{str(power).translate(_RAISED)} FLOPs)" if power else "cost (FLOPs)",
    )


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


def _sample(look: Look, label: str) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], linestyle="", color=look.colour, marker=look.marker, markersize=4.5, label=label
    )


def _words(
    named: Sequence[tuple[str, Sequence[Series]]], panels: Collection[Sequence[Row]]
) -> list[Line2D]:
    """Which configurations have no point, and the points of which are of several codes."""
    from matplotlib.lines import Line2D

    shown = {point.series for rows in panels for row in rows for point in row.points}
    names = {
        series: series.label if name == series.label else f"{name} {series.label}"
        for name, group in named
        for series in group
    }
    told = {
        "no result yet": [name for series, name in names.items() if series not in shown],
        "of several codes": [
            name for series, name in names.items() if series in shown and len(series.cell.codes) > 1
        ],
    }
    lines = []
    for what, some in told.items():
        more = f"; {len(some) - NAMED} more" if len(some) > NAMED else ""
        text = textwrap.wrap(
            f"{what}: {'; '.join(some[:NAMED])}{more}", 90 if len(panels) > 1 else 42
        )
        lines += [Line2D([], [], linestyle="", label="\n".join(text))] if some else []
    return lines
