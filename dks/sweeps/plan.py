"""A sweep before anything is launched: all cells composed and checked, and where each stands."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from dks.config.compose import Compose, Composed
from dks.config.errors import RequestError
from dks.config.identity import cell_id
from dks.config.methods import classifiers_of, method_of
from dks.runs.earlier import earlier_runs, of_folder
from dks.runs.record import Status
from dks.runs.states import Standing, State, has_diverged, survey_all, to_launch
from dks.runs.terminal import Display
from dks.sweeps.cell import Cell
from dks.sweeps.files import CLASSIFIER, TRAINING
from dks.sweeps.manifest import Manifest
from dks.sweeps.paper import Key, differences, paper_table, setting_id, settings
from dks.sweeps.points import Point, words
from dks.sweeps.sources import Sources
from dks.sweeps.spec import Grid
from dks.training.resolver import Resolver

# Points of a grid from which on composing them is shown to go on.
MANY = 50
# What a hyper-parameter is chosen by.
CHOSEN_BY = "val/top1_error"


@dataclass(frozen=True)
class Selection:
    """A hyper-parameter that is chosen by the error on held-out training images, before the runs
    that are reported.
    """

    key: str
    place: str  # what it is chosen for
    candidates: dict[str, tuple[Cell, ...]]  # value -> the runs that try it
    following: int  # cells that use the chosen value
    chosen: str | None  # None: some of those runs are not done, or all have diverged
    diverged: tuple[str, ...] = ()  # values of which some run has; they are the worst

    @property
    def cells(self) -> Iterator[Cell]:
        """The runs that try its candidates."""
        return (cell for cells in self.candidates.values() for cell in cells)

    def __str__(self) -> str:
        among = f"among {', '.join(self.candidates)} on held-out images"
        where = f"{self.place}: " if self.place else ""
        if len(self.diverged) == len(self.candidates):
            return (
                f"{where}{self.key} cannot be chosen {among}, for training diverged with "
                f"every one of them; give others"
            )
        worst = f"; diverged, and so the worst: {', '.join(self.diverged)}" if self.diverged else ""
        if self.chosen is not None:
            return f"{where}{self.key}={self.chosen}, chosen {among}{worst}"
        cells = f"{self.following} more {'cell follows' if self.following == 1 else 'cells follow'}"
        return f"{where}{cells} when {self.key} is chosen {among}{worst}"


@dataclass(frozen=True)
class Part:
    """The cells of one table. Two points may be the same cell, which then runs once."""

    name: str
    title: str
    grid: Grid  # what was asked for
    cells: tuple[Cell, ...]
    selections: tuple[Selection, ...] = ()
    # points of its table that wait for a choice, each with the cells that it may become
    pending: tuple[tuple[Point, tuple[Cell, ...]], ...] = ()
    # setting_id -> what is not as the paper has it in this place
    differs: dict[str, list[str]] = field(default_factory=dict)
    definition: dict[str, str] = field(default_factory=dict)  # as the manifest has it

    @property
    def selection_cells(self) -> tuple[Cell, ...]:
        """The runs by which something is chosen."""
        return tuple(cell for each in self.selections for cell in each.cells)

    @property
    def following(self) -> tuple[Cell, ...]:
        """Those of its cells, the last ones, that use what has been chosen."""
        count = sum(each.following for each in self.selections if each.chosen is not None)
        return self.cells[len(self.cells) - count :]

    def manifest(self, parts: Sequence[str] = ()) -> Manifest:
        """What of it is written to `sweep.json`."""
        rows, columns = self.grid.rows, self.grid.columns
        return Manifest(
            name=self.name,
            title=self.title,
            axes=list(self.grid.axes),
            runs_dir=(*self.cells, *self.selection_cells)[0].config.runs_dir,
            cells=[cell.entry() for cell in self.cells],
            rows=None if rows is None else list(rows),
            columns=None if columns is None else list(columns),
            selection=[cell.entry() for cell in self.selection_cells],
            choices=[
                {
                    value: [cell.cell_id for cell in cells]
                    for value, cells in each.candidates.items()
                }
                for each in self.selections
            ],
            undecided=[str(each) for each in self.selections if each.chosen is None],
            decided=[str(each) for each in self.selections if each.chosen is not None],
            pending=[point.labels for point, _ in self.pending],
            pending_ids=[[setting_id(cell.config) for cell in cells] for _, cells in self.pending],
            differs=self.differs,
            parts=list(parts),
            named=self.grid.named,
            request=list(self.grid.request),
            definition=self.definition,
        )


@dataclass(frozen=True)
class Plan:
    """A sweep: one table, or several that share cells."""

    name: str
    title: str
    grid: Grid  # what was asked for
    parts: tuple[Part, ...]
    # data that is not here: a line for each; the plan holds, but nothing can run
    absent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what a person should know of the data, a line each
    definition: dict[str, str] = field(default_factory=dict)  # as the manifest has it

    @property
    def axes(self) -> tuple[str, ...]:
        """The swept keys."""
        return tuple(dict.fromkeys(axis for part in self.parts for axis in part.grid.axes))

    @property
    def has_table(self) -> bool:
        """Is it a sweep, be it of one cell, and no single run?"""
        return bool(self.axes) or self.grid.named is not None

    @cached_property
    def cells(self) -> list[Cell]:
        """All cells of tables and selections, each once, in order."""
        points = [cell for part in self.parts for cell in (*part.selection_cells, *part.cells)]
        return list({cell.cell_id: cell for cell in reversed(points)}.values())[::-1]

    @property
    def selections(self) -> list[Selection]:
        """Hyper-parameters that are chosen by runs of its own."""
        return [each for part in self.parts for each in part.selections]

    @property
    def undecided(self) -> list[Selection]:
        """Those still to be chosen; the cells that use them are not in the plan yet."""
        return [each for each in self.selections if each.chosen is None]

    @property
    def saved(self) -> int:
        """How many runs are saved because tables share cells."""
        return sum(
            len({cell.cell_id for cell in (*part.selection_cells, *part.cells)})
            for part in self.parts
        ) - len(self.cells)

    @property
    def repeated(self) -> int:
        """How many places of its tables are filled by a run that fills another one of the same
        table as well.
        """
        return sum(
            len(part.cells) - len({cell.cell_id for cell in part.cells}) for part in self.parts
        )

    @cached_property
    def settled(self) -> frozenset[str]:
        """Cells that have diverged where another value could be chosen: nothing waits for them."""
        return frozenset(
            cell.cell_id
            for each in self.selections
            if each.chosen is not None
            for value in each.diverged
            for cell in each.candidates[value]
            if cell.state is State.failed
        )

    @property
    def counting(self) -> list[Cell]:
        """The cells that something waits for."""
        return [cell for cell in self.cells if cell.cell_id not in self.settled]

    def launches(self, only: frozenset[State] | None = None) -> list[Cell]:
        """The cells that would run, each once, in order.

        With `only`, those in one of these states.
        """
        asked = (
            self.counting if only is None else [cell for cell in self.cells if cell.state in only]
        )
        return [cell for cell in asked if to_launch(cell.state) or cell.anew]

    def counts(self) -> dict[State, int]:
        """State -> how many different cells are in it."""
        states = [cell.state for cell in self.cells]
        return {state: states.count(state) for state in State if state in states}

    def manifests(self) -> list[Manifest]:
        """One for every table, and for a union one of its own."""
        tables = [part.manifest() for part in self.parts]
        if [part.name for part in self.parts] == [self.name]:
            return tables
        whole = Part(
            self.name,
            self.title,
            replace(self.grid, axes=self.axes),
            tuple(cell for part in self.parts for cell in part.cells),
            tuple(self.selections),
            definition=self.definition,
        )
        return [*tables, whole.manifest([part.name for part in self.parts])]


def plan(grid: Grid, compose: Compose, absent_ok: bool = False, same_code: bool = False) -> Plan:
    """Compose and validate every cell, then look each up.

    Args:
        absent_ok: go on where data is not on this machine but its facts are known; `Plan.absent`
            says what is missing.
        same_code: train again what another code than today's has computed.

    Raises:
        RequestError: with every problem of every cell; nothing was launched or written.
    """
    grids, sources, planner = grid.parts or (grid,), Sources(), _Planner(compose, absent_ok)
    # before anything is composed
    definition, definitions = sources.of(grid.files), [sources.of(each.files) for each in grids]
    drafts = [
        (
            planner.compose_all(each.points),
            [
                {value: planner.compose_all(its) for value, its in choice.candidates.items()}
                for choice in each.choices
            ],
        )
        for each in grids
    ]
    planner.complain()
    known = planner.composed
    planner.look_up(known)
    name = next((cell.config.sweep for cell in known if cell.config.sweep), grid.name)
    parts = []
    for each, own, (points, choices) in zip(grids, definitions, drafts, strict=True):
        selections, pending = [], list[tuple[Point, tuple[Cell, ...]]]()
        for choice, tried in zip(each.choices, choices, strict=True):
            candidates = {value: planner.settle(cells, same_code) for value, cells in tried.items()}
            chosen, diverged = _chosen(candidates)
            place = words({key: value for key, value in choice.labels.items() if value != "-"})
            selections.append(
                Selection(choice.key, place, candidates, len(choice.undecided), chosen, diverged)
            )
            finals = (
                choice.final(chosen)
                if chosen is not None
                else [choice.final(value)[0] for value in choice.candidates]
            )
            final_cells = planner.compose_all(finals)
            planner.complain()
            if chosen is None:
                pending += [(point, tuple(final_cells)) for point in choice.undecided]
            else:
                planner.look_up(final_cells)
                points += final_cells
        cells = planner.settle(points, same_code)
        waiting = [cell for _, its in pending for cell in its]
        parts.append(
            Part(
                name=each.name if grid.parts else name,
                title=each.title or each.name,
                grid=each,
                cells=cells,
                selections=tuple(selections),
                pending=tuple(pending),
                differs=_differs(each.named, [*cells, *waiting], compose),
                definition=own,
            )
        )
    whole = Plan(
        name,
        grid.title or name,
        grid,
        tuple(parts),
        tuple(dict.fromkeys(planner.resolve.absent)),
        (*dict.fromkeys(planner.resolve.notes), *_earlier(known, planner.standings)),
        definition,
    )
    if whole.has_table:
        for cell in known:
            cell.config.sweep = name
    return whole


def _earlier(cells: Iterable[Cell], standings: Mapping[str, Standing]) -> Iterator[str]:
    """A line of runs that are there and are none of these cells, for they have the ids of an
    earlier version.
    """
    missing = {
        cell.config.runs_dir
        for cell in cells
        # the others wait for a choice
        if cell.cell_id in standings and standings[cell.cell_id].state is State.missing
    }
    for runs_dir in sorted(missing):
        if count := len(earlier_runs(runs_dir, standings)):
            yield of_folder(count, runs_dir)


class _Planner:
    """Composes points and looks cells up, and gathers what is wrong with them."""

    def __init__(self, compose: Compose, absent_ok: bool) -> None:
        self.compose, self.resolve = compose, Resolver(absent_ok)
        self.composed: list[Cell] = []
        self.standings: dict[str, Standing] = {}
        self._problems: dict[str, list[str]] = {}  # problem -> the cells that have it
        self._count = 0  # of all cells

    def compose_all(self, points: Sequence[Point]) -> list[Cell]:
        """A cell for each point, without those that something is wrong with."""
        cells = []
        self._count += len(points)
        for point in (
            Display.current().track(points, len(points), "composing")
            if len(points) > MANY
            else points
        ):
            try:
                composed = self.compose(point.overrides)
                config = self.resolve(composed)
                cells.append(Cell(point, config, composed.choices, cell_id(config)))
            except RequestError as error:
                for problem in error.problems:
                    self._problems.setdefault(problem, []).append(words(point.labels))
        self.composed += cells
        return cells

    def complain(self) -> None:
        """Raises a RequestError if something is wrong with some cell."""
        if self._problems:
            raise RequestError(
                *(
                    f"{_cells(cells, self._count)}: {text}" if cells[0] else text
                    for text, cells in self._problems.items()
                )
            )

    def look_up(self, cells: Iterable[Cell]) -> None:
        """Note where these stand."""
        self.standings |= survey_all((cell.config.runs_dir, cell.cell_id) for cell in cells)

    def settle(self, cells: Iterable[Cell], same_code: bool) -> tuple[Cell, ...]:
        """The same cells, with where they stand."""
        found = [replace(cell, standing=self.standings[cell.cell_id]) for cell in cells]
        return tuple(
            replace(cell, anew=True) if same_code and cell.other_codes else cell for cell in found
        )


def _differs(named: str | None, cells: Iterable[Cell], compose: Compose) -> dict[str, list[str]]:
    """setting_id -> in what it differs from the one that the paper's table of this name has in its
    place, if it has one.
    """
    if (own := paper_table(named)) is None:
        return {}
    found: dict[str, list[str]] = {}
    originals: dict[str, list[Composed]] = {}
    for cell in cells:
        setting, classifier = setting_id(cell.config), classifiers_of(cell.config)[0]
        if setting in found or own.find([Key(setting, classifier)]) is not None:
            continue
        alone = cell.config.aux_positions.alone or len(classifiers_of(cell.config)) == 1
        labels = {
            CLASSIFIER: classifier,
            TRAINING: "alone" if alone else method_of(cell.config),
            **cell.point.labels,
        }
        if (row := own.labelled(labels)) is None:
            continue
        if row.setting not in originals:
            try:
                originals[row.setting] = settings(row, compose)
            except RequestError:
                originals[row.setting] = []
        lines = [
            differences(cell.config, cell.choices, each.config, each.choices)
            for each in originals[row.setting]
        ]
        found[setting] = min(lines, key=len, default=[])
    return {setting: lines for setting, lines in found.items() if lines}


def _cells(places: list[str], count: int, shown: int = 6) -> str:
    """The cells that have a problem, of that many; their names where these say something."""
    if len(places) == count > shown:
        return f"all {count} cells"
    rest = f" and {len(places) - shown} more" if len(places) > shown else ""
    return " | ".join(places[:shown]) + rest


def _chosen(tried: Mapping[str, Sequence[Cell]]) -> tuple[str | None, tuple[str, ...]]:
    """The value with the lowest mean error on held-out images, the first of equals, and those with
    which training diverged. None until the runs of all others are done: one that failed for another
    reason may do well when it is run again.
    """
    records = {
        value: [cell.standing.record for cell in cells if cell.standing and not cell.anew]
        for value, cells in tried.items()
    }
    diverged = tuple(value for value, its in records.items() if any(map(has_diverged, its)))
    errors = {
        value: [
            record.final[CHOSEN_BY]
            for record in its
            if record is not None and record.status is Status.done
        ]
        for value, its in records.items()
        if value not in diverged
    }
    if not errors or any(len(its) < len(tried[value]) for value, its in errors.items()):
        return None, diverged
    means = {value: statistics.fmean(its) for value, its in errors.items()}
    return min(means, key=lambda value: means[value]), diverged
