"""Which cells exist already and in which state. Pure rules over what the run folders say."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from dks.tracking.record import Record, RunFolder, Status


class State(str, Enum):
    """Where a cell stands."""

    missing = "missing"  # never begun
    queued = "queued"  # planned by somebody who has not begun it
    running = "running"  # a live process works on it
    done = "done"
    failed = "failed"
    killed = "killed"  # stopped by a signal, or its process died


def state_of(record: Record | None, claimed: bool) -> State:
    """The state of a cell from its record and from whether a live process holds its lock."""
    if claimed:
        return State.running
    if record is None:
        return State.missing
    if record.status is Status.running:
        return State.killed  # it says running, but nobody is
    return State(record.status.value)


def to_launch(state: State) -> bool:
    """Is this cell to be run by somebody who asks for it now?"""
    return state not in (State.done, State.running)


def look_up(runs_dir: str, cell_id: str) -> tuple[State, Record | None]:
    """The state and the record of one cell.

    Raises:
        RequestError: its record is damaged.
    """
    folder = RunFolder(Path(runs_dir) / cell_id)
    record = folder.read_record()
    claimed = record is not None and record.status is not Status.done and folder.is_claimed()
    return state_of(record, claimed), record
