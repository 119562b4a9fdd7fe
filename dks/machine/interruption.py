"""Signals that ask a command to end, and a run to stop.

The first one asks, a second Ctrl-C insists.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from signal import Signals
from types import FrameType, TracebackType
from typing import Any, NoReturn

# Ctrl-C, a scheduler that wants its machine back, a terminal that closes, and what schedulers can
# be told to send before.
SIGNALS = (Signals.SIGINT, Signals.SIGTERM, Signals.SIGHUP, Signals.SIGUSR1, Signals.SIGUSR2)
STATUS = 130  # of a command that was interrupted, by whichever of them
# Seconds that a command has to clear up.
PATIENCE = 3.0

_asked: Signals | None = None  # what this command is to end by


class Interrupted(KeyboardInterrupt):
    """A signal asked, and what was under way stopped.

    The message is the signal's name, for example "SIGTERM".
    """

    @property
    def signal(self) -> Signals | None:
        """The signal that asked, for a handler that was installed before.

        None where there was none.
        """
        return Signals.__members__.get(str(self))


def heard() -> list[Signals]:
    """The signals to obey: all of `SIGNALS`, but under nohup not SIGHUP."""
    return [
        each
        for each in SIGNALS
        if each is not Signals.SIGHUP or signal.getsignal(each) is not signal.SIG_IGN
    ]


def obey() -> None:
    """From now on a signal ends this command: it raises `Interrupted`, and is remembered.

    Where the exception gets lost, as in a callback of a library, `check` raises it again; after
    `PATIENCE` the process ends. It does at once in the middle of an import, which may make another
    error of it, and native code abort.
    """
    signal.signal(signal.SIGALRM, lambda number, frame: leave())
    for number in heard():
        signal.signal(number, _end)
    sys.unraisablehook = _unraisable


def _end(number: int, frame: FrameType | None) -> None:
    global _asked
    if _asked is not None or _imports(frame):
        leave()
    _asked = Signals(number)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    raise Interrupted(_asked.name)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _unraisable(lost: Any) -> None:
    if _asked is None:
        sys.__unraisablehook__(lost)


def check() -> None:
    """Raises `Interrupted` if a signal has asked this command to end."""
    if _asked is not None:
        raise Interrupted(_asked.name)


def heed() -> None:
    """Leave if a signal has asked this command to end, whatever has become of it."""
    if _asked is not None:
        leave()


def leave() -> NoReturn:
    """End this process, and those that it started, at once."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):
        # a bar hides the cursor
        os.write(2, b"\x1b[?25hinterrupted\n" if os.isatty(2) else b"interrupted\n")
    with suppress(Exception):  # it may have been interrupted in this very import
        import psutil

        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    os._exit(STATUS)


class Interruption:
    """While this context lasts, signals set a flag that is read where it is safe to stop, as
    between two steps.

    The handlers do nothing else, so nothing is ever half-written; processes forked meanwhile
    inherit them and ignore signals. The handlers that were there before come back at the end.
    """

    def __init__(self) -> None:
        self.patient = True  # else the first signal raises `Interrupted` at once as well
        self.signal: Signals | None = None  # the first one that came
        self._pid = os.getpid()
        self._previous: dict[Signals, Any] = {}

    def __enter__(self) -> Interruption:
        check()
        # only the main thread may install handlers
        if threading.current_thread() is threading.main_thread():
            for number in heard():
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises `Interrupted` if a signal came."""
        if self.signal is not None:
            raise Interrupted(self.signal.name)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return
        if self.signal is not None and number == Signals.SIGINT:
            raise KeyboardInterrupt
        first, self.signal = self.signal is None, self.signal or Signals(number)
        if first and not self.patient and not _imports(frame):
            raise Interrupted(self.signal.name)
