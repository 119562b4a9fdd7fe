"""Runs cells: in this process (`run_cells`), or in a worker process of the pool in
`dks/sweeps/launchers/local.py` (`main`).

The pool sends a worker lists of cell folders, which it runs one after another. The worker sends
tuples, the name of an event first:

("ready",)                              cells can come
("failed", reason)                      it cannot start, and ends
("run",)                                the run of the next cell begins
("started", epochs, images, finished)   as the methods of `dks.runs.terminal.View`; so the next two
("stepped", images)                     some five times a second, images since the last one
("recorded", entry)
("finished", status, error)             as in the record, which may be unwritable on a full disk
("track", what, done, total)            progress of something countable, such as decoded images
("say", line, urgent)
("over", error)                         the cell is over; error: of a run that never began, or None
("interrupted",)                        a signal came; the run is saved, and the worker ends
"""

from __future__ import annotations

import faulthandler
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from dks.config.errors import RequestError
from dks.config.schema import Tracking, TrackingKind
from dks.config.secrets import without_password
from dks.machine.interruption import SIGNALS
from dks.runs import damage
from dks.runs.journal import Entry
from dks.runs.launches import LaunchFolder
from dks.runs.record import Record, RunFolder
from dks.runs.terminal import say, shown_by
from dks.tracking.sender import sending, sent_elsewhere

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds between two messages about steps.
MESSAGE_EVERY = 0.2


def run_cells(folders: Sequence[Path]) -> None:
    """Run queued cells, one after another, by the rules of the launch that queued them.

    A cell that fails does not stop the others; it is tried again as often as its launch says. Cells
    that are not begun because too many have failed stay queued. Log records go into `run.log` in
    the cell's folder.

    Raises:
        Interrupted: a signal came. The record of the run under way says killed, the other cells
            stay queued.
        Exception: some cell could not even begin. It is the first such error, raised when all other
            cells are over.
    """
    errors = []
    with sending(_tracking(folders), partial(say, urgent=True)):
        for path in folders:
            try:
                _run_cell(RunFolder(path))
            except Exception as error:
                errors.append(error)
    if errors:
        raise errors[0]


def _tracking(folders: Sequence[Path]) -> Tracking:
    """Where cells that run together are tracked."""
    with suppress(RequestError):
        return RunFolder(folders[0]).read_config().tracking
    return Tracking(TrackingKind.off)  # the run will say what is wrong with its configuration


def _run_cell(folder: RunFolder) -> None:
    from dks.training.run import Outcome, run_cell  # imports torch

    launch = launch_of(folder)
    if launch is not None and launch.should_stop():
        return
    retries = 0 if launch is None else launch.read().retries
    with _logging_to(folder.log_file):
        try:
            for retry in range(retries + 1):
                if retry:
                    say(f"cell {folder.cell_id} is tried again ({retry} of {retries})")
                if run_cell(folder.path) is not Outcome.failed:
                    return
        except Exception:
            log.exception("the run could not begin")
            if launch is not None:
                launch.note_failure(folder.cell_id)
            raise
    if launch is not None:
        launch.note_failure(folder.cell_id)


def launch_of(folder: RunFolder) -> LaunchFolder | None:
    """The launch that queued a cell; None where it was queued without one."""
    record = folder.read_record()
    return None if record is None or record.launch is None else LaunchFolder(record.launch)


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Log records of level INFO and above go into this file, and not to the terminal."""
    damage.make_way(path)
    root = logging.getLogger()
    handler, level = _LogFile(path, encoding="utf-8", delay=True), root.level
    handler.setFormatter(_WithoutPasswords("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        handler.close()


class _WithoutPasswords(logging.Formatter):
    """Errors of libraries, and their tracebacks, may hold the URI of a store."""

    def format(self, record: logging.LogRecord) -> str:
        return without_password(super().format(record))


class _LogFile(logging.FileHandler):
    """A log that cannot be written, on a full disk for example, stops nothing and says nothing."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # raised where the file cannot be opened
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the name is given)
        """What `emit` could not write."""

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class RemoteDisplay:
    """A display at the other end of a connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, *message: Any) -> None:
        """Send an event; dropped when the other end is gone, for the run goes on."""
        with self._lock, suppress(OSError):
            self._connection.send(message)

    def run(self, record: Record) -> RemoteView:
        """The view of one run. The other end reads the record itself."""
        self.send("run")
        return RemoteView(self)

    def track(self, items: Iterable[T], total: int, what: str) -> Iterator[T]:
        """The items; the other end shows how many there have been."""
        sent = 0.0
        for done, item in enumerate(items):
            if time.monotonic() - sent > MESSAGE_EVERY:
                sent = time.monotonic()
                self.send("track", what, done, total)
            yield item
        self.send("track", what, total, total)

    def say(self, line: str, urgent: bool = False) -> None:
        """A line that stays."""
        self.send("say", line, urgent)


class RemoteView:
    """The view of one run, at the other end of a connection."""

    def __init__(self, display: RemoteDisplay) -> None:
        self._display = display
        # seen since the last message, and when that was
        self._images, self._sent = 0, time.monotonic()

    def started(self, epochs: int, images: int, finished: int) -> None:
        """Training begins."""
        self._display.send("started", epochs, images, finished)

    def stepped(self, images: int) -> None:
        """A step was taken."""
        self._images += images
        if time.monotonic() - self._sent > MESSAGE_EVERY:
            self._flush()

    def recorded(self, entry: Entry) -> None:
        """An epoch is finished."""
        self._flush()
        self._display.send("recorded", entry)

    def finished(self, record: Record) -> None:
        """The run is over, however it ended."""
        self._display.send("finished", record.status, record.error)

    def _flush(self) -> None:
        self._display.send("stepped", self._images)
        self._images, self._sent = 0, time.monotonic()


def main(
    connection: Connection, variables: Mapping[str, str], folder: Path, log_file: Path
) -> None:
    """The life of a worker process.

    Args:
        connection: to the pool. When the pool is gone, the run under way saves and stops.
        variables: the environment; the fork server has that of its own start.
        folder: the current folder.
        log_file: for what is printed before the first cell.
    """
    os.setsid()  # Ctrl-C in a terminal reaches the pool only; what this process starts ends with it
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    _print_into(log_file)
    faulthandler.enable()  # a crash in native code says where
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # the fork server blocks them
    display = RemoteDisplay(connection)
    try:
        import dks.training.run  # noqa: F401 (preloaded, unless that failed)
    except Exception as error:
        display.send("failed", f"{type(error).__name__}: {error}")
        raise
    display.send("ready")
    with shown_by(display), sent_elsewhere():  # by the process of the pool
        for path in _Requests(connection):
            _print_into(RunFolder(path).log_file)
            error_text = None
            try:
                run_cells([path])
            except KeyboardInterrupt:
                display.send("interrupted")
                return
            except Exception as error:
                error_text = without_password(f"{type(error).__name__}: {error}")
            _flush()
            display.send("over", error_text)


class _Requests:
    """The folders of cells that the pool sends, until it is gone."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._folders: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self._busy = self._ended = False
        threading.Thread(target=self._listen, daemon=True).start()

    def __iter__(self) -> Iterator[Path]:
        while (folder := self._folders.get()) is not None:
            self._busy = True
            if self._ended:
                return
            yield folder
            self._busy = False

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                for folder in self._connection.recv():
                    self._folders.put(folder)
        self._ended = True
        self._folders.put(None)
        if self._busy:
            os.kill(os.getpid(), signal.SIGTERM)


def _print_into(path: Path) -> None:
    """What is printed, here or in native code, goes into this file, or is lost where it cannot be
    opened.
    """
    _flush()
    try:
        damage.make_way(path)
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        file = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _flush() -> None:
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
