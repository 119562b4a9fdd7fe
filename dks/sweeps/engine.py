"""The one way in: validate all cells, look up what is done, launch the rest, show the table.

Planning and launching are kept apart, so that what would run can be shown without running it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from dks.config.compose import Composed
from dks.config.errors import RequestError
from dks.config.identity import cell_id, config_id
from dks.config.methods import baseline_of, method_of
from dks.config.schema import Config, TrackingKind
from dks.config.validation import resolve
from dks.sweeps.grid import Grid, Point
from dks.sweeps.ledger import State, look_up, to_launch
from dks.terminal import Display
from dks.tracking.mlflow_sink import prepare_store, sweep_run
from dks.tracking.record import Record, RunFolder, Status, write_atomically

Compose = Callable[[Sequence[str]], Composed]


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


@dataclass(frozen=True)
class Plan:
    """A sweep before anything is launched. Two points may be the same cell, which then runs once."""

    name: str
    title: str
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]

    @property
    def launches(self) -> list[Cell]:
        """The cells that would run, each once, in order."""
        return list({cell.cell_id: cell for cell in self.cells if to_launch(cell.state)}.values())

    @property
    def distinct(self) -> int:
        """How many different cells there are."""
        return len({cell.cell_id for cell in self.cells})

    def count(self, state: State) -> int:
        """How many different cells are in that state."""
        return len({cell.cell_id for cell in self.cells if cell.state is state})


def plan(grid: Grid, compose: Compose) -> Plan:
    """Compose and validate every cell, then look each up.

    Raises:
        RequestError: with every problem of every cell; nothing was launched or written.
    """
    resolved: list[tuple[Point, Config, dict[str, str | None]]] = []
    problems: dict[str, list[str]] = {}  # problem -> the cells that have it
    for point in grid.points:
        where = " ".join(f"{key}={value}" for key, value in point.labels.items())
        try:
            composed = compose(point.overrides)
            resolved.append((point, resolve(composed), composed.choices))
        except RequestError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(where)
    if problems:
        raise RequestError(*(f"{' | '.join(cells)}: {text}" if cells[0] else text for text, cells in problems.items()))
    name = resolved[0][1].sweep or grid.name
    cells = []
    for point, config, choices in resolved:
        config.sweep = name if grid.axes else config.sweep
        identity = cell_id(config)
        state, _ = look_up(config.runs_dir, identity)
        baseline = config_id(baseline_of(config))
        cells.append(Cell(point, config, choices, identity, config_id(config), baseline, state))
    return Plan(name, grid.title or name, grid.axes, tuple(cells))


def queue(cell: Cell) -> None:
    """Freeze the configuration of a cell that is about to be launched, unless somebody else has begun it meanwhile."""
    folder = RunFolder(Path(cell.config.runs_dir) / cell.cell_id)
    if not folder.claim():
        return
    try:
        record = folder.read_record()
        if record is not None and record.status is Status.done:
            return
        folder.write_config(cell.config)
        fresh = Record(
            cell_id=cell.cell_id,
            config_id=cell.config_id,
            seed=cell.config.seed,
            method=method_of(cell.config),
            choices=cell.choices,
            label=" ".join(f"{key}={value}" for key, value in cell.point.labels.items()) or " ".join(cell.point.overrides),
            overrides=list(cell.point.overrides),
            sweep=cell.config.sweep,
        )
        if record is not None:  # it was killed or failed: the new attempt goes on from the old ones
            fresh.attempts, fresh.cost, fresh.changed_labels = record.attempts, record.cost, record.changed_labels
        folder.write_record(fresh)
    finally:
        folder.release()


def write_manifest(sweep: Plan) -> Path:
    """`results/<sweep>/sweep.json`: axes and cells, from which the table can be made again at any time."""
    config = sweep.cells[0].config
    path = Path(config.results_dir) / sweep.name / "sweep.json"
    cells = [
        {
            "labels": cell.point.labels,
            "cell_id": cell.cell_id,
            "config_id": cell.config_id,
            "baseline_id": cell.baseline_id,
            "seed": cell.config.seed,
            "method": method_of(cell.config),
            "overrides": list(cell.point.overrides),
        }
        for cell in sweep.cells
    ]
    manifest = {
        "name": sweep.name,
        "title": sweep.title,
        "axes": list(sweep.axes),
        "runs_dir": config.runs_dir,
        "cells": cells,
    }
    write_atomically(path, json.dumps(manifest, indent=1) + "\n")
    return path


def execute(sweep: Plan, launch: Callable[[list[Cell]], list[Exception]]) -> int:
    """Run what is missing, then show the table, or for a single run its errors; returns the exit status.

    A failed cell does not stop the others. Ctrl-C stops all; what is there by then is shown, and the same command goes on.

    Args:
        launch: runs these cells; returns the errors of cells that could not even begin.
    """
    first, launches = sweep.cells[0].config, sweep.launches
    display = Display(len(launches))
    display.say(summary(sweep))
    if sweep.axes:
        write_manifest(sweep)
    interrupted = False
    if launches:
        if first.tracking.kind is not TrackingKind.off:
            display.say(f"tracking to {first.tracking.uri}")  # a new store takes some seconds
            prepare_store(first.tracking)
        parent = sweep_run(first.tracking, sweep.name, {}) if sweep.axes else nullcontext()
        try:
            with parent, display:
                for cell in launches:
                    queue(cell)
                for error in launch(launches):
                    display.say(f"[red]error[/]: {escape(str(error))}")
        except KeyboardInterrupt:
            interrupted = True
    _show(sweep)
    if interrupted:
        display.say("[yellow]interrupted[/]: the same command goes on from here")
        return 130
    states = [look_up(cell.config.runs_dir, cell.cell_id)[0] for cell in sweep.cells]
    return 0 if set(states) <= {State.done, State.running} else 1


def plan_text(sweep: Plan) -> str:
    """What would run: one line a cell, then the summary."""
    lines = [f"{cell.cell_id}  {cell.state.value:<8} {' '.join(cell.point.overrides)}".rstrip() for cell in sweep.cells]
    return "\n".join([*lines, summary(sweep)])


def plan_json(sweep: Plan) -> str:
    """What would run, for programs."""
    cells = [
        {
            "cell_id": cell.cell_id,
            "config_id": cell.config_id,
            "seed": cell.config.seed,
            "overrides": list(cell.point.overrides),
            "state": cell.state.value,
        }
        for cell in sweep.cells
    ]
    return json.dumps({"name": sweep.name, "axes": list(sweep.axes), "cells": cells}, indent=1)


def summary(sweep: Plan) -> str:
    """One line: how many cells there are and what is to be done."""
    total, new = sweep.distinct, len(sweep.launches)
    noun = "cell" if total == 1 else "cells"
    counts = ", ".join(f"{sweep.count(state)} {state.value}" for state in State if sweep.count(state))
    if total == sweep.count(State.done):
        what = "the cell is done" if total == 1 else f"all {total} cells are done"
        return f"{what}, nothing to launch"
    if not sweep.axes:
        cell = sweep.cells[0]
        what = "another process is working on" if cell.state is State.running else "running"
        return f"{what} cell {cell.cell_id}"
    elsewhere = ", another process is working on the others" if sweep.count(State.running) else ""
    return f"{total} {noun} ({counts}); {new} to run{elsewhere}"


def _show(sweep: Plan) -> None:
    if sweep.axes:
        from dks.tables.results import show, write_results

        config = sweep.cells[0].config
        show(write_results(config.results_dir, sweep.name))
        Console(stderr=True).print(f"written to {Path(config.results_dir) / sweep.name}", highlight=False, soft_wrap=True)
        return
    cell = sweep.cells[0]
    state, record = look_up(cell.config.runs_dir, cell.cell_id)
    Console(highlight=False).print(run_summary(state, record, Path(cell.config.runs_dir) / cell.cell_id), soft_wrap=True)


def run_summary(state: State, record: Record | None, folder: Path) -> str:
    """The errors of every classifier of a single run."""
    if record is None or state is not State.done:
        return f"{folder}: {state.value}"
    lines = [f"{folder}  top-1 / top-5 test error in %, last epoch (best epoch {record.best['epoch']:.0f})"]
    for key, value in record.final.items():
        if key.startswith("test/top1_error"):
            five = key.replace("top1", "top5")
            name = key.removeprefix("test/top1_error").lstrip("_") or "c1"
            lines.append(
                f"  {name}  {value:6.2f} / {record.final[five]:.2f}   ({record.best[key]:.2f} / {record.best[five]:.2f})"
            )
    return "\n".join(lines)
