"""The errors of a sweep as dots, with how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dks.config.errors import RequestError
from dks.results.figures.layout import Layout, Series, layout
from dks.results.figures.runs import standing
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
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dks.results.model import Number, Table, TableCell
    from dks.tracking.source import Source

PAPER: dict[str, Any] = {
    "linestyle": "",
    "marker": "D",
    "color": GREY,
    "markerfacecolor": "none",
    "markersize": 4.8,
}
ENDS: dict[str, Any] = {"marker": "|", "markersize": 5}
LINE = 0.165  # inches a configuration takes


def dots(table: Table, source: Source | None = None) -> Figure:
    """The mean error of every configuration with its t interval, grouped by the rows of the table.

    An open diamond is the paper's figure. A configuration without runs is named, with the reason.

    Args:
        source: not read, all of it is in the table.

    Raises:
        RequestError: no run counts yet, or the table is too large for a figure.
    """
    if not any(cell.n for cell in table.cells.values()):
        raise RequestError(f"{table.name}: no run is finished yet")
    laid = layout(table)
    lines = _lines(laid)
    look_of = looks(series.label for series in lines if isinstance(series, Series))
    with styled():
        figure = new_figure(
            table.title,
            SINGLE if len(table.metrics) == 1 else DOUBLE,
            LINE * (len(lines) + 0.6) + 0.5,
        )
        grid = figure.subplots(1, len(table.metrics), sharey=True, squeeze=False)
        for index, (axes, metric) in enumerate(zip(grid.flat, table.metrics, strict=True)):
            for place, line in enumerate(lines):
                if isinstance(line, Series):
                    _dot(axes, place, line, line.cell.numbers[index], look_of[line.label])
            optimistic = (
                f", best epoch{table.whose} (optimistic)" if table.epoch.value == "best" else ""
            )
            axes.set_xlabel(f"{metric.label} test error (%){optimistic}")
            low, high = axes.get_xlim()
            # The interval of two runs may be far wider than what an error can be.
            axes.set_xlim(max(low, -0.02 * high), min(high, 100.5))
            axes.grid(axis="x")
            axes.tick_params(axis="y", length=0)
        _name(grid[0, 0], lines)
        legends_below(figure, _meanings(list(table.cells.values())))
        settle(figure)
        _align_titles(grid[0, 0], lines)
    return figure


def _lines(laid: Layout) -> list[Series | str]:
    """From top to bottom: configurations, and the titles of groups."""
    lines: list[Series | str] = list(laid.beside)
    for group in laid.groups:
        lines += [group.title] if group.title else []
        lines += group.series
    return lines


def _dot(axes: Axes, place: int, series: Series, number: Number, look: Look) -> None:
    if number.paper is not None:
        axes.plot([float(number.paper.mean)], [place], zorder=2.5, **PAPER)
    if number.interval is not None:
        axes.plot(number.interval, [place, place], color=look.colour, zorder=2.2, **ENDS)
    if number.mean is not None:
        sd = f" ± {number.sd:.2f}" if number.sd is not None else ""
        told: dict[str, Any] = {
            "gid": f"point-{place}",
            "label": f"{series.label}: {number.mean:.2f}{sd} %",
        }
        mark: dict[str, Any] = {"marker": look.marker, "markersize": 3, "zorder": 2.3}
        axes.plot([number.mean], [place], color=look.colour, **mark, **told)


def _meanings(cells: Sequence[TableCell]) -> list[Artist]:
    """What dots, lines and diamonds mean, as far as they are there."""
    from matplotlib.lines import Line2D

    from dks.results.statistics import CONFIDENCE

    several = any(cell.n > 1 for cell in cells)
    made: list[Artist] = [
        Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            markersize=3,
            color=GREY,
            label="mean of the runs" if several else "one run",
        )
    ]
    if several:
        made.append(Line2D([], [], color=GREY, label=f"{CONFIDENCE:.0%} t interval", **ENDS))
    if any(number.paper is not None for cell in cells for number in cell.numbers):
        made.append(Line2D([], [], label="paper", **PAPER))
    return made


def _name(axes: Axes, lines: list[Series | str]) -> None:
    """The names beside the axis."""
    axes.set_ylim(len(lines) - 0.4, -0.6)
    told = [standing(line.cell) if isinstance(line, Series) else "" for line in lines]
    names = [line.label if isinstance(line, Series) else line for line in lines]
    axes.set_yticks(
        range(len(lines)),
        [f"{name} ({word})" if word else name for name, word in zip(names, told, strict=True)],
    )
    for text, line in zip(axes.get_yticklabels(), lines, strict=True):
        if isinstance(line, str):
            text.set_fontweight("bold")
        elif not line.cell.n:
            text.set_color(GREY)


def _align_titles(axes: Axes, lines: list[Series | str]) -> None:
    """Move the titles of groups to the left edge of the names.

    What stands under a title is then seen to belong to it.
    """
    texts = axes.get_yticklabels()
    frame, edge = axes.get_window_extent(), min(text.get_window_extent().x0 for text in texts)
    for text, line in zip(texts, lines, strict=True):
        if isinstance(line, str):
            end = text.get_window_extent().x1
            text.set_horizontalalignment("left")
            text.set_x((edge - end) / frame.width)
