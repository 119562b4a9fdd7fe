"""The one way in: plan, launch what is missing, show the table.

`python train.py -m ...`, `dks sweep run` and every launcher go through `execute`; a dry run is the
same without the launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from rich.markup import escape

from dks.config.errors import RequestError
from dks.config.schema import TrackingKind
from dks.config.secrets import without_password
from dks.machine import interruption, output
from dks.machine.commit import git_commit
from dks.runs.best import classifier_ending
from dks.runs.disk import refusal
from dks.runs.launches import LaunchFolder
from dks.runs.record import Record, RunFolder, Status
from dks.runs.states import Standing, State, look_up, survey_all, to_launch
from dks.runs.superseded import complete, restore, supersede
from dks.runs.terminal import Display, console, error_head, error_text
from dks.runs.unfinished import on_other_files
from dks.sweeps import manifest
from dks.sweeps.command_line import command_line
from dks.sweeps.going_on import other_ways
from dks.sweeps.manifest import Manifest
from dks.sweeps.plan import Cell, Plan
from dks.sweeps.plan_text import single, summary
from dks.sweeps.undo import Undo
from dks.tracking.destination import status_of
from dks.tracking.sender import sending


class Launcher(Protocol):
    """Sets cells going."""

    @property
    def name(self) -> str:
        """The choice of hydra/launcher."""

    @property
    def detached(self) -> bool:
        """Does it return as soon as the cells are handed over, and not when they are done?"""

    @property
    def processes(self) -> int:
        """How many train a network together."""

    def launch(self, cells: list[Cell]) -> list[Exception]:
        """Run these cells, or hand them over.

        Returns the errors of cells that could not even begin.
        """


@dataclass(frozen=True)
class Policy:
    """What is done about failures."""

    retries: int = 0  # how often a cell that fails is tried again
    # begin no further cell when so many have failed; None: go on, whatever fails
    max_failures: int | None = None
    # launch only cells in one of these states; None: whatever is to run
    only: frozenset[State] | None = None


# Cells that are queued at a time.
QUEUING = 8
# What `dks sweep retry` launches again.
UNSUCCESSFUL = frozenset({State.failed, State.killed, State.lost})


def execute(
    make: Callable[[], Plan],
    launcher: Launcher,
    policy: Policy,
    present: Callable[[str, Manifest], None],
) -> int:
    """Run what is missing, then show the table, or for a single run its errors.

    Returns the exit status.

    A failed cell does not stop the others, unless the policy says so. Ctrl-C stops all; what is
    there by then is shown, and the same command goes on. Where a hyper-parameter is chosen by runs
    of the sweep itself, the cells that use it follow once they are done; runs that diverged are
    done with then, and no failures.

    Args:
        make: plans the sweep, as things stand when it is called.
        present: shows the table of a sweep, given `results_dir` and what was asked for, and writes
            it there.

    Raises:
        RequestError: data is missing, a run that is under way was begun on other data, a folder
            cannot be written, or the launcher refuses; nothing was launched, or stays.
    """
    sweep, begun, interrupted = make(), set[str](), False
    if sweep.absent and sweep.launches(policy.only) and not launcher.detached:
        raise RequestError(*sweep.absent)  # where cells run elsewhere, it may be there
    launches = sweep.launches(policy.only)
    new = [cell.config for cell in launches if cell.state is State.missing]
    refused = [*other_ways(launches, launcher.processes, launcher.detached), *on_other_files(new)]
    if problems := [*_unwritable(sweep, launches, launcher), *refused]:
        raise RequestError(*problems)
    for line in sweep.notes:
        Display().say(escape(line))
    while True:
        launches = [cell for cell in sweep.launches(policy.only) if cell.cell_id not in begun]
        say = Display().say
        if not begun or launches:
            say(
                summary(sweep, policy.only)
                if sweep.has_table or launcher.detached
                else single(sweep)
            )
            for line in _decisions(sweep, launches):
                Display().explain(escape(line))
        if not launches:
            for each in sweep.manifests() if sweep.has_table else ():
                manifest.write(each, sweep.cells[0].config.results_dir)
            break
        interrupted = not _launch(sweep, launches, launcher, policy)
        begun |= {cell.cell_id for cell in launches}
        if interrupted or launcher.detached or not sweep.undecided:
            break
        sweep = make()
    if launcher.detached and begun:
        say(_how_to_follow(sweep))
        return 0
    with output.kept_elsewhere():
        _show(sweep, present)
    if interrupted:
        Display().say("[yellow]interrupted[/]: the same command goes on from here", urgent=True)
        return interruption.STATUS
    counting = [cell for cell in sweep.cells if cell.cell_id not in sweep.settled]
    standings = survey_all((cell.config.runs_dir, cell.cell_id) for cell in counting)
    for cell in counting:
        folder = standings[cell.cell_id].folder
        if standings[cell.cell_id].state is State.done and (
            folder.record_is_damaged or not folder.config_is_whole()
        ):
            _mend(cell, folder)
    return 1 if any(to_launch(standing.state) for standing in standings.values()) else 0


def _decisions(sweep: Plan, launches: list[Cell]) -> Iterator[str]:
    """What becomes of every cell, and why."""
    begun = {cell.cell_id for cell in launches}
    for cell in sweep.cells:
        what = "is run" if cell.cell_id in begun else "is left alone"
        goes_on = (
            f", goes on after epoch {cell.done_epochs}"
            if cell.cell_id in begun and cell.done_epochs
            else ""
        )
        yield f"  {cell.cell_id}  {cell.state.value}: {what}{goes_on}  {cell.place}"


def _unwritable(sweep: Plan, launches: list[Cell], launcher: Launcher) -> Iterator[str]:
    """What is wrong with the folders that would be written to, which nobody can mend but who typed
    the command.
    """
    first = sweep.cells[0].config
    for key, name, needed in (
        ("runs_dir", first.runs_dir, launches),
        ("results_dir", first.results_dir, sweep.has_table),
    ):
        if needed and (why := refusal(Path(name))):
            advice = (
                f"choose another one with {key}=FOLDER"
                if launches
                else f"dks table {sweep.name} only reads"
            )
            yield f"{key}={name} cannot be written: {why}; {advice}"
            return
    theirs = [Path(cell.config.runs_dir) / cell.cell_id for cell in launches]
    if sweep.has_table or (launcher.detached and launches):
        theirs += [Path(first.results_dir) / each.name for each in sweep.manifests()]
    for folder in theirs:
        if why := refusal(folder):
            yield (
                f"{folder} cannot be written: {why}; who made it can let others write (umask 002 "
                f"and a common group), or "
                "choose other folders with runs_dir=FOLDER results_dir=FOLDER"
            )
            return


def _launch(sweep: Plan, launches: list[Cell], launcher: Launcher, policy: Policy) -> bool:
    """Set these cells going, and wait for them unless the launcher does not.

    False if it was interrupted.
    """
    tracking, display, undo = launches[0].config.tracking, Display(len(launches)), Undo()
    launch: LaunchFolder | None = None

    def go() -> None:
        with ThreadPoolExecutor(QUEUING) as threads:  # most of the time is waiting for the disk
            list(threads.map(partial(queue, launch=launch), launches))
        errors = launcher.launch(launches)
        undo.forget()
        for error in errors:
            display.say(f"[red]error[/]: {escape(str(error))}", urgent=True)

    try:
        launch = _begin(sweep, launches, launcher, policy, undo)
        # who cells are handed over to may refuse them, before a store is told
        if launcher.detached:
            go()
        with sending(tracking, partial(display.say, urgent=True)) as sender:
            if tracking.kind is not TrackingKind.off:
                name = without_password(str(tracking.uri))
                display.say(escape(f"tracking to {name}"))
                if silence := sender.open(tracking):
                    line = f"{name}: {silence}; the runs do without, and dks sync sends them later"
                    display.say(f"[yellow]tracking[/]: {escape(line)}", urgent=True)
            if sweep.has_table:
                sender.sweep(sweep.name, "RUNNING", tracking)
            if not launcher.detached:
                try:
                    with display:
                        go()
                finally:
                    if sweep.has_table:
                        sender.sweep(sweep.name, _standing(sweep), tracking)
    except KeyboardInterrupt:
        interruption.check()  # one that came while nothing was under way: there is nothing to show
        return False
    except Exception:
        _take_back(launches, launch, undo)
        raise
    finally:
        if launch is not None:
            launch.lock.release()
    return True


def _standing(sweep: Plan) -> str:
    """How a sweep stands that is over for now, as MLflow names it."""
    counting = [cell for cell in sweep.cells if cell.cell_id not in sweep.settled]
    records = [
        RunFolder(Path(cell.config.runs_dir) / cell.cell_id).read_record() for cell in counting
    ]
    states = {Status.killed if record is None else record.status for record in records}
    return status_of(
        {Status.killed if state in (Status.queued, Status.running) else state for state in states}
    )


def _begin(
    sweep: Plan, launches: list[Cell], launcher: Launcher, policy: Policy, undo: Undo
) -> LaunchFolder | None:
    """The launch on disk, and what was asked for; a single run that is waited for needs neither."""
    folders = [RunFolder(Path(cell.config.runs_dir) / cell.cell_id) for cell in launches]
    for each in folders:
        undo.note(each.record_file, each.config_file, each.path / "lock")
    if not sweep.has_table and not launcher.detached:
        return None
    results_dir = launches[0].config.results_dir
    for asked in sweep.manifests():
        undo.note(
            manifest.file(results_dir, asked.name),
            Path(results_dir) / asked.name / "launches" / "ID",
        )
        manifest.write(asked, results_dir)
    paths = [each.path for each in folders]
    launch = LaunchFolder.create(
        results_dir,
        sweep.name,
        launcher.name,
        paths,
        git_commit(),
        policy.retries,
        policy.max_failures,
    )
    undo.note_folder(launch.path)
    return launch


def _take_back(launches: list[Cell], launch: LaunchFolder | None, undo: Undo) -> None:
    """Undo a launch that was refused, unless some of its cells have begun.

    Cells that others have queued meanwhile stay so.
    """
    path = None if launch is None else str(launch.path)
    others = list[Path]()
    replaced = list[RunFolder]()
    for cell in launches:
        folder = RunFolder(Path(cell.config.runs_dir) / cell.cell_id)
        record = folder.read_record()
        if record is not None and record.launch == path and record.status is not Status.queued:
            return
        if record is not None and record.launch != path:
            others += [folder.record_file, folder.config_file, folder.path / "lock"]
        elif record is not None and cell.anew and not record.attempts:
            replaced.append(folder)
    for folder in replaced:
        if folder.claim():
            try:
                restore(folder)
            finally:
                folder.release()
    undo.undo(others)


def queue(cell: Cell, launch: LaunchFolder | None = None) -> None:
    """Freeze the configuration of a cell that is about to be launched, unless somebody else has
    begun it meanwhile.
    """
    folder = RunFolder(Path(cell.config.runs_dir) / cell.cell_id)
    if not folder.claim():
        return
    try:
        complete(folder)
        record = folder.read_record()
        if folder.record_is_damaged:
            record = _mended(cell, folder)
        if record is not None and cell.anew and _is_of_another_code(folder, record):
            _supersede(cell, folder, record)
            record = None
        if record is not None and record.status is Status.done:
            return
        folder.write_config(cell.config)
        fresh = _fresh(cell, launch)
        if record is not None:  # it was begun before: the new attempt goes on from the old ones
            folder.end_attempt(record, cell.state.value)
            fresh.uid = record.uid or fresh.uid
            fresh.attempts = record.attempts
            fresh.cost = record.cost
            fresh.changed_labels = record.changed_labels
        folder.write_record(fresh)
    finally:
        folder.release()


def _is_of_another_code(folder: RunFolder, record: Record) -> bool:
    """Still, for another process may have trained it again since it was planned."""
    state = State.done if record.status is Status.done else State.killed
    return bool(Standing(state, folder, record).other_codes())


def _supersede(cell: Cell, folder: RunFolder, record: Record) -> None:
    """Move an execution away, which may have died without a word."""
    if record.status is not Status.done:
        folder.end_attempt(record, cell.state.value)
        record.status = Status.killed
        folder.write_record(record)
    supersede(folder)


def _fresh(cell: Cell, launch: LaunchFolder | None = None) -> Record:
    """The record of a cell that nobody has begun."""
    return Record(
        cell_id=cell.cell_id,
        config_id=cell.config_id,
        seed=cell.config.seed,
        method=cell.method,
        choices=cell.choices,
        label=cell.place,
        overrides=list(cell.point.overrides),
        sweep=cell.config.sweep,
        command=command_line(),
        launch=None if launch is None else str(launch.path),
        uid=uuid4().hex,
    )


def _mend(cell: Cell, folder: RunFolder) -> None:
    """Write again what was damaged of a run that is done, unless somebody works on it."""
    if not folder.claim():
        return
    try:
        if not folder.config_is_whole():
            folder.write_config(cell.config)
        if folder.record_is_damaged:
            _mended(cell, folder)
    finally:
        folder.release()


def _mended(cell: Cell, folder: RunFolder) -> Record | None:
    """The record that takes the place of a damaged one, and what the plan knows in it.

    The configuration it is read from is written first.
    """
    folder.write_config(cell.config)
    record = folder.mend_record()
    if record is not None:
        fresh = _fresh(cell)
        record.method, record.choices = fresh.method, fresh.choices
        record.label, record.overrides = fresh.label, fresh.overrides
        folder.write_record(record)
    return record


def _how_to_follow(sweep: Plan) -> str:
    more = (
        "; the cells that use what is still to be chosen follow with the same command"
        if sweep.undecided
        else ""
    )
    return (
        f"dks sweep status {sweep.name} shows how they do, wait and cancel do what they say{more}"
    )


def _show(sweep: Plan, present: Callable[[str, Manifest], None]) -> None:
    if sweep.has_table:
        for part in sweep.parts:
            present(sweep.cells[0].config.results_dir, part.manifest())
        return
    cell = sweep.cells[0]
    state, record = look_up(cell.config.runs_dir, cell.cell_id)
    console().print(
        run_summary(state, record, Path(cell.config.runs_dir) / cell.cell_id), soft_wrap=True
    )


def run_summary(state: State, record: Record | None, folder: Path) -> str:
    """The errors of every classifier of a single run."""
    if record is None or state is not State.done:
        return f"{folder}: {state.value}"
    best = RunFolder(folder).best(record)
    lines = [f"{folder}  {error_head(record.final)} test error in %, last epoch (its best epoch)"]
    for key in record.final:
        if key.startswith("test/top1_error"):
            ending = classifier_ending(key)
            name = ending.lstrip("_") or "c1"
            lines.append(f"  {name}  {error_text(record.final, ending, width=6)}")
            if key in best:
                lines[-1] += (
                    f"   ({error_text(best, ending)} in epoch {best[f'epoch{ending}']:.0f})"
                )
    return "\n".join(lines)
