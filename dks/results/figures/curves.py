"""Learning curves.

Figure 3 of the paper, and the range over several runs as the paper's authors plot it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from dks.config.errors import RequestError
from dks.results.figures.layout import Group, Series, panels
from dks.results.figures.runs import Curves, standing
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
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dks.results.model import Table
    from dks.tracking.source import Source

TRAIN, TEST = "train/top1_error", "test/top1_error"
# Configurations that curves of training and test error show in one panel, two lines each.
MOST = 4
# Markers on a line, to tell lines apart in grey, and their size in points.
MARKS, SIZE = 5, 3.2
# How dense the bands are; one over another must not hide the lines, and in Figure 3 there are two a
# configuration.
BAND = {"mean": 0.2, "median": 0.3}
# The error falls steeply at first: the axis begins at the highest error after this part of the
# training, unless that is short.
STEEP, SHORT = 0.1, 10
POINTS = 2000  # of a curve: more are not seen on paper


def curves(table: Table, source: Source, points: int = POINTS, single: bool = False) -> Figure:
    """Top-1 error against epoch, training dashed and test solid, as in Figure 3.

    The mean over the finished runs of every configuration, their range as a band, and runs that are
    not finished as thin lines.

    Args:
        points: of a curve at most.
        single: draw finished runs as thin lines as well.

    Raises:
        RequestError: no run has a curve yet, or the table is too large for a figure.
    """
    return _draw(table, source, panels(table, MOST), (TRAIN, TEST), "mean", points, single)


def spread(table: Table, source: Source) -> Figure:
    """Top-1 test error against epoch.

    The median of the finished runs of every configuration and their whole range as a band, a panel
    a row of the table.

    Raises:
        RequestError: no run has a curve yet, or the table is too large for a figure.
    """
    return _draw(table, source, panels(table, 1), (TEST,), "median", POINTS, single=False)


def _draw(
    table: Table,
    source: Source,
    groups: Sequence[Group],
    metrics: Sequence[str],
    middle: Literal["mean", "median"],
    points: int,
    single: bool,
) -> Figure:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    read = Curves(source, [series for group in groups for series in group.series], metrics, points)
    if not read:
        raise RequestError(f"{table.name}: no run has a learning curve yet")
    every = {series.label: series for group in groups for series in group.series}
    look_of, numbers = looks(every), {label: number for number, label in enumerate(every)}
    meanings: dict[str, Artist] = {}  # what there is to explain, by the order of its keys

    def draw_series(axes: Axes, series: Series, metric: str, shift: float) -> list[Drawn]:
        """One metric of a configuration.

        Args:
            shift: part of the gap between two markers by which they are moved, so that those of
                neighbours stand beside one another, not on top.
        """
        if (found := read.read(series, metric)) is None:
            return []
        whole, others = found
        look, number = look_of[series.label], numbers[series.label]
        dash: Literal["-", "--"] = "--" if metric == TRAIN else "-"
        part = "train" if metric == TRAIN else "test"
        thin: dict[str, Any] = {
            "color": look.colour,
            "linestyle": dash,
            "linewidth": 0.5,
            "label": series.label,
        }
        for _, run in others.items():
            axes.plot(run.dropna(), gid=f"{part}-{number}", **thin)
            meanings["3"] = Line2D([], [], color=GREY, linewidth=0.5, label="run not finished")
        if whole.empty:
            return _edges(others)
        low, high, several = whole.min(axis=1), whole.max(axis=1), whole.shape[1] > 1
        gap = max(len(whole) // MARKS, 1)
        axes.plot(
            whole.index,
            whole.agg(middle, axis=1),
            dash,
            color=look.colour,
            marker=look.marker,
            markersize=SIZE,
            markevery=slice(int(gap * (shift % 1)), None, gap),
            markerfacecolor="white" if metric == TRAIN else look.colour,
            gid=f"{part}-{number}",
            label=series.label,
        )
        words = [{"train": "training", "test": "test"}[part]] if TRAIN in metrics else []
        words += [f"{middle} of the runs"] if several else []
        if words and (several or f"1 {metric}" not in meanings):
            meanings[f"1 {metric}"] = Line2D(
                [], [], color=GREY, linestyle=dash, label=", ".join(words)
            )
        if several:
            fill: dict[str, Any] = {"alpha": BAND[middle], "linewidth": 0}
            band: dict[str, Any] = {"color": look.colour, "gid": f"band-{number}"}
            axes.fill_between(whole.index, low, high, **fill, **band)
            meanings["2"] = Patch(color=GREY, label="their range", **fill)
        if several and single:
            axes.plot(whole.index, whole, gid=f"runs-{number}", **thin)
        return [(whole.index, low, high), *_edges(others)]

    across = {1: 1, 2: 2, 4: 2, 3: 3, 5: 3, 6: 3, 9: 3}.get(len(groups), 4)
    down = -(-len(groups) // across)
    with styled():
        width = SINGLE if len(groups) == 1 and len(every) <= MOST else DOUBLE
        figure = new_figure(table.title, width, down * (2.4 if across < 3 else 1.8) + 0.1)
        grid = figure.subplots(down, across, squeeze=False)
        for index, axes in enumerate(grid.flat):
            if index >= len(groups):
                axes.set_visible(False)
                continue
            series = groups[index].series
            drawn = [
                edges
                for metric in metrics
                for place, each in enumerate(series)
                for edges in draw_series(
                    axes, each, metric, place / len(series) + (0.5 if metric == TRAIN else 0)
                )
            ]
            limit(axes, drawn)
            axes.grid(axis="y")
            axes.xaxis.set_major_locator(
                MaxNLocator(
                    5 if across < 4 else 4, steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1
                )
            )
            told = {each.label: word for each in series if (word := standing(each.cell))}
            if len(groups) > 1:
                axes.set_title(groups[index].title)
                # in the corner that learning curves leave free
                text = "\n".join(f"{label}: {word}" for label, word in told.items())
                corner = {"transform": axes.transAxes, "ha": "right", "va": "top"}
                axes.text(1, 1, text, color=GREY, **corner)
            if index % across == 0:
                axes.set_ylabel("top-1 error (%)" if TRAIN in metrics else "top-1 test error (%)")
            if index + across >= len(groups):
                axes.set_xlabel("epoch")
        names = {
            label: f"{label} ({told[label]})" if len(groups) == 1 and label in told else label
            for label in every
        }
        handles = [
            sample(look_of[label], name, gid=f"key-{numbers[label]}")
            for label, name in names.items()
        ]
        legends_below(figure, handles, [meanings[key] for key in sorted(meanings)])
        settle(figure)
    return figure


# The epochs of a curve, and the lowest and the highest error in each.
Drawn = tuple[Iterable[int], Iterable[float], Iterable[float]]


def _edges(runs: pd.DataFrame) -> list[Drawn]:
    return [] if runs.empty else [(runs.index, runs.min(axis=1), runs.max(axis=1))]


def limit(axes: Axes, drawn: Sequence[Drawn]) -> None:
    """From the first epoch to the last.

    From the lowest error to the highest after the steep beginning.
    """
    points = [list(zip(*curve, strict=True)) for curve in drawn]
    last = max((curve[-1][0] for curve in points), default=1)
    begin = STEEP * last if last > SHORT else 0
    shown = [
        (low, high)
        for curve in points
        for epoch, low, high in curve
        if epoch >= min(begin, curve[-1][0])
    ]
    axes.set_xlim(0 if last > SHORT else 1 - 0.05 * max(last - 1, 1), last + 0.02 * last)
    if shown:
        low, high = min(low for low, _ in shown), max(high for _, high in shown)
        edge = 0.04 * (high - low) or 1.0
        axes.set_ylim(max(low - edge, 0 if low >= edge / 4 else -edge / 4), high + edge)
