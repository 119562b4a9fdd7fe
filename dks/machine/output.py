"""Standard streams that outlive who reads them.

What cannot be written any more is lost, and nothing else is.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class _Lasting(io.FileIO):
    """A file whose reader may leave, whose disk may be full and whose terminal may be gone."""

    lost: OSError | None = None  # why something could not be written

    def write(self, content: Any) -> int:
        try:
            written = super().write(content)
            if written is None:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return written
        except OSError as error:
            self.lost = self.lost or error
            return memoryview(content).nbytes


_output: _Lasting | None = None


def outlive_readers() -> None:
    """From now on printing raises nothing, however standard output and standard error are."""
    global _output
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # it was closed, and the next file that is opened would be taken for it
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    _output = _Lasting(1, "w", closefd=False)
    sys.stdout = _stream(_output, sys.stdout)
    sys.stderr = _stream(_Lasting(2, "w", closefd=False), sys.stderr)


def _stream(raw: _Lasting, before: TextIO | Any) -> TextIO:
    """As Python has made the one before; where it was closed, Python made none."""
    direct = getattr(before, "write_through", False)
    return io.TextIOWrapper(
        raw if direct else io.BufferedWriter(raw),
        encoding=getattr(before, "encoding", "utf-8"),
        errors=getattr(before, "errors", "backslashreplace"),
        line_buffering=getattr(before, "line_buffering", True),
        write_through=direct,
    )


def loss() -> OSError | None:
    """Why something on standard output could not be written.

    None: nothing was lost, or nobody is there to miss it.
    """
    sys.stdout.flush()
    lost = None if _output is None else _output.lost
    return None if isinstance(lost, BrokenPipeError) else lost


@contextmanager
def kept_elsewhere() -> Iterator[None]:
    """What is printed inside this context lies in files as well, so its loss is none."""
    before = loss()
    yield
    loss()
    if _output is not None:
        _output.lost = before
