"""Signals that ask a run to stop: the first one asks, a second Ctrl-C insists."""

from __future__ import annotations

import os
import signal
import threading
from signal import Signals
from types import FrameType, TracebackType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and did, between two steps. The message is the signal's name, for example "SIGTERM"."""

    @property
    def signal(self) -> Signals | None:
        """The signal that asked, for a handler that was installed before; None where there was none."""
        return Signals.__members__.get(str(self))


class Interruption:
    """While this context lasts, signals set a flag that the training loop reads between two steps.

    Ctrl-C (SIGINT), the signals of a scheduler that wants its machine back (SIGTERM) and those it can be told to send before
    (SIGUSR1, SIGUSR2) all mean the same. Handlers do nothing else, so nothing is ever half-written; processes forked meanwhile
    inherit the handler and ignore it. The handlers that were there before come back at the end.
    """

    SIGNALS = (Signals.SIGINT, Signals.SIGTERM, Signals.SIGUSR1, Signals.SIGUSR2)

    def __init__(self) -> None:
        self.signal: Signals | None = None  # the first one that came
        self._pid = os.getpid()
        self._previous: dict[Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # only the main thread may install handlers
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
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
        self.signal = self.signal or Signals(number)
