"""Which configurations stand together.

The rows of a table as groups, its columns as the series in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dks.config.errors import RequestError
from dks.results.figures.names import method_name, names
from dks.sweeps.files import CLASSIFIER, TRAINING

if TYPE_CHECKING:
    from dks.results.model import Label, Place, Table, TableCell

# Above these nobody can read a figure.
MOST_CELLS, MOST_PANELS = 400, 40
# The most curves that stand in one panel because nothing says how to part them.
TOGETHER = 8


@dataclass(frozen=True, eq=False)
class Series:
    """One configuration in a figure."""

    label: str
    cell: TableCell
    suffix: str  # of its metrics: "_c2" for another classifier than the network's own


@dataclass(frozen=True)
class Group:
    """Configurations that are compared with one another."""

    title: str  # empty where there is one group
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Layout:
    """All cells of a table."""

    # those that the table tells of beneath it, and that belong to none of its rows
    beside: tuple[Series, ...]
    groups: tuple[Group, ...]


def layout(table: Table) -> Layout:
    """A row of the table is a group.

    In a table without columns the last axis makes the series, if every group then has two or more
    (networks x methods), and otherwise all cells are one group.

    Raises:
        RequestError: the table has no cells, or so many that no figure of them could be read.
    """
    if not table.cells:
        raise RequestError(f"{table.name} has no configurations to draw")
    if len(table.cells) > MOST_CELLS:
        raise RequestError(
            f"{table.name} has {len(table.cells):,} configurations, and a figure of more than "
            f"{MOST_CELLS} cannot be read: "
            "draw a smaller sweep"
        )
    axes = (*table.row_axes, *table.column_axes)
    inside = [
        (row, column)
        for row in table.rows
        for column in table.columns
        if (row, column) in table.cells
    ]
    cut = len(table.row_axes) if table.column_axes else max(len(axes) - 1, 0)
    sizes = [len(places) for places in _by_row(inside, cut).values()]
    if max(sizes, default=0) < 2 or (not table.column_axes and min(sizes) < 2):
        cut = 0
    rows = _by_row(inside, cut)
    apart = [place for place in table.aside if _labels(place)[:cut] not in rows]
    for place in reversed(table.aside):
        if place not in apart:
            rows[_labels(place)[:cut]].insert(0, place)
    titles = names(axes[:cut], list(rows)) if cut else [""] * len(rows)
    columns = list(
        dict.fromkeys(_labels(place)[cut:] for places in rows.values() for place in places)
    )
    column_names = dict(zip(columns, names(axes[cut:], columns), strict=True))
    return Layout(
        _all(table, apart),
        tuple(
            Group(
                title,
                tuple(
                    _series(table, place, column_names[_labels(place)[cut:]]) for place in places
                ),
            )
            for title, places in zip(titles, rows.values(), strict=True)
        ),
    )


def panels(table: Table, together: int) -> list[Group]:
    """Panels of learning curves: the groups, each with the cells beside the table to compare with.

    All configurations in one panel if they are at most `together`.

    Raises:
        RequestError: as `layout`, or there would be too many panels.
    """
    laid = layout(table)
    if len(table.cells) <= together or not laid.groups:
        return [Group("", _all(table, list(table.cells)))]
    made = []
    for group in laid.groups:
        most = len(group.series) if group.title else TOGETHER
        for first in range(0, len(group.series), most):
            made.append(Group(group.title, (*laid.beside, *group.series[first : first + most])))
    if len(made) > MOST_PANELS:
        raise RequestError(
            f"{table.name} would give {len(made)} panels of curves, and a figure of more than "
            f"{MOST_PANELS} cannot be read: "
            "draw a smaller sweep"
        )
    return made


def _by_row(places: Sequence[Place], cut: int) -> dict[Label, list[Place]]:
    rows: dict[Label, list[Place]] = {}
    for place in places:
        rows.setdefault(_labels(place)[:cut], []).append(place)
    return rows


def _all(table: Table, places: Sequence[Place]) -> tuple[Series, ...]:
    """Series that are named by all of their labels; those beside the table first."""
    ordered = sorted(places, key=lambda place: place not in table.aside)
    full = names((*table.row_axes, *table.column_axes), [_labels(place) for place in ordered])
    return tuple(_series(table, place, label) for place, label in zip(ordered, full, strict=True))


def _series(table: Table, place: Place, label: str) -> Series:
    cell = table.cells[place]
    said = dict(zip((*table.row_axes, *table.column_axes), _labels(place), strict=True))
    classifier = said.get(CLASSIFIER, "c1")
    own = classifier == "c1" or said.get(TRAINING) == "alone"
    return Series(label or method_name(cell.method), cell, "" if own else f"_{classifier}")


def _labels(place: Place) -> Label:
    return (*place[0], *place[1])
