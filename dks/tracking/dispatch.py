"""What the sender's process does.

Look at the folders of its runs every few seconds, and send what is new.

The journals on disk are the queue, so nothing piles up here: one call's points are in memory, at
most. A store that fails is left alone for a while, longer each time, and asked again; runs go on
meanwhile, and what they write is there when it answers.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dks.config.errors import RequestError
from dks.config.schema import Tracking, TrackingKind
from dks.config.secrets import without_password
from dks.runs.record import RunFolder
from dks.tracking.addresses import point_at
from dks.tracking.parents import tell_sweep
from dks.tracking.shipment import DeletedRun, Draw, Shipment
from dks.tracking.store import Unavailable, open_named, reason

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

EVERY = 5.0  # seconds between two looks at a journal
FIRST = 1.0  # seconds until the first one: a run that is over sooner is sent in one piece
PICTURES = 2.0  # seconds that pictures may take at the end; a fifth of a second each
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds that a failing store is left alone


@dataclass
class Store:
    """A store, and how it has been doing."""

    tracking: Tracking
    client: MlflowClient | None = None
    experiment: str = ""
    parents: dict[tuple[str, str], str] = field(default_factory=dict)  # as `Shipment` has them
    failures: int = 0  # since it last took something
    problem: str = ""
    quiet_until: float = 0.0

    @property
    def name(self) -> str:
        return without_password(str(self.tracking.uri))

    def open(self) -> MlflowClient:
        if self.client is None:
            self.experiment, self.client = open_named(self.tracking)
        return self.client

    def failed(self, error: Exception) -> None:
        self.problem = reason(error)
        self.quiet_until = time.monotonic() + min(
            LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self.failures, 10)
        )
        self.failures += 1


@dataclass
class Run:
    """A run that is sent."""

    folder: RunFolder
    store: Store
    over: bool = False
    size: int = -1  # of its journal when all of it had been sent
    due: float = 0.0


@dataclass
class Sweep:
    """The status that the run of a sweep is to have."""

    name: str
    status: str
    store: Store


@dataclass
class Dispatch:
    """All runs and sweeps of one sender."""

    draw: Draw | None = None
    runs: dict[Path, Run] = field(default_factory=dict)  # in the order in which they get their turn
    sweeps: dict[str, Sweep] = field(default_factory=dict)
    stores: dict[tuple[str, str], Store] = field(default_factory=dict)
    # sent, but for the pictures, which wait until all else is sent
    unpictured: deque[Run] = field(default_factory=deque)
    problems: list[str] = field(default_factory=list)
    finishing: bool = False

    def open(self, values: dict[str, Any], own: bool) -> dict[str, Any]:
        """Prepare the store with these settings, which this user named or not.

        What is wrong is said as in `dks/tracking/sender.py`; it is tried again when there is
        something to send.
        """
        if own:
            point_at(str(values["uri"]))
        try:
            self._store(_tracking(values)).open()
        except RequestError as error:
            return {"refused": error.problems}
        except Unavailable as error:
            return {"silent": str(error)}
        return {}

    def obey(self, command: dict[str, Any]) -> None:
        """A command as in `dks/tracking/sender.py`, but `open` and `finish`."""
        match command:
            case {"begin": path}:
                self._begin(RunFolder(path))
            case {"end": path}:
                if (run := self.runs.get(Path(path))) is not None:
                    run.over, run.due = True, 0.0
            case {"sweep": name, "status": status, "tracking": values}:
                self.sweeps[name] = Sweep(name, status, self._store(_tracking(values)))

    def is_busy(self) -> bool:
        """Is a run under way?"""
        return not all(run.over for run in list(self.runs.values()))

    def work(self) -> float:
        """Send what is due; returns the seconds until something will be."""
        for sweep in list(self.sweeps.values()):
            self._attempt(sweep.store, partial(self._tell, sweep))
        now = time.monotonic()
        for path, run in list(self.runs.items()):
            if (
                run.due <= now
                and not self._attempt(run.store, partial(self._send, run))
                and path in self.runs
            ):
                self.runs[path] = self.runs.pop(path)  # the others have their turn before it
        if (
            not any(run.over and run.due <= time.monotonic() for run in self.runs.values())
            and not self.finishing
        ):
            self._picture()
        times = [max(run.due, run.store.quiet_until) for run in self.runs.values()]
        times += [sweep.store.quiet_until for sweep in self.sweeps.values()] + [
            run.store.quiet_until for run in self.unpictured
        ]
        return max(0.05, min([EVERY, *(each - time.monotonic() for each in times)]))

    def finish(self, patience: float) -> list[str]:
        """Send the rest, for a bounded time, and say what is left.

        A store that was silent until now is asked only once more.

        Args:
            patience: seconds; a call under way may take longer.
        """
        until, self.finishing = time.monotonic() + patience, True
        silent = [store for store in self.stores.values() if store.failures]
        for store in silent:
            store.quiet_until = 0.0
        for run in self.runs.values():
            run.due = 0.0
        while True:
            pause = self.work()
            for store in silent:
                if store.failures:
                    store.quiet_until = math.inf
            silent = []
            stores = [run.store for run in self.runs.values()] + [
                sweep.store for sweep in self.sweeps.values()
            ]
            if (
                all(store.quiet_until == math.inf for store in stores)
                or time.monotonic() + pause > until
            ):
                self._picture_until(min(until, time.monotonic() + PICTURES))
                return self._left()
            time.sleep(pause)

    def _picture_until(self, until: float) -> None:
        """Draw as many of the pictures that are left as there is time for."""
        while self.unpictured and time.monotonic() < until and self._picture():
            pass
        if self.unpictured:
            count = "1 run are" if len(self.unpictured) == 1 else f"{len(self.unpictured)} runs are"
            self.problems.append(f"the pictures of {count} left to: dks sync")

    def _picture(self) -> bool:
        """Send the pictures of one run.

        False where there is none to be drawn, or its store does not take them.
        """
        if self.draw is None or not self.unpictured:
            return False
        run = self.unpictured[0]
        if not self._attempt(run.store, lambda: self._drawn(run)):
            return False
        self.unpictured.popleft()
        return True

    def _drawn(self, run: Run) -> None:
        assert self.draw is not None
        self._shipment(run).picture(self.draw)

    def _shipment(self, run: Run) -> Shipment:
        store = run.store
        return Shipment(
            run.folder,
            store.open(),
            str(store.tracking.uri),
            store.experiment,
            parents=store.parents,
        )

    def _begin(self, folder: RunFolder) -> None:
        try:
            tracking = folder.read_config().tracking
        except Exception as error:
            self.problems.append(f"{folder.path} cannot be sent: {reason(error)}")
            return
        if tracking.kind is not TrackingKind.off:
            self.runs[folder.path] = Run(
                folder, self._store(tracking), due=time.monotonic() + FIRST
            )

    def _store(self, tracking: Tracking) -> Store:
        return self.stores.setdefault((str(tracking.uri), tracking.experiment), Store(tracking))

    def _attempt(self, store: Store, task: Callable[[], None]) -> bool:
        if time.monotonic() < store.quiet_until:
            return False
        try:
            store.open()
            task()
        except Exception as error:  # of as many kinds as there are stores and networks
            store.failed(error)
            if store.failures == 1:
                for run in self.runs.values():
                    if run.store is store:
                        _note(
                            run.folder,
                            f"{store.name} does not take what is sent: {store.problem}; it is "
                            f"tried again",
                        )
            return False
        store.failures, store.quiet_until = 0, 0.0
        return True

    def _send(self, run: Run) -> None:
        journal = run.folder.journal.path
        size = journal.stat().st_size if journal.exists() else 0
        # if nobody could say that it is over
        live = not run.over and not (self.finishing and not run.folder.is_claimed())
        if run.over or self.finishing or size != run.size:
            try:
                self._shipment(run).send(live)
            except DeletedRun as error:
                self.problems.append(
                    f"the run of cell {run.folder.cell_id} was deleted in MLflow; {error}"
                )
                run.over = True
        run.size, run.due = size, time.monotonic() + EVERY
        if run.over or self.finishing:
            del self.runs[run.folder.path]
            if self.draw is not None:
                self.unpictured.append(run)

    def _tell(self, sweep: Sweep) -> None:
        tell_sweep(sweep.store.open(), sweep.store.experiment, sweep.name, sweep.status)
        del self.sweeps[sweep.name]

    def _left(self) -> list[str]:
        """What is not sent, in lines for a person and in the logs of the runs."""
        lines = list(self.problems)
        for store in self.stores.values():
            left = [run for run in self.runs.values() if run.store is store]
            told = f"{store.name} has not got everything" + (
                f": {store.problem}" if store.problem else " in time"
            )
            for run in left:
                _note(run.folder, f"{told}; the journal is complete, and dks sync sends the rest")
            if left:
                count = "1 run" if len(left) == 1 else f"{len(left)} runs"
                lines.append(f"{told}; {count} to be completed by: dks sync")
        return lines


def _tracking(values: dict[str, Any]) -> Tracking:
    return Tracking(**{**values, "kind": TrackingKind(values["kind"])})


def _note(folder: RunFolder, line: str) -> None:
    """A line in the log of a run."""
    try:
        with folder.log_file.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')},000 WARNING {__name__}: {line}\n")
    except OSError:
        log.warning("%s: %s", folder.path, line)
