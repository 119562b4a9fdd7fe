"""`runs/<cell_id>/superseded/<n>/`: an execution whose place another code has taken.

It enters no mean.

A move that is killed loses nothing, and the next one who works on the cell completes it: the record
goes first, so the cell counts as not begun from then on, and the last step gives the folder its
name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from dks.runs.journal import sync_folder
from dks.runs.lock import alone
from dks.runs.record import SUPERSEDED, RunFolder

# What belongs to the cell, and not to one of its executions.
STAYS = frozenset({"lock", "mlflow.lock", SUPERSEDED})
MOVING = "moving"


def supersede(folder: RunFolder) -> None:
    """Move what is there out of the way, for whoever holds the lock of the cell.

    Raises:
        Busy: another process is sending it to MLflow, and does not end.
        OSError: it cannot be moved; what was not is where it was.
    """
    with alone(folder.path):  # who sends it writes into the folder
        moving = folder.path / SUPERSEDED / MOVING
        moving.mkdir(parents=True, exist_ok=True)
        folder.record_file.replace(moving / folder.record_file.name)
    complete(folder)


def complete(folder: RunFolder) -> None:
    """End a move that was killed, for whoever holds the lock of the cell.

    Raises:
        Busy, OSError: as `supersede`.
    """
    moving = folder.path / SUPERSEDED / MOVING
    if not (moving / folder.record_file.name).exists():
        return
    with alone(folder.path):
        for path in sorted(folder.path.iterdir()):
            if path.name not in STAYS:
                path.replace(moving / path.name)
        number = max((int(each.path.name) for each in executions(folder)), default=0) + 1
        moving.rename(moving.with_name(str(number)))
        sync_folder(folder.path / SUPERSEDED)


def restore(folder: RunFolder) -> None:
    """Move the last execution back, over one that has not begun, for whoever holds the lock of the
    cell.

    Raises:
        Busy, OSError: as `supersede`.
    """
    moving = folder.path / SUPERSEDED / MOVING
    *_, last = executions(folder)
    with alone(folder.path):
        # from here to the last step, one that is killed leaves the execution moved away
        last.path.rename(moving)
        for path in sorted(moving.iterdir(), key=lambda path: path.name == folder.record_file.name):
            path.replace(folder.path / path.name)
        moving.rmdir()
    with suppress(OSError):  # others are there
        moving.parent.rmdir()


def executions(folder: RunFolder) -> Iterator[RunFolder]:
    """Those that were moved away, the first one first."""
    found = [path for path in (folder.path / SUPERSEDED).glob("*") if path.name.isdecimal()]
    yield from map(RunFolder, sorted(found, key=lambda path: int(path.name)))
