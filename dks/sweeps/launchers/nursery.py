"""The process that workers are forked from: torch is imported once, however many of them there are.

`python -m dks.sweeps.launchers.nursery FD` imports what every run needs and then takes orders on
the Unix socket FD, one JSON object a line:

{"variables": {"OMP_NUM_THREADS": "2"}}    fork a worker, with these in its environment

Three open files come with each: its standard input, its output, and the pipe that it talks through
(`dks/sweeps/launchers/worker.py`). It answers, one JSON object a line:

{"born": 4711}                             the process of the oldest order without an answer
{"died": 4711, "status": -9}               as `subprocess` tells it

Before it forks it starts no thread and leaves GPUs alone. It leaves when the socket is closed, and
its workers see for themselves that nobody has orders any more.
"""

from __future__ import annotations

import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module

from dks.config.files import python_path
from dks.machine import code
from dks.machine.interruption import SIGNALS, heard

FILES = 3  # that come with an order


@dataclass
class Child:
    """A worker process, as far as it is known."""

    pid: int | None = None  # None: not yet forked
    status: int | None = None  # as `subprocess` has it; None: it lives
    unwanted: bool = False  # it is to leave as soon as it is there


class Nursery:
    """The process, for whoever wants workers. It begins to import at once."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed at the end)
        # Its libraries start their threads as they are loaded. Each run sets how many it has.
        self._environment = {
            **os.environ,
            "PYTHONPATH": python_path(os.environ.get("PYTHONPATH", "")),
            "OMP_NUM_THREADS": "1",
        }
        with theirs:
            self._process = subprocess.Popen(
                # -P: a module in the current folder must not take the place of one of Python's own.
                [sys.executable, "-P", "-m", "dks.sweeps.launchers.nursery", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C in the terminal does not reach it
            )
        self._unborn: deque[Child] = deque()
        self._living: dict[int, Child] = {}
        self._unread = b""

    @property
    def is_gone(self) -> bool:
        """Can it bear no more?"""
        return self._process.poll() is not None

    def bear(self, environment: Mapping[str, str], files: Sequence[int]) -> Child:
        """Have a worker forked.

        Args:
            environment: of the worker.
            files: its standard input, its output, and the pipe it talks through; they may be closed
                afterwards.
        """
        variables = {
            name: value
            for name, value in environment.items()
            if self._environment.get(name) != value
        }
        child = Child()
        self._unborn.append(child)
        with suppress(BrokenPipeError):  # it is gone, and the child with it
            socket.send_fds(
                self._socket, [(json.dumps({"variables": variables}) + "\n").encode()], list(files)
            )
        return child

    def listen(self) -> None:
        """Bring what is known of the children up to date."""
        with suppress(BlockingIOError, ConnectionResetError):
            while got := self._socket.recv(1 << 16, socket.MSG_DONTWAIT):
                self._unread += got
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            self._hear(json.loads(line))
        if self.is_gone:
            self._lose()

    def dismiss(self, child: Child, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to leave, by this signal; one that is not there yet will not come."""
        if child.pid is not None:
            _signal(child, number)
        elif self._living:
            child.unwanted = True
        else:  # nobody else would miss what it imports
            self._process.kill()

    def kill(self, child: Child, patience: float) -> None:
        """End it at once, and the processes that it started.

        Returns when it is gone, or after that many seconds.
        """
        if child.pid is None:
            self.dismiss(child)
        else:
            _signal(child, signal.SIGKILL)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)  # its own session, which may outlive it
        until = time.monotonic() + patience
        while child.status is None and time.monotonic() < until:
            self.listen()
            time.sleep(0.002)

    def last_words(self) -> str:
        """The last line that the process printed, if any."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def end(self) -> None:
        """It is not needed any more, and no child of it lives."""
        self._process.kill()
        self._process.wait()
        self._socket.close()
        self._log.close()

    def _hear(self, answer: Mapping[str, int]) -> None:
        match answer:
            case {"born": pid}:
                child = self._unborn.popleft()
                child.pid, self._living[pid] = pid, child
                if child.unwanted:
                    _signal(child, signal.SIGTERM)
            case {"died": pid, "status": status}:
                self._living.pop(pid).status = status

    def _lose(self) -> None:
        """The process is gone: nobody is born any more, and nobody tells how the others end."""
        for child in self._unborn:
            child.status = self._process.returncode
        self._unborn.clear()
        for pid, child in list(self._living.items()):
            if not _exists(pid):
                child.status = -signal.SIGKILL  # what took it most likely, as it took the nursery
                del self._living[pid]


_current: Nursery | None = None


@contextmanager
def nursery() -> Iterator[None]:
    """A nursery that imports while other things are done, for the workers of this context."""
    global _current
    _current = Nursery()
    try:
        yield
    finally:
        _current.end()
        _current = None


@contextmanager
def nursed() -> Iterator[Nursery]:
    """The nursery of the context around, or a new one."""
    if _current is not None and not _current.is_gone:
        yield _current
        return
    new = Nursery()
    try:
        yield new
    finally:
        new.end()


def _signal(child: Child, number: signal.Signals) -> None:
    assert child.pid is not None
    if child.status is None:
        with suppress(ProcessLookupError):
            os.kill(child.pid, number)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- the process itself


def main() -> None:
    """Until the socket is closed."""
    # a scheduler sends them to all processes of a job; workers decide for themselves
    for number in heard():
        signal.signal(number, lambda number, frame: None)
    _import()
    gc.collect()
    gc.freeze()  # what is there is shared with the workers, as long as nobody writes to it
    with socket.socket(fileno=int(sys.argv[1])) as orders:
        _serve(orders)
    os._exit(0)


def _import() -> None:
    """What every run needs before its first step."""
    # the last one by torch's optimisers
    for name in ("dks.training.run", "dks.training.flops", "torch._dynamo"):
        import_module(name)
    code.current()  # as it is imported: whoever changes it meanwhile changes no worker


def _serve(orders: socket.socket) -> None:
    ended, note = os.pipe()
    os.set_blocking(note, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(note)
    unread, files = b"", list[int]()
    with selectors.DefaultSelector() as selector:
        selector.register(orders, selectors.EVENT_READ)
        selector.register(ended, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == ended:
                    os.read(ended, 1 << 12)
                    _tell_dead(orders)
                    continue
                got, more, _, _ = socket.recv_fds(orders, 1 << 12, 8 * FILES)
                if not got:
                    return
                files += more
                *lines, unread = (unread + got).split(b"\n")
                for line in lines:
                    pid = _fork(
                        json.loads(line)["variables"],
                        files[:FILES],
                        [orders.fileno(), ended, note, *files[FILES:]],
                    )
                    for file in files[:FILES]:
                        os.close(file)
                    del files[:FILES]
                    _tell(orders, born=pid)


def _tell_dead(orders: socket.socket) -> None:
    with suppress(ChildProcessError):  # there is none any more
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            _tell(orders, died=found[0], status=os.waitstatus_to_exitcode(found[1]))


def _tell(orders: socket.socket, **values: int) -> None:
    with suppress(OSError):  # nobody wants to know any more
        orders.sendall((json.dumps(values) + "\n").encode())


def _fork(variables: Mapping[str, str], files: Sequence[int], others: Sequence[int]) -> int:
    """The number of a new worker process, in which this does not return.

    Args:
        files: standard input, output, and the pipe that it talks through.
        others: that it is not to have.
    """
    # what comes before the worker can obey is kept for it
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return pid
    status = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (*heard(), signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        receive, output, tell = files
        for place, file in enumerate((receive, output, output)):
            os.dup2(file, place)
        for file in (receive, output, *others):
            os.close(file)
        os.environ.update(variables)
        from dks.sweeps.launchers import worker

        worker.main(tell)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
