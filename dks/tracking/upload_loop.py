"""The loop that uploads runs: `dks sync` does it once, the background process until runs are over.

The journals on disk are the queue, so nothing piles up here: the points of one call are in memory,
at most. A store that fails is left alone for a while, longer each time, and asked again; runs go on
meanwhile, and what they write is there when it answers.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sized
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from dks.config.errors import RequestError
from dks.config.schema import Tracking, TrackingKind
from dks.config.secrets import without_password
from dks.runs.record import RunFolder
from dks.tracking.addresses import point_at, warn_if_exposed
from dks.tracking.destination import Destination
from dks.tracking.store import Unavailable, all_cells, open_named, reason
from dks.tracking.upload import DeletedRun, Draw, upload, upload_pictures
from dks.tracking.upload_state import UploadState

T = TypeVar("T")
log = logging.getLogger(__name__)

EVERY = 5.0  # seconds between two looks at a journal
FIRST = 1.0  # seconds until the first one: a run that is over sooner is sent in one piece
PICTURES = 2.0  # seconds that pictures may take at the end; a fifth of a second each
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds that a failing store is left alone
MAX_FAILURES = 2  # running, after which `dks sync` asks a store no more


@dataclass
class Store:
    """A store that runs are uploaded to, and how it has been doing."""

    tracking: Tracking
    once: bool = False  # after `MAX_FAILURES`, or where it cannot be opened, it is given up
    bulk: bool = False  # all its runs are asked for at once
    destination: Destination | None = None
    failures: int = 0  # since it last took something
    problem: str = ""
    is_reported: bool = False  # the logs of its runs say that it fails
    quiet_until: float = 0.0

    @property
    def name(self) -> str:
        return without_password(str(self.tracking.uri))

    def open(self) -> Destination:
        """Prepared, once.

        Raises:
            RequestError, Unavailable: it cannot be used; it does not answer, or not to us.
        """
        if self.destination is None:
            warn_if_exposed(str(self.tracking.uri))
            experiment, client = open_named(self.tracking)
            runs = all_cells(client, experiment, deleted=True) if self.bulk else ()
            known = {run.info.run_id: run for run in runs}
            self.destination = Destination(client, str(self.tracking.uri), experiment, known)
        return self.destination

    def attempt(self, task: Callable[[Destination], T]) -> T:
        """Ask it for something, unless it is to be left alone.

        Raises:
            DeletedRun: of the task.
            Unavailable: why it did not do it, in a line.
        """
        if time.monotonic() < self.quiet_until:
            raise Unavailable(self.problem)
        try:
            done = task(self.open())
        except DeletedRun:
            self.failures = 0
            raise
        except Exception as error:  # of as many kinds as there are stores and networks
            self.fail(error)
            raise Unavailable(self.problem) from error
        self.failures, self.quiet_until = 0, 0.0
        return done

    def fail(self, error: Exception) -> None:
        """Leave it alone for a while."""
        self.problem, self.failures = reason(error), self.failures + 1
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self.failures - 1, 10))
        if self.once:
            is_gone = self.destination is None or self.failures >= MAX_FAILURES
            pause = math.inf if is_gone else 0.0
        self.quiet_until = time.monotonic() + pause


@dataclass(frozen=True)
class Uploaded:
    """What came of one run."""

    cell_id: str
    uri: str | None  # of the store; None with tracking=off
    points: int = 0  # that were sent
    status: str | None = None  # as MLflow has it now
    # something besides points was sent: that the run is there, goes on or ended
    told: bool = False
    problem: str | None = None
    superseded: str | None = None  # the number of an execution whose place another one has taken


@dataclass
class Run:
    """A run that is uploaded."""

    folder: RunFolder
    store: Store
    over: bool = False
    size: int = -1  # of its journal when all of it had been sent
    due: float = 0.0


def upload_run(
    run: Run, *, dead: bool = False, check: bool = False, draw: Draw | None = None
) -> Uploaded:
    """One run, of which its store may take nothing."""
    folder = run.folder

    def task(store: Destination) -> tuple[int, bool]:
        points = upload(folder, store, live=not run.over, dead=dead, check=check)
        return points, draw is not None and upload_pictures(folder, store, draw)

    before = UploadState.read(folder)
    number = folder.path.name if folder.is_superseded else None
    try:
        points, has_new_pictures = run.store.attempt(task)
    except (DeletedRun, Unavailable) as error:
        what = "it was deleted in MLflow; " if isinstance(error, DeletedRun) else ""
        return Uploaded(folder.cell_id, run.store.name, problem=f"{what}{error}", superseded=number)
    after = UploadState.read(folder)
    told = has_new_pictures or _known(before) != _known(after)
    status = None if after is None else after.status
    return Uploaded(folder.cell_id, run.store.name, points, status, told, superseded=number)


def _known(state: UploadState | None) -> object:
    """What a store knows of a run besides points and pictures."""
    return state and (state.run_id, state.status, state.ended, state.superseded, state.cell_id)


@dataclass
class UploadLoop:
    """All runs and sweeps of one background process."""

    draw: Draw | None = None
    runs: dict[Path, Run] = field(default_factory=dict)  # in the order in which they get their turn
    sweeps: dict[str, tuple[str, Store]] = field(default_factory=dict)  # name -> status, store
    stores: dict[tuple[str, str], Store] = field(default_factory=dict)
    # sent, but for the pictures, which wait until all else is sent
    unpictured: deque[Run] = field(default_factory=deque)
    problems: list[str] = field(default_factory=list)
    finishing: bool = False

    def handle(self, command: dict[str, Any]) -> dict[str, Any] | None:
        """A command as in `dks/tracking/sender.py`, but `finish`; returns the answer to `open`."""
        match command:
            case {"open": values, "own": is_own}:
                return {"opened": self._open(values, is_own)}
            case {"begin": path}:
                self._begin(RunFolder(path))
            case {"end": path}:
                if (run := self.runs.get(Path(path))) is not None:
                    run.over, run.due = True, 0.0
            case {"sweep": name, "status": status, "tracking": values}:
                self.sweeps[name] = status, self._store(_tracking(values))
        return None

    def is_busy(self) -> bool:
        """Is a run under way?"""
        return not all(run.over for run in list(self.runs.values()))

    def work(self) -> float:
        """Send what is due; returns the seconds until something will be."""
        for name, (status, store) in list(self.sweeps.items()):
            with suppress(Unavailable):
                store.attempt(partial(Destination.set_sweep_status, sweep=name, status=status))
                del self.sweeps[name]
        now = time.monotonic()
        for run in [run for run in self.runs.values() if run.due <= now]:
            self._send(run)
        now = time.monotonic()
        is_late = any(run.over and run.due <= now for run in self.runs.values())
        if not self.finishing and not is_late:
            self._picture()
        self._report_failures()
        times = [max(run.due, run.store.quiet_until) for run in self.runs.values()]
        times += [store.quiet_until for _, store in self.sweeps.values()]
        times += [run.store.quiet_until for run in self.unpictured]
        return max(0.05, min([EVERY, *(each - time.monotonic() for each in times)]))

    def finish(self, patience: float) -> list[str]:
        """Send the rest, for a bounded time; returns what is left, in lines for a person.

        A store that was silent until now is asked only once more.

        Args:
            patience: seconds; a call under way may take longer.
        """
        until, self.finishing = time.monotonic() + patience, True
        for store in self.stores.values():
            if store.failures:
                store.quiet_until, store.once = 0.0, True
        for run in self.runs.values():
            run.due = 0.0
        while True:
            pause = self.work()
            stores = [run.store for run in self.runs.values()]
            stores += [store for _, store in self.sweeps.values()]
            is_hopeless = all(store.quiet_until == math.inf for store in stores)
            if is_hopeless or time.monotonic() + pause > until:
                break
            time.sleep(pause)
        until = min(until, time.monotonic() + PICTURES)
        while self.unpictured and time.monotonic() < until and self._picture():
            pass
        if self.unpictured:
            self.problems.append(f"the pictures of {count(self.unpictured)} are left to: dks sync")
        return self.problems + self._left()

    def _open(self, values: dict[str, Any], is_own: bool) -> dict[str, Any]:
        if is_own:
            point_at(str(values["uri"]))
        try:
            self._store(_tracking(values)).open()
        except RequestError as error:
            return {"refused": error.problems}
        except Unavailable as error:
            return {"silent": str(error)}
        return {}

    def _begin(self, folder: RunFolder) -> None:
        try:
            tracking = folder.read_config().tracking
        except Exception as error:
            self.problems.append(f"{folder.path} cannot be sent: {reason(error)}")
            return
        if tracking.kind is not TrackingKind.off:
            due = time.monotonic() + FIRST
            self.runs[folder.path] = Run(folder, self._store(tracking), due=due)

    def _store(self, tracking: Tracking) -> Store:
        return self.stores.setdefault((str(tracking.uri), tracking.experiment), Store(tracking))

    def _send(self, run: Run) -> None:
        path, journal = run.folder.path, run.folder.journal.path
        size = journal.stat().st_size if journal.exists() else 0
        # its process may have gone without a word
        run.over = run.over or (self.finishing and not run.folder.is_claimed())
        if run.over or self.finishing or size != run.size:
            problem = upload_run(run).problem
            if problem and run.store.failures:
                self.runs[path] = self.runs.pop(path)  # the others have their turn before it
                return
            if problem:  # of this run alone: it was deleted
                self.problems.append(f"cell {run.folder.cell_id}: {problem}")
                run.over = True
        run.size, run.due = size, time.monotonic() + EVERY
        if run.over or self.finishing:
            del self.runs[path]
            if self.draw is not None:
                self.unpictured.append(run)

    def _picture(self) -> bool:
        """Send the pictures of one run.

        False where there is none to be drawn, or its store does not take them.
        """
        if self.draw is None or not self.unpictured:
            return False
        run = self.unpictured[0]
        with suppress(Unavailable):
            run.store.attempt(partial(upload_pictures, run.folder, draw=self.draw))
            self.unpictured.popleft()
            return True
        return False

    def _report_failures(self) -> None:
        """In the logs of runs whose store has begun to fail."""
        for store in self.stores.values():
            if store.failures and not store.is_reported:
                why = f"{store.name} does not take what is sent: {store.problem}"
                for run in self.runs.values():
                    if run.store is store:
                        _warn(run.folder, f"{why}; it is tried again")
            store.is_reported = store.failures > 0

    def _left(self) -> list[str]:
        """What is not sent, in lines for a person and in the logs of the runs."""
        lines = []
        for store in self.stores.values():
            left = [run for run in self.runs.values() if run.store is store]
            why = f": {store.problem}" if store.problem else " in time"
            told = f"{store.name} has not got everything{why}"
            for run in left:
                _warn(run.folder, f"{told}; the journal is complete, and dks sync sends the rest")
            if left:
                lines.append(f"{told}; {count(left)} to be completed by: dks sync")
        return lines


def count(runs: Sized) -> str:
    """Such as "1 run"."""
    return "1 run" if len(runs) == 1 else f"{len(runs)} runs"


def _tracking(values: dict[str, Any]) -> Tracking:
    return Tracking(**{**values, "kind": TrackingKind(values["kind"])})


def _warn(folder: RunFolder, line: str) -> None:
    """A line in the log of a run."""
    try:
        with folder.log_file.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')},000 WARNING {__name__}: {line}\n")
    except OSError:
        log.warning("%s: %s", folder.path, line)
