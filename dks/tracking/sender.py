"""The background process that uploads runs while they go on, and how others talk to it.

It reads what is to be sent from the folders of the runs, so the process that trains tells it of a
run's beginning and its end, and of nothing between: an epoch costs it nothing, whatever the store
does. MLflow is imported in that process only, while the other one imports torch. Of the processes
that belong together, as a sweep's workers on one machine, one has a sender for all.

`python -m dks.cli.sender` takes commands on standard input, one JSON object a line:

- `{"open": {...}, "own": true}`: this store will be used (a Tracking); it is made if it is not
  there. own: the user named it.
- `{"begin": "<run folder>"}`: its epochs are to be sent as they come.
- `{"end": "<run folder>"}`: it ended; its record says how.
- `{"sweep": "<name>", "status": "RUNNING", "tracking": {...}}`: the status of a sweep's run.
- `{"finish": 30.0}`: send the rest, for at most so many seconds, and leave.

It answers on standard output, one JSON object a line:

- `{"opened": {}}` to "open"; in it "refused": [why it cannot be used], or "silent": why it takes
  nothing now.
- `{"problems": ["<a line>"]}` to "finish": what could not be sent, for a person.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.markup import escape

from dks.config.errors import RequestError
from dks.config.files import python_path
from dks.config.schema import Tracking, TrackingKind
from dks.tracking.addresses import is_pointed_at, point_at, warn_if_exposed
from dks.tracking.database import SQLITE
from dks.tracking.store import look

log = logging.getLogger(__name__)

# seconds
OPENING = 30.0  # that the process has to start, and to hear from a server
AT_ONCE = 2.0  # after which a person wants to know what is waited for
GRACE = 15.0  # that the process may take beyond the time it has for the rest, to start and to leave
HASTE = 2.0  # for the rest and for leaving where a person has interrupted the runs


class NoSender:
    """Sends nothing: `tracking=off`, or another process has the sender."""

    def open(self, tracking: Tracking) -> str | None:
        """Nothing to do."""

    def begin(self, folder: Path) -> None:
        """Nothing to do."""

    def end(self, folder: Path) -> None:
        """Nothing to do."""

    def sweep(self, name: str, status: str, tracking: Tracking) -> None:
        """Nothing to do."""


class Sender:
    """The background process, started with the first command.

    Its methods return at once and raise nothing, but for `open` and `finish`.

    Args:
        say: shows a person a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._broken: str | None = None  # why it hears nothing any more
        self._begun = False  # there is something to send
        self._answers = b""  # that were not yet read

    def open(self, tracking: Tracking) -> str | None:
        """This store will be used.

        An SQLite store that is not there is made while the caller goes on; for what a server says,
        and for what another database lacks, this waits.

        Returns why it takes nothing now; None: nothing is known against it.

        Raises:
            RequestError: it cannot be used.
        """
        point_at(str(tracking.uri))
        warn_if_exposed(str(tracking.uri))
        known = look(tracking)
        self._command(
            {"open": dataclasses.asdict(tracking), "own": is_pointed_at(str(tracking.uri))}
        )
        if known is not None or str(tracking.uri).startswith(SQLITE) or self._process is None:
            return None
        try:
            answer = self._answer("opened", OPENING)
        except (OSError, ValueError) as error:
            return f"the process that sends does not answer ({error})"
        if "refused" in answer:
            raise RequestError(*answer["refused"])
        silent: str | None = answer.get("silent")
        return silent

    def begin(self, folder: Path) -> None:
        """The epochs of this run are to be sent as they come."""
        self._begun = True
        self._command({"begin": str(folder.absolute())})

    def end(self, folder: Path) -> None:
        """This run ended."""
        self._command({"end": str(folder.absolute())})

    def sweep(self, name: str, status: str, tracking: Tracking) -> None:
        """The run that stands for a sweep is to have a status, as MLflow names it."""
        self._command({"sweep": name, "status": status, "tracking": dataclasses.asdict(tracking)})

    def finish(self, patience: float, hurry: bool = False) -> list[str]:
        """Wait until all is sent, or for a bounded time; the process is gone then.

        It may be in the middle of something: a store is made as a whole or not at all.

        Returns what could not be sent, in lines for a person.

        Args:
            patience: seconds that the process has for the rest.
            hurry: a person has interrupted the runs.
        """
        process = self._process
        if process is None:
            return [self._loss()] if self._broken else []
        try:
            if not hurry:
                return self._finish(process, patience, GRACE)
            rest = min(patience, HASTE / 2)
            return self._finish(process, rest, HASTE / 2) if self._begun else []
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with suppress(OSError):  # what could not be written is lost with the process
                    pipe.close()

    def _finish(self, process: subprocess.Popen[bytes], patience: float, grace: float) -> list[str]:
        self._command({"finish": patience})
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()
        try:
            try:
                problems: list[str] = self._answer("problems", AT_ONCE)
            except TimeoutError:
                if patience + grace <= AT_ONCE:
                    raise
                self._say(f"sending the rest to MLflow, {patience:.0f} s at most")
                problems = self._answer("problems", patience + grace)
        except (OSError, ValueError):  # TimeoutError is an OSError
            return [self._loss()]
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace)
        return problems

    def _answer(self, key: str, seconds: float) -> Any:
        """What the process says under this key.

        Raises:
            TimeoutError: it has not said it in that time.
            OSError, ValueError: it is gone, or says something else.
        """
        assert self._process is not None and self._process.stdout is not None
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while True:
                line, end, rest = self._answers.partition(b"\n")
                if end:
                    self._answers = rest
                    if key in (answer := json.loads(line)):
                        return answer[key]
                elif not selector.select(max(0.0, until - time.monotonic())):
                    raise TimeoutError(f"not in {seconds:.0f} s")
                else:
                    got = os.read(self._process.stdout.fileno(), 1 << 16)
                    if not got:
                        raise BrokenPipeError("it is gone")
                    self._answers += got

    def _loss(self) -> str:
        what = self._broken or "the process that sends does not answer"
        return f"MLflow has not got everything: {what}; dks sync sends the rest"

    def _command(self, command: dict[str, Any]) -> None:
        try:
            if self._process is None:
                self._process = _start()
            assert self._process.stdin is not None
            os.write(self._process.stdin.fileno(), (json.dumps(command) + "\n").encode())
        except (OSError, ValueError) as error:
            # a full pipe, too: it has hung for thousands of runs
            if self._broken is None:
                self._broken = f"the process that sends is gone ({error})"
                log.warning("%s", self._broken)


_NOBODY = NoSender()
_current: NoSender | Sender = _NOBODY


def current() -> NoSender | Sender:
    """The sender of the runs of this process."""
    return _current


@contextmanager
def sending(tracking: Tracking, say: Callable[[str], None]) -> Iterator[NoSender | Sender]:
    """A sender for all runs inside this context: the one of the context around it, if there is one.

    Args:
        say: shows a person a line.
    """
    if _current is not _NOBODY or tracking.kind is TrackingKind.off:
        yield _current
        return
    sender, hurry = Sender(say), False
    with _as_current(sender):
        try:
            yield sender
        except KeyboardInterrupt:
            hurry = True
            raise
        finally:
            for line in sender.finish(tracking.drain_seconds, hurry):
                say(f"[yellow]tracking[/]: {escape(line)}")


@contextmanager
def sent_elsewhere() -> Iterator[None]:
    """Inside this context another process has the sender of the runs."""
    with _as_current(NoSender()):
        yield


@contextmanager
def _as_current(sender: NoSender | Sender) -> Iterator[None]:
    global _current
    before, _current = _current, sender
    try:
        yield
    finally:
        _current = before


def _start() -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        # -P: a module in the current folder must not take the place of one of Python's own.
        [sys.executable, "-P", "-m", "dks.cli.sender"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what matters stands in the run.log of the runs
        env={**os.environ, "PYTHONPATH": python_path(os.environ.get("PYTHONPATH", ""))},
        start_new_session=True,  # Ctrl-C in the terminal does not reach it
    )
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)
    return process
