"""What a launch writes before any cell begins; of one that is refused nothing stays."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import takewhile
from pathlib import Path
from uuid import uuid4

from dks.machine.commit import git_commit
from dks.runs.launches import LaunchFolder
from dks.runs.record import Record, RunFolder, Status, write_atomically
from dks.runs.states import Standing, State
from dks.runs.superseded import complete, restore, supersede
from dks.sweeps import manifest
from dks.sweeps.cell import Cell
from dks.sweeps.command_line import command_line
from dks.sweeps.plan import Plan

# Cells that are queued at a time.
QUEUING = 8


class Launch:
    """The launch of some cells of a sweep.

    Args:
        recorded: it gets a folder, and what was asked for is written; a single run that is waited
            for needs neither.
    """

    def __init__(self, sweep: Plan, cells: Sequence[Cell], recorded: bool) -> None:
        self.sweep, self.cells, self.recorded = sweep, cells, recorded
        self.folder: LaunchFolder | None = None
        self._undo = _Undo()

    def begin(self, launcher: str, retries: int, max_failures: int | None) -> None:
        """Write what was asked for, and the launch."""
        for cell in self.cells:
            self._undo.note(*_queued_files(cell.folder))
        if not self.recorded:
            return
        results_dir = self.cells[0].config.results_dir
        for asked in self.sweep.manifests():
            launches = Path(results_dir) / asked.name / "launches"
            self._undo.note(manifest.file(results_dir, asked.name), launches / "ID")
            manifest.write(asked, results_dir)
        paths = [cell.folder.path for cell in self.cells]
        self.folder = LaunchFolder.create(
            results_dir, self.sweep.name, launcher, paths, git_commit(), retries, max_failures
        )
        self._undo.note_folder(self.folder.path)

    def queue(self) -> None:
        """Freeze the configurations of its cells."""
        with ThreadPoolExecutor(QUEUING) as threads:  # most of the time is waiting for the disk
            list(threads.map(partial(queue, launch=self.folder), self.cells))

    def is_taken(self) -> None:
        """It cannot be refused any more."""
        self._undo = _Undo()

    def take_back(self) -> None:
        """Undo it, unless some of its cells have begun.

        Cells that others have queued meanwhile stay so.
        """
        path = None if self.folder is None else str(self.folder.path)
        others, replaced = list[Path](), list[RunFolder]()
        for cell in self.cells:
            folder, record = cell.folder, cell.folder.read_record()
            if record is None:
                continue
            if record.launch != path:
                others += _queued_files(folder)
            elif record.status is not Status.queued:
                return
            elif cell.anew and not record.attempts:
                replaced.append(folder)
        for folder in replaced:
            if folder.claim():
                try:
                    restore(folder)
                finally:
                    folder.release()
        self._undo.undo(others)

    def release(self) -> None:
        """The process that launched it leaves it."""
        if self.folder is not None:
            self.folder.lock.release()


def _queued_files(folder: RunFolder) -> list[Path]:
    return [folder.record_file, folder.config_file, folder.path / "lock"]


class _Undo:
    """Files as they were before they were written, and folders that were not there."""

    def __init__(self) -> None:
        self._before: dict[Path, bytes | None] = {}  # None: it was not there
        self._made: set[Path] = set()
        self._trees: list[Path] = []

    def note(self, *files: Path) -> None:
        """These are about to be written."""
        for file in files:
            missing = set(takewhile(lambda folder: not folder.exists(), file.parents))
            self._made |= missing
            self._before[file] = file.read_bytes() if not missing and file.is_file() else None

    def note_folder(self, folder: Path) -> None:
        """It was made, and all that will be in it belongs to the launch."""
        self._trees.append(folder)

    def undo(self, but: Collection[Path]) -> None:
        """As far as possible; `but` stay as they are."""
        for folder in self._trees:
            shutil.rmtree(folder, ignore_errors=True)
        for file in self._before.keys() - set(but):
            with suppress(OSError, ValueError):
                if (content := self._before[file]) is None:
                    file.unlink(missing_ok=True)
                elif content != file.read_bytes():
                    write_atomically(file, content.decode())
        for folder in sorted(self._made, key=lambda folder: len(folder.parts), reverse=True):
            with suppress(OSError):  # somebody else has something there
                folder.rmdir()


def queue(cell: Cell, launch: LaunchFolder | None = None) -> None:
    """Freeze the configuration of a cell that is about to be launched, unless somebody else has
    begun it meanwhile.
    """
    folder = cell.folder
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


def mend(cell: Cell, folder: RunFolder) -> None:
    """Write again what was damaged of a run that is done, unless somebody works on it.

    Args:
        folder: as it was read after the launch; that of the plan may be from before the damage.
    """
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
