"""Files that anybody may have made, opened with care.

What is no file hangs nobody, and what is too large fills no memory.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

from dks.config.errors import RequestError

MIB = 2**20
# of a text that is read as a whole; what people write has some thousand bytes, a record at most
# some million
TEXT = 32 * MIB

# and all others: a device
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}


class Unfit(OSError):
    """What has the place of a file, and is none, or is larger than a file there can be."""

    def __init__(self, path: Path | str, why: str) -> None:
        super().__init__(errno.EINVAL, why, str(path))

    def __str__(self) -> str:
        return str(self.strerror)


def check_file(path: Path | str, most: int | None = None) -> None:
    """Whoever hands the path of a file to a library, which opens whatever is there, asks this
    before.

    Args:
        most: bytes that the file may have; None: any number.

    Raises:
        Unfit: it is no regular file, or is larger.
        OSError: it is not there, or cannot be looked at.
    """
    _check(path, Path(path).stat(), most)


def require_file(path: Path | str) -> None:
    """Raises a RequestError that names it where this is no regular file."""
    try:
        check_file(path)
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}") from error


def open_file(path: Path | str, most: int | None = None) -> io.BufferedReader:
    """A regular file, opened to be read; nothing else is waited for.

    Raises:
        Unfit, OSError: as `check_file`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise Unfit(path, "it is a socket where a file should be") from error
        raise
    try:
        _check(path, os.fstat(descriptor), most)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path | str, most: int = TEXT) -> bytes:
    """The content of a regular file.

    Raises:
        Unfit, OSError: as `check_file`.
    """
    with open_file(path, most) as file:
        content = file.read(most + 1)  # some files of the system have no size and no end
    check_size(path, len(content), most)
    return content


def read_text(path: Path | str, most: int = TEXT) -> str:
    """The text in a regular file, as `Path.read_text` has it.

    Raises:
        Unfit, OSError: as `check_file`.
        UnicodeDecodeError: it is not UTF-8.
    """
    return io.TextIOWrapper(io.BytesIO(read_bytes(path, most)), encoding="utf-8").read()


def _check(path: Path | str, state: os.stat_result, most: int | None) -> None:
    if not stat.S_ISREG(state.st_mode):
        raise Unfit(
            path,
            f"it is {_KINDS.get(stat.S_IFMT(state.st_mode), 'a device')} where a file should be",
        )
    check_size(path, state.st_size, most)


def check_size(path: Path | str, size: int, most: int | None) -> None:
    """Raises Unfit where so many bytes are more than there may be."""
    if most is not None and size > most:
        raise Unfit(path, f"it is larger than {most / MIB:,.0f} MiB")
