"""Which cells exist already and in which state.

The run's own record, its lock and heartbeat, and the scheduler's word.

`state_of` holds the rules and looks at nothing; `survey` collects the signs for many cells at once.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from dks.config.errors import RequestError, short
from dks.config.names import is_cell_id
from dks.runs import heartbeat
from dks.runs.attempts import other_codes
from dks.runs.handover import recover
from dks.runs.launches import Launch, LaunchFolder
from dks.runs.record import Record, RunFolder, Status
from dks.runs.scheduler import Job, Scheduler, Stage

# Seconds without a heartbeat after which a run that nobody can see is given up; it beats every 10.
SILENT = 120.0


class State(str, Enum):
    """Where a cell stands."""

    missing = "missing"  # never begun, and nobody is about to
    queued = "queued"  # a live process or a job of the scheduler will run it
    running = "running"
    done = "done"
    failed = "failed"  # by an error, or its job ended badly
    killed = "killed"  # stopped by a signal, or its process on this machine died
    # it was begun or submitted; its heartbeat is old and the scheduler does not know it
    lost = "lost"


@dataclass(frozen=True)
class Signs:
    """What can be seen of a cell."""

    record: Record | None
    claimed: bool = False  # a live process holds its lock
    fresh: bool = False  # its heartbeat is recent
    here: bool = True  # its last attempt was on this machine, where a lock never lies
    launched: bool = False  # the launching process lives and waits for it
    # what the scheduler says of its job; None: there is no job, or the scheduler does not answer
    job: Job | None = None
    submitted: bool = False  # it was given to a scheduler


def state_of(signs: Signs) -> State:
    """The state of a cell from its signs."""
    record, stage = signs.record, signs.job.stage if signs.job else None
    if record is None:
        return State.queued if signs.claimed else State.missing
    if record.status is Status.done:
        return State.done
    if signs.claimed:
        return State.running
    if stage is Stage.pending:
        return State.queued  # for the first time, or again after a preemption
    if record.status is Status.queued:
        return _not_begun(signs, stage)
    if record.status is Status.running:
        return _silent(signs, stage)
    return State(record.status.value)


def _not_begun(signs: Signs, stage: Stage | None) -> State:
    if signs.launched or stage is Stage.running or (signs.submitted and stage is None):
        return State.queued
    if not signs.submitted:
        return State.missing  # whoever planned it is gone
    assert signs.job is not None
    return (
        State.lost
        if stage is Stage.unknown
        else State.killed
        if signs.job.was_cancelled
        else State.failed
    )


def _silent(signs: Signs, stage: Stage | None) -> State:
    """The record says running, and no lock is seen."""
    if stage is Stage.ended:
        assert signs.job is not None
        return State.killed if signs.job.was_cancelled else State.failed
    if signs.here and not signs.submitted:
        return State.killed
    return State.running if signs.fresh and not signs.here else State.lost


def has_diverged(record: Record | None) -> bool:
    """Did it fail because its loss was no finite number any more? Begun again, it would do so
    again.
    """
    return (
        record is not None
        and record.status is Status.failed
        and (record.error or {}).get("type") == "NonFiniteLoss"
    )


def to_launch(state: State) -> bool:
    """Is this cell to be run by somebody who asks for it now?"""
    return state not in (State.done, State.running, State.queued)


@dataclass(frozen=True)
class Standing:
    """One cell: its state, and what that was read from."""

    state: State
    folder: RunFolder
    record: Record | None
    job_id: str | None = None
    job: Job | None = None
    launch: LaunchFolder | None = None

    @property
    def goes_on(self) -> bool:
        """Is it an unfinished run that nobody works on, and that would go on from a checkpoint?"""
        return (
            to_launch(self.state) and self.record is not None and self.folder.checkpoints.is_dir()
        )

    def other_codes(self) -> tuple[str | None, ...]:
        """The codes that computed what is there and are not today's, if it is done or would go on.

        None: one is not known.
        """
        if self.record is None or not (self.state is State.done or self.goes_on):
            return ()
        return tuple(other_codes(self.record.attempts))


def survey(
    runs_dir: str, cell_ids: Iterable[str], scheduler: Scheduler | None = None
) -> dict[str, Standing]:
    """Where these cells stand.

    The scheduler is asked once, and only if jobs were submitted for some that are not done.

    A damaged record is reported, and what the other files of its folder say counts.

    Raises:
        RequestError: a record or `runs_dir` cannot be read.
    """
    folders = {cell_id: RunFolder(Path(runs_dir) / cell_id) for cell_id in cell_ids}
    # of thousands of cells that were never begun, none is looked for on its own
    begun = _names_in(runs_dir)
    records = {
        cell_id: folder.read_record() if cell_id in begun else None
        for cell_id, folder in folders.items()
    }
    open_records = [
        record
        for record in records.values()
        if record is not None and record.status is not Status.done
    ]
    scheduler = scheduler or Scheduler()
    launches = _launches(open_records, scheduler)
    job_ids = {
        cell: job
        for _, launch, _ in launches.values()
        if launch is not None
        for cell, job in launch.jobs().items()
    }
    places = {
        cell_id: str(folder.path.absolute()) for cell_id, folder in folders.items() if launches
    }
    jobs = scheduler.jobs({job_ids[place] for place in places.values() if place in job_ids})
    host = socket.gethostname()
    standings = {}
    for cell_id, folder in folders.items():
        record = records[cell_id]
        job_id = job_ids.get(places.get(cell_id, ""))
        job = jobs.get(job_id) if job_id else None
        if job is not None and job.stage in (Stage.ended, Stage.unknown):
            record = folder.read_record()  # it may have ended well since the record was read
        if record is None or record.status is Status.done:
            launch_folder = (
                LaunchFolder(record.launch) if record is not None and record.launch else None
            )
            # somebody is about to begin it
            claimed = record is None and cell_id in begun and folder.is_claimed()
            standings[cell_id] = Standing(
                state_of(Signs(record, claimed)), folder, record, launch=launch_folder
            )
            continue
        launch_folder, launch, alive = launches.get(record.launch or "", (None, None, False))
        age = heartbeat.age(folder.path)
        signs = Signs(
            record,
            claimed=folder.is_claimed(),
            fresh=age is not None and age < SILENT,
            here=not record.attempts or record.attempts[-1].host == host,
            launched=alive,
            job=job,
            submitted=job_id is not None,
        )
        standings[cell_id] = Standing(state_of(signs), folder, record, job_id, job, launch_folder)
    return standings


def survey_all(places: Iterable[tuple[str, str]]) -> dict[str, Standing]:
    """Where cells stand that may lie in several folders; `places`.

    The `runs_dir` and the id of each.

    Raises:
        RequestError: a record cannot be read.
    """
    together: dict[str, dict[str, None]] = {}
    for runs_dir, cell_id in places:
        together.setdefault(runs_dir, {})[cell_id] = None
    standings: dict[str, Standing] = {}
    for runs_dir, cell_ids in together.items():
        standings |= survey(runs_dir, cell_ids)
    return standings


def look_up(runs_dir: str, cell_id: str) -> tuple[State, Record | None]:
    """The state and the record of one cell.

    Raises:
        RequestError: its record cannot be read.
    """
    standing = survey(runs_dir, [cell_id])[cell_id]
    return standing.state, standing.record


def finished_run(runs_dir: Path | str, cell_id: str) -> tuple[RunFolder, Record]:
    """The folder and the record of a run that is done.

    Raises:
        RequestError: there is no such run, it is not done, or its record cannot be read.
    """
    if not is_cell_id(cell_id):
        raise RequestError(
            f"CELL_ID={short(cell_id)} is no id of a cell; they are the names of the folders in "
            f"{runs_dir}"
        )
    state, record = look_up(str(runs_dir), cell_id)
    if record is None:
        raise RequestError(f"there is no run {cell_id} in {runs_dir}")
    if state is not State.done:
        raise RequestError(
            f"run {cell_id} in {runs_dir} is {state.value}, not done: it has no trained weights yet"
        )
    return RunFolder(Path(runs_dir) / cell_id), record


def _names_in(folder: str) -> set[str]:
    try:
        return {path.name for path in Path(folder).iterdir()}
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise RequestError(f"runs_dir={folder} cannot be read: {error.strerror}") from error


def _launches(
    records: Iterable[Record], scheduler: Scheduler
) -> dict[str, tuple[LaunchFolder, Launch | None, bool]]:
    """The launches that these records name, each read once.

    Folder, content if it can be read, and whether it is alive.
    """
    found: dict[str, tuple[LaunchFolder, Launch | None, bool]] = {}
    for path in {record.launch for record in records if record.launch is not None}:
        folder = LaunchFolder(path)
        try:
            alive = folder.is_alive()
            if not alive:
                # it may have died between submitting and writing the ids down
                recover(folder, scheduler)
            found[path] = (folder, folder.read(), alive)
        except RequestError:
            found[path] = (folder, None, False)
    return found
