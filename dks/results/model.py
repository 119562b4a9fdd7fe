"""One table.

Rows x columns of configurations, built from the entries of a sweep by pure functions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import Any

from dks.config.names import long_name
from dks.results.shape import Epoch, Metric, Over, Shape
from dks.results.statistics import Difference, compare, holm, interval, sample_sd
from dks.runs.attempts import ComputedBy, codes
from dks.runs.states import State
from dks.sweeps.files import CLASSIFIER
from dks.sweeps.paper import PaperNumber, PaperRow, PaperTable, printed

Label = tuple[str, ...]
# a point of a sweep and what its run has shown, as `dks.results.entries` makes it
Entry = dict[str, Any]
Place = tuple[Label, Label]  # labels of the row, labels of the column
UNKNOWN = "the paper's table has no such configuration"


@dataclass(frozen=True)
class Number:
    """One metric of one configuration, over the runs that count."""

    metric: Metric
    values: tuple[float, ...]  # one a run, by seed
    paper: PaperNumber | None = None  # what the paper says of this very setting
    gains: dict[Over, float] = field(default_factory=dict)  # the other's mean less this one

    @property
    def mean(self) -> float | None:
        """None without runs."""
        return fmean(self.values) if self.values else None

    @property
    def sd(self) -> float | None:
        """Sample standard deviation (ddof=1); None below two runs."""
        return sample_sd(self.values) if len(self.values) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """t interval of the mean; None below two runs."""
        return interval(self.values)

    @property
    def difference(self) -> float | None:
        """Our mean less the paper's."""
        return (
            None if self.paper is None or self.mean is None else self.mean - float(self.paper.mean)
        )


@dataclass(frozen=True)
class TableCell:
    """All runs of one configuration (of one of its classifiers), one a seed."""

    numbers: tuple[Number, ...]  # one a metric of the table
    wanted: int  # runs asked for
    states: dict[str, int]  # state -> runs in it, of those not done
    left_out: dict[str, int]  # reason -> finished runs that do not count
    cell_ids: tuple[str, ...]  # of all runs asked for
    config_id: str
    method: str
    # how its setting differs from those of the paper's table that the sweep is called after
    differs: tuple[str, ...] = ()
    computed: str = ""  # what is not as in compute=standard
    # that its runs were computed by -> runs that count
    codes: dict[str, int] = field(default_factory=dict)
    # lowest mean for its task and network among configurations with all their runs
    is_best: bool = False

    @property
    def n(self) -> int:
        """The runs that count."""
        return len(self.numbers[0].values)

    @property
    def is_whole(self) -> bool:
        """Do all runs asked for count?"""
        return self.n == self.wanted > 0


@dataclass(frozen=True)
class Comparison:
    """A test of one configuration against another, on the table's first metric."""

    place: Place
    over: Over
    n: int
    n_other: int
    difference: Difference  # positive: the configuration errs less
    p_holm: float  # corrected for all tests of the table


@dataclass(frozen=True)
class Table:
    """`cells[row, column]`; a row or a column is named by its labels."""

    name: str  # of the sweep
    title: str
    epoch: Epoch
    metrics: tuple[Metric, ...]
    row_axes: tuple[str, ...]
    column_axes: tuple[str, ...]
    rows: tuple[Label, ...]
    columns: tuple[Label, ...]
    cells: dict[Place, TableCell]
    gains: tuple[Over, ...] = ()  # those shown
    aside: tuple[Place, ...] = ()  # cells told beneath the table
    # a configuration, and the one that it is compared with
    pairs: tuple[tuple[Place, Over, Place], ...] = ()
    undecided: tuple[str, ...] = ()  # hyper-parameters still to be chosen, a line each
    # state -> runs in it; a run is here once, in however many cells it is
    states: dict[str, int] = field(default_factory=dict)
    # cell id -> what, of the runs that count
    computed_by: dict[str, tuple[ComputedBy, ...]] = field(default_factory=dict)
    # place -> an earlier one, where both are the same configuration
    same: dict[Place, Place] = field(default_factory=dict)
    changed: str | None = None  # how the sweep is another one now than when it was begun
    earlier: str | None = None  # how many of its runs have ids of an earlier version
    decided: tuple[str, ...] = ()  # hyper-parameters that were chosen, a line each

    @cached_property
    def compared_with(self) -> dict[tuple[Place, Over], Place]:
        """What each configuration is compared with."""
        return {(place, over): other for place, over, other in self.pairs}

    @property
    def whose(self) -> str:
        """Whose best epoch it is, where the table tells the classifiers of a network apart.

        Every one's own.
        """
        own = self.epoch is Epoch.best and CLASSIFIER in (*self.row_axes, *self.column_axes)
        return " of each classifier" if own else ""

    @property
    def tested(self) -> list[tuple[Place, Over, Place]]:
        """The pairs with two runs or more on both sides."""
        return [
            pair for pair in self.pairs if min(self.cells[pair[0]].n, self.cells[pair[2]].n) > 1
        ]

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """The tests of these pairs.

        Computed when first asked for, which takes a second for thousands.
        """
        samples = [
            (self.cells[other].numbers[0].values, self.cells[place].numbers[0].values)
            for place, _, other in self.tested
        ]
        found = [difference for difference in compare(samples) if difference is not None]
        corrected = holm([difference.p for difference in found])
        return tuple(
            Comparison(place, over, self.cells[place].n, self.cells[other].n, difference, p)
            for (place, over, other), difference, p in zip(
                self.tested, found, corrected, strict=True
            )
        )

    @cached_property
    def has_paper(self) -> bool:
        """Is one of its cells in a setting of the paper's?"""
        return any(
            number.paper is not None for cell in self.cells.values() for number in cell.numbers
        )

    @cached_property
    def runs_counted(self) -> tuple[int, ...]:
        """The different numbers of runs that configurations have, sorted."""
        return tuple(sorted({cell.n for cell in self.cells.values()}))

    @property
    def left_out(self) -> dict[str, int]:
        """Reason -> finished runs that do not count."""
        total: Counter[str] = Counter()
        for place, cell in self.cells.items():
            total.update(cell.left_out if place not in self.same else {})
        return dict(total)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from dks.results.render import html

        return html(self)

    def only(self, **labels: Collection[str]) -> Table:
        """Its cells with one of these labels of each axis.

        Without the tests and the totals, which are of the whole table.
        """
        axes = (*self.row_axes, *self.column_axes)
        cells = {
            place: cell
            for place, cell in self.cells.items()
            if all(_labels(place, axes).get(axis) in wanted for axis, wanted in labels.items())
        }
        rows, columns = {row for row, _ in cells}, {column for _, column in cells}
        runs = {cell_id for cell in cells.values() for cell_id in cell.cell_ids}
        return replace(
            self,
            rows=tuple(row for row in self.rows if row in rows),
            columns=tuple(column for column in self.columns if column in columns),
            cells=cells,
            aside=tuple(place for place in self.aside if place in cells),
            pairs=(),
            states={},
            computed_by={key: made for key, made in self.computed_by.items() if key in runs},
            same={place: to for place, to in self.same.items() if {place, to} <= cells.keys()},
        )


def build(
    entries: Iterable[Entry],
    name: str,
    title: str,
    axes: Sequence[str],
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    shape: Shape | None = None,
    epoch: Epoch = Epoch.last,
    paper: PaperTable | None = None,
    differs: Mapping[str, Sequence[str]] | None = None,
    undecided: Sequence[str] = (),
) -> Table:
    """The table of a sweep.

    Where it does not say which of its axes make the rows and which the columns, the last of the
    swept keys makes the columns, if there are two or more; the seed never does.

    Args:
        entries: as `dks.results.entries` makes them.
        axes: the swept keys, in the order typed.
        paper: the paper's table that the sweep is called after. It gives the rows their order, and
            its numbers go before those of the paper's other tables; any of them stands only beside
            the setting that it is of.
        differs: setting -> how it differs from the one in its place there.
    """
    shape = shape or Shape()
    row_axes, column_axes = _layout(axes, rows, columns)
    shown = (*row_axes, *column_axes)
    # a value swept twice under two spellings is one cell, and counts once
    groups: dict[Place, dict[str, Entry]] = {}
    for run in entries:
        labels = tuple(str(run[axis]) for axis in shown)
        # One that has no cell id yet is told from others by its seed.
        groups.setdefault((labels[: len(row_axes)], labels[len(row_axes) :]), {})[
            run["cell_id"] or str(run["seed"])
        ] = run
    members = {
        place: sorted(runs.values(), key=lambda run: run["seed"]) for place, runs in groups.items()
    }
    firsts = {place: runs[0] for place, runs in members.items()}
    by_entry: dict[str, Place] = {}
    same: dict[Place, Place] = {}
    for place, first in firsts.items():
        if (earlier := by_entry.setdefault(first["entry_id"] or str(place), place)) != place:
            same[place] = earlier
    pairs = [
        (place, over, other)
        for place, first in firsts.items()
        for over in Over
        if (other := by_entry.get(first[f"over_{over.value}"])) is not None
        and other != same.get(place, place)
    ]
    gains = tuple(
        over for over in shape.gain or (Over.baseline,) if any(over is each for _, each, _ in pairs)
    )
    cells = {}
    for place, runs in members.items():
        keys = firsts[place]["keys"]
        is_own = paper is None or not keys or paper.find(keys) is not None
        lines = () if is_own else tuple((differs or {}).get(keys[0].setting, ())) or (UNKNOWN,)
        cells[place] = _cell(runs, shape.metrics, lines, printed(keys, paper, gains))
    cells = _mark_best(_with_gains(cells, pairs), shown, same)
    aside = tuple(
        place
        for place in cells
        if shape.aside and shape.aside.items() <= _labels(place, shown).items()
    )
    within = [place for place in cells if place not in aside]
    rows_shown = list(dict.fromkeys(row for row, _ in within))
    if paper is not None:
        rows_shown.sort(key=lambda row: paper.position(dict(zip(row_axes, row, strict=True))))
    states = {
        run["cell_id"] or (*place, run["seed"]): run["state"]
        for place, runs in members.items()
        for run in runs
    }
    return Table(
        name,
        title,
        epoch,
        shape.metrics,
        row_axes,
        column_axes,
        tuple(rows_shown),
        tuple(dict.fromkeys(column for _, column in within)),
        cells,
        gains,
        aside,
        tuple(pair for pair in pairs if pair[0] not in same),  # each is tested once
        tuple(undecided),
        dict(Counter(states.values())),
        {
            run["cell_id"]: run.get("computed_by", ())
            for members in groups.values()
            for run in members.values()
            if _counts(run)
        },
        same,
    )


def _layout(
    axes: Sequence[str], rows: Sequence[str] | None, columns: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The axes of the rows and those of the columns."""
    shown = [axis for axis in axes if axis != "seed"]
    if not rows and not columns:
        return (tuple(shown[:-1]), (shown[-1],)) if len(shown) > 1 else (tuple(shown), ())
    return tuple(rows or ()), tuple(columns or ())


def _labels(place: Place, shown: Sequence[str]) -> dict[str, str]:
    return dict(zip(shown, (*place[0], *place[1]), strict=True))


def _cell(
    runs: Sequence[Entry], metrics: Sequence[Metric], differs: tuple[str, ...], row: PaperRow | None
) -> TableCell:
    counted = list(filter(_counts, runs))
    return TableCell(
        numbers=tuple(
            Number(
                metric,
                tuple(run[metric.name] for run in counted if run[metric.name] is not None),
                None if row is None else row.numbers.get(metric.name),
            )
            for metric in metrics
        ),
        wanted=len(runs),
        states=dict(Counter(run["state"] for run in runs if run["state"] != State.done.value)),
        left_out=dict(Counter(run["left_out"] for run in runs if run["left_out"])),
        cell_ids=tuple(run["cell_id"] for run in runs if run["cell_id"]),
        config_id=runs[0]["config_id"],
        method=runs[0]["trained"],
        differs=differs,
        computed=runs[0]["computed"],
        codes=dict(Counter(code for run in counted for code in codes(run.get("computed_by", ())))),
    )


def _counts(run: Entry) -> bool:
    return run["state"] == State.done.value and not run["left_out"]


def _with_gains(
    cells: dict[Place, TableCell], pairs: Sequence[tuple[Place, Over, Place]]
) -> dict[Place, TableCell]:
    gains: dict[Place, list[dict[Over, float]]] = {
        place: [{} for _ in cell.numbers] for place, cell in cells.items()
    }
    for place, over, other in pairs:
        both = zip(cells[place].numbers, cells[other].numbers, strict=True)
        for found, (ours, theirs) in zip(gains[place], both, strict=True):
            if ours.mean is not None and theirs.mean is not None:
                found[over] = theirs.mean - ours.mean
    return {
        place: replace(
            cell,
            numbers=tuple(
                replace(number, gains=found)
                for number, found in zip(cell.numbers, gains[place], strict=True)
            ),
        )
        for place, cell in cells.items()
    }


# Errors of different networks, data or labels are not compared, unless nothing else is swept.
_TASK = ("backbone", "data", "label_noise")


def _mark_best(
    cells: dict[Place, TableCell], shown: Sequence[str], same: Mapping[Place, Place]
) -> dict[Place, TableCell]:
    tasks = [axis for axis in shown if long_name(axis).partition(".")[0] in _TASK]

    def task(place: Place) -> Label:
        labels = _labels(place, shown)
        return tuple(labels[axis] for axis in tasks)

    groups: dict[Label, list[float]] = {}
    for place, cell in cells.items():
        if place not in same and cell.is_whole and (mean := cell.numbers[0].mean) is not None:
            groups.setdefault(task(place), []).append(mean)
    if all(len(means) == 1 for means in groups.values()):
        tasks, groups = [], {(): [mean for means in groups.values() for mean in means]}
    lowest = {key: min(means) for key, means in groups.items() if len(means) > 1}
    return {
        place: replace(
            cell,
            is_best=cell.is_whole and cell.numbers[0].mean == lowest.get(task(place), math.nan),
        )
        for place, cell in cells.items()
    }
