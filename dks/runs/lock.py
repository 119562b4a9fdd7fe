"""Locks of a run.

Whether somebody holds one, for whoever only looks, and the one of whoever sends it to MLflow.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dks.runs.disk import FORBIDDEN


def is_held(lock: FileLock) -> bool:
    """Does another process, or another lock of this one, hold this lock, whose file is there?

    A file of another user that can only be read, or one on a disk that can only be read, tells it
    as well.

    Raises:
        OSError: it cannot even be read.
    """
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    except OSError as error:
        if error.errno not in FORBIDDEN:
            raise
        return _is_seen_held(lock.lock_file)
    lock.release()
    return False


def _is_seen_held(path: str) -> bool:
    import fcntl

    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        # an exclusive one may need the right to write
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


class Busy(Exception):
    """Another process is at it."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time sends a run, or moves it away.

    Another one has as long as a slow server needs.

    Raises:
        Busy: it needs longer.
    """
    try:
        with FileLock(folder / "mlflow.lock", timeout=30):
            yield
    except Timeout as error:
        raise Busy("another process is sending it") from error
