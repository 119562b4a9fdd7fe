"""One table: rows x columns of configurations, built from a data frame of runs by pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from dks.sweeps.ledger import State


@dataclass(frozen=True)
class TableCell:
    """All runs of one configuration, one a seed."""

    mean: float | None  # over the runs that are done; None where there is none
    sd: float | None  # sample standard deviation (ddof=1); None below two runs
    n: int  # runs done
    wanted: int  # runs asked for
    states: dict[str, int]  # state -> runs in it, those not done
    cell_ids: tuple[str, ...]  # of all runs asked for
    best_epoch_mean: float | None  # as `mean`, at each run's best epoch: optimistic, chosen on the test set
    gain: float | None = None  # baseline's mean less this one; None where the sweep holds no baseline
    is_baseline: bool = False
    is_best: bool = False  # lowest mean of the table among configurations with all their runs done


Place = tuple[tuple[str, ...], str]  # labels of the row, label of the column


@dataclass(frozen=True)
class Table:
    """`cells[row, column]`; a row or a column is named by its labels."""

    title: str
    metric: str
    row_axes: tuple[str, ...]
    column_axis: str | None  # None: a single column
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[str, ...]
    cells: dict[Place, TableCell]

    @property
    def has_gains(self) -> bool:
        """Does the sweep hold a baseline to compare with?"""
        return any(cell.gain is not None for cell in self.cells.values())

    @property
    def runs(self) -> set[int]:
        """The numbers of runs that configurations have."""
        return {cell.n for cell in self.cells.values()}


def build(
    frame: pd.DataFrame,
    axes: Sequence[str],
    title: str,
    metric: str,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> Table:
    """The table of a sweep. Where it does not say which of its axes make the rows and which the columns, the last of the swept
    keys makes the columns, if there are two or more; the seed never does.

    Args:
        frame: as `dks.tables.frame.sweep_frame` makes it.
        axes: the swept keys, in the order typed.
    """
    row_axes, column_axes = _layout(axes, rows, columns)
    shown = (*row_axes, *column_axes)
    column_axis = " ".join(column_axes) or None
    cells: dict[Place, TableCell] = {}
    keys = frame[list(shown)].astype(str).agg(tuple, axis=1) if shown else pd.Series([()] * len(frame))
    for key, runs in frame.groupby(keys, sort=False):
        labels = tuple(key)
        cells[(labels[: len(row_axes)], " ".join(labels[len(row_axes) :]))] = _cell(runs)
    cells = _mark_best(_with_gains(cells, frame))
    row_labels = tuple(dict.fromkeys(row for row, _ in cells))
    column_labels = tuple(dict.fromkeys(column for _, column in cells))
    return Table(title, metric, row_axes, column_axis, row_labels, column_labels, cells)


def _layout(
    axes: Sequence[str], rows: Sequence[str] | None, columns: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The axes of the rows and those of the columns."""
    shown = [axis for axis in axes if axis != "seed"]
    if not rows and not columns:
        return (tuple(shown[:-1]), (shown[-1],)) if len(shown) > 1 else (tuple(shown), ())
    return tuple(axis for axis in rows or () if axis in shown), tuple(axis for axis in columns or () if axis in shown)


def _cell(runs: pd.DataFrame) -> TableCell:
    # A value swept twice under two spellings is one cell, and counts once.
    runs = runs.drop_duplicates("cell_id")
    done = runs[runs["state"] == State.done.value]
    values = done["value"].tolist()
    others = runs["state"][runs["state"] != State.done.value].value_counts(sort=False)
    return TableCell(
        mean=statistics.fmean(values) if values else None,
        sd=statistics.stdev(values) if len(values) > 1 else None,
        n=len(values),
        wanted=len(runs),
        states={str(state): int(count) for state, count in others.items()},
        cell_ids=tuple(runs["cell_id"]),
        best_epoch_mean=statistics.fmean(done["best"]) if values else None,
    )


def _with_gains(cells: dict[Place, TableCell], frame: pd.DataFrame) -> dict[Place, TableCell]:
    config_of = dict(zip(frame["cell_id"], frame["config_id"], strict=True))
    baseline_of = dict(zip(frame["cell_id"], frame["baseline_id"], strict=True))
    by_config = {config_of[cell.cell_ids[0]]: cell for cell in cells.values()}
    marked = {}
    for place, cell in cells.items():
        first = cell.cell_ids[0]
        baseline = by_config.get(baseline_of[first])
        itself = config_of[first] == baseline_of[first]
        gain = None
        if baseline is not None and not itself and baseline.mean is not None and cell.mean is not None:
            gain = baseline.mean - cell.mean
        marked[place] = replace(cell, gain=gain, is_baseline=itself)
    return marked


def _mark_best(cells: dict[Place, TableCell]) -> dict[Place, TableCell]:
    whole = [cell.mean for cell in cells.values() if cell.mean is not None and cell.n == cell.wanted]
    if len(whole) < 2:
        return cells
    lowest = min(whole)
    return {place: replace(cell, is_best=cell.mean == lowest and cell.n == cell.wanted) for place, cell in cells.items()}
