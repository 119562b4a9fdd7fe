"""Several cells at a time on this machine, in persistent worker processes
(`dks/sweeps/launchers/worker.py`).

Torch is imported once, by the process that the workers are forked from
(`dks/sweeps/launchers/nursery.py`), and a worker runs cell after cell. The pool hands the cells
out, shows what the workers say, and cleans up after a worker that dies.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dks.config.errors import RequestError
from dks.config.files import python_path
from dks.machine.interruption import Interruption
from dks.runs.journal import Entry
from dks.runs.record import Record, RunFolder, Status
from dks.runs.terminal import CountView, Display, RunView
from dks.sweeps.launchers.nursery import Nursery, nursed
from dks.sweeps.launchers.worker import launch_of, open_log
from dks.tracking import sender

# Seconds between two looks at which workers are alive.
LOOK_EVERY = 0.2
# Seconds that the lock of a cell may stay taken after its worker died.
GRACE = 5.0


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
    wanted = slots or (len(gpus) * slots_per_gpu if gpus else cores)
    count = min(cells, wanted)
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
    with nursed() as nursery:
        return _Pool(folders, layout, display, nursery).run()


class _Worker:
    """A worker process and the cell it works on."""

    def __init__(self, nursery: Nursery, layout: Layout, slot: int, output: Path) -> None:
        """Start it; what it prints before its first cell goes into the file `output`."""
        self.nursery = nursery
        (receive, self._orders), (self.events, tell) = os.pipe(), os.pipe()
        try:
            with open_log(output) as file:
                self._child = nursery.bear(
                    environment(os.environ, layout, slot), (receive, file.fileno(), tell)
                )
        finally:
            os.close(receive)
            os.close(tell)
        os.set_blocking(self.events, False)
        self.slot = slot
        self.ready = False  # it has said so
        self.leaving = False
        self.cell: RunFolder | None = None
        self.threads = 0  # of its cell
        self.view: RunView | None = None
        self.counted: CountView | None = None
        self._unread = b""
        self._closed = False

    @property
    def free(self) -> bool:
        return self.cell is None and not self.leaving

    def begin(self, cell: RunFolder, threads: int) -> None:
        """Hand it a cell."""
        self.cell, self.threads = cell, threads
        with suppress(BrokenPipeError):  # it has just died, which will be noticed
            os.write(self._orders, (json.dumps({"run": str(cell.path.absolute())}) + "\n").encode())

    def read(self) -> list[dict[str, Any]]:
        """The messages that have come."""
        with suppress(BlockingIOError):
            while got := os.read(self.events, 1 << 16):
                self._unread += got
        *lines, self._unread = self._unread.split(b"\n")
        return [json.loads(line) for line in lines]

    def death(self) -> str | None:
        """How it ended; None while it lives."""
        self.nursery.listen()
        status = self._child.status
        if status is None:
            return None
        if status >= 0:
            return f"left with exit status {status}"
        name = signal.Signals(-status).name
        return f"was killed by {name}" + (" (out of memory?)" if status == -signal.SIGKILL else "")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to save its run and leave, by this signal. One that has no run leaves at once."""
        self.leaving = True
        self.nursery.dismiss(self._child, number)

    def kill(self) -> None:
        """End it at once, and the processes that it started."""
        self.nursery.kill(self._child, GRACE)
        if not self._closed:
            self._closed = True
            os.close(self._orders)
            os.close(self.events)


class _Pool:
    """The cells that wait, and the workers."""

    def __init__(
        self, folders: Sequence[Path], layout: Layout, display: Display, nursery: Nursery
    ) -> None:
        self.layout, self.display, self.nursery = layout, display, nursery
        self.waiting = deque(folders)
        self.workers: dict[int, _Worker] = {}  # by slot
        self.closed: set[int] = set()  # slots whose worker could not start
        self.deaths: Counter[Path] = Counter()  # workers that a cell has outlived
        self.asked: dict[Path, int] = {}  # CPU threads of the cell that is next
        self.errors: dict[Path, Exception] = {}
        self.stopping = False
        self.selector = selectors.DefaultSelector()

    def run(self) -> dict[Path, Exception]:
        with Interruption() as interruption, self.selector:
            try:
                try:
                    self._work(interruption)
                except Exception:
                    self._dismiss()
                    raise
                self._dismiss()
            except KeyboardInterrupt:
                self._kill()
                raise
            interruption.check()
        return self.errors

    def _work(self, interruption: Interruption) -> None:
        while True:
            if interruption.signal is not None and not self.stopping:
                self._stop(interruption.signal)
            if not self.stopping:
                self._hand_out()
            if not any(worker.cell for worker in self.workers.values()) and (
                self.stopping or not self.waiting
            ):
                return
            for key, _ in self.selector.select(LOOK_EVERY):
                self._hear(key.data)
            for worker in list(self.workers.values()):
                if (how := worker.death()) is not None:
                    self._bury(worker, how)

    def _hand_out(self) -> None:
        """Give cells to free workers, and start workers for others, as long as there are slots and
        cores.
        """
        while self.waiting:
            worker = next((each for each in self.workers.values() if each.free), None)
            slot = next(
                (
                    each
                    for each in range(self.layout.slots)
                    if each not in self.workers.keys() | self.closed
                ),
                None,
            )
            if worker is None and slot is None:
                return
            path = self.waiting[0]
            folder = RunFolder(path)
            threads = self.asked[path] = self.asked.get(path) or self._threads(folder)
            busy = sum(each.threads for each in self.workers.values() if each.cell)
            if busy and busy + threads > self.layout.cores:
                return
            launch = launch_of(folder)
            if launch is not None and launch.should_stop():
                self.waiting.clear()
                return
            if worker is None:
                assert slot is not None
                worker = self.workers[slot] = _Worker(
                    self.nursery, self.layout, slot, folder.log_file
                )
                self.selector.register(worker.events, selectors.EVENT_READ, worker)
            worker.begin(folder, threads)
            self.waiting.popleft()
            del self.asked[path]

    def _threads(self, folder: RunFolder) -> int:
        """How many CPU threads a cell will have.

        Those it began with, those it asks for, or a slot's.
        """
        record = folder.read_record()
        if record is not None and record.attempts:
            return record.attempts[0].threads
        try:
            return folder.read_config().threads or self.layout.threads
        except RequestError:  # the worker will say so
            return self.layout.threads

    def _hear(self, worker: _Worker) -> None:
        for message in worker.read():
            self._obey(worker, message)

    def _obey(self, worker: _Worker, message: Mapping[str, Any]) -> None:
        """What a worker says, as described in `dks/sweeps/launchers/worker.py`."""
        match message:
            case {"event": "ready"}:
                worker.ready = True
            case {"event": "run"}:
                assert worker.cell is not None
                record = worker.cell.read_record()
                assert record is not None
                worker.view = self.display.run(record)
                sender.current().begin(worker.cell.path)
            case {"event": "started", "epochs": epochs, "images": images, "finished": finished}:
                assert worker.view is not None
                worker.view.started(epochs, images, finished)
            case {"event": "stepped", "images": images}:
                assert worker.view is not None
                worker.view.stepped(images)
            case {"event": "recorded", "entry": line}:
                assert worker.view is not None
                worker.view.recorded(Entry.from_json(line))
            case {"event": "finished", "status": status, "error": error}:
                assert worker.cell is not None
                record = worker.cell.read_record()
                if record is not None:
                    # also where the record could not be written
                    record.status, record.error = Status(status), error
                self._finish(worker, worker.cell, record)
            case {"event": "track", "what": what, "done": done, "total": total}:
                worker.counted = worker.counted or self.display.count(what)
                worker.counted.show(done, total)
                if done == total:
                    worker.counted.close()
                    worker.counted = None
            case {"event": "say", "line": line, "urgent": urgent}:
                self.display.say(line, urgent)
            case {"event": "over", "error": error}:
                assert worker.cell is not None
                if error is not None:
                    self.errors[worker.cell.path] = RuntimeError(error)
                worker.cell = None
            case {"event": "interrupted"}:
                worker.cell, worker.leaving = None, True

    def _finish(self, worker: _Worker, folder: RunFolder, record: Record | None) -> None:
        """Show how a run ended, and have it told."""
        sender.current().end(folder.path)
        if worker.counted is not None:
            worker.counted.close()
            worker.counted = None
        if record is not None:
            (worker.view or self.display.run(record)).finished(record)
        worker.view = None

    def _bury(self, worker: _Worker, how: str) -> None:
        """A worker has died or left: clear up after it. Its slot is free again."""
        self._hear(worker)  # its last words
        self.selector.unregister(worker.events)
        worker.kill()  # the processes it started would keep the lock of its cell
        del self.workers[worker.slot]
        folder, worker.cell = worker.cell, None
        if folder is None or (self.stopping and not worker.ready):
            return
        if not worker.ready:
            self._close(worker.slot, folder, how)
            return
        error = {"type": "WorkerDied", "message": f"the worker process {how}"}
        noted = note_death(folder, Status.killed if self.stopping else Status.failed, error)
        record = folder.read_record()
        if worker.view is not None or noted:
            self._finish(worker, folder, record)
        if record is not None and record.status is Status.failed:
            self._again_or_never(folder)

    def _again_or_never(self, folder: RunFolder) -> None:
        """What the launch says about a cell whose worker died."""
        launch = launch_of(folder)
        if launch is None:
            return
        self.deaths[folder.path] += 1
        retry, retries = self.deaths[folder.path], launch.read().retries
        if retry > retries or self.stopping:
            launch.note_failure(folder.cell_id)
        else:
            self.display.say(f"cell {folder.cell_id} is tried again ({retry} of {retries})")
            self.waiting.appendleft(folder.path)

    def _close(self, slot: int, folder: RunFolder, how: str) -> None:
        """A worker could not even start: do without it, as long as there are others.

        Raises:
            RuntimeError: there are no others.
        """
        self.closed.add(slot)
        self.waiting.appendleft(folder.path)
        words = self.nursery.last_words()
        what = f"a worker process {how} while it started" + (f": {words}" if words else "")
        if len(self.closed) == self.layout.slots:
            raise RuntimeError(what)
        self.display.say(
            f"[yellow]{self.layout.slots - len(self.closed)} slots are left[/]: {what}", urgent=True
        )

    def _stop(self, number: signal.Signals) -> None:
        self.stopping = True
        running = sum(worker.cell is not None for worker in self.workers.values())
        what = (
            "the run under way saves what it has"
            if running == 1
            else f"{running} runs save what they have"
        )
        them = "it" if running == 1 else "them"
        self.display.say(
            f"[yellow]stopping[/]: {what}; Ctrl-C again ends {them} at once", urgent=True
        )
        for worker in self.workers.values():
            # an idle one would tell a story of SIGINT
            worker.stop(signal.SIGTERM if number == signal.SIGINT else number)

    def _dismiss(self) -> None:
        """Let all workers go and wait until they have left."""
        self.stopping = True
        for worker in self.workers.values():
            worker.stop()
        while self.workers:
            for key, _ in self.selector.select(LOOK_EVERY):  # nobody hangs because nobody listens
                self._hear(key.data)
            for worker in list(self.workers.values()):
                if (how := worker.death()) is not None:
                    self._bury(worker, how)

    def _kill(self) -> None:
        for worker in self.workers.values():
            worker.kill()
        for worker in self.workers.values():
            if worker.cell is not None:
                note_death(
                    worker.cell, Status.killed, {"type": "Interrupted", "message": "SIGKILL"}
                )
                self._finish(worker, worker.cell, worker.cell.read_record())
        self.workers.clear()


def note_death(folder: RunFolder, status: Status, error: dict[str, str]) -> bool:
    """Write down that the process of a cell died in the middle of it.

    Returns whether there was need to.

    A cell that was still to begin stays queued when all are stopped.
    """
    expected = {Status.running} if status is Status.killed else {Status.queued, Status.running}
    return folder.close(status, error, expected, ended=time.time(), patience=GRACE)


def environment(given: Mapping[str, str], layout: Layout, slot: int) -> dict[str, str]:
    """The environment of a worker.

    Its threads, its GPU, and where this package is, which may be a bare checkout.
    """
    path = python_path(given.get("PYTHONPATH", ""))
    variables = {**given, "OMP_NUM_THREADS": str(layout.threads), "PYTHONPATH": path}
    if layout.gpus:
        variables["CUDA_VISIBLE_DEVICES"] = layout.gpus[slot % len(layout.gpus)]
    return variables
