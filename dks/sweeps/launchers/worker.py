"""Runs cells.

In this process for whoever calls `run_cells`, or in a worker process of the pool in
`dks/sweeps/launchers/slots.py`.

A worker process is forked by `dks/sweeps/launchers/nursery.py`. It takes commands on standard
input, one JSON object a line: {"run": "<cell folder>"}. Everything it says goes through a pipe, one
JSON object a line, and never through its output, where anybody may print:

{"event": "ready"}                                           cells can come
{"event": "run"}                                             the run of the cell begins
{"event": "started", "epochs": 3, "images": 640, "finished": 0}
{"event": "stepped", "images": 128}                          since the last one, some five times a
second {"event": "recorded", "entry": "<a line of the journal>"} {"event": "finished", "status":
"done", "error": null}       as in the record, which says more {"event": "track", "what": "decoding
images", "done": 3, "total": 10} {"event": "say", "line": "...", "urgent": false} {"event": "over",
"error": null}                             the worker has no cell any more; error: of a run that
never began {"event": "interrupted"}                                     a signal came; the run is
saved, and the worker leaves
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from dks.config.errors import RequestError
from dks.config.schema import Tracking, TrackingKind
from dks.config.secrets import without_password
from dks.runs import damage
from dks.runs.journal import Entry
from dks.runs.launches import LaunchFolder
from dks.runs.record import Record, RunFolder
from dks.runs.terminal import Display, say, shown_by
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
    return Tracking(TrackingKind.off)  # whoever runs it says what is wrong with it


def _run_cell(folder: RunFolder) -> None:
    from dks.training.run import Outcome, run_cell

    launch = launch_of(folder)
    if launch is not None and launch.should_stop():
        return
    retries = 0 if launch is None else launch.read().retries
    with _logging_to(folder.log_file):
        try:
            for retry in range(1, retries + 1):
                if run_cell(folder.path) is not Outcome.failed:
                    return
                Display.current().say(
                    f"cell {folder.cell_id} is tried again ({retry} of {retries})"
                )
            failed = run_cell(folder.path) is Outcome.failed
        except Exception:
            log.exception("the run could not begin")
            if launch is not None:
                launch.note_failure(folder.cell_id)
            raise
    if failed and launch is not None:
        launch.note_failure(folder.cell_id)


def launch_of(folder: RunFolder) -> LaunchFolder | None:
    """The launch that queued a cell; None where it was queued without one."""
    record = folder.read_record()
    return None if record is None or record.launch is None else LaunchFolder(record.launch)


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Log records of level INFO and above go into this file.

    The terminal belongs to the display.
    """
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
    """What an error of a library says may have the URI of a store in it; its traceback as well."""

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
    """A display in the process at the other end of a pipe."""

    def __init__(self, pipe: int) -> None:
        self._pipe: int | None = pipe

    def send(self, event: str, **values: Any) -> None:
        """One message. When nobody listens any more it is dropped.

        A run does not end because nobody looks.
        """
        rest = (json.dumps({"event": event, **values}) + "\n").encode()
        try:
            while rest and self._pipe is not None:
                rest = rest[os.write(self._pipe, rest) :]
        except BrokenPipeError:
            self._pipe = None

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
                self.send("track", what=what, done=done, total=total)
            yield item
        self.send("track", what=what, done=total, total=total)

    def say(self, line: str, urgent: bool = False) -> None:
        """A line that stays."""
        self.send("say", line=line, urgent=urgent)


class RemoteView:
    """The view of one run, at the other end of a pipe."""

    def __init__(self, display: RemoteDisplay) -> None:
        self._display = display
        # seen since the last message, and when that was
        self._images, self._sent = 0, time.monotonic()

    def started(self, epochs: int, images: int, finished: int) -> None:
        """Training begins."""
        self._display.send("started", epochs=epochs, images=images, finished=finished)

    def stepped(self, images: int) -> None:
        """A step was taken."""
        self._images += images
        if time.monotonic() - self._sent > MESSAGE_EVERY:
            self._flush()

    def recorded(self, entry: Entry) -> None:
        """An epoch is finished."""
        self._flush()
        self._display.send("recorded", entry=entry.to_json())

    def finished(self, record: Record) -> None:
        """The run is over, however it ended. Where the disk is full its record may say less."""
        self._display.send("finished", status=record.status.value, error=record.error)

    def _flush(self) -> None:
        self._display.send("stepped", images=self._images)
        self._images, self._sent = 0, time.monotonic()


class Commands:
    """The commands on standard input. Where they end, the run under way is asked to stop.

    Who gave them has gone.
    """

    def __init__(self) -> None:
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
        # a file of its own: at the end sys.stdin must not be in use
        with open(0, closefd=False, encoding="utf-8") as lines:
            for line in lines:
                self._folders.put(Path(json.loads(line)["run"]))
        self._ended = True
        self._folders.put(None)
        if self._busy:
            os.kill(os.getpid(), signal.SIGTERM)


def main(pipe: int) -> None:
    """The life of a worker process, which talks through this pipe."""
    display, commands = RemoteDisplay(pipe), Commands()
    faulthandler.enable()  # a crash in native code says where
    display.send("ready")
    with shown_by(display), sent_elsewhere():  # by the process that has the pool
        for folder in commands:
            _print_into(RunFolder(folder).log_file)
            try:
                run_cells([folder])
            except KeyboardInterrupt:
                display.send("interrupted")
                return
            except Exception as error:
                problem: str | None = without_password(f"{type(error).__name__}: {error}")
            else:
                problem = None
            _flush()
            display.send("over", error=problem)


def open_log(path: Path) -> BinaryIO:
    """A run's log, for what is printed; where it cannot be opened, that is lost."""
    try:
        damage.make_way(path)
        return path.open("ab")
    except OSError:
        return Path(os.devnull).open("ab")


def _print_into(path: Path) -> None:
    """From now on everything that is printed, here or in native code, goes into this file."""
    _flush()
    with open_log(path) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _flush() -> None:
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
