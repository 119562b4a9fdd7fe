"""Writing to a disk that may be full or closed to us.

Nothing half-written stays, and the error says what to do.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FULL = {errno.ENOSPC: "is full", errno.EDQUOT: "gives this user no more room"}
# another user's, or a disk that can only be read
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


class DiskFull(OSError):
    """There is no room for a file. The message is one line.

    The file, the disk, how much was to be written and is free.
    """


@contextmanager
def writing(path: Path, size: int) -> Iterator[None]:
    """Around the writing of a file.

    What is left of a failed attempt must be gone before the error leaves this context.

    Args:
        size: what is to be written, bytes.

    Raises:
        DiskFull: there is no room for it.
        OSError: it cannot be written for another reason; the error names the file.
    """
    try:
        yield
    except DiskFull:
        raise
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(_line(path, size, _FULL[error.errno])) from error
        if error.errno == errno.EFBIG and (limit := size_limit()):
            raise DiskFull(
                f"{path} cannot be written: {limit}; then the same command goes on"
            ) from error
        error.filename = str(path)  # and not that of a draft
        raise


def size_limit() -> str | None:
    """The limit that this process has on the size of a file, and what to do.

    None: there is none.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return (
        None
        if limit == resource.RLIM_INFINITY
        else f"a file may have {_amount(limit)} at most (ulimit -f); raise that limit"
    )


def refusal(folder: Path) -> str | None:
    """Why nothing can be written into a folder, or into the one that it would be made in.

    None: nothing is known against it. Nothing is written.
    """
    try:
        place = next(
            each for each in (folder.absolute(), *folder.absolute().parents) if each.exists()
        )
        if not place.is_dir():
            return f"{place} is not a folder"
        if os.access(place, os.W_OK | os.X_OK):
            return None
        return os.strerror(errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES)
    except OSError as error:
        return error.strerror


def write_draft(draft: Path, path: Path, *parts: bytes | memoryview) -> None:
    """Write a file that is to take the place of another one.

    It is on disk when this returns, or not there if this fails.

    Args:
        draft: the file to write.
        path: the one whose place it will take, for the message.
        parts: its content, one after another.

    Raises:
        DiskFull, OSError: as `writing`.
    """
    with writing(path, sum(len(part) for part in parts)):
        try:
            # whatever lies there under its name, a link for one, is not written to
            draft.unlink(missing_ok=True)
            with draft.open("xb", buffering=0) as file:
                for part in parts:
                    write_all(file.fileno(), part)
                os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise


def write_all(descriptor: int, content: bytes | memoryview) -> None:
    """Write all of it; the system may take it in parts."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _line(path: Path, size: int, state: str) -> str:
    folder = next(each for each in path.absolute().parents if each.is_dir())
    mount = next(each for each in (folder, *folder.parents) if os.path.ismount(each))
    free = _amount(shutil.disk_usage(folder).free)
    return (
        f"{path} cannot be written: the disk at {mount} {state} ({_amount(size)} to write, "
        f"{free} free); "
        "make room, then the same command goes on"
    )


def _amount(count: int) -> str:
    """1 bytes, 12.3 KiB, ..."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{count} bytes"
