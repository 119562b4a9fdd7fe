"""Learning curves.

Figure 3 of the paper, and the range over several runs as the paper's authors plot it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from dks.config.errors import RequestError
from dks.results.figures.layout import Group, Series, panels
from dks.results.figures.runs import Curve, Curves, standing
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
    from matplotlib.lines import Line2D

    from dks.results.model import Table
    from dks.tracking.source import Source

Middle = Literal["mean", "median"]

TRAIN, TEST = "train/top1_error", "test/top1_error"
# Configurations that curves of training and test error show in one panel, two lines each.
MOST = 4
# Markers on a line, to tell lines apart in grey, and their size in points.
MARKS, SIZE = 5, 3.2
# How dense the bands are; one over another must not hide the lines, and in Figure 3 there are two a
# configuration.
BAND = {"mean": 0.2, "median": 0.3}
# The error falls steeply at first: the axis begins at the highest error after this part of the
#     training, unless that is short.
STEEP, SHORT = 0.1, 10


def curves(table: Table, source: Source) -> Figure:
    """Top-1 error against epoch, training dashed and test solid, as in Figure 3.

    The mean over the finished runs of every configuration, their range as a band, and runs that are
    not finished as thin lines.

    Raises:
        RequestError: no run has a curve yet, or the table is too large for a figure.
    """
    return _draw(table, source, panels(table, MOST), (TRAIN, TEST), "mean")


def spread(table: Table, source: Source) -> Figure:
    """Top-1 test error against epoch.

    The median of the finished runs of every configuration and their whole range as a band, a panel
    a row of the table.

    Raises:
        RequestError: no run has a curve yet, or the table is too large for a figure.
    """
    return _draw(table, source, panels(table, 1), (TEST,), "median")


def _draw(
    table: Table, source: Source, groups: Sequence[Group], metrics: Sequence[str], middle: Middle
) -> Figure:
    from matplotlib.ticker import MaxNLocator

    read = Curves(source, [series for group in groups for series in group.series], metrics)
    if not read:
        raise RequestError(f"{table.name}: no run has a learning curve yet")
    every = {series.label: series for group in groups for series in group.series}
    look_of, single = looks(every), len(groups) == 1
    across = (
        1 if single else 2 if len(groups) in (2, 4) else 3 if len(groups) in (3, 5, 6, 9) else 4
    )
    down = -(-len(groups) // across)
    with styled():
        narrow = single and len(every) <= MOST
        figure = new_figure(
            table.title, SINGLE if narrow else DOUBLE, down * (2.4 if across < 3 else 1.8) + 0.1
        )
        grid = figure.subplots(down, across, squeeze=False)
        meanings: dict[str, Artist] = {}
        for index, axes in enumerate(grid.flat):
            if index >= len(groups):
                axes.set_visible(False)
                continue
            _panel(axes, groups[index], read, metrics, middle, look_of, meanings)
            ticks = 5 if across < 4 else 4
            axes.xaxis.set_major_locator(
                MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1)
            )
            if not single:
                axes.set_title(groups[index].title)
                _tell_missing(axes, groups[index])
            if index % across == 0:
                axes.set_ylabel("top-1 error (%)" if TRAIN in metrics else "top-1 test error (%)")
            if index + across >= len(groups):
                axes.set_xlabel("epoch")
        handles = [
            _sample(look_of[label], _with_standing(series) if single else label)
            for label, series in every.items()
        ]
        legends_below(figure, handles, [meanings[name] for name in sorted(meanings)])
        settle(figure)
    return figure


def _panel(
    axes: Axes,
    group: Group,
    read: Curves,
    metrics: Sequence[str],
    middle: Middle,
    look_of: dict[str, Look],
    meanings: dict[str, Artist],
) -> None:
    """Draw the curves of some configurations.

    `meanings` gets what there is to explain, in the order of its keys.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    drawn: list[Curve] = []
    for metric in metrics:
        dash: Literal["-", "--"] = "--" if metric == TRAIN else "-"
        name = "training" if metric == TRAIN else "test"
        for place, series in enumerate(group.series):
            look = look_of[series.label]
            curve = read.summary(series, metric, middle)
            if curve is not None:
                drawn.append(curve)
                # Markers of neighbours stand beside one another, not on top.
                gap = max(len(curve.epochs) // MARKS, 1)
                shift = place / len(group.series) + (0.5 if metric == TRAIN else 0)
                marks = slice(int(gap * (shift % 1)), None, gap)
                face = "white" if metric == TRAIN else look.colour
                axes.plot(
                    curve.epochs,
                    curve.middle,
                    dash,
                    color=look.colour,
                    marker=look.marker,
                    markersize=SIZE,
                    markevery=marks,
                    markerfacecolor=face,
                )
                key = f"1 {metric}"
                words = [name] if TRAIN in metrics else []
                words += [f"{middle} of the runs"] if curve.runs > 1 else []
                if words and (curve.runs > 1 or key not in meanings):
                    meanings[key] = Line2D(
                        [], [], color=GREY, linestyle=dash, label=", ".join(words)
                    )
                if curve.runs > 1:
                    axes.fill_between(
                        curve.epochs,
                        curve.low,
                        curve.high,
                        color=look.colour,
                        alpha=BAND[middle],
                        linewidth=0,
                    )
                    meanings["2"] = Patch(
                        color=GREY, alpha=BAND[middle], linewidth=0, label="their range"
                    )
            for curve in read.others(series, metric):
                drawn.append(curve)
                axes.plot(curve.epochs, curve.middle, dash, color=look.colour, linewidth=0.5)
                meanings["3"] = Line2D([], [], color=GREY, linewidth=0.5, label="run not finished")
    limit(axes, drawn)
    axes.grid(axis="y")


def limit(axes: Axes, drawn: Sequence[Curve]) -> None:
    """From the first epoch to the last.

    From the lowest error to the highest after the steep beginning.
    """
    last = max((curve.epochs[-1] for curve in drawn), default=1)
    begin = STEEP * last if last > SHORT else 0
    shown = [
        (low, high)
        for curve in drawn
        for epoch, low, high in zip(curve.epochs, curve.low, curve.high, strict=True)
        if epoch >= min(begin, curve.epochs[-1])
    ]
    axes.set_xlim(0 if last > SHORT else 1 - 0.05 * max(last - 1, 1), last + 0.02 * last)
    if shown:
        low, high = min(low for low, _ in shown), max(high for _, high in shown)
        edge = 0.04 * (high - low) or 1.0
        axes.set_ylim(max(low - edge, 0 if low >= edge / 4 else -edge / 4), high + edge)


def _tell_missing(axes: Axes, group: Group) -> None:
    """In the corner that learning curves leave free."""
    lines = [
        f"{series.label}: {told}" for series in group.series if (told := standing(series.cell))
    ]
    axes.text(1, 1, "\n".join(lines), transform=axes.transAxes, ha="right", va="top", color=GREY)


def _with_standing(series: Series) -> str:
    told = standing(series.cell)
    return f"{series.label} ({told})" if told else series.label


def _sample(look: Look, label: str) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=look.colour, marker=look.marker, label=label)
