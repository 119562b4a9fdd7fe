"""Several cells at a time on this machine, in worker processes that run cell after cell.

Workers (`dks/sweeps/launchers/worker.py`) are forked by the fork server of `multiprocessing`, which
imports torch once (`dks/sweeps/launchers/preload.py`). Each has a pipe of its own to the pool,
which hands cells out, shows what the workers tell, and cleans up after a worker that dies.
"""

from __future__ import annotations

import multiprocessing.util
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from rich.markup import escape

from dks.config.errors import RequestError
from dks.config.files import python_path
from dks.machine.interruption import Interrupted, Interruption
from dks.runs import damage
from dks.runs.record import Record, RunFolder, Status
from dks.runs.terminal import CountView, Display, RunView
from dks.sweeps.launchers import worker
from dks.sweeps.launchers.fork_server import start_server, without_main
from dks.sweeps.launchers.worker import launch_of
from dks.tracking import sender

# Seconds between two looks at which workers are alive.
LOOK_EVERY = 0.2
# Seconds that the lock of a cell may stay taken after its worker died.
GRACE = 5.0
# What multiprocessing takes for the exit status of a process whose fork server was killed.
SERVER_DIED = 255


@dataclass(frozen=True)
class Layout:
    """How a machine is divided."""

    slots: int  # workers
    threads: int  # CPU threads of each, unless a cell says otherwise
    cores: int  # threads that all running cells may have together; a single cell may have more
    # given to the slots in turn, as CUDA_VISIBLE_DEVICES; none: the variable stays as it is
    gpus: tuple[str, ...] = ()


def lay_out(
    cells: int, cores: int, gpus: Sequence[str], slots: int | None = None, slots_per_gpu: int = 1
) -> Layout:
    """Divide a machine among that many cells, by default so that they never have more threads than
    there are cores.

    Args:
        cells: at least 1.
        cores: CPU threads to divide.
        gpus: as CUDA_VISIBLE_DEVICES names them; empty: the cells compute on the CPU.
        slots: how many cells at a time; None: one for every core, or `slots_per_gpu` for every GPU.
        slots_per_gpu: how many cells share a GPU.

    Raises:
        RequestError: a number is below 1.
    """
    for name, value in (("slots", slots), ("slots_per_gpu", slots_per_gpu)):
        if value is not None and value < 1:
            raise RequestError(f"hydra.launcher.{name}={value}: it must be at least 1")
    count = min(cells, slots or (len(gpus) * slots_per_gpu if gpus else cores))
    threads = max(1, cores // count)
    return Layout(count, threads, max(cores, count * threads), tuple(gpus))


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    CUDA is not initialised.
    """
    if not _has_driver():  # there is no need for torch, whose import takes seconds
        return ()
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(named.split(",")[:count] if named is not None else map(str, range(count)))


def _has_driver() -> bool:
    # the latter under WSL
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def environment(given: Mapping[str, str], layout: Layout, slot: int) -> dict[str, str]:
    """The environment of a worker: its threads, its GPU, and where this package is."""
    path = python_path(given.get("PYTHONPATH", ""))
    variables = {**given, "OMP_NUM_THREADS": str(layout.threads), "PYTHONPATH": path}
    if layout.gpus:
        variables["CUDA_VISIBLE_DEVICES"] = layout.gpus[slot % len(layout.gpus)]
    return variables


def run_in_slots(
    folders: Sequence[Path], layout: Layout, display: Display
) -> dict[Path, Exception]:
    """Run queued cells of one launch, `layout.slots` at a time, beginning them in the given order.

    Returns the errors of cells that could not begin; a run that fails says so in its record.

    Raises:
        Interrupted: one of `dks.machine.interruption.SIGNALS` came. The running cells have saved
            and stopped, the others stay queued.
        KeyboardInterrupt: Ctrl-C came a second time. The workers were killed at once.
        RuntimeError: no worker process could be started.
    """
    with Interruption() as interruption:
        pool = _Pool(folders, layout, display, interruption)
        try:
            try:
                pool.work()
            except Exception:
                pool.end()
                raise
            pool.end()
        except KeyboardInterrupt:
            pool.kill()
            raise
        interruption.check()
    return pool.errors


class _Worker:
    """A worker process and the cells that it was given."""

    def __init__(self, slot: int, variables: Mapping[str, str], log_file: Path) -> None:
        """Start it, which waits until the fork server has imported.

        Raises:
            OSError, EOFError: the fork server died.
        """
        start_server()
        self.connection, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("forkserver").Process(
            target=worker.main, args=(theirs, variables, Path.cwd(), log_file.absolute())
        )
        with theirs, without_main():
            self.process.start()
        self.slot = slot
        self.ready = False  # it has said so
        self.leaving = False
        self.cells: list[RunFolder] = []  # the first one is under way
        self.threads = 0  # of its cells
        self.view: RunView | None = None
        self.counted: CountView | None = None
        self.reason: str | None = None  # why it cannot start
        self._closed = False  # the other end of the connection

    def begin(self, cells: list[RunFolder], threads: int) -> None:
        """Hand it cells."""
        self.cells, self.threads = cells, threads
        for cell in cells:  # here, for what a worker says of it would be lost
            damage.make_way(cell.log_file)
        with suppress(OSError):  # it has just died, which will be noticed
            self.connection.send([cell.path.absolute() for cell in cells])

    def receive(self) -> list[tuple[Any, ...]]:
        """The messages that have come."""
        messages = []
        try:
            while not self._closed and self.connection.poll():
                messages.append(self.connection.recv())
        except (EOFError, OSError):
            self._closed = True
        return messages

    def ending(self) -> str | None:
        """How it ended; None while it lives."""
        if self._closed:
            self.process.join(GRACE)
        elif self.process.exitcode in (None, SERVER_DIED):
            return None
        status = self.process.exitcode
        if status is None or status >= 0:
            return f"left with exit status {status}"
        name = signal.Signals(-status).name
        return f"was killed by {name}" + (" (out of memory?)" if status == -signal.SIGKILL else "")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask it by this signal to save its run and leave. One that has no run leaves at once."""
        self.leaving = True
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it and the processes that it started, at once."""
        self.process.kill()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # its session, which may outlive it
        self.process.join(GRACE)
        self.connection.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid


class _Pool:
    """The cells that wait, and the workers."""

    def __init__(
        self, folders: Sequence[Path], layout: Layout, display: Display, interruption: Interruption
    ) -> None:
        self.layout, self.display, self.interruption = layout, display, interruption
        self.waiting = deque(RunFolder(path) for path in folders)
        self.workers: list[_Worker] = []
        self.slots = list(range(layout.slots))  # without a worker
        self.deaths: Counter[Path] = Counter()  # workers that a cell has outlived
        self.asked: dict[Path, int] = {}  # CPU threads of the cell that is next
        self.errors: dict[Path, Exception] = {}
        self.stopping = False

    def work(self) -> None:
        """Until no cell is left, or a signal came and the runs under way have saved."""
        while True:
            if self.interruption.signal is not None and not self.stopping:
                self._stop(self.interruption.signal)
            if not self.stopping:
                self._hand_out()
            if not any(each.cells for each in self.workers) and (self.stopping or not self.waiting):
                return
            self._listen()

    def end(self) -> None:
        """Let all workers go and wait until they have left."""
        self.stopping = True
        for each in self.workers:
            each.stop()
        while self.workers:
            self._listen()

    def kill(self) -> None:
        """End all workers at once."""
        for each in self.workers:
            each.kill()
        error = {"type": "Interrupted", "message": "SIGKILL"}
        for each in self.workers:
            if each.cells:
                note_death(each.cells[0], Status.killed, error)
                self._finish(each, each.cells[0].read_record())

    def _listen(self) -> None:
        ready = wait([each.connection for each in self.workers], LOOK_EVERY)
        for each in list(self.workers):
            if each.connection in ready:
                self._receive(each)
            if (how := each.ending()) is not None:
                self._remove(each, how)

    def _hand_out(self) -> None:
        """Give cells to free workers, and start workers for others, as long as there are slots and
        cores.
        """
        while self.waiting:
            free = next((each for each in self.workers if not (each.cells or each.leaving)), None)
            if free is None and not self.slots:
                return
            cell = self.waiting[0]
            threads = self.asked[cell.path] = self.asked.get(cell.path) or self._threads(cell)
            busy = sum(each.threads for each in self.workers if each.cells)
            if busy and busy + threads > self.layout.cores:
                return
            launch = launch_of(cell)
            if launch is not None and launch.should_stop():
                self.waiting.clear()
                return
            try:
                free = free or self._start(cell)
            except Interrupted:
                return
            if free is not None:
                free.begin([self.waiting.popleft()], threads)
                del self.asked[cell.path]

    def _start(self, cell: RunFolder) -> _Worker | None:
        """A new worker in the first slot that is free; None where the slot has to be given up.

        Raises:
            Interrupted: a signal came.
        """
        slot = self.slots.pop(0)
        self.interruption.patient = False  # nothing is under way in this process
        try:
            self.interruption.check()
            variables = environment(os.environ, self.layout, slot)
            self.workers.append(_Worker(slot, variables, cell.log_file))
        except (EOFError, OSError) as error:
            self._give_up(f"could not be started: {type(error).__name__} {error}".strip())
            return None
        finally:
            self.interruption.patient = True
        return self.workers[-1]

    def _threads(self, cell: RunFolder) -> int:
        """How many CPU threads a cell will have.

        Those it began with, those it asks for, or a slot's.
        """
        record = cell.read_record()
        if record is not None and record.attempts:
            return record.attempts[0].threads
        try:
            return cell.read_config().threads or self.layout.threads
        except RequestError:  # the worker will say so
            return self.layout.threads

    def _receive(self, each: _Worker) -> None:
        """Act on what a worker says, as described in `dks/sweeps/launchers/worker.py`."""
        for message in each.receive():
            match message:
                case ("ready",):
                    each.ready = True
                case ("failed", reason):
                    each.reason = reason
                case ("run",):
                    record = each.cells[0].read_record()
                    assert record is not None
                    each.view = self.display.run(record)
                    sender.current().begin(each.cells[0].path)
                case ("started" | "stepped" | "recorded" as name, *values):
                    getattr(each.view, name)(*values)
                case ("finished", status, error):
                    record = each.cells[0].read_record()
                    if record is not None:  # where it could not be written it says less
                        record.status, record.error = status, error
                    self._finish(each, record)
                case ("track", what, done, total):
                    each.counted = each.counted or self.display.count(what)
                    each.counted.show(done, total)
                    if done == total:
                        each.counted.close()
                        each.counted = None
                case ("say", line, urgent):
                    self.display.say(line, urgent)
                case ("over", error):
                    cell = each.cells.pop(0)
                    if error is not None:
                        self.errors[cell.path] = RuntimeError(error)
                case ("interrupted",):
                    each.cells, each.leaving = [], True

    def _finish(self, each: _Worker, record: Record | None) -> None:
        """Show how the run of a worker ended, and have it tracked."""
        sender.current().end(each.cells[0].path)
        if each.counted is not None:
            each.counted.close()
            each.counted = None
        if record is not None:
            (each.view or self.display.run(record)).finished(record)
        each.view = None

    def _remove(self, each: _Worker, how: str) -> None:
        """Clean up after a worker that has died or left. Its slot is free again."""
        self._receive(each)
        each.kill()  # the processes it started would keep the lock of its cell
        self.workers.remove(each)
        if not each.cells or (self.stopping and not each.ready):
            self.slots.append(each.slot)
            return
        if not each.ready:
            self.waiting.extendleft(reversed(each.cells))
            self._give_up(f"{how} while it started" + (f": {each.reason}" if each.reason else ""))
            return
        self.slots.append(each.slot)
        self.waiting.extendleft(reversed(each.cells[1:]))
        cell = each.cells[0]
        error = {"type": "WorkerDied", "message": f"the worker process {how}"}
        noted = note_death(cell, Status.killed if self.stopping else Status.failed, error)
        record = cell.read_record()
        if each.view is not None or noted:
            self._finish(each, record)
        if record is not None and record.status is Status.failed:
            self._retry(cell)

    def _retry(self, cell: RunFolder) -> None:
        """Try a cell again whose worker died, as often as its launch says."""
        launch = launch_of(cell)
        if launch is None:
            return
        self.deaths[cell.path] += 1
        retry, retries = self.deaths[cell.path], launch.read().retries
        if retry > retries or self.stopping:
            launch.note_failure(cell.cell_id)
        else:
            self.display.say(f"cell {cell.cell_id} is tried again ({retry} of {retries})")
            self.waiting.appendleft(cell)

    def _give_up(self, how: str) -> None:
        """A worker could not start: do without its slot, as long as there are others.

        Raises:
            RuntimeError: there are no others.
        """
        left = len(self.slots) + len(self.workers)
        if not left:
            raise RuntimeError(f"a worker process {how}")
        line = f"[yellow]{left} slots are left[/]: a worker process {escape(how)}"
        self.display.say(line, urgent=True)

    def _stop(self, number: signal.Signals) -> None:
        self.stopping = True
        running = sum(bool(each.cells) for each in self.workers)
        what, them = (
            ("the run under way saves what it has", "it")
            if running == 1
            else (f"{running} runs save what they have", "them")
        )
        self.display.say(
            f"[yellow]stopping[/]: {what}; Ctrl-C again ends {them} at once", urgent=True
        )
        for each in self.workers:
            # SIGINT would have an idle one print a traceback
            each.stop(signal.SIGTERM if number == signal.SIGINT else number)


def note_death(folder: RunFolder, status: Status, error: dict[str, str]) -> bool:
    """Write down that the process of a cell died in the middle of it.

    Returns whether there was need to. A cell that was still to begin stays queued when all are
    stopped.
    """
    expected = {Status.running} if status is Status.killed else {Status.queued, Status.running}
    return folder.close(status, error, expected, ended=time.time(), patience=GRACE)
