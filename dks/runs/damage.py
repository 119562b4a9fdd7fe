"""Files that were found damaged: one line says so, and what becomes of them.

Nobody is stopped by it.

The line is a log record, so in a run it stands in `run.log`; a command shows it on standard error,
once.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dks.config.errors import one_line
from dks.config.reading import Unfit, check_file

log = logging.getLogger(__name__)


def report(path: Path, line: str) -> None:
    """Say what is wrong with a file; `line` goes on after its name."""
    log.warning("%s %s", path, line)


def warn(line: str) -> None:
    """Say what else a person is to know of, in the same way."""
    log.warning("%s", line)


def set_aside(path: Path) -> Path:
    """Rename `record.json` to `record.damaged.json`, or the next name of this form that is free.

    Returns the new one.
    """
    number, kept = 1, path.with_name(f"{path.stem}.damaged{path.suffix}")
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.stem}.damaged-{number}{path.suffix}")
    return path.rename(kept)


def make_way(path: Path) -> None:
    """Where something else has taken the place of a file, such as a folder, it is set aside."""
    try:
        check_file(path)
    except Unfit as unfit:
        report(path, f"{str(unfit).removeprefix('it ')}; it is kept as {set_aside(path).name}")
    except OSError:  # nothing is there, or what writes says why not
        return


@contextmanager
def shown() -> Iterator[None]:
    """Inside this context every line is shown on standard error, the same one once."""
    handler = _Shown()
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class _Shown(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if line not in self._seen:
            self._seen.add(line)
            print(f"warning: {one_line(line)}", file=sys.stderr)
