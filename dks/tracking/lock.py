"""Whether somebody holds a lock, for whoever only looks."""

from __future__ import annotations

import os

from filelock import FileLock, Timeout

from dks.tracking.disk import FORBIDDEN


def is_held(lock: FileLock) -> bool:
    """Does another process, or another lock of this one, hold this lock, whose file is there?

    A file of another user that can only be read, or one on a disk that can only be read, tells it as well.

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
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # an exclusive one may need the right to write
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
