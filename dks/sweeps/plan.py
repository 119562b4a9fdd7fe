"""A sweep before anything is launched: all cells composed and checked, and where each stands."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from dks.config.compose import Compose, Composed
from dks.config.errors import RequestError
from dks.config.identity import cell_id, config_id
from dks.config.methods import PAPERS, baseline_of, classifiers_of, computed_with, ds_of, method_of
from dks.config.schema import Config
from dks.runs.earlier import earlier_runs, of_folder
from dks.runs.record import Status
from dks.runs.states import Standing, State, has_diverged, survey_all, to_launch
from dks.runs.terminal import Display
from dks.sweeps.definition import Sources
from dks.sweeps.differences import differences
from dks.sweeps.files import CLASSIFIER, TRAINING
from dks.sweeps.grid import Choice, Grid, Point
from dks.sweeps.manifest import Manifest, ManifestCell
from dks.sweeps.paper import Key, paper_table, setting_id, settings
from dks.training.resolver import Resolver

# Points of a grid from which on composing them is shown to go on.
MANY = 50
# What a hyper-parameter is chosen by.
CHOSEN_BY = "val/top1_error"


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep, ready to run."""

    point: Point
    config: Config
    choices: dict[str, str | None]
    cell_id: str
    config_id: str
    baseline_id: str  # config_id of the plain network under the same conditions
    state: State
    # config_id of the same network deeply supervised, where this is not what it is already
    ds_id: str | None = None
    done_epochs: int = 0  # by earlier attempts
    goes_on: bool = False  # an unfinished run, from a checkpoint
    # that what is there was computed by, and that are not today's; None: not known
    other_codes: tuple[str | None, ...] = ()
    anew: bool = False  # it is trained again, for that reason

    @property
    def method(self) -> str:
        """What tables call it: its preset, unless the paper has a name for what it trains."""
        preset = self.choices.get("method")
        return method_of(self.config) if preset is None or preset in PAPERS else preset

    @property
    def place(self) -> str:
        """What a person calls it: its place in the sweep, or its overrides."""
        return " ".join(f"{key}={value}" for key, value in self.point.labels.items()) or " ".join(
            self.point.overrides
        )


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
class Pending:
    """A cell that waits for a choice."""

    point: Point
    candidates: tuple[_Draft, ...]  # what it may become


@dataclass(frozen=True)
class Part:
    """The cells of one table. Two points may be the same cell, which then runs once."""

    name: str
    title: str
    axes: tuple[str, ...]
    rows: tuple[str, ...] | None
    columns: tuple[str, ...] | None
    cells: tuple[Cell, ...]
    selections: tuple[Selection, ...] = ()
    pending: tuple[Pending, ...] = ()  # of its table
    # setting_id -> what is not as the paper has it in this place
    differs: dict[str, list[str]] = field(default_factory=dict)
    named: str | None = None  # the file in `sweeps/`
    request: tuple[str, ...] = ()  # overrides as typed that reach it
    definition: dict[str, str] = field(default_factory=dict)  # as the manifest has it

    @property
    def selection_cells(self) -> tuple[Cell, ...]:
        return tuple(
            cell for each in self.selections for cells in each.candidates.values() for cell in cells
        )

    @property
    def following(self) -> tuple[Cell, ...]:
        """Those of its cells, the last ones, that use what has been chosen."""
        count = sum(each.following for each in self.selections if each.chosen is not None)
        return self.cells[len(self.cells) - count :]

    def manifest(self, parts: Sequence[str] = ()) -> Manifest:
        """What of it is written to `sweep.json`."""
        return Manifest(
            name=self.name,
            title=self.title,
            axes=list(self.axes),
            runs_dir=(*self.cells, *self.selection_cells)[0].config.runs_dir,
            cells=[_manifest_cell(cell) for cell in self.cells],
            rows=None if self.rows is None else list(self.rows),
            columns=None if self.columns is None else list(self.columns),
            selection=[_manifest_cell(cell) for cell in self.selection_cells],
            choices=[
                {
                    value: [cell.cell_id for cell in cells]
                    for value, cells in each.candidates.items()
                }
                for each in self.selections
            ],
            undecided=[str(each) for each in self.selections if each.chosen is None],
            decided=[str(each) for each in self.selections if each.chosen is not None],
            pending=[each.point.labels for each in self.pending],
            pending_ids=[
                [setting_id(draft.config) for draft in each.candidates] for each in self.pending
            ],
            differs=self.differs,
            parts=list(parts),
            named=self.named,
            request=list(self.request),
            definition=self.definition,
        )


def _manifest_cell(cell: Cell) -> ManifestCell:
    computed = computed_with(cell.config)
    return ManifestCell(
        labels=cell.point.labels,
        cell_id=cell.cell_id,
        config_id=cell.config_id,
        baseline_id=cell.baseline_id,
        ds_id=cell.ds_id,
        classifiers=classifiers_of(cell.config),
        classes=cell.config.data.num_classes or 0,
        seed=cell.config.seed,
        method=cell.method,
        overrides=list(cell.point.overrides),
        computed=computed,
        setting_id=setting_id(cell.config) if computed else "",
    )


@dataclass(frozen=True)
class Plan:
    """A sweep: one table, or several that share cells."""

    name: str
    title: str
    parts: tuple[Part, ...]
    # data that is not here: a line for each; the plan holds, but nothing can run
    absent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what a person should know of the data, a line each
    named: str | None = None  # the file in `sweeps/`
    request: tuple[str, ...] = ()  # overrides as typed
    definition: dict[str, str] = field(default_factory=dict)  # as the manifest has it

    @property
    def axes(self) -> tuple[str, ...]:
        """The swept keys."""
        return tuple(dict.fromkeys(axis for part in self.parts for axis in part.axes))

    @property
    def has_table(self) -> bool:
        """Is it a sweep, be it of one cell, and no single run?"""
        return bool(self.axes) or self.named is not None

    @property
    def points(self) -> list[Cell]:
        """The cells of all tables and selections; one that several share is there several times."""
        return [cell for part in self.parts for cell in (*part.selection_cells, *part.cells)]

    @property
    def cells(self) -> list[Cell]:
        """All cells, each once, in order."""
        return list({cell.cell_id: cell for cell in reversed(self.points)}.values())[::-1]

    @property
    def undecided(self) -> list[Selection]:
        """Hyper-parameters still to be chosen; the cells that use them are not in the plan yet."""
        return [each for part in self.parts for each in part.selections if each.chosen is None]

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
        chosen = [
            each for part in self.parts for each in part.selections if each.chosen is not None
        ]
        cells = [
            cell for each in chosen for value in each.diverged for cell in each.candidates[value]
        ]
        return frozenset(cell.cell_id for cell in cells if cell.state is State.failed)

    def launches(self, only: frozenset[State] | None = None) -> list[Cell]:
        """The cells that would run, each once, in order.

        With `only`, those in one of these states.
        """
        found = [cell for cell in self.cells if to_launch(cell.state) or cell.anew]
        return [
            cell
            for cell in found
            if (cell.cell_id not in self.settled if only is None else cell.state in only)
        ]

    def counts(self) -> dict[State, int]:
        """State -> how many different cells are in it."""
        states = [cell.state for cell in self.cells]
        return {state: states.count(state) for state in State if state in states}

    def manifests(self) -> list[Manifest]:
        """One for every table, and for a union one of its own."""
        tables = [part.manifest() for part in self.parts]
        if [part.name for part in self.parts] == [self.name]:
            return tables
        cells = tuple(cell for part in self.parts for cell in part.cells)
        selections = tuple(each for part in self.parts for each in part.selections)
        whole = Part(
            self.name,
            self.title,
            self.axes,
            None,
            None,
            cells,
            selections,
            named=self.named,
            request=self.request,
        )
        whole = replace(whole, definition=self.definition)
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
    drafter, sources = _Drafter(compose, absent_ok), Sources()
    # before anything is composed
    frozen = {id(each): sources.of(each) for each in (grid, *grid.parts)}
    drafts = {id(each): drafter.draft(each) for each in (grid.parts or (grid,))}
    drafter.complain()
    name = next((draft.config.sweep for draft in drafter.drafts if draft.config.sweep), grid.name)
    standings = _survey(drafter.drafts)
    parts = []
    for each in grid.parts or (grid,):
        points, choices = drafts[id(each)]
        selections, pending = [], list[Pending]()
        for choice, candidates in choices:
            tried = {
                value: tuple(_cell(draft, standings, same_code) for draft in runs)
                for value, runs in candidates.items()
            }
            chosen, diverged = _chosen(tried, standings)
            place = " ".join(
                f"{key}={value}" for key, value in choice.labels.items() if value != "-"
            )
            selections.append(
                Selection(choice.key, place, tried, len(choice.undecided), chosen, diverged)
            )
            if chosen is None:
                finals = [drafter.one(choice.final(value)[0]) for value in choice.candidates]
                pending += [Pending(point, tuple(finals)) for point in choice.undecided]
            else:
                finals = [drafter.one(point) for point in choice.final(chosen)]
                standings |= _survey(finals)
                points = [*points, *finals]
        cells = tuple(_cell(draft, standings, same_code) for draft in points)
        parts.append(
            Part(
                name=each.name if grid.parts else name,
                title=each.title or each.name,
                axes=each.axes,
                rows=each.rows,
                columns=each.columns,
                cells=cells,
                selections=tuple(selections),
                pending=tuple(pending),
                differs=_differs(
                    each.named,
                    [*cells, *(draft for one in pending for draft in one.candidates)],
                    compose,
                ),
                named=each.named,
                request=each.request,
                definition=frozen[id(each)],
            )
        )
    absent, notes = (
        tuple(dict.fromkeys(lines)) for lines in (drafter.resolve.absent, drafter.resolve.notes)
    )
    notes += tuple(_earlier(drafter.drafts, standings))
    whole = Plan(
        name,
        grid.title or name,
        tuple(parts),
        absent,
        notes,
        grid.named,
        grid.request,
        frozen[id(grid)],
    )
    for cell in whole.points:
        cell.config.sweep = name if whole.has_table else cell.config.sweep
    return whole


def _earlier(drafts: Iterable[_Draft], standings: Mapping[str, Standing]) -> Iterator[str]:
    """A line of runs that are there and are none of these cells, for they have the ids of an
    earlier version.
    """
    known = ((draft, standings.get(draft.cell_id)) for draft in drafts)  # others wait for a choice
    missing = {
        draft.config.runs_dir
        for draft, standing in known
        if standing and standing.state is State.missing
    }
    for runs_dir in sorted(missing):
        if count := len(earlier_runs(runs_dir, standings)):
            yield of_folder(count, runs_dir)


@dataclass(frozen=True)
class _Draft:
    """A cell before it was looked up."""

    point: Point
    config: Config
    choices: dict[str, str | None]
    cell_id: str


class _Drafter:
    """Composes points and gathers what is wrong with them."""

    def __init__(self, compose: Compose, absent_ok: bool) -> None:
        self.compose, self.resolve = compose, Resolver(absent_ok)
        self.drafts: list[_Draft] = []
        self.problems: dict[str, list[str]] = {}  # problem -> the cells that have it
        self._count = 0  # of all cells

    def draft(
        self, grid: Grid
    ) -> tuple[list[_Draft], list[tuple[Choice, dict[str, list[_Draft]]]]]:
        """The points of a grid, and those that its choices try."""
        choices = [
            (choice, {value: self._some(points) for value, points in choice.candidates.items()})
            for choice in grid.choices
        ]
        return self._some(grid.points), choices

    def one(self, point: Point) -> _Draft:
        drafts = self._some([point])
        self.complain()
        return drafts[0]

    def complain(self) -> None:
        """Raises a RequestError if something is wrong with some cell."""
        if self.problems:
            count = self._count
            lines = (
                f"{_cells(cells, count)}: {text}" if cells[0] else text
                for text, cells in self.problems.items()
            )
            raise RequestError(*lines)

    def _some(self, points: Iterable[Point]) -> list[_Draft]:
        drafts = []
        points = list(points)
        self._count += len(points)
        for point in (
            Display.current().track(points, len(points), "composing")
            if len(points) > MANY
            else points
        ):
            try:
                composed = self.compose(point.overrides)
                config = self.resolve(composed)
                drafts.append(_Draft(point, config, composed.choices, cell_id(config)))
            except RequestError as error:
                where = " ".join(f"{key}={value}" for key, value in point.labels.items())
                for problem in error.problems:
                    self.problems.setdefault(problem, []).append(where)
        self.drafts += drafts
        return drafts


def _differs(
    named: str | None, cells: Iterable[Cell | _Draft], compose: Compose
) -> dict[str, list[str]]:
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


def _survey(drafts: Sequence[_Draft]) -> dict[str, Standing]:
    return survey_all((draft.config.runs_dir, draft.cell_id) for draft in drafts)


def _cell(draft: _Draft, standings: dict[str, Standing], same_code: bool) -> Cell:
    standing = standings[draft.cell_id]
    begun = (
        standing.state is not State.done
        and standing.record is not None
        and standing.record.attempts
    )
    others = standing.other_codes()
    anew = same_code and bool(others)
    return Cell(
        draft.point,
        draft.config,
        draft.choices,
        draft.cell_id,
        config_id(draft.config),
        config_id(baseline_of(draft.config)),
        standing.state,
        None if (ds := ds_of(draft.config)) is None else config_id(ds),
        len(standing.folder.journal.read()) if begun and not anew else 0,
        standing.goes_on,
        others,
        anew,
    )


def _chosen(
    tried: dict[str, tuple[Cell, ...]], standings: dict[str, Standing]
) -> tuple[str | None, tuple[str, ...]]:
    """The value with the lowest mean error on held-out images, the first of equals, and those with
    which training diverged. None until the runs of all others are done: one that failed for another
    reason may do well when it is run again.
    """
    records = {
        value: [None if cell.anew else standings[cell.cell_id].record for cell in cells]
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
    if not errors or any(len(errors[value]) < len(tried[value]) for value in errors):
        return None, diverged
    means = {value: statistics.fmean(its) for value, its in errors.items()}
    return min(means, key=lambda value: means[value]), diverged
